"""Environments that tests register with Gymnasium, sound ones and broken ones."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete


class Point(gymnasium.Env):
    """A point that moves by its action; reward is highest at zero."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode=None, observation=None, action=None, fault=None):
        self.render_mode = render_mode
        self.observation_space = observation or Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = action or Box(-3.0, 1.0, (1,), np.float32)
        self.fault = fault
        self.actions = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1)
        self.t = 0
        return self._obs(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.actions.append(float(action[0]))
        self.x += 0.1 * float(action[0])
        self.t += 1
        reward = np.nan if self.fault == "reward" else np.exp(-abs(self.x))
        return self._obs(), reward, self.fault == "end" and self.t == 3, False, {}

    def _obs(self):
        if self.fault == "width":
            return np.zeros(5)
        return np.array([self.x, np.nan if self.fault == "nan" else self.t / 8])

    def render(self):
        if self.fault == "render":
            raise KeyError("camera")
        picture = np.zeros((40, 60, 3), np.uint8)
        picture[:, int(np.clip(30 + 10 * self.x, 0, 59))] = 255
        return picture


def _register(name, **kwargs):
    gymnasium.register(id=name, entry_point=Point, max_episode_steps=8, kwargs=kwargs)


_register("Point-v0")
_register("test/Point-v1")
_register("Early-v0", fault="end")
_register("NanReward-v0", fault="reward")
_register("NoPicture-v0", fault="render")
_register("NanObs-v0", fault="nan")
_register("Width-v0", fault="width")
_register("Unbounded-v0", action=Box(-np.inf, np.inf, (1,), np.float32))
_register("Discrete-v0", action=Discrete(3))
_register("Dict-v0", observation=Dict(a=Box(-1, 1, (2,))))
_register("Image-v0", observation=Box(0, 255, (8, 8, 3), np.uint8))
_register("walker-walk")
gymnasium.register(id="Endless-v0", entry_point=Point)
