"""The stages from a teacher to a scored student.

Each stage is the function of another command and resumes by itself, in a folder below `work`.
This module decides what each is given; `work/plan.json` is all that it stores.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tdmpc_opt.agents.collect import collect
from tdmpc_opt.agents.own import Assigned, write_assignment
from tdmpc_opt.agents.sources import CheckpointSource
from tdmpc_opt.checkpoints.load import read_checkpoint, with_origin
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.compression.rounding import round_weights
from tdmpc_opt.configs.common import CHOICE_SEED, REPORTED_SEED, device_of_work
from tdmpc_opt.configs.data import CollectConfig
from tdmpc_opt.configs.deploy import ConvertConfig, ExportConfig
from tdmpc_opt.configs.measure import EvaluateConfig, ReportConfig
from tdmpc_opt.configs.pipeline import DistillConfig
from tdmpc_opt.configs.training import DaggerConfig
from tdmpc_opt.errors import CheckpointError, RunError
from tdmpc_opt.evaluation.compare import Comparison, compare
from tdmpc_opt.evaluation.evaluate import evaluate
from tdmpc_opt.evaluation.score import Score, stored_score
from tdmpc_opt.export.export import export
from tdmpc_opt.export.model_folder import save_folder
from tdmpc_opt.files import MODEL_FILE, alone, parse_json, refuse_overwrite, written
from tdmpc_opt.pipeline.plan import (
    NOISES,
    PRESET,
    ROUND_NOISE,
    SCORE_EPISODES,
    TRIAL_EPISODES,
    Plan,
    Teachers,
    identities,
    open_teachers,
    recipe,
    stored_plan,
)
from tdmpc_opt.planning.presets import HELD, storable
from tdmpc_opt.progress import Progress, Silent, Stage
from tdmpc_opt.report.page import write_report
from tdmpc_opt.schema import MT30
from tdmpc_opt.training.dagger import dagger
from tdmpc_opt.training.loop import compare_teachers, train

STEPS = ("compare", "collect", "train", "correct", "compress", "score")
"""As docs/distil.md lists them."""
INT8 = "policy-int8.onnx"
PLANNER = "planner.onnx"
ON_POLICY_SHARE = 0.3
"""Share of each batch of the rounds that the student's own episodes give."""
LEAST_GAIN = 0.02
"""Share by which plans must exceed the policy to label a task: of 1000, the full return, in
MT30's tasks, and of the policy's return in own ones. Few episodes show no less."""
_RANGE_OF_ACTIONS = 2.0
"""Tolerance of the int8 file: its own score is measured and reported."""


@dataclass(frozen=True, slots=True)
class Student:
    """A distilled student and its scores from starts that no earlier stage used."""

    folder: Path
    """Model folder."""
    teacher: Score
    policy: Score
    """Of the FP16 weights."""
    int8: Score
    """Of the exported int8 policy."""
    lost: Comparison
    """Student's policy less teacher, paired by start; scores are in its unit."""


def distill(config: DistillConfig, progress: Progress | None = None) -> Student:
    """Make a student of a teacher: collect, train, correct, quantise, export and score it.

    The teacher acts by its policy or its planner, whichever is better on a few episodes of each
    task. The student learns from clean and noisy episodes of the teacher (actions, rewards and
    the returns of what followed), then in on-policy rounds at a falling learning rate. Nothing
    is chosen by the starts that the reported scores use. The same call continues an interrupted
    one, to the same result.

    Args:
        config: Teachers, budget and output.
        progress: Takes the progress of each stage.

    Returns:
        The model folder and its scores. The folder holds FP16 weights, the int8 policy and the
        planner as ONNX files, config, card, report and result files; data and runs are in its
        folder `work`.

    Raises:
        TdmpcOptError: As `plan` and the stages raise.

    Source:
        TD-MPC2, arXiv:2310.16828; behaviour cloning and DAgger, arXiv:1011.0686.
    """
    refuse_overwrite(config)
    progress = progress or Silent()
    with alone(config.output / "work" / "plan.json"):
        teachers = open_teachers(config)
        decided = stored_plan(config, teachers, progress)
        return _Pipeline(config, decided, teachers, progress).run()


