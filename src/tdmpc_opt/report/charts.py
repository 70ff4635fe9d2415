"""Charts of results in one palette, drawn at any width: for paper, a desk or a phone."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Affine2DBase, ScaledTranslation

from tdmpc_opt.errors import ResultError
from tdmpc_opt.evaluation.score import NORMALIZED, Score, Unit, stored_score, unit_of
from tdmpc_opt.files import written
from tdmpc_opt.report.read import Curve

INK = "#1b1b1b"
"""Text and axes."""
PAPER = "#ffffff"
"""Background, edges of bars and their hatches."""
GRID = "#dddddd"
"""Grid lines."""


@dataclass(frozen=True, slots=True)
class Series:
    """How one agent is drawn, so that it differs from others with and without colour."""

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


AGENTS = len(SERIES)
"""Agents that one chart can show distinctly."""

BROAD = 7.2
"""Inches: a page of paper, and the column of text on a desk."""
_DPI = 200
_ROW = 0.17  # inches that one line of text or one bar takes
_NARROW = 5.0
_LEGEND_BELOW = 0.42  # inches from an axis to its legend: ticks and label stand between


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with its summary for readers who do not see it."""

    name: str
    """File stem, unique in a report."""
    title: str
    summary: str
    draw: Callable[[float], Figure]
    """Draws at a width in inches."""


@dataclass(frozen=True, slots=True)
class Point:
    """An agent in a chart of what a score costs."""

    name: str
    cost: float
    score: float
    unit: Unit = NORMALIZED


def score_chart(scores: Mapping[str, Score], unit: Unit) -> Callable[[float], Figure]:
    """Return a chart of scores, in the unit, as bars with their 95% intervals."""

    def draw(width: float) -> Figure:
        figure, axis = _single(width, 2 * _ROW * len(scores) + 0.75)
        rows = [row + 0.22 for row in range(len(scores))]
        axis.barh(rows, [score.mean for score in scores.values()], 0.42, color=SERIES[0].color)
        _intervals(axis, list(scores.values()), rows)
        for y, (name, score) in zip(rows, scores.items(), strict=True):
            axis.text(0.8, y - 0.42, name, va="center", fontsize=8.5)
            edge = max(score.mean, score.ci95[1] if score.ci95 else 0)
            text, point = f"{score.mean:.1f}", (edge, y)
            axis.annotate(
                text, point, (4, 0), textcoords="offset points", va="center", fontsize=8.5
            )
        _score_axis(axis, unit)
        axis.set_ylim(len(scores) - 0.45, -0.5)
        return figure

    return draw


def task_chart(
    scores: Mapping[str, Mapping[str, Score]], unit: Unit
) -> Callable[[float], Figure]:
    """Return a chart of each task's score by agent: task by task, the agents' bars together.

    There are at most `AGENTS` agents, of the same tasks.
    """
    tasks = list(next(iter(scores.values())))

    def draw(width: float) -> Figure:
        lines = (len(scores) * 0.62 + 1.15) * len(tasks)
        legend = len(scores) if width < _NARROW else (len(scores) + 1) // 2
        figure, axis = _single(width, _ROW * (lines + legend) + 0.8)
        step = len(scores) * 0.62 + 1.15
        tops = [place * step for place in range(len(tasks))]
        for top, task in zip(tops, tasks, strict=True):
            axis.text(0.8, top, task, va="center", fontsize=8.5)
        for index, (series, found) in enumerate(zip(SERIES, scores.values(), strict=False)):
            y = [top + 0.8 + index * 0.62 for top in tops]
            means = [found[task].mean for task in tasks]
            colors: dict[str, Any] = {"color": series.color, "edgecolor": PAPER}
            axis.barh(y, means, 0.56, linewidth=0, hatch=series.hatch, **colors)
            _intervals(axis, [found[task] for task in tasks], y)
        axis.set_ylim(len(tasks) * step - 0.2, -0.7)
        _score_axis(axis, unit)
        _legend(figure, list(scores), width)
        return figure

    return draw


