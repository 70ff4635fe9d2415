"""What a distillation will do: teachers, tasks, episodes, updates, and their duration here."""

import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from tdmpc_opt.agents.compute import best_device, threads
from tdmpc_opt.agents.own import Assigned
from tdmpc_opt.agents.sources import (
    CheckpointSource,
    PolicySource,
    RandomSource,
    open_source,
)
from tdmpc_opt.agents.timing import seconds_per_step
from tdmpc_opt.checkpoints.load import share_names
from tdmpc_opt.configs.pipeline import DistillConfig
from tdmpc_opt.configs.training import LossWeights, TrainConfig
from tdmpc_opt.data.sampler import Batch
from tdmpc_opt.errors import (
    InputError,
    MissingDependencyError,
    RunError,
    UnknownTaskError,
    counted,
)
from tdmpc_opt.files import (
    Identity,
    alone,
    parse_json,
    refuse_overwrite,
    repairable,
    require_same,
)
from tdmpc_opt.machine import ResultFile, choose_processes, choose_threads
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.progress import Progress, Silent, Stage
from tdmpc_opt.schema import Task, TaskTable, model_config
from tdmpc_opt.tasks import choose_tasks
from tdmpc_opt.training.step import build_learner, train_step

DEFAULT_UPDATES = 45_000
NOISES = (0.0, 0.2, 0.5)
"""Standard deviations of the noise of the teacher's episodes."""
ROUND_NOISE = 0.2
"""The same of the student's episodes: a student that stands still sees one state all along."""
TRIAL_EPISODES = 3
SCORE_EPISODES = 10
PRESET = "realtime"
"""Planner budget of the teacher's plans and of the exported planner."""
WEIGHTS = LossWeights(behaviour=20.0, entropy=3e-3)
BATCH = 64
"""Slices per update for all terms."""
LABELLED = 128
"""Further slices per update for imitation, which costs a quarter of the others."""
_LEAST_PLANNED = 0.1
"""Share of the episodes below which plans label none. They may take as long as all other work
together, so that slow ones label fewer episodes."""
_MOST_UPDATES = 10_000_000
_MEASURED_CALLS = 3
_SECONDS_OF_EXPORTS = 60.0
_NEEDED = {
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "jinja2": "report",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a distillation will do on this machine."""

    tasks: tuple[str, ...]
    """Names of the tasks, `MODULE:ID` for environments of the user's."""
    planned: tuple[str, ...]
    """Tasks on which the teacher's planner is compared with its policy."""
    planner_seconds: float
    """Duration of a label by planning, the longest of the teachers'; 0 where none can plan."""
    updates: int
    """Gradient updates before the on-policy rounds."""
    rounds: int
    round_updates: int
    """Gradient updates of each round."""
    episodes: int
    """Teacher's episodes per task and strength of noise."""
    round_episodes: int
    """Student's episodes per task and round."""
    environment_steps: int
    """Agent steps of all episodes, evaluation included."""
    hours: float
    """Expected duration, from speeds measured when the plan was made."""
    disk_bytes: int
    """Expected size of the output folder with its data."""
    planned_episodes: int = 0
    """As `episodes`, for the tasks that plans label; plans of older versions state 0, which
    means as many."""

    def __str__(self) -> str:
        updates = self.updates + self.rounds * self.round_updates
        plans = ""
        if self.planner_seconds:
            cost = f"({self.planner_seconds:.2g} s a state)"
            plans = f", planner tried as labeller on {len(self.planned)} {cost}"
            plans = plans if self.planned else f", no labels by planning {cost}"
        most = "at most " if self.planned else ""
        time = f"{self.hours:.2g} h" if self.hours >= 1 else f"{60 * self.hours:.2g} min"
        return (
            f"{counted(len(self.tasks), 'task')}{plans}; "
            f"{most}{counted(self.environment_steps, 'environment step')}; "
            f"{counted(updates, 'update')}, {self.rounds * self.round_updates:,} of them in "
            f"{counted(self.rounds, 'on-policy round')}\nabout {time} on this machine and "
            f"{self.disk_bytes / 1e6:,.0f} MB of disk"
        )


def plan(config: DistillConfig, progress: Progress | None = None) -> Plan:
    """Decide what `distill` will do, by a measurement of some seconds; a stored plan is kept.

    Raises:
        RunError: The folder belongs to another distillation, or another process works in it.
        CheckpointError: A teacher that cannot be read.
        UnknownTaskError: A task that no teacher has.
        InputError: A teacher that has nothing to imitate, is not needed, or of the user's own
            code that fails.
        MissingDependencyError: A library that a later stage needs.
    """
    refuse_overwrite(config)
    with alone(config.output / "work" / "plan.json"):
        return stored_plan(config, open_teachers(config), progress or Silent())


Teachers = dict[str, tuple[Assigned, PolicySource]]
"""By task as the command line names it."""


def open_teachers(config: DistillConfig) -> Teachers:
    """Share the tasks out: each goes to the first teacher that has it."""
    for library, extra in _NEEDED.items():
        if find_spec(library) is None:
            raise MissingDependencyError(
                f'distill needs {library}: pip install "tdmpc-opt[{extra}]"'
            )
    files = [
        text for text in config.teachers if isinstance(open_source(text), CheckpointSource)
    ]
    names = dict(zip(files, share_names(files, config.tasks), strict=True))
    wanted = None
    if config.tasks is not None and not any(names.values()):
        wanted = [task.env or task.name for task in choose_tasks(config.tasks).tasks]
    found: Teachers = {}
    for text in config.teachers:
        own = names.get(text)
        source = open_source(text, names=own, device=config.device)
        table = _tasks(source, own, wanted if len(config.teachers) > 1 else config.tasks)
        source.require_labels(table)
        new = [task for task in table.tasks if (task.env or task.name) not in found]
        if not new:
            raise InputError(
                f"{text} is not used: the teachers before it have all of its tasks; leave it "
                "out"
            )
        for task in new:
            found[task.env or task.name] = Assigned(text, names=own), source
    missing = [name for name in wanted or () if name not in found]
    if missing:
        raise UnknownTaskError(
            f"no teacher has {', '.join(missing)}; name one that does, or other --tasks"
        )
    return found


def identities(teachers: Teachers) -> list[Identity]:
    """Return what identifies each teacher, by its content for the tasks that it has."""
    owned: dict[str, tuple[PolicySource, list[Task]]] = {}
    for name, (assigned, source) in teachers.items():
        owned.setdefault(assigned.source, (source, []))[1].extend(source.tasks(name).tasks)
    return [source.identity(TaskTable(tuple(tasks))) for source, tasks in owned.values()]


def _tasks(
    source: PolicySource, names: str | None, wanted: str | list[str] | None
) -> TaskTable:
    """Return the tasks that a teacher has, of several teachers those that are wanted."""
    if names is not None:
        return source.tasks(names)
    if isinstance(wanted, list):
        wanted = ",".join(name for name in wanted if _has(source, name)) or wanted[0]
    return source.tasks(wanted)


def _has(source: PolicySource, task: str) -> bool:
    try:
        source.tasks(task)
    except UnknownTaskError:
        return False
    return True


def stored_plan(config: DistillConfig, teachers: Teachers, progress: Progress) -> Plan:
    """Return the plan of the output folder; a folder without one gets one."""
    path = config.output / "work" / "plan.json"
    tables = {name: source.tasks(name) for name, (_, source) in teachers.items()}
    identity: dict[str, Any] = {
        "teachers": {
            name: source.identity(tables[name]) for name, (_, source) in teachers.items()
        },
        "size": config.size,
        "hours": config.hours,
        "updates": config.updates,
        "seed": config.seed,
    }
    if config.matmul != "highest":  # plans of older versions do not name it
        identity["matmul"] = config.matmul
    if path.exists():
        with repairable(path, RunError):
            content = parse_json(path.read_bytes())
            stored: dict[str, Any] = content["plan"]
            names = {key: tuple(stored[key]) for key in ("tasks", "planned")}
            known, found = Plan(**(stored | names)), dict(content["config"])
        require_same(config.output, found, identity, RunError)
        return known
    decided = _Speeds(config, teachers, tables, progress).plan()
    ResultFile(path, "distillation", identity, RunError).write(plan=asdict(decided))
    return decided


class _Speeds:
    """Speeds of this machine, measured in some seconds, and what they make of a budget."""

    def __init__(
        self,
        config: DistillConfig,
        teachers: Teachers,
        tables: Mapping[str, TaskTable],
        progress: Progress,
    ) -> None:
        self._config = config
        self._tables = tables
        self._policy: dict[str, float] = {}
        self._planner: dict[str, float] = {}
        sources = {assigned.source: source for assigned, source in teachers.values()}
        stage = Stage(progress, "measure (speeds)")
        for number, (text, source) in enumerate(sources.items()):
            stage.update(number, len(sources) + 1, f"actions of {text}")
            own = [name for name, (other, _) in teachers.items() if other.source == text]
            task = tables[own[0]].tasks[0]
            self._policy |= dict.fromkeys(
                own, seconds_per_step([source], task, SCORE_EPISODES, batched=True)
            )
            if isinstance(source, CheckpointSource) and source.plans():
                plans = replace(source, mode="planner", preset=PRESET)
                self._planner |= dict.fromkeys(
                    own, seconds_per_step([plans], task, SCORE_EPISODES)
                )
        self._workers = min(choose_processes(config.workers).count, len(teachers))
        stage.update(len(sources), len(sources) + 1, "updates of the student")
        tasks = TaskTable(tuple(table.tasks[0] for table in tables.values()))
        self._update, self._student, self._parameters = _measure_student(config, tasks)

    def plan(self) -> Plan:
        """Return the plan for the budget; fewer hours than the least takes are refused."""
        planned = bool(self._planner)
        updates = self._updates(planned=planned)
        if planned and self._share_of_plans(_schedule(updates)) < _LEAST_PLANNED:
            planned = False
            updates = self._updates(planned=planned)
        shape = self._shape(updates, planned=planned)
        # The policy may turn out better than the plans, and then labels all episodes.
        most = shape | {"planned_episodes": shape["episodes"]}
        return Plan(
            tasks=tuple(self._tables),
            planned=tuple(self._planner) if planned else (),
            planner_seconds=max(self._planner.values(), default=0.0),
            **shape,
            environment_steps=sum(
                self._length(name)
                * sum(_episodes(most, planned=planned and name in self._planner))
                for name in self._tables
            ),
            hours=self._seconds(shape, planned=planned) / 3600,
            disk_bytes=self._disk(shape),
        )

    def _updates(self, *, planned: bool) -> int:
        """Return the updates that are asked for, or the most that the hours allow."""
        if self._config.hours is None:
            return self._config.updates or DEFAULT_UPDATES

        def seconds(updates: int) -> float:
            return self._seconds(self._shape(updates, planned=planned), planned=planned)

        limit = 3600 * self._config.hours
        most = bisect_right(range(1, _MOST_UPDATES), limit, key=seconds)
        if not most:
            raise InputError(
                f"--hours {self._config.hours:g} is too short: episodes and exports alone take "
                f"about {seconds(1) / 3600:.2g} hours here"
            )
        return most

    def _shape(self, updates: int, *, planned: bool) -> dict[str, int]:
        """Return the schedule, with as few episodes as make plans take half of the time."""
        shape = _schedule(updates)
        if planned:
            share = self._share_of_plans(shape)
            for name in ("planned_episodes", "round_episodes"):
                shape[name] = max(1, int(share * shape[name]))
        return shape

    def _share_of_plans(self, shape: Mapping[str, int]) -> float:
        """Return the share of the episodes whose plans take as long as all other work."""
        rest = self._seconds(shape, planned=False)
        plans = self._seconds(shape, planned=True) - rest
        return min(1.0, rest / plans) if plans > 0 else 1.0

    def _length(self, name: str) -> int:
        return self._tables[name].tasks[0].episode_length

    def _seconds(self, shape: Mapping[str, int], *, planned: bool) -> float:
        total = 0.0
        for name in self._tables:
            planner = self._planner.get(name) if planned else None
            policy = self._policy[name]
            label = max(policy, planner or 0.0)
            taught, corrected, scored, tried = _episodes(shape, planned=planner is not None)
            total += self._length(name) * (
                taught * label
                + corrected * (label + self._student)
                + scored * (label + 2 * self._student) / 3
                + tried * (policy + (planner or 0.0)) / 2
            )
        done = shape["updates"] + shape["rounds"] * shape["round_updates"]
        return total / self._workers + done * self._update + _SECONDS_OF_EXPORTS

    def _disk(self, shape: Mapping[str, int]) -> int:
        rows = [table.tasks[0] for table in self._tables.values()]
        numbers = max(task.obs_dim + 2 * task.action_dim + 1 for task in rows)
        steps = sum(
            sum(_episodes(shape, planned=False)[:2]) * task.episode_length for task in rows
        )
        # Two runs of two states: weights, target Qs and two moments; a student a round.
        states = 2 * 2 * 4 + shape["rounds"] + 4
        return 4 * (steps * numbers + states * self._parameters)


def _schedule(updates: int) -> dict[str, int]:
    """Return how a number of updates is divided, and the episodes for them.

    Many updates need many starts: of tasks that draw a target for each episode, a student
    memorises the targets of few episodes.
    """
    rounds = min(6, max(1, updates // 200))
    each = max(1, updates // 2 // rounds)
    episodes = min(100, max(1, updates // 100), 14 + updates // 500)
    return {
        "updates": max(1, updates - rounds * each),
        "rounds": rounds,
        "round_updates": each,
        "episodes": episodes,
        "planned_episodes": episodes,
        "round_episodes": min(40, max(1, updates // 200), 3 + updates // 1000),
    }


def _episodes(shape: Mapping[str, int], *, planned: bool) -> tuple[int, int, int, int]:
    """Return the episodes of a task: teacher's, student's, of the scores, of the comparison."""
    return (
        len(NOISES) * shape["planned_episodes" if planned else "episodes"],
        shape["rounds"] * shape["round_episodes"],
        3 * SCORE_EPISODES,
        2 * TRIAL_EPISODES if planned else 0,
    )


def _measure_student(config: DistillConfig, tasks: TaskTable) -> tuple[float, float, int]:
    """Return the seconds of an update and of an action, and the number of weights."""
    generator = torch.Generator().manual_seed(config.seed)
    model = WorldModel(model_config(config.size, tasks), tasks, generator)
    parameters = sum(value.numel() for value in model.parameters())
    device = best_device(config.device)
    settings = recipe(config, config.output / "unused", 1)
    fabric = Fabric(accelerator=device.type, devices=1)
    batch, labelled = (
        _any_batch(tasks, slices, settings.horizon, device) for slices in (BATCH, LABELLED)
    )
    with threads(choose_threads().count, config.matmul):
        learner = build_learner(fabric, model, settings)
        update = _mean_seconds(lambda: train_step(learner, batch, labelled))
    with torch.no_grad(), threads(1):
        obs, task = batch.obs[0][:SCORE_EPISODES], batch.task[:SCORE_EPISODES]
        action = _mean_seconds(lambda: model.policy(model.encode(obs, task), task))
    env = seconds_per_step(
        [RandomSource(source="random")], tasks.tasks[0], SCORE_EPISODES, batched=True
    )
    return update, env + action / SCORE_EPISODES, parameters


def _mean_seconds(call: Callable[[], object]) -> float:
    call()  # what the first call builds does not count
    start = time.perf_counter()
    for _ in range(_MEASURED_CALLS):
        call()
    return (time.perf_counter() - start) / _MEASURED_CALLS


def _any_batch(tasks: TaskTable, slices: int, horizon: int, device: torch.device) -> Batch:
    """Return zeros in the shape of a batch; an update takes as long with them."""
    action = torch.zeros(horizon, slices, tasks.action_dim, device=device)
    return Batch(
        obs=torch.zeros(horizon + 1, slices, tasks.obs_dim, device=device),
        action=action,
        label=action,
        reward=action[..., :1],
        task=torch.zeros(slices, dtype=torch.int64, device=device),
    )


def recipe(config: DistillConfig, output: Path, updates: int) -> TrainConfig:
    """Return the recipe of the student before its on-policy rounds."""
    return TrainConfig(
        data=config.output / "work" / "data",
        output=output,
        device=config.device,
        seed=config.seed,
        size=config.size,
        updates=updates,
        lr_zero_at=updates,
        batch_size=BATCH,
        behaviour_batch=LABELLED,
        weights=WEIGHTS,
        lr=1e-3,
        encoder_lr_scale=1.0,
        td_lambda=1.0,
        matmul=config.matmul,
    )
