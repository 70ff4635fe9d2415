"""The official MT30 and MT80 shard files: pickled TensorDicts, read without running their code.

Row t of an episode is obs_t, action_{t-1} and reward_{t-1}, as in a dataset here; action and
reward of row 0 are filler.

Source: TD-MPC2's public datasets (arXiv:2310.16828) and its loader.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tdmpc_opt.checkpoints.torch_files import (
    MappedFile,
    TorchFileError,
    is_zipped,
    load_outline,
)
from tdmpc_opt.errors import DataError
from tdmpc_opt.schema import MT30, MT80, TaskTable

FLOATS = ("obs", "action", "reward")
NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    torch.float16: np.dtype("<f2"),
    torch.float32: np.dtype("<f4"),
    torch.uint8: np.dtype("u1"),
    torch.int8: np.dtype("i1"),
    torch.int16: np.dtype("<i2"),
    torch.int32: np.dtype("<i4"),
    torch.int64: np.dtype("<i8"),
}
"""Number formats of a field, in torch and in a file."""
_SCAN = 1 << 22
_SAMPLE = 1 << 20


class _TensorDict:
    """Replaces the library's class, so that loading a file runs none of its code."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


def _make(_: object, state: dict[str, Any]) -> _TensorDict:
    made = _TensorDict()
    made.__setstate__(state)
    return made


class _Entries(dict[str, Any]):
    """Replaces the dictionary inside it."""


_STAND_INS: dict[str, Callable[..., Any]] = {
    "tensordict._reductions._make_td": _make,
    "tensordict._td.TensorDict": _TensorDict,
    "tensordict.tensordict.TensorDict": _TensorDict,
    "tensordict._td._StringOnlyDict": _Entries,
    "tensordict.utils._StringOnlyDict": _Entries,
}


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows of one size in a file, read without mapping it.

    A map of a file larger than memory would count as this process's memory.
    """

    path: Path
    """The file."""
    start: int
    """First byte of row 0."""
    shape: tuple[int, ...]
    """Shape of a row."""
    dtype: np.dtype[Any]
    """Number format."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, index: NDArray[np.int64]) -> NDArray[Any]:
        """Return rows by their ascending numbers, at least one; neighbours are read in one go.

        Raises:
            OSError: The file ends before them, or cannot be read.
        """
        runs = np.split(index, np.flatnonzero(np.diff(index) != 1) + 1)
        rows = np.concatenate([self._run(int(run[0]), len(run)) for run in runs])
        if rows.size != len(index) * math.prod(self.shape):
            raise OSError("the file ends too early")
        return rows.reshape(-1, *self.shape)

    def _run(self, first: int, count: int) -> NDArray[Any]:
        numbers, offset = count * math.prod(self.shape), self.start + first * self.row_bytes
        return np.fromfile(self.path, self.dtype, numbers, offset=offset)


