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

from tdmpc_opt.tasks.batched import Batch

Array = NDArray[Any]


class Crane(gymnasium.Env[Array, Array]):
    """A trolley on a rail with a load on a rope; the reward is 0 to 1 a step."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012
    frame_skip = 4
    """Simulation steps of 10 ms that one action lasts: 25 actions a second."""

    def __init__(self, render_mode: str | None = None) -> None:
        self.model = mujoco.MjModel.from_xml_path(str(Path(__file__).with_name("crane.xml")))
        self.data = mujoco.MjData(self.model)
        self.render_mode = render_mode
        self.observation_space = Box(-np.inf, np.inf, (6,), np.float32)
        self.action_space = Box(-12.0, 12.0, (1,), np.float32)  # newtons on the trolley
        self._renderer: Any = None

    # These four are what planning in the simulator uses, with `model`, `data` and `frame_skip`.

    def batched_reward(self, batch: Batch) -> Array:
        """Return the rewards of many states: high where the load is still, above the mark."""
        distance = np.abs(batch["load"][..., 0] - batch.constants[..., 0])
        swing = np.abs(batch["load_speed"][..., 0])
        return np.exp(-3 * distance) * (0.5 + 0.5 * np.exp(-swing))

    def batched_observation(self, batch: Batch) -> Array:
        """Return the observations of many states."""
        trolley, angle = batch.qpos[..., :1], batch.qpos[..., 1:]
        to_mark = batch.constants - trolley
        parts = (trolley, np.sin(angle), np.cos(angle), batch.qvel, to_mark)
        return np.concatenate(parts, axis=-1)

    def batched_control(self, actions: Array) -> Array:
        """Map forces in newtons to controls."""
        return actions / 12

    def episode_constants(self) -> Array:
        """Return the mark's position, which a reset draws and which is no part of the state."""
        return self.data.mocap_pos[0, :1]

    # The environment: its reward and observation are those of a batch of one state.

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Draw the positions of trolley and mark; the load is at rest."""
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[0] = self.np_random.uniform(-0.9, 0.9)
        self.data.mocap_pos[0, 0] = self.np_random.uniform(-0.9, 0.9)
        return self._observe(self._now()), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Push the trolley."""
        self.data.ctrl[:] = self.batched_control(action)
        mujoco.mj_step(self.model, self.data, self.frame_skip)
        now = self._now()
        return self._observe(now), float(self.batched_reward(now)), False, False, {}

    def _now(self) -> Batch:
        return Batch.of(self.model, self.data, self.episode_constants())

    def _observe(self, batch: Batch) -> Array:
        return self.batched_observation(batch).astype(np.float32)

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


gymnasium.register(id="Crane-v0", entry_point=Crane, max_episode_steps=150)
