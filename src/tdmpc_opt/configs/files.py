"""Commands that look at checkpoints or rewrite them."""

from dataclasses import dataclass
from pathlib import Path

from tdmpc_opt.configs.common import OfCheckpoint, OnTasks, ToOutput
from tdmpc_opt.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TasksConfig(OnTasks):
    """List the tasks with their ids and sizes."""


@dataclass(frozen=True, kw_only=True)
class ZooConfig:
    """List the bundled checkpoints."""


@dataclass(frozen=True, kw_only=True)
class InspectConfig(OfCheckpoint, OnTasks):
    """Show a file's sizes, tasks and parameters, and what the numbers of its tasks are."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(OfCheckpoint, OnTasks, ToOutput):
    """Rewrite a checkpoint as safetensors of this project, or as a model folder."""

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