def curve_chart(panels: Mapping[str, Sequence[Curve]]) -> Callable[[float], Figure]:
    """Return learning curves, a panel for each set of curves that share their axes."""

    def draw(width: float) -> Figure:
        columns = 1 if width < _NARROW or len(panels) == 1 else 2
        rows = -(-len(panels) // columns)
        per_row = [list(panels.values())[columns * row :][:columns] for row in range(rows)]
        heights = [2.0 + 1.1 * _ROW * max(map(len, part)) for part in per_row]
        with rc_context(RC):
            figure = Figure(figsize=(width, sum(heights)), layout="constrained")
            ratios: dict[str, Any] = {"height_ratios": heights}
            axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=ratios).flat
            for axis, (title, curves) in zip(axes, panels.items(), strict=False):
                _draw_panel(axis, title, curves, figure.dpi_scale_trans)
            for axis in list(axes)[len(panels) :]:
                axis.set_axis_off()
        return figure

    return draw


def _draw_panel(axis: Axes, title: str, curves: Sequence[Curve], inches: Affine2DBase) -> None:
    for curve, series in zip(curves, SERIES, strict=False):
        x, y = zip(*curve.points, strict=True)
        marks = max(1, len(x) // 8)
        axis.plot(
            x,
            y,
            label=curve.name,
            color=series.color,
            linestyle=series.dash,
            linewidth=1.4,
            marker=series.marker,
            markersize=4,
            markevery=marks,
        )
    axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xlabel(curves[0].x_label, fontsize=8)
    axis.set_ylabel(curves[0].y_label, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axis.grid(axis="y")
    axis.legend(
        frameon=False,
        fontsize=8,
        handlelength=3.2,
        loc="upper left",
        bbox_to_anchor=(0.0, 0.0),
        bbox_transform=axis.transAxes + ScaledTranslation(0.0, -_LEGEND_BELOW, inches),
        borderaxespad=0.0,
    )


def cost_chart(
    points: Sequence[Point], label: str, unit: str, score: str
) -> Callable[[float], Figure]:
    """Return a chart of score over cost on a logarithmic axis, with the Pareto front.

    Args:
        points: Agents; those on the front have no other that costs less and scores more.
        label: What the cost is.
        unit: Its unit, which takes prefixes such as k.
        score: What the score is.
    """
    ordered = sorted(points, key=lambda point: (point.cost, -point.score))
    front = pareto_front(ordered)

    def draw(width: float) -> Figure:
        figure, axis = _single(width, 3.0 + _ROW * len(ordered))
        if len(front) > 1:
            steps = ([p.cost for p in front], [p.score for p in front])
            axis.plot(*steps, drawstyle="steps-post", color=INK, linewidth=0.8, zorder=1)
        for number, point in enumerate(ordered, 1):
            on_front = point in front
            series = SERIES[0 if on_front else 1]
            axis.plot(
                point.cost,
                point.score,
                marker="o" if on_front else "s",
                color=series.color,
                markersize=6,
                linestyle="none",
                label=f"{number}  {point.name}" + (" (front)" if on_front else ""),
            )
            axis.annotate(
                str(number), (point.cost, point.score), (5, 4), textcoords="offset points"
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axis.xaxis.set_major_formatter(EngFormatter(unit=unit))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.12, y=0.15)
        axis.set_xlabel(label)
        axis.set_ylabel(score)
        axis.grid()
        figure.legend(loc="outside lower left", frameon=False, fontsize=8.5)
        return figure

    return draw


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in both, by ascending cost."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.score)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return front


def _single(width: float, height: float) -> tuple[Figure, Axes]:
    with rc_context(RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        axis = figure.subplots()
    return figure, axis


def _score_axis(axis: Axes, unit: Unit) -> None:
    """Lay out an axis of scores whose rows carry their names themselves."""
    low, high = axis.get_xlim()
    axis.set_xlim(min(0.0, low), max(107.0 if unit is NORMALIZED else 0.0, high))
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.axvline(0, color=INK, linewidth=0.7)
    axis.grid(axis="x", color=GRID)
    axis.set_xlabel(f"{unit.name} (line: 95% interval)", fontsize=8.5)


def _intervals(axis: Axes, scores: Sequence[Score], y: Sequence[float]) -> None:
    """Draw the intervals of those scores that have one."""
    rows = [
        (score.mean, *score.ci95, at) for score, at in zip(scores, y, strict=True) if score.ci95
    ]
    if not rows:
        return
    means, lows, highs, places = (np.array(column) for column in zip(*rows, strict=True))
    # The bootstrap of equal returns may miss their mean by rounding.
    error = np.maximum([means - lows, highs - means], 0)
    look: dict[str, Any] = {"color": INK, "linewidth": 0.9, "capsize": 1.8, "linestyle": "none"}
    axis.errorbar(means, places, xerr=error, **look)


def _legend(figure: Figure, names: Sequence[str], width: float) -> None:
    handles = [
        Patch(facecolor=series.color, hatch=series.hatch, edgecolor=PAPER, linewidth=0)
        for series, _ in zip(SERIES, names, strict=False)
    ]
    figure.legend(
        handles,
        ["\n".join(textwrap.wrap(name, 42)) for name in names],
        loc="outside upper left",
        ncols=1 if width < _NARROW else 2,
        frameon=False,
        fontsize=8.5,
        handlelength=2.6,
    )


def plot_sensitivity(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw what each layer's rounding alone costs, over the bits of its weights.

    Raises:
        ResultError: A file that cannot be written.
    """
    measures = {
        "action_error": "action error (rms, range 2)",
        "value_error": "value error (1 - correlation)",
        "score": "normalized score, policy alone",
    }
    shown = [name for name in measures if any(row[name] is not None for row in rows)]

    def draw(width: float) -> Figure:
        figure = Figure(figsize=(width, 4.2), layout="constrained")
        axes = figure.subplots(1, len(shown), squeeze=False)[0]
        for axis, name in zip(axes, shown, strict=True):
            _draw_sensitivity(axis, name, rows)
            axis.set_ylabel(measures[name])
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
        return figure

    save_picture(draw, path, 4.6 * len(shown) + 1.6)


def _draw_sensitivity(axis: Axes, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    bits = {"fp16": 16, "int8": 8, "int4": 4}
    for index, layer in enumerate(dict.fromkeys(row["layer"] for row in rows)):
        points = [(bits[row["format"]], row[name]) for row in rows if row["layer"] == layer]
        points = [point for point in points if point[1] is not None]
        x, y = zip(*points, strict=True) if points else ((), ())
        color, line = SERIES[index % AGENTS].color, SERIES[index // AGENTS % AGENTS].dash
        axis.plot(x, y, label=layer, marker=".", color=color, linestyle=line)
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(bits.values()), [str(value) for value in bits.values()])
    axis.set_xlabel("bits per weight")
    if name != "score":
        axis.set_yscale("symlog", linthresh=1e-5)
        axis.set_ylim(bottom=0)


def plot_front(content: Mapping[str, Any], path: Path) -> None:
    """Draw score against latency for the budgets of `tuning.json`, its Pareto front as a line.

    Raises:
        ResultError: A file that cannot be written.
    """
    unit = unit_of(content["config"]["tasks"])

    def draw(width: float) -> Figure:
        figure, axis = _single(width, 4.0)
        points = []
        for trial in content["trials"]:
            ms, score = trial["latency_ms"], unit.shown(stored_score(trial["score"]))
            color = SERIES[1 if trial["on_front"] else 0].color
            if score.ci95:
                axis.plot([ms, ms], score.ci95, color=color, alpha=0.4, linewidth=1)
            axis.plot(ms, score.mean, "o", color=color, markersize=5)
            points += [(ms, score.mean)] if trial["on_front"] else []
        line: dict[str, Any] = {"color": SERIES[1].color, "label": "Pareto front"}
        axis.step(*zip(*points, strict=True), where="post", **line)
        if content["full"]:
            full = unit.per_point * content["full"]["mean"]
            axis.axhline(full, color="gray", linestyle=":", label="preset full")
        axis.set_xscale("log")
        axis.set_xlabel("ms per action (processor time, one thread)")
        axis.set_ylabel(f"{unit.name} of the tuning episodes (line: 95% interval)")
        axis.legend(frameon=False)
        return figure

    save_picture(draw, path)


def save_picture(
    draw: Callable[[float], Figure], path: Path, width: float = BROAD, kind: str = "png"
) -> None:
    """Write a chart as a picture with a white background.

    Args:
        draw: Draws at a width in inches.
        path: File to write.
        width: Width in inches.
        kind: `png` or `svg`; equal charts give equal files.

    Raises:
        ResultError: A file that cannot be written.
    """
    date: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {}
    with rc_context(RC), written(path, ResultError) as temporary:
        draw(width).savefig(temporary, format=kind, dpi=_DPI, facecolor=PAPER, **date)
