"""Writing one shard of episodes: block by block, with checksums, whole or not at all."""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict

from tdmpc_opt.data.shard_files import BLOCK, POSITIONS, Episode, ShardShape, field_file
from tdmpc_opt.errors import DataError

Blocks = Callable[[str], Iterable[NDArray[np.floating]]]
"""Gives the values of a field, padded, some episodes at a time."""


def write_shard(
    folder: Path,
    shape: ShardShape,
    task_id: int,
    blocks: Blocks,
    positions: NDArray[np.int64] | None = None,
) -> dict[str, str]:
    """Write episodes of one task into a new folder, which appears whole or not at all.

    Args:
        folder: Shard folder to make; one that is there already is replaced.
        shape: Sizes of the padded fields.
        task_id: Id of the task in the dataset's table.
        blocks: Asked for each field of `shape` but the task.
        positions: Where each episode was in the file it comes from, if it comes from one.

    Returns:
        The SHA-256 of each file, by its name.

    Raises:
        DataError: A full disk, or a folder that cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        _make_files(temporary, shape)
        sums = _fill(temporary, blocks, shape, task_id)
        if positions is not None:
            np.save(temporary / POSITIONS, positions)
        for path in sorted(temporary.iterdir()):
            _sync(path)
            if path.name not in sums:
                sums[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        _sync(temporary)
        if folder.exists():  # left by a run that died before it listed the shard
            shutil.rmtree(folder)
        temporary.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full; free some space" if full else str(error)
        raise DataError(f"cannot write shard {folder}: {reason}; nothing was added") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sums


def _make_files(folder: Path, shape: ShardShape) -> None:
    """Let tensordict lay out the folder, so that it can load what is written here."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    TensorDict(
        {
            name: torch.empty((), dtype=dtype).expand(size)
            for name, (size, dtype) in shape.fields().items()
        },
        batch_size=[shape.episodes, shape.length],
    ).memmap_like(folder)


def _fill(folder: Path, blocks: Blocks, shape: ShardShape, task_id: int) -> dict[str, str]:
    """Write the values through plain files: into a map, a full disk would kill the process."""
    row = np.full(shape.length, task_id, dtype="<i4")
    sums = {}
    for field in shape.fields():
        values = (row for _ in range(shape.episodes)) if field == "task" else blocks(field)
        path = field_file(folder, field)
        sha256 = hashlib.sha256()
        with path.open("r+b") as file:
            for block in values:
                file.write(block.data)
                sha256.update(block.data)
        sums[path.name] = sha256.hexdigest()
    return sums


def padded_blocks(episodes: Sequence[Episode], shape: ShardShape) -> Blocks:
    """Return the blocks of episodes in memory; NaN where nothing was done yet."""

    def blocks(field: str) -> Iterable[NDArray[np.floating]]:
        for start in range(0, len(episodes), BLOCK):
            yield _padded(episodes[start : start + BLOCK], field, shape)

    return blocks


def _padded(episodes: Sequence[Episode], field: str, shape: ShardShape) -> NDArray[np.float32]:
    """Stack one field of some episodes, padded with zeros."""
    size, _ = shape.fields()[field]
    block = np.zeros((len(episodes), *size[1:]), dtype="<f4")
    for row, episode in zip(block, episodes, strict=True):
        values = getattr(episode, field)
        if values.ndim == 1:
            row[:] = values
        else:
            row[:, : values.shape[1]] = values
    if field != "obs":
        block[:, 0] = np.nan
    return block


def _sync(path: Path) -> None:
    """Force a file or a folder's entries out to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
