"""The command that finds planner budgets."""

from dataclasses import dataclass
from pathlib import Path

from tdmpc_opt.configs.common import (
    COLLECTION_SEED,
    ByWorkers,
    EngineName,
    OfCheckpoint,
    OnTasks,
    ToOutput,
)
from tdmpc_opt.errors import InputError

SEARCH_SEED = 0
"""Seeds the search of budgets."""
TUNING_SEED = 900_000
"""First environment seed of tuning: far from those that evaluations begin with."""


@dataclass(frozen=True, kw_only=True)
class TuneConfig(OfCheckpoint, OnTasks, ToOutput, ByWorkers):
    """Search planner budgets for score against latency, and make presets of the best."""

    episodes: int = 3
    """Episodes per task and budget; all budgets meet the same ones."""
    trials: int = 40
    """Budgets to score in all, those that are done included."""
    max_samples: int = 512
    """Most action sequences per iteration; scoring a large budget takes long."""
    max_iterations: int = 6
    """Most refinements per plan."""
    score_full: bool = True
    """Score the preset `full` too. It takes longer than all cheap ones together."""
    realtime_ms: float = 10.0
    """The preset `realtime` is the best budget that plans within this time."""
    balanced_ms: float = 30.0
    """The preset `balanced` is the best budget that plans within this time."""
    engine: EngineName = "eager"
    """What computes the plans: torch, or with auto ONNX Runtime where it is installed, which
    first traces a graph for each budget (about 15 s)."""
    store: Path | None = None
    """Checkpoint to write, with the presets in it; it may be the one that was read."""

    def __post_init__(self) -> None:
        """Refuse searches that cannot be run."""
        if not 1 <= self.episodes <= COLLECTION_SEED - TUNING_SEED:
            raise InputError(f"episodes must be in 1..{COLLECTION_SEED - TUNING_SEED:,}")
        if self.trials < 1:
            raise InputError("trials must be at least 1")
        if self.max_samples < 32 or self.max_iterations < 1:
            raise InputError("max_samples must be at least 32 and max_iterations at least 1")
        if not 0 < self.realtime_ms <= self.balanced_ms:
            raise InputError("realtime_ms must be above 0 and at most balanced_ms")
