"""Everything an exact resume needs: the last few states of a run, each one whole file."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tdmpc_opt.checkpoints.torch_files import TorchFileError, load_whole
from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.files import replace_when_done

SCHEMA = 2


class StateFolder:
    """The newest training states of a run, named after the updates done.

    Args:
        run: Run folder; the states are in `states` below it.
        keep: How many are kept, at least 1.
    """

    def __init__(self, run: Path, keep: int = 1) -> None:
        self.path = run / "states"
        self._keep = keep

    def files(self) -> list[Path]:
        """Return the states there are, the newest first."""
        found = [path for path in self.path.glob("*.pt") if path.stem.isdecimal()]
        return sorted(found, key=lambda path: int(path.stem), reverse=True)

    def save(self, update: int, state: Mapping[str, Any]) -> None:
        """Write a state beside the older ones, then delete what is not kept.

        A state of a later update is deleted too: it was damaged, or this one would come after.

        Raises:
            CheckpointError: The file cannot be written; the older states are still whole.
        """
        _save(self.path / f"{update:09d}.pt", {"schema": SCHEMA, "update": update, **state})
        older = [path for path in self.files() if int(path.stem) <= update]
        for path in {*self.files()} - {*older[: self._keep]}:
            path.unlink(missing_ok=True)

    def newest(self, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """Read the newest state that is whole; no code is unpickled.

        Args:
            warn: Told of each damaged state that an older one stands in for.

        Returns:
            The state on the CPU, or None where there is none at all.

        Raises:
            CheckpointError: All states are damaged, or of another version.
        """
        files = self.files()
        for number, path in enumerate(files):
            try:
                return _load(path)
            except CheckpointError as error:
                if number + 1 == len(files):
                    raise
                warn(f"{error}; the run goes on from {files[number + 1].name} instead")
        return None


def _save(path: Path, state: Mapping[str, Any]) -> None:
    try:
        with replace_when_done(path) as temp:
            torch.save(state, temp)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise CheckpointError(f"cannot write {path}: {error}") from error


def _load(path: Path) -> dict[str, Any]:
    try:
        state = load_whole(path)
    except TorchFileError as error:
        raise CheckpointError(
            f"{path} {error}; delete it to start the run anew, or "
            "start another from the run's model.safetensors with --start"
        ) from error
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        raise CheckpointError(f"{path} is no training state of this version of tdmpc-opt")
    return state
