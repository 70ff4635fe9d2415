"""Commands that look at checkpoints or rewrite them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tdmpc_opt.errors import InputError


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
    """Checkpoint file of any known layout, an exported ONNX file, or a zoo name."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Rewrite a checkpoint as safetensors of this project, or as a model folder."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Checkpoint file of any known layout, model folder, zoo name or hub id."""
    output: Path
    """File to write if it ends in .safetensors, else a model folder: model.safetensors,
    config.json and README.md, the model card."""
    tasks: str | None = None
    """Names joined by commas of the tasks of a checkpoint that does not name them, each once
    and in the order of its task embedding; one that names its tasks keeps its names."""
    results: tuple[Path, ...] = ()
    """Results of `tdmpc-opt evaluate` on this checkpoint, for the model card."""
    license: str = "unknown"
    """Licence of the weights for the model card, by its id on the hub, such as mit."""

    def __post_init__(self) -> None:
        """Refuse a card's facts where there is no card."""
        if self.is_file and (self.results or self.license != "unknown"):
            raise InputError("results and license belong to the card of a model folder")

    @property
    def is_file(self) -> bool:
        """Whether the output is a file and not a folder."""
        return self.output.suffix == ".safetensors"
