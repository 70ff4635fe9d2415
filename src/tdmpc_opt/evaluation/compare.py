"""Comparisons of evaluations: of two in pairs, and of training runs at equal budget."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmpc_opt.configs.common import cost_fields
from tdmpc_opt.configs.training import REMOVED, REMOVED_COST, FromTeacher, TrainConfig
from tdmpc_opt.errors import ResultError
from tdmpc_opt.evaluation.results import (
    evaluations,
    read_evaluation,
    read_finished,
    refuse_damaged,
)
from tdmpc_opt.evaluation.score import (
    RESAMPLES,
    RETURN_PER_POINT,
    Score,
    Unit,
    normalized_score,
    task_score,
    unit_of,
)
from tdmpc_opt.files import without_removed

# What differs between runs without meaning anything for their comparison.
_FREE = {"seed", *cost_fields(TrainConfig), *REMOVED_COST}
# Options of a teacher at their defaults, which runs without one lack.
_LEFT_ALONE = {field.name: str(field.default) for field in fields(FromTeacher)}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Difference B - A over the episodes that both results contain."""

    difference: Score
    per_task: dict[str, float]
    episodes: int
    unit: Unit
    """Unit of the differences: points of MT30's score, or returns of own tasks."""
    shares: dict[str, float]
    """Return of B by task where random actions have 0 and A has 100; empty without these."""
    share: Score | None
    """Mean of the shares over tasks; its interval takes the two references as fixed."""


def compare(first: Path, second: Path, random: Path | None = None) -> Comparison:
    """Pair two result files on (task, seed) and return the mean difference with its interval.

    Args:
        first: Result A.
        second: Result B.
        random: Result of random actions in the same tasks, for B's share of A.

    Raises:
        ResultError: A file that cannot be read, or files without a common episode or with
            different tasks; or an A that is no better than random actions.
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
    scaled = {} if random is None else _scaled(pairs, first, a, random)
    return Comparison(
        difference=unit.shown(normalized_score(pairs)),
        per_task={task: unit.per_point * task_score(values) for task, values in pairs.items()},
        episodes=sum(len(values) for values in pairs.values()),
        unit=unit,
        shares={task: 100 + task_score(values) for task, values in scaled.items()},
        share=normalized_score(scaled).plus(100.0) if scaled else None,
    )


def _scaled(
    pairs: Mapping[str, Sequence[float]],
    path: Path,
    best: Mapping[str, Mapping[int, float]],
    random: Path,
) -> dict[str, list[float]]:
    """Return differences in percent of the range from random actions to the best returns.

    They are scaled so that `task_score` returns percent.
    """
    lowest, scaled = _returns(read_evaluation(random)), {}
    for task, differences in pairs.items():
        if task not in lowest:
            raise ResultError(f"{random} has no episode of {task}")
        low, high = (float(np.mean(list(row[task].values()))) for row in (lowest, best))
        if high <= low:
            raise ResultError(
                f"{path} earns {high:.2f} in {task}, random actions {low:.2f}; it cannot be "
                "the 100 of a scale, so leave out --random"
            )
        factor = 100 * RETURN_PER_POINT / (high - low)
        scaled[task] = [factor * difference for difference in differences]
    return scaled


def _returns(content: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    return {
        task: dict(zip(record["seeds"], record["returns"], strict=True))
        for task, record in content["tasks"].items()
    }


@dataclass(frozen=True, slots=True)
class AblationRow:
    """Runs that differ in their seed alone."""

    settings: dict[str, str]
    """Those settings that are not the same in all rows."""
    seeds: tuple[int, ...]
    score: Score
    """Mean over seeds in the unit; its interval resamples seeds and, within each, episodes."""
    unit: Unit
    """Points of MT30's score, or returns of own tasks."""

    @property
    def label(self) -> str:
        """The settings as one line."""
        settings = (f"{name} {value}" for name, value in self.settings.items())
        return ", ".join(settings) or "no teacher"


def ablation(paths: Sequence[Path]) -> list[AblationRow]:
    """Group result files, or folders of them, by what their training differed in.

    Raises:
        ResultError: A file that cannot be read, of an unfinished evaluation, of an agent that
            does not state how it was trained, or of another budget than the first one's.
    """
    paths = evaluations(paths)
    with refuse_damaged(f"{', '.join(map(str, paths))}: cannot be compared"):
        return _rows(paths)


