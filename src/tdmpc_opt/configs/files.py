"""Commands that look at checkpoints or rewrite them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class TasksConfig:
    """List the tasks with their ids and sizes."""


@dataclass(frozen=True, kw_only=True)
class ZooConfig:
    """List the bundled checkpoints."""


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Show a checkpoint's sizes, tasks, dtypes and parameters per part."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Checkpoint file of any known layout, or a zoo name."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Rewrite a public checkpoint as safetensors of this project."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Checkpoint file of any known layout, or a zoo name."""
    output: Path
    """File to write."""
