"""Datasets of episodes in a folder: memory-mapped shards beside one file that lists them.

`dataset.json` alone states what a dataset contains. A shard is first written whole and then
listed, so a run that is killed at any moment leaves a dataset that opens.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from tdmpc_opt.data.shards import (
    BLOCK,
    Blocks,
    ShardArrays,
    ShardShape,
    bad_episode,
    check_files,
    faults,
    open_shard,
    write_shard,
)
from tdmpc_opt.errors import DataError, UnknownTaskError
from tdmpc_opt.files import CURVES, alone, parse_json, remove_unfinished, replace_when_done
from tdmpc_opt.schema import MT30, Task, TaskTable

FORMAT = "tdmpc-opt-data"
SCHEMA = 2
"""Of listings with episodes of several lengths or terminations; others have 1, as before."""
LISTING = "dataset.json"
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)


@dataclass(frozen=True, eq=False)
class Episode:
    """One finished episode: row t has obs_t, action_{t-1}, reward_{t-1} and label_{t-1}."""

    task: str
    """Name of the task."""
    seed: int | None
    """Environment seed that the episode started from; None where it is not known."""
    obs: Float32[np.ndarray, "rows obs"]
    """Observations without padding, the first and the last included."""
    action: Float32[np.ndarray, "rows action"]
    """Actions without padding, in [-1, 1]; row 0 is NaN."""
    reward: Float32[np.ndarray, " rows"]
    """Rewards; row 0 is NaN."""
    label: Float32[np.ndarray, "rows action"] | None = None
    """What the labelling policy would have done in obs_{t-1}, in [-1, 1]; a row is NaN where
    there is no label, as row 0 is. None: the actions themselves are imitated."""
    terminated: bool = False
    """Whether the last state ended the episode; else it was cut off and would have gone on."""

    @property
    def total_reward(self) -> float:
        """Sum of the rewards."""
        return float(self.reward[1:].sum(dtype=np.float64))


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
    """Environment seed of each episode; empty where they are not known."""
    source: Mapping[str, Any]
    """Where the episodes come from: policy, its sha256, noise, seed, mode (JSON values)."""
    labelled: bool = False
    """Whether the shard has the actions of a labelling policy."""
    half: bool = False
    """Whether its numbers are stored in half precision, as they came."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Checksum of each file by its name; empty where none were stored."""
    rows: tuple[int, ...] = ()
    """Rows of each episode; empty where all have the dataset's length. Files have the rows of
    the longest, and zeros after the end of the others."""
    terminated: tuple[bool, ...] = ()
    """Whether its last state ended each episode; empty where none was."""


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name == LISTING:
        raise DataError(f"{name!r} cannot name a shard; use letters, digits, . _ + and -")


def _read_listing(folder: Path) -> tuple[TaskTable, int, tuple[Shard, ...]]:
    """Read tasks, rows of an episode and shards from a dataset's listing."""
    listing = folder / LISTING
    try:
        record = parse_json(listing.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"no dataset at {folder} ({LISTING} is missing); collect one with "
            f"`tdmpc-opt collect --output {folder}`"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {listing}: {error}; restore it from a copy") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(f"{listing} describes no dataset of tdmpc-opt; name another folder")
    if record.get("schema") not in (1, SCHEMA):
        raise DataError(
            f"{listing} has schema {record.get('schema')}, this version reads up to {SCHEMA}; "
            "install a newer tdmpc-opt"
        )
    try:
        return _from_record(record)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{listing} is damaged ({error!r}); restore it from a copy") from error


def _from_record(record: dict[str, Any]) -> tuple[TaskTable, int, tuple[Shard, ...]]:
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
            half=bool(entry.get("half", False)),
            sha256=dict(entry.get("sha256", {})),
            rows=tuple(map(int, entry.get("rows", ()))),
            terminated=tuple(map(bool, entry.get("terminated", ()))),
        )
        for entry in record["shards"]
    )
    length = int(record["length"])
    if not all(_NAME.fullmatch(shard.name) for shard in shards):
        raise ValueError("a shard's name is no folder of the dataset")
    for shard in shards:
        facts = (shard.seeds, shard.rows, shard.terminated)
        if any(len(fact) not in (0, shard.episodes) for fact in facts):
            raise ValueError("a shard lists seeds, rows or terminations of other episodes")
        if not all(2 <= rows <= length for rows in shard.rows):
            raise ValueError(f"a shard has an episode whose rows are not 2 to {length}")
    return tasks, length, shards


