"""Comparing a dataset's files with the checksums that were stored when they were written."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tdmpc_opt.data.episodes import EpisodeDataset, Shard
from tdmpc_opt.data.shard_files import bad_episode, check_files
from tdmpc_opt.data.transfer import Throughput
from tdmpc_opt.errors import DataError
from tdmpc_opt.progress import Progress

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
    folder, task = dataset.path / shard.name, dataset.tasks[shard.task]
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
        fault = bad_episode(dataset.arrays(shard), (task.obs_dim, task.action_dim))
        if fault is not None:
            raise DataError(f"episode {fault[0]}: {fault[1]}")
