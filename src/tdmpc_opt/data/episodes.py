"""Datasets of episodes in a folder: memory-mapped shards beside one file that lists them.

`dataset.json` is the only truth about what a dataset holds. A shard is first written whole and
then listed, so a run that is killed at any moment leaves a dataset that opens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmpc_opt.data.listing import (
    FORMAT,
    LISTING,
    SCHEMA,
    Shard,
    check_name,
    read_listing,
    remove_leftovers,
    write_listing,
)
from tdmpc_opt.data.shard_files import (
    Episode,
    ShardArrays,
    ShardShape,
    bad_episode,
    bad_values,
    check_files,
    open_shard,
)
from tdmpc_opt.data.shard_writer import Blocks, padded_blocks, write_shard
from tdmpc_opt.errors import DataError, UnknownTaskError
from tdmpc_opt.files import alone
from tdmpc_opt.schema import MT30, Task, TaskTable

__all__ = ["FORMAT", "SCHEMA", "Episode", "EpisodeDataset", "Shard", "ShardArrays"]


def _named(tasks: Sequence[Task]) -> str:
    """Name some tasks with their sizes, which tell apart two of one name."""
    texts = [
        f"{task.name} ({task.obs_dim} observations, {task.action_dim} actions, "
        f"{task.episode_length} steps)"
        for task in tasks[:3]
    ]
    if len(tasks) > len(texts):
        texts.append(f"{len(tasks) - len(texts)} more tasks")
    return ", ".join(texts)


class EpisodeDataset:
    """Episodes of many tasks on disk, of one length, padded to one width.

    Attributes:
        path: Folder of the dataset.
        tasks: Table whose ids the shards' `task` field holds.
        length: Rows of every episode, one more than its steps.
        shards: What the folder holds, in the order it was added.
    """

    def __init__(
        self, path: Path, tasks: TaskTable, length: int, shards: tuple[Shard, ...]
    ) -> None:
        """Hold what a listing says; `open` and `create` are the ways to get one."""
        self.path = path
        self.tasks = tasks
        self.length = length
        self.shards = shards

    @classmethod
    def open(cls, path: Path, *, whole: bool = True) -> "EpisodeDataset":
        """Open a dataset; episodes are read when they are used.

        Args:
            path: Folder of the dataset.
            whole: Refuse a dataset with a file that is missing or of another size.

        Raises:
            DataError: No dataset there, one of a newer version, or a damaged file.
        """
        listing = read_listing(path)
        dataset = cls(path, listing.tasks, listing.length, listing.shards)
        if whole:
            for shard in dataset.shards:
                check_files(path / shard.name, dataset.shape_of(shard))
        return dataset

    @classmethod
    def create(
        cls, path: Path, tasks: TaskTable = MT30, length: int | None = None
    ) -> "EpisodeDataset":
        """Make an empty dataset.

        Args:
            path: Folder to make, or one without a dataset.
            tasks: Tasks the dataset may hold; their widest decides the padding.
            length: Rows of an episode; by default the tasks' steps, and one more.

        Raises:
            DataError: A dataset is there already, or the tasks differ in length.
        """
        if (path / LISTING).exists():
            raise DataError(f"{path} already holds a dataset; open it or name another folder")
        if length is None:
            lengths = {task.episode_length for task in tasks.tasks}
            if len(lengths) > 1:
                raise DataError(
                    f"a dataset has one length, these tasks have {sorted(lengths)}: "
                    "collect them into separate folders"
                )
            length = lengths.pop() + 1
        dataset = cls(path, tasks, length, ())
        dataset._write_listing()
        return dataset

    @classmethod
    def open_or_create(
        cls, path: Path, tasks: TaskTable = MT30, length: int | None = None
    ) -> "EpisodeDataset":
        """Open the dataset at `path`, or make an empty one; arguments as of `create`.

        Raises:
            DataError: As `open`, or the dataset there was made for other tasks, or episodes of
                another length.
        """
        if not (path / LISTING).exists():
            return cls.create(path, tasks, length)
        dataset = cls.open(path)
        foreign = [task for task in tasks.tasks if task not in dataset.tasks.tasks]
        if foreign:
            raise DataError(
                f"{path} was made for {_named(dataset.tasks.tasks)}; {_named(foreign)} "
                "cannot be added, so name another folder"
            )
        if length not in (None, dataset.length):
            raise DataError(
                f"{path} holds episodes of {dataset.length} rows, not {length}; name another "
                "folder"
            )
        return dataset

    def __len__(self) -> int:
        """Return the number of episodes."""
        return sum(shard.episodes for shard in self.shards)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks that have episodes, in the order of the table."""
        present = {shard.task for shard in self.shards}
        return tuple(name for name in self.tasks.names if name in present)

    def has_shard(self, name: str) -> bool:
        """Tell whether a shard of this name was added."""
        return any(shard.name == name for shard in self.shards)

    def shape_of(self, shard: Shard) -> ShardShape:
        """Return what decides the size of a shard's files."""
        return self.shape(shard.episodes, labelled=shard.labelled, half=shard.half)

    def shape(self, episodes: int, *, labelled: bool = False, half: bool = False) -> ShardShape:
        """Return the sizes of a shard of so many episodes, with a file of labels or without."""
        widths = (self.tasks.obs_dim, self.tasks.action_dim)
        return ShardShape(episodes, self.length, *widths, labelled, half)

    def append_shard(
        self, name: str, episodes: Sequence[Episode], source: Mapping[str, Any]
    ) -> None:
        """Add episodes of one task; after a crash they are there whole or not at all.

        Processes may add to one dataset in turns: each waits for the other to finish.

        Args:
            name: New folder for them: letters, digits, `.`, `_`, `+` and `-`.
            episodes: Episodes of one task, of the dataset's length, all with labels or none.
            source: Where they come from, as JSON values.

        Raises:
            DataError: A name that is taken or unfit, episodes that do not fit or hold NaN, a
                full disk, or a source that is no JSON.
        """
        check_name(name)
        if not episodes:
            raise DataError(
                f"shard {name} of {self.path} would be empty; add an episode at least"
            )
        for index, episode in enumerate(episodes):
            self._refuse_unfit(episode, f"shard {name}, episode {index}", episodes[0])
        seeds = [episode.seed for episode in episodes if episode.seed is not None]
        shard = Shard(
            name=name,
            task=episodes[0].task,
            episodes=len(episodes),
            seeds=tuple(seeds) if len(seeds) == len(episodes) else (),
            source=dict(source),
            labelled=episodes[0].label is not None,
        )
        self.append_blocks(shard, lambda shape: padded_blocks(episodes, shape))

    def append_blocks(
        self,
        shard: Shard,
        blocks: Callable[[ShardShape], Blocks],
        positions: NDArray[np.int64] | None = None,
    ) -> None:
        """Add a shard that is never in memory as a whole, else as `append_shard` does.

        Args:
            shard: What to list; its checksums are filled in.
            blocks: Gives the fields of a shard of this shape, padded and without NaN or
                infinity but in the filler rows.
            positions: Where each episode was in the file it comes from, if it comes from one.

        Raises:
            DataError: A name that is taken or unfit, a full disk, a source that is no JSON, or
                what `blocks` raises; nothing was added then.
        """
        check_name(shard.name)
        with alone(self.path / LISTING, wait=True):
            self.shards = read_listing(self.path).shards  # another process may have added some
            if self.has_shard(shard.name):
                raise DataError(
                    f"{self.path} already has a shard {shard.name}; choose another name"
                )
            remove_leftovers(self.path)
            shape, task_id = self.shape_of(shard), self.tasks.index(shard.task)
            folder = self.path / shard.name
            sums = write_shard(folder, shape, task_id, blocks(shape), positions)
            self._write_listing(replace(shard, sha256=sums))

    def arrays(self, shard: Shard) -> ShardArrays:
        """Map a shard's padded fields read-only, with NaN in row 0 of all but obs.

        Raises:
            DataError: A file that is missing or truncated.
        """
        return open_shard(self.path / shard.name, self.shape_of(shard))

    def episodes(self, shard: Shard) -> Iterator[Episode]:
        """Yield a shard's episodes without padding, as copies.

        Raises:
            DataError: A file that is missing or truncated.
        """
        task, arrays = self.tasks[shard.task], self.arrays(shard)
        label = arrays.label
        for index in range(shard.episodes):
            yield Episode(
                task=shard.task,
                seed=shard.seeds[index] if shard.seeds else None,
                obs=arrays.obs[index, :, : task.obs_dim].astype(np.float32),
                action=arrays.action[index, :, : task.action_dim].astype(np.float32),
                reward=arrays.reward[index].astype(np.float32),
                label=None if label is None else label[index, :, : task.action_dim].copy(),
            )

    def returns(self) -> dict[str, list[float]]:
        """Return each task's episode returns, in the order the episodes were added."""
        totals: dict[str, list[float]] = {name: [] for name in self.task_names}
        for shard in self.shards:
            totals[shard.task] += self.returns_of(shard).tolist()
        return totals

    def returns_of(self, shard: Shard) -> NDArray[np.float64]:
        """Return a shard's episode returns, in order.

        Raises:
            DataError: A file that is missing or truncated.
        """
        return self.arrays(shard).reward[:, 1:].sum(axis=1, dtype=np.float64)

    def check(self) -> None:
        """Read every value once.

        Raises:
            DataError: NaN or infinity outside row 0, or padding that is not zero; the message
                names shard, episode and field.
        """
        for shard in self.shards:
            task = self.tasks[shard.task]
            fault = bad_episode(self.arrays(shard), (task.obs_dim, task.action_dim))
            if fault is not None:
                raise DataError(
                    f"{self.path}: shard {shard.name}, episode {fault[0]} ({shard.task}): "
                    f"{fault[1]}; take the shard out of dataset.json and collect it anew"
                )

    def _refuse_unfit(self, episode: Episode, where: str, first: Episode) -> None:
        if episode.task != first.task:
            raise DataError(f"{where} is of {episode.task}, the first is of {first.task}")
        if (episode.label is None) != (first.label is None):
            raise DataError(
                f"{where}: some episodes have labels, some have none; "
                "add them as two shards, or give those NaN labels"
            )
        try:
            task = self.tasks[episode.task]
        except UnknownTaskError as error:
            raise DataError(f"{where}: {error}") from None
        self._refuse_values(episode, where, task)

    def _refuse_values(self, episode: Episode, where: str, task: Task) -> None:
        widths = {"obs": (task.obs_dim,), "action": (task.action_dim,), "reward": ()}
        if episode.label is not None:
            widths["label"] = (task.action_dim,)
        for field, width in widths.items():
            values, expected = getattr(episode, field), (self.length, *width)
            if values.shape != expected:
                raise DataError(
                    f"{where} ({task.name}): {field} has shape {list(values.shape)}, "
                    f"expected {list(expected)}"
                )
            fault = bad_values(field, values)
            if fault is not None:
                raise DataError(f"{where} ({task.name}): {fault}")

    def _write_listing(self, *added: Shard) -> None:
        shards = (*self.shards, *added)
        write_listing(self.path, self.tasks, self.length, shards)
        self.shards = shards
