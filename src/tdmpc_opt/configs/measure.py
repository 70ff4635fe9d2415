"""Commands that measure agents and show what was measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tdmpc_opt.configs.common import (
    COLLECTION_SEED,
    POSITIONAL,
    REPORTED_SEED,
    Acting,
    AtPort,
    ByWorkers,
    Device,
    EngineName,
    Mode,
    Numbers,
    OfCheckpoint,
    OnDevice,
    OnTasks,
    ToOutput,
    ToPlot,
)
from tdmpc_opt.errors import InputError


@dataclass(frozen=True, kw_only=True)
class OfResults:
    """The result files that a command reads."""

    results: Annotated[tuple[Path, ...], POSITIONAL]
    """Result files (JSON)."""


@dataclass(frozen=True, kw_only=True)
class OfPolicy:
    """The policy that a command drives."""

    checkpoint: Annotated[str, POSITIONAL]
    """Checkpoint file of any known layout, model folder, zoo name or hub id; an exported ONNX
    file, a folder of experts, MODULE:FACTORY for a policy of your own, or the word random."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(OfPolicy, OnTasks, Acting, ToOutput, OnDevice, ByWorkers):
    """Score a policy on real tasks and write a result file.

    The output is the result file (JSON). The same command continues an interrupted one.
    """

    episodes: int = 10
    """Episodes per task."""
    replan_every: int | None = None
    """Actions executed of each plan before the next is made, up to the planner's horizon;
    without it as the preset states."""
    engine: EngineName = "auto"
    """What computes the planner: auto takes ONNX Runtime where it is installed and the agent is
    on the CPU, eager takes torch."""
    noise: bool = False
    """Keep exploration noise on, as the published scores did."""
    seed: int = REPORTED_SEED
    """Environment seed of the first episode of every task; episode k has `seed` + k. The
    default is that of reported scores: choose between agents by other starts, such as those
    from 500,000 on."""

    @property
    def chosen_mode(self) -> Mode:
        """How the agent acts: as requested, or as the options of the planner imply."""
        plans = self.preset or self.replan_every or self.engine != "auto"
        return self.mode or ("planner" if plans else "policy")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episodes < 1:
            raise InputError("`episodes` must be at least 1")
        if self.seed + self.episodes > COLLECTION_SEED:
            raise InputError(
                f"`seed` + `episodes` stays below {COLLECTION_SEED:,}, where the seeds of data "
                f"collection begin; got {self.seed} + {self.episodes} episodes"
            )


@dataclass(frozen=True, kw_only=True)
class CompareConfig(OfResults):
    """Show the paired difference B - A of two result files, A and B, with its interval."""

    random: Path | None = None
    """Result of random actions in the same tasks: also states B's return as a share of A's, on
    the scale on which random actions have 0 and A has 100. Without it no share is stated."""

    def __post_init__(self) -> None:
        if len(self.results) != 2:
            raise InputError(f"compare takes two result files, got {len(self.results)}")


@dataclass(frozen=True, kw_only=True)
class AblationConfig(OfResults, ToPlot):
    """Show what training runs of equal budget scored, grouped by what they differ in."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig(Numbers):
    """Time policies against each other, in turns, each in a process of its own."""

    sources: Annotated[tuple[str, ...], POSITIONAL]
    """Checkpoint files, model folders, zoo names, and exported files. A file of the policy
    alone runs as on a device, without torch."""
    preset: tuple[str, ...] = ("full",)
    """Planner budgets by name: published, full, balanced, realtime, policy, or others that a
    checkpoint contains."""
    engine: tuple[EngineName, ...] = ("auto",)
    """What computes the plans of checkpoints: auto takes ONNX Runtime where it is installed,
    eager takes torch."""
    task: str | None = None
    """Task to act in; without it the first one of the first file."""
    batch: tuple[int, ...] = (1, 8, 64)
    """Observations that are acted on at once."""
    threads: int = 1
    """Threads of each process."""
    rounds: int = 10
    """Turns of each policy at each batch size."""
    seconds: float = 0.5
    """Length of a turn; it holds one action at least."""
    device: Device = "cpu"
    """Where the networks of checkpoints run."""
    output: Path | None = None
    """Result file (JSON) to write; without it none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.sources and self.preset and self.engine and self.batch):
            raise InputError(
                "name at least one file, and one value of `preset`, `engine` and `batch`"
            )
        if min(self.batch) < 1 or self.threads < 1 or self.rounds < 1:
            raise InputError("`batch`, `threads` and `rounds` must be at least 1")
        if self.seconds == 0:
            raise InputError("`seconds` must be above 0, got 0")


