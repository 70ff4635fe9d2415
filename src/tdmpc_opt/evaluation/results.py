"""Result files: JSON that carries scores, configuration, versions and machine."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tdmpc_opt.errors import ResultError
from tdmpc_opt.evaluation.score import normalized_score, task_score
from tdmpc_opt.files import parse_json, require_same
from tdmpc_opt.machine import ResultFile
from tdmpc_opt.schema import PlannerBudget

KIND = "evaluation"
REMOVED_ENGINES = ("native", "compile", "openvino")
"""Engines of older versions, which result files may name."""
_MOST = 1e100  # of a return; NaN is not below it, and squares of those that are stay finite


class EvaluationFile(ResultFile):
    """The result of one evaluation, rewritten as its tasks finish.

    Args:
        path: File to write; if it exists its finished tasks are kept.
        config: What is evaluated and how; an existing file must state the same, or fewer
            episodes of it.
        training: How the agent was trained, if that is known.

    Raises:
        ResultError: The existing file is damaged or of another configuration.
    """

    def __init__(
        self, path: Path, config: Mapping[str, Any], training: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(path, KIND, dict(config))
        self._training = training
        self.tasks: dict[str, dict[str, Any]] = {}
        if path.is_dir():
            raise ResultError(f"{path} is a folder; name a file for the result")
        if path.exists():
            found = read_evaluation(path)
            _require_same(path, found["config"], self._config)
            self.tasks = found["tasks"]

    def measured(self, task: str) -> int:
        """Return how many episodes of a task are in the file."""
        return len(self.tasks[task]["returns"]) if task in self.tasks else 0

    @property
    def finished(self) -> int:
        """How many tasks have all their episodes."""
        names = self._config["tasks"]
        return sum(self.measured(name) >= self._config["episodes"] for name in names)

    def add(self, task: str, record: Mapping[str, Any]) -> None:
        """Add a task's episodes to those that the file has, and write it.

        Raises:
            ResultError: The file cannot be written.
        """
        known = self.tasks.get(task)
        self.tasks[task] = dict(record) if known is None else _joined(known, record)
        self.write()

    def content(self, **measured: Any) -> dict[str, Any]:
        """Return the whole file, with the scores of the tasks in the order of the config."""
        order = [name for name in self._config["tasks"] if name in self.tasks]
        score = normalized_score({name: self.tasks[name]["returns"] for name in order})
        return super().content(
            complete=self.finished == len(self._config["tasks"]),
            score={"mean": score.mean, "ci95": score.ci95},
            tasks={name: self.tasks[name] for name in order},
            training=self._training,
            **measured,
        )


def _joined(known: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a task with the episodes of two."""
    returns = [*known["returns"], *more["returns"]]
    return {
        "returns": returns,
        "seeds": [*known["seeds"], *more["seeds"]],
        "score": task_score(returns),
        "seconds": round(known.get("seconds", 0.0) + more["seconds"], 2),
    }


def _require_same(path: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    found = dict(found)
    precision, engine = found.pop("precision", None), found.get("engine")
    if engine in REMOVED_ENGINES or precision == "int8":
        raise ResultError(
            f"{path} was planned by the engine {engine} in {precision}, which no longer "
            "exists; reports and comparisons still read it, more episodes need another --output"
        )
    if engine == "eager" and asked.get("engine") not in (None, engine):
        raise ResultError(f"{path} was planned by engine=eager; resume with --engine eager")
    require_same(path, found, asked, ResultError, cost=("episodes",))
    if found.get("episodes", 0) > asked["episodes"]:  # those that a file lacks are added
        raise ResultError(
            f"{path} has {found['episodes']} episodes a task already, more than the "
            f"{asked['episodes']} asked for; ask for as many, or choose another --output"
        )


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file of any kind; what is no JSON object is read as an empty one.

    Raises:
        ResultError: The file is missing or is no JSON.
    """
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ResultError(f"{path} is no JSON ({error}); delete or repair it") from error
    return content if isinstance(content, dict) else {}


@contextmanager
def refuse_damaged(what: str) -> Iterator[None]:
    """Refuse values in result files that the block cannot use; `what` begins the message.

    Raises:
        ResultError: In place of the errors that such values cause.
    """
    try:
        yield
    except ResultError:
        raise  # it is a ValueError, which is caught below
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ResultError(f"{what} ({error!r}); make them anew") from error


def evaluations(paths: Sequence[Path]) -> list[Path]:
    """Return result files of evaluations, with those in a folder in place of the folder.

    Raises:
        ResultError: A folder without any, or a file in it that cannot be read.
    """
    found: list[Path] = []
    for path in paths:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if path.is_dir():
            files = [file for file in files if read_result(file).get("kind") == KIND]
        if not files:
            raise ResultError(
                f"{path} contains no result of tdmpc-opt evaluate; write one with: tdmpc-opt "
                f"evaluate {path} --output {path / 'score.json'}"
            )
        found += files
    return found


def read_evaluation(path: Path) -> dict[str, Any]:
    """Read an evaluation's result file, or the one such file of a folder.

    Raises:
        ResultError: The file is missing, damaged or of another kind, or the folder contains
            none or several.
    """
    path, *others = evaluations([path])
    if others:
        raise ResultError(
            f"{path.parent} contains several results, {path.name} and {others[0].name} among "
            "them; name one"
        )
    content = read_result(path)
    if content.get("kind") != KIND:
        raise ResultError(f"{path} is not a result of tdmpc-opt evaluate")
    tasks, config = content.get("tasks"), content.get("config")
    if not isinstance(tasks, dict) or not isinstance(config, dict):
        raise ResultError(f"{path} lacks its tasks or config; it was not written by evaluate")
    for name, record in tasks.items():
        if not _is_record(record):
            raise ResultError(f"{path}: the record of {name} is damaged")
    if isinstance(config.get("budget"), dict):  # older files lack options that had one value
        budget = asdict(PlannerBudget()) | config["budget"]
        config = {"engine": "eager"} | config | {"budget": budget}
    return content | {"config": config}


def read_finished(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """Read an evaluation as `read_evaluation`; it has to be complete, and of this checkpoint.

    Raises:
        ResultError: As `read_evaluation`, or an unfinished evaluation or another checkpoint.
    """
    content = read_evaluation(path)
    found = content["config"].get("checkpoint", {})
    if sha256 is not None and found.get("sha256") != sha256:
        raise ResultError(
            f"{path} is a result of another checkpoint ({found.get('name')}); evaluate this one"
        )
    if not content.get("complete"):
        raise ResultError(f"{path} is not complete; finish it with the command that began it")
    return content


def _is_record(record: object) -> bool:
    match record:
        case {"returns": [_, *_] as returns, "seeds": [*seeds]} if len(returns) == len(seeds):
            numbers = all(isinstance(x, int | float) and abs(x) < _MOST for x in returns)
            return numbers and all(isinstance(seed, int) for seed in seeds)
    return False
