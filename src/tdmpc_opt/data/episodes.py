"""Datasets of episodes in a folder: memory-mapped shards beside one file that lists them.

`dataset.json` is the only truth about what a dataset holds. A shard is first written whole and
then listed, so a run that is killed at any moment leaves a dataset that opens.
"""

import contextlib
import fcntl
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tdmpc_opt.atomic import replace_when_done
from tdmpc_opt.data.shard_files import (
    Episode,
    ShardArrays,
    ShardShape,
    bad_episode,
    bad_values,
    check_files,
    open_shard,
    write_shard,
)
from tdmpc_opt.errors import DataError, UnknownTaskError
from tdmpc_opt.task_table import MT30, Task, TaskTable

__all__ = ["FORMAT", "SCHEMA", "Episode", "EpisodeDataset", "Shard", "ShardArrays"]

FORMAT = "tdmpc-opt-data"
SCHEMA = 1
_LISTING = "dataset.json"
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Shard:
    """Some episodes of one task from one source: a folder of the dataset."""

    name: str
    """Name of the folder."""
    task: str
    """Name of the task."""
    episodes: int
    """Number of episodes."""
    seeds: tuple[int, ...]
    """Environment seed of each episode."""
    source: Mapping[str, Any]
    """Where the episodes come from: policy, its sha256, noise, seed, mode (JSON values)."""
    labelled: bool = False
    """Whether the shard says what a labelling policy would have done."""


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
    def open(cls, path: Path) -> "EpisodeDataset":
        """Open a dataset; episodes are read when they are used.

        Raises:
            DataError: No dataset there, one of a newer version, or a damaged file.
        """
        dataset = _read_listing(path)
        for shard in dataset.shards:
            check_files(path / shard.name, dataset.shape(shard.episodes, shard.labelled))
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
        if (path / _LISTING).exists():
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
    def open_or_create(cls, path: Path, tasks: TaskTable = MT30) -> "EpisodeDataset":
        """Open the dataset at `path`, or make an empty one.

        Raises:
            DataError: As `open`, or the dataset there was made for other tasks.
        """
        if not (path / _LISTING).exists():
            return cls.create(path, tasks)
        dataset = cls.open(path)
        if not {*tasks.tasks} <= {*dataset.tasks.tasks}:
            raise DataError(
                f"{path} was made for another task table ({len(dataset.tasks)} tasks, "
                f"{len(tasks)} wanted); name another folder"
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

    def shape(self, episodes: int, labelled: bool = False) -> ShardShape:
        """Return the sizes of a shard of so many episodes, with a file of labels or without."""
        widths = (self.tasks.obs_dim, self.tasks.action_dim)
        return ShardShape(episodes, self.length, *widths, labelled)

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
        if not _NAME.fullmatch(name) or name == _LISTING:
            raise DataError(f"{name!r} cannot name a shard; use letters, digits, . _ + and -")
        if not episodes:
            raise DataError(
                f"shard {name} of {self.path} would be empty; add an episode at least"
            )
        for index, episode in enumerate(episodes):
            self._refuse_unfit(episode, f"shard {name}, episode {index}", episodes[0])
        shard = Shard(
            name=name,
            task=episodes[0].task,
            episodes=len(episodes),
            seeds=tuple(episode.seed for episode in episodes),
            source=dict(source),
            labelled=episodes[0].label is not None,
        )
        with _locked(self.path):
            self.shards = _read_listing(self.path).shards  # another process may have added some
            if self.has_shard(name):
                raise DataError(f"{self.path} already has a shard {name}; choose another name")
            _remove_leftovers(self.path)
            task_id = self.tasks.index(shard.task)
            shape = self.shape(len(episodes), shard.labelled)
            write_shard(self.path / name, episodes, shape, task_id)
            self._write_listing(shard)

    def arrays(self, shard: Shard) -> ShardArrays:
        """Map a shard's padded fields read-only, with NaN in row 0 of all but obs.

        Raises:
            DataError: A file that is missing or truncated.
        """
        return open_shard(self.path / shard.name, self.shape(shard.episodes, shard.labelled))

    def episodes(self, shard: Shard) -> Iterator[Episode]:
        """Yield a shard's episodes without padding, as copies.

        Raises:
            DataError: A file that is missing or truncated.
        """
        task, arrays = self.tasks[shard.task], self.arrays(shard)
        label = arrays.label
        for index, seed in enumerate(shard.seeds):
            yield Episode(
                task=shard.task,
                seed=seed,
                obs=arrays.obs[index, :, : task.obs_dim].copy(),
                action=arrays.action[index, :, : task.action_dim].copy(),
                reward=arrays.reward[index].copy(),
                label=None if label is None else label[index, :, : task.action_dim].copy(),
            )

    def returns(self) -> dict[str, list[float]]:
        """Return each task's episode returns, in the order the episodes were added."""
        totals: dict[str, list[float]] = {name: [] for name in self.task_names}
        for shard in self.shards:
            reward = self.arrays(shard).reward[:, 1:]
            totals[shard.task] += reward.sum(axis=1, dtype=np.float64).tolist()
        return totals

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
        try:
            text = json.dumps(
                {
                    "format": FORMAT,
                    "schema": SCHEMA,
                    "tasks": self.tasks.to_json(),
                    "obs_dim": self.tasks.obs_dim,
                    "action_dim": self.tasks.action_dim,
                    "length": self.length,
                    "shards": [asdict(shard) for shard in shards],
                },
                indent=1,
            )
            with replace_when_done(self.path / _LISTING) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except (OSError, TypeError) as error:
            raise DataError(f"cannot write {self.path / _LISTING}: {error}") from error
        self.shards = shards


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from adding at the same time, where the file system can."""
    try:
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise DataError(f"cannot add to {folder}: {error.strerror}") from error
    with file:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_leftovers(folder: Path) -> None:
    """Delete what a killed run left half-written; only with the lock held."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _read_listing(path: Path) -> EpisodeDataset:
    """Read a dataset's listing without a look at its shards.

    Raises:
        DataError: No listing, or one that is damaged, foreign or of a newer version.
    """
    listing = path / _LISTING
    try:
        record = json.loads(listing.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"no dataset at {path} ({_LISTING} is missing); collect one with "
            f"`tdmpc-opt collect --output {path}`"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {listing}: {error}; restore it from a copy") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(f"{listing} describes no dataset of tdmpc-opt; name another folder")
    if record.get("schema") != SCHEMA:
        raise DataError(
            f"{listing} has schema {record.get('schema')}, this version reads {SCHEMA}; "
            "install a newer tdmpc-opt"
        )
    try:
        return _from_record(path, record)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{listing} is damaged ({error!r}); restore it from a copy") from error


def _from_record(path: Path, record: dict[str, Any]) -> EpisodeDataset:
    tasks = TaskTable.from_json(record["tasks"])
    if (record["obs_dim"], record["action_dim"]) != (tasks.obs_dim, tasks.action_dim):
        raise ValueError("obs_dim or action_dim is not that of the tasks")
    shards = tuple(
        Shard(
            name=str(entry["name"]),
            task=tasks[entry["task"]].name,
            episodes=int(entry["episodes"]),
            seeds=tuple(entry["seeds"]),
            source=dict(entry["source"]),
            labelled=bool(entry.get("labelled", False)),  # absent before there were labels
        )
        for entry in record["shards"]
    )
    if not all(_NAME.fullmatch(shard.name) for shard in shards):
        raise ValueError("a shard's name is no folder of the dataset")
    if any(len(shard.seeds) != shard.episodes for shard in shards):
        raise ValueError("a shard lists more or fewer seeds than episodes")
    return EpisodeDataset(path, tasks, int(record["length"]), shards)
