"""State of an unfinished expert training in one file, read back without pickle."""

import json
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tdmpc_opt.data.shards import DAMAGED_ARRAY
from tdmpc_opt.errors import RunError
from tdmpc_opt.files import parse_json, replace_when_done

_BUFFER_FIELDS = (
    *("observations", "next_observations", "actions"),
    *("rewards", "dones", "timeouts"),
)
_POLICY_FIELDS = ("actor_state", "qf_state", "key", "noise_key")
_MODEL_FIELDS = ("ent_coef_state", "key")


@dataclass(kw_only=True)
class Progress:
    """How far the training of one expert has come."""

    identity: dict[str, Any]
    """The parts of the config that results depend on; another identity is another run."""
    step: int = 0
    """Agent steps done."""
    seconds: float = 0.0
    """Time spent, that of earlier runs included."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """Agent step and return of each training episode."""


@contextmanager
def whole_state(path: Path) -> Iterator[None]:
    """Report in one line that a state file, which is read in the block, is damaged.

    Raises:
        RunError: It is.
    """
    try:
        yield
    except (*DAMAGED_ARRAY, AttributeError, RuntimeError, zipfile.BadZipFile) as error:
        raise RunError(
            f"{path} is damaged ({error!r}); delete it to start this task over"
        ) from error


def save_state(path: Path, model: Any, progress: Progress) -> None:
    """Write networks, optimisers, random keys and the filled part of the replay buffer.

    Raises:
        OSError: A folder that cannot be written, or a full disk.
    """
    from flax import serialization

    buffer = model.replay_buffer
    arrays = {name: getattr(buffer, name)[: buffer.size()] for name in _BUFFER_FIELDS}
    arrays["position"] = np.array(buffer.pos)
    arrays["updates"] = np.array(model._n_updates)
    networks = serialization.to_bytes(_networks(model))
    arrays["networks"] = np.frombuffer(networks, dtype=np.uint8)
    write_arrays(path, arrays, progress)


def write_arrays(path: Path, arrays: dict[str, Any], progress: Progress) -> None:
    """Write one state file, so that all its parts are of the same moment.

    Raises:
        OSError: A folder that cannot be written, or a full disk.
    """
    text = json.dumps(asdict(progress)).encode()
    with replace_when_done(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays, progress=np.frombuffer(text, np.uint8))


def read_progress(path: Path) -> Progress:
    """Read how far a saved training has come.

    Raises:
        RunError: The file is damaged.
    """
    with whole_state(path):
        with path.open("rb") as file, _opened(file) as archive:
            fields = parse_json(archive["progress"].tobytes())
        # JSON has no tuples.
        fields["curve"] = [(int(step), float(value)) for step, value in fields["curve"]]
        return Progress(**fields)


def restore_model(path: Path, model: Any, progress: Progress) -> None:
    """Put a saved training back into a model built from the same config.

    Raises:
        RunError: The file is damaged.
    """
    from flax import serialization

    with whole_state(path):
        arrays = read_arrays(path)
        saved = serialization.from_bytes(_networks(model), arrays["networks"].tobytes())
        buffer = model.replay_buffer
        for name in _BUFFER_FIELDS:
            getattr(buffer, name)[: len(arrays[name])] = arrays[name]
        buffer.pos = int(arrays["position"])
        buffer.full = len(arrays["rewards"]) == buffer.buffer_size
        model._n_updates = int(arrays["updates"])
    for name, value in saved["policy"].items():
        setattr(model.policy, name, value)
    for name, value in saved["model"].items():
        setattr(model, name, value)
    model.num_timesteps = progress.step


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of a state file, in `whole_state`."""
    with path.open("rb") as file, _opened(file) as archive:
        return dict(archive)


def _opened(file: IO[bytes]) -> Any:
    """Open an archive of arrays none of which claims more bytes than it has."""
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError("is packed")  # numpy's is not, and one may unpack to terabytes
            with archive.open(entry) as member:
                if np.lib.format.read_magic(member) != (1, 0):
                    raise ValueError("is of a newer numpy")
                shape, _, dtype = np.lib.format.read_array_header_1_0(member)
            if math.prod(shape) * dtype.itemsize > entry.file_size:
                raise ValueError(f"{entry.filename} is cut off")
    file.seek(0)
    return np.load(file, allow_pickle=False)


def _networks(model: Any) -> dict[str, dict[str, Any]]:
    policy = model.policy
    return {
        "policy": {name: getattr(policy, name) for name in _POLICY_FIELDS},
        "model": {name: getattr(model, name) for name in _MODEL_FIELDS},
    }
