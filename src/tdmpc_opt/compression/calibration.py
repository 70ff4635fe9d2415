"""Real observations to calibrate with, and to measure errors of compressed agents on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdmpc_opt.data.episodes import EpisodeDataset, Shard
from tdmpc_opt.errors import DataError
from tdmpc_opt.model.layers import join_inputs
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.schema import UNNAMED, TaskTable

ROWS = 16_384
"""Observations that are taken of a dataset, spread evenly over its shards."""
_HELD_OUT = 4  # one in so many is kept for measuring
_HORIZON = 3  # steps the planner looks ahead
_STARTS, _TRIALS = 240, 32  # observations of which plans are compared, sequences from each


@dataclass(frozen=True, slots=True)
class Observations:
    """Padded observations and their tasks."""

    obs: Float[Tensor, "rows obs"]
    task: Int[Tensor, " rows"]

    def __len__(self) -> int:
        return len(self.obs)

    def spread(self, rows: int) -> "Observations":
        """Return at most so many of them, evenly spaced."""
        index = torch.linspace(0, len(self) - 1, min(rows, len(self))).long()
        return Observations(self.obs[index], self.task[index])


def read_observations(path: Path, tasks: TaskTable) -> tuple[Observations, Observations]:
    """Return observations of a dataset to calibrate with, and others of later rows to measure.

    Raises:
        DataError: No dataset there, or none of these tasks in it.
    """
    dataset = EpisodeDataset.open(path)
    shards = _shards_of(dataset, tasks)
    each = max(ROWS // len(shards), 2 * _HELD_OUT)
    halves: tuple[list[Observations], list[Observations]] = [], []
    for shard in shards:
        rows = _rows(dataset, shard, tasks, each)
        number = 0 if tasks.names == (UNNAMED,) else tasks.index(shard.task)
        task = torch.full((len(rows),), number)
        cut = len(rows) - len(rows) // _HELD_OUT
        for half, span in zip(halves, (slice(cut), slice(cut, None)), strict=True):
            half.append(Observations(rows[span], task[span]))
    used, held_out = (
        Observations(torch.cat([part.obs for part in half]), torch.cat([p.task for p in half]))
        for half in halves
    )
    return used, held_out


def _shards_of(dataset: EpisodeDataset, tasks: TaskTable) -> list[Shard]:
    if tasks.names == (UNNAMED,):  # the file of such an agent does not name its task
        shards, fits = list(dataset.shards), len(dataset.task_names) == 1
    else:
        shards = [shard for shard in dataset.shards if shard.task in tasks.names]
        fits = all(
            dataset.tasks[shard.task].obs_dim == tasks[shard.task].obs_dim for shard in shards
        )
    if not shards or not fits:
        raise DataError(
            f"{dataset.path} contains no observations of this agent's tasks "
            f"({', '.join(tasks.names[:3])}{', ...' if len(tasks) > 3 else ''}); it has "
            f"{', '.join(dataset.task_names[:3]) or 'none'}"
        )
    return shards


def _rows(dataset: EpisodeDataset, shard: Shard, tasks: TaskTable, count: int) -> Tensor:
    """Return evenly spaced observations of a shard, padded to the agent's width."""
    stored = dataset.arrays(shard).obs
    ends = np.cumsum(dataset.rows_of(shard))
    index = np.unique(np.linspace(0, ends[-1] - 1, count).astype(int))
    episode = np.searchsorted(ends, index, side="right")
    step = index - np.concatenate([[0], ends])[episode]
    width = dataset.tasks[shard.task].obs_dim
    if width > tasks.obs_dim:
        raise DataError(
            f"{dataset.path}: observations of {shard.task} have {width} numbers, this agent "
            f"takes {tasks.obs_dim}"
        )
    rows = torch.from_numpy(np.asarray(stored[episode, step, :width], dtype=np.float32))
    return torch.nn.functional.pad(rows, (0, tasks.obs_dim - width))


@dataclass(frozen=True, slots=True)
class Sequences:
    """Observations with action sequences as a planner tries them."""

    start: Observations
    actions: Float[Tensor, "horizon rows action"]
    last: Float[Tensor, "rows action"]
    """The policy's action after them."""


