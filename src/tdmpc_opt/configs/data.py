"""Commands that make, move and check the episodes that agents learn from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tdmpc_opt.configs.common import (
    POSITIONAL,
    Acting,
    ByWorkers,
    Labelled,
    Numbers,
    OnDevice,
    OnTasks,
    Seeded,
    ToOutput,
    ToPlot,
)
from tdmpc_opt.errors import InputError


@dataclass(frozen=True, kw_only=True)
class OfDataset:
    """The dataset that a command reads."""

    data: Annotated[Path, POSITIONAL]
    """Dataset folder."""


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig(OnTasks, ToOutput, ByWorkers, Seeded):
    """Train one single-task policy per task, by SAC or by imitating plans in the simulator.

    The output is a folder of experts. The same command continues an interrupted one.
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
    update_ratio: float = 1.0
    """Gradient updates of SAC per agent step."""
    warm_up: str | None = None
    """Policy that drives the first episodes: a checkpoint or zoo name, a folder of experts, or
    `plan`. It finds rewards that random actions, which drive without it, do not."""
    warm_up_task: str | None = None
    """Task of the same body whose policy acts; without it the trained task itself."""
    warm_up_episodes: int = 64
    """Episodes that it drives, a multiple of `envs`."""
    episodes: int = 10
    """Episodes that measure the finished policy, from starts 500,000 on, which no reported
    score uses."""
    seed: int = 0
    """Seed of the training, and offset of its environment seeds, which start at 1,000,000."""
    save_every: int = 100_000
    """Agent steps between saved states; a killed run loses at most these."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.steps, self.hidden, self.episodes, self.save_every, self.envs) < 1:
            raise InputError(
                "`steps`, `hidden`, `episodes`, `save_every` and `envs` must be at least 1"
            )
        updates = self.envs * self.update_ratio
        if self.method == "sac" and (updates < 1 or updates != round(updates)):
            raise InputError(
                f"`envs` * `update_ratio` must be a whole number of updates, got {updates:g}"
            )
        episodes = self.warm_up_episodes
        if self.warm_up is not None and (episodes < self.envs or episodes % self.envs):
            raise InputError(f"`warm_up_episodes` must be a multiple of `envs` ({self.envs})")


@dataclass(frozen=True, kw_only=True)
class CollectConfig(OnTasks, Acting, ToOutput, OnDevice, ByWorkers, Labelled, Seeded):
    """Roll out a policy into a dataset on disk, with labels to imitate.

    The output is a dataset folder, to which the episodes are added. The same command continues
    an interrupted one.
    """

    policy: str
    """Checkpoint file or zoo name, a folder of experts, an exported ONNX file, `random`,
    `plan` (planning in the simulator), or MODULE:FACTORY for a policy of your own."""
    episodes: int = 20
    """Episodes per task."""
    seed: int = 0
    """Offset of the environment seeds, which start at 1,000,000."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episodes < 1:
            raise InputError("`episodes` must be at least 1")
        if self.preset is not None and self.mode == "policy":
            raise InputError("`preset` is the budget of a plan and needs --mode planner")


@dataclass(frozen=True, kw_only=True)
class DataInfoConfig(OfDataset, ToPlot):
    """Show what a dataset holds, and draw its returns."""

    plot: Path | None = None
    """PNG of the returns; without it returns.png in the dataset's folder."""
    card: Path | None = None
    """Markdown file to write, with sources, counts and returns; without it none."""


@dataclass(frozen=True, kw_only=True)
class DataImportConfig(ToOutput):
    """Turn official MT30 or MT80 shard files, Minari or LeRobot data into a dataset on disk.

    The output is a dataset folder. The same command continues an interrupted one.
    """

    sources: Annotated[tuple[Path, ...], POSITIONAL]
    """Official shard files, or folders of Minari or LeRobot datasets; their content decides."""
    tasks: str | None = None
    """Of shard files, task names joined by commas, to import no others; without it all. Of
    other datasets, the one task that their episodes are of, MODULE:ID for an environment of
    your own; without it the tasks that they name."""
    on_bad: Literal["refuse", "skip"] = "refuse"
    """What to do about a source that is truncated or foreign, or an episode with NaN: stop, or
    name it and leave it out."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("name at least one shard file or folder")


@dataclass(frozen=True, kw_only=True)
class DataExportConfig(OfDataset, ToOutput, Numbers):
    """Write a dataset as official shard files, Minari or LeRobot datasets.

    The output is a folder of these.
    """

    format: Literal["official", "minari", "lerobot"] = "official"
    """`official`: pickled TensorDicts like MT30 and MT80. `minari`, `lerobot`: a dataset for
    each task."""
    fps: int | None = None
    """Steps per second, for `lerobot`; without it those of MT30's tasks, or of the LeRobot
    dataset that the episodes came from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fps is not None and (self.format != "lerobot" or self.fps < 1):
            raise InputError("`fps` is at least 1, and needs --format lerobot")


@dataclass(frozen=True, kw_only=True)
class DataVerifyConfig(OfDataset):
    """Compare every file of a dataset with its stored checksum."""
