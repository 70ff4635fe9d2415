"""Reports on a dataset: its content, its card, whether it is intact, what an import did."""

import hashlib
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tdmpc_opt.data.episodes import EpisodeDataset, Shard
from tdmpc_opt.data.shards import check_files
from tdmpc_opt.errors import DataError, ResultError, counted
from tdmpc_opt.files import written
from tdmpc_opt.progress import Progress

MEGABYTE = 1_000_000


@dataclass
class ImportReport:
    """The outcome of an import."""

    lines: list[str] = field(default_factory=list)
    """The content of each source."""
    left_out: list[str] = field(default_factory=list)
    """What was skipped, and why."""
    episodes: int = 0
    """Episodes added by this call."""

    def leave_out(self, error: DataError, *, skip_bad: bool) -> None:
        """Note a fault and go on.

        Raises:
            DataError: The fault itself, unless it may be skipped.
        """
        if not skip_bad:
            raise error
        self.left_out.append(str(error))


class Throughput:
    """Reports megabytes done and per second, over all files of a piece of work.

    Args:
        progress: Receives the reports.
        total_bytes: All there is to do.
    """

    def __init__(self, progress: Progress, total_bytes: int) -> None:
        self._progress, self._total = progress, total_bytes
        self._done = self._moved = 0
        self._start = time.monotonic()

    def add(self, count: int, text: str, *, moved: bool = True) -> None:
        """Count bytes as done; those that need no work do not count as speed."""
        self._done += count
        self._moved += count if moved else 0
        rate = self._moved / max(time.monotonic() - self._start, 1e-9) / MEGABYTE
        total = max(self._total // MEGABYTE, 1)
        left = self._done < self._total
        done = min(self._done // MEGABYTE, total - left)
        self._progress.update(done, total, f"MB, {rate:.0f} MB/s, {text}")


def refuse_full_disk(folder: Path, needed: int) -> None:
    """Check that the disk has so many bytes free.

    Raises:
        DataError: It has not.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder} needs {needed / MEGABYTE:,.0f} MB more, {free / MEGABYTE:,.0f} MB are "
            "free; free some space, and the same command goes on from here"
        )


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """One task's row of the table that `tdmpc-opt data info` shows."""

    task: str
    """Name of the task."""
    shards: int
    """Folders with its episodes."""
    episodes: int
    """Number of episodes."""
    transitions: int
    """Number of steps in them."""
    labelled: int
    """Number of steps with a label."""
    terminated: int
    """Number of episodes that a state ended."""
    return_mean: float
    """Mean episode return."""
    return_min: float
    """Lowest episode return."""
    return_max: float
    """Highest episode return."""


def summarize(dataset: EpisodeDataset) -> list[TaskSummary]:
    """Summarize each task that has episodes, in the order of the dataset's table.

    Raises:
        DataError: A shard that is missing or truncated.
    """
    rows = []
    for task, returns in dataset.returns().items():
        shards = [shard for shard in dataset.shards if shard.task == task]
        rows.append(
            TaskSummary(
                task=task,
                shards=len(shards),
                episodes=len(returns),
                transitions=sum(int((dataset.rows_of(s) - 1).sum()) for s in shards),
                labelled=sum(_labelled(dataset, shard) for shard in shards),
                terminated=sum(sum(shard.terminated) for shard in shards),
                return_mean=float(np.mean(returns)),
                return_min=min(returns),
                return_max=max(returns),
            )
        )
    return rows


def _labelled(dataset: EpisodeDataset, shard: Shard) -> int:
    label = dataset.arrays(shard).label
    # A row is wholly NaN or not at all, so its first number suffices.
    return 0 if label is None else int(np.isfinite(label[:, 1:, 0]).sum())


def write_dataset_card(dataset: EpisodeDataset, plot: Path, path: Path) -> None:
    """Write the card of a dataset, which shows the picture of its returns by a relative path.

    Raises:
        DataError: A shard that is missing or truncated.
        ResultError: A file that cannot be written.
    """
    rows = summarize(dataset)
    transitions = sum(row.transitions for row in rows)
    lines = [
        f"# Dataset {dataset.path.resolve().name}",
        "",
        f"{counted(len(dataset), 'episode')} of {counted(len(rows), 'task')}, "
        f"{counted(transitions, 'transition')}, "
        f"{sum(row.labelled for row in rows):,} of them with a label to imitate.",
        "",
        "## Sources",
        "",
        "| driven by | noise | labelled by | tasks | episodes | mean return |",
        "|---|---|---|---|---|---|",
        *_origins(dataset),
        "",
        "## Tasks",
        "",
        "| task | episodes | transitions | labelled | mean return | least | most |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row.task} | {row.episodes:,} | {row.transitions:,} | {row.labelled:,} "
            f"| {row.return_mean:.1f} | {row.return_min:.1f} | {row.return_max:.1f} |"
            for row in rows
        ),
    ]
    picture = os.path.relpath(plot.resolve(), path.resolve().parent)
    lines += ["", f"![Episode returns of each task]({picture})", ""]
    with written(path, ResultError) as temporary:
        temporary.write_text("\n".join(lines))


def _origins(dataset: EpisodeDataset) -> list[str]:
    """Return a row for each way in which episodes were made, over all tasks."""
    made: dict[tuple[str, str, str], list[tuple[str, float]]] = {}
    for shard in dataset.shards:
        source = shard.source
        policy = str(source["policy"]["name"]) if source.get("policy") else "?"
        label = "-" if policy == "random" else "itself"
        if "label" in source:
            label = str(source["label"]["policy"]["name"])
        key = (policy, f"{float(source.get('noise', 0)):g}", label)
        returns = ((shard.task, value) for value in dataset.returns_of(shard).tolist())
        made.setdefault(key, []).extend(returns)
    return [
        f"| {policy} | {noise} | {label} | {len({task for task, _ in rows})} | {len(rows):,} "
        f"| {np.mean([value for _, value in rows]):.1f} |"
        for (policy, noise, label), rows in made.items()
    ]


_BLOCK = 8 << 20


@dataclass(frozen=True, slots=True)
class Verification:
    """What a check of every file found."""

    shards: int
    """Shards checked."""
    size_bytes: int
    """Bytes read."""
    unsummed: tuple[str, ...]
    """Shards without stored checksums, of which only the values could be checked."""
    faults: tuple[str, ...]
    """Damaged shards and what is wrong with each."""


def verify(path: Path, progress: Progress) -> Verification:
    """Read every file of a dataset once.

    Args:
        path: Folder of the dataset.
        progress: Receives megabytes.

    Raises:
        DataError: No dataset there, or a listing that cannot be read.
    """
    dataset = EpisodeDataset.open(path, whole=False)
    sizes = {shard.name: _size(dataset, shard) for shard in dataset.shards}
    throughput = Throughput(progress, sum(sizes.values()))
    faults = []
    for shard in dataset.shards:
        try:
            _check(dataset, shard, throughput)
        except DataError as error:
            faults.append(f"{shard.name}: {error}")
        except OSError as error:
            file = Path(str(error.filename)).name
            faults.append(f"{shard.name}: cannot read {file}: {error.strerror}")
    return Verification(
        shards=len(dataset.shards),
        size_bytes=sum(sizes.values()),
        unsummed=tuple(shard.name for shard in dataset.shards if not shard.sha256),
        faults=tuple(faults),
    )


def _size(dataset: EpisodeDataset, shard: Shard) -> int:
    """Return the bytes of a shard; one that cannot be read has none, and is named later."""
    folder = dataset.path / shard.name
    try:
        return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
    except OSError:
        return 0


def _check(dataset: EpisodeDataset, shard: Shard, throughput: Throughput) -> None:
    """Raise for the first thing that is wrong with a shard."""
    folder = dataset.path / shard.name
    check_files(folder, dataset.shape_of(shard))
    for name, expected in shard.sha256.items():
        sha256 = hashlib.sha256()
        with (folder / Path(name).name).open("rb") as file:
            while block := file.read(_BLOCK):
                sha256.update(block)
                throughput.add(len(block), shard.name)
        if sha256.hexdigest() != expected:
            raise DataError(f"{name} is not what was written; copy the shard again")
    if not shard.sha256:
        fault = dataset.bad_episode(shard)
        if fault is not None:
            raise DataError(f"episode {fault[0]}: {fault[1]}")
