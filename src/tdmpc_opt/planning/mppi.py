"""MPPI in latent space as pure functions: the same noise gives the same plan.

Source: TD-MPC2, arXiv:2310.16828, section 3.2 and appendix; MPPI, arXiv:1509.01149.
"""

from collections.abc import Callable, Sequence
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

    A row's numbers depend on its generator alone, not on the other rows; None draws from
    torch's default generator. The CPU draws them, so that a seed has one effect everywhere.
    """
    width, members = model.config.action_dim, model.config.num_q
    rounds = iterations(budget, width)
    sampled = budget.samples - budget.policy_samples

    def row(generator: torch.Generator | None) -> tuple[Tensor, ...]:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, width, generator=generator)

        heads = [torch.randperm(members, generator=generator)[:2] for _ in range(rounds)]
        return (
            normal(budget.horizon, budget.policy_samples),
            normal(rounds, budget.horizon, sampled),
            normal(rounds, budget.samples),
            torch.stack(heads).expand(-1, 2),
            torch.rand((), generator=generator),
            normal(),
        )

    drawn = zip(*map(row, generators), strict=True)
    parts = (
        torch.stack(part, dim=axis).to(model.bins.device)
        for part, axis in zip(drawn, (2, 3, 2, 2, 0, 0), strict=True)
    )
    return PlanNoise(
        *(part.to(model.dtype) if part.is_floating_point() else part for part in parts)
    )


def prepare(
    networks: FoldedModel,
    z: Float[Tensor, "batch latent"],
    task: Int[Tensor, " batch"] | None,
    noise: Float[Tensor, "horizon prior batch action"],
) -> Problem:
    """Compute what all iterations share: the policy prior's sequences and their rewards.

    The sequences start from `z` and have standard normal noise. A single-task model needs no
    task ids.
    """
    shares = networks.shares(z, task)
    # len(z) would fix the number of rows of a traced graph.
    discount = networks.discount(task).expand(z.shape[0])
    mask = networks.mask(task).expand(z.shape[0], -1)

    drawn = noise.unbind()

    def act(step: int, latent: Tensor | None) -> Tensor:
        return networks.act(shares, latent, drawn[step], mask)

    actions, latent, value, weight = _follow(networks, shares, discount, act, len(drawn))
    left = weight if networks.episodic else None
    return Problem(shares, mask, discount, torch.stack(actions), latent, value, left)


def _follow(
    networks: FoldedModel,
    shares: Shares,
    discount: Float[Tensor, " batch"],
    act: Callable[[int, Tensor | None], Tensor],
    steps: int,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Follow the actions [samples, batch, action] that `act` gives for a step and a latent.

    Returns:
        The actions, the last latents, the discounted rewards, and the discount of what comes
        after: 0 where the episode has ended.
    """
    actions, latent, value = list[Tensor](), None, None
    weight = torch.ones_like(discount)
    for step in range(steps):
        action = act(step, latent)
        latent, reward = networks.step(shares, latent, action)
        value = weight * reward if value is None else value + weight * reward
        weight = weight * discount
        if networks.episodic:
            weight = weight * networks.goes_on(shares, latent)
        actions.append(action)
    assert latent is not None, "the horizon is at least 1"
    assert value is not None, "likewise"
    return actions, latent, value, weight


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
    shares, given = problem.shares, actions.unbind()
    _, z, value, weight = _follow(
        networks, shares, problem.discount, lambda step, _: given[step], len(given)
    )
    if problem.prior_weight is not None:
        weight = torch.cat([problem.prior_weight, weight])
    value = torch.cat([problem.prior_value, value])
    z = torch.cat([problem.prior_latent, z])
    last = networks.act(shares, z, noise, problem.mask)
    return value + weight * networks.q_mean(shares, z, last, heads)


def refine(
    networks: FoldedModel,
    budget: PlannerBudget,
    problem: Problem,
    mean: Float[Tensor, "horizon batch action"],
    std: Float[Tensor, "horizon batch action"],
    noise: RoundNoise,
) -> Refined:
    """Sample sequences, estimate their values, and refit mean and std to the elites.

    Source:
        TD-MPC2, arXiv:2310.16828, section 3.2; MPPI, arXiv:1509.01149. The distance from the
        policy's sequences is a Gaussian prior of MPPI's free energy, around the policy as in
        LOOP's actor regularised control, arXiv:2008.10066.
    """
    sampled = (mean.unsqueeze(1) + std.unsqueeze(1) * noise.samples).clamp(-1.0, 1.0)
    sampled = sampled * problem.mask
    value = sequence_values(networks, problem, sampled, noise.value, noise.heads)
    actions = torch.cat([problem.prior_actions, sampled], dim=1)
    if budget.regularised:
        policy_value = value[: budget.policy_samples].mean(0).abs()
        weight = budget.prior_penalty * policy_value + budget.prior_hold
        squared = (actions - problem.prior_actions.mean(1, keepdim=True)) ** 2
        # Summed over steps, and averaged over the dimensions of actions.
        value = value - weight * (squared.sum((0, 3)) / problem.mask.sum(1))
    top, index = value.nan_to_num(0.0).topk(budget.elites, dim=0)
    shape = (len(actions), -1, -1, actions.shape[-1])
    elites = actions.gather(1, index[None, ..., None].expand(shape))
    weights = torch.exp(budget.temperature * (top - top[:1]))
    weights = weights / weights.sum(0)
    share = weights.unsqueeze(-1)
    mean = (share * elites).sum(1)
    variance = (share * (elites - mean.unsqueeze(1)) ** 2).sum(1)
    std = variance.sqrt().clamp(float(budget.min_std), float(budget.max_std))
    return Refined(mean * problem.mask, std * problem.mask, elites[0], weights)


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
    """Refine a distribution in the rounds of these numbers, one at least; draw an action."""
    for index in rounds:
        result = refine(networks, budget, problem, mean, std, noise.round(index))
        mean, std = result.mean, result.std
    return Plan(mean, std, draw_elite(result.first, result.weights, noise.pick))


def draw_elite(
    first: Float[Tensor, "elites batch action"],
    weights: Float[Tensor, "elites batch"],
    pick: Float[Tensor, " batch"],
) -> Float[Tensor, "batch action"]:
    """Return the first action of one elite per row, drawn by weight with a number in [0, 1)."""
    # Inverse of the cumulative weights; by rounding their sum may be slightly below `pick`.
    index = (weights.cumsum(0) <= pick).sum(0).clamp(max=len(weights) - 1)
    return first.gather(0, index[None, :, None].expand(-1, -1, first.shape[-1]))[0]
