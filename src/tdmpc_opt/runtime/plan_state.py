"""The state of a control loop between actions, for the torch agent and the device runtime.

A plan is reused for several actions, the next starts from it, and a deadline or convergence
ends its rounds early. The last action answers an observation that cannot be used.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tdmpc_opt.contract import OnInvalid, shown
from tdmpc_opt.errors import BusyError, InputError, NonFiniteError
from tdmpc_opt.schema import PlanRules, TaskTable

Array = NDArray[Any]
Refine = Callable[[range, Array, Array], tuple[Array, Array, Array]]
"""Runs rounds of a plan, given by their numbers, from a mean and a standard deviation
[horizon, rows, action], and returns the action [rows, action] and the new mean and standard
deviation."""


Clock = Callable[[], float]
"""Monotonic time in seconds."""


class DeadlineTimer:
    """Measures parts of the work and predicts whether another would end after the deadline.

    Each thread has the deadline of its action; the counts are those of all threads.
    """

    def __init__(self, clock: Clock) -> None:
        self.acts = 0
        """Actions that had a deadline."""
        self.misses = 0
        """Those of them that came too late."""
        self._clock = clock
        self._used = False  # asking this is cheaper than asking for the thread's deadline
        self._thread = threading.local()
        self._counting = threading.Lock()
        self._costs: deque[float] = deque(maxlen=8)

    @property
    def _end(self) -> float:
        """Time at which this thread's action should be done."""
        return getattr(self._thread, "end", float("inf"))

    @property
    def limited(self) -> bool:
        """Whether this action has a deadline."""
        return self._used and self._end < float("inf")

    def begin(self, deadline_ms: float | None) -> None:
        """Start the time of one action; None sets no limit.

        Raises:
            InputError: A deadline that is not positive, or no number.
        """
        if deadline_ms is not None:
            if not isinstance(deadline_ms, int | float | np.number):
                raise InputError(f"deadline_ms must be a number, got {shown(deadline_ms)}")
            if not deadline_ms > 0:
                raise InputError(f"deadline_ms must be above 0, got {deadline_ms}")
            self._used = True
            self._thread.end = self._clock() + deadline_ms / 1000
        elif self.limited:
            self._thread.end = float("inf")

    def finish(self) -> None:
        """Count the action, and whether it is late."""
        if self.limited:
            late = self._clock() > self._end
            with self._counting:
                self.acts += 1
                self.misses += late

    def enough(self) -> bool:
        """Return whether another part, at the cost of recent ones, would be late."""
        if not self.limited or not self._costs:
            return False
        # The second largest: one interrupted part must not decide.
        expected = sorted(self._costs)[-2:][0]
        return self._clock() + expected > self._end

    def start_part(self) -> float:
        """Return the time at which a part starts."""
        return self._clock()

    def end_part(self, started: float) -> None:
        """Record the duration of the part that started then."""
        self._costs.append(self._clock() - started)


class _Fallback:
    """The answers of one control loop to observations that cannot be used."""

    def __init__(self, tasks: TaskTable) -> None:
        self.count = 0
        """Observations that were answered with `hold` or `zero`."""
        self._tasks = tasks
        self._last: dict[int | None, NDArray[np.floating]] = {}

    def forget(self) -> None:
        """Forget the last actions, before a new episode."""
        self._last.clear()

    def keep(self, task: int | None, action: NDArray[np.floating]) -> None:
        """Remember a valid action of a task, or of several where that is None."""
        self._last[task] = action.copy()

    def answer(self, on_invalid: OnInvalid, obs: Any, task: int | None) -> NDArray[np.floating]:
        """Return the action in place of that for an invalid observation.

        Returns:
            The last action of the task, or zeros: [B, action] for an observation [B, obs], and
            [action] for any other. `hold` gives zeros before the first action.
        """
        self.count += 1
        rows = _rows(obs)
        last = self._last.get(task)
        if on_invalid == "hold" and last is not None and rows in (None, last.shape[:-1]):
            return last.copy()
        table = self._tasks
        width = table.action_dim if task is None else table.tasks[task].action_dim
        return np.zeros((*(rows or ()), width), np.float32)


def _rows(obs: Any) -> tuple[int, ...] | None:
    """Return the leading shape of observations, () or (B,); None where they have another."""
    try:
        shape = np.shape(obs)
    except ValueError:  # nested sequences of unequal lengths
        return None
    return tuple(shape[:-1]) if len(shape) in (1, 2) and 0 not in shape[:-1] else None


class Planning(Protocol):
    """A planner, here or on a device."""

    iterations: int | None
    """Iterations of the newest plan; None before the first."""


