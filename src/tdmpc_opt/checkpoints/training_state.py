"""Everything an exact resume needs, in one file that replaces the one before it whole."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tdmpc_opt.atomic import replace_when_done
from tdmpc_opt.errors import CheckpointError

SCHEMA = 1


def save_training_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write weights, optimisers, random states and counters, atomically.

    Raises:
        CheckpointError: The file cannot be written.
    """
    try:
        with replace_when_done(path) as temp:
            torch.save({"schema": SCHEMA, **state}, temp)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise CheckpointError(f"cannot write {path}: {error}") from error


def load_training_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `save_training_state` wrote; no code is unpickled.

    Raises:
        CheckpointError: A damaged file, or one of a newer version.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}); delete it to start the run anew, or "
            "start from the run's model.safetensors with --start"
        ) from error
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        raise CheckpointError(f"{path} is no training state of this version of tdmpc-opt")
    return state
