"""Losses as pure functions: TD-MPC2's own, then distances of a student from its teachers."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from tdmpc_opt.configs.training import LossWeights
from tdmpc_opt.data.sampler import Batch
from tdmpc_opt.model.layers import Dense
from tdmpc_opt.model.world_model import PolicyOutput, WorldModel
from tdmpc_opt.training.batches import moved
from tdmpc_opt.training.ranks import ALONE, Ranks
from tdmpc_opt.training.teachers import POLICY_TERMS, TeacherTargets

RHO = 0.5
"""Factor by which each further step of the horizon counts less."""


@dataclass(frozen=True, slots=True)
class ModelLosses:
    """Terms of the model's loss: consistency and behaviour squared, the others in nats."""

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
    """Terms of the policy's loss."""

    objective: Float[Tensor, ""]
    """Entropy and scaled Q, to be minimised."""
    behaviour: Float[Tensor, ""]
    """Squared distance of the sampled action to the label, where there is one."""

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
    batch: Batch,
    generator: torch.Generator,
    ranks: Ranks = ALONE,
    td_lambda: float = 0.0,
) -> Float[Tensor, "horizon batch 1"]:
    """Return what each step was worth: rewards and, where they end, the value of two target Qs.

    As published these are one-step targets with the least of the two. After a state that ended
    the episode there is nothing to earn.

    Source:
        TD-MPC2, arXiv:2310.16828, equation 4; lambda-returns as in DreamerV2, arXiv:2010.02193,
        equation 4, here of what happened.
    """
    noise = _noise(model, next_z, generator, ranks)
    action = model.policy(next_z, batch.task, noise).action
    heads = two_random_heads(model, generator)
    values = model.decode(model.q_values(next_z, action, batch.task, heads, target=True))
    value, reward = values.amin(0), batch.reward
    discount = model.discount[batch.task].unsqueeze(-1).expand(reward.shape)
    if batch.terminated is not None:
        discount = discount * (1 - batch.terminated)
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
    """Roll the dynamics through the slices of a batch and compare with what happened.

    A behaviour weight of 0 leaves that term uncomputed. Of several ranks the mean of their
    losses is the batch's.

    Args:
        model: The student in training.
        batch: Slices of H transitions.
        next_z: Encoded real observations 1..H, without gradient.
        target: TD targets of the Q ensemble, in environment units.
        weights: Weights of the objective.
        ranks: Who else has slices of the same batch.

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
    value_ce = model.soft_cross_entropy(q_logits, target.expand(len(q_logits), *target.shape))
    behaviour, termination = zs.new_zeros(()), None
    if weights.behaviour:
        behaviour = imitation(model, zs[:-1], batch, ranks, RHO)
    if model.config.episodic:
        logits = model.termination(zs[1:], batch.task)
        ended = torch.zeros_like(logits) if batch.terminated is None else batch.terminated
        termination = functional.binary_cross_entropy_with_logits(logits, ended)
    losses = ModelLosses(
        consistency=(decay * squared).mean(),
        reward=(decay * reward_ce).mean(),
        value=(decay * value_ce.mean(2)).mean(),
        behaviour=behaviour,
        termination=termination,
    )
    return losses, Rollout(zs, reward_logits, q_logits, decays)


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
    noise = _noise(model, zs, generator, scale.ranks) if noise is None else noise
    output = model.policy(zs, batch.task, noise)
    heads = two_random_heads(model, generator)
    q = model.decode(model.q_values(zs, output.action, batch.task, heads)).mean(0)
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

    States without a label do not count; each further step counts less by the factor `rho`.
    """
    return _action_distance(model, model.policy(zs, batch.task).mean, batch, rho, ranks)


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
    drawn = ranks.randn((*z.shape[:-1], model.config.action_dim), generator)
    return moved(drawn, z.device).to(z.dtype)


Losses = dict[str, Tensor]
"""Distillation losses by the names of `DistillWeights`, scalars."""


@dataclass(frozen=True, slots=True)
class Supervision:
    """Outputs of the teachers for one batch, and the weight of each term in this update."""

    targets: TeacherTargets | None
    """None where every weight is 0 in this update."""
    weights: Mapping[str, float]
    """Weights in force, by term; a term that is off all along is left out."""

    def total(self, losses: Losses) -> Tensor | float:
        """Return the weighted sum of losses that is minimised (arXiv:2507.01823, eq. 1)."""
        return sum((self.weights[name] * loss for name, loss in losses.items()), 0.0)


def model_terms(
    model: WorldModel,
    rollout: Rollout,
    batch: Batch,
    supervision: Supervision,
    projection: Dense | None,
) -> Losses:
    """Return the distillation terms that train the model: all that have a weight.

    `projection` maps the student's latents to the teacher's; only `latent` needs it.
    """
    targets, weights, decay = supervision.targets, supervision.weights, rollout.decay
    losses: Losses = {}
    if targets is None:
        return losses
    if "reward_mse" in weights:
        teacher = _given(targets.reward)
        own = model.decode(rollout.reward_logits[: len(teacher)])
        losses["reward_mse"] = reward_mse(own, teacher, decay)
    if "reward_kl" in weights:
        teacher = _given(targets.reward_logits)
        own = rollout.reward_logits[: len(teacher)]
        losses["reward_kl"] = two_hot_kl(own, teacher, decay)
    if "value_kl" in weights:
        teacher = _given(targets.value_logits)
        losses["value_kl"] = two_hot_kl(rollout.q_logits, teacher, decay)
    if POLICY_TERMS & weights.keys():
        output = model.policy(rollout.zs, batch.task)
        losses |= policy_terms(output, model.mask(batch.task), supervision, decay)
    if "latent" in weights:
        assert projection is not None, "the latent term needs a projection"
        own = projection(rollout.zs)
        losses["latent"] = latent_kl(own, _given(targets.latent), projection.simnorm_dim, decay)
    return losses


