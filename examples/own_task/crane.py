"""A crane that brings its load to a mark and keeps it from swinging: a task of your own.

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
    """A trolley on a rail with a load on a rope; it earns 0 to 1 a step."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012

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
        """Put the trolley and the mark somewhere; the load hangs still."""
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
        self.data.ctrl[0] = action[0] / 12
        mujoco.mj_step(self.model, self.data, nstep=FRAME_SKIP)
        x, angle = self.data.qpos
        speed, spin = self.data.qvel
        distance = x - ROPE * np.sin(angle) - self._mark
        swing = speed - ROPE * spin * np.cos(angle)
        reward = float(np.exp(-3 * abs(distance)) * (0.5 + 0.5 * np.exp(-abs(swing))))
        return self._observation(), reward, False, False, {}

    def _observation(self) -> NDArray[np.float32]:
        x, angle = self.data.qpos
        parts = (x, np.sin(angle), np.cos(angle), *self.data.qvel, self._mark - x)
        return np.array(parts, np.float32)

    def render(self) -> NDArray[np.uint8]:
        """Return the view from the side, [480, 480, 3]."""
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self.model, 480, 480)
        self._renderer.update_scene(self.data, camera="side")
        return self._renderer.render()

    def close(self) -> None:
        """Free the picture's memory."""
        if self._renderer is not None:
            self._renderer.close()


gymnasium.register(id="Crane-v0", entry_point=Crane, max_episode_steps=EPISODE_STEPS)
