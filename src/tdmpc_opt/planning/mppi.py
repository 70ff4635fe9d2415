"""MPPI in latent space as pure functions: the same noise gives the same plan.

Source: TD-MPC2, arXiv:2310.16828, section 3.2 and appendix; MPPI, arXiv:1509.01149.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdmpc_opt.configs import PlannerBudget
from tdmpc_opt.planning.folded import FoldedModel
from tdmpc_opt.world_model.model import WorldModel

LARGE_ACTION_DIM = 20
"""From this many action dimensions on, the published planner adds two iterations."""


@dataclass(frozen=True, slots=True)
class PlanNoise:
    """Every random number of one plan, so that planning itself draws none."""

    prior: Float[Tensor, "horizon prior batch action"]
    """Standard normal noise of the policy-prior sequences."""
    samples: Float[Tensor, "iterations horizon sampled batch action"]
    """Standard normal noise of the sampled sequences."""
    value: Float[Tensor, "iterations samples batch action"]
    """Standard normal noise of the policy's action at the last latent."""
    heads: Int[Tensor, "iterations 2 batch"]
    """The two members of the Q ensemble that are averaged."""
    pick: Float[Tensor, " batch"]
    """Uniform number in [0, 1) that draws the elite."""
    explore: Float[Tensor, "batch action"]
    """Standard normal noise added to the action when exploring."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The refined distribution over action sequences, and the action drawn from its elites."""

    mean: Float[Tensor, "horizon batch action"]
    std: Float[Tensor, "horizon batch action"]
    action: Float[Tensor, "batch action"]


def iterations(budget: PlannerBudget, action_dim: int) -> int:
    """Return how often the distribution is refined for this (padded) action width."""
    return budget.iterations + (2 if action_dim >= LARGE_ACTION_DIM else 0)


def draw_noise(
    model: WorldModel,
    budget: PlannerBudget,
    generators: Sequence[torch.Generator | None],
) -> PlanNoise:
    """Draw the noise of one plan, each row of the batch from its own generator.

    A row's numbers depend on its generator alone, not on the rows beside it. None draws from
    torch's default generator. Drawn on the CPU, so that a seed means the same everywhere.
    """
    rows = [_draw_row(model, budget, generator) for generator in generators]
    parts = [
        torch.stack(part, dim=axis)
        for part, axis in zip(zip(*rows, strict=True), (2, 3, 2, 2, 0, 0), strict=True)
    ]
    device = model.bins.device
    prior, samples, value, heads, pick, explore = (part.to(device) for part in parts)
    to = model.dtype
    return PlanNoise(
        prior.to(to), samples.to(to), value.to(to), heads, pick.to(to), explore.to(to)
    )


def _draw_row(
    model: WorldModel, budget: PlannerBudget, generator: torch.Generator | None
) -> tuple[Tensor, ...]:
    width = model.config.action_dim
    rounds = iterations(budget, width)
    sampled = budget.samples - budget.policy_samples

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, width, generator=generator)

    heads = [torch.randperm(model.config.num_q, generator=generator)[:2] for _ in range(rounds)]
    return (
        normal(budget.horizon, budget.policy_samples),
        normal(rounds, budget.horizon, sampled),
        normal(rounds, budget.samples),
        torch.stack(heads).expand(-1, 2),
        torch.rand((), generator=generator),
        normal(),
    )


def sequence_values(
    model: WorldModel,
    z: Float[Tensor, "batch latent"],
    actions: Float[Tensor, "horizon samples batch action"],
    task: Int[Tensor, " batch"] | None,
    noise: Float[Tensor, "samples batch action"],
    heads: Int[Tensor, "2 batch"],
) -> Float[Tensor, "samples batch"]:
    """Estimate the return of action sequences: predicted rewards, then Q at the last latent."""
    folded = FoldedModel(model, task, z)
    discount = model.discount[0] if task is None else model.discount[task]
    value = torch.zeros(actions.shape[1:3], device=z.device, dtype=z.dtype)
    weight = torch.ones_like(discount)
    for action in actions:
        z, reward = folded.step(z, action)
        value = value + weight * reward
        weight = weight * discount
    last = model.policy(z, task, noise).action
    q = model.decode(model.q_values(z, last, task)).squeeze(-1)
    chosen = q.gather(0, heads.unsqueeze(1).expand(-1, q.shape[1], -1))
    return value + weight * chosen.mean(0)


