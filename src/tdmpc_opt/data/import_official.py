"""From official shard files to a dataset, streamed: a task of a file becomes a shard."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmpc_opt.data.episodes import EpisodeDataset, Shard
from tdmpc_opt.data.official import FLOATS, OfficialShard, Rows, open_official
from tdmpc_opt.data.shard_files import OUT_OF_RANGE, ShardShape, out_of_range
from tdmpc_opt.data.shard_writer import Blocks
from tdmpc_opt.data.transfer import ImportReport, Throughput, refuse_full_disk
from tdmpc_opt.errors import DataError
from tdmpc_opt.progress import Progress

_BLOCK_BYTES = 8 << 20


class _BadEpisodesError(DataError):
    """Episodes with values that no dataset may hold."""

    def __init__(self, fault: str, episodes: NDArray[np.int64]) -> None:
        super().__init__(fault)
        self.episodes = episodes


def import_official(
    paths: Sequence[Path],
    output: Path,
    tasks: str | None,
    report: ImportReport,
    progress: Progress,
    *,
    skip_bad: bool,
) -> None:
    """Add the episodes of official shard files to the dataset at `output`.

    Each task of each file becomes a shard that is listed as soon as it is whole, so that an
    interrupted call loses one of them at most.

    Args:
        paths: The files.
        output: Folder of the dataset, made if it is not there.
        tasks: Names of the tasks to import, joined by commas; None imports all.
        report: Takes what came of it.
        progress: Takes megabytes.
        skip_bad: Leave out and report what is unfit, rather than stop.

    Raises:
        DataError: A file or an episode that is unfit, where `skip_bad` is not set; files of
            different tables; a full disk.
        UnknownTaskError: A task to import that the table does not hold.
    """
    shards = []
    for path in paths:  # all before the first is read: a bad one must not show after an hour
        try:
            shards.append(open_official(path))
        except DataError as error:
            report.leave_out(error, skip_bad=skip_bad)
    if not shards:
        return
    _refuse_mixture(shards)
    wanted = shards[0].tasks.select(tasks).names if tasks else shards[0].tasks.names
    dataset = EpisodeDataset.open_or_create(output, shards[0].tasks, shards[0].length)
    throughput = Throughput(progress, sum(s.episodes * s.episode_bytes for s in shards))
    for shard in shards:
        report.lines.append(f"{shard.path}: {shard.episodes:,} episodes in {_formats(shard)}")
        try:
            _Import(shard, dataset, report, throughput, skip_bad=skip_bad).run(wanted)
        except _UnfitFileError as error:
            report.leave_out(error, skip_bad=skip_bad)


class _UnfitFileError(DataError):
    """A file that turned out to be foreign when it was read."""


def _formats(shard: OfficialShard) -> str:
    """Tell in which number format the values are."""
    kinds = {shard.dtypes[name].replace("float", "fp") for name in FLOATS}
    return " and ".join(sorted(kinds))


def _refuse_mixture(shards: Sequence[OfficialShard]) -> None:
    first = shards[0]
    for shard in shards[1:]:
        if (shard.tasks, shard.length) != (first.tasks, first.length):
            raise DataError(
                f"{first.path} holds episodes of {first.length} rows of {len(first.tasks)} "
                f"tasks, {shard.path} of {shard.length} of {len(shard.tasks)}: import them "
                "into separate folders"
            )


class _Import:
    """The import of one file."""

    def __init__(
        self,
        shard: OfficialShard,
        dataset: EpisodeDataset,
        report: ImportReport,
        throughput: Throughput,
        *,
        skip_bad: bool,
    ) -> None:
        self._shard, self._dataset = shard, dataset
        self._report, self._throughput = report, throughput
        self._skip_bad = skip_bad

    def run(self, wanted: Sequence[str]) -> None:
        """Add what is wanted and not there yet.

        Raises:
            _UnfitFileError: The file holds foreign tasks.
        """
        shard = self._shard
        try:
            ids = shard.task_ids()
        except DataError as error:
            raise _UnfitFileError(str(error)) from error
        work = {}
        for task_id in np.unique(ids):
            task = shard.tasks.names[task_id]
            index = np.flatnonzero(ids == task_id)
            if task in wanted and not self._dataset.has_shard(self._name(task)):
                work[task] = index
            else:
                self._throughput.add(len(index) * shard.episode_bytes, task, moved=False)
        needed = sum(len(index) for index in work.values()) * shard.episode_bytes
        refuse_full_disk(self._dataset.path, needed)
        with shard.rows() as rows:
            for task, index in work.items():
                self._add_fit(task, index, rows)

    def _name(self, task: str) -> str:
        return f"{task}-official-{self._shard.fingerprint}"

    def _add_fit(self, task: str, index: NDArray[np.int64], rows: dict[str, Rows]) -> None:
        """Add a task's episodes; without those that are unfit, if they may be left out."""
        left_out = 0
        while len(index):
            try:
                self._add(task, index, rows, left_out)
            except _BadEpisodesError as error:
                named = f"{self._shard.path}: {task}, episode {error.episodes[0]}: {error}"
                more = (
                    f" (and {len(error.episodes) - 1} more)" if len(error.episodes) > 1 else ""
                )
                fault = DataError(named + more)
                self._report.leave_out(fault, skip_bad=self._skip_bad)
                index = np.setdiff1d(index, error.episodes)
                left_out += len(error.episodes)
            else:
                self._report.episodes += len(index)
                break

    def _add(
        self, task: str, index: NDArray[np.int64], rows: dict[str, Rows], left_out: int
    ) -> None:
        shard = self._shard
        entry = Shard(
            name=self._name(task),
            task=task,
            episodes=len(index),
            seeds=(),
            source={
                "policy": {"name": f"official MT{len(shard.tasks)} data", "sha256": None},
                "file": shard.path.name,
                "fingerprint": shard.fingerprint,
                "dtypes": shard.dtypes,
                "left_out": left_out,
            },
            half=shard.half,
        )
        self._dataset.append_blocks(entry, self._blocks(task, index, rows), index)

    def _blocks(
        self, task: str, index: NDArray[np.int64], rows: dict[str, Rows]
    ) -> Callable[[ShardShape], Blocks]:
        sizes = self._shard.tasks[task]
        widths = {"obs": sizes.obs_dim, "action": sizes.action_dim}

        def read(field: str, kind: str) -> Iterator[NDArray[np.floating]]:
            source = rows[field]
            step = max(_BLOCK_BYTES // source.row_bytes, 1)
            for start in range(0, len(index), step):
                chosen = index[start : start + step]
                try:
                    block = source.read(chosen)
                except OSError as error:  # not one of writing, which would mean our own disk
                    raise _UnfitFileError(f"cannot read {self._shard.path}: {error}") from error
                _refuse_bad(field, block, widths.get(field), chosen)
                self._throughput.add(block.nbytes, f"{self._shard.path.name} {task}")
                yield block.astype(kind, copy=False)

        def shaped(shape: ShardShape) -> Blocks:
            kind = "<f2" if shape.half else "<f4"
            return lambda field: read(field, kind)

        return shaped


def _refuse_bad(
    field: str, block: NDArray[Any], width: int | None, index: NDArray[np.int64]
) -> None:
    """Refuse NaN, infinity and padding that is not zero; row 0 is filler but in `obs`."""
    done = block if field == "obs" else block[:, 1:]
    axes = tuple(range(1, done.ndim))
    bad = ~np.isfinite(done).all(axis=axes)
    if bad.any():
        raise _BadEpisodesError(f"{field} holds NaN or infinity", index[bad])
    if field == "action":
        bad = out_of_range(done).any(axis=axes)
        if bad.any():
            raise _BadEpisodesError(OUT_OF_RANGE, index[bad])
    if width is not None:
        bad = done[..., width:].any(axis=axes)
        if bad.any():
            raise _BadEpisodesError(f"{field} is not zero in its padding", index[bad])
