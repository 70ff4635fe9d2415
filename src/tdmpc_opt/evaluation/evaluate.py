"""Score a policy on real tasks, task by task."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from tdmpc_opt.agents.compute import best_device, threads
from tdmpc_opt.agents.executor import run_parallel
from tdmpc_opt.agents.rollout import rollout
from tdmpc_opt.agents.sources import CheckpointSource, PolicySource, open_source, refuse_unused
from tdmpc_opt.agents.timing import estimate
from tdmpc_opt.configs.common import device_of_work
from tdmpc_opt.configs.measure import EvaluateConfig
from tdmpc_opt.evaluation.results import EvaluationFile
from tdmpc_opt.evaluation.score import task_score, unit_of
from tdmpc_opt.files import alone, refuse_overwrite
from tdmpc_opt.machine import choose_processes
from tdmpc_opt.planning.planner import ChooseEngine, eager_engine
from tdmpc_opt.progress import Progress, Silent
from tdmpc_opt.schema import Task, TaskTable, seed_number


@dataclass(frozen=True)
class TaskWork:
    """One task with all its episodes: the unit of work of a process."""

    policy: PolicySource
    task: Task
    episodes: int
    seed: int
    first: int
    """Number of the first episode to run; those before it are known."""


def evaluate(
    config: EvaluateConfig,
    progress: Progress | None = None,
    choose_engine: ChooseEngine = eager_engine,
) -> dict[str, Any]:
    """Evaluate and write the result file as tasks finish; go on from a file that exists.

    Episode k of every task starts from environment seed `seed + k`; the policy's noise is
    seeded by (seed, number of the task, k). A file of fewer episodes gets those it lacks. They
    run in a batch of another length than in one go, which may round otherwise.

    Returns:
        The content of the result file.

    Raises:
        UnknownTaskError: A task that nobody here or not the policy knows.
        InputError: An environment of the user's that no agent here can act in.
        CheckpointError: A checkpoint that cannot be read.
        ResultError: An output that belongs to another evaluation or cannot be written.
        RunError: Another process evaluates into the same file.
    """
    refuse_overwrite(config, ".json")
    progress = progress or Silent()
    device = device_of_work(config.device, config.ray)
    policy = open_source(
        config.checkpoint,
        mode=config.chosen_mode,
        names=config.tasks,
        preset=config.preset,
        noise=config.noise,
        device=device,
        replan_every=config.replan_every,
        choose_engine=choose_engine,
    )
    refuse_unused(
        policy,
        config.mode,
        preset=config.preset,
        noise=config.noise,
        replan_every=config.replan_every,
        engine=config.engine != "auto",
    )
    tasks = policy.tasks(config.tasks)
    with alone(config.output):
        return _evaluate(config, policy, tasks, progress)


def _evaluate(
    config: EvaluateConfig, policy: PolicySource, tasks: TaskTable, progress: Progress
) -> dict[str, Any]:
    training = policy.training() if isinstance(policy, CheckpointSource) else None
    result = EvaluationFile(config.output, _identity(config, policy, tasks), training)
    work = [
        TaskWork(policy, task, config.episodes, config.seed, result.measured(task.name))
        for task in tasks.tasks
        if result.measured(task.name) < config.episodes
    ]
    workers = choose_processes(config.workers, config.ray)
    steps = {item.task: item.episodes - item.first for item in work}
    expected = estimate([policy], steps, workers.count)
    unit = unit_of(tasks.names)
    progress.update(result.finished, len(tasks), f"processes: {workers}{expected}")
    for item, record in run_parallel(evaluate_task, work, workers.count, config.ray):
        result.add(item.task.name, record)
        note = f"{item.task.name} {unit.per_point * record['score']:.1f}"
        progress.update(result.finished, len(tasks), note)
    return result.content()


def _identity(config: EvaluateConfig, policy: PolicySource, tasks: TaskTable) -> dict[str, Any]:
    agent = policy if isinstance(policy, CheckpointSource) else None
    chosen = agent.chosen() if agent else None
    plans = chosen is not None and chosen.mode == "planner"
    own = {task.name: task.env for task in tasks.tasks if task.env}
    return {
        "checkpoint": policy.identity(tasks),
        "tasks": list(tasks.names),
        **({"environments": own} if own else {}),
        "episodes": config.episodes,
        "seed": config.seed,
        "mode": chosen.mode if chosen else None,
        "budget": asdict(chosen.budget) if chosen and plans else None,
        "engine": agent.engine_name() if agent and plans else None,
        "noise": config.noise,
        "device": best_device(device_of_work(config.device, config.ray)).type,
    }


def evaluate_task(work: TaskWork) -> dict[str, Any]:
    """Run the episodes of one task and return their record in a result file."""
    with threads(1):
        start = time.perf_counter()
        task_id = seed_number(work.task)
        numbers = range(work.first, work.episodes)
        seeds = [work.seed + number for number in numbers]
        streams = [(work.seed, task_id, number) for number in numbers]
        episodes = rollout(work.policy.load(TaskTable((work.task,))), work.task, seeds, streams)
    returns = [episode.total_reward for episode in episodes]
    return {
        "returns": returns,
        "seeds": seeds,
        "score": task_score(returns),
        "seconds": round(time.perf_counter() - start, 2),
    }
