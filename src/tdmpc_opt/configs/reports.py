"""Commands that show results and agents."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


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
