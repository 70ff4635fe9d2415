"""TD-MPC2's training objective, as pure functions of a world model and a batch."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from tdmpc_opt.configs import LossWeights
from tdmpc_opt.data.sampler import Batch
from tdmpc_opt.model.world_model import PolicyOutput, WorldModel
from tdmpc_opt.training.ranks import ALONE, Ranks

RHO = 0.5
"""Factor by which each further step of the horizon counts less."""


@dataclass(frozen=True, slots=True)
class ModelLosses:
    """Terms of the model's loss: consistency and behaviour squared, the others in nats.

    The termination term has weight 1, as published.
    """

    consistency: Float[Tensor, ""]
    reward: Float[Tensor, ""]
    value: Float[Tensor, ""]
    behaviour: Float[Tensor, ""]
    """As the policy's, on latents with their graph: it shapes what the encoder keeps."""
    termination: Float[Tensor, ""] | None
    """Of z_1..z_H, without decay over the steps; None where the model has no such head."""

    def total(self, weights: LossWeights) -> Float[Tensor, ""]:
        """Return the weighted sum that is minimised (arXiv:2310.16828, equation 3)."""
        total = (
            weights.consistency * self.consistency
            + weights.reward * self.reward
            + weights.value * self.value
            + weights.behaviour * self.behaviour
        )
        return total if self.termination is None else total + self.termination


@dataclass(frozen=True, slots=True)
class Rollout:
    """Outputs of a student along the slices of a batch, with their graph."""

    zs: Float[Tensor, "rows batch latent"]
    """Latents z_0..z_H: the first encoded, the others predicted."""
    reward_logits: Float[Tensor, "rows-1 batch bins"]
    """Of (z_t, a_t)."""
    q_logits: Float[Tensor, "heads rows-1 batch bins"]
    """Of (z_t, a_t), one set per member of the ensemble."""
    decay: Float[Tensor, " rows"]
    """rho^t: how much step t counts."""


@dataclass(frozen=True, slots=True)
class PolicyLosses:
    """Terms of the policy's loss, scalars."""

    objective: Float[Tensor, ""]
    """Entropy and scaled Q, to be minimised."""
    behaviour: Float[Tensor, ""]
    """Squared distance of the policy's sampled action to the dataset's label, where there is
    one."""

    def total(self, weights: LossWeights) -> Float[Tensor, ""]:
        """Return the weighted sum that is minimised."""
        return self.objective + weights.behaviour * self.behaviour


def two_random_heads(model: WorldModel, generator: torch.Generator) -> Int[Tensor, "2"] | None:
    """Draw two different members of the Q ensemble; None where there are just two."""
    count = model.config.num_q
    if count == 2:
        return None
    return moved(torch.randperm(count, generator=generator)[:2], model.bins.device)


@torch.no_grad()
def td_target(
    model: WorldModel,
    next_z: Float[Tensor, "horizon batch latent"],
    reward: Float[Tensor, "horizon batch 1"],
    task: Int[Tensor, " batch"],
    generator: torch.Generator,
    ranks: Ranks = ALONE,
    td_lambda: float = 0.0,
    terminated: Float[Tensor, "horizon batch 1"] | None = None,
) -> Float[Tensor, "horizon batch 1"]:
    """Return what each step was worth: rewards and, where they end, the value of two target Qs.

    As published these are one-step targets with the least of the two. After a state that ended
    the episode, where `terminated` is 1, there is nothing to earn.

    Source:
        TD-MPC2, arXiv:2310.16828, equation 4; lambda-returns as in DreamerV2, arXiv:2010.02193,
        equation 4, here of what happened.
    """
    noise = _noise(model, next_z, generator, ranks)
    action = model.policy(next_z, task, noise).action
    heads = two_random_heads(model, generator)
    values = model.decode(model.q_values(next_z, action, task, heads, target=True))
    value = values.amin(0)
    discount = model.discount[task].unsqueeze(-1).expand(reward.shape)
    if terminated is not None:
        discount = discount * (1 - terminated)
    targets = [reward[-1] + discount[-1] * value[-1]]
    for t in reversed(range(len(reward) - 1)):
        later = torch.lerp(value[t], targets[0], td_lambda)
        targets.insert(0, reward[t] + discount[t] * later)
    return torch.stack(targets)


def model_losses(
    model: WorldModel,
    batch: Batch,
    next_z: Float[Tensor, "horizon batch latent"],
    target: Float[Tensor, "horizon batch 1"],
    weights: LossWeights,
    ranks: Ranks = ALONE,
) -> tuple[ModelLosses, Rollout]:
    """Roll the dynamics through a batch of slices and compare with what happened.

    Args:
        model: The student in training.
        batch: Slices of H transitions.
        next_z: Encoded real observations 1..H, without gradient.
        target: TD targets of the Q ensemble, in environment units.
        weights: A behaviour weight of 0 leaves that term uncomputed.
        ranks: Who else has slices of the same batch; the mean of their losses is the batch's.

    Returns:
        The losses, and what they were computed from.

    Source:
        TD-MPC2, arXiv:2310.16828, equation 3.
    """
    horizon = batch.action.shape[0]
    decays = _decay(RHO, horizon + 1, batch.obs)
    decay = decays[:-1]
    latents = [model.encode(batch.obs[0], batch.task)]
    for t in range(horizon):
        latents.append(model.next(latents[t], batch.action[t], batch.task))
    zs = torch.stack(latents)
    squared = ((zs[1:] - next_z) ** 2).mean(dim=(1, 2))
    reward_logits = model.reward(zs[:-1], batch.action, batch.task)
    reward_ce = model.soft_cross_entropy(reward_logits, batch.reward).mean(1)
    q_logits = model.q_values(zs[:-1], batch.action, batch.task)
    value_ce = model.soft_cross_entropy(q_logits, target.expand(len(q_logits), -1, -1, -1))
    losses = ModelLosses(
        consistency=(decay * squared).mean(),
        reward=(decay * reward_ce).mean(),
        value=(decay * value_ce.mean(2)).mean(),
        behaviour=imitation(model, zs[:-1], batch, ranks, RHO)
        if weights.behaviour
        else zs.new_zeros(()),
        termination=_termination(model, zs[1:], batch) if model.config.episodic else None,
    )
    return losses, Rollout(zs, reward_logits, q_logits, decays)


