"""The whole line in minutes: bundled teacher, real episodes, students, fp16, scores."""

import csv
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tdmpc_opt import zoo
from tdmpc_opt.agents.collect import collect
from tdmpc_opt.checkpoints.load import describe
from tdmpc_opt.compression.quantize import quantize
from tdmpc_opt.configs import (
    CollectConfig,
    DistillConfig,
    EvaluateConfig,
    LossWeights,
    QuantizeConfig,
    TrainConfig,
)
from tdmpc_opt.evaluation.evaluate import evaluate
from tdmpc_opt.evaluation.results import ResultFile
from tdmpc_opt.evaluation.score import Score
from tdmpc_opt.files import alone
from tdmpc_opt.progress import Progress, Silent, Stage
from tdmpc_opt.report.charts import plot_curves, plot_scores
from tdmpc_opt.schema import Size
from tdmpc_opt.training.distillation import distill
from tdmpc_opt.training.loop import train

TEACHER = "demo-teacher"
STUDENT_SIZE: Size = "0.3"
# The teacher's own episodes and noisy ones: noise, episodes per task.
_MIX = ((0.0, 12), (0.3, 12))
_PATHS = ("data", "output", "start")


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One line of the demo's table."""

    name: str
    score: float
    ci95: tuple[float, float] | None
    parameters: int
    """Target Qs not counted; 0 for random actions."""
    size_bytes: int


def demo(
    output: Path, progress: Progress | None = None, *, updates: int = 1500, episodes: int = 10
) -> list[DemoRow]:
    """Distil the bundled teacher into a small student and measure what that brings.

    Every stage is the command of the same name; an interrupted demo goes on where it stopped.

    Args:
        output: Folder for data, runs, result files and plots.
        progress: Takes the progress of each stage.
        updates: Gradient updates of each student.
        episodes: Evaluation episodes per task.

    Returns:
        The rows of the table, which `demo.json` and the plots in `output` show too.

    Raises:
        TdmpcOptError: As the stages raise.
    """
    with alone(output / "demo.json"):
        return _demo(output, progress or Silent(), updates, episodes)


def _demo(folder: Path, progress: Progress, updates: int, episodes: int) -> list[DemoRow]:
    start = time.perf_counter()
    teacher = zoo.path(TEACHER)
    _collect(teacher, folder / "data", Stage(progress, "collect"))
    shared = TrainConfig(
        data=folder / "data",
        output=folder / "no-teacher",
        size=STUDENT_SIZE,
        updates=updates,
        batch_size=128,
        weights=LossWeights(behaviour=20.0),
        lr=1e-3,
        encoder_lr_scale=1.0,
        log_every=100,
    )
    with_teacher = replace(shared, output=folder / "distilled")
    distilled = distill(
        DistillConfig(**_fields(with_teacher), teacher=str(teacher)), Stage(progress, "distill")
    )
    plain = train(shared, Stage(progress, "train without teacher"))
    small = folder / "distilled-fp16.safetensors"
    quantize(QuantizeConfig(checkpoint=str(distilled), output=small))
    policies = {
        "random actions": "random",
        "student without teacher": str(plain),
        "distilled student": str(distilled),
        "distilled student, fp16": str(small),
        "teacher": str(teacher),
    }
    rows = [_row(name, path, folder, episodes, progress) for name, path in policies.items()]
    curves = {"distilled": _losses(distilled), "without teacher": _losses(plain)}
    plot_scores({row.name: Score(row.score, row.ci95) for row in rows}, folder / "scores.png")
    plot_curves(curves, "loss", folder / "curves.png")
    facts = {
        "teacher": describe(teacher).sha256,
        "episodes": episodes,
        "mix": _MIX,
        "train": {name: value for name, value in asdict(shared).items() if name not in _PATHS},
    }
    seconds = round(time.perf_counter() - start, 1)
    file = ResultFile(folder / "demo.json", "demo", facts)
    file.write(rows=[asdict(row) for row in rows], seconds=seconds)
    return rows


def _fields(config: TrainConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def _collect(teacher: Path, data: Path, progress: Progress) -> None:
    first = 0
    for noise, episodes in _MIX:
        mix = CollectConfig(
            policy=str(teacher), noise=noise, episodes=episodes, seed=first, output=data
        )
        collect(mix, progress)
        first += episodes


def _row(name: str, source: str, folder: Path, episodes: int, progress: Progress) -> DemoRow:
    output = folder / "results" / (name.replace(", ", "-").replace(" ", "-") + ".json")
    content = evaluate(
        EvaluateConfig(
            checkpoint=source,
            tasks=",".join(describe(zoo.path(TEACHER)).tasks) if source == "random" else None,
            episodes=episodes,
            mode="policy",
            device="cpu",
            output=output,
        ),
        Stage(progress, f"evaluate {name}"),
    )
    summary = None if source == "random" else describe(source)
    return DemoRow(
        name=name,
        score=content["score"]["mean"],
        ci95=content["score"]["ci95"],
        parameters=summary.parameters if summary else 0,
        size_bytes=summary.size_bytes if summary else 0,
    )


def _losses(checkpoint: Path) -> list[tuple[float, float]]:
    with (checkpoint.parent / "metrics.csv").open(newline="") as file:
        return [(float(row["update"]), float(row["loss"])) for row in csv.DictReader(file)]
