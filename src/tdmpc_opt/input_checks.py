"""What every agent, of torch or of the device, refuses to take or give, in the same words."""

import threading
from collections.abc import Sequence

from tdmpc_opt.errors import BusyError, InputError, NonFiniteError, UnknownTaskError
from tdmpc_opt.task_table import TaskTable

LARGEST_OBSERVATION = 1e15
"""Magnitude up to which the first layer's sums of squares do not overflow float32."""
_ROUNDING = 1e-3
"""By how much a tanh may exceed 1 in some engine's arithmetic."""


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


def task_id(tasks: TaskTable, task: str | int | None) -> int:
    """Return the id of the task that is named; an agent of one task needs no name.

    Raises:
        UnknownTaskError: A task that the agent does not know, or none of several.
    """
    if isinstance(task, str):
        return tasks.index(task)
    if task is None:
        if len(tasks) > 1:
            raise UnknownTaskError(f"name a task; known: {', '.join(tasks.names)}")
        return 0
    if not 0 <= task < len(tasks):
        raise UnknownTaskError(f"task ids must be in 0..{len(tasks) - 1}, got {task}")
    return int(task)


def check_shape(tasks: TaskTable, task: int | None, shape: Sequence[int]) -> None:
    """Refuse observations that are neither padded nor of the task's own width.

    Args:
        tasks: The agent's tasks.
        task: Id of the task of all rows; None where they differ.
        shape: Shape of the observations.

    Raises:
        InputError: Another width or another number of axes.
    """
    if len(shape) not in (1, 2) or 0 in shape:
        raise InputError(f"observations are [obs] or [B, obs]; got shape {list(shape)}")
    full = tasks.obs_dim
    own = full if task is None else tasks.tasks[task].obs_dim
    if shape[-1] not in (own, full):
        name = "the tasks" if task is None else tasks.names[task]
        widths = str(full) if own == full else f"{own} (or padded to {full})"
        raise InputError(
            f"observations of {name} have {widths} numbers; got shape {list(shape)}"
        )


def check_observation(largest: float) -> None:
    """Refuse observations that are not finite, or so large that the network overflows.

    Args:
        largest: Largest magnitude among them; NaN where one is NaN.

    Raises:
        InputError: It is NaN or above `LARGEST_OBSERVATION`.
    """
    if not largest <= LARGEST_OBSERVATION:
        raise InputError(
            "the observation holds NaN, infinity or a number too large for the network (at "
            f"most {LARGEST_OBSERVATION:.0e}); check the sensors"
        )


def check_action(largest: float) -> None:
    """Refuse actions that are not finite or not in [-1, 1], but for rounding.

    Args:
        largest: Largest magnitude among them; NaN where one is NaN.

    Raises:
        NonFiniteError: The network overflowed, or its weights are damaged.
    """
    if not largest <= 1 + _ROUNDING:
        raise NonFiniteError(
            f"the action has a magnitude of {largest:.3g}, not at most 1: the network "
            "overflows on this observation or its file is damaged; check the sensors' units, "
            "then the file"
        )


def check_deadline(deadline_ms: float | None) -> None:
    """Refuse a deadline that lies in the past.

    Raises:
        InputError: It does.
    """
    if deadline_ms is not None and not deadline_ms > 0:
        raise InputError(f"deadline_ms must be above 0, got {deadline_ms}")