class _Pipeline:
    """The stages, each in its folder below `work`."""

    def __init__(
        self,
        config: DistillConfig,
        decided: Plan,
        teachers: Teachers,
        progress: Progress,
    ) -> None:
        self._config, self._plan, self._progress = config, decided, progress
        self._teachers = teachers
        self._work = config.output / "work"
        self._tasks = ",".join(decided.tasks)
        self._team = str(self._work / "teachers.json")

    def run(self) -> Student:
        """Run what is not done yet."""
        planned = self._choose_labels()
        self._collect(planned)
        model = train(
            recipe(self._config, self._work / "trained", self._plan.updates),
            self._stage("train", "updates"),
        )
        self._correct(model)
        weights = self._compress()
        scores = self._score(weights)
        return self._write_folder(weights, scores, planned)

    def _stage(self, step: str, units: str | None = None) -> Stage:
        """Return where a step of `STEPS` reports; its reports count the units, if named."""
        name = f"step {STEPS.index(step) + 1} of {len(STEPS)}, {step}"
        return Stage(self._progress, name if units is None else f"{name} ({units})")

    def _choose_labels(self) -> list[str]:
        """Assign the better of policy and planner to each task; return the planned tasks."""
        policies = {name: assigned for name, (assigned, _) in self._teachers.items()}
        plans = {
            name: replace(policies[name], mode="planner", preset=PRESET)
            for name in self._plan.planned
        }
        better: list[str] = []
        if plans:
            ways = {"policy": {name: policies[name] for name in plans}, "planner": plans}
            means = {way: self._trial(way, chosen) for way, chosen in ways.items()}
            for name, policy in means["policy"].items():
                whole = 1000.0 if name in MT30.names else abs(policy)
                if means["planner"][name] - policy > LEAST_GAIN * whole:
                    better.append(name)
        chosen = policies | {name: plans[name] for name in better}
        write_assignment(Path(self._team), chosen)
        return better

    def _trial(self, way: str, policies: Mapping[str, Assigned]) -> dict[str, float]:
        """Return the mean return by task of a few episodes."""
        team = self._work / f"{way}.json"
        write_assignment(team, policies)
        output, seed = self._work / f"trial-{way}.json", CHOICE_SEED
        tasks, stage = ",".join(policies), self._stage("compare", f"tasks by the {way}")
        found = self._evaluate(str(team), output, tasks, seed, TRIAL_EPISODES, stage)
        names = {name: self._teachers[name][1].tasks(name).names[0] for name in policies}
        returns = {name: found["tasks"][task]["returns"] for name, task in names.items()}
        return {name: sum(row) / len(row) for name, row in returns.items()}

    def _evaluate(
        self,
        source: str,
        output: Path,
        tasks: str,
        seed: int,
        episodes: int,
        stage: Stage,
    ) -> dict[str, Any]:
        config = EvaluateConfig(
            checkpoint=source,
            tasks=tasks,
            mode="policy",
            output=output,
            device=self._config.device,
            workers=self._config.workers,
            ray=self._config.ray,
            seed=seed,
            episodes=episodes,
        )
        return evaluate(config, stage)

    def _collect(self, planned: Sequence[str]) -> None:
        """Collect the teacher's episodes, of tasks that plans label as many as these allow."""
        decided = self._plan
        of_plans = decided.planned_episodes or decided.episodes
        groups: dict[int, list[str]] = {}
        for name in decided.tasks:
            count = of_plans if name in planned else decided.episodes
            groups.setdefault(count, []).append(name)
        for number, noise in enumerate(NOISES):
            for count in sorted(groups, reverse=True):
                config = CollectConfig(
                    policy=self._team,
                    tasks=",".join(groups[count]),
                    noise=noise,
                    episodes=count,
                    seed=number * 1000 + self._config.seed,
                    output=self._work / "data",
                    device=device_of_work(self._config.device, self._config.ray),
                    workers=self._config.workers,
                    ray=self._config.ray,
                )
                collect(config, self._stage("collect", f"tasks with noise {noise}"))
            if not number:
                self._compare_teachers()

    def _compare_teachers(self) -> None:
        """Compare the rewards that the teachers foresee with those they got.

        A damaged file acts as well, by chance. Policies without a world model foresee nothing.
        """
        sources = {assigned.source: source for assigned, source in self._teachers.values()}
        if not all(isinstance(s, CheckpointSource) and s.plans() for s in sources.values()):
            return
        named = any(assigned.names for assigned, _ in self._teachers.values())
        teacher, *others = sources
        config = replace(
            recipe(self._config, self._work / "trained", 1),
            teacher=teacher,
            more_teachers=tuple(others),
            tasks=self._config.tasks if named else None,
        )
        compare_teachers(config, self._stage("collect", "rewards"))

    def _correct(self, model: Path) -> None:
        """Train on in rounds in which the student drives and the teacher labels."""
        updates = self._plan.rounds * self._plan.round_updates
        shared = recipe(self._config, self._work / "corrected", updates)
        values = vars(shared) | {
            "updates": self._plan.round_updates,
            "rounds": self._plan.rounds,
            "episodes": self._plan.round_episodes,
            "noise": ROUND_NOISE,
            "on_policy_share": ON_POLICY_SHARE,
            "start": str(model),
            "teacher": self._team,
            "tasks": self._tasks,
            "workers": self._config.workers,
            "ray": self._config.ray,
        }
        del values["on_policy"]  # follows from the output
        config = DaggerConfig(**values)
        dagger(config, self._stage("correct"))

    def _compress(self) -> Path:
        """Write the FP16 weights, and the int8 policy and the planner as ONNX files."""
        output, weights = self._config.output, self._work / "student.safetensors"
        model = self._work / "corrected" / MODEL_FILE
        trained = with_origin(read_checkpoint(model), model)
        halves = round_weights(trained.without_targets(), torch.float16)
        facts = storable(HELD) | {"teachers": json.dumps(identities(self._teachers))}
        write_native(weights, replace(trained, tensors=halves, extra=trained.extra | facts))
        int8 = ExportConfig(
            checkpoint=str(weights),
            output=output / INT8,
            policy_only=True,
            format="int8",
            data=self._work / "data",
            tolerance=_RANGE_OF_ACTIONS,
        )
        planner = replace(
            int8,
            output=output / PLANNER,
            policy_only=False,
            format="fp32",
            preset=PRESET,
            tolerance=None,
        )
        # Whole files stay: they state a measured latency, so a second export differs.
        if not int8.output.exists():
            export(int8, progress=self._stage("compress", f"stages of {INT8}"))
        if not planner.output.exists():
            try:
                export(planner, progress=self._stage("compress", f"stages of {PLANNER}"))
            except CheckpointError as error:
                self._progress.warn(f"there is no {PLANNER}: {error}")
        return weights

    def _score(self, weights: Path) -> dict[str, Path]:
        output, seed = self._config.output, REPORTED_SEED
        sources = {
            "teacher": self._team,
            "student": str(weights),
            "student-int8": str(output / INT8),
        }
        results = {name: output / "results" / f"{name}.json" for name in sources}
        for name, source in sources.items():
            stage = self._stage("score", f"tasks of {name}")
            self._evaluate(source, results[name], self._tasks, seed, SCORE_EPISODES, stage)
        return results

    def _write_folder(
        self, weights: Path, results: Mapping[str, Path], planned: Sequence[str]
    ) -> Student:
        output = self._config.output
        convert = ConvertConfig(
            checkpoint=str(weights), output=output, results=(results["student"],)
        )
        save_folder(convert)
        contents = {name: parse_json(path.read_bytes()) for name, path in results.items()}
        lost = compare(results["teacher"], results["student"])
        card = output / "README.md"
        text = card.read_text(encoding="utf-8") + _card(contents, lost, planned)
        with written(card, RunError) as temporary:
            temporary.write_text(text, encoding="utf-8")
        curves = [self._work / name / "config.json" for name in ("trained", "corrected")]
        write_report(
            ReportConfig(results=(*results.values(), *curves), output=output / "report.html")
        )
        teacher, policy, int8 = (
            lost.unit.shown(stored_score(content["score"])) for content in contents.values()
        )
        return Student(output, teacher, policy, int8, lost)


def _card(
    contents: Mapping[str, Mapping[str, Any]], lost: Comparison, planned: Sequence[str]
) -> str:
    """Return the card's section on what the student lost."""
    factor = lost.unit.per_point
    rows = []
    for task, difference in lost.per_task.items():
        found = [factor * content["tasks"][task]["score"] for content in contents.values()]
        cells = (f"{value:.2f}" for value in found)
        rows.append(f"| {task} | {' | '.join(cells)} | {difference:+.2f} |")
    means = [f"{factor * content['score']['mean']:.2f}" for content in contents.values()]
    way = f"planner on {', '.join(planned)}, its policy elsewhere" if planned else "policy"
    lines = [
        "",
        "## Teacher and student",
        "",
        f"The teacher acted by its {way}. {SCORE_EPISODES} episodes a task from starts "
        f"{REPORTED_SEED:,} on, the same for all; the student acts by its policy. The "
        f"numbers are {lost.unit.name}s.",
        "",
        "| task | teacher | student | student, int8 | student less teacher |",
        "|---|---|---|---|---|",
        *rows,
        f"| mean | {' | '.join(means)} | {lost.difference} |",
    ]
    return "\n".join(lines) + "\n"