@torch.no_grad()
def try_actions(model: WorldModel, start: Observations, seed: int = 0) -> Sequences:
    """Draw sequences of the policy for every other row, and wide random ones for the rest."""
    source = torch.Generator().manual_seed(seed)
    width, mask = model.config.action_dim, model.mask(start.task)
    z, actions = model.encode(start.obs, start.task), []
    for _ in range(_HORIZON):
        noise = torch.randn(len(start), width, generator=source)
        action = model.policy(z, start.task, noise).action
        action[1::2] = (noise[1::2] * mask[1::2] * 2.0).clamp(-1.0, 1.0)
        z = model.next(z, action, start.task)
        actions.append(action)
    return Sequences(start, torch.stack(actions), model.policy(z, start.task).mean)


def latents(model: WorldModel, tried: Sequences) -> Float[Tensor, "steps rows latent"]:
    """Return the latents of the start and after each action."""
    z = [model.encode(tried.start.obs, tried.start.task)]
    for action in tried.actions:
        z.append(model.next(z[-1], action, tried.start.task))
    return torch.stack(z)


def inputs_of(
    part: str, model: WorldModel, acting: Observations, tried: Sequences | None
) -> Float[Tensor, "rows in_dim"]:
    """Return the inputs of the first layer of a network, which is named as in `WorldModel`.

    Those of encoder and policy come from real observations, the others from the latents of
    tried sequences: of rewards and dynamics all but the last, of terminations all but the
    first, of Q the last.
    """
    task, action = acting.task, None
    if part == "encoder":
        x = acting.obs
    elif part == "policy_head":
        x = model.encode(acting.obs, task)
    else:
        assert tried is not None, "a policy alone has no further parts"
        task, z = tried.start.task, latents(model, tried)
        if part == "termination_head":
            x = z[1:]
        else:
            x, action = (z[-1], tried.last) if part == "q_ensemble" else (z[:-1], tried.actions)
    return join_inputs(x, model.task_rows(task), action)


@dataclass(frozen=True, slots=True)
class Errors:
    """How far an agent's actions and planned values are from the original's."""

    action: float
    """Root mean square distance of the policies' mean actions over the real dimensions of each
    task's, in action units (the range is 2)."""
    action_mean: float
    """Mean absolute distance of the same."""
    by_task: dict[int, float]
    """Root mean square distance in each task, by its id."""
    value: float | None
    """1 less the correlation of the values of tried action sequences, averaged over
    observations: a planner compares sequences from one observation, so what shifts or scales
    all of those equally does not count. None where there is no world model."""

    @property
    def sum(self) -> float:
        """Both as one number: a loss of correlation is of the order of a square."""
        return self.action**2 + (self.value or 0.0)


class Reference:
    """The original's actions and values on observations that no calibration has seen."""

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

    def errors(self, model: WorldModel) -> Errors:
        """Return how far the model is from the original."""
        distance = (_actions(model, self._observations) - self._actions).abs()
        real, task = distance[self._mask], self._observations.task
        by_task = {
            index: _rms(distance[task == index][self._mask[task == index]])
            for index in task.unique().tolist()
        }
        return Errors(_rms(real), float(real.mean()), by_task, self._value_error(model))

    def _value_error(self, model: WorldModel) -> float | None:
        if self._tried is None:
            return None
        found = torch.stack([_values(model, self._tried), self._values])
        rows = found.double().unflatten(1, (-1, _TRIALS))
        unit = torch.nn.functional.normalize(rows - rows.mean(dim=-1, keepdim=True), dim=-1)
        return float(1 - unit.prod(dim=0).sum(dim=-1).mean())


def _rms(distance: Float[Tensor, " n"]) -> float:
    return float(distance.square().mean().sqrt())


@torch.no_grad()
def _actions(model: WorldModel, at: Observations) -> Float[Tensor, "rows action"]:
    return model.policy(model.encode(at.obs, at.task), at.task).mean


@torch.no_grad()
def _values(model: WorldModel, tried: Sequences) -> Float[Tensor, " rows"]:
    """Return the planner's estimate of the sequences: rewards, then the mean of all Qs.

    Both count up to the first latent that is predicted to end the episode.
    """
    task, z = tried.start.task, latents(model, tried)
    discount = model.discount[task]
    rewards = model.decode(model.reward(z[:-1], tried.actions, task)).squeeze(-1)
    last = model.decode(model.q_values(z[-1], tried.last, task)).squeeze(-1).mean(0)
    weights = torch.stack([discount**step for step in range(len(z))])
    if model.config.episodic:
        weights[1:] *= (model.termination(z[1:], task).squeeze(-1) <= 0).cumprod(0)
    return (weights[:-1] * rewards).sum(0) + weights[-1] * last
