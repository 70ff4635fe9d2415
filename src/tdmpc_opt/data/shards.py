"""One shard of episodes as a TensorDict memory-map folder: written, checked and mapped."""

import ctypes
import errno
import hashlib
import mmap
import os
import shutil
import tokenize
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from tensordict import TensorDict

from tdmpc_opt.errors import DataError

BLOCK = 64
"""Episodes that are held in memory at once while a shard is written or checked."""
POSITIONS = "position.npy"
"""File that tells where each episode was in the file it was imported from."""


@dataclass(frozen=True, slots=True)
class ShardShape:
    """What decides the size of a shard's files."""

    episodes: int
    length: int
    """Rows of an episode, one more than its steps."""
    obs_dim: int
    """Padded width of an observation."""
    action_dim: int
    """Padded width of an action."""
    labelled: bool = False
    """Whether there is a file of labels."""
    half: bool = False
    """Whether observations, actions and rewards are in half precision."""

    def fields(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return each field's shape and number format; all but the label are as published."""
        lead = (self.episodes, self.length)
        kind = torch.float16 if self.half else torch.float32
        fields = {
            "obs": ((*lead, self.obs_dim), kind),
            "action": ((*lead, self.action_dim), kind),
            "reward": (lead, kind),
            "task": (lead, torch.int32),
        }
        if self.labelled:
            fields["label"] = ((*lead, self.action_dim), torch.float32)
        return fields


@dataclass(frozen=True, slots=True, eq=False)
class ShardArrays:
    """A shard's fields, mapped read-only: a row is read from disk when it is indexed."""

    obs: Float[np.ndarray, "episodes rows obs"]
    action: Float[np.ndarray, "episodes rows action"]
    reward: Float[np.ndarray, "episodes rows"]
    label: Float[np.ndarray, "episodes rows action"] | None
    """None where the shard has no labels."""


def field_file(folder: Path, field: str) -> Path:
    """Return the file of a shard that holds a field."""
    return folder / f"{field}.memmap"


def check_files(folder: Path, shape: ShardShape) -> None:
    """Refuse a shard whose files are missing or of another size, without reading them.

    Raises:
        DataError: The message names the file.
    """
    for field, (size, dtype) in shape.fields().items():
        path = field_file(folder, field)
        expected = int(np.prod(size)) * dtype.itemsize
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}; {_REPAIR}") from error
        if found != expected:
            raise DataError(
                f"{path} holds {found:,} bytes where {expected:,} were written; {_REPAIR}"
            )


_REPAIR = "copy the dataset again, or take the shard out of dataset.json and collect it anew"


def open_shard(folder: Path, shape: ShardShape) -> ShardArrays:
    """Map a shard read-only.

    Raises:
        DataError: A file that is missing, truncated or unreadable.
    """
    check_files(folder, shape)  # tensordict's own loader would lengthen a truncated file
    return ShardArrays(
        obs=_map(folder, "obs", shape),
        action=_map(folder, "action", shape),
        reward=_map(folder, "reward", shape),
        label=_map(folder, "label", shape) if shape.labelled else None,
    )


def _map(folder: Path, field: str, shape: ShardShape) -> NDArray[np.floating]:
    path = field_file(folder, field)
    size, dtype = shape.fields()[field]
    try:
        return map_file(path, size, dtype)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; {_REPAIR}") from error


def bad_episode(arrays: ShardArrays, width: tuple[int, int]) -> tuple[int, str] | None:
    """Find the first episode with a value that no episode may hold.

    Args:
        arrays: The shard.
        width: Unpadded widths of the task's observation and action.

    Returns:
        Index of the episode and what is wrong with which field, or None.
    """
    for start in range(0, len(arrays.obs), BLOCK):
        part = slice(start, start + BLOCK)
        obs, action = arrays.obs[part], arrays.action[part, 1:]
        faults = {
            "obs holds NaN or infinity": ~np.isfinite(obs).all(axis=(1, 2)),
            "action holds NaN or infinity": ~np.isfinite(action).all(axis=(1, 2)),
            "reward holds NaN or infinity": ~np.isfinite(arrays.reward[part, 1:]).all(axis=1),
            "obs is not zero in its padding": obs[..., width[0] :].any(axis=(1, 2)),
            "action is not zero in its padding": action[..., width[1] :].any(axis=(1, 2)),
        }
        if arrays.label is not None:
            faults |= _label_faults(arrays.label[part, 1:], width[1])
        wrong = np.stack(list(faults.values()))
        if wrong.any():
            episode = int(wrong.any(axis=0).argmax())
            return start + episode, list(faults)[int(wrong[:, episode].argmax())]
    return None


def _label_faults(
    label: Float32[np.ndarray, "episodes steps action"], width: int
) -> dict[str, NDArray[np.bool_]]:
    unfit = np.array([not _are_labels(rows[:, :width]) for rows in label])
    padded = np.array([bool(rows[:, width:].any()) for rows in label])
    return {_LABEL_FAULT: unfit, "label is not zero in its padding": padded}


_LABEL_FAULT = "label holds infinity, or NaN in a part of a row"


def bad_values(field: str, values: NDArray[np.float32]) -> str | None:
    """Say what is wrong with one field of an episode without padding, or None."""
    done = values if field == "obs" else values[1:]
    fault = None
    if field == "label" and not _are_labels(done):
        fault = _LABEL_FAULT
    elif field != "label" and not np.isfinite(done).all():
        fault = f"{field} holds NaN or infinity"
    elif field in ("action", "label") and out_of_range(done).any():
        fault = OUT_OF_RANGE.replace("action", field)
    return fault


OUT_OF_RANGE = "action is not in [-1, 1], onto which a task's action space is scaled"


def out_of_range(action: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return which numbers lie outside [-1, 1] by more than half precision rounds; not NaN."""
    return np.abs(action) > 1.001


def _are_labels(rows: Float32[np.ndarray, "steps action"]) -> bool:
    """Tell whether each row is a whole action or wholly NaN."""
    nan = np.isnan(rows)
    return not np.isinf(rows).any() and bool((nan.any(axis=1) == nan.all(axis=1)).all())


DAMAGED_ARRAY = (
    *(OSError, EOFError, MemoryError, SyntaxError, tokenize.TokenError),
    *(ArithmeticError, LookupError, TypeError, ValueError),
)
"""What numpy was seen to raise on array files that are cut, changed or foreign."""
_PAGE = mmap.PAGESIZE
_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def map_file(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> NDArray[Any]:
    """Map a file.

    Neither numpy's maps nor Python's would do: they keep a descriptor open for each file, and a
    dataset may have more files than a process may have descriptors.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb"):  # torch's own error is of no kind in particular
        size = int(np.prod(shape))
    values = torch.from_file(str(path), shared=False, size=size, dtype=dtype).numpy()
    values.flags.writeable = False
    return values.reshape(shape)


class ReadAhead:
    """Has the system start to read rows of a mapped array; a mere hint.

    Args:
        values: A contiguous array by `map_file`, or a view of its first columns.
    """

    def __init__(self, values: NDArray[Any]) -> None:
        self._address, self._row_bytes = values.ctypes.data, values.strides[0]

    def begin(self, first: int, count: int) -> None:
        """Start to read some rows."""
        address = self._address + first * self._row_bytes
        start = address - address % _PAGE
        _madvise(start, address + count * self._row_bytes - start, mmap.MADV_WILLNEED)


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


def _sync(path: Path) -> None:
    """Force a file or a folder's entries out to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
