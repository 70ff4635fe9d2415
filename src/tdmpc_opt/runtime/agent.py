"""`Agent`: acts on a device that has numpy and little else."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tdmpc_opt import zoo
from tdmpc_opt.errors import InputError
from tdmpc_opt.runtime.numpy_policy import NumpyPolicy
from tdmpc_opt.runtime.onnx_file import (
    FilePlan,
    OnnxFile,
    Provider,
    check_output,
    is_onnx,
    open_onnx,
)
from tdmpc_opt.runtime.plan_state import Clock, DeadlineTimer, check_deadline
from tdmpc_opt.runtime.planner import Inputs, OnnxPlanner
from tdmpc_opt.runtime.weights import MODEL_FILE, Weights, read_weights
from tdmpc_opt.schema import (
    TaskTable,
    check_action,
    check_observation,
    check_shape,
    task_id,
)

Array = NDArray[np.float32]
Generators = Sequence["np.random.Generator"]
Noise = Callable[[], Generators]
"""Gives each row's source of noise when called. A policy needs none, and numpy.random takes 6
MB of a device's memory as soon as it is named."""
Act = Callable[[Array, int, Noise], Array]
"""From observations [B, obs] of the task's own width, its id and where noise comes from to
actions [B, action], padded or not."""


class Agent:
    """The policy, or the planner, of one file.

    Threads may share an agent whose policy acts: calls leave nothing behind. A planner's plan
    goes from one call to the next, so each control loop needs an agent of its own; a call that
    comes while another thread's is not done is refused.

    Args:
        tasks: Its tasks.
        act: Computes actions.
        planner: What remembers plans, where there is one.
        timer: Measures the planner's rounds.
    """

    def __init__(
        self, tasks: TaskTable, act: Act, planner: OnnxPlanner | None, timer: DeadlineTimer
    ) -> None:
        self.tasks = tasks
        self._act, self._planner, self._timer = act, planner, timer
        self._generator: np.random.Generator | None = None
        self._indices: dict[str | int | None, int] = {}  # of the tasks acted in so far

    @property
    def plan(self) -> FilePlan | None:
        """What the planner searches with; None where the policy acts."""
        return self._planner.sizes if self._planner else None

    @property
    def deadlines(self) -> int:
        """Number of actions that had a deadline."""
        return self._timer.acts

    @property
    def deadline_misses(self) -> int:
        """Number of those actions that came after their deadline."""
        return self._timer.misses

    @property
    def iterations(self) -> int | None:
        """Iterations of the newest plan, which a deadline may have cut; None without a plan."""
        return self._planner.iterations if self._planner else None

    def reset(self) -> None:
        """Forget the plan, before a new episode; the policy alone remembers nothing.

        Raises:
            BusyError: Another thread plans with this agent at this moment.
        """
        if self._planner:
            self._planner.reset()

    def act(
        self,
        obs: NDArray[np.floating],
        task: str | int | None = None,
        *,
        deadline_ms: float | None = None,
        generator: "np.random.Generator | Generators | None" = None,
    ) -> Array:
        """Choose actions.

        Args:
            obs: Observations of the task, [obs] or [B, obs], padded or of its own width.
            task: Task name or id; a file of one task needs none.
            deadline_ms: Milliseconds from now in which the planner should be done: it leaves
                out iterations that would end later, judged by recent ones. The first always
                runs.
            generator: Source of the planner's noise: one for all rows or one for each; None is
                one of the agent's own. One per row makes a row independent of the rest.

        Returns:
            Actions in [-1, 1], [action] or [B, action], of the task's own width: the policy's
            mean, or one elite of the plan drawn by weight, without added noise.

        Raises:
            InputError: An observation of a wrong width, with NaN, infinity or numbers above
                `LARGEST_OBSERVATION`, a deadline that is not positive, or another number of
                generators than of rows.
            UnknownTaskError: A task that this agent does not know.
            NonFiniteError: The network gave an action that is not finite or not in [-1, 1].
            BusyError: Another thread plans with this agent at this moment.
        """
        check_deadline(deadline_ms)
        self._timer.begin(deadline_ms)
        index = self._indices.get(task)
        if index is None:
            index = self._indices[task] = task_id(self.tasks, task)
        own = self.tasks.tasks[index]
        given = np.asarray(obs)
        if given.shape != (own.obs_dim,):  # what a robot gives needs no closer look
            check_shape(self.tasks, index, given.shape)
        check_observation(float(np.abs(given).max()))
        rows: Array = given.astype(np.float32, copy=False)
        known = (rows[None] if rows.ndim == 1 else rows)[:, : own.obs_dim]
        noise = partial(self._sources, generator, len(known))
        action = self._act(known, index, noise)[:, : own.action_dim]
        largest = float(np.abs(action).max())
        check_action(largest)
        if largest > 1:
            action = action.clip(-1, 1)
        self._timer.finish()
        return action[0] if rows.ndim == 1 else action

    def _sources(
        self, given: "np.random.Generator | Generators | None", rows: int
    ) -> Generators:
        """Return each row's source of noise: what was given, or the agent's own."""
        if given is None:
            if self._generator is None:
                self._generator = np.random.default_rng()
            given = self._generator
        if not isinstance(given, Sequence):
            return [given] * rows
        if len(given) != rows:
            raise InputError(f"{rows} observations need as many generators, got {len(given)}")
        return given


