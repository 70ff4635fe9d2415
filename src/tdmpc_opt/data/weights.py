"""How likely each slice of some datasets is to be drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Sampling = Literal["uniform", "task", "return"]
TEMPERATURE = 0.1
"""Divides the returns of a task, scaled to 0..1, in the exponent of an episode's weight."""


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """Runs of slices, numbered one after the other, that are alike but for their weights."""

    first: NDArray[np.int64]
    """Number of the first slice of each."""
    slices: NDArray[np.int64]
    """Number of slices of each."""
    edges: NDArray[np.float64]
    """Sum of the weights of those before each, and at the end of all."""

    def draw(self, generator: np.random.Generator, size: int) -> NDArray[np.int64]:
        """Draw slices by their numbers."""
        point = self.edges[-1] * generator.random(size)
        unit = np.searchsorted(self.edges, point, side="right") - 1
        unit = np.minimum(unit, len(self.first) - 1)  # rounding may reach the last edge
        return self.first[unit] + generator.integers(self.slices[unit])


def by_task(tasks: NDArray[np.int64], slices: NDArray[np.int64]) -> Units:
    """Make every task as likely as the others, and the slices of a task as each other.

    Args:
        tasks: Task of each shard.
        slices: Slices of each shard.
    """
    totals = np.bincount(tasks, weights=slices)
    weights = slices / totals[tasks]
    return Units(_starts(slices)[:-1], slices, _edges(weights))


def by_return(
    tasks: NDArray[np.int64],
    starts: NDArray[np.int64],
    returns: Sequence[NDArray[np.float64]],
) -> Units:
    """Prefer episodes of high return among those of a task, whose share stays as it is.

    An episode's weight is exp(g / 0.1), g its return scaled to 0..1 between the task's lowest
    and highest.

    Args:
        tasks: Task of each shard.
        starts: Slices of each episode of a shard.
        returns: Returns of each shard's episodes.

    Source:
        Return weighting, arXiv:2306.13085, section 4, for one task.
    """
    counts = [len(values) for values in returns]
    task, slices = np.repeat(tasks, counts), np.repeat(starts, counts)
    gain = np.concatenate(returns)
    low, high = np.full(tasks.max() + 1, np.inf), np.full(tasks.max() + 1, -np.inf)
    np.minimum.at(low, task, gain)
    np.maximum.at(high, task, gain)
    spread = np.where(high > low, high - low, 1.0)
    weights = slices * np.exp((gain - high[task]) / spread[task] / TEMPERATURE)
    share = np.bincount(task, weights=slices) / np.maximum(
        np.bincount(task, weights=weights), np.finfo(float).tiny
    )
    return Units(_starts(slices)[:-1], slices, _edges(weights * share[task]))


def _starts(slices: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(slices)])


def _edges(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(weights)])
