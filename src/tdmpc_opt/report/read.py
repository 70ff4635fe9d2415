"""Result files of every kind, read into what a report shows of them."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdmpc_opt.evaluation.results import read_evaluation, read_result, refuse_damaged
from tdmpc_opt.evaluation.score import Score, Unit, normalized_score, stored_score, unit_of
from tdmpc_opt.files import CURVES

_SMOOTHED = 8  # episodes that one point of an expert's curve is the mean of
_LABEL_OF_EXPERTS = f"return, mean of {_SMOOTHED} episodes"


@dataclass(frozen=True, slots=True)
class Source:
    """The file behind some numbers."""

    name: str
    """What the report calls it: the file's stem."""
    path: Path
    kind: str
    facts: Mapping[str, Any]
    """Configuration, versions and machine, as the file states them."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What identifies an agent in results of different kinds."""

    name: str | None
    sha256: str | None
    mode: str | None = None
    """`policy` or `planner`; None where it makes no difference or is not known."""
    budget: Mapping[str, Any] | None = None
    """What one plan may spend."""

    def is_that_of(self, other: "Checkpoint") -> bool:
        """Return whether both are the same agent: by content, or by name if one has no hash."""
        if None not in (self.mode, other.mode) and self.mode != other.mode:
            return False
        if self.budget and other.budget:  # older files lack what then had but one value
            shared = self.budget.keys() & other.budget.keys()
            if any(self.budget[name] != other.budget[name] for name in shared):
                return False
        if self.sha256 and other.sha256:
            return self.sha256 == other.sha256
        return self.name is not None and self.name == other.name


@dataclass(frozen=True, slots=True)
class Agent:
    """A score and what it costs."""

    name: str
    score: Score
    cost: float
    """Bytes or seconds; 0 where there is none."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The scores of one agent."""

    source: Source
    checkpoint: Checkpoint
    about: str
    """Checkpoint, mode and noise in words."""
    score: Score
    """In the unit of its tasks."""
    unit: Unit
    returns: Mapping[str, Sequence[float]]
    """Episode returns by task."""
    trained: bool
    """Whether the file states how the agent was trained."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A learning curve."""

    name: str
    chart: str
    """Title of the chart it belongs in."""
    panel: str
    """Part of that chart; curves of one panel share both axes."""
    x_label: str
    y_label: str
    points: Sequence[tuple[float, float]]
    objective: str = ""
    """Of a loss, the weights that it sums with; losses of others do not compare."""


@dataclass(frozen=True, slots=True)
class Benched:
    """Size and speed of one agent."""

    name: str
    checkpoint: Checkpoint
    size_bytes: float
    latency_s: float | None
    """Median time of one action; None where only batches were timed."""


@dataclass(slots=True)
class ResultSet:
    """The content of a report."""

    sources: list[Source] = field(default_factory=list)
    evaluated: list[Evaluated] = field(default_factory=list)
    demos: dict[str, list[Agent]] = field(default_factory=dict)
    """Agents with their sizes, by the name of the file."""
    curves: list[Curve] = field(default_factory=list)
    benched: list[Benched] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    """Files that are not in the report, and why."""


def read_result_files(paths: Sequence[Path]) -> ResultSet:
    """Read result files and folders of them; unknown kinds and unfinished ones are skipped.

    Raises:
        ResultError: A file that cannot be read, is no JSON, or is damaged.
    """
    results = ResultSet()
    found = [sorted(path.glob("*.json")) if path.is_dir() else [path] for path in paths]
    paths = [path for files in found for path in files]
    names = _names(paths)
    for path in paths:
        content = read_result(path)
        kind = content.get("kind")
        if not isinstance(kind, str) or kind not in _READERS:
            results.skipped.append((path, f"unknown kind {kind!r}" if kind else "has no kind"))
            continue
        facts = {key: content[key] for key in _FACTS if content.get(key)}
        source = Source(names[path], path, kind, facts)
        with refuse_damaged(f"{path} is damaged"):
            reason = _READERS[kind](results, source, content)
        if reason:
            results.skipped.append((path, reason))
        else:
            results.sources.append(source)
    return results


_FACTS = ("config", "training", "versions", "machine")


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """Name each file by its stem, or by its folder where stems repeat or are those of runs."""
    stems = [path.stem for path in paths]
    names = {}
    for path, stem in zip(paths, stems, strict=True):
        folder = path.resolve().parent.name
        if stem in ("config", "rounds"):  # a run's or dagger's, whose folder is its name
            names[path] = folder
        else:
            names[path] = stem if stems.count(stem) == 1 else f"{folder}/{stem}"
    return names


