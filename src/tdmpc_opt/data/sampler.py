"""Slices of consecutive steps, drawn at random from the episodes of a dataset."""

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import NoReturn

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from tdmpc_opt.data.episodes import EpisodeDataset, Shard
from tdmpc_opt.errors import DataError
from tdmpc_opt.task_table import TaskTable


@dataclass(frozen=True, slots=True)
class Batch:
    """Slices of some steps: `obs[t]` and `action[t]` lead to `reward[t]` and `obs[t+1]`.

    There are `horizon` actions and rewards, and one observation more.
    """

    obs: Float[Tensor, "rows batch obs"]
    """Observations, zero-padded."""
    action: Float[Tensor, "rows-1 batch action"]
    """Actions in [-1, 1], zero-padded."""
    reward: Float[Tensor, "rows-1 batch 1"]
    """Raw rewards."""
    task: Int64[Tensor, " batch"]
    """Task ids in the model's table."""


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """A shard with its episodes laid end to end: rows of one field each."""

    name: str
    task_name: str
    task: int
    obs: NDArray[np.float32]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]


class SliceSampler:
    """Draws slices uniformly over every start in every episode, with its own random state."""

    def __init__(
        self,
        dataset: EpisodeDataset,
        tasks: TaskTable,
        *,
        horizon: int,
        batch_size: int,
        seed: int,
    ) -> None:
        """Map the dataset's shards; nothing is read before the first sample.

        Args:
            dataset: Episodes of tasks that the model knows.
            tasks: The model's table, which decides ids and widths.
            horizon: Transitions of a slice.
            batch_size: Slices of a batch.
            seed: Seed of the draws.

        Raises:
            DataError: An empty dataset, a task that the model does not know or knows with other
                sizes, a horizon longer than the episodes, or a damaged shard.
        """
        _refuse_foreign_tasks(dataset, tasks)
        self._starts = dataset.length - horizon
        if self._starts < 1:
            raise DataError(
                f"a slice of {horizon} steps does not fit into the {dataset.length - 1} steps "
                f"of an episode in {dataset.path}; choose a shorter horizon"
            )
        self._path = dataset.path
        self._length = dataset.length
        self._batch_size = batch_size
        self._tasks = tasks
        self._steps = np.arange(horizon + 1)
        self._generator = np.random.default_rng(seed)
        self._shards = [_rows(dataset, shard, tasks) for shard in dataset.shards]
        # Shard s holds the episodes _first[s] to _first[s + 1] of the whole dataset.
        self._first = np.cumsum([0, *(shard.episodes for shard in dataset.shards)])

    def sample(self) -> Batch:
        """Draw a batch.

        Raises:
            DataError: NaN or infinity in the batch; the message names task, shard and episode.
        """
        episode = self._generator.integers(self._first[-1], size=self._batch_size)
        start = self._generator.integers(self._starts, size=self._batch_size)
        shard = np.searchsorted(self._first, episode, side="right") - 1
        first_row = (episode - self._first[shard]) * self._length + start
        rows = self._steps[:, None] + first_row  # (horizon + 1, batch)

        obs = np.zeros((*rows.shape, self._tasks.obs_dim), dtype=np.float32)
        action = np.zeros((len(rows) - 1, rows.shape[1], self._tasks.action_dim), np.float32)
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
            # A row holds the action and the reward that led to it: step t has them in t + 1.
            action[:, chosen, : source.action.shape[1]] = source.action[where[1:]]
            reward[:, chosen, 0] = source.reward[where[1:]]
            task[chosen] = source.task
        batch = (obs, action, reward)
        if not all(np.isfinite(values).all() for values in batch):
            self._name_the_fault(batch, shard, episode)
        return Batch(
            obs=torch.from_numpy(obs),
            action=torch.from_numpy(action),
            reward=torch.from_numpy(reward),
            task=torch.from_numpy(task),
        )

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

    def _name_the_fault(
        self,
        batch: tuple[NDArray[np.float32], ...],
        shard: NDArray[np.int64],
        episode: NDArray[np.int64],
    ) -> NoReturn:
        wrong = np.stack([~np.isfinite(values).all(axis=(0, 2)) for values in batch])
        column = int(wrong.any(axis=0).argmax())
        fields = ("obs", "action", "reward")
        field = fields[int(wrong[:, column].argmax())]
        source = self._shards[shard[column]]
        raise DataError(
            f"{self._path}: shard {source.name}, episode "
            f"{episode[column] - self._first[shard[column]]} ({source.task_name}): {field} "
            "holds NaN or infinity; take the shard out of dataset.json and collect it anew"
        )


def _rows(dataset: EpisodeDataset, shard: Shard, tasks: TaskTable) -> _Rows:
    """Lay a shard's episodes end to end, as views of its maps cut to the model's widths."""
    arrays = dataset.arrays(shard)
    obs = arrays.obs.reshape(-1, arrays.obs.shape[-1])
    action = arrays.action.reshape(-1, arrays.action.shape[-1])
    return _Rows(
        name=shard.name,
        task_name=shard.task,
        task=tasks.index(shard.task),
        obs=obs[:, : tasks.obs_dim],
        action=action[:, : tasks.action_dim],
        reward=arrays.reward.reshape(-1),
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
