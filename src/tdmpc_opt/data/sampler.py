"""Slices of consecutive steps, drawn at random from the episodes of some datasets."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from tdmpc_opt.data.episodes import EpisodeDataset, Shard
from tdmpc_opt.data.shards import ReadAhead
from tdmpc_opt.errors import DataError, NonFiniteError
from tdmpc_opt.files import parse_json
from tdmpc_opt.schema import Task, TaskTable

Sampling = Literal["uniform", "task", "return"]
TEMPERATURE = 0.1
"""Divides the returns of a task, scaled to 0..1, in the exponent of an episode's weight."""


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """Runs of consecutive slices; the slices of a run have one weight.

    A run without slices has no weight: two edges are equal, and it is never drawn.
    """

    first: NDArray[np.int64]
    """Number of the first slice of each."""
    slices: NDArray[np.int64]
    """Number of slices of each."""
    edges: NDArray[np.float64]
    """Sum of the weights of those before each, and at the end of all."""

    def draw(self, generator: np.random.Generator, size: int) -> NDArray[np.int64]:
        """Draw slices by their numbers."""
        point = self.edges[-1] * generator.random(size)
        unit = np.searchsorted(self.edges, point, side="right") - 1
        return self.first[unit] + generator.integers(self.slices[unit])


def by_task(tasks: NDArray[np.int64], slices: NDArray[np.int64]) -> Units:
    """Make every task as likely as the others, and the slices of a task as each other.

    Args:
        tasks: Task of each shard.
        slices: Slices of each shard.
    """
    totals = np.bincount(tasks, weights=slices)
    return _weighted(slices, slices / np.maximum(totals[tasks], 1))


def by_return(
    task: NDArray[np.int64], slices: NDArray[np.int64], gain: NDArray[np.float64]
) -> Units:
    """Prefer episodes of high return among those of a task, whose share stays as it is.

    An episode's weight is exp(g / 0.1), g its return scaled to 0..1 between the task's lowest
    and highest.

    Args:
        task: Task of each episode.
        slices: Slices of each.
        gain: Return of each.

    Source:
        Return weighting, arXiv:2306.13085, section 4, for one task.
    """
    low, high = np.full(task.max() + 1, np.inf), np.full(task.max() + 1, -np.inf)
    np.minimum.at(low, task, gain)
    np.maximum.at(high, task, gain)
    spread = np.where(high > low, high - low, 1.0)
    weights = slices * np.exp((gain - high[task]) / spread[task] / TEMPERATURE)
    share = np.bincount(task, weights=slices) / np.maximum(
        np.bincount(task, weights=weights), np.finfo(float).tiny
    )
    return _weighted(slices, weights * share[task])


def _weighted(slices: NDArray[np.int64], weights: NDArray[np.float64]) -> Units:
    """Return runs of so many slices with these weights, which are 0 where there is none."""
    return Units(_sums_before(slices)[:-1], slices, _sums_before(weights))


def _sums_before(values: ArrayLike) -> NDArray[Any]:
    """Return the sum of the values before each, and that of all."""
    return np.concatenate([[0], np.cumsum(values)])


@dataclass(frozen=True, slots=True)
class Batch:
    """Slices of some steps: `obs[t]` and `action[t]` lead to `reward[t]` and `obs[t+1]`.

    There are `horizon` actions and rewards, and one observation more.
    """

    obs: Float[Tensor, "rows batch obs"]
    """Observations, zero-padded."""
    action: Float[Tensor, "rows-1 batch action"]
    """Actions in [-1, 1], zero-padded."""
    label: Float[Tensor, "rows-1 batch action"]
    """What to imitate in `obs[t]`, zero-padded: what the labelling policy would have done, NaN
    where there is no label, and the action itself in shards without labels."""
    reward: Float[Tensor, "rows-1 batch 1"]
    """Raw rewards."""
    task: Int64[Tensor, " batch"]
    """Task ids in the model's table."""
    terminated: Float[Tensor, "rows-1 batch 1"] | None = None
    """1 where `obs[t+1]` ended the episode, else 0; None where no state of the data did."""


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """A shard with its episodes laid end to end: rows of one field each."""

    shard: str
    """Dataset and name of the shard, for messages."""
    task_name: str
    task: int
    obs: NDArray[np.floating]
    action: NDArray[np.floating]
    reward: NDArray[np.floating]
    label: NDArray[np.floating]
    """The actions where the shard has no labels."""
    ahead: tuple[ReadAhead, ...]
    """One for each file."""