class ControlLoop:
    """What the agents here and on a device keep and count from one call to the next.

    Args:
        tasks: The agent's tasks.
        clock: Monotonic time in seconds, by which deadlines are kept.
    """

    _planner: Planning | None

    def __init__(self, tasks: TaskTable, clock: Clock) -> None:
        self.tasks = tasks
        self._timer, self._fallback = DeadlineTimer(clock), _Fallback(tasks)

    @property
    def deadlines(self) -> int:
        """Number of actions that had a deadline."""
        return self._timer.acts

    @property
    def deadline_misses(self) -> int:
        """Number of those actions that came after their deadline."""
        return self._timer.misses

    @property
    def invalid(self) -> int:
        """Number of calls that `on_invalid` answered."""
        return self._fallback.count

    @property
    def iterations(self) -> int | None:
        """Iterations of the newest plan, which a deadline may have cut; None without a plan."""
        return self._planner.iterations if self._planner else None


class OneCallAtATime:
    """Context that refuses to be entered while a call of another thread is inside.

    For plans, which go from one call to the next: two control loops cannot share them.

    Raises:
        BusyError: A call is inside.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise BusyError(
                "this agent plans for another thread's call, and its plan belongs to one "
                "control loop; load an agent for each thread"
            )

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class PlanState:
    """The plans of a batch of rows, and how many actions of each were executed.

    Args:
        rules: When plans are made and what they start from.
        width: Padded number of actions.
        timer: Decides whether another round would end after the deadline.
        dtype: Number format of the plans.
    """

    def __init__(
        self,
        rules: PlanRules,
        width: int,
        timer: DeadlineTimer,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self._rules, self._width, self._timer = rules, width, timer
        self._dtype = dtype
        self._sequence: Array = np.empty(0, dtype)
        self._std: Array = np.empty(0, dtype)
        self._executed: list[int] = []

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Forget the plans of all rows, or of these, before a new episode."""
        if rows is None:
            self._executed = []
        elif self._executed:
            self._sequence[:, list(rows)] = 0.0
            self._std[:, list(rows)] = np.inf
            for row in rows:
                self._executed[row] = self._rules.replan_every

    def due(self, rows: int) -> list[int]:
        """Return the rows that need a new plan; another number of rows forgets all plans."""
        if len(self._executed) != rows:
            self._sequence = np.zeros((self._rules.horizon, rows, self._width), self._dtype)
            self._std = np.full_like(self._sequence, np.inf)
            self._executed = [self._rules.replan_every] * rows
        return [row for row in range(rows) if self._executed[row] >= self._rules.replan_every]

    def plan(self, due: list[int], rounds: int, mask: Array, refine: Refine) -> int:
        """Make new plans for rows and return how many rounds they took.

        All rounds are asked for at once, unless one may be the last by a deadline or because
        the plans have converged. The plans stay as they were if `refine` fails.

        Args:
            due: Rows of the batch to plan for.
            rounds: Rounds of a whole plan; the first always runs.
            mask: 1 for real action dimensions and 0 for padded ones, [due or 1, action].
            refine: Computes rounds for these rows.

        Raises:
            NonFiniteError: A round gave NaN or infinity.
        """
        rules, timer = self._rules, self._timer
        mean, std = self._start(due)
        at_once = 1 if timer.limited or rules.converged_std > 0 else rounds
        done, wide = 0, np.ones(len(due), bool)
        action: Array = mean[0]
        while done < rounds and wide.any() and not (done and timer.enough()):
            started = timer.start_part()
            found = refine(range(done, done + at_once), mean, std)
            if timer.limited:
                timer.end_part(started)
            if not all(np.isfinite(values).all() for values in found):
                raise NonFiniteError(
                    "the plan contains NaN or infinity: the network overflows on this "
                    "observation, or its file is damaged; check the sensors and the file"
                )
            if wide.all():
                action, mean, std = found
            else:  # plans that have converged stay as they are
                action, mean, std = (
                    np.where(wide[:, None], new, old)
                    for new, old in zip(found, (action, mean, std), strict=True)
                )
            if rules.converged_std > 0:
                spread = (std * mask).sum((0, 2)) / (len(std) * mask.sum(-1))
                wide = spread >= rules.converged_std
            done += at_once
        self._sequence[:, due] = mean
        if not rules.mean_action:
            self._sequence[0, due] = action
        self._std[:, due] = std
        for row in due:
            self._executed[row] = 0
        return done

    def next(self) -> tuple[Array, Array]:
        """Return each row's next action and its standard deviation, both [rows, action]."""
        chosen = self._executed, list(range(len(self._executed)))
        action, std = self._sequence[chosen], self._std[chosen]
        self._executed = [count + 1 for count in self._executed]
        return action, std

    def _start(self, due: list[int]) -> tuple[Array, Array]:
        """Return the distribution that plans start from: the last one without its past."""
        rules, done = self._rules, self._rules.replan_every
        last = self._sequence[:, due]
        left = len(last) - done
        mean = np.zeros_like(last)
        mean[:left] = rules.warm_mean * last[done:]
        std = np.full_like(last, rules.max_std)
        if rules.warm_std:  # infinite, and so max_std, where there was no plan
            wide = rules.warm_std * self._std[done:, due]
            std[:left] = wide.clip(rules.min_std, rules.max_std)
        return mean, std
