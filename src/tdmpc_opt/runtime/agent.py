"""`Agent`: acts on a device that has numpy and little else."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tdmpc_opt.errors import InputError, UnknownTaskError
from tdmpc_opt.runtime.numpy_policy import NumpyPolicy
from tdmpc_opt.runtime.weights import Weights, read_weights

Array = NDArray[np.float32]


class Agent:
    """The policy of a checkpoint.

    Args:
        weights: What its file holds.
    """

    def __init__(self, weights: Weights) -> None:
        self.tasks = weights.tasks
        self._weights = weights
        self._policies: dict[int, NumpyPolicy] = {}

    def reset(self) -> None:
        """Begin a new episode: the policy alone remembers nothing."""

    def act(self, obs: NDArray[np.floating], task: str | int | None = None) -> Array:
        """Choose actions.

        Args:
            obs: Observations of the task, [obs] or [B, obs].
            task: Task name or id; a file of one task needs none.

        Returns:
            Mean actions in [-1, 1], [action] or [B, action], of the task's own width.

        Raises:
            InputError: An observation of a wrong width, or with NaN or infinity.
            UnknownTaskError: A task that this agent does not know.
        """
        index = self._index(task)
        policy = self._policies.get(index)
        if policy is None:
            policy = self._policies[index] = NumpyPolicy(self._weights, index)
        return policy(self._checked(obs, index))

    def _index(self, task: str | int | None) -> int:
        if isinstance(task, str):
            return self.tasks.index(task)
        if task is None:
            if len(self.tasks) > 1:
                raise UnknownTaskError(f"name a task; known: {', '.join(self.tasks.names)}")
            return 0
        if not 0 <= task < len(self.tasks):
            raise UnknownTaskError(f"task ids are 0..{len(self.tasks) - 1}, got {task}")
        return task

    def _checked(self, obs: NDArray[np.floating], task: int) -> Array:
        rows: Array = np.asarray(obs, dtype=np.float32)
        width = self.tasks.tasks[task].obs_dim
        if rows.ndim not in (1, 2) or rows.shape[-1] != width:
            raise InputError(
                f"observations of {self.tasks.names[task]} are [{width}] or [B, {width}]; got "
                f"shape {list(rows.shape)}"
            )
        if not np.isfinite(rows).all():
            raise InputError("the observation holds NaN or infinity; check the sensors")
        return rows


def load(path: str | Path) -> Agent:
    """Load the policy of a safetensors checkpoint of this project.

    Args:
        path: File; `tdmpc-opt quantize --policy-only` makes the smallest.

    Raises:
        CheckpointError: A file that is missing, damaged, foreign or of a newer schema.
    """
    return Agent(read_weights(Path(path)))