@dataclass(frozen=True, slots=True, eq=False)
class _Episodes:
    """All episodes, in the order of `ordered_shards`."""

    shard: NDArray[np.int64]
    """Number of each one's shard."""
    row: NDArray[np.int64]
    """Number of each one's first row in its shard."""
    slices: NDArray[np.int64]
    """Slices that begin in each and end before its end."""
    first: NDArray[np.int64]
    """Number of the first slice of each, and that of all slices."""
    terminated: NDArray[np.bool_]
    """Whether a state ended each."""
    edges: NDArray[np.int64]
    """Number of the first episode of each shard, and that of all episodes."""

    @classmethod
    def of(cls, shards: Sequence[tuple[EpisodeDataset, Shard]], horizon: int) -> "_Episodes":
        counts = [shard.episodes for _, shard in shards]
        lengths = [dataset.shape_of(shard).length for dataset, shard in shards]
        rows = np.concatenate([dataset.rows_of(shard) for dataset, shard in shards])
        ends = [shard.terminated or (False,) * shard.episodes for _, shard in shards]
        slices = np.maximum(rows - horizon, 0)
        return cls(
            np.repeat(np.arange(len(shards)), counts),
            np.concatenate(
                [n * np.arange(count) for n, count in zip(lengths, counts, strict=True)]
            ),
            slices,
            _sums_before(slices),
            np.concatenate(ends).astype(bool),
            _sums_before(counts),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Some shards that give a fixed number of a batch's slices."""

    count: int
    """Slices of a batch."""
    begin: int
    """First slice."""
    end: int
    """The one after the last slice."""
    units: Units | None
    """Weights of the slices; None where all are equally likely."""


class SliceSampler:
    """Draws slices over the starts in all episodes, with its own random state."""

    def __init__(
        self,
        datasets: Sequence[EpisodeDataset],
        tasks: TaskTable,
        *,
        horizon: int,
        batch_size: int,
        seed: int | tuple[int, int],
        last_share: float | None = None,
        sampling: Sampling = "uniform",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Map the datasets' shards; but for returns, nothing is read before the first sample.

        Args:
            datasets: Episodes of tasks of the model, sampled as one dataset.
            tasks: The model's table, which decides ids and widths.
            horizon: Transitions of a slice.
            batch_size: Slices of a batch, over all ranks.
            seed: Seed of the draws, the same on all ranks.
            last_share: Share of each batch, rounded to whole slices, that the last dataset
                gives; the others share the rest. None, and where all its episodes or all of the
                others are shorter than the horizon: as large as its share of all slices.
            sampling: `uniform`: each slice is as likely. `task`: each task is, and each slice
                of a task. `return`: tasks as under `uniform`, and within each the episodes of
                high return more than the others; but what `last_share` gives is drawn
                uniformly then, for a student's return does not measure its teacher's labels.
            rank: Which of the ranks this is. All draw the same batch, and each reads its own
                rows of it, so that no two train on the same draw.
            world_size: Number of ranks.

        Raises:
            DataError: An empty dataset, a task that is not the model's or has other sizes
                there, a task all of whose episodes are shorter than the horizon, a damaged
                shard, or a batch that cannot be divided evenly.
        """
        for dataset in datasets:
            _refuse_unfit(dataset, tasks)
        _refuse_short(datasets, horizon)
        if batch_size % world_size:
            raise DataError(
                f"a batch of {batch_size} slices cannot be shared out evenly over {world_size} "
                "ranks; choose a multiple"
            )
        self._own = slice(rank, None, world_size)
        self._tasks = tasks
        self._horizon = horizon
        self._generator = np.random.default_rng(seed)
        self._next: NDArray[np.int64] | None = None
        self._state = self._generator.bit_generator.state
        shards = ordered_shards(datasets)
        self._shards = [_rows(dataset, shard, tasks) for dataset, shard in shards]
        episodes = _Episodes.of(shards, horizon)
        self._episodes = episodes
        self._episodic = any(dataset.episodic for dataset in datasets)
        self._drawn = np.zeros(0, dtype=np.int64)
        numbers = np.array([shard.task for shard in self._shards])
        self._parts = [
            _Part(
                count,
                int(episodes.first[episodes.edges[begin]]),
                int(episodes.first[episodes.edges[end]]),
                _units(how, shards[begin:end], numbers[begin:end], episodes, begin),
            )
            for count, begin, end, how in _split(
                batch_size, last_share, len(datasets[-1].shards), sampling, episodes
            )
            if count
        ]

    def sample(self) -> Batch:
        """Draw a batch, and let the system begin to read the next.

        Raises:
            NonFiniteError: NaN or infinity in the batch; the message names task, shard and
                episode. The next call draws another batch.
        """
        self._drawn = (self._draw() if self._next is None else self._next)[self._own]
        # Before reading: a batch with NaN must not be drawn again.
        self._state = self._generator.bit_generator.state
        self._next = self._draw()
        self._announce(self._next[self._own])
        return self._read(self._drawn)

    def _read(self, index: NDArray[np.int64]) -> Batch:
        shard, episode, first_row = self._locate(index)
        count, steps = len(index), self._horizon
        obs = np.zeros((count, steps + 1, self._tasks.obs_dim), dtype=np.float32)
        action = np.zeros((count, steps, self._tasks.action_dim), dtype=np.float32)
        label = np.zeros_like(action)
        reward = np.empty((count, steps), dtype=np.float32)
        # Slice by slice: over many shards this beats an index into each of them.
        for i, (number, row) in enumerate(zip(shard.tolist(), first_row.tolist(), strict=True)):
            source, done = self._shards[number], slice(row + 1, row + steps + 1)
            obs[i, :, : source.obs.shape[1]] = source.obs[row : row + steps + 1]
            # A row has the action that led to it: the action of step t is in row t + 1.
            action[i, :, : source.action.shape[1]] = source.action[done]
            reward[i] = source.reward[done]
            label[i, :, : source.label.shape[1]] = source.label[done]
        finite = {"obs": np.isfinite(obs), "action": np.isfinite(action)}
        finite |= {"reward": np.isfinite(reward), "label": ~np.isinf(label)}
        for field, valid in finite.items():
            if not valid.all():
                column = int(valid.reshape(count, -1).all(axis=1).argmin())
                raise NonFiniteError(
                    f"{self.origin(column)}: {field} holds NaN or infinity (take the shard "
                    "out of dataset.json and collect it anew)"
                )
        task = np.array([source.task for source in self._shards], dtype=np.int64)[shard]
        ends = None
        if self._episodic:  # only its last step can be the last of an episode
            last = index + 1 == self._episodes.first[episode + 1]
            ends = torch.zeros(steps, count, 1)
            ends[-1, :, 0] = torch.from_numpy(last & self._episodes.terminated[episode])
        return Batch(
            obs=_steps_first(obs),
            action=_steps_first(action),
            label=_steps_first(label),
            reward=_steps_first(reward[..., None]),
            task=torch.from_numpy(task),
            terminated=ends,
        )

    def origin(self, column: int) -> str:
        """Return where a slice of the last batch comes from, for messages about it.

        Args:
            column: Number of the slice in the batch.
        """
        slice_ = self._drawn[[column]]
        shard, episode, _ = (values.item() for values in self._locate(slice_))
        source = self._shards[shard]
        return (
            f"{source.shard}, episode {episode - self._episodes.edges[shard]} "
            f"({source.task_name}), from step {int(slice_[0] - self._episodes.first[episode])}"
        )

    def _locate(
        self, index: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return shard, episode and first row in the shard of slices by their numbers."""
        found = self._episodes
        episode = np.searchsorted(found.first, index, side="right") - 1
        return found.shard[episode], episode, found.row[episode] + index - found.first[episode]

    def _announce(self, index: NDArray[np.int64]) -> None:
        """Let the system read a batch while the one before it is trained on."""
        shard, _, first_row = self._locate(index)
        rows = self._horizon + 1
        for number, row in zip(shard.tolist(), first_row.tolist(), strict=True):
            for ahead in self._shards[number].ahead:
                ahead.begin(row, rows)

    def _draw(self) -> NDArray[np.int64]:
        """Choose the slices of a batch of all ranks by their numbers among all slices."""
        drawn = [self._draw_part(part) for part in reversed(self._parts)]
        return np.concatenate(drawn[::-1])

    def _draw_part(self, part: _Part) -> NDArray[np.int64]:
        if part.units is None:
            return self._generator.integers(part.begin, part.end, size=part.count)
        return part.begin + part.units.draw(self._generator, part.count)

    def state_dict(self) -> dict[str, str]:
        """Return the random state as text, which any safe format can store."""
        return {"generator": json.dumps(self._state)}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Go on drawing where `state_dict` was taken, on the same dataset.

        The state is the same on all ranks, and does not depend on how many there are.

        Raises:
            DataError: A state that `state_dict` did not write.
        """
        try:
            self._generator.bit_generator.state = parse_json(state["generator"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the sampler's saved state is damaged ({error!r})") from error
        self._state, self._next = self._generator.bit_generator.state, None


def _steps_first(values: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values.swapaxes(0, 1)))


def ordered_shards(datasets: Sequence[EpisodeDataset]) -> list[tuple[EpisodeDataset, Shard]]:
    """Return the shards of all datasets in the order in which slices are counted.

    By name: the order in which worker processes added shards must not change the draws.
    """
    return [
        (dataset, shard)
        for dataset in datasets
        for shard in sorted(dataset.shards, key=lambda shard: shard.name)
    ]


def joint_tasks(datasets: Sequence[EpisodeDataset]) -> TaskTable:
    """Return all tasks that datasets have episodes of, in the order of the first one's table.

    Tasks that only later tables have come after; without any episode it is the first table.
    """
    found: dict[str, Task] = {}
    for dataset in datasets:
        for name in dataset.task_names:
            found.setdefault(name, dataset.tasks[name])
    if not found:
        return datasets[0].tasks
    order = dict.fromkeys((*datasets[0].tasks.names, *found))
    return TaskTable(tuple(found[name] for name in order if name in found))


def _split(
    batch_size: int,
    last_share: float | None,
    last_shards: int,
    sampling: Sampling,
    episodes: _Episodes,
) -> list[tuple[int, int, int, Sampling]]:
    """Return slices of a batch, first shard, end and sampling of each part."""
    shards = len(episodes.edges) - 1
    cut = shards - last_shards
    before, every = episodes.first[[episodes.edges[cut], -1]]
    if last_share is None or before in (0, every):  # short episodes may have no slice to share
        return [(batch_size, 0, shards, sampling)]
    count = round(last_share * batch_size)
    beside: Sampling = "uniform" if sampling == "return" else sampling
    return [(batch_size - count, 0, cut, sampling), (count, cut, shards, beside)]


def _units(
    sampling: Sampling,
    shards: Sequence[tuple[EpisodeDataset, Shard]],
    tasks: NDArray[np.int64],
    episodes: _Episodes,
    begin: int,
) -> Units | None:
    """Return the weights of the slices of some shards; None where all are equally likely."""
    edges = episodes.edges[begin : begin + len(shards) + 1]
    if sampling == "task":
        return by_task(tasks, np.diff(episodes.first[edges]))
    if sampling == "return":
        returns = [dataset.returns_of(shard) for dataset, shard in shards]
        slices = episodes.slices[edges[0] : edges[-1]]
        return by_return(np.repeat(tasks, np.diff(edges)), slices, np.concatenate(returns))
    return None


def _rows(dataset: EpisodeDataset, shard: Shard, tasks: TaskTable) -> _Rows:
    """Lay a shard's episodes end to end, as views of its maps cut to the model's widths."""
    arrays = dataset.arrays(shard)
    obs = arrays.obs.reshape(-1, arrays.obs.shape[-1])
    action = arrays.action.reshape(-1, arrays.action.shape[-1])
    labels = [] if arrays.label is None else [arrays.label.reshape(action.shape)]
    reward = arrays.reward.reshape(-1)
    return _Rows(
        shard=f"{dataset.path}: shard {shard.name}",
        task_name=shard.task,
        task=tasks.index(shard.task),
        obs=obs[:, : tasks.obs_dim],
        action=action[:, : tasks.action_dim],
        reward=reward,
        label=[action, *labels][-1][:, : tasks.action_dim],
        ahead=tuple(map(ReadAhead, (obs, action, reward, *labels))),
    )


def _refuse_unfit(dataset: EpisodeDataset, tasks: TaskTable) -> None:
    if not len(dataset):
        raise DataError(f"{dataset.path} holds no episodes; collect some into it")
    foreign = [name for name in dataset.task_names if name not in tasks.names]
    if foreign:
        raise DataError(
            f"{dataset.path} holds {', '.join(foreign)}, which the model does not know; it "
            f"knows {', '.join(tasks.names)}: train a model of its tasks, or on other data"
        )
    for name in dataset.task_names:
        here, model = dataset.tasks[name], tasks[name]
        if (here.obs_dim, here.action_dim) != (model.obs_dim, model.action_dim):
            raise DataError(
                f"{name} has {here.obs_dim} observations and {here.action_dim} actions in "
                f"{dataset.path}, {model.obs_dim} and {model.action_dim} in the model's table"
            )


def _refuse_short(datasets: Sequence[EpisodeDataset], horizon: int) -> None:
    longest: dict[str, int] = {}
    for dataset, shard in ordered_shards(datasets):
        steps = int(dataset.rows_of(shard).max()) - 1
        longest[shard.task] = max(steps, longest.get(shard.task, 0))
    for name, steps in longest.items():
        if steps < horizon:
            raise DataError(
                f"a slice of {horizon} steps does not fit into the {steps} steps of the "
                f"longest episode of {name}; choose a shorter horizon, or add longer episodes"
            )
