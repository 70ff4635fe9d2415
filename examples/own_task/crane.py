"""A crane that moves a hanging load to a mark without swinging: an example of your own task.

Importing this module registers `Crane-v0`, so `crane:Crane-v0` names it on the command line.
"""

from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

FRAME_SKIP = 4
"""Simulation steps of 10 ms that one action lasts: 25 actions a second."""
EPISODE_STEPS = 150
ROPE = 0.95


class Crane(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A trolley on a rail with a load on a rope; the reward is 0 to 1 a step."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012
    frame_skip = FRAME_SKIP

    def __init__(self, render_mode: str | None = None) -> None:
        self.model = mujoco.MjModel.from_xml_path(str(Path(__file__).with_name("crane.xml")))
        self.data = mujoco.MjData(self.model)
        self.render_mode = render_mode
        self.observation_space = Box(-np.inf, np.inf, (6,), np.float32)
        self.action_space = Box(-12.0, 12.0, (1,), np.float32)  # newtons on the trolley
        self._renderer: Any = None
        self._mark = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw the positions of trolley and mark; the load is at rest."""
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[0] = self.np_random.uniform(-0.9, 0.9)
        self._mark = self.np_random.uniform(-0.9, 0.9)
        self.data.mocap_pos[0, 0] = self._mark
        mujoco.mj_forward(self.model, self.data)
        return self._observation(), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Push the trolley; the reward falls with the load's distance and its speed."""
        self.data.ctrl[:] = self.batched_control(action)
        mujoco.mj_step(self.model, self.data, nstep=FRAME_SKIP)
        reward = _reward(self.data.qpos, self.data.qvel, self._mark)
        return self._observation(), float(reward), False, False, {}

    def _observation(self) -> NDArray[np.float32]:
        return _observe(self.data.qpos, self.data.qvel, self._mark).astype(np.float32)

    # Planning in the simulator uses these and `model`, `data` and `frame_skip`.

    def batched_control(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Map forces in newtons to controls."""
        return actions / 12

    def episode_constants(self) -> NDArray[np.float64]:
        """Return the mark, which a reset draws."""
        return np.array([self._mark])

    def batched_reward(self, batch: Any) -> NDArray[np.float64]:
        """Return the rewards of many states."""
        return _reward(batch.qpos, batch.qvel, batch.constants[..., 0])

    def batched_observation(self, batch: Any) -> NDArray[np.float64]:
        """Return the observations of many states."""
        return _observe(batch.qpos, batch.qvel, batch.constants[..., 0])

    def render(self) -> NDArray[np.uint8]:
        """Return the view from the side, [480, 480, 3]."""
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self.model, 480, 480)
        self._renderer.update_scene(self.data, camera="side")
        return self._renderer.render()

    def close(self) -> None:
        """Close the renderer."""
        if self._renderer is not None:
            self._renderer.close()


def _reward(qpos: NDArray[Any], qvel: NDArray[Any], mark: Any) -> NDArray[Any]:
    x, angle = qpos[..., 0], qpos[..., 1]
    distance = x - ROPE * np.sin(angle) - mark
    swing = qvel[..., 0] - ROPE * qvel[..., 1] * np.cos(angle)
    return np.exp(-3 * np.abs(distance)) * (0.5 + 0.5 * np.exp(-np.abs(swing)))


def _observe(qpos: NDArray[Any], qvel: NDArray[Any], mark: Any) -> NDArray[Any]:
    x, angle = qpos[..., 0], qpos[..., 1]
    return np.stack([x, np.sin(angle), np.cos(angle), *np.moveaxis(qvel, -1, 0), mark - x], -1)


gymnasium.register(id="Crane-v0", entry_point=Crane, max_episode_steps=EPISODE_STEPS)