def prior_actions(
    model: WorldModel,
    z: Float[Tensor, "batch latent"],
    task: Int[Tensor, " batch"] | None,
    noise: Float[Tensor, "horizon prior batch action"],
) -> Float[Tensor, "horizon prior batch action"]:
    """Let the policy prior act through the latent dynamics."""
    z = z.expand(noise.shape[1], -1, -1)
    actions = []
    for t, step_noise in enumerate(noise):
        actions.append(model.policy(z, task, step_noise).action)
        if t + 1 < len(noise):
            z = model.next(z, actions[-1], task)
    return torch.stack(actions)


def plan(
    model: WorldModel,
    z: Float[Tensor, "batch latent"],
    task: Int[Tensor, " batch"] | None,
    previous_mean: Float[Tensor, "horizon batch action"],
    noise: PlanNoise,
    budget: PlannerBudget,
) -> Plan:
    """Refine a Gaussian over action sequences and draw an elite's first action.

    Args:
        model: World model in eval mode.
        z: Latents to plan from.
        task: Task ids; None for a single-task model.
        previous_mean: Mean of the plan one step ago; zeros at an episode's start.
        noise: All random numbers.
        budget: Sizes of the search.

    Returns:
        The last distribution, and one elite's first action drawn by weight, without
        exploration noise.
    """
    mask = model.mask(task)
    prior = prior_actions(model, z, task, noise.prior)
    mean = torch.cat([previous_mean[1:], torch.zeros_like(previous_mean[:1])])
    std = torch.full_like(mean, budget.max_std)
    first, weights = mean[:1], mean[0, :, :1].T
    for round_noise, value_noise, heads in zip(
        noise.samples, noise.value, noise.heads, strict=True
    ):
        sampled = (mean.unsqueeze(1) + std.unsqueeze(1) * round_noise).clamp(-1, 1)
        actions = torch.cat([prior, sampled], dim=1) * mask
        value = sequence_values(model, z, actions, task, value_noise, heads).nan_to_num(0.0)
        top, index = value.topk(budget.elites, dim=0)
        elites = actions.gather(
            1, index[None, ..., None].expand(len(actions), -1, -1, mask.shape[-1])
        )
        weights = torch.exp(budget.temperature * (top - top[0]))
        weights = weights / weights.sum(0)
        mean, std = _refit(elites, weights, mask, budget)
        first = elites[0]
    return Plan(mean, std, _draw_elite(first, weights, noise.pick))


def _refit(
    elites: Float[Tensor, "horizon elites batch action"],
    weights: Float[Tensor, "elites batch"],
    mask: Tensor,
    budget: PlannerBudget,
) -> tuple[Tensor, Tensor]:
    share = weights.unsqueeze(-1)
    mean = (share * elites).sum(1)
    variance = (share * (elites - mean.unsqueeze(1)) ** 2).sum(1)
    std = variance.sqrt().clamp(budget.min_std, budget.max_std)
    return mean * mask, std * mask


def _draw_elite(
    first: Float[Tensor, "elites batch action"],
    weights: Float[Tensor, "elites batch"],
    pick: Float[Tensor, " batch"],
) -> Float[Tensor, "batch action"]:
    # Inverse of the cumulative weights; rounding may leave their sum a hair below `pick`.
    index = (weights.cumsum(0) <= pick).sum(0).clamp(max=len(weights) - 1)
    return first.gather(0, index[None, :, None].expand(-1, -1, first.shape[-1]))[0]