def _termination(
    model: WorldModel, zs: Float[Tensor, "horizon batch latent"], batch: Batch
) -> Float[Tensor, ""]:
    logits = model.termination(zs, batch.task)
    ended = torch.zeros_like(logits) if batch.terminated is None else batch.terminated
    return functional.binary_cross_entropy_with_logits(logits, ended)


def policy_losses(
    model: WorldModel,
    zs: Float[Tensor, "rows batch latent"],
    batch: Batch,
    scale: "RunningScale",
    weights: LossWeights,
    generator: torch.Generator,
    noise: Float[Tensor, "rows batch action"] | None = None,
) -> tuple[PolicyLosses, PolicyOutput]:
    """Score the policy by the Q ensemble on latents of the rollout, and update the scale.

    Gradients reach the Q ensemble and the embedding as well; the caller steps the policy
    network alone. The scale holds the ranks that share the batch.

    Returns:
        The losses, and the policy's output that they were computed from.

    Source:
        TD-MPC2, arXiv:2310.16828, equation 6; the behaviour term as in TD3+BC,
        arXiv:2106.06860.
    """
    task = batch.task
    noise = _noise(model, zs, generator, scale.ranks) if noise is None else noise
    output = model.policy(zs, task, noise)
    heads = two_random_heads(model, generator)
    q = model.decode(model.q_values(zs, output.action, task, heads)).mean(0)
    scale.update(q[0].detach())
    per_step = (weights.entropy * output.log_prob - q / scale.value).mean(dim=(1, 2))
    objective = (_decay(RHO, len(zs), zs) * per_step).mean()
    # Of sampled actions: compared with the mean alone, nothing would limit the noise, and
    # both the TD targets and the planner's prior are drawn with it.
    behaviour = _action_distance(model, output.action[:-1], batch, RHO, scale.ranks)
    return PolicyLosses(objective, behaviour), output


def imitation(
    model: WorldModel,
    zs: Float[Tensor, "horizon batch latent"],
    batch: Batch,
    ranks: Ranks = ALONE,
    rho: float = 1.0,
) -> Float[Tensor, ""]:
    """Return the squared distance of the policy's mean action to the labels of a batch.

    Args:
        model: The student in training.
        zs: Latents of the states that the labels belong to.
        batch: Slices with labels; states without one do not count.
        ranks: Who else has slices of the same batch.
        rho: Factor by which each further step counts less.
    """
    still = zs.new_zeros(batch.action.shape)
    mean = model.policy(zs, batch.task, still).mean
    return _action_distance(model, mean, batch, rho, ranks)


def _action_distance(
    model: WorldModel,
    action: Float[Tensor, "horizon batch action"],
    batch: Batch,
    rho: float,
    ranks: Ranks,
) -> Float[Tensor, ""]:
    mask = model.mask(batch.task)
    known = batch.label.isfinite().all(-1)
    # Before any arithmetic: NaN times zero is NaN, in the gradient too.
    label = torch.where(known.unsqueeze(-1), batch.label, 0.0)
    distance = ((action - label) ** 2 * mask).sum(-1) / mask.sum(-1)
    weight = known * _decay(rho, len(known), action).unsqueeze(-1)
    # Of several ranks the mean count: the batch has labels though one rank's slices have none.
    labelled = ranks.mean(known.sum().float()).clamp(min=1 / ranks.count)
    return (weight * distance).sum() / labelled


class RunningScale:
    """Running 5%..95% percentile range of Q, at least 1, that makes tasks comparable.

    Source:
        TD-MPC2, arXiv:2310.16828, section 3.1; DreamerV3, arXiv:2301.04104.
    """

    def __init__(self, tau: float, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.tau = tau
        self.ranks = ranks
        self.value = torch.ones((), device=device)
        self._percentiles = torch.tensor([0.05, 0.95], device=device)

    def update(self, q: Float[Tensor, "batch 1"]) -> None:
        """Move the scale towards the percentile range of these Q values, those of all ranks."""
        values = self.ranks.gather_rows(q.float().flatten())
        low, high = torch.quantile(values, self._percentiles)
        self.value = torch.lerp(self.value, (high - low).clamp(min=1.0), self.tau)


def _decay(rho: float, steps: int, like: Tensor) -> Float[Tensor, " steps"]:
    return rho ** torch.arange(steps, device=like.device, dtype=like.dtype)


def _noise(model: WorldModel, z: Tensor, generator: torch.Generator, ranks: Ranks) -> Tensor:
    # Drawn on the CPU: one stream whatever the device, and one state to save.
    shape = ranks.whole_shape((*z.shape[:-1], model.config.action_dim), -2)
    drawn = ranks.own_rows(torch.randn(shape, generator=generator), -2)
    return moved(drawn, z.device).to(z.dtype)


def moved(value: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device; the host does not wait for a GPU's copy."""
    if device.type == "cuda":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)
