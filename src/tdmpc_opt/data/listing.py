"""`dataset.json`, the only truth about what a dataset holds."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tdmpc_opt.errors import DataError
from tdmpc_opt.files import parse_json, replace_when_done
from tdmpc_opt.schema import TaskTable

FORMAT = "tdmpc-opt-data"
SCHEMA = 1
LISTING = "dataset.json"
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
    """Environment seed of each episode; empty where they are not known."""
    source: Mapping[str, Any]
    """Where the episodes come from: policy, its sha256, noise, seed, mode (JSON values)."""
    labelled: bool = False
    """Whether the shard says what a labelling policy would have done."""
    half: bool = False
    """Whether its numbers are stored in half precision, as they came."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Checksum of each file by its name; empty where none were stored."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What `dataset.json` says."""

    tasks: TaskTable
    """Table whose ids the shards' `task` field holds."""
    length: int
    """Rows of every episode, one more than its steps."""
    shards: tuple[Shard, ...]
    """What the folder holds, in the order it was added."""


def check_name(name: str) -> None:
    """Refuse a name that cannot be a shard's folder.

    Raises:
        DataError: The name has other characters than letters, digits, `.`, `_`, `+` and `-`.
    """
    if not _NAME.fullmatch(name) or name == LISTING:
        raise DataError(f"{name!r} cannot name a shard; use letters, digits, . _ + and -")


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed run left half-written; only with the lock held."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_listing(folder: Path, tasks: TaskTable, length: int, shards: Sequence[Shard]) -> None:
    """Replace a dataset's listing as a whole.

    Raises:
        DataError: It cannot be written, or a shard's source is no JSON.
    """
    try:
        text = json.dumps(
            {
                "format": FORMAT,
                "schema": SCHEMA,
                "tasks": tasks.to_json(),
                "obs_dim": tasks.obs_dim,
                "action_dim": tasks.action_dim,
                "length": length,
                "shards": [asdict(shard) for shard in shards],
            },
            indent=1,
        )
        with replace_when_done(folder / LISTING) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except (OSError, TypeError) as error:
        raise DataError(f"cannot write {folder / LISTING}: {error}") from error


def read_listing(folder: Path) -> Listing:
    """Read a dataset's listing without a look at its shards.

    Raises:
        DataError: No listing, or one that is damaged, foreign or of a newer version.
    """
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
    if record.get("schema") != SCHEMA:
        raise DataError(
            f"{listing} has schema {record.get('schema')}, this version reads {SCHEMA}; "
            "install a newer tdmpc-opt"
        )
    try:
        return _from_record(record)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{listing} is damaged ({error!r}); restore it from a copy") from error


def _from_record(record: dict[str, Any]) -> Listing:
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
        )
        for entry in record["shards"]
    )
    if not all(_NAME.fullmatch(shard.name) for shard in shards):
        raise ValueError("a shard's name is no folder of the dataset")
    if any(len(shard.seeds) not in (0, shard.episodes) for shard in shards):
        raise ValueError("a shard lists more or fewer seeds than episodes")
    return Listing(tasks, int(record["length"]), shards)
