"""The normalised score and its uncertainty.

A task's score is its mean return over 10; the normalised score is the plain mean over tasks
(0..100). Intervals resample the episodes within each task and keep the tasks fixed.

Source: TD-MPC2, arXiv:2310.16828, section 4; stratified bootstrap as recommended in
arXiv:2108.13264.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

RETURN_PER_POINT = 10.0
RESAMPLES = 9999


@dataclass(frozen=True, slots=True)
class Score:
    """A mean with its 95% interval, in points of 0..100."""

    mean: float
    ci95: tuple[float, float] | None
    """None where a task has a single episode."""

    def __str__(self) -> str:
        if self.ci95 is None:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} [{self.ci95[0]:.2f}, {self.ci95[1]:.2f}]"


def task_score(returns: Sequence[float]) -> float:
    """Return the points of one task: its mean return over 10."""
    return float(np.mean(returns)) / RETURN_PER_POINT


def normalized_score(returns: Mapping[str, Sequence[float]]) -> Score:
    """Return the mean over tasks of their mean episode return over 10, with its interval.

    Args:
        returns: Episode returns of each task.
    """
    samples = [np.asarray(values, np.float64) / RETURN_PER_POINT for values in returns.values()]
    mean = float(np.mean([sample.mean() for sample in samples]))
    if min(len(sample) for sample in samples) < 2:
        return Score(mean, None)
    interval = bootstrap(
        samples,
        _mean_of_means,
        n_resamples=RESAMPLES,
        batch=1000,
        vectorized=True,
        paired=False,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Score(mean, (float(interval.low), float(interval.high)))


def _mean_of_means(*samples: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)
