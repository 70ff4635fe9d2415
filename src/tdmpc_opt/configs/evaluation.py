"""Commands that score agents and compare scores."""

from dataclasses import dataclass

from tdmpc_opt.configs.common import (
    COLLECTION_SEED,
    Acting,
    ByWorkers,
    EngineName,
    Mode,
    OfCheckpoint,
    OfResults,
    OnDevice,
    OnTasks,
    Seeded,
    ToOutput,
    ToPlot,
)
from tdmpc_opt.errors import InputError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(OfCheckpoint, OnTasks, Acting, ToOutput, OnDevice, ByWorkers, Seeded):
    """Score a policy on real tasks and write a result file."""

    episodes: int = 10
    """Episodes per task."""
    replan_every: int | None = None
    """Actions executed of each plan before the next is made, up to the planner's horizon; none
    leaves it to the preset."""
    engine: EngineName = "auto"
    """What computes the planner: auto takes ONNX Runtime where it is installed and the agent is
    on the CPU, eager takes torch."""
    noise: bool = False
    """Keep exploration noise on, as the published scores did."""

    @property
    def chosen_mode(self) -> Mode:
        """How the agent acts: as requested, or as the options of the planner imply."""
        plans = self.preset or self.replan_every or self.engine != "auto"
        return self.mode or ("planner" if plans else "policy")

    def __post_init__(self) -> None:
        """Refuse seeds that data collection may have seen."""
        if self.episodes < 1 or self.seed < 0:
            raise InputError("`episodes` must be at least 1 and `seed` at least 0")
        if self.seed + self.episodes > COLLECTION_SEED:
            raise InputError(
                f"evaluation seeds stay below {COLLECTION_SEED:,}, where those of data "
                f"collection begin; got {self.seed} + {self.episodes} episodes"
            )


@dataclass(frozen=True, kw_only=True)
class CompareConfig(OfResults):
    """Show the paired difference B - A of two result files, A and B, with its interval."""

    def __post_init__(self) -> None:
        """Refuse another number of files."""
        if len(self.results) != 2:
            raise InputError(f"compare takes two result files, got {len(self.results)}")


@dataclass(frozen=True, kw_only=True)
class AblationConfig(OfResults, ToPlot):
    """Show what training runs of equal budget scored, grouped by what they differ in."""
