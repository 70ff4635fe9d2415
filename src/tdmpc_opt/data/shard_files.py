"""One shard of episodes as a TensorDict memory-map folder: its layout, checked and read."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy.typing import NDArray

from tdmpc_opt.data.maps import map_file
from tdmpc_opt.errors import DataError

BLOCK = 64
"""Episodes that are held in memory at once while a shard is written or checked."""
POSITIONS = "position.npy"
"""File that tells where each episode was in the file it was imported from."""


@dataclass(frozen=True, eq=False)
class Episode:
    """One finished episode: row t holds obs_t, action_{t-1}, reward_{t-1} and label_{t-1}."""

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