def _evaluation(results: ResultSet, source: Source, content: Mapping[str, Any]) -> str | None:
    content = read_evaluation(source.path)  # checks every record
    config, tasks = content["config"], content["tasks"]
    if not content.get("complete"):
        return f"unfinished: {len(tasks)} of {len(config['tasks'])} tasks"
    mode, about = config.get("mode"), [str(config["checkpoint"]["name"])]
    if mode:
        about.append("policy alone" if mode == "policy" else "planner")
    if config.get("noise"):
        about.append("with exploration noise")
    returns = {name: record["returns"] for name, record in tasks.items()}
    unit = unit_of(returns)
    results.evaluated.append(
        Evaluated(
            source,
            Checkpoint(**config["checkpoint"], mode=mode, budget=config.get("budget")),
            ", ".join(about),
            unit.shown(normalized_score(returns)),
            unit,
            returns,
            isinstance(content.get("training"), dict),
        )
    )
    return None


def _expert(results: ResultSet, source: Source, content: Mapping[str, Any]) -> None:
    points = [(float(step), float(value)) for step, value in content["learning_curve"]]
    smooth = {
        points[end - 1][0]: sum(value for _, value in points[end - _SMOOTHED : end]) / _SMOOTHED
        for end in range(_SMOOTHED, len(points) + 1)
    }  # episodes that ended at the same step leave one point
    task, labels = str(content["config"]["task"]), ("agent steps", _LABEL_OF_EXPERTS)
    curve = Curve(source.name, "Experts", task, *labels, list(smooth.items()) or points)
    results.curves.append(curve)


def _demo(results: ResultSet, source: Source, content: Mapping[str, Any]) -> None:
    results.demos[source.name] = [
        Agent(
            str(row["name"]),
            stored_score({"mean": row["score"], "ci95": row["ci95"]}),
            float(row["size_bytes"]),
        )
        for row in content["rows"]
    ]


def training_curve(
    name: str, measure: str, rows: Iterable[Mapping[str, Any]], key: str, objective: str = ""
) -> Curve:
    """Return a curve over the updates of a training.

    Args:
        name: Name of the run.
        measure: What is drawn.
        rows: Records with `update`; those without a value are left out.
        key: Name of the value in them.
        objective: As in `Curve`.
    """
    points = [
        (float(row["update"]), float(row[key]))
        for row in rows
        if row.get(key) not in (None, "")
    ]
    return Curve(name, "Training", measure, "gradient updates", measure, points, objective)


def _dagger(results: ResultSet, source: Source, content: Mapping[str, Any]) -> None:
    # Older versions could score the student after each round.
    rows = ({"update": row["updates"], "score": row.get("score")} for row in content["rounds"])
    curve = training_curve(source.name, "normalized score", rows, "score")
    results.curves += [curve] if curve.points else []


def _run(results: ResultSet, source: Source, content: Mapping[str, Any]) -> str | None:
    """Read the curves that a run of train keeps beside its config."""
    try:
        rows = read_metrics(source.path.parent)
    except OSError as error:
        return f"its curves cannot be read: {CURVES}: {error.strerror}"
    config = content["config"]
    weights = {**(config.get("weights") or {}), **(config.get("terms") or {})}
    weights["td_lambda"] = config.get("td_lambda")
    objective = ", ".join(f"{name} {weight}" for name, weight in weights.items() if weight)
    score = training_curve(source.name, "normalized score", rows, "score")
    results.curves.append(training_curve(source.name, "loss", rows, "loss", objective))
    results.curves += [score] if score.points else []
    return None


def read_metrics(run: Path) -> list[dict[str, str]]:
    """Read the rows of the metrics of a run of train.

    Raises:
        OSError: The file cannot be read.
    """
    with (run / CURVES).open(newline="") as file:
        return list(csv.DictReader(file))


def _bench(results: ResultSet, source: Source, content: Mapping[str, Any]) -> None:
    """Read size and latency of each policy that was timed; latency is that of one robot."""
    for row in content["candidates"]:
        file, single = row["file"], row["batches"].get("1")
        results.benched.append(
            Benched(
                str(row["name"]),
                Checkpoint(file["name"], file["sha256"], row["mode"], row.get("budget")),
                float(file["size_bytes"]),
                None if single is None else float(single["p50_ms"]) / 1000,
            )
        )


def _formats(results: ResultSet, source: Source, content: Mapping[str, Any]) -> None:
    """Read size and latency of each number format; its score is in another file."""
    for row in content["rows"]:
        mode = "policy" if row["how"] == "policy" else "planner"
        name = f"{row['format']}, {mode}"
        latency = float(row["p50_ms"]) / 1000
        checkpoint = Checkpoint(None, row["sha256"], mode)
        results.benched.append(Benched(name, checkpoint, float(row["size_bytes"]), latency))


_READERS: dict[str, Callable[[ResultSet, Source, Mapping[str, Any]], str | None]] = {
    "evaluation": _evaluation,
    "expert": _expert,
    "demo": _demo,
    "dagger": _dagger,
    "run": _run,
    "bench": _bench,
    "formats": _formats,
}
"""By kind of file: adds its content to a set, or returns why it does not."""
