"""The card of a dataset: sources, counts and returns in Markdown."""

import os
from pathlib import Path

import numpy as np

from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.data.reports import summarize
from tdmpc_opt.errors import ResultError
from tdmpc_opt.files import written


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
    made: dict[tuple[str, str, str], list[tuple[str, float]]] = {}
    for shard in dataset.shards:
        source = shard.source
        policy = str(source["policy"]["name"]) if source.get("policy") else "?"
        label = "-" if policy == "random" else "itself"
        if "label" in source:
            label = str(source["label"]["policy"]["name"])
        key = (policy, f"{float(source.get('noise', 0)):g}", label)
        returns = ((shard.task, value) for value in dataset.returns_of(shard).tolist())
        made.setdefault(key, []).extend(returns)
    return [
        f"| {policy} | {noise} | {label} | {len({task for task, _ in rows})} | {len(rows):,} "
        f"| {np.mean([value for _, value in rows]):.1f} |"
        for (policy, noise, label), rows in made.items()
    ]
