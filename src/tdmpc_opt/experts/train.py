"""Training of one expert per task by sbx-rl, resumable, one process per task."""

import importlib.util
import os
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmpc_opt.agents.executor import run_parallel
from tdmpc_opt.agents.expert import ExpertNetwork, expert_path
from tdmpc_opt.agents.sources import open_source
from tdmpc_opt.agents.timing import estimate
from tdmpc_opt.configs.common import CHOICE_SEED
from tdmpc_opt.configs.data import ExpertsConfig
from tdmpc_opt.errors import MissingDependencyError, RunError
from tdmpc_opt.experts.learner import (
    BATCH_SIZE,
    RETURN_STEPS,
    build_learner,
    read_network,
    warm_up,
    warm_up_source,
)
from tdmpc_opt.experts.state import Progress, read_progress, restore_model, save_state
from tdmpc_opt.files import alone, parse_json, refuse_overwrite, repairable, require_same
from tdmpc_opt.machine import ResultFile, choose_processes
from tdmpc_opt.progress import Progress as Reports
from tdmpc_opt.progress import Silent
from tdmpc_opt.schema import Task, TaskTable
from tdmpc_opt.tasks import choose_tasks
from tdmpc_opt.tasks.environment import make_env

EARLY_FRACTION = 0.2
"""Part of the training after which the half-trained policy is kept."""

_FIRST_REPORT_SECONDS = 2.0
_REPORT_SECONDS = 30.0
_ONE_THREAD = {
    "JAX_PLATFORMS": "cpu",
    "NPROC": "1",  # XLA's thread pool
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}


def train_experts(config: ExpertsConfig, reports: Reports | None = None) -> None:
    """Train one policy per task, skipping finished ones and resuming unfinished ones.

    Args:
        config: What to train.
        reports: Receives the progress of each task, in the process that trains it; it is
            pickled where that is another one.

    Raises:
        UnknownTaskError: A task that is not known here.
        InputError: An environment of the user's that no agent here can act in.
        CheckpointError: A warm-up policy that cannot be read.
        MissingDependencyError: sbx-rl or the simulator is not installed.
        RunError: The folder has results of another config, or a damaged state; or another
            process trains one of the tasks there.
    """
    refuse_overwrite(config)
    if config.method == "sac" and importlib.util.find_spec("sbx") is None:
        raise MissingDependencyError(
            "training experts needs sbx-rl, which is not installed; run: "
            "pip install 'tdmpc-opt[experts]'"
        )
    tasks = choose_tasks(config.tasks or "mt30").tasks
    reports = reports or Silent()
    waiting = []
    for task in tasks:
        if _is_finished(config, task.name):
            text = f"{task.name}: already finished, skipped"
            reports.update(config.steps, config.steps, text)
        else:
            waiting.append(task)
    if waiting:
        reports.update(0, len(tasks), _expected(config, waiting))
    work = partial(train_expert, config, reports=reports)
    with ExitStack() as held:
        for task in waiting:  # another process may train other tasks into the same folder
            held.enter_context(alone(_record_path(config, task.name)))
        for _ in run_parallel(work, waiting, config.workers, config.ray):
            pass  # each worker writes its own files