def load(
    path: str | Path,
    threads: int = 1,
    providers: Sequence[Provider] | None = None,
    preset: str | None = None,
    clock: Clock = time.perf_counter,
) -> Agent:
    """Load an agent, ready to act.

    Args:
        path: ONNX file of `tdmpc-opt export`, or a safetensors checkpoint of this project, of
            which the policy acts (`tdmpc-opt quantize --policy-only` makes the smallest), or
            a folder with such a `model.safetensors`, or the name of a bundled checkpoint.
        threads: Threads of one action, for ONNX files.
        providers: Execution providers of ONNX Runtime in the order of preference, each a name
            or a name with options; None is the CPU.
        preset: Planner budget that the file must have been written for; None takes any.
        clock: Monotonic time in seconds, by which deadlines are kept.

    Raises:
        CheckpointError: A file that is missing, damaged, foreign or of a newer schema.
        InputError: A provider that is not here, or another preset than the file's.
        MissingDependencyError: An ONNX file, and onnxruntime is not installed.
    """
    if threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    path, timer = Path(path), DeadlineTimer(clock)
    if path.is_dir():
        path /= MODEL_FILE
    elif not path.exists() and path.name == str(path) and not path.suffix:
        path = zoo.path(path.name)
    if not is_onnx(path):
        if preset is not None:
            raise InputError(_other_preset(path, preset, None))
        weights = read_weights(path)
        return Agent(weights.tasks, _by_numpy(weights), None, timer)
    file = open_onnx(path, threads, providers)
    has = file.plan.preset if file.plan else None
    if preset not in (None, has):
        raise InputError(_other_preset(path, preset, has))
    if file.plan is None:
        return Agent(file.tasks, _by_onnx(file), None, timer)
    planner = OnnxPlanner(file.session, file.plan, file.tasks.action_dim, timer)
    return Agent(file.tasks, _by_plan(file, planner), planner, timer)


def _other_preset(path: Path, asked: str | None, has: str | None) -> str:
    what = f"the planner preset {has}" if has else "a policy, which has no planner presets"
    return f"{path} holds {what}, not {asked}; export it with --preset {asked}"


def _by_numpy(weights: Weights) -> Act:
    policies: dict[int, NumpyPolicy] = {}

    def act(obs: Array, task: int, _: Noise) -> Array:
        if task not in policies:
            policies[task] = NumpyPolicy(weights, task)
        # One row alone takes a shorter way through numpy.
        return policies[task](obs[0])[None] if len(obs) == 1 else policies[task](obs)

    return act


def _inputs(file: OnnxFile, obs: Array, task: int) -> Inputs:
    if len(file.tasks) == 1:
        return {"obs": obs}
    return {"obs": obs, "task": np.full(len(obs), task)}


def _by_onnx(file: OnnxFile) -> Act:
    def act(obs: Array, task: int, _: Noise) -> Array:
        action: Array = file.session.run(["action"], _inputs(file, obs, task))[0]
        check_output(action, (len(obs), file.tasks.action_dim))
        return action

    return act


def _by_plan(file: OnnxFile, planner: OnnxPlanner) -> Act:
    def act(obs: Array, task: int, noise: Noise) -> Array:
        return planner.act(_inputs(file, obs, task), file.tasks.tasks[task].action_dim, noise())

    return act
