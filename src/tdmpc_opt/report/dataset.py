"""A dataset's returns as histograms, and its card: sources, counts and returns in Markdown."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.data.reports import summarize
from tdmpc_opt.errors import InputError, ResultError
from tdmpc_opt.files import written
from tdmpc_opt.report.charts import SERIES, save_picture

_BINS = 20
_COLUMNS = 5


def plot_returns(returns: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draw one small histogram of each task's episode returns, with the mean marked.

    Raises:
        InputError: No task to draw.
        ResultError: A file that cannot be written.
    """
    if not returns:
        raise InputError("there are no returns to plot; collect some episodes first")
    columns = min(_COLUMNS, len(returns))
    rows = math.ceil(len(returns) / columns)

    def draw(width: float) -> Figure:
        figure = Figure(figsize=(width, 1.9 * rows + 0.5), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for axis, (task, values) in zip(axes, returns.items(), strict=False):
            _draw_histogram(axis, task, np.asarray(values, dtype=np.float64))
        for axis in list(axes)[len(returns) :]:
            axis.set_axis_off()
        figure.supxlabel("episode return (line: mean)", fontsize=9)
        figure.supylabel("episodes", fontsize=9)
        return figure

    save_picture(draw, path, 2.6 * columns + 0.4)


def _draw_histogram(axis: Axes, task: str, values: NDArray[np.float64]) -> None:
    axis.set_title(f"{task} ({len(values)})", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    if not len(values):
        return
    low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
    axis.hist(values, bins=_BINS, range=(low, high), color=SERIES[0].color)
    axis.axvline(float(values.mean()), color=SERIES[1].color, linewidth=1.5)


def write_dataset_card(dataset: EpisodeDataset, plot: Path, path: Path) -> None:
    """Write the card of a dataset, which shows the picture of its returns by a relative path.

    Raises:
        DataError: A shard that is missing or truncated.
        ResultError: A file that cannot be written.
    """
    rows = summarize(dataset)
    transitions = sum(row.transitions for row in rows)
    lines = [
        f"# Dataset {dataset.path.resolve().name}",
        "",
        f"{len(dataset):,} episodes of {len(rows)} tasks, {transitions:,} transitions, "
        f"{sum(row.labelled for row in rows):,} of them with a label to imitate.",
        "",
        "## Sources",
        "",
        "| driven by | noise | labelled by | tasks | episodes | mean return |",
        "|---|---|---|---|---|---|",
        *_sources(dataset),
        "",
        "## Tasks",
        "",
        "| task | episodes | transitions | labelled | mean return | least | most |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row.task} | {row.episodes:,} | {row.transitions:,} | {row.labelled:,} "
            f"| {row.return_mean:.1f} | {row.return_min:.1f} | {row.return_max:.1f} |"
            for row in rows
        ),
    ]
    picture = os.path.relpath(plot.resolve(), path.resolve().parent)
    lines += ["", f"![Episode returns of each task]({picture})", ""]
    with written(path, ResultError) as temporary:
        temporary.write_text("\n".join(lines))


def _sources(dataset: EpisodeDataset) -> list[str]:
    """Return a row for each way in which episodes were made, over all tasks."""
    made: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for shard in dataset.shards:
        source = shard.source
        key = (
            _name(source.get("policy")),
            f"{float(source.get('noise', 0)):g}",
            _name(source["label"]["policy"]) if "label" in source else "itself",
        )
        returns = dataset.returns_of(shard).tolist()
        made.setdefault(key, {}).setdefault(shard.task, []).extend(returns)
    rows = []
    for (policy, noise, label), tasks in made.items():
        earned = [value for values in tasks.values() for value in values]
        label = "-" if policy == "random" and label == "itself" else label
        rows.append(
            f"| {policy} | {noise} | {label} | {len(tasks)} | {len(earned):,} "
            f"| {np.mean(earned):.1f} |"
        )
    return rows


def _name(policy: Mapping[str, Any] | None) -> str:
    return str(policy["name"]) if policy else "?"
