"""Slices of consecutive steps, drawn at random from the episodes of some datasets."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from tdmpc_opt.data.episodes import EpisodeDataset, Shard
from tdmpc_opt.errors import DataError, NonFiniteError
from tdmpc_opt.task_table import Task, TaskTable


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
    where nobody labelled, and the action itself in shards without labels."""
    reward: Float[Tensor, "rows-1 batch 1"]
    """Raw rewards."""
    task: Int64[Tensor, " batch"]
    """Task ids in the model's table."""
    row: Int64[Tensor, "rows batch"] | None = None
    """Numbers of the observations among all rows of the shards, laid end to end in the order of
    `ordered_shards`; on the CPU. None in batches that no sampler drew."""


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """A shard with its episodes laid end to end: rows of one field each."""

    path: Path
    name: str
    task_name: str
    task: int
    length: int
    """Rows of an episode."""
    obs: NDArray[np.float32]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    label: NDArray[np.float32]


class SliceSampler:
    """Draws slices uniformly over every start in every episode, with its own random state."""

    def __init__(
        self,
        datasets: Sequence[EpisodeDataset],
        tasks: TaskTable,
        *,
        horizon: int,
        batch_size: int,
        seed: int,
        last_share: float | None = None,
    ) -> None:
        """Map the datasets' shards; nothing is read before the first sample.

        Args:
            datasets: Episodes of tasks that the model knows, drawn from as one.
            tasks: The model's table, which decides ids and widths.
            horizon: Transitions of a slice.
            batch_size: Slices of a batch.
            seed: Seed of the draws.
            last_share: Share of each batch, rounded to whole slices, that the last dataset
                gives; the others share the rest. None: as large as its share of all slices.

        Raises:
            DataError: An empty dataset, a task that the model does not know or knows with other
                sizes, a horizon longer than the episodes, or a damaged shard.
        """
        for dataset in datasets:
            _refuse_unfit(dataset, tasks, horizon)
        self._batch_size = batch_size
        self._tasks = tasks
        self._steps = np.arange(horizon + 1)
        self._generator = np.random.default_rng(seed)
        self._shards = [
            _rows(dataset, shard, tasks) for dataset, shard in ordered_shards(datasets)
        ]
        rows_of = [len(shard.obs) for shard in self._shards]
        self._first_row = np.concatenate([[0], np.cumsum(rows_of)])
        self._lengths = np.array([shard.length for shard in self._shards])
        self._starts = self._lengths - horizon
        episodes = [len(shard.obs) // shard.length for shard in self._shards]
        # Of all slices, shard s holds those from _first[s] on, up to _first[s + 1].
        self._first = np.concatenate([[0], np.cumsum(episodes * self._starts)])
        self._last_dataset = self._first[-1 - len(datasets[-1].shards)]
        self._from_last = None if last_share is None else round(last_share * batch_size)
        self._drawn = np.zeros(0, dtype=np.int64)

    def sample(self) -> Batch:
        """Draw a batch.

        Raises:
            NonFiniteError: NaN or infinity in the batch; the message names task, shard and
                episode. The next call draws another batch.
        """
        self._drawn = self._draw()
        shard, episode, start = self._place(self._drawn)
        first_row = episode * self._lengths[shard] + start
        rows = self._steps[:, None] + first_row  # (horizon + 1, batch)

        obs = np.zeros((*rows.shape, self._tasks.obs_dim), dtype=np.float32)
        action = np.zeros((len(rows) - 1, rows.shape[1], self._tasks.action_dim), np.float32)
        label = np.zeros_like(action)
        reward = np.empty((*action.shape[:2], 1), dtype=np.float32)
        task = np.empty(self._batch_size, dtype=np.int64)
        order = np.argsort(shard, kind="stable")
        bounds = np.searchsorted(shard[order], np.arange(len(self._shards) + 1))
        for source, (begin, end) in zip(self._shards, pairwise(bounds), strict=True):
            if begin == end:
                continue
            chosen = order[begin:end]
            where = rows[:, chosen]
            obs[:, chosen, : source.obs.shape[1]] = source.obs[where]
            # A row holds what was done before it: step t has its action in t + 1.
            action[:, chosen, : source.action.shape[1]] = source.action[where[1:]]
            label[:, chosen, : source.label.shape[1]] = source.label[where[1:]]
            reward[:, chosen, 0] = source.reward[where[1:]]
            task[chosen] = source.task
        wrong = {
            "obs": _columns(~np.isfinite(obs)),
            "action": _columns(~np.isfinite(action)),
            "reward": _columns(~np.isfinite(reward)),
            "label": _columns(np.isinf(label)),
        }
        if any(columns.any() for columns in wrong.values()):
            self._name_the_fault(wrong)
        return Batch(
            obs=torch.from_numpy(obs),
            action=torch.from_numpy(action),
            label=torch.from_numpy(label),
            reward=torch.from_numpy(reward),
            task=torch.from_numpy(task),
            row=torch.from_numpy(rows + self._first_row[shard]),
        )

    def _place(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Return shard, episode and first row of slices, given by their numbers."""
        shard = np.searchsorted(self._first, index, side="right") - 1
        return shard, *np.divmod(index - self._first[shard], self._starts[shard])

    def origin(self, column: int) -> str:
        """Say where a slice of the last batch comes from, for messages about it.

        Args:
            column: Number of the slice in the batch.
        """
        shard, episode, start = (int(v[0]) for v in self._place(self._drawn[[column]]))
        source = self._shards[shard]
        return (
            f"{source.path}: shard {source.name}, episode {episode} ({source.task_name}), "
            f"from step {start}"
        )

    def _draw(self) -> NDArray[np.int64]:
        """Choose the slices of a batch by their numbers among all slices."""
        total, size = self._first[-1], self._batch_size
        if self._from_last is None:
            return self._generator.integers(total, size=size)
        last = self._generator.integers(self._last_dataset, total, size=self._from_last)
        if self._from_last == size:
            return last
        rest = self._generator.integers(self._last_dataset, size=size - self._from_last)
        return np.concatenate([rest, last])

    def state_dict(self) -> dict[str, str]:
        """Return the random state as text, which any safe format can hold."""
        return {"generator": json.dumps(self._generator.bit_generator.state)}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Go on drawing where `state_dict` was taken, on the same dataset.

        Raises:
            DataError: A state that `state_dict` did not write.
        """
        try:
            self._generator.bit_generator.state = json.loads(state["generator"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the sampler's saved state is damaged ({error!r})") from error

    def _name_the_fault(self, wrong: dict[str, NDArray[np.bool_]]) -> NoReturn:
        table = np.stack(list(wrong.values()))
        column = int(table.any(axis=0).argmax())
        field = list(wrong)[int(table[:, column].argmax())]
        raise NonFiniteError(
            f"{self.origin(column)}: {field} holds NaN or infinity (take the shard out of "
            "dataset.json and collect it anew)"
        )


def _columns(bad: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell of each slice of a batch whether it holds a bad value."""
    return np.asarray(bad.any(axis=(0, 2)))


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

    Tasks that only later tables hold come after; without any episode it is the first table.
    """
    found: dict[str, Task] = {}
    for dataset in datasets:
        for name in dataset.task_names:
            found.setdefault(name, dataset.tasks[name])
    if not found:
        return datasets[0].tasks
    order = dict.fromkeys((*datasets[0].tasks.names, *found))
    return TaskTable(tuple(found[name] for name in order if name in found))


def _rows(dataset: EpisodeDataset, shard: Shard, tasks: TaskTable) -> _Rows:
    """Lay a shard's episodes end to end, as views of its maps cut to the model's widths."""
    arrays = dataset.arrays(shard)
    obs = arrays.obs.reshape(-1, arrays.obs.shape[-1])
    action = arrays.action.reshape(-1, arrays.action.shape[-1])
    label = action if arrays.label is None else arrays.label.reshape(action.shape)
    return _Rows(
        path=dataset.path,
        name=shard.name,
        task_name=shard.task,
        task=tasks.index(shard.task),
        length=dataset.length,
        obs=obs[:, : tasks.obs_dim],
        action=action[:, : tasks.action_dim],
        reward=arrays.reward.reshape(-1),
        label=label[:, : tasks.action_dim],
    )


def _refuse_unfit(dataset: EpisodeDataset, tasks: TaskTable, horizon: int) -> None:
    _refuse_foreign_tasks(dataset, tasks)
    if dataset.length <= horizon:
        raise DataError(
            f"a slice of {horizon} steps does not fit into the {dataset.length - 1} steps "
            f"of an episode in {dataset.path}; choose a shorter horizon"
        )


def _refuse_foreign_tasks(dataset: EpisodeDataset, tasks: TaskTable) -> None:
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
