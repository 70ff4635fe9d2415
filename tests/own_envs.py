"""Environments that tests register with Gymnasium, sound ones and broken ones."""

import gymnasium
import mujoco
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
        fell = self.fault in ("fall", "burst") and abs(self.x) > 1
        ended = {"end": self.t == 3, "drop": True}.get(self.fault, fell)
        obs = np.full(2, 3e38) if ended and self.fault == "burst" else self._obs()
        return obs, reward, ended, False, {}

    def _obs(self):
        if self.fault == "width":
            return np.zeros(5)
        return np.array([self.x, np.nan if self.fault == "nan" else self.t / 8])

    def render(self):
        if self.fault == "render":
            raise KeyError("camera")
        if self.fault == "grey":
            return np.zeros((40, 60))
        picture = np.zeros((40, 60, 3), np.uint8)
        picture[:, int(np.clip(30 + 10 * self.x, 0, 59))] = 255
        return picture


def _register(name, **kwargs):
    gymnasium.register(id=name, entry_point=Point, max_episode_steps=8, kwargs=kwargs)


gymnasium.register(id="Long-v0", entry_point=Point, max_episode_steps=10**8)
_register("Point-v0")
_register("test/Point-v1")
_register("Early-v0", fault="end")
_register("Fall-v0", fault="fall")
_register("Drop-v0", fault="drop")
_register("Burst-v0", fault="burst")
_register("NanReward-v0", fault="reward")
_register("NoPicture-v0", fault="render")
_register("Grey-v0", fault="grey")
_register("NanObs-v0", fault="nan")
_register("Width-v0", fault="width")
_register("Unbounded-v0", action=Box(-np.inf, np.inf, (1,), np.float32))
_register("Discrete-v0", action=Discrete(3))
_register("Dict-v0", observation=Dict(a=Box(-1, 1, (2,))))
_register("Image-v0", observation=Box(0, 255, (8, 8, 3), np.uint8))
_register("walker-walk")
gymnasium.register(id="Endless-v0", entry_point=Point)


_SLIDER = """
<mujoco>
  <option timestep="0.02"/>
  <worldbody><body><joint name="x" type="slide" axis="1 0 0" damping="2"/>
    <geom size="0.1" mass="1" contype="0" conaffinity="0"/></body></worldbody>
  <actuator><motor joint="x" gear="5"/></actuator>
</mujoco>
"""


class Slider(gymnasium.Env):
    """A weight on a rail that offers batches of states; reward is highest at its mark."""

    frame_skip = 2

    def __init__(self, scale=1.0, end=np.inf):
        self.end = end
        self.model = mujoco.MjModel.from_xml_string(_SLIDER)
        self.data = mujoco.MjData(self.model)
        self.observation_space = Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = Box(-2.0, 2.0, (1,), np.float32)
        self.scale = scale

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        self.mark = self.np_random.uniform(-0.3, 0.3)
        return self._obs(), {}

    def step(self, action):
        self.data.ctrl[:] = self.batched_control(action)
        mujoco.mj_step(self.model, self.data, self.frame_skip)
        reward = float(np.exp(-abs(self.data.qpos[0] - self.mark)))
        return self._obs(), reward, self.data.time > self.end, False, {}

    def _obs(self):
        return np.array([self.data.qpos[0], self.data.qvel[0], self.mark], np.float32)

    def batched_control(self, actions):
        return actions / 2

    def episode_constants(self):
        return np.array([self.mark])

    def batched_reward(self, batch):
        return self.scale * np.exp(-np.abs(batch.qpos[..., 0] - batch.constants[..., 0]))

    def batched_observation(self, batch):
        return np.concatenate([batch.qpos, batch.qvel, batch.constants], axis=-1)


gymnasium.register(id="Slider-v0", entry_point=Slider, max_episode_steps=50)
gymnasium.register(
    id="EndingSlider-v0", entry_point=Slider, max_episode_steps=50, kwargs={"end": 1.5}
)
gymnasium.register(
    id="WrongSlider-v0", entry_point=Slider, max_episode_steps=50, kwargs={"scale": 1.5}
)