SEARCH_SEED = 0
"""Seeds the search of budgets."""
TUNING_SEED = 900_000
"""First environment seed of tuning: far from those that evaluations begin with. Evaluations
while training use the same (`PERIODIC_SEED` in `training/loop.py`), which is harmless: their
scores are only shown, and neither weights nor planner budgets depend on them."""


@dataclass(frozen=True, kw_only=True)
class TuneConfig(OfCheckpoint, OnTasks, ToOutput, ByWorkers):
    """Search planner budgets for score against latency, and make presets of the best.

    The output is a folder of results. The same command continues an interrupted one.
    """

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
    """Checkpoint to write, with the presets in it; it may be the one that was read. Without it
    none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.episodes <= COLLECTION_SEED - TUNING_SEED:
            raise InputError(f"`episodes` must be in 1..{COLLECTION_SEED - TUNING_SEED:,}")
        if self.trials < 1:
            raise InputError("`trials` must be at least 1")
        if self.max_samples < 32 or self.max_iterations < 1:
            raise InputError(
                "`max_samples` must be at least 32 and `max_iterations` at least 1"
            )
        if not 0 < self.realtime_ms <= self.balanced_ms:
            raise InputError("`realtime_ms` must be above 0 and at most `balanced_ms`")


@dataclass(frozen=True, kw_only=True)
class ReportConfig(OfResults):
    """Make one self-contained HTML page out of result files."""

    output: Path = Path("report.html")
    """Page to write; it opens from disk and needs no network."""
    figures: Path | None = None
    """Folder for every chart as PNG and SVG; without it none."""


@dataclass(frozen=True, kw_only=True)
class VideoConfig(OfPolicy, OnTasks, Acting, Numbers):
    """Film an agent, alone or beside another; or draw a contact sheet of its tasks."""

    against_mode: Mode | None = None
    """How the other agent acts; without it as the first."""
    against: str | None = None
    """Another such agent, shown to the right in the same episodes; without it none."""
    output: Path | None = None
    """Film to write: FILE.mp4 or FILE.gif, one task after the other; without it none."""
    sheet: Path | None = None
    """PNG to write with one picture of each task, half an episode after its start; without it
    none."""
    seconds: float = 10.0
    """Most simulated seconds of each task; shorter episodes are filmed whole."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is None and self.sheet is None:
            raise InputError("name a film with --output or a contact sheet with --sheet")
        if self.output is not None and self.output.suffix.lower() not in (".mp4", ".gif"):
            raise InputError(f"`output`, a film, ends in .mp4 or .gif; got {self.output.name}")
        if self.seconds == 0:
            raise InputError("`seconds` must be above 0, got 0")


@dataclass(frozen=True, kw_only=True)
class PlayConfig(AtPort):
    """Serve a page on this machine where agents act live and can be pushed around.

    Without `tasks` the page simulates MT30's tasks; with them, Python simulates these and the
    page shows their pictures.
    """

    checkpoints: Annotated[tuple[str, ...], POSITIONAL] = ()
    """Checkpoint files of any known layout, zoo names, or files of `tdmpc-opt export`, to offer
    beside the bundled agent; with `tasks` whatever acts in `video`, beside random actions."""
    tasks: str | None = None
    """Tasks to simulate in Python, joined by commas: MODULE:ID for Gymnasium environments of
    your own, or names of MT30's. Every agent has to know all of them. Without it the page
    simulates MT30's."""
    port: int = 8707
    """Port of 127.0.0.1; 0 takes any free one."""
