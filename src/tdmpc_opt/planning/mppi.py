"""MPPI in latent space as pure functions: the same noise gives the same plan.

Source: TD-MPC2, arXiv:2310.16828, section 3.2 and appendix; MPPI, arXiv:1509.01149.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdmpc_opt.model.fold import FoldedModel, Shares
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.schema import PlannerBudget

LARGE_ACTION_DIM = 20
"""From this many action dimensions on, the published planner adds two iterations."""


class RoundNoise(NamedTuple):
    """Random numbers of one iteration, as in `PlanNoise`."""

    samples: Float[Tensor, "horizon sampled batch action"]
    value: Float[Tensor, "samples batch action"]
    heads: Int[Tensor, "2 batch"]


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

    def round(self, index: int) -> RoundNoise:
        """Return the noise of one iteration."""
        return RoundNoise(self.samples[index], self.value[index], self.heads[index])


class Problem(NamedTuple):
    """Values that all iterations of a plan share."""

    shares: Shares
    """Biases of the heads' first layers."""
    mask: Float[Tensor, "batch action"]
    """1 for real action dimensions, 0 for padded ones."""
    discount: Float[Tensor, " batch"]
    """Discount per step."""
    prior_actions: Float[Tensor, "horizon prior batch action"]
    """Sequences of the policy prior."""
    prior_latent: Float[Tensor, "prior batch latent"]
    """Latents at which they end."""
    prior_value: Float[Tensor, "prior batch"]
    """Their discounted rewards."""
    prior_weight: Float[Tensor, "prior batch"] | None = None
    """Discount of what comes after them, 0 where the episode has ended; None where the model
    predicts no ends, so that it is the same for all."""


class Refined(NamedTuple):
    """A distribution over action sequences and the elites that it was fitted to."""

    mean: Float[Tensor, "horizon batch action"]
    std: Float[Tensor, "horizon batch action"]
    first: Float[Tensor, "elites batch action"]
    """First actions of the elites, the best one's first."""
    weights: Float[Tensor, "elites batch"]
    """Weights of the elites, which sum to 1."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The refined distribution over action sequences, and the action drawn from its elites."""

    mean: Float[Tensor, "horizon batch action"]
    std: Float[Tensor, "horizon batch action"]
    action: Float[Tensor, "batch action"]


def iterations(budget: PlannerBudget, action_dim: int) -> int:
    """Return the number of refinements for this (padded) action width."""
    return budget.iterations + (2 if action_dim >= LARGE_ACTION_DIM else 0)


