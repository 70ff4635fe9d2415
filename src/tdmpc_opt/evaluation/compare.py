"""Paired comparison of two evaluations."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdmpc_opt.errors import ResultError
from tdmpc_opt.evaluation.results import read_evaluation
from tdmpc_opt.evaluation.score import Score, Unit, normalized_score, task_score, unit_of


@dataclass(frozen=True, slots=True)
class Comparison:
    """Difference B - A over the episodes that both results contain."""

    difference: Score
    per_task: dict[str, float]
    episodes: int
    unit: Unit
    """Unit of the differences: points of MT30's score, or returns of own tasks."""


def compare(first: Path, second: Path) -> Comparison:
    """Pair two result files on (task, seed) and return the mean difference with its interval.

    Raises:
        ResultError: A file that cannot be read, or files without a common episode or with
            different tasks.
    """
    a, b = (_returns(read_evaluation(path)) for path in (first, second))
    if a.keys() != b.keys():
        only = sorted(a.keys() ^ b.keys())
        raise ResultError(f"the files contain different tasks; only one of them has: {only}")
    pairs: dict[str, list[float]] = {}
    for task in a:
        shared = sorted(a[task].keys() & b[task].keys())
        if not shared:
            raise ResultError(f"no episode seed of {task} is in both files")
        pairs[task] = [b[task][seed] - a[task][seed] for seed in shared]
    unit = unit_of(pairs)
    return Comparison(
        difference=unit.shown(normalized_score(pairs)),
        per_task={task: unit.per_point * task_score(values) for task, values in pairs.items()},
        episodes=sum(len(values) for values in pairs.values()),
        unit=unit,
    )


def _returns(content: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    return {
        task: dict(zip(record["seeds"], record["returns"], strict=True))
        for task, record in content["tasks"].items()
    }
