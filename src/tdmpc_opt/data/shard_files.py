"""One shard of episodes as a TensorDict memory-map folder: written, checked and read."""

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from tensordict import TensorDict

from tdmpc_opt.errors import DataError

BLOCK = 64
"""Episodes that are held in memory at once while a shard is written or checked."""


@dataclass(frozen=True, eq=False)
class Episode:
    """One finished episode: row t holds obs_t, action_{t-1}, reward_{t-1} and label_{t-1}."""

    task: str
    """Name of the task."""
    seed: int
    """Environment seed that the episode started from."""
    obs: Float32[np.ndarray, "rows obs"]
    """Observations without padding, the first and the last included."""
    action: Float32[np.ndarray, "rows action"]
    """Actions without padding, in [-1, 1]; row 0 is NaN."""
    reward: Float32[np.ndarray, " rows"]
    """Rewards; row 0 is NaN."""
    label: Float32[np.ndarray, "rows action"] | None = None
    """What the labelling policy would have done in obs_{t-1}, in [-1, 1]; a row is NaN where
    nobody labelled, as row 0 is. None: the actions are all there is to imitate."""

    @property
    def total_reward(self) -> float:
        """Sum of the rewards."""
        return float(self.reward[1:].sum(dtype=np.float64))


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

    def fields(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return each field's shape and number format; all but the label are as published."""
        lead = (self.episodes, self.length)
        action = ((*lead, self.action_dim), torch.float32)
        fields = {
            "obs": ((*lead, self.obs_dim), torch.float32),
            "action": action,
            "reward": (lead, torch.float32),
            "task": (lead, torch.int32),
        }
        return fields | {"label": action} if self.labelled else fields


@dataclass(frozen=True, slots=True, eq=False)
class ShardArrays:
    """A shard's fields, mapped read-only: a row is read from disk when it is indexed."""

    obs: Float32[np.ndarray, "episodes rows obs"]
    action: Float32[np.ndarray, "episodes rows action"]
    reward: Float32[np.ndarray, "episodes rows"]
    label: Float32[np.ndarray, "episodes rows action"] | None
    """None where the shard has no labels."""


def _file(folder: Path, field: str) -> Path:
    return folder / f"{field}.memmap"


def write_shard(
    folder: Path, episodes: Sequence[Episode], shape: ShardShape, task_id: int
) -> None:
    """Write episodes of one task into a new folder, which appears whole or not at all.

    Args:
        folder: Shard folder to make; one that is there already is replaced.
        episodes: Episodes that fit `shape`.
        shape: Sizes of the padded fields.
        task_id: Id of the task in the dataset's table.

    Raises:
        DataError: A full disk, or a folder that cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        _make_files(temporary, shape)
        _fill(temporary, episodes, shape, task_id)
        for path in [*temporary.iterdir(), temporary]:
            _sync(path)
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


def _fill(folder: Path, episodes: Sequence[Episode], shape: ShardShape, task_id: int) -> None:
    """Write the values through plain files: into a map, a full disk would kill the process."""
    for field in [name for name in shape.fields() if name != "task"]:
        with _file(folder, field).open("r+b") as file:
            for start in range(0, len(episodes), BLOCK):
                file.write(_padded(episodes[start : start + BLOCK], field, shape).tobytes())
    row = np.full(shape.length, task_id, dtype="<i4").tobytes()
    with _file(folder, "task").open("r+b") as file:
        for _ in episodes:
            file.write(row)


def _padded(episodes: Sequence[Episode], field: str, shape: ShardShape) -> NDArray[np.float32]:
    """Stack one field of some episodes, padded with zeros; NaN where nothing was done yet."""
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


def check_files(folder: Path, shape: ShardShape) -> None:
    """Refuse a shard whose files are missing or of another size, without reading them.

    Raises:
        DataError: The message names the file.
    """
    for field, (size, dtype) in shape.fields().items():
        path = _file(folder, field)
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


def _map(folder: Path, field: str, shape: ShardShape) -> NDArray[np.float32]:
    path = _file(folder, field)
    size, _ = shape.fields()[field]
    try:
        # A plain view of the map indexes faster than numpy's memmap class.
        return np.asarray(np.memmap(path, dtype="<f4", mode="r", shape=size))
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
    if field == "label":
        return None if _are_labels(values[1:]) else _LABEL_FAULT
    finite = np.isfinite(values if field == "obs" else values[1:]).all()
    return None if finite else f"{field} holds NaN or infinity"


def _are_labels(rows: Float32[np.ndarray, "steps action"]) -> bool:
    """Tell whether each row is a whole action or wholly NaN."""
    nan = np.isnan(rows)
    return not np.isinf(rows).any() and bool((nan.any(axis=1) == nan.all(axis=1)).all())