def draw_noise(
    model: WorldModel,
    budget: PlannerBudget,
    generators: Sequence[torch.Generator | None],
) -> PlanNoise:
    """Draw the noise of one plan, each row of the batch from its own generator.

    A row's numbers depend on its generator alone, not on the other rows. None draws from
    torch's default generator. The CPU draws them, so that a seed has one effect everywhere.

    Args:
        model: World model, for the sizes, the device and the number format of the noise.
        budget: Sizes of the search.
        generators: Random generator of each row.
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


def prepare(
    networks: FoldedModel,
    z: Float[Tensor, "batch latent"],
    task: Int[Tensor, " batch"] | None,
    noise: Float[Tensor, "horizon prior batch action"],
) -> Problem:
    """Compute what all iterations share: the policy prior's sequences and their rewards.

    Args:
        networks: World model in eval mode, folded.
        z: Latents to plan from.
        task: Task ids; None for a single-task model.
        noise: Standard normal noise of the sequences.
    """
    shares = networks.shares(z, task)
    # len(z) would fix the number of rows of a traced graph.
    discount = networks.discount(task).expand(z.shape[0])
    mask = networks.mask(task).expand(z.shape[0], -1)
    value = z.new_zeros(noise.shape[1:3])
    weight = torch.ones_like(discount)
    latent, actions = None, []
    for step_noise in noise:
        action = networks.act(shares, latent, step_noise, mask)
        latent, reward = networks.step(shares, latent, action)
        value = value + weight * reward
        weight = weight * discount
        if networks.episodic:
            weight = weight * networks.goes_on(shares, latent)
        actions.append(action)
    assert latent is not None, "the horizon is at least 1"
    left = weight if networks.episodic else None
    return Problem(shares, mask, discount, torch.stack(actions), latent, value, left)


def sequence_values(
    networks: FoldedModel,
    problem: Problem,
    actions: Float[Tensor, "horizon sampled batch action"],
    noise: Float[Tensor, "samples batch action"],
    heads: Int[Tensor, "2 #batch"],
) -> Float[Tensor, "samples batch"]:
    """Estimate the return of the prior's sequences and of these, in this order.

    It is the sum of the predicted rewards and of Q at the last latent, where the policy acts,
    up to the first latent that is predicted to end the episode.

    Args:
        networks: World model in eval mode, folded.
        problem: What the iterations share.
        actions: Sampled sequences, in [-1, 1].
        noise: Standard normal noise of the policy's last action, of all samples.
        heads: The two members of the Q ensemble for each row.

    Returns:
        Returns in environment units; `samples` counts the prior's sequences, then these.

    Source:
        TD-MPC2, arXiv:2310.16828, section 3.2; terminations as in its public code of 2025.
    """
    z = None
    value = problem.prior_value.new_zeros(actions.shape[1:3])
    weight = torch.ones_like(problem.discount)
    for action in actions:
        z, reward = networks.step(problem.shares, z, action)
        value = value + weight * reward
        weight = weight * problem.discount
        if networks.episodic:
            weight = weight * networks.goes_on(problem.shares, z)
    assert z is not None, "the horizon is at least 1"
    if problem.prior_weight is not None:
        weight = torch.cat([problem.prior_weight, weight])
    value = torch.cat([problem.prior_value, value])
    z = torch.cat([problem.prior_latent, z])
    last = networks.act(problem.shares, z, noise, problem.mask)
    return value + weight * networks.q_mean(problem.shares, z, last, heads)


def refine(
    networks: FoldedModel,
    budget: PlannerBudget,
    problem: Problem,
    mean: Float[Tensor, "horizon batch action"],
    std: Float[Tensor, "horizon batch action"],
    noise: RoundNoise,
) -> Refined:
    """Sample sequences, estimate their values, and refit the distribution to the elites.

    Args:
        networks: World model in eval mode, folded.
        budget: Sizes of the search.
        problem: What the iterations share.
        mean: Mean of the distribution.
        std: Its standard deviation.
        noise: Random numbers of this iteration.

    Source:
        TD-MPC2, arXiv:2310.16828, section 3.2; MPPI, arXiv:1509.01149.
    """
    sampled = (mean.unsqueeze(1) + std.unsqueeze(1) * noise.samples).clamp(-1.0, 1.0)
    sampled = sampled * problem.mask
    value = sequence_values(networks, problem, sampled, noise.value, noise.heads)
    actions = torch.cat([problem.prior_actions, sampled], dim=1)
    if budget.regularised:
        policy_value = value[: budget.policy_samples].mean(0).abs()
        weight = budget.prior_penalty * policy_value + budget.prior_hold
        value = value - weight * _distance_to_prior(problem, actions)
    top, index = value.nan_to_num(0.0).topk(budget.elites, dim=0)
    shape = (len(actions), -1, -1, actions.shape[-1])
    elites = actions.gather(1, index[None, ..., None].expand(shape))
    weights = torch.exp(budget.temperature * (top - top[:1]))
    weights = weights / weights.sum(0)
    mean, std = _refit(elites, weights, problem.mask, budget)
    return Refined(mean, std, elites[0], weights)


def _distance_to_prior(
    problem: Problem, actions: Float[Tensor, "horizon samples batch action"]
) -> Float[Tensor, "samples batch"]:
    """Return squared distances from the policy's sequences.

    They are summed over steps, and averaged over the dimensions of actions.

    Source:
        A Gaussian prior of MPPI's free energy, arXiv:1509.01149, around the policy as in LOOP's
        actor regularised control, arXiv:2008.10066.
    """
    centre = problem.prior_actions.mean(1, keepdim=True)
    return ((actions - centre) ** 2).sum((0, 3)) / problem.mask.sum(1)


def plan(
    networks: FoldedModel,
    z: Float[Tensor, "batch latent"],
    task: Int[Tensor, " batch"] | None,
    previous_mean: Float[Tensor, "horizon batch action"],
    noise: PlanNoise,
    budget: PlannerBudget,
) -> Plan:
    """Refine a Gaussian over action sequences and draw an elite's first action.

    Args:
        networks: World model in eval mode, folded.
        z: Latents to plan from.
        task: Task ids; None for a single-task model.
        previous_mean: Mean of the plan one step ago; zeros at an episode's start.
        noise: All random numbers.
        budget: Sizes of the search.

    Returns:
        The last distribution, and one elite's first action drawn by weight, without
        exploration noise.
    """
    problem = prepare(networks, z, task, noise.prior)
    mean = torch.cat([previous_mean[1:], torch.zeros_like(previous_mean[:1])])
    std = torch.full_like(mean, budget.max_std)
    return run_rounds(networks, budget, problem, mean, std, noise, range(len(noise.samples)))


def run_rounds(
    networks: FoldedModel,
    budget: PlannerBudget,
    problem: Problem,
    mean: Float[Tensor, "horizon batch action"],
    std: Float[Tensor, "horizon batch action"],
    noise: PlanNoise,
    rounds: range,
) -> Plan:
    """Refine a distribution in some rounds of a plan, at least one, and draw an elite's action.

    Args:
        networks: World model in eval mode, folded.
        budget: Sizes of the search.
        problem: What the iterations share.
        mean: Mean of the distribution.
        std: Its standard deviation.
        noise: All random numbers of the plan.
        rounds: Numbers of the rounds.
    """
    for index in rounds:
        result = refine(networks, budget, problem, mean, std, noise.round(index))
        mean, std = result.mean, result.std
    return Plan(mean, std, draw_elite(result.first, result.weights, noise.pick))


def _refit(
    elites: Float[Tensor, "horizon elites batch action"],
    weights: Float[Tensor, "elites batch"],
    mask: Tensor,
    budget: PlannerBudget,
) -> tuple[Tensor, Tensor]:
    share = weights.unsqueeze(-1)
    mean = (share * elites).sum(1)
    variance = (share * (elites - mean.unsqueeze(1)) ** 2).sum(1)
    std = variance.sqrt().clamp(float(budget.min_std), float(budget.max_std))
    return mean * mask, std * mask


def draw_elite(
    first: Float[Tensor, "elites batch action"],
    weights: Float[Tensor, "elites batch"],
    pick: Float[Tensor, " batch"],
) -> Float[Tensor, "batch action"]:
    """Return the first action of one elite per row, drawn by weight with a number in [0, 1)."""
    # Inverse of the cumulative weights; by rounding their sum may be slightly below `pick`.
    index = (weights.cumsum(0) <= pick).sum(0).clamp(max=len(weights) - 1)
    return first.gather(0, index[None, :, None].expand(-1, -1, first.shape[-1]))[0]
