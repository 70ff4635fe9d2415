"""Commands that show results and agents."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tdmpc_opt.configs.common import Device, Mode
from tdmpc_opt.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Make one self-contained HTML page out of result files."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Result files (JSON) of any command; those of unknown kinds are named and left out."""
    output: Path = Path("report.html")
    """Page to write; it opens from disk and needs no network."""
    title: str = "tdmpc-opt report"
    """Heading of the page."""
    figures: Path | None = None
    """Folder for every chart as PNG and SVG; none writes none."""


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Film an agent, alone or beside another; or draw a contact sheet of its tasks."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Checkpoint file, model folder or zoo name, a folder of experts, or the word random."""
    against: str | None = None
    """Another such agent, shown to the right in the same episodes."""
    tasks: str | None = None
    """`mt30`, or task names joined by commas, MODULE:ID for Gymnasium environments of your own;
    none means every task of the agent."""
    output: Path | None = None
    """Film to write: FILE.mp4 or FILE.gif, one task after the other."""
    sheet: Path | None = None
    """PNG to write with one picture of each task, half an episode after its start."""
    mode: Mode = "policy"
    """Act by the policy network alone, or by planning."""
    against_mode: Mode | None = None
    """How the other agent acts; none means as the first."""
    preset: str | None = None
    """Planner budget by name; none means the full published budget."""
    seconds: float | None = 10.0
    """Simulated seconds of each task; none films whole episodes."""
    seed: int = 0
    """Environment seed of the episodes."""
    device: Device = "cpu"
    """Where the networks run."""

    def __post_init__(self) -> None:
        """Refuse what gives no picture."""
        if self.output is None and self.sheet is None:
            raise InputError("name a film with --output or a contact sheet with --sheet")
        if self.output is not None and self.output.suffix.lower() not in (".mp4", ".gif"):
            raise InputError(f"a film's name ends in .mp4 or .gif; got {self.output.name}")
        if self.seconds is not None and self.seconds <= 0:
            raise InputError(f"seconds must be above 0, got {self.seconds}")
