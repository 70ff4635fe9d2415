"""`Agent`: acts on a device that has numpy and little else."""

import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tdmpc_opt import zoo
from tdmpc_opt.contract import (
    Contract,
    Contracts,
    OnInvalid,
    check_generators,
    check_on_invalid,
    check_shape,
    numbers,
    task_id,
)
from tdmpc_opt.errors import InputError, NonFiniteError, ObservationError
from tdmpc_opt.files import MODEL_FILE, is_onnx
from tdmpc_opt.runtime.numpy_policy import NumpyPolicy, Weights, read_weights
from tdmpc_opt.runtime.onnx_file import FilePlan, OnnxFile, Provider, check_output, open_onnx
from tdmpc_opt.runtime.plan_state import (
    Clock,
    ControlLoop,
    DeadlineTimer,
    OneCallAtATime,
    PlanState,
    Refine,
)
from tdmpc_opt.schema import TaskTable, check_action, check_observation

Array = NDArray[np.float32]
Generators = Sequence["np.random.Generator"]
Noise = Callable[[], Generators]
"""Gives each row's source of noise when called. A policy needs none, and numpy.random takes 6
MB of a device's memory as soon as it is named."""
Inputs = dict[str, NDArray[Any]]
Act = Callable[[Array, int, Noise], Array]
"""From observations [B, obs] of the task's own width, its id and where noise comes from to
actions [B, action], padded or not."""

OUTPUTS = ["action", "new_mean", "new_std"]
_MOST_THREADS = 1024