def _expected(config: ExpertsConfig, tasks: list[Task]) -> str:
    """Return what is to do, and for planning how long it takes; SAC's workers report that."""
    text = f"experts finished, {len(tasks)} to train with {config.steps:,} steps each"
    if config.ray:
        return text
    workers = choose_processes(config.workers)
    text += f"; processes: {workers}"
    if config.method == "sac":
        return f"{text}; the time left follows after seconds"
    episodes = {task: -(-config.steps // task.episode_length) for task in tasks}
    return text + estimate([open_source("plan")], episodes, workers.count)


def train_expert(config: ExpertsConfig, task: Task, reports: Reports) -> None:
    """Train the policy of one task, from its saved state if there is one.

    Runs on one thread: it sets environment variables, so call it in a separate process,
    before jax or torch is imported there.

    Raises:
        RunError: The saved state is damaged or of another config.
    """
    for name, value in _ONE_THREAD.items():
        os.environ.setdefault(name, value)
    training = _Training(config, task, reports)
    training.finish(training.plan() if config.method == "plan" else training.reinforce())


class _Training:
    """The training of one expert."""

    def __init__(self, config: ExpertsConfig, task: Task, reports: Reports) -> None:
        self._config, self._task, self._reports = config, task, reports
        self._state = _state_path(config, task.name)
        self.progress = Progress(identity=_identity(config, task.name))
        if self._state.exists():
            self.progress = read_progress(self._state)
            _refuse_other(self._state, self.progress.identity, config, task.name)
        self._begun, self._first = time.monotonic(), self.progress.step
        self._spent = self.progress.seconds

    def _report(self, text: str) -> None:
        step, total = self.progress.step, self._config.steps
        self._reports.update(step, total, f"{self._task.name}: {text}")

    def _report_speed(self, step: int) -> None:
        speed = (step - self._first) / (time.monotonic() - self._begun)
        curve = self.progress.curve[-8:]
        recent = (
            f"recent return {np.mean([value for _, value in curve]):.0f}, " if curve else ""
        )
        minutes = (self._config.steps - self.progress.step) / speed / 60
        text = f"{speed:.0f} steps/s, {recent}{minutes:.0f} min left"
        self._reports.update(step, self._config.steps, f"{self._task.name}: {text}")

    def _count(self, step: int) -> None:
        self.progress.step = step
        self.progress.seconds = self._spent + time.monotonic() - self._begun

    def reinforce(self) -> ExpertNetwork:
        """Train by SAC to the last step."""
        progress = self.progress
        model = build_learner(self._config, self._task, first_episode=len(progress.curve))
        if self._state.exists():
            restore_model(self._state, model, progress)
            self._report("resumed at this step")
        else:
            progress.step = warm_up(model, self._config, self._task)
        self._learn(model)
        save_state(self._state, model, progress)  # kept: a later run may train more steps
        return read_network(model, self._task.name, progress.step)

    def _learn(self, model: Any) -> None:
        """Train by whole episodes, so that a resumed run never continues half of one.

        Episodes that states end are of any length; of those a resumed run leaves out what is
        left.
        """
        config, task, progress = self._config, self._task, self.progress
        half_trained = expert_path(config.output / "early", task.name)
        self._begun, self._first = time.monotonic(), progress.step
        due = self._begun + _FIRST_REPORT_SECONDS

        def watch(_: object, __: object) -> bool:
            """Report now and then; one call of `learn` takes minutes."""
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + _REPORT_SECONDS
                self._report_speed(model.num_timesteps)
            return True

        while progress.step < config.steps:
            before, episodes = progress.step, model._episode_num
            model.learn(
                task.episode_length * config.envs,
                callback=watch,
                reset_num_timesteps=False,
                log_interval=None,
            )
            self._count(model.num_timesteps)
            finished = list(model.ep_info_buffer)[episodes - model._episode_num :]
            progress.curve.extend((progress.step, float(each["r"])) for each in finished)
            early = int(EARLY_FRACTION * config.steps)
            if progress.step >= early and not half_trained.exists():
                read_network(model, task.name, progress.step).save(half_trained)
            if before // config.save_every < progress.step // config.save_every:
                save_state(self._state, model, progress)

    def plan(self) -> ExpertNetwork:
        """Imitate planning in the simulator until all states are labelled."""
        from tdmpc_opt.experts.imitation import Imitation

        imitation = Imitation(self._config, self._task)
        if self._state.exists():
            imitation.load(self._state)
            self._report("resumed at this state")
        while self.progress.step < self._config.steps:
            imitation.round(self.progress)
            self._count(self.progress.step)
            imitation.save(self._state, self.progress)
            self._report_speed(self.progress.step)
        return imitation.network(self.progress)

    def finish(self, network: ExpertNetwork) -> None:
        """Write the policy, measure what was written, then write the record that it is done."""
        config, task, progress = self._config, self._task, self.progress
        path = expert_path(config.output, task.name)
        network.save(path)
        stored = ExpertNetwork.load(path)
        starts = range(CHOICE_SEED, CHOICE_SEED + config.episodes)
        returns = [measure(stored, task, seed) for seed in starts]
        replace(stored, returns=tuple(returns)).save(path)
        record = _record_path(config, task.name)
        ResultFile(record, "expert", progress.identity, RunError).write(
            steps=progress.step,
            learning_curve=_mean_curve(progress.curve),
            returns=returns,
            final_seed=CHOICE_SEED,
            seconds=round(progress.seconds, 1),
        )
        self._report(f"finished, mean return {np.mean(returns):.1f}")


def _mean_curve(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return one point for each batch of episodes, their mean return at the step they ended."""
    ends = sorted({step for step, _ in curve})
    return [
        (end, round(float(np.mean([value for step, value in curve if step == end])), 2))
        for end in ends
    ]


def measure(network: ExpertNetwork, task: Task, seed: int) -> float:
    """Return the return of one episode without noise, from the start of an environment seed."""
    env = make_env(task, seed)
    obs: NDArray[np.float32] = env.reset()[0]
    total, terminated, truncated = 0.0, False, False
    while not (terminated or truncated):
        obs, reward, terminated, truncated, _ = env.step(network.mean(obs[None])[0])
        total += float(reward)
    return total


def _is_finished(config: ExpertsConfig, task: str) -> bool:
    """Return whether the task has all its steps; results of another config are refused."""
    state, record = _state_path(config, task), _record_path(config, task)
    if not record.exists():
        if state.exists():
            _refuse_other(state, read_progress(state).identity, config, task)
        return False
    identity, steps = _recorded(record)
    _refuse_other(record, identity, config, task)
    if not expert_path(config.output, task).exists():
        return False
    if steps < config.steps:
        if not state.exists():
            raise RunError(
                f"{record} has {steps:,} steps and cannot go on to {config.steps:,}, for "
                f"{state} is gone; delete the record to train from the start"
            )
        return False
    return True


def _recorded(record: Path) -> tuple[Any, int]:
    """Return the config and the steps of a finished expert."""
    with repairable(record, RunError):
        content = parse_json(record.read_bytes())
        return content["config"], int(content["steps"])


def _refuse_other(path: Path, found: dict[str, Any], config: ExpertsConfig, task: str) -> None:
    require_same(path, found, _identity(config, task), RunError)


def _identity(config: ExpertsConfig, task: str) -> dict[str, Any]:
    """Describe what results depend on; the steps are left out, for a run may be extended."""
    fields = ["seed", "hidden", "envs", "episodes"]
    fields.append("update_ratio" if config.method == "sac" else "method")
    identity: dict[str, Any] = {"task": task} | {name: getattr(config, name) for name in fields}
    if config.method == "sac":
        identity |= {"n_steps": RETURN_STEPS, "batch_size": BATCH_SIZE}
    found = warm_up_source(config, task)
    if found is not None:
        source, known_as = found
        name = source.identity(TaskTable((Task(known_as, 1, 1),)))  # only its name is read
        identity["warm_up"] = {
            "policy": name,
            "task": known_as,
            "episodes": config.warm_up_episodes,
        }
    return identity


def _state_path(config: ExpertsConfig, task: str) -> Path:
    return config.output / "state" / f"{task}.npz"


def _record_path(config: ExpertsConfig, task: str) -> Path:
    return config.output / f"{task}.json"
