"""The knobs of on-policy correction, which needs neither torch nor a simulator to be read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tdmpc_opt.configs.common import COST, LATER, ByWorkers, Labelled
from tdmpc_opt.configs.training import LossWeights, TrainConfig
from tdmpc_opt.errors import InputError


@dataclass(frozen=True, kw_only=True)
class DaggerConfig(TrainConfig, ByWorkers, Labelled):
    """Correct a student where it goes itself, round by round (DAgger, arXiv:1011.0686).

    Each round the student drives, the teacher labels the states on the way, and the training
    goes on with these episodes beside the data.
    """

    teacher: str = field()
    start: str = field()
    """Checkpoint of the student to correct."""
    rounds: Annotated[int, COST]
    """Rounds in all, those before a resume included."""
    updates: int
    """Gradient updates of each round."""
    weights: LossWeights = field(default_factory=lambda: LossWeights(behaviour=20.0))
    """Weights of the objective; that of behaviour decides how much the labels count."""
    episodes: int = 4
    """Episodes per task and round."""
    planner_episodes: Annotated[int, LATER] = 0
    """Episodes per task and round that the student drives by planning: they teach its model
    what plans get wrong, and its policy the way back."""
    on_policy: Annotated[Path, COST] = field(init=False)
    """The dataset that grows: `data` in the output folder."""

    def __post_init__(self) -> None:
        """Refuse counts that cannot be run."""
        object.__setattr__(self, "on_policy", self.output / "data")
        super().__post_init__()
        if min(self.rounds, self.episodes) < 1 or min(self.noise, self.planner_episodes) < 0:
            raise InputError(
                "rounds and episodes must be at least 1; planner_episodes and noise at least 0"
            )
        if self.lr_zero_at is not None and self.lr_zero_at < self.rounds * self.updates:
            raise InputError(
                f"{self.rounds} rounds make {self.rounds * self.updates} updates, but the "
                f"learning rate is zero from update {self.lr_zero_at} on"
            )
