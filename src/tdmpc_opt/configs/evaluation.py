"""Commands that score agents and compare scores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tdmpc_opt.configs.common import (
    COLLECTION_SEED,
    Device,
    EngineName,
    Mode,
)
from tdmpc_opt.errors import InputError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score a policy on real tasks and write a result file."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Checkpoint file or zoo name, an exported ONNX file (which plans or not as it was made),
    a folder of experts, or the word random."""
    tasks: str | None = None
    """`mt30`, or task names joined by commas, MODULE:ID for Gymnasium environments of your own;
    none means every task of the policy."""
    episodes: int = 10
    """Episodes per task."""
    seed: int = 0
    """Episode k of every task starts from environment seed `seed + k`."""
    mode: Mode | None = None
    """Act by planning, or by the policy network alone; none plans where a preset or another
    option of the planner is given, and else acts by the policy, in minutes and not hours."""
    preset: str | None = None
    """`full`, `balanced`, `realtime`, `policy`, or one that the checkpoint holds; none means
    the full published budget."""
    replan_every: int | None = None
    """Actions executed of each plan before the next is made, up to the planner's horizon; none
    leaves it to the preset."""
    engine: EngineName = "auto"
    """What computes the planner: auto takes ONNX Runtime where it is installed and the agent is
    on the CPU, eager takes torch."""
    noise: bool = False
    """Keep exploration noise on, as the published scores did."""
    output: Path
    """Result file (JSON); an interrupted run goes on from it."""
    device: Device = "auto"
    """Where the networks run."""
    workers: int = 0
    """Processes that share the tasks; 0 takes one per CPU core that is
    given and not busy."""
    ray: str | None = None
    """Address of a Ray cluster that does the work, HOST:PORT, `auto` for the one of this
    machine, or `local` for one of this command's own; none starts plain processes."""

    @property
    def chosen_mode(self) -> Mode:
        """How the agent acts: as asked, or as the options of the planner imply."""
        if self.mode is not None:
            return self.mode
        plans = self.preset or self.replan_every or self.engine != "auto"
        return "planner" if plans else "policy"

    def __post_init__(self) -> None:
        """Refuse seeds that data collection may have seen."""
        if self.episodes < 1 or self.seed < 0:
            raise InputError("episodes must be at least 1 and seed at least 0")
        if self.seed + self.episodes > COLLECTION_SEED:
            raise InputError(
                f"evaluation seeds stay below {COLLECTION_SEED:,}, where those of data "
                f"collection begin; got {self.seed} + {self.episodes} episodes"
            )


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Show the paired difference of two result files with its interval."""

    first: Annotated[Path, tyro.conf.Positional]
    """Result file A."""
    second: Annotated[Path, tyro.conf.Positional]
    """Result file B; the difference shown is B - A."""


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """Show what training runs of equal budget scored, grouped by what they differ in."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Result files of `tdmpc-opt evaluate`, one per run; runs that differ in their seed alone
    become one row."""
    plot: Path | None = None
    """PNG of the scores with their intervals; none draws none."""
