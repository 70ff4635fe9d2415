"""Bundled checkpoints of this project, each a `.safetensors` file beside this module."""

from pathlib import Path

from tdmpc_opt.errors import CheckpointError

_FOLDER = Path(__file__).parent


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
        raise CheckpointError(f"no bundled checkpoint is called {name!r}; bundled: {known}")
    return _FOLDER / f"{name}.safetensors"