class Agent(ControlLoop):
    """The policy, or the planner, of one file.

    Threads may share an agent whose policy acts: calls leave nothing behind. A planner's plan
    and the last action that `on_invalid="hold"` repeats go from one call to the next, so a
    control loop that uses one of them needs an agent for itself (`for_another_loop`). A call of
    a planner that comes while another thread's is not done is refused.

    Args:
        tasks: Its tasks.
        contracts: What is known of their numbers.
        make: Returns what computes actions in one control loop; a planner measures its rounds
            by the timer.
        clock: Monotonic time in seconds, by which deadlines are kept.
    """

    _planner: "_OnnxPlanner | None"

    def __init__(
        self,
        tasks: TaskTable,
        contracts: Contracts,
        make: Callable[[DeadlineTimer], Act],
        clock: Clock,
    ) -> None:
        super().__init__(tasks, clock)
        self._contracts, self._make, self._clock = contracts, make, clock
        self._act = act = make(self._timer)
        self._planner = act if isinstance(act, _OnnxPlanner) else None
        self._generator: np.random.Generator | None = None

    @property
    def plan(self) -> FilePlan | None:
        """What the planner searches with; None where the policy acts."""
        return self._planner.sizes if self._planner else None

    def contract(self, task: str | int | None = None) -> Contract | None:
        """Return what the numbers of a task are: names, units, ranges and rate.

        None where the file does not state them: it is of an own task, and was exported without
        `--tasks`.

        Raises:
            UnknownTaskError: A task that this agent does not know.
        """
        return self._contracts.get(self.tasks.names[task_id(self.tasks, task)])

    def for_another_loop(self) -> "Agent":
        """Return an agent of the same file with its own plan, last action and counts."""
        return Agent(self.tasks, self._contracts, self._make, self._clock)

    def reset(self) -> None:
        """Forget the plan and the last action, before a new episode.

        Raises:
            BusyError: Another thread plans with this agent at this moment.
        """
        if self._planner:
            self._planner.reset()
        self._fallback.forget()

    def act(
        self,
        obs: ArrayLike | None,
        task: str | int | None = None,
        *,
        deadline_ms: float | None = None,
        generator: "np.random.Generator | Generators | None" = None,
        on_invalid: OnInvalid = "error",
    ) -> Array:
        """Choose actions.

        Args:
            obs: Observations of the task, [obs] or [B, obs], padded or of its own width. None
                stands for a missing one.
            task: Task name or id; a file of one task needs none.
            deadline_ms: Milliseconds from now in which the planner should be done: it leaves
                out iterations that would end later, judged by recent ones. The first always
                runs.
            generator: Source of the planner's noise: one for all rows or one for each; None is
                one of the agent's own. One per row makes a row independent of the rest.
            on_invalid: Answer to an invalid observation, and to one on which the network
                overflows: an error; `hold`, the last action of a call with `hold` since the
                reset, else zeros; or `zero`. It is the answer for all rows, and leaves a plan
                as it was.

        Returns:
            Actions in [-1, 1], [action] or [B, action], of the task's own width: the policy's
            mean, or one elite of the plan drawn by weight, without added noise.

        Raises:
            ObservationError: An observation that is missing, no array of numbers, of a wrong
                shape, or has NaN, infinity or numbers above `LARGEST_OBSERVATION`.
            NonFiniteError: The network gave an action that is not finite or not in [-1, 1].
            InputError: A deadline that is not positive, another number of generators than of
                rows, or an unknown `on_invalid`.
            UnknownTaskError: A task that this agent does not know.
            BusyError: Another thread plans with this agent at this moment.
        """
        self._timer.begin(deadline_ms)
        index = task_id(self.tasks, task)
        if on_invalid == "error":
            action = self._act_on(obs, index, generator)
        else:
            check_on_invalid(on_invalid)
            try:
                action = self._act_on(obs, index, generator)
            except (ObservationError, NonFiniteError):
                return self._fallback.answer(on_invalid, obs, index)
            if on_invalid == "hold":
                self._fallback.keep(index, action)
        self._timer.finish()
        return action

    def _act_on(
        self,
        obs: Any,
        index: int,
        generator: "np.random.Generator | Generators | None",
    ) -> Array:
        own, given = self.tasks.tasks[index], numbers(obs)
        if given.shape != (own.obs_dim,):  # what a robot gives needs no closer look
            check_shape(self.tasks, index, given.shape)
        single = given.ndim == 1
        check_observation(float(np.maximum.reduce(np.abs(given), None)))
        rows: Array = given.astype(np.float32, copy=False)
        known = (rows[None] if single else rows)[:, : own.obs_dim]
        noise = partial(self._sources, generator, len(known))
        action = self._act(known, index, noise)[:, : own.action_dim]
        largest = float(np.maximum.reduce(np.abs(action), None))
        check_action(largest)
        if largest > 1:
            action = action.clip(-1, 1)
        return action[0] if single else action

    def _sources(
        self, given: "np.random.Generator | Generators | None", rows: int
    ) -> Generators:
        """Return each row's source of noise: what was given, or the agent's own."""
        if given is None:
            if self._generator is None:
                self._generator = np.random.default_rng()
            given = self._generator
        if not isinstance(given, Sequence):
            given = [given] * rows
        check_generators(given, rows, np.random.Generator)
        return given


def agent_file(path: str | Path) -> Path:
    """Return the file of an agent: of a model folder its weights, of a name the bundled one.

    Raises:
        CheckpointError: A name that is neither a file nor a bundled checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        return path / MODEL_FILE
    if not path.exists() and path.name == str(path) and not path.suffix:
        return zoo.path(path.name)
    return path


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
        InputError: A provider that is not here, another preset than the file's, or a number of
            threads that no machine needs.
        MissingDependencyError: An ONNX file, and onnxruntime is not installed.
    """
    if not 1 <= threads <= _MOST_THREADS:
        raise InputError(f"threads must be in 1..{_MOST_THREADS}, got {threads}")
    path = agent_file(path)
    file = open_onnx(path, threads, providers) if is_onnx(path) else None
    has = file.plan.preset if file and file.plan else None
    if preset not in (None, has):
        what = f"the planner preset {has}" if has else "a policy, which has no planner presets"
        raise InputError(f"{path} has {what}, not {preset}; export it with --preset {preset}")
    if file is None:
        weights = read_weights(path)
        act = _by_numpy(weights)
        return Agent(weights.tasks, weights.contracts, lambda _: act, clock)
    if file.plan is None:
        act = _by_onnx(file)
        return Agent(file.tasks, file.contracts, lambda _: act, clock)
    return Agent(file.tasks, file.contracts, partial(_OnnxPlanner, file, file.plan), clock)


