"""The command that finds planner budgets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tdmpc_opt.configs.common import COLLECTION_SEED, EngineName
from tdmpc_opt.errors import InputError

TUNING_SEED = 900_000
"""First environment seed of tuning: far from those that evaluations begin with."""


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Search planner budgets for score against latency, and make presets of the best."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Checkpoint file or zoo name."""
    tasks: str | None = None
    """`mt30`, or task names joined by commas; none means every task of the agent."""
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
    seed: int = 0
    """Seeds the search. Episodes start from environment seed 900,000 on, whatever it is."""
    workers: int = 0
    """Processes that share the tasks; 0 takes one per CPU core that is
    given and not busy."""
    ray: str | None = None
    """Address of a Ray cluster that does the work, HOST:PORT, `auto` for the one of this
    machine, or `local` for one of this command's own; none starts plain processes."""
    output: Path
    """Folder of the search; the same command goes on with it."""
    store: Path | None = None
    """Checkpoint to write, with the presets in it; it may be the one that was read."""

    def __post_init__(self) -> None:
        """Refuse searches that cannot be run."""
        if not 1 <= self.episodes <= COLLECTION_SEED - TUNING_SEED:
            raise InputError(f"episodes must be in 1..{COLLECTION_SEED - TUNING_SEED:,}")
        if self.trials < 1 or self.seed < 0:
            raise InputError("trials must be at least 1 and seed at least 0")
        if self.max_samples < 32 or self.max_iterations < 1:
            raise InputError("max_samples must be at least 32 and max_iterations at least 1")
        if not 0 < self.realtime_ms <= self.balanced_ms:
            raise InputError("realtime_ms must be above 0 and at most balanced_ms")
