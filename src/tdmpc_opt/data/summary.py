"""What a dataset holds, task by task."""

from dataclasses import dataclass

import numpy as np

from tdmpc_opt.data.episodes import EpisodeDataset, Shard


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """One task's row of the table that `tdmpc-opt data info` shows."""

    task: str
    """Name of the task."""
    shards: int
    """Folders with its episodes."""
    episodes: int
    """Number of episodes."""
    transitions: int
    """Number of steps in them."""
    labelled: int
    """Steps of them for which a policy said what it would have done."""
    return_mean: float
    """Mean episode return."""
    return_min: float
    """Lowest episode return."""
    return_max: float
    """Highest episode return."""
    sources: tuple[str, ...]
    """Policies that the episodes come from, each once; `?` where a shard names none."""


def summarize(dataset: EpisodeDataset) -> list[TaskSummary]:
    """Sum up each task that has episodes, in the order of the dataset's table.

    Raises:
        DataError: A shard that is missing or truncated.
    """
    rows = []
    for task, returns in dataset.returns().items():
        shards = [shard for shard in dataset.shards if shard.task == task]
        sources = dict.fromkeys(str(shard.source.get("policy", "?")) for shard in shards)
        rows.append(
            TaskSummary(
                task=task,
                shards=len(shards),
                episodes=len(returns),
                transitions=len(returns) * (dataset.length - 1),
                labelled=sum(_labelled(dataset, shard) for shard in shards),
                return_mean=float(np.mean(returns)),
                return_min=min(returns),
                return_max=max(returns),
                sources=tuple(sources),
            )
        )
    return rows


def _labelled(dataset: EpisodeDataset, shard: Shard) -> int:
    label = dataset.arrays(shard).label
    # A row is wholly NaN or not at all, so that its first number tells.
    return 0 if label is None else int(np.isfinite(label[:, 1:, 0]).sum())
