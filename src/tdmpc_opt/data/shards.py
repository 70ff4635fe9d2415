"""One shard of episodes as a TensorDict memory-map folder: written, checked and mapped."""

import ctypes
import errno
import hashlib
import mmap
import shutil
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from tdmpc_opt.errors import DataError
from tdmpc_opt.files import to_disk

BLOCK = 64
"""Episodes that are in memory at once while a shard is written or checked."""
POSITIONS = "position.npy"
"""File with the place of each episode in the file it was imported from."""
DAMAGED_ARRAY = (
    *(OSError, EOFError, MemoryError, SyntaxError, tokenize.TokenError),
    *(ArithmeticError, LookupError, TypeError, ValueError),
)
"""What numpy raises on array files that are cut, changed or foreign."""
Blocks = Callable[[str], Iterable[NDArray[np.floating]]]
"""Gives the values of a field, padded, some episodes at a time."""

_REPAIR = "copy the dataset again, or take the shard out of dataset.json and collect it anew"
_PAGE = mmap.PAGESIZE
_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


@dataclass(frozen=True, slots=True)
class ShardShape:
    """What decides the size of a shard's files."""

    episodes: int
    """Number of episodes."""
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
    """Observations, zero-padded."""
    action: Float[np.ndarray, "episodes rows action"]
    """Actions in [-1, 1], zero-padded; row 0 is NaN."""
    reward: Float[np.ndarray, "episodes rows"]
    """Rewards; row 0 is NaN."""
    label: Float[np.ndarray, "episodes rows action"] | None
    """Actions to imitate, zero-padded; None where the shard has no labels."""


def field_file(folder: Path, field: str) -> Path:
    """Return the file of a shard with a field."""
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
    # Maps by numpy or Python keep a descriptor open for each file, and a dataset may have more
    # files than a process may have descriptors.
    path = field_file(folder, field)
    size, dtype = shape.fields()[field]
    try:
        with path.open("rb"):  # torch's own error is of no kind in particular
            count = int(np.prod(size))
        values = torch.from_file(str(path), shared=False, size=count, dtype=dtype).numpy()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; {_REPAIR}") from error
    values.flags.writeable = False
    return values.reshape(size)


class ReadAhead:
    """Lets the system start to read rows of a mapped array; only a hint.

    Args:
        values: A contiguous mapped array, or a view of its first columns.
    """

    def __init__(self, values: NDArray[Any]) -> None:
        self._address, self._row_bytes = values.ctypes.data, values.strides[0]

    def begin(self, first: int, count: int) -> None:
        """Start to read some rows."""
        address = self._address + first * self._row_bytes
        start = address - address % _PAGE
        _madvise(start, address + count * self._row_bytes - start, mmap.MADV_WILLNEED)


def faults(
    field: str,
    values: NDArray[Any],
    width: int | None = None,
    *,
    in_range: bool = True,
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield what is wrong with a field, and with which episodes.

    Row 0 is filler in all fields but `obs`. A label is a whole action or wholly NaN.

    Args:
        field: Its name: obs, action, reward or label.
        values: Its values in some episodes, [episodes, rows, ...].
        width: Width of the task's own values, beyond which the padding must be zero; None does
            not check it.
        in_range: Refuse actions and labels outside [-1, 1] by more than half precision rounds.
    """
    done = values if field == "obs" else values[:, 1:]
    axes = tuple(range(1, done.ndim))
    if field == "label":
        nan = np.isnan(done[..., :width])
        partly = (nan.any(axis=2) != nan.all(axis=2)).any(axis=1)
        infinite = np.isinf(done[..., :width]).any(axis=axes)
        yield "label holds infinity, or NaN in a part of a row", partly | infinite
    else:
        yield f"{field} holds NaN or infinity", (~np.isfinite(done)).any(axis=axes)
    if in_range and field in ("action", "label"):
        text = f"{field} is not in [-1, 1], onto which a task's action space is scaled"
        yield text, np.asarray((np.abs(done) > 1.001).any(axis=axes))
    if width is not None:
        yield (
            f"{field} is not zero in its padding",
            np.asarray(done[..., width:].any(axis=axes)),
        )


def bad_episode(arrays: ShardArrays, width: tuple[int, int]) -> tuple[int, str] | None:
    """Find the first episode with a value that no episode may have.

    Args:
        arrays: The shard.
        width: Unpadded widths of the task's observation and action.

    Returns:
        Index of the episode and what is wrong with which field, or None.
    """
    fields = {
        "obs": (arrays.obs, width[0]),
        "action": (arrays.action, width[1]),
        "reward": (arrays.reward, None),
        "label": (arrays.label, width[1]),
    }
    for start in range(0, len(arrays.obs), BLOCK):
        found = [
            fault
            for field, (values, own) in fields.items()
            if values is not None
            for fault in faults(field, values[start : start + BLOCK], own, in_range=False)
        ]
        wrong = np.stack([episodes for _, episodes in found])
        if wrong.any():
            episode = int(wrong.any(axis=0).argmax())
            return start + episode, found[int(wrong[:, episode].argmax())][0]
    return None


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
        blocks: Called for each field of `shape` but the task.
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
            to_disk(path)
            if path.name not in sums:
                sums[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        to_disk(temporary)
        if folder.exists():  # left by a run that died before it listed the shard
            shutil.rmtree(folder)
        temporary.rename(folder)
        to_disk(folder.parent)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full; free some space" if full else str(error)
        raise DataError(f"cannot write shard {folder}: {reason}; nothing was added") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sums


def _make_files(folder: Path, shape: ShardShape) -> None:
    """Let tensordict lay out the folder, so that it can load what is written here."""
    from tensordict import TensorDict  # imports torch's compiler, which takes a second

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