def _rows(paths: Sequence[Path]) -> list[AblationRow]:
    contents = [_read(path) for path in paths]
    first = _budget(contents[0])
    for path, content in zip(paths, contents, strict=True):
        for name, value in _budget(content).items():
            if value != first[name]:
                raise ResultError(
                    f"{path} has another budget than {paths[0]}: its {name} is {value}, not "
                    f"{first[name]}"
                )
    flat = [_flatten(content["training"]) for content in contents]
    names = dict.fromkeys(name for row in flat for name in row)
    varied = [name for name in names if len({row.get(name) for row in flat}) > 1]
    groups: dict[tuple[tuple[str, str], ...], list[dict[str, Any]]] = {}
    for content, settings in zip(contents, flat, strict=True):
        key = tuple((name, settings[name]) for name in varied if name in settings)
        groups.setdefault(key, []).append(content)
    return [_row(dict(key), members) for key, members in groups.items()]


def equal_budgets(paths: Sequence[Path]) -> list[list[Path]]:
    """Sort result files into sets that `ablation` takes, in the order of the files.

    Of several results of one training run, such as a student's and its quantized copy's, the
    first counts.

    Raises:
        ResultError: A file that `ablation` cannot read.
    """
    sets: dict[str, dict[str, Path]] = {}
    for path in paths:
        content = _read(path)
        run = json.dumps(content["training"], sort_keys=True)
        budget = json.dumps(_budget(content), sort_keys=True)
        sets.setdefault(budget, {}).setdefault(run, path)
    return [list(runs.values()) for runs in sets.values()]


def _row(settings: dict[str, str], members: Sequence[Mapping[str, Any]]) -> AblationRow:
    seeds = tuple(member["training"]["seed"] for member in members)
    if len(set(seeds)) < len(seeds):
        raise ResultError(
            f"two result files are of the same training run ({settings or 'no teacher'}, seeds "
            f"{sorted(seeds)}); name each once"
        )
    returns = [[task["returns"] for task in member["tasks"].values()] for member in members]
    unit = unit_of(members[0]["tasks"])
    score = score_over_seeds(np.array(returns, np.float64))
    return AblationRow(settings, seeds, unit.shown(score), unit)


def score_over_seeds(returns: NDArray[np.float64]) -> Score:
    """Return the normalised score of several training seeds with its interval.

    A seed is drawn for all tasks at once, for they were trained together; then episodes are
    drawn within each task.

    Args:
        returns: Episode returns [seeds, tasks, episodes].

    Source:
        Hierarchical form of the stratified bootstrap of arXiv:2108.13264.
    """
    points = returns / RETURN_PER_POINT
    seeds, tasks, episodes = points.shape
    mean = float(points.mean())
    if seeds == 1 and episodes == 1:
        return Score(mean, None)
    rng = np.random.default_rng(0)
    drawn = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        chosen = points[rng.integers(seeds, size=seeds)]
        picks = rng.integers(episodes, size=(seeds, tasks, episodes))
        drawn[index] = np.take_along_axis(chosen, picks, axis=2).mean()
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Score(mean, (float(low), float(high)))


def _read(path: Path) -> dict[str, Any]:
    content = read_finished(path)
    training = content.get("training")
    if not isinstance(training, dict):
        raise ResultError(
            f"{path} does not state how its agent was trained; evaluate the model.safetensors "
            "of a run of tdmpc-opt train"
        )
    return content | {"training": without_removed(training, REMOVED)}


def _budget(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be the same in all runs, or scores show the effect of that as well."""
    names = ("data", "updates", "batch_size", "horizon", "size", "start")
    found = {name: content["training"].get(name) for name in names}
    names = ("tasks", "episodes", "seed", "mode", "budget", "noise")
    return found | {name: content["config"].get(name) for name in names}


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the settings by dotted name; files go by their name."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if name in _FREE or value is None:
            continue
        if isinstance(value, Mapping) and "sha256" in value:
            flat[prefix + name] = str(value["name"])
        elif isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        elif prefix or str(value) != _LEFT_ALONE.get(name):
            flat[prefix + name] = str(value)
    return flat
