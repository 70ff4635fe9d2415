"""A user's own MuJoCo environment on batches of states."""

from typing import Any

import numpy as np

from tdmpc_opt.errors import InputError
from tdmpc_opt.schema import Task
from tdmpc_opt.tasks.batched import Array, BatchedPhysics, BatchedTask
from tdmpc_opt.tasks.own import OwnEnv

_NEEDED = ("model", "data", "frame_skip", "batched_reward", "batched_observation")
_CHECKED_STEPS = 20
_TOLERANCE = 1e-3


def offers_batches(task: Task) -> bool:
    """Return whether an environment of the user's has what batches of states need."""
    env = OwnEnv(task)
    try:
        return all(hasattr(env.unwrapped_environment, name) for name in _NEEDED)
    finally:
        env.close()


def own_batched_task(task: Task, threads: int = 0) -> BatchedTask:
    """Return a user's task on batches of states, once it is seen to agree with its environment.

    The environment has, beside Gymnasium's methods, the attributes `model` (`mujoco.MjModel`),
    `data` (`mujoco.MjData`) and `frame_skip` (physics steps an action), and the methods
    `batched_reward(batch)` -> [*batch] and `batched_observation(batch)` -> [*batch, obs], which
    take a `tdmpc_opt.tasks.batched.Batch`. It may have `batched_control(actions)`, which maps
    actions in its own bounds to controls, and `episode_constants()`, the numbers [constants]
    that a reset draws and that are no part of the physics state.

    Args:
        task: What `own_task` returned.
        threads: Threads that step; 0 steps on the calling thread.

    Raises:
        InputError: Something is missing, or batches differ from the environment's own steps.
    """
    env = OwnEnv(task)
    inner = env.unwrapped_environment
    missing = [name for name in _NEEDED if not hasattr(inner, name)]
    if missing:
        raise InputError(
            f"{task.env} lacks {', '.join(missing)}, needed to plan in the simulator; see "
            "docs/own-tasks.md, or train its expert with --method sac"
        )
    low, high = env.bounds
    own_control = getattr(inner, "batched_control", None)

    def control(actions: Array) -> Array:
        scaled = low + (np.clip(actions, -1, 1) + 1) / 2 * (high - low)
        return scaled if own_control is None else np.asarray(own_control(scaled), np.float64)

    batched = BatchedTask(
        task,
        BatchedPhysics(inner.model, int(inner.frame_skip), threads),
        reward=inner.batched_reward,
        observe=inner.batched_observation,
        read=_read,
        control=control,
    )
    _require_agreement(batched, env)
    env.close()
    return batched


def _read(env: OwnEnv) -> tuple[Any, Array]:
    inner = env.unwrapped_environment
    constants = inner.episode_constants() if hasattr(inner, "episode_constants") else ()
    return inner.data, np.array(constants, np.float64)


def _require_agreement(batched: BatchedTask, env: OwnEnv) -> None:
    """Refuse a batched reward or observation that is not the environment's own.

    Raises:
        InputError: They differ on the way of random actions.
    """
    task, draw = env.task, np.random.default_rng(0)
    env.reset()
    state, constants = batched.current(env)
    actions = draw.uniform(-1, 1, (_CHECKED_STEPS, task.action_dim)).astype(np.float32)
    _, seen, earned = batched.step(
        state[None], actions[None].astype(np.float64), constants[None]
    )
    for step, action in enumerate(actions):
        obs, reward, *_ = env.step(action)
        pairs = (("reward", earned[0, step], reward), ("observation", seen[0, step], obs))
        for what, found, wanted in pairs:
            if not np.allclose(found, wanted, rtol=_TOLERANCE, atol=_TOLERANCE):
                raise InputError(
                    f"batched_{what} of {task.env} differs from its step() after {step + 1} "
                    f"steps: {np.round(found, 4)} where the environment gave "
                    f"{np.round(wanted, 4)}; make them agree"
                )