@dataclass(frozen=True, slots=True)
class OfficialShard:
    """An official shard file of which nothing but the outline was read."""

    path: Path
    """The file."""
    tasks: TaskTable
    """Table of its ids."""
    episodes: int
    """Number of episodes."""
    length: int
    """Rows of an episode."""
    outline: Mapping[str, Tensor]
    """Each field as an empty tensor."""
    places: Mapping[str, int]
    """First byte of each field."""
    fingerprint: str
    """Short text that two files share only if their content is the same."""

    @property
    def half(self) -> bool:
        """Whether all its numbers are in half precision."""
        return all(self.outline[name].dtype is torch.float16 for name in FLOATS)

    @property
    def dtypes(self) -> dict[str, str]:
        """Number format of each field, by its name in torch."""
        return {k: str(v.dtype).removeprefix("torch.") for k, v in self.outline.items()}

    @property
    def episode_bytes(self) -> int:
        """Bytes of an episode's observations, actions and rewards."""
        return sum(
            tensor.element_size() * tensor[0].numel()
            for name, tensor in self.outline.items()
            if name in FLOATS
        )

    def rows(self) -> dict[str, Rows]:
        """Return its fields, to be read by episode."""
        return {
            name: Rows(self.path, self.places[name], tuple(t.shape[1:]), NUMPY[t.dtype])
            for name, t in self.outline.items()
            if name in FLOATS
        }

    def task_ids(self) -> NDArray[np.int64]:
        """Return the task of each episode.

        Raises:
            DataError: A task that is not in the table, or that changes in an episode.
        """
        try:
            mapped = MappedFile(self.path)
            tensor = mapped.tensor(self.outline["task"])  # not always of contiguous rows
        except TorchFileError as error:
            raise DataError(f"{self.path} {error}") from error
        ids = np.empty(self.episodes, dtype=np.int64)
        step = max(_SCAN // self.length, 1)
        for start in range(0, self.episodes, step):
            part = tensor[start : start + step].numpy()
            ids[start : start + step] = part[:, 0]
            if (part != part[:, :1]).any():
                raise DataError(f"{self.path}: the task changes within an episode")
            mapped.forget()
        if ids.min() < 0 or ids.max() >= len(self.tasks):
            raise DataError(
                f"{self.path} holds task ids up to {ids.max()}, its table of "
                f"{len(self.tasks)} tasks has none such"
            )
        return ids


def open_official(path: Path) -> OfficialShard:
    """Open an official shard file; only its outline is read.

    Raises:
        DataError: A file that is missing, truncated, unsafe, or no shard of MT30 or MT80; the
            message names it and the fault.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder; name the shard files in it")
    if not path.exists():
        raise DataError(f"no file {path}")
    try:
        if not is_zipped(path):
            raise TorchFileError("is no file by torch.save, or is cut off")
        outline = _fields(load_outline(path, _STAND_INS))
        tasks = _table(outline)
        _check_shapes(outline, tasks)
        mapped = MappedFile(path)
        places = {name: mapped.place(tensor) for name, tensor in outline.items()}
        sums = {name: mapped.crc(tensor) for name, tensor in outline.items()}
        fingerprint = _fingerprint(path, outline, sums, places["reward"])
    except TorchFileError as error:
        raise DataError(f"{path} {error}") from error
    episodes, length = outline["reward"].shape
    return OfficialShard(path, tasks, episodes, length, outline, places, fingerprint)


def _fields(content: object) -> dict[str, Tensor]:
    """Find the four fields, in a TensorDict of any version or a plain dictionary."""
    if isinstance(content, _TensorDict):
        content = getattr(content, "state", {}).get("_tensordict")
    if not isinstance(content, dict):
        raise TorchFileError("holds no TensorDict of episodes")
    found = {}
    for name in (*FLOATS, "task"):
        tensor = content.get(name)
        if not isinstance(tensor, Tensor) or tensor.dtype not in NUMPY:
            raise TorchFileError(
                f"is no official shard: it has no {name} of numbers, which every shard has"
            )
        found[name] = tensor
    _refuse_endings(content)
    return found


def _refuse_endings(content: dict[str, Any]) -> None:
    """Refuse episodes that may terminate, which those of MT30 and MT80 never do."""
    for name in ("terminated", "done"):
        if name in content:
            raise TorchFileError(
                f"has a field {name!r}, so its episodes may terminate, which those of official "
                "shards never do; import such episodes as a Minari dataset"
            )


def _table(outline: Mapping[str, Tensor]) -> TaskTable:
    """Return MT30 or MT80, by the widths."""
    widths = (outline["obs"].shape[-1:], outline["action"].shape[-1:])
    for table in (MT30, MT80):
        if widths == ((table.obs_dim,), (table.action_dim,)):
            return table
    found = " and ".join(str(width[0]) if width else "none" for width in widths)
    raise TorchFileError(
        f"is no shard of MT30 or MT80: those have {MT30.obs_dim} or {MT80.obs_dim} "
        f"observations and {MT30.action_dim} actions, it has {found}"
    )


def _check_shapes(outline: Mapping[str, Tensor], tasks: TaskTable) -> None:
    lead = tuple(outline["obs"].shape[:-1])
    expected = {
        "obs": (*lead, tasks.obs_dim),
        "action": (*lead, tasks.action_dim),
        "reward": lead,
        "task": lead,
    }
    for name, tensor in outline.items():
        if len(lead) != 2 or tuple(tensor.shape) != expected[name] or not tensor.numel():
            raise TorchFileError(
                f"is no official shard: {name} is {list(tensor.shape)}, not episodes by rows"
            )
        if tensor.dtype.is_floating_point != (name in FLOATS):
            raise TorchFileError(f"is no official shard: {name} holds {tensor.dtype}")
    if lead[1] < 2:
        raise TorchFileError("holds episodes without a step")
    for name in FLOATS:
        if not outline[name].is_contiguous():
            raise TorchFileError(f"holds {name} in another order; save it contiguous() again")


def _fingerprint(
    path: Path, outline: Mapping[str, Tensor], sums: Mapping[str, int], reward: int
) -> str:
    """Digest the file's own checksums, and some rewards for a writer that stored none."""
    facts = {name: [list(t.shape), str(t.dtype), sums[name]] for name, t in outline.items()}
    with path.open("rb") as file:
        file.seek(reward)
        sample = file.read(min(_SAMPLE, outline["reward"].nbytes))
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode() + sample)
    return digest.hexdigest()[:12]