def _by_numpy(weights: Weights) -> Act:
    policies: dict[int, NumpyPolicy] = {}

    def act(obs: Array, task: int, _: Noise) -> Array:
        if task not in policies:
            policies[task] = NumpyPolicy(weights, task)
        # One row alone takes a shorter way through numpy.
        return policies[task](obs[0])[None] if len(obs) == 1 else policies[task](obs)

    return act


def _task_input(file: OnnxFile) -> Callable[[int, int], Inputs]:
    """Return what makes the input `task` of a graph; a file of one task has none."""
    several = len(file.tasks) > 1

    @lru_cache(64)  # a control loop asks for the same one in every step
    def named(rows: int, task: int) -> Inputs:
        return {"task": np.full(rows, task, np.int64)} if several else {}

    return named


def _by_onnx(file: OnnxFile) -> Act:
    task_input = _task_input(file)

    def act(obs: Array, task: int, _: Noise) -> Array:
        (action,) = file.run(["action"], {"obs": obs} | task_input(len(obs), task))
        return check_output(action, (len(obs), file.tasks.action_dim))

    return act


class _OnnxPlanner:
    """Chooses actions by planning, and remembers each row's last plan.

    Rows are planned for one by one, as on a device: all rows of one call to the graph would
    share their draws of the Q ensemble and the rounding of one batch size.
    """

    def __init__(self, file: OnnxFile, sizes: FilePlan, timer: DeadlineTimer) -> None:
        self.sizes = sizes
        self._run, self._task_input = file.run, _task_input(file)
        self._width, self._masks = file.tasks.action_dim, file.tasks.action_mask()
        self._members = np.tile(np.arange(sizes.num_q), (sizes.rounds, 1))
        self._state = PlanState(sizes, self._width, timer)
        self._one_call = OneCallAtATime()
        self.iterations: int | None = None
        """Rounds of the newest plan, of several rows the most; None before the first."""

    def reset(self) -> None:
        """Forget the plans."""
        with self._one_call:
            self._state.reset()

    def __call__(self, obs: Array, task: int, noise: Noise) -> Array:
        """Return the next action [B, action] of the plans that are in use, or of new ones."""
        with self._one_call:
            generators, rounds = noise(), 0
            for row in (due := self._state.due(len(obs))):
                inputs = {"obs": obs[row : row + 1]} | self._task_input(1, task)
                refine = self._refine(inputs, generators[row])
                mask = self._masks[task : task + 1]
                rounds = max(rounds, self._state.plan([row], self.sizes.rounds, mask, refine))
            self.iterations = rounds if due else self.iterations
            action, _ = self._state.next()
        return action

    def _refine(self, inputs: Inputs, generator: "np.random.Generator") -> Refine:
        """Return what runs rounds of a new plan for one row.

        The graph loops over the rounds that it is asked for. Each further call costs the
        prior's share of a round again.
        """
        sizes = self.sizes
        prior = self._normal(generator, sizes.horizon, sizes.policy_samples, 1)
        common = inputs | {"prior": prior, "pick": generator.random(1, np.float32)}

        def run(rounds: range, mean: Array, std: Array) -> tuple[Array, Array, Array]:
            noise = self._noise(generator, len(rounds))
            found = self._run(OUTPUTS, common | noise | {"mean": mean, "std": std})
            action, new_mean, new_std = (
                check_output(value, like.shape)
                for value, like in zip(found, (mean[0], mean, std), strict=True)
            )
            return action, new_mean, new_std

        return run

    def _noise(self, generator: "np.random.Generator", rounds: int) -> Inputs:
        sizes = self.sizes
        sampled = sizes.samples - sizes.policy_samples
        heads = generator.permuted(self._members[:rounds], axis=1)[:, :2]
        if sizes.num_q == 1:  # a round averages its one member with itself
            heads = heads.repeat(2, axis=1)
        return {
            "samples": self._normal(generator, rounds, sizes.horizon, sampled, 1),
            "value": self._normal(generator, rounds, sizes.samples, 1),
            "heads": np.ascontiguousarray(heads),
        }

    def _normal(self, generator: "np.random.Generator", *shape: int) -> Array:
        return generator.standard_normal((*shape, self._width), dtype=np.float32)
