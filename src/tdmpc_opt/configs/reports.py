"""Commands that show results and agents."""

from dataclasses import dataclass
from pathlib import Path

from tdmpc_opt.configs.common import Acting, Mode, OfCheckpoint, OfResults, OnTasks
from tdmpc_opt.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ReportConfig(OfResults):
    """Make one self-contained HTML page out of result files."""

    output: Path = Path("report.html")
    """Page to write; it opens from disk and needs no network."""
    figures: Path | None = None
    """Folder for every chart as PNG and SVG; none writes none."""


@dataclass(frozen=True, kw_only=True)
class VideoConfig(OfCheckpoint, OnTasks, Acting):
    """Film an agent, alone or beside another; or draw a contact sheet of its tasks."""

    against_mode: Mode | None = None
    """How the other agent acts; none means as the first."""
    against: str | None = None
    """Another such agent, shown to the right in the same episodes."""
    output: Path | None = None
    """Film to write: FILE.mp4 or FILE.gif, one task after the other."""
    sheet: Path | None = None
    """PNG to write with one picture of each task, half an episode after its start."""
    seconds: float | None = 10.0
    """Simulated seconds of each task; none films whole episodes."""

    def __post_init__(self) -> None:
        """Refuse what gives no picture."""
        if self.output is None and self.sheet is None:
            raise InputError("name a film with --output or a contact sheet with --sheet")
        if self.output is not None and self.output.suffix.lower() not in (".mp4", ".gif"):
            raise InputError(f"a film's name ends in .mp4 or .gif; got {self.output.name}")
        if self.seconds is not None and self.seconds <= 0:
            raise InputError(f"seconds must be above 0, got {self.seconds}")