def _to_record(shard: Shard) -> dict[str, Any]:
    """Return a shard's entry; without what no shard had before there were terminations."""
    new = ("rows", "terminated")
    return {name: value for name, value in asdict(shard).items() if value or name not in new}


def _padded_blocks(
    episodes: Sequence[Episode], shape: ShardShape, field: str
) -> Iterator[NDArray[np.float32]]:
    """Yield one field of some episodes, padded with zeros; NaN where nothing was done yet."""
    size, _ = shape.fields()[field]
    for start in range(0, len(episodes), BLOCK):
        part = episodes[start : start + BLOCK]
        block = np.zeros((len(part), *size[1:]), dtype="<f4")
        for row, episode in zip(block, part, strict=True):
            values = getattr(episode, field)
            row[tuple(map(slice, values.shape))] = values
            if field == "label":
                row[len(values) :, : values.shape[1]] = np.nan
        if field != "obs":
            block[:, 0] = np.nan
        yield block


def _named(tasks: Sequence[Task]) -> str:
    """Name some tasks with their sizes, since two tasks may have one name."""
    texts = [
        f"{task.name} ({task.obs_dim} observations, {task.action_dim} actions, "
        f"{task.episode_length} steps)"
        for task in tasks[:3]
    ]
    if len(tasks) > len(texts):
        texts.append(f"{len(tasks) - len(texts)} more tasks")
    return ", ".join(texts)