def policy_terms(
    output: PolicyOutput,
    mask: Float[Tensor, "batch action"],
    supervision: Supervision,
    decay: Float[Tensor, " rows"],
) -> Losses:
    """Return the distillation terms that train the policy, those of them that have a weight.

    `output` is the policy's along the rollout, `mask` is 1 for real action dimensions.
    """
    targets = supervision.targets
    losses: Losses = {}
    if targets is None:
        return losses
    if "policy_mse" in supervision.weights:
        goal = _given(targets.policy_location)
        losses["policy_mse"] = policy_mse(output.action, goal, mask, decay)
    if "policy_kl" in supervision.weights:
        goals = _given(targets.policy_location), _given(targets.policy_log_std)
        own = output.location, output.log_std
        losses["policy_kl"] = policy_kl(own, goals, mask, decay)
    return losses


# Each distance takes the student's output at some steps of its rollout, the teacher's at the
# same steps of the real episode, and rho^t for at least as many steps.


def reward_mse(
    student: Float[Tensor, "steps batch 1"],
    teacher: Float[Tensor, "steps batch 1"],
    decay: Float[Tensor, " rows"],
) -> Float[Tensor, ""]:
    """Return the squared distance of decoded rewards, in environment units squared.

    Source:
        TD-MPC-Opt, arXiv:2507.01823, section 3, where the only step is the first.
    """
    return _over_steps((student - teacher).square().mean(-1), decay)


def two_hot_kl(
    student: Float[Tensor, "*heads steps batch bins"],
    teacher: Float[Tensor, "steps batch bins"],
    decay: Float[Tensor, " rows"],
) -> Float[Tensor, ""]:
    """Return KL(teacher || student) of two-hot distributions in nats, the mean over the heads.

    Source:
        Distilling the knowledge in a neural network, arXiv:1503.02531, section 2, at
        temperature 1; an ensemble is taught by the mean of the teacher's, section 1.
    """
    ours = functional.log_softmax(student, dim=-1)
    theirs = functional.log_softmax(teacher, dim=-1)
    divergence = (theirs.exp() * (theirs - ours)).sum(-1)
    return _over_steps(divergence.view(-1, *teacher.shape[:-1]).mean(0), decay)


def policy_mse(
    student: Float[Tensor, "rows batch action"],
    teacher_location: Float[Tensor, "rows batch action"],
    mask: Float[Tensor, "batch action"],
    decay: Float[Tensor, " rows"],
) -> Float[Tensor, ""]:
    """Return the squared distance to mean actions in [-1, 1], per real action dimension.

    The student's actions are after tanh, and sampled, so that the distance limits their noise
    too; the teacher's means are before tanh.

    Source:
        Regression onto the teacher's action as in DAgger, arXiv:1011.0686.
    """
    squared = (student.float() - torch.tanh(teacher_location)).square()
    return _over_steps((squared * mask).sum(-1) / mask.sum(-1), decay)


def policy_kl(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    mask: Float[Tensor, "batch action"],
    decay: Float[Tensor, " rows"],
) -> Float[Tensor, ""]:
    """Return KL(teacher || student) of the policies in nats, per real action dimension.

    Both are locations and log standard deviations before tanh, [rows, batch, action] each: a
    map that both go through and that can be undone leaves the divergence as it is. Per
    dimension, so that tasks with many actuators count like the others.

    Source:
        Policy distillation, arXiv:1511.06295, section 3.
    """
    (mean, log_std), (goal, goal_log_std) = student, teacher
    ratio = torch.exp(2 * (goal_log_std - log_std))
    distance = (goal - mean).square() * torch.exp(-2 * log_std)
    divergence = log_std - goal_log_std + 0.5 * (ratio + distance - 1)
    return _over_steps((divergence * mask).sum(-1) / mask.sum(-1), decay)


def latent_kl(
    projected: Float[Tensor, "rows batch latent"],
    teacher: Float[Tensor, "rows batch latent"],
    group: int,
    decay: Float[Tensor, " rows"],
) -> Float[Tensor, ""]:
    """Return KL(teacher || student) of latents in nats, the mean over their simplices.

    A teacher's latent is a row of simplices of length `group` (SimNorm), so the student's is
    projected to as many softmaxes and compared as distributions. A squared distance would lose
    its gradient where a softmax is sure and wrong, and shrink with the length of a simplex; a
    cosine would ignore that each simplex sums to 1.

    Source:
        SimNorm of TD-MPC2, arXiv:2310.16828, section 3.1. TD-MPC-Opt, arXiv:2507.01823, tried
        latents with a projection that was never trained.
    """
    ours = functional.log_softmax(projected.unflatten(-1, (-1, group)), dim=-1)
    theirs = teacher.unflatten(-1, (-1, group))
    divergence = functional.kl_div(ours, theirs, reduction="none").sum(-1)
    return _over_steps(divergence.mean(-1), decay)


def _over_steps(
    distance: Float[Tensor, "steps batch"], decay: Float[Tensor, " rows"]
) -> Float[Tensor, ""]:
    return (decay[: len(distance)] * distance.mean(1)).mean()


def _given(target: Tensor | None) -> Tensor:
    assert target is not None, "the teachers computed nothing for a term that has a weight"
    return target
