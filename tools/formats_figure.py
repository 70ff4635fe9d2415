"""Draw bytes against score of each number format, out of a file of `formats.py`.

python tools/formats_figure.py results/formats-mt30-1m.json --output docs/figures/formats.png
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BELOW = ("bf16", "mixed")
"""Formats that lie so close to others that they are named below."""
SIZES = (0.2e6, 0.5e6, 1e6, 2e6, 5e6)
TITLES = {"policy": "policy alone", "realtime": "planner, preset realtime"}


@dataclass(frozen=True)
class Config:
    """What to draw."""

    result: Annotated[Path, tyro.conf.Positional]
    """Result file of `formats.py`."""
    output: Path
    """PNG or SVG file."""


def main(config: Config) -> None:
    """Draw a panel for each way to act."""
    rows = json.loads(config.result.read_text())["rows"]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, (how, title) in zip(
        figure.subplots(1, 2, sharey=True), TITLES.items(), strict=True
    ):
        _panel(axes, [row for row in rows if row["how"] == how])
        axes.set_title(title)
        axes.set_xlabel("size of the file, MB")
    figure.axes[0].set_ylabel("normalised score, 95% interval")
    config.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(config.output, dpi=150)


def _panel(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        size, mean = row["size_bytes"], row["score"]["mean"]
        low, high = row["score"]["ci95"] or (mean, mean)
        exported = row["format"].startswith("ONNX")
        below = exported or row["format"] in BELOW
        axes.errorbar(
            size,
            mean,
            [[mean - low], [high - mean]],
            fmt="s" if exported else "o",
            color="#b35900" if exported else "#005b96",
            capsize=2,
        )
        axes.annotate(
            _label(row["format"]),
            (size, low if below else high),
            (0, -4 if below else 4),
            textcoords="offset points",
            fontsize=7.5,
            rotation=60,
            ha="right" if below else "left",
            va="top" if below else "bottom",
            rotation_mode="anchor",
        )
    sizes = [row["size_bytes"] for row in rows]
    axes.set_xlim(0.8 * min(sizes), 1.5 * max(sizes))
    front = _front(rows)
    axes.step(
        [row["size_bytes"] for row in front],
        [row["score"]["mean"] for row in front],
        where="post",
        color="0.6",
        zorder=0,
    )
    axes.set_xscale("log")
    axes.set_xticks(SIZES, [f"{size / 1e6:g}" for size in SIZES])
    axes.minorticks_off()
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)


def _label(name: str) -> str:
    """Return a released file's format by the end of its name, and others as they are."""
    return f"released {Path(name).stem.rsplit('_', 1)[-1]}" if name.endswith(".pt") else name


def _front(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that no smaller file beats, by size."""
    front: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: row["size_bytes"]):
        if not front or row["score"]["mean"] > front[-1]["score"]["mean"]:
            front.append(row)
    return front


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
