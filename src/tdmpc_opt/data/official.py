"""Official shard files into a dataset and back, streamed; a task of a file becomes a shard."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tdmpc_opt.data.episodes import EpisodeDataset, Shard
from tdmpc_opt.data.official_files import FLOATS, NUMPY, OfficialShard, Rows, open_official
from tdmpc_opt.data.reports import ImportReport, Throughput, refuse_full_disk
from tdmpc_opt.data.shards import DAMAGED_ARRAY, POSITIONS, faults, field_file
from tdmpc_opt.errors import DataError, counted
from tdmpc_opt.files import replace_when_done
from tdmpc_opt.progress import Progress

_BLOCK_BYTES = 8 << 20
_EPISODES = 128
_PLAIN = {**dict.fromkeys(FLOATS, "float32"), "task": "int32"}


class _BadEpisodesError(DataError):
    """Episodes with invalid values."""

    def __init__(self, fault: str, episodes: NDArray[np.int64]) -> None:
        super().__init__(fault)
        self.episodes = episodes


class _UnfitFileError(DataError):
    """A file that turned out to be foreign when it was read."""


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
        report: Receives what was imported and what was left out.
        progress: Receives the number of megabytes.
        skip_bad: Leave out and report invalid files and episodes instead of stopping.

    Raises:
        DataError: An invalid file or episode, where `skip_bad` is not set; files of
            different tables; a full disk.
        UnknownTaskError: A task to import that is not in the table.
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
        kinds = sorted({shard.dtypes[name].replace("float", "fp") for name in FLOATS})
        report.lines.append(
            f"{shard.path}: {counted(shard.episodes, 'episode')} in {' and '.join(kinds)}"
        )
        try:
            _Import(shard, dataset, report, throughput, skip_bad).run(wanted)
        except _UnfitFileError as error:
            report.leave_out(error, skip_bad=skip_bad)


def _refuse_mixture(shards: Sequence[OfficialShard]) -> None:
    first = shards[0]
    for shard in shards[1:]:
        if (shard.tasks, shard.length) != (first.tasks, first.length):
            raise DataError(
                f"{first.path} holds episodes of {first.length} rows of {len(first.tasks)} "
                f"tasks, {shard.path} of {shard.length} of {len(shard.tasks)}: import them "
                "into separate folders"
            )


@dataclass(frozen=True)
class _Import:
    """The import of one file."""

    shard: OfficialShard
    dataset: EpisodeDataset
    report: ImportReport
    throughput: Throughput
    skip_bad: bool

    def run(self, wanted: Sequence[str]) -> None:
        """Add what is wanted and not there yet."""
        shard = self.shard
        try:
            ids = shard.task_ids()
        except DataError as error:
            raise _UnfitFileError(str(error)) from error
        work = {}
        for task_id in np.unique(ids):
            task = shard.tasks.names[task_id]
            index = np.flatnonzero(ids == task_id)
            if task in wanted and not self.dataset.has_shard(self._name(task)):
                work[task] = index
            else:
                self.throughput.add(len(index) * shard.episode_bytes, task, moved=False)
        needed = sum(len(index) for index in work.values()) * shard.episode_bytes
        refuse_full_disk(self.dataset.path, needed)
        rows = shard.rows()
        for task, index in work.items():
            self._add_fit(task, index, rows)

    def _name(self, task: str) -> str:
        return f"{task}-official-{self.shard.fingerprint}"

    def _add_fit(self, task: str, index: NDArray[np.int64], rows: dict[str, Rows]) -> None:
        """Add a task's episodes, without invalid ones if those may be left out."""
        left_out = 0
        while len(index):
            try:
                self._add(task, index, rows, left_out)
            except _BadEpisodesError as error:
                named = f"{self.shard.path}: {task}, episode {error.episodes[0]}: {error}"
                more = (
                    f" (and {len(error.episodes) - 1} more)" if len(error.episodes) > 1 else ""
                )
                fault = DataError(named + more)
                self.report.leave_out(fault, skip_bad=self.skip_bad)
                index = np.setdiff1d(index, error.episodes)
                left_out += len(error.episodes)
            else:
                self.report.episodes += len(index)
                break

    def _add(
        self, task: str, index: NDArray[np.int64], rows: dict[str, Rows], left_out: int
    ) -> None:
        shard = self.shard
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
        self.dataset.append_blocks(entry, partial(self._blocks, task, index, rows), index)

    def _blocks(
        self, task: str, index: NDArray[np.int64], rows: dict[str, Rows], field: str
    ) -> Iterator[NDArray[np.floating]]:
        """Yield a field of a task's episodes; bad values are refused."""
        sizes = self.shard.tasks[task]
        width = {"obs": sizes.obs_dim, "action": sizes.action_dim}.get(field)
        source = rows[field]
        step = max(_BLOCK_BYTES // source.row_bytes, 1)
        for start in range(0, len(index), step):
            chosen = index[start : start + step]
            try:
                block = source.read(chosen)
            except OSError as error:  # not one of writing, which would mean our own disk
                raise _UnfitFileError(f"cannot read {self.shard.path}: {error}") from error
            for fault, bad in faults(field, block, width):
                if bad.any():
                    raise _BadEpisodesError(fault, chosen[bad])
            self.throughput.add(block.nbytes, f"{self.shard.path.name} {task}")
            yield block.astype("<f2" if self.shard.half else "<f4", copy=False)


@dataclass(frozen=True, slots=True, eq=False)
class _File:
    """A shard file to write."""

    name: str
    shards: Sequence[Shard]
    dtypes: Mapping[str, str]

    @property
    def episodes(self) -> int:
        return sum(shard.episodes for shard in self.shards)


def export_official(dataset: EpisodeDataset, output: Path, progress: Progress) -> list[Path]:
    """Write a dataset as shard files that TD-MPC2's own loader reads.

    What was imported from a file goes back into one of that name, its episodes in the order
    they had; of a whole file the tensors are identical to what they were. Other episodes go
    into a file for each task, in float32. Labels have no place in that layout.

    Args:
        dataset: What to write.
        output: Folder for the files; those that are there already are kept.
        progress: Receives the number of megabytes.

    Returns:
        The files of this export, those that were there already included.

    Raises:
        DataError: Episodes that end early; a shard that is missing or truncated, a full disk,
            or a folder that cannot be written.
    """
    if any(shard.rows or shard.terminated for shard in dataset.shards):
        raise DataError(
            f"{dataset.path} has episodes that ended early, and official shards have a place "
            f"neither for that nor for fewer than {dataset.length - 1} steps; export it with "
            "--format minari or lerobot"
        )
    files = _files(dataset)
    paths = [output / file.name for file in files]
    todo = [(file, path) for file, path in zip(files, paths, strict=True) if not path.exists()]
    sizes = [sum(t.nbytes for t in _outline(dataset, file).values()) for file, _ in todo]
    throughput = Throughput(progress, sum(sizes))
    try:
        output.mkdir(parents=True, exist_ok=True)
        # The values of the file in hand are beside it until it is whole.
        refuse_full_disk(output, sum(sizes) + max(sizes, default=0))
        for file, path in todo:
            with replace_when_done(path) as temporary:
                _write(dataset, file, temporary, throughput)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot export to {output}: {reason}") from error
    return paths


def _files(dataset: EpisodeDataset) -> list[_File]:
    """Group the shards by the file they came from, others by task."""
    groups: dict[tuple[str, str], list[Shard]] = {}
    for shard in dataset.shards:
        origin = shard.source.get("file"), shard.source.get("fingerprint")
        known = all(isinstance(part, str) for part in origin)
        key = (Path(str(origin[0])).name, str(origin[1])) if known else (f"{shard.task}.pt", "")
        groups.setdefault(key, []).append(shard)
    names = [name for name, _ in groups]
    files = []
    for (name, fingerprint), shards in groups.items():
        taken = names.count(name) > 1 and fingerprint
        own = f"{Path(name).stem}-{fingerprint}.pt" if taken else name
        files.append(_File(own, shards, shards[0].source.get("dtypes", _PLAIN)))
    return files


def _outline(dataset: EpisodeDataset, file: _File) -> dict[str, Tensor]:
    """Return the file's tensors without any storage."""
    lead = (file.episodes, dataset.length)
    widths = {"obs": (dataset.tasks.obs_dim,), "action": (dataset.tasks.action_dim,)}
    return {
        name: torch.empty(
            *lead, *widths.get(name, ()), dtype=getattr(torch, dtype), device="meta"
        )
        for name, dtype in file.dtypes.items()
    }


def _write(dataset: EpisodeDataset, file: _File, path: Path, throughput: Throughput) -> None:
    """Write each field to a file, and let torch and tensordict pack maps of them."""
    from tensordict import TensorDict  # imports torch's compiler, which takes a second

    order = _order(dataset, file)
    with tempfile.TemporaryDirectory(dir=path.parent, suffix=".tmp") as folder:
        tensors: dict[str, Tensor] = {}
        for name, outline in _outline(dataset, file).items():
            values = Path(folder) / name
            with values.open("wb") as stream:
                for block in _blocks(dataset, file, name, order):
                    stream.write(block.data)
                    throughput.add(block.nbytes, file.name)
            flat = torch.from_file(str(values), size=outline.numel(), dtype=outline.dtype)
            tensors[name] = flat.view(outline.shape)
        with path.open("wb") as stream:  # of a path torch would store the temporary name
            torch.save(TensorDict(tensors, batch_size=tensors["reward"].shape), stream)


def _order(dataset: EpisodeDataset, file: _File) -> NDArray[np.int64]:
    """Return shard and row of each episode of the file, [episodes, 2]."""
    parts: list[NDArray[np.int64]] = []
    positions: list[NDArray[np.int64]] = []
    for number, shard in enumerate(file.shards):
        rows = np.arange(shard.episodes)
        parts.append(np.stack([np.full_like(rows, number), rows], axis=1))
        known = _positions(dataset.path / shard.name / POSITIONS, shard.episodes)
        positions.append(rows + sum(len(p) for p in positions) if known is None else known)
    return np.concatenate(parts)[np.argsort(np.concatenate(positions), kind="stable")]


def _positions(path: Path, episodes: int) -> NDArray[np.int64] | None:
    """Return where episodes were in the file they came from; None where there is none."""
    if not path.exists():
        return None
    try:
        known = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGED_ARRAY as error:
        raise DataError(f"cannot read {path}: {error!r}; copy the dataset again") from error
    if known.shape != (episodes,):
        raise DataError(f"{path} is damaged; copy the dataset again")
    return known


def _blocks(
    dataset: EpisodeDataset, file: _File, field: str, order: NDArray[np.int64]
) -> Iterator[NDArray[Any]]:
    """Yield a field's values in the order of the file."""
    dtype = np.dtype(file.dtypes[field])
    ids = np.array([dataset.tasks.index(shard.task) for shard in file.shards], dtype)
    sources = [_rows(dataset, shard, field) for shard in file.shards]
    for start in range(0, len(order), _EPISODES):
        number, row = order[start : start + _EPISODES].T
        if field == "task":
            yield np.repeat(ids[number][:, None], dataset.length, axis=1)
            continue
        block = np.empty((len(row), *sources[0].shape), dtype)
        for shard in np.unique(number):
            block[number == shard] = sources[shard].read(row[number == shard])
        yield block


def _rows(dataset: EpisodeDataset, shard: Shard, field: str) -> Rows:
    size, dtype = dataset.shape_of(shard).fields()[field]
    return Rows(field_file(dataset.path / shard.name, field), 0, size[1:], NUMPY[dtype])
