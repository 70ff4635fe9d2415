"""What every agent, of torch or of the device, refuses to act on, in the same words."""

from collections.abc import Sequence

from tdmpc_opt.errors import InputError, UnknownTaskError
from tdmpc_opt.task_table import TaskTable


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


def check_finite(finite: bool) -> None:
    """Refuse observations that are not all finite.

    Raises:
        InputError: They are not.
    """
    if not finite:
        raise InputError("the observation holds NaN or infinity; check the sensors")


def check_deadline(deadline_ms: float | None) -> None:
    """Refuse a deadline that lies in the past.

    Raises:
        InputError: It does.
    """
    if deadline_ms is not None and not deadline_ms > 0:
        raise InputError(f"deadline_ms must be above 0, got {deadline_ms}")
