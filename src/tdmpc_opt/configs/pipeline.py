"""The command from a teacher to a student, and its demonstration."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tdmpc_opt.configs.common import (
    POSITIONAL,
    ByWorkers,
    MatmulPrecision,
    OnDevice,
    OnTasks,
    Seeded,
    ToOutput,
)
from tdmpc_opt.errors import InputError
from tdmpc_opt.schema import Size


@dataclass(frozen=True, kw_only=True)
class DistillConfig(OnTasks, ToOutput, OnDevice, ByWorkers, Seeded):
    """Make a small student of a teacher: collect, train, correct, quantise, export and score.

    The output is a model folder. The same command continues an interrupted one.
    """

    teachers: Annotated[tuple[str, ...], POSITIONAL]
    """Checkpoint files of any known layout, zoo names, folders of experts, exported ONNX files,
    or MODULE:FACTORY for a policy of your own: a function without arguments that returns an
    object with act(obs [B, obs]) -> [B, action]. Each task goes to the first that has it."""
    size: Size = "1"
    """Size of the student in millions of parameters."""
    hours: float | None = None
    """Time to spend on this machine, from which the updates follow by measured speeds; without
    it `updates` decides."""
    updates: int | None = None
    """Gradient updates in all, from which episodes and rounds follow; 45,000 without it
    and without `hours`."""
    seed: int = 0
    """Seed of the training, and offset of the environment seeds of the data, which start at
    1,000,000."""
    matmul: MatmulPrecision = "highest"
    """Precision of float32 matrix products in training, as torch names it: `medium` multiplies
    in bf16 and sums in float32 on processors with units for that."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.teachers:
            raise InputError("name a teacher: a checkpoint, zoo name, folder or MODULE:FACTORY")
        if self.hours is not None and self.updates is not None:
            raise InputError("--hours and --updates both set the budget; leave one out")
        if (self.updates is not None and self.updates < 1) or not (
            self.hours is None or self.hours > 0
        ):
            raise InputError("`updates` must be at least 1, and `hours` above 0")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Distil a teacher on this machine and compare the student with ones without a teacher.

    The same command continues an interrupted one.
    """

    output: Path = Path("demo-output")
    """Folder for data, runs, result files and plots."""
