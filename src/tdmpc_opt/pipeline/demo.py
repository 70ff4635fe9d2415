"""The demo: one distillation in minutes, against students without a teacher."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tdmpc_opt import zoo
from tdmpc_opt.checkpoints.summary import describe
from tdmpc_opt.configs.common import REPORTED_SEED
from tdmpc_opt.configs.measure import EvaluateConfig
from tdmpc_opt.configs.pipeline import DistillConfig
from tdmpc_opt.configs.training import LossWeights
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.evaluation.evaluate import evaluate
from tdmpc_opt.evaluation.score import NORMALIZED, Score
from tdmpc_opt.files import alone
from tdmpc_opt.machine import ResultFile
from tdmpc_opt.pipeline.distill import distill
from tdmpc_opt.pipeline.plan import SCORE_EPISODES, WEIGHTS, plan, recipe
from tdmpc_opt.progress import Progress, Silent, Stage
from tdmpc_opt.report.charts import bar_chart, curve_chart, save_picture
from tdmpc_opt.report.read import read_metrics, training_curve
from tdmpc_opt.training.loop import train

TEACHER = "mt30-1m"
TASKS = "pendulum-swingup,cup-catch,reacher-easy"


def demo(
    output: Path, progress: Progress | None = None, *, updates: int = 3000, tasks: str = TASKS
) -> list[dict[str, Any]]:
    """Distil the bundled student further by `distill`, and train controls without a teacher.

    The controls have the student's size and see the same episodes in as many updates: one by
    plain TD-MPC2, one that also clones the actions of the data, noise included. An interrupted
    demo goes on where it stopped.

    Args:
        output: Folder for data, runs, result files and plots.
        progress: Takes the progress of each stage.
        updates: Gradient updates of each student.
        tasks: Names of tasks joined by commas.

    Returns:
        The rows of the table, as in `demo.json`: name, score with `ci95`, parameters (target Qs
        not counted) and bytes of each policy; these are 0 for random actions.

    Raises:
        TdmpcOptError: As the stages raise.
    """
    with alone(output / "demo.json"):
        return _demo(output, progress or Silent(), updates, tasks)


def _demo(folder: Path, progress: Progress, updates: int, tasks: str) -> list[dict[str, Any]]:
    start = time.perf_counter()
    config = DistillConfig(
        teachers=(TEACHER,), tasks=tasks, size="0.3", updates=updates, output=folder / "student"
    )
    distilled = distill(config, Stage(progress, "distill"))
    work, decided = distilled.folder / "work", plan(config)
    data = (work / "data", work / "corrected" / "data")
    shared = replace(
        recipe(
            config, folder / "plain", decided.updates + decided.rounds * decided.round_updates
        ),
        data=data,
        behaviour_batch=0,
        weights=LossWeights(entropy=WEIGHTS.entropy),
    )
    cloned = replace(
        recipe(config, folder / "cloned", shared.updates),
        data=tuple(
            _with_actions_as_labels(path, folder / "actions" / str(number))
            for number, path in enumerate(data)
        ),
    )
    policies = {
        "teacher": TEACHER,
        "distilled student": str(distilled.folder),
        "control: no teacher": str(
            train(shared, Stage(progress, "control without teacher (updates)"))
        ),
        "control: cloned data": str(
            train(cloned, Stage(progress, "control by cloning (updates)"))
        ),
        "random actions": "random",
    }
    rows = [_row(name, path, folder, tasks, progress) for name, path in policies.items()]
    scores = {row["name"]: [Score(row["score"], row["ci95"])] for row in rows}
    save_picture(bar_chart(scores, NORMALIZED), folder / "scores.png")
    runs = {
        "distilled, offline": work / "trained",
        "no teacher": folder / "plain",
        "cloned data": folder / "cloned",
    }
    panels = {  # a panel for each: losses of two objectives differ
        name: [training_curve(name, "loss", read_metrics(run), "loss")]
        for name, run in runs.items()
    }
    save_picture(curve_chart(panels), folder / "curves.png")
    facts = {
        "teacher": describe(zoo.path(TEACHER)).sha256,
        "tasks": tasks.split(","),
        "episodes": SCORE_EPISODES,
        "seed": REPORTED_SEED,
        "plan": asdict(decided),
    }
    file = ResultFile(folder / "demo.json", "demo", facts)
    seconds = round(time.perf_counter() - start, 1)
    file.write(rows=rows, seconds=seconds)
    return rows


def _with_actions_as_labels(source: Path, output: Path) -> Path:
    """Copy a dataset with the actions that were taken, noise included, as labels."""
    data = EpisodeDataset.open(source)
    copy = EpisodeDataset.open_or_create(output, data.tasks)
    for shard in data.shards:
        if not copy.has_shard(shard.name):
            episodes = [replace(found, label=found.action) for found in data.episodes(shard)]
            copy.append_shard(shard.name, episodes, {**shard.source, "label": "its actions"})
    return output


def _row(
    name: str, source: str, folder: Path, tasks: str, progress: Progress
) -> dict[str, Any]:
    output = folder / "results" / (name.replace(": ", "-").replace(" ", "-") + ".json")
    content = evaluate(
        EvaluateConfig(
            checkpoint=source,
            tasks=tasks,
            episodes=SCORE_EPISODES,
            seed=REPORTED_SEED,
            mode="policy",
            device="cpu",
            output=output,
        ),
        Stage(progress, f"evaluate {name} (tasks)"),
    )
    summary = None if source == "random" else describe(source)
    return {
        "name": name,
        "score": content["score"]["mean"],
        "ci95": content["score"]["ci95"],
        "parameters": summary.parameters if summary else 0,
        "size_bytes": summary.size_bytes if summary else 0,
    }
