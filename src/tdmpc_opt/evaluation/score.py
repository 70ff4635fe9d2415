"""Scores with their uncertainty: MT30's normalised score, and returns of users' own tasks.

A task's score is its mean return over 10; the normalised score is the plain mean over tasks
(0..100). Intervals resample the episodes within each task and keep the tasks fixed.

Source: TD-MPC2, arXiv:2310.16828, section 4; stratified bootstrap as recommended in
arXiv:2108.13264.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from tdmpc_opt.schema import MT30

RETURN_PER_POINT = 10.0
RESAMPLES = 9999


@dataclass(frozen=True, slots=True)
class Score:
    """A mean with its 95% interval, in points of 0..100."""

    mean: float
    ci95: tuple[float, float] | None
    """None where a task has a single episode."""

    def plus(self, number: float) -> "Score":
        """Return the score with a number added."""
        interval = self.ci95 and (self.ci95[0] + number, self.ci95[1] + number)
        return Score(self.mean + number, interval)

    def __str__(self) -> str:
        if self.ci95 is None:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} [{self.ci95[0]:.2f}, {self.ci95[1]:.2f}]"


def stored_score(record: Mapping[str, Any]) -> Score:
    """Return the score that a result file states as `mean` and `ci95`."""
    interval = record["ci95"]
    low_high = None if interval is None else (float(interval[0]), float(interval[1]))
    return Score(float(record["mean"]), low_high)


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit in which scores are shown; result files state points."""

    name: str
    per_point: float

    def shown(self, score: Score) -> Score:
        """Return a score of points in this unit."""
        factor, interval = self.per_point, score.ci95
        low_high = None if interval is None else (factor * interval[0], factor * interval[1])
        return Score(factor * score.mean, low_high)


NORMALIZED = Unit("normalized score", 1.0)
MEAN_RETURN = Unit("mean return", RETURN_PER_POINT)


def unit_of(tasks: Iterable[str]) -> Unit:
    """Return the unit for scores of tasks.

    Points are defined for MT30, whose returns are 0 to 1000. Those of other environments have
    any scale, so that theirs are shown as they are.
    """
    return NORMALIZED if set(tasks) <= set(MT30.names) else MEAN_RETURN


def task_score(returns: Sequence[float]) -> float:
    """Return the points of one task: its mean return over 10."""
    return float(np.mean(returns)) / RETURN_PER_POINT


def normalized_score(returns: Mapping[str, Sequence[float]]) -> Score:
    """Return the mean over tasks of their mean episode return over 10, with its interval."""
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


def _mean_of_means(*samples: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)
