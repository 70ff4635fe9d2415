"""Plots of returns, drawn without a display."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from tdmpc_opt.errors import InputError, ResultError
from tdmpc_opt.files import replace_when_done

BLUE = "#0072B2"
"""Bars; this and `ORANGE` stay apart for the colour-blind (Okabe and Ito)."""
ORANGE = "#D55E00"
"""Marks on the bars."""
_CURVES = (BLUE, ORANGE, "#009E73", "#CC79A7")
_DASHES = ("-", "--", ":", "-.")
_BINS = 20
_COLUMNS = 5
_NAME_WIDTH = 40
"""Letters of a line beside a bar; what a run is called may take several."""


def plot_returns(returns: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draw one small histogram of episode returns per task, with the mean marked.

    Args:
        returns: Episode returns by task name.
        path: PNG to write.

    Raises:
        InputError: No task to draw.
        ResultError: A file that cannot be written.
    """
    if not returns:
        raise InputError("there are no returns to plot; collect some episodes first")
    columns = min(_COLUMNS, len(returns))
    rows = math.ceil(len(returns) / columns)
    figure = Figure(figsize=(2.6 * columns + 0.4, 1.9 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, (task, values) in zip(axes, returns.items(), strict=False):
        _draw_histogram(axis, task, np.asarray(values, dtype=np.float64))
    for axis in list(axes)[len(returns) :]:
        axis.set_axis_off()
    figure.supxlabel("episode return (line: mean)", fontsize=9)
    figure.supylabel("episodes", fontsize=9)
    _save(figure, path)


def _draw_histogram(axis: Axes, task: str, values: NDArray[np.float64]) -> None:
    axis.set_title(f"{task} ({len(values)})", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    if not len(values):
        return
    low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
    axis.hist(values, bins=_BINS, range=(low, high), color=BLUE)
    axis.axvline(float(values.mean()), color=ORANGE, linewidth=1.5)


def plot_sensitivity(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw what each layer's rounding alone costs, over the bits of its weights.

    Args:
        rows: Rows of a sensitivity result: layer, format, action_error, value_error, score.
        path: PNG to write.

    Raises:
        ResultError: A file that cannot be written.
    """
    measures = {
        "action_error": "action error (rms, range 2)",
        "value_error": "value error (1 - correlation)",
        "score": "normalized score, policy alone",
    }
    shown = [name for name in measures if any(row[name] is not None for row in rows)]
    figure = Figure(figsize=(4.6 * len(shown) + 1.6, 4.2), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _draw_sensitivity(axis, name, rows)
        axis.set_ylabel(measures[name])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    _save(figure, path)


def _draw_sensitivity(axis: Axes, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    bits = {"fp16": 16, "int8": 8, "int4": 4}
    for index, layer in enumerate(dict.fromkeys(row["layer"] for row in rows)):
        points = [(bits[row["format"]], row[name]) for row in rows if row["layer"] == layer]
        points = [point for point in points if point[1] is not None]
        x, y = zip(*points, strict=True) if points else ((), ())
        color, line = _CURVES[index % len(_CURVES)], _DASHES[index // len(_CURVES) % 4]
        axis.plot(x, y, label=layer, marker=".", color=color, linestyle=line)
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(bits.values()), [str(value) for value in bits.values()])
    axis.set_xlabel("bits per weight")
    if name != "score":
        axis.set_yscale("symlog", linthresh=1e-5)
        axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    try:
        with replace_when_done(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    except OSError as error:
        raise ResultError(f"cannot write {path}: {error.strerror or error}") from error


def plot_scores(
    scores: Mapping[str, tuple[float, tuple[float, float] | None]], path: Path
) -> None:
    """Draw normalised scores of several agents as bars with their 95% intervals.

    Args:
        scores: Score and interval of each agent, in points of 0..100, drawn from top to bottom.
        path: PNG to write.

    Raises:
        ResultError: A file that cannot be written.
    """
    names = [fill(name, _NAME_WIDTH) for name in scores]
    lines = max((name.count("\n") for name in names), default=0) + 1
    height = max(0.6, 0.22 * lines)  # inches a bar
    figure = Figure(figsize=(8.0, height * len(scores) + 1.2), layout="constrained")
    axis = figure.subplots()
    for row, (mean, interval) in enumerate(scores.values()):
        axis.barh(row, mean, color=BLUE)
        edge = mean
        if interval is not None:
            low, high = interval
            axis.errorbar(
                mean, row, xerr=[[mean - low], [high - mean]], color=ORANGE, capsize=4
            )
            edge = high
        axis.annotate(
            f"{mean:.1f}", (edge, row), (6, 0), textcoords="offset points", va="center"
        )
    axis.set_yticks(range(len(scores)), names)
    axis.invert_yaxis()
    axis.set_xlim(0, 105)
    axis.set_xlabel("normalized score (line: 95% interval)")
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def plot_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], label: str, path: Path
) -> None:
    """Draw learning curves over updates.

    Args:
        curves: Points (update, value) of each run.
        label: What the value is.
        path: PNG to write.

    Raises:
        ResultError: A file that cannot be written.
    """
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axis = figure.subplots()
    for (name, points), color in zip(curves.items(), _CURVES, strict=False):
        axis.plot(*zip(*points, strict=True), label=name, color=color)
    axis.set_xlabel("gradient updates")
    axis.set_ylabel(label)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def plot_front(content: Mapping[str, Any], path: Path) -> None:
    """Draw score against latency for the budgets of a search, its Pareto front as a line.

    Args:
        content: What `tdmpc-opt tune-planner` found.
        path: PNG to write.

    Raises:
        ResultError: A file that cannot be written.
    """
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axis = figure.subplots()
    for trial in content["trials"]:
        ms, score, front = trial["latency_ms"], trial["score"], trial["on_front"]
        color = ORANGE if front else BLUE
        if score["ci95"]:
            axis.plot([ms, ms], score["ci95"], color=color, alpha=0.4, linewidth=1)
        axis.plot(ms, score["mean"], "o", color=color, markersize=5)
    front = [trial for trial in content["trials"] if trial["on_front"]]
    points = [(trial["latency_ms"], trial["score"]["mean"]) for trial in front]
    axis.step(*zip(*points, strict=True), where="post", color=ORANGE, label="Pareto front")
    if content["full"]:
        axis.axhline(content["full"]["mean"], color="gray", linestyle=":", label="full budget")
    axis.set_xscale("log")
    axis.set_xlabel("ms per action (processor time, one thread)")
    axis.set_ylabel("score on the tuning episodes (line: 95% interval)")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)
