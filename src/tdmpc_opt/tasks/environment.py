"""Any task as an environment: those of MT30, and a user's own."""

import gymnasium
import numpy as np
from numpy.typing import NDArray

from tdmpc_opt.schema import Task
from tdmpc_opt.tasks import dmcontrol
from tdmpc_opt.tasks.batched import BatchedTask
from tdmpc_opt.tasks.batched_own import own_batched_task
from tdmpc_opt.tasks.batched_suite import suite_task
from tdmpc_opt.tasks.choice import choose_tasks
from tdmpc_opt.tasks.own import OwnEnv

Environment = gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]


def make_env(
    task: Task | str,
    seed: int = 0,
    *,
    render_mode: str | None = None,
    legacy_cup_physics: bool = False,
) -> Environment:
    """Build the environment of a task: float32 observations, actions in [-1, 1].

    Args:
        task: A task, or its name as `choose_tasks` takes it.
        seed: Seed of the first reset.
        render_mode: `rgb_array` to allow `render()`.
        legacy_cup_physics: As in `dmcontrol.make_env`.

    Raises:
        UnknownTaskError: No such task.
        InputError: An environment that no agent here can act in.
        MissingDependencyError: The simulator is missing, or its two parts do not fit.
    """
    if isinstance(task, str):
        task = choose_tasks(task).tasks[0]
    if task.env:
        return OwnEnv(task, seed, render_mode)
    return dmcontrol.make_env(
        task.name, seed, render_mode=render_mode, legacy_cup_physics=legacy_cup_physics
    )


def batched_task(task: Task) -> BatchedTask:
    """Return a task on batches of states.

    Raises:
        InputError: An environment of the user's that does not offer it.
        MissingDependencyError: The simulator is missing, or its two parts do not fit.
    """
    return own_batched_task(task) if task.env else suite_task(task.name)
