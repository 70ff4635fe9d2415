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
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Affine2DBase, ScaledTranslation

from tdmpc_opt.errors import InputError, ResultError
from tdmpc_opt.evaluation.score import NORMALIZED, Score, Unit, stored_score, unit_of
from tdmpc_opt.files import written
from tdmpc_opt.report.read import Agent, Curve

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


Draw = Callable[[float], Figure]
"""Draws a chart at a width in inches."""

AGENTS = len(SERIES)
"""Agents that one chart can show distinctly."""

BROAD = 7.2
"""Inches: a page of paper, and the column of text on a desk."""
_DPI = 200
_ROW = 0.17  # inches that one line of text or one bar takes
_NARROW = 5.0
_LEGEND_BELOW = 0.42  # inches from an axis to its legend: ticks and label stand between


def _grid(
    width: float, panels: int, columns: int, heights: Sequence[float]
) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels, in rows of these heights in inches."""
    with rc_context(RC):
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        ratios: dict[str, Any] = {"height_ratios": heights}
        grid = figure.subplots(len(heights), columns, squeeze=False, gridspec_kw=ratios)
        axes: list[Axes] = list(grid.flat)
        for axis in axes[panels:]:
            axis.set_axis_off()
    return figure, axes[:panels]


def bar_chart(
    rows: Mapping[str, Sequence[Score]], unit: Unit, agents: Sequence[str] = ("",)
) -> Draw:
    """Return a chart of scores as bars with their 95% intervals, in rows with a title.

    Args:
        rows: The scores of each row in the unit, one for each agent.
        unit: Their unit.
        agents: Names of the agents, at most `AGENTS`; a single one needs none, and its scores
            are written beside the bars.
    """
    step = len(agents) * 0.62 + 1.15
    tops = [place * step for place in range(len(rows))]
    single = len(agents) == 1

    def draw(width: float) -> Figure:
        columns = 1 if width < _NARROW else 2
        legend = 0 if single else -(-len(agents) // columns)
        height = _ROW * (len(rows) * step + legend) + 0.8
        figure, (axis,) = _grid(width, 1, 1, [height])
        for top, title in zip(tops, rows, strict=True):
            axis.text(0.8, top, title, va="center", fontsize=8.5)
        for index, (series, name) in enumerate(zip(SERIES, agents, strict=False)):
            y = [top + 0.8 + index * 0.62 for top in tops]
            scores = [row[index] for row in rows.values()]
            look: dict[str, Any] = {"color": series.color, "edgecolor": PAPER, "linewidth": 0}
            label = "\n".join(textwrap.wrap(name, 42))
            axis.barh(
                y, [s.mean for s in scores], 0.56, label=label, hatch=series.hatch, **look
            )
            _intervals(axis, scores, y)
            for place, score in zip(y, scores, strict=True) if single else ():
                edge = max(score.mean, score.ci95[1] if score.ci95 else 0)
                beside: dict[str, Any] = {"textcoords": "offset points", "va": "center"}
                axis.annotate(
                    f"{score.mean:.1f}", (edge, place), (4, 0), fontsize=8.5, **beside
                )
        axis.set_ylim(len(rows) * step - 0.2, -0.7)
        low, high = axis.get_xlim()
        axis.set_xlim(min(0.0, low), max(107.0 if unit is NORMALIZED else 0.0, high))
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
        axis.axvline(0, color=INK, linewidth=0.7)
        axis.grid(axis="x", color=GRID)
        axis.set_xlabel(f"{unit.name} (line: 95% interval)", fontsize=8.5)
        if not single:
            where: dict[str, Any] = {"loc": "outside upper left", "ncols": columns}
            figure.legend(frameon=False, fontsize=8.5, handlelength=2.6, **where)
        return figure

    return draw


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


def curve_chart(panels: Mapping[str, Sequence[Curve]]) -> Draw:
    """Return learning curves, a panel for each set of curves that share their axes."""

    def draw(width: float) -> Figure:
        columns = 1 if width < _NARROW or len(panels) == 1 else 2
        sizes = [len(curves) for curves in panels.values()]
        rows = [sizes[start : start + columns] for start in range(0, len(sizes), columns)]
        heights = [2.0 + 1.1 * _ROW * max(row) for row in rows]
        figure, axes = _grid(width, len(panels), columns, heights)
        for axis, (title, curves) in zip(axes, panels.items(), strict=True):
            _draw_curves(axis, title, curves, figure.dpi_scale_trans)
        return figure

    return draw


def _draw_curves(axis: Axes, title: str, curves: Sequence[Curve], inches: Affine2DBase) -> None:
    for curve, series in zip(curves, SERIES, strict=False):
        x, y = zip(*curve.points, strict=True)
        look: dict[str, Any] = {"color": series.color, "linestyle": series.dash}
        marks: dict[str, Any] = {"marker": series.marker, "markevery": max(1, len(x) // 8)}
        axis.plot(x, y, label=curve.name, linewidth=1.4, markersize=4, **look, **marks)
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
    agents: Sequence[Agent], label: str, unit: str, score: str, level: Agent | None = None
) -> Draw:
    """Return a chart of score over cost on a logarithmic axis, with the Pareto front.

    Args:
        agents: Those with a name are numbered by cost and listed; on the front are those that
            no other beats in both.
        label: What the cost is.
        unit: Its unit, which takes prefixes such as k.
        score: What the score is.
        level: Agent of any cost, whose score is a line.
    """
    ordered = sorted(agents, key=_order)
    front = pareto_front(ordered)

    def draw(width: float) -> Figure:
        listed = sum(bool(agent.name) for agent in ordered)
        figure, (axis,) = _grid(width, 1, 1, [3.0 + _ROW * max(listed, 6)])
        if len(front) > 1:
            steps = ([each.cost for each in front], [each.score.mean for each in front])
            axis.plot(*steps, drawstyle="steps-post", color=INK, linewidth=0.8, zorder=1)
        for number, agent in enumerate(ordered, 1):
            on_front, place = agent in front, (agent.cost, agent.score.mean)
            color, name = SERIES[0 if on_front else 1].color, None
            if agent.name:
                name = f"{number}  {agent.name}" + (" (front)" if on_front else "")
                axis.annotate(str(number), place, (5, 4), textcoords="offset points")
            if agent.score.ci95:
                axis.vlines(agent.cost, *agent.score.ci95, color=color, linewidth=1, alpha=0.4)
            axis.plot(*place, "o" if on_front else "s", color=color, label=name)
        if level is not None:
            axis.axhline(level.score.mean, color=INK, linestyle=":", label=level.name)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axis.xaxis.set_major_formatter(EngFormatter(unit=unit))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.12, y=0.15)
        axis.set_xlabel(label)
        axis.set_ylabel(f"{score} (line: 95% interval)")
        axis.grid()
        if listed or level is not None:
            figure.legend(loc="outside lower left", frameon=False, fontsize=8.5)
        return figure

    return draw


def _order(agent: Agent) -> tuple[float, float]:
    return agent.cost, -agent.score.mean


def pareto_front(agents: Sequence[Agent]) -> list[Agent]:
    """Return the agents that no other beats in both cost and score, by ascending cost."""
    front: list[Agent] = []
    for agent in sorted(agents, key=_order):
        if not front or agent.score.mean > front[-1].score.mean:
            front.append(agent)
    return front


def plot_front(content: Mapping[str, Any], path: Path) -> None:
    """Draw score against latency for the budgets of `tuning.json`, with their Pareto front.

    Raises:
        ResultError: A file that cannot be written.
    """
    unit, full = unit_of(content["config"]["tasks"]), content["full"]
    budgets = [
        Agent("", unit.shown(stored_score(trial["score"])), trial["latency_ms"] / 1000)
        for trial in content["trials"]
    ]
    level = Agent("preset full", unit.shown(stored_score(full)), 0.0) if full else None
    label = "an action of the tuning episodes (processor time, one thread)"
    save_picture(cost_chart(budgets, label, "s", unit.name, level), path)


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
        figure, axes = _grid(width, len(shown), len(shown), [4.2])
        for axis, name in zip(axes, shown, strict=True):
            _draw_sensitivity(axis, name, rows)
            axis.set_ylabel(measures[name])
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
        return figure

    save_picture(draw, path, 4.6 * len(shown) + 1.6)


def _draw_sensitivity(axis: Axes, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    bits = {"fp16": 16, "int8": 8, "int4": 4}
    for index, layer in enumerate(dict.fromkeys(row["layer"] for row in rows)):
        own = [row for row in rows if row["layer"] == layer and row[name] is not None]
        x, y = [bits[row["format"]] for row in own], [row[name] for row in own]
        color, line = SERIES[index % AGENTS].color, SERIES[index // AGENTS % AGENTS].dash
        axis.plot(x, y, label=layer, marker=".", color=color, linestyle=line)
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(bits.values()), [str(value) for value in bits.values()])
    axis.set_xlabel("bits per weight")
    if name != "score":
        axis.set_yscale("symlog", linthresh=1e-5)
        axis.yaxis.set_major_formatter("{x:g}")  # the scale's own writes powers as mathematics
        axis.set_ylim(bottom=0)


_BINS, _HISTOGRAMS = 20, 5  # of a histogram; histograms in a row


def plot_returns(returns: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draw one small histogram of each task's episode returns, with the mean marked.

    Raises:
        InputError: No task to draw.
        ResultError: A file that cannot be written.
    """
    if not returns:
        raise InputError("there are no returns to plot; collect some episodes first")
    columns = min(_HISTOGRAMS, len(returns))
    heights = [1.9] * -(-len(returns) // columns)

    def draw(width: float) -> Figure:
        figure, axes = _grid(width, len(returns), columns, heights)
        for axis, (task, values) in zip(axes, returns.items(), strict=True):
            axis.set_title(f"{task} ({len(values)})", fontsize=8)
            axis.tick_params(labelsize=7)
            axis.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
            if len(values):
                span = (min(0.0, *values), max(1.0, *values))
                axis.hist(values, bins=_BINS, range=span, color=SERIES[0].color)
                axis.axvline(float(np.mean(values)), color=SERIES[1].color, linewidth=1.5)
        figure.supxlabel("episode return (line: mean)", fontsize=9)
        figure.supylabel("episodes", fontsize=9)
        return figure

    save_picture(draw, path, 2.6 * columns + 0.4)


def save_picture(draw: Draw, path: Path, width: float = BROAD, kind: str = "png") -> None:
    """Write a chart as a picture with a white background.

    Args:
        draw: The chart.
        path: File to write.
        width: Width in inches.
        kind: `png` or `svg`; equal charts give equal files.

    Raises:
        ResultError: A file that cannot be written.
    """
    date: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {}
    with rc_context(RC), written(path, ResultError) as temporary:
        draw(width).savefig(temporary, format=kind, dpi=_DPI, facecolor=PAPER, **date)
