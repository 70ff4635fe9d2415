"""Plots of returns, drawn without a display."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from tdmpc_opt.atomic import replace_when_done
from tdmpc_opt.errors import InputError, ResultError

BLUE = "#0072B2"
"""Bars; this and `ORANGE` stay apart for the colour-blind (Okabe and Ito)."""
ORANGE = "#D55E00"
"""Marks on the bars."""
_BINS = 20
_COLUMNS = 5


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


def _save(figure: Figure, path: Path) -> None:
    try:
        with replace_when_done(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    except OSError as error:
        raise ResultError(f"cannot write {path}: {error.strerror or error}") from error
