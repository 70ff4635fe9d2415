"""How far a compressed agent's actions and planned values are from the original's."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tdmpc_opt.compression.calibration import (
    Observations,
    Sequences,
    latents,
    try_actions,
)
from tdmpc_opt.model.world_model import WorldModel

_STARTS = 240
_TRIALS = 32


@dataclass(frozen=True, slots=True)
class ActionError:
    """Distance of two policies' mean actions, over the real dimensions of each task's."""

    mean: float
    """Mean absolute distance, in action units (the range is 2)."""
    rms: float
    """Root mean square distance, in action units."""
    largest: float
    """Largest distance."""
    by_task: dict[int, float]
    """Root mean square distance in each task, by its id."""


class Reference:
    """The original's actions and values on observations, to compare others with.

    Args:
        original: World model or policy.
        observations: Real observations that no calibration has seen.
    """

    def __init__(self, original: WorldModel, observations: Observations) -> None:
        self._observations = observations
        self._mask = original.mask(observations.task).expand(len(observations), -1) > 0
        self._actions = _actions(original, observations)
        self._tried: Sequences | None = None
        self._values = torch.empty(0)
        if original.can_plan:
            starts = observations.spread(_STARTS)
            repeated = Observations(
                starts.obs.repeat_interleave(_TRIALS, dim=0),
                starts.task.repeat_interleave(_TRIALS),
            )
            self._tried = try_actions(original, repeated)
            self._values = _values(original, self._tried)

    def action_error(self, model: WorldModel) -> ActionError:
        """Return how far the policy's actions are from the original's."""
        distance = (_actions(model, self._observations) - self._actions).abs()
        real, task = distance[self._mask], self._observations.task
        by_task = {
            index: _rms(distance[task == index][self._mask[task == index]])
            for index in task.unique().tolist()
        }
        return ActionError(float(real.mean()), _rms(real), float(real.max()), by_task)

    def value_error(self, model: WorldModel) -> float | None:
        """Return how far the ranking of tried action sequences is from the original's.

        It is 1 less the correlation of their values, averaged over observations: a planner
        compares sequences from one observation, so what moves or stretches all of those alike
        does not count. None where there is no world model.
        """
        if self._tried is None:
            return None
        found = torch.stack([_values(model, self._tried), self._values])
        rows = found.double().unflatten(1, (-1, _TRIALS))
        centred = rows - rows.mean(dim=-1, keepdim=True)
        unit = torch.nn.functional.normalize(centred, dim=-1)
        return float(1 - unit.prod(dim=0).sum(dim=-1).mean())


def _rms(distance: Float[Tensor, " n"]) -> float:
    return float(distance.square().mean().sqrt())


@torch.no_grad()
def _actions(model: WorldModel, at: Observations) -> Float[Tensor, "rows action"]:
    noise = torch.zeros(len(at), model.config.action_dim)
    return model.policy(model.encode(at.obs, at.task), at.task, noise).mean


@torch.no_grad()
def _values(model: WorldModel, tried: Sequences) -> Float[Tensor, " rows"]:
    """Return the planner's estimate of the sequences: rewards, then the mean of all Qs."""
    task, z = tried.start.task, latents(model, tried)
    discount = model.discount[task]
    rewards = model.decode(model.reward(z[:-1], tried.actions, task)).squeeze(-1)
    last = model.decode(model.q_values(z[-1], tried.last, task)).squeeze(-1).mean(0)
    weights = torch.stack([discount**step for step in range(len(z))])
    return (weights[:-1] * rewards).sum(0) + weights[-1] * last
