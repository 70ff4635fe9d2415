"""Commands that compress agents and measure what it costs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tdmpc_opt.configs.common import (
    ByWorkers,
    OfCheckpoint,
    OfPart,
    OnTasks,
    ToOutput,
    ToPlot,
    WithObservations,
)
from tdmpc_opt.errors import InputError

Format = Literal["fp32", "fp16", "bf16", "int8", "int4", "mixed"]


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig(OfCheckpoint, OnTasks, OfPart, ToOutput, WithObservations):
    """Write a smaller file of the same agent, without target Qs."""

    format: Format = "fp16"
    """Number format of the stored weights. `int8` and `int4` keep what is small or sensitive in
    more bits; `mixed` chooses each layer's by measurement."""
    budget_bytes: int | None = None
    """With mixed: length of the file that must not be exceeded."""
    max_action_error: float | None = None
    """With mixed: root mean square change of the policy's actions that is allowed, in action
    units (their range is 2); the smallest such file is written."""
    max_value_error: float = 0.02
    """With max_action_error: 1 less the correlation of planned values that is allowed."""
    distill_updates: int = 0
    """With a dataset: updates that train the rounded weights to act and plan as the original
    does; kept where they bring the file closer to it. 300 to 1000 are worth it for int4."""

    def __post_init__(self) -> None:
        """Refuse options that the format has no use for, and mixed without its own."""
        limits = [name for name in ("budget_bytes", "max_action_error") if self._given(name)]
        if self.format == "mixed" and (self.data is None or len(limits) != 1):
            raise InputError(
                "format mixed needs --data, a dataset to measure on, and either --budget-bytes "
                "or --max-action-error"
            )
        if self.format != "mixed" and limits:
            raise InputError(
                f"--{limits[0].replace('_', '-')} is for format mixed, not {self.format}"
            )
        if self.data is not None and self.format in ("fp32", "fp16", "bf16"):
            raise InputError(f"format {self.format} needs no data; leave out --data")
        if any(getattr(self, name) <= 0 for name in limits) or self.max_value_error <= 0:
            raise InputError("budgets and errors that are allowed must be above 0")
        if self.distill_updates < 0 or (self.distill_updates and self.data is None):
            raise InputError("--distill-updates must be at least 0, and learn on a --data")

    def _given(self, name: str) -> bool:
        return getattr(self, name) is not None


@dataclass(frozen=True, kw_only=True)
class SensitivityConfig(OfCheckpoint, ToOutput, ToPlot, ByWorkers):
    """Measure what each layer's rounding alone does to actions and planned values."""

    data: Path
    """Dataset of real observations, from `tdmpc-opt collect`."""
    policy_only: bool = False
    """Measure encoder and policy alone."""
    episodes: int = 0
    """Episodes per task that score the policy for each layer and format; 0 scores none."""

    def __post_init__(self) -> None:
        """Refuse counts that cannot be run."""
        if self.episodes < 0 or self.workers < 0:
            raise InputError("episodes and workers must be at least 0")
