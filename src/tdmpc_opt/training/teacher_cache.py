"""Outputs of teachers for a dataset, stored for later runs with the same teachers and data.

Targets depend on the teachers, an observation and an action, and not on the slice they are in.
So each shard of the data has a file for each kind of target, with a row per row of the shard.
The folders' names are hashes of the teachers' and the shard's contents: other weights or other
data can never be taken for these.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tdmpc_opt.configs import TrainConfig
from tdmpc_opt.data.episodes import EpisodeDataset, Shard
from tdmpc_opt.data.sampler import Batch, ordered_shards
from tdmpc_opt.data.shards import DAMAGED_ARRAY
from tdmpc_opt.errors import RunError
from tdmpc_opt.files import alone, replace_when_done
from tdmpc_opt.progress import Progress
from tdmpc_opt.schema import TaskTable
from tdmpc_opt.training.ranks import ALONE, Ranks
from tdmpc_opt.training.run import source_identity
from tdmpc_opt.training.teachers import TeacherTargets

SCHEMA = 1
ROWS = 2048
"""Rows that the teachers compute at once, rounded to whole episodes."""

_FIELDS = {
    "reward_mse": ("reward",),
    "reward_kl": ("reward_logits",),
    "value_kl": ("value_logits",),
    "policy_mse": ("policy_location",),
    "policy_kl": ("policy_location", "policy_log_std"),
    "latent": ("latent",),
}
_OF_TRANSITIONS = frozenset({"reward", "reward_logits", "value_logits"})
_OF_REWARDS = frozenset({"reward", "reward_logits"})

Array = NDArray[np.float32]


@dataclass(frozen=True)
class _CachedShard:
    dataset: EpisodeDataset
    shard: Shard
    folder: Path
    first: int
    """Number of its first row among all rows."""
    rows: int


class TeacherCache:
    """Returns stored outputs for batches that a sampler drew from these datasets.

    Args:
        config: Names the teachers, the terms that need them, and the folder of the cache.
        datasets: In the order in which the sampler got them.
        tasks: The student's tasks.

    Raises:
        CheckpointError: A teacher that cannot be read.
        DataError: A shard that cannot be read.
    """

    def __init__(
        self, config: TrainConfig, datasets: Sequence[EpisodeDataset], tasks: TaskTable
    ) -> None:
        assert config.teacher_cache is not None, "there is no cache without a folder"
        self._tasks = tasks
        self._first_reward_only = config.reward_steps == "first"
        terms = config.terms.at(0)
        self._fields = sorted({field for term in terms for field in _FIELDS[term]})
        folder = config.teacher_cache / _digest(_teachers(config, tasks))
        self._shards: list[_CachedShard] = []
        first = 0
        for dataset, shard in ordered_shards(datasets):
            rows = shard.episodes * dataset.shape_of(shard).length
            place = folder / _content(dataset, shard)
            self._shards.append(_CachedShard(dataset, shard, place, first, rows))
            first += rows
        self._starts = np.array([shard.first for shard in self._shards])
        self._maps: list[dict[str, Array]] = []

    def fill(
        self,
        teachers: Callable[[Batch], TeacherTargets],
        device: torch.device,
        progress: Progress,
        ranks: Ranks = ALONE,
    ) -> None:
        """Compute the outputs for every shard without stored ones; it may be stopped any time.

        Ranks share the shards.

        Raises:
            RunError: A file that cannot be written, or that another rank wrote elsewhere.
        """
        for index in range(ranks.rank, len(self._shards), ranks.count):
            cached = self._shards[index]
            with alone(cached.folder / "targets", wait=True):  # runs may share a cache
                if self._open(cached) is None:
                    self._write(cached, self._ask(cached, teachers, device))
            done = min(index + ranks.count, len(self._shards))
            progress.update(done, len(self._shards), cached.shard.name)
        ranks.wait()
        for cached in self._shards:
            maps = self._open(cached)
            if maps is None:
                raise RunError(
                    f"{cached.folder} is gone; --teacher-cache must be on a disk that all "
                    "ranks share"
                )
            self._maps.append(maps)

    def __call__(self, batch: Batch) -> TeacherTargets:
        """Return the teachers' outputs for the batch's rows, in float32 on its device."""
        assert batch.row is not None, "a sampler must have drawn the batch"
        rows = batch.row.numpy()
        shard = np.searchsorted(self._starts, rows[0], side="right") - 1
        found: dict[str, Tensor] = {}
        for field in self._fields:
            steps = len(rows) - (field in _OF_TRANSITIONS)
            if field in _OF_REWARDS and self._first_reward_only:
                steps = 1
            width = self._maps[0][field].shape[-1]
            values = np.empty((steps, rows.shape[1], width), np.float32)
            for index in np.unique(shard):
                chosen = np.flatnonzero(shard == index)
                where = rows[:steps, chosen] - self._shards[index].first
                values[:, chosen] = self._maps[index][field][where]
            found[field] = torch.from_numpy(values).to(batch.obs.device)
        return TeacherTargets(**found)

    def _open(self, cached: _CachedShard) -> dict[str, Array] | None:
        """Map a shard's files; None where one is missing or not whole."""
        maps: dict[str, Array] = {}
        for field in self._fields:
            try:
                values = np.load(cached.folder / f"{field}.npy", mmap_mode="r")
            except DAMAGED_ARRAY:
                return None
            if values.dtype != np.float32 or len(values) != cached.rows:
                return None
            maps[field] = values
        return maps

    def _ask(
        self,
        cached: _CachedShard,
        teachers: Callable[[Batch], TeacherTargets],
        device: torch.device,
    ) -> dict[str, Array]:
        """Return the targets of all rows of a shard, [rows, width] each."""
        length = cached.dataset.shape_of(cached.shard).length
        step = max(1, ROWS // length)
        parts: dict[str, list[Array]] = {field: [] for field in self._fields}
        for begin in range(0, cached.shard.episodes, step):
            targets = teachers(self._batch(cached, begin, begin + step, device))
            for field in self._fields:
                values = getattr(targets, field).cpu()
                # The last row of an episode has no action to judge; no slice asks for it.
                values = functional.pad(values, (0, 0, 0, 0, 0, length - len(values)))
                parts[field].append(values.transpose(0, 1).flatten(0, 1).numpy())
        return {field: np.concatenate(values) for field, values in parts.items()}

    def _batch(self, cached: _CachedShard, begin: int, end: int, device: torch.device) -> Batch:
        """Return whole episodes as slices."""
        arrays = cached.dataset.arrays(cached.shard)
        obs = _padded(arrays.obs[begin:end], self._tasks.obs_dim)
        action = _padded(arrays.action[begin:end, 1:], self._tasks.action_dim)
        task = torch.full((obs.shape[1],), self._tasks.index(cached.shard.task))
        reward = action.new_zeros(*action.shape[:2], 1)
        moved = (part.to(device) for part in (obs, action, action, reward, task))
        return Batch(*moved)

    def _write(self, cached: _CachedShard, values: dict[str, Array]) -> None:
        for field, rows in values.items():
            try:
                with (
                    replace_when_done(cached.folder / f"{field}.npy") as temporary,
                    temporary.open("wb") as file,
                ):
                    np.save(file, rows)
            except OSError as error:
                raise RunError(
                    f"cannot write the teacher cache {cached.folder}: {error.strerror}"
                ) from error


def _padded(values: NDArray[np.float32], width: int) -> Tensor:
    """Return episodes [episodes, rows, dim] as a tensor [rows, episodes, width]."""
    rows = torch.from_numpy(values[..., :width].copy()).transpose(0, 1)
    return functional.pad(rows, (0, width - rows.shape[-1]))


def _teachers(config: TrainConfig, tasks: TaskTable) -> dict[str, Any]:
    """Return all that targets depend on except the data."""
    sources = [config.teacher or "", *config.more_teachers]
    policy = config.policy_teacher
    return {
        "schema": SCHEMA,
        "teachers": [source_identity(source, tasks)["sha256"] for source in sources],
        "policy_teacher": policy and source_identity(policy, tasks)["sha256"],
        "precision": "32-true",  # as caches of older versions, whose teachers had a choice
        **({"names": config.tasks} if config.tasks else {}),
        "action_dim": tasks.action_dim,
    }


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def _content(dataset: EpisodeDataset, shard: Shard) -> str:
    """Hash what teachers see of a shard."""
    arrays = dataset.arrays(shard)
    digest = hashlib.sha256(json.dumps([shard.task, dataset.length]).encode())
    for values in (arrays.obs, arrays.action):
        digest.update(str(values.shape).encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()[:32]
