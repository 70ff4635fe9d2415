"""Paired comparison of two evaluations."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdmpc_opt.errors import ResultError
from tdmpc_opt.evaluation.results import read_evaluation
from tdmpc_opt.evaluation.score import Score, normalized_score


@dataclass(frozen=True, slots=True)
class Comparison:
    """Difference B - A in points, over the episodes that both results hold."""

    difference: Score
    per_task: dict[str, float]
    episodes: int


def compare(first: Path, second: Path) -> Comparison:
    """Pair two result files on (task, seed) and return the mean difference with its interval.

    Raises:
        ResultError: A file that cannot be read, or files without a common episode or with
            different tasks.
    """
    a, b = (_returns(read_evaluation(path)) for path in (first, second))
    if a.keys() != b.keys():
        only = sorted(a.keys() ^ b.keys())
        raise ResultError(f"the files hold different tasks; only one of them has: {only}")
    pairs: dict[str, list[float]] = {}
    for task in a:
        shared = sorted(a[task].keys() & b[task].keys())
        if not shared:
            raise ResultError(f"no episode seed of {task} is in both files")
        pairs[task] = [b[task][seed] - a[task][seed] for seed in shared]
    return Comparison(
        difference=normalized_score(pairs),
        per_task={task: sum(values) / len(values) / 10 for task, values in pairs.items()},
        episodes=sum(len(values) for values in pairs.values()),
    )


def _returns(content: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    return {
        task: dict(zip(record["seeds"], record["returns"], strict=True))
        for task, record in content["tasks"].items()
    }
