"""How charts look: colours that stay apart for the colour-blind, with markers and hatches."""

from dataclasses import dataclass
from typing import Any

INK = "#1b1b1b"
"""Text and axes."""
PAPER = "#ffffff"
"""Background, edges of bars and their hatches."""
GRID = "#dddddd"
"""Grid lines."""


@dataclass(frozen=True, slots=True)
class Series:
    """What tells one agent from the others, with and without colour."""

    color: str
    """On a light page and on paper."""
    dark: str
    """On a dark page: the same hue, lighter."""
    hatch: str
    marker: str
    dash: str | tuple[int, tuple[int, ...]]


SERIES = (
    Series("#0072b2", "#4da6dc", "", "o", "-"),
    Series("#d55e00", "#f2813a", "////", "s", "--"),
    Series("#009e73", "#2cc49a", "----", "^", "-."),
    Series("#cc79a7", "#e39cc4", "xxxx", "D", ":"),
    Series("#e69f00", "#f5bd4a", "\\\\\\\\", "v", (0, (5, 1, 1, 1, 1, 1))),
    Series("#56b4e9", "#93d0f5", "||||", "P", (0, (7, 2))),
)
"""The palette of Okabe and Ito (Color Universal Design, 2008) without its black and yellow."""

RC: Any = {
    "font.size": 9.0,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a file's name is a dollar
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.7,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",  # text stays text: to be searched, selected and read aloud
    "svg.hashsalt": "tdmpc-opt",  # equal results give equal files
}
"""Settings of matplotlib for every chart, by the library's own names."""


def css_variables(dark: bool) -> str:
    """Return the colours of charts as CSS variables."""
    colors = {"ink": "#e8e8e8" if dark else INK, "paper": "#15181c" if dark else PAPER}
    colors["grid"] = "#3a3f45" if dark else GRID
    for index, series in enumerate(SERIES):
        colors[f"series-{index}"] = series.dark if dark else series.color
    return " ".join(f"--{name}: {value};" for name, value in colors.items())


def themed(svg: str) -> str:
    """Let the colours of a chart follow the page it stands in."""
    names = {INK: "ink", PAPER: "paper", GRID: "grid"}
    names |= {series.color: f"series-{index}" for index, series in enumerate(SERIES)}
    for color, name in names.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg
