"""Commands that make experts and data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tdmpc_opt.configs.common import (
    Acting,
    ByWorkers,
    Labelled,
    OfDataset,
    OnDevice,
    OnTasks,
    Seeded,
    ToOutput,
    ToPlot,
)
from tdmpc_opt.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig(OnTasks, ToOutput, ByWorkers, Seeded):
    """Train one single-task policy per task, by SAC or by imitating plans in the simulator.

    The defaults learned most per hour of CPU of those tried (docs/mt30-student.md).
    """

    method: Literal["sac", "plan"] = "sac"
    """`sac` learns from rewards; `plan` imitates planning with the simulator's own dynamics."""
    steps: int = 1_000_000
    """Agent steps per task, for `plan` the states that the planner labels."""
    hidden: int = 128
    """Width of the two hidden layers."""
    envs: int = 64
    """Episodes driven in step with each other; more of them cost less time per agent step."""
    update_ratio: float = 0.25
    """Gradient updates of SAC per agent step."""
    warm_up: str | None = None
    """Policy that drives the first episodes instead of random actions: a checkpoint or zoo
    name, a folder of experts, or `plan`. Finds rewards that random actions do not."""
    warm_up_task: str | None = None
    """Task of the same body that this policy knows; none means the trained task itself."""
    warm_up_episodes: int = 64
    """Episodes that it drives, a multiple of `envs`."""
    episodes: int = 10
    """Episodes that measure the finished policy, from starts 500,000 on, which no reported
    score uses."""
    save_every: int = 100_000
    """Agent steps between saved states; a killed run loses at most these."""

    def __post_init__(self) -> None:
        """Refuse counts that cannot be run."""
        if min(self.steps, self.hidden, self.episodes, self.save_every, self.envs) < 1:
            raise InputError("steps, hidden, episodes, save_every and envs must be at least 1")
        updates = self.envs * self.update_ratio
        if updates < 1 or updates != round(updates):
            raise InputError(
                f"envs * update_ratio must be a whole number of updates, got {updates:g}"
            )
        episodes = self.warm_up_episodes
        if self.warm_up is not None and (episodes < self.envs or episodes % self.envs):
            raise InputError(f"warm_up_episodes must be a multiple of envs ({self.envs})")


@dataclass(frozen=True, kw_only=True)
class CollectConfig(OnTasks, Acting, ToOutput, OnDevice, ByWorkers, Labelled, Seeded):
    """Roll out a policy into a dataset on disk, with labels to imitate."""

    policy: str
    """Checkpoint file or zoo name, a folder of experts, `random`, or `plan`: planning in the
    simulator."""
    episodes: int = 20
    """Episodes per task."""

    def __post_init__(self) -> None:
        """Refuse counts and noise that cannot be run."""
        if self.episodes < 1 or self.seed < 0 or self.noise < 0:
            raise InputError("episodes must be at least 1; seed and noise at least 0")
        if self.preset is not None and self.mode == "policy":
            raise InputError("a preset is what a plan may spend; it needs --mode planner")


@dataclass(frozen=True, kw_only=True)
class DataInfoConfig(OfDataset, ToPlot):
    """Show what a dataset holds, and draw its returns."""

    card: Path | None = None
    """Markdown file that tells sources, counts and returns; none writes none."""
