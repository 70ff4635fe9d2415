"""A task as a vectorised environment of Stable-Baselines3, all rows in one batch."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from tdmpc_opt.schema import Task
from tdmpc_opt.tasks.batched_suite import batched_task
from tdmpc_opt.tasks.environment import make_env

Array = NDArray[np.float64]


class BatchedVecEnv(VecEnv):
    """Episodes of one task, stepped together; all of them start and end at the same step.

    Args:
        task: A task that batches of states can be stepped of.
        envs: Episodes at once.
        seed: Seed of the starts, which one environment draws one after the other.
    """

    def __init__(self, task: Task, envs: int, seed: int) -> None:
        self._task = batched_task(task)
        super().__init__(
            envs,
            gymnasium.spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32),
            gymnasium.spaces.Box(-1.0, 1.0, (task.action_dim,), np.float32),
        )
        self._env = make_env(task, seed)
        self._actions = np.zeros((envs, task.action_dim))
        self._steps = 0

    def reset(self) -> NDArray[np.float32]:
        """Start an episode in every row and return the observations [envs, obs]."""
        starts = []
        for _ in range(self.num_envs):
            self._env.reset()
            starts.append(self._task.current(self._env))
        self._states, self._constants = (np.stack(part) for part in zip(*starts, strict=True))
        self._steps = 0
        return self._task.observe_now(self._states, self._constants)

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Take the actions [envs, action] of the next step."""
        self._actions = np.asarray(actions, np.float64)

    def step_wait(self) -> tuple[Any, ...]:
        """Step every row; at the time limit, report it and start the next episodes."""
        self._states, obs, reward = self._task.step(
            self._states, self._actions[:, None], self._constants
        )
        observed = obs[:, 0].astype(np.float32)
        self._steps += 1
        done = self._steps == self._task.task.episode_length
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done:
            infos = [
                {"TimeLimit.truncated": True, "terminal_observation": row} for row in observed
            ]
            observed = self.reset()
        return observed, reward[:, 0].astype(np.float32), np.full(self.num_envs, done), infos

    def close(self) -> None:
        """Close the environment that draws the starts."""
        self._env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of the chosen rows; only `render_mode` exists."""
        return [None for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: rows have no attributes."""
        raise AttributeError(f"rows of a batch have no attribute {attr_name}")

    def env_method(
        self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Refuse: rows have no methods."""
        raise AttributeError(f"rows of a batch have no method {method_name}")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Return False for every chosen row."""
        return [False for _ in self._get_indices(indices)]

    def seed(self, seed: int | None = None) -> Sequence[None]:
        """Do nothing: starts are seeded when the environment is built."""
        return [None] * self.num_envs