class EpisodeDataset:
    """Episodes of many tasks on disk, padded to one width.

    Attributes:
        path: Folder of the dataset.
        tasks: Table of the ids in the shards' `task` field.
        length: Most rows of an episode, one more than its steps.
        shards: Its shards, in the order in which they were added.
    """

    def __init__(
        self, path: Path, tasks: TaskTable, length: int, shards: tuple[Shard, ...]
    ) -> None:
        """Store the content of a listing; call `open` or `create` instead."""
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
        dataset = cls(path, *_read_listing(path))
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
            tasks: Tasks the dataset may contain; the widest ones set the padding.
            length: Most rows of an episode; by default the tasks' most steps, and one more.

        Raises:
            DataError: A dataset is there already, or a training run.
        """
        if (path / LISTING).exists():
            raise DataError(f"{path} already holds a dataset; open it or name another folder")
        if (path / CURVES).exists():
            raise DataError(f"{path} has a training run; name another folder for the dataset")
        if length is None:
            length = max(task.episode_length for task in tasks.tasks) + 1
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
        with alone(path / LISTING, wait=True):  # two processes may begin one dataset at once
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
        """Return whether a shard of this name was added."""
        return any(shard.name == name for shard in self.shards)

    def shape_of(self, shard: Shard) -> ShardShape:
        """Return what decides the size of a shard's files."""
        longest = max(shard.rows, default=self.length)
        widths = (self.tasks.obs_dim, self.tasks.action_dim)
        return ShardShape(shard.episodes, longest, *widths, shard.labelled, shard.half)

    @property
    def episodic(self) -> bool:
        """Whether a state ended any of the episodes."""
        return any(shard.terminated for shard in self.shards)

    def rows_of(self, shard: Shard) -> NDArray[np.int64]:
        """Return the number of rows of each of a shard's episodes."""
        return np.array(shard.rows or (self.length,) * shard.episodes, np.int64)

    def append_shard(
        self, name: str, episodes: Sequence[Episode], source: Mapping[str, Any]
    ) -> None:
        """Add episodes of one task; after a crash they are there whole or not at all.

        Processes may add to one dataset in turns: each waits for the other to finish.

        Args:
            name: New folder for them: letters, digits, `.`, `_`, `+` and `-`.
            episodes: Episodes of one task, of at most the dataset's length, all with labels or
                none.
            source: Where they come from, as JSON values.

        Raises:
            DataError: An invalid name or one in use, episodes that do not fit or contain NaN,
                a full disk, or a source that is no JSON.
        """
        _check_name(name)
        if not episodes:
            raise DataError(
                f"shard {name} of {self.path} would be empty; add an episode at least"
            )
        for index, episode in enumerate(episodes):
            self._refuse_unfit(episode, f"shard {name}, episode {index}", episodes[0])
        seeds = [episode.seed for episode in episodes if episode.seed is not None]
        rows = tuple(len(episode.obs) for episode in episodes)
        terminated = tuple(episode.terminated for episode in episodes)
        shard = Shard(
            name=name,
            task=episodes[0].task,
            episodes=len(episodes),
            seeds=tuple(seeds) if len(seeds) == len(episodes) else (),
            source=dict(source),
            labelled=episodes[0].label is not None,
            rows=() if {*rows} == {self.length} else rows,
            terminated=terminated if any(terminated) else (),
        )
        self.append_blocks(shard, partial(_padded_blocks, episodes, self.shape_of(shard)))

    def append_blocks(
        self,
        shard: Shard,
        blocks: Blocks,
        positions: NDArray[np.int64] | None = None,
    ) -> None:
        """Add a shard that is never in memory as a whole, else as `append_shard` does.

        Args:
            shard: What to list; its checksums are filled in.
            blocks: Gives the values of a field, as `shape_of` describes them: padded, and
                without NaN or infinity but in the filler rows.
            positions: Where each episode was in the file it comes from, if it comes from one.

        Raises:
            DataError: An invalid name or one in use, a full disk, a source that is no JSON, or
                what `blocks` raises; nothing was added then.
        """
        _check_name(shard.name)
        with alone(self.path / LISTING, wait=True):
            _, _, self.shards = _read_listing(self.path)  # another process may have added some
            if self.has_shard(shard.name):
                raise DataError(
                    f"{self.path} already has a shard {shard.name}; choose another name"
                )
            remove_unfinished(self.path)
            shape, task_id = self.shape_of(shard), self.tasks.index(shard.task)
            sums = write_shard(self.path / shard.name, shape, task_id, blocks, positions)
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
        for index, rows in enumerate(self.rows_of(shard)):
            yield Episode(
                task=shard.task,
                seed=shard.seeds[index] if shard.seeds else None,
                obs=arrays.obs[index, :rows, : task.obs_dim].astype(np.float32),
                action=arrays.action[index, :rows, : task.action_dim].astype(np.float32),
                reward=arrays.reward[index, :rows].astype(np.float32),
                label=None if label is None else label[index, :rows, : task.action_dim].copy(),
                terminated=bool(shard.terminated) and shard.terminated[index],
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

    def bad_episode(self, shard: Shard) -> tuple[int, str] | None:
        """Read a shard and return its first bad episode and what is wrong with it, or None.

        Raises:
            DataError: A file that is missing or truncated.
        """
        task = self.tasks[shard.task]
        return bad_episode(self.arrays(shard), (task.obs_dim, task.action_dim))

    def check(self) -> None:
        """Read every value once.

        Raises:
            DataError: NaN or infinity outside row 0, or padding that is not zero; the message
                names shard, episode and field.
        """
        for shard in self.shards:
            fault = self.bad_episode(shard)
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
        rows = len(episode.obs)
        if not 2 <= rows <= self.length:
            raise DataError(
                f"{where} ({task.name}) has {rows} observations; episodes here have 2 to "
                f"{self.length}, so name another folder"
            )
        widths = {"obs": (task.obs_dim,), "action": (task.action_dim,), "reward": ()}
        if episode.label is not None:
            widths["label"] = (task.action_dim,)
        for name, width in widths.items():
            values, expected = getattr(episode, name), (rows, *width)
            if values.shape != expected:
                raise DataError(
                    f"{where} ({task.name}): {name} has shape {list(values.shape)}, "
                    f"expected {list(expected)}"
                )
            for fault, wrong in faults(name, values[None]):
                if wrong.any():
                    raise DataError(f"{where} ({task.name}): {fault}")

    def _write_listing(self, *added: Shard) -> None:
        """Replace the listing as a whole by one with the added shards."""
        shards, listing = (*self.shards, *added), self.path / LISTING
        try:
            text = json.dumps(
                {
                    "format": FORMAT,
                    "schema": SCHEMA if any(s.rows or s.terminated for s in shards) else 1,
                    "tasks": self.tasks.to_json(),
                    "obs_dim": self.tasks.obs_dim,
                    "action_dim": self.tasks.action_dim,
                    "length": self.length,
                    "shards": [_to_record(shard) for shard in shards],
                },
                indent=1,
            )
            with replace_when_done(listing) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except (OSError, TypeError) as error:
            raise DataError(f"cannot write {listing}: {error}") from error
        self.shards = shards
