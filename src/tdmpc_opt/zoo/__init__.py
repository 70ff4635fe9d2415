"""Bundled checkpoints of this project, each a `.safetensors` file beside this module."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from tdmpc_opt.errors import CheckpointError

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class ZooEntry:
    """Facts of a bundled checkpoint."""

    name: str
    parameters: int
    """Weights, target Qs not counted."""
    size_bytes: int
    tasks: tuple[str, ...]


def names() -> tuple[str, ...]:
    """Return the names of the bundled checkpoints, sorted."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.safetensors")))


def path(name: str) -> Path:
    """Return the file of the bundled checkpoint called `name`.

    Raises:
        CheckpointError: No such checkpoint; the message lists those there are.
    """
    if name not in names():
        known = ", ".join(names()) or "none"
        raise CheckpointError(
            f"no file and no bundled checkpoint is called {name!r}; bundled: {known}"
        )
    return _FOLDER / f"{name}.safetensors"


def entries() -> list[ZooEntry]:
    """Return facts of each bundled checkpoint, read from the files' headers without torch."""
    found = []
    for name in names():
        file = path(name)
        with safe_open(file, framework="numpy") as tensors:
            metadata = tensors.metadata()
            sizes = [
                math.prod(tensors.get_slice(key).get_shape())
                for key in tensors.keys()  # noqa: SIM118  # no mapping, for all its keys()
                if not key.startswith("target_q_ensemble.")
            ]
        tasks = tuple(task["name"] for task in json.loads(metadata["tasks"]))
        found.append(ZooEntry(name, sum(sizes), file.stat().st_size, tasks))
    return found
