"""Commands that look at checkpoints or rewrite them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class TasksConfig:
    """List the tasks with their ids and sizes."""

    tasks: str = "mt30"
    """`mt30`, or names joined by commas; MODULE:ID is a Gymnasium environment of your own."""


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


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """Write a smaller file of the same agent, without target Qs."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Checkpoint file of any known layout, or a zoo name."""
    output: Path
    """File to write."""
    format: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Number format of the stored weights."""
    policy_only: bool = False
    """Keep encoder and policy alone: a file that acts but cannot plan."""
    task: str | None = None
    """Keep one task alone, with its embedding folded into the biases and no padding."""
