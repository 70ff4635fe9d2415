"""Environments with habits that users' have: each runs, or is refused in one line."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from tdmpc_opt import cli
from tdmpc_opt.errors import InputError
from tdmpc_opt.tasks import choose_tasks
from tdmpc_opt.tasks.environment import make_env

ROW = Box(-np.inf, np.inf, (2,), np.float32)
ONE = Box(-1, 1, (1,), np.float32)


class Odd(gymnasium.Env):
    """Ten steps of zeros; each habit replaces something."""

    def __init__(self, obs_space=ROW, act_space=ONE, **habits):
        self.observation_space, self.action_space = obs_space, act_space
        self.habits = habits
        self.t = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.habits.get("start", (np.zeros(2, np.float32), {}))

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        if "raises" in self.habits:
            raise self.habits["raises"]
        obs = self.habits.get("obs", np.zeros(2, np.float32))
        ends = self.habits.get("done", self.t == self.habits.get("ends"))
        return obs, self.habits.get("reward", 1.0), ends, self.t == self.habits.get("cut"), {}


class NoSeed(Odd):
    def reset(self):
        return np.zeros(2), {}


class NoSpaces(Odd):
    def __init__(self):
        """Make neither space."""


class Closing(Odd):
    def close(self):
        raise OSError("the robot is gone")


class OldStep(Odd):
    def step(self, action):
        return np.zeros(2), 0.0, False, {}


class NoSuper(Odd):
    def reset(self, seed=None, options=None):
        return np.zeros(2), {}


class OneArray(Odd):
    """Returns the same array each time, and changes it."""

    def __init__(self):
        super().__init__(start=(np.zeros(2, np.float32), {}))

    def step(self, action):
        self.habits["start"][0][:] += 1
        return self.habits["start"][0], 1.0, False, False, {}


class BadConstructor(Odd):
    def __init__(self):
        raise ValueError("no licence")


class NeedsArgument(Odd):
    def __init__(self, robot):
        super().__init__()


class NoLibrary(Odd):
    def __init__(self):
        raise ModuleNotFoundError("No module named 'pybullet'", name="pybullet")


def _box(*shape: int, low=-1.0, high=1.0, dtype=np.float32) -> Box:
    return Box(low, high, shape, dtype)


ENVIRONMENTS = {
    "plain": (Odd, {}, None),
    "float64-actions": (Odd, {"act_space": _box(1, dtype=np.float64)}, None),
    "float16-actions": (Odd, {"act_space": _box(1, dtype=np.float16)}, None),
    "wide-bounds": (Odd, {"act_space": _box(3, low=-50, high=1e6)}, None),
    "mixed-bounds": (
        Odd,
        {"act_space": Box(np.array([0, -2]), np.array([1, 5]), dtype=np.float64)},
        None,
    ),
    "float64-obs": (Odd, {"obs": np.zeros(2, np.float64)}, None),
    "one-array": (OneArray, {}, None),
    "integer-obs": (Odd, {"obs": np.zeros(2, np.int64)}, None),
    "list-obs": (Odd, {"obs": [0.0, 1.0]}, None),
    "boolean-obs": (Odd, {"obs": np.array([True, False])}, None),
    "array-reward": (Odd, {"reward": np.array([1.0])}, None),
    "array-0d-reward": (Odd, {"reward": np.array(1.0, np.float32)}, None),
    "nested-reward": (Odd, {"reward": [[2.0]]}, None),
    "integer-reward": (Odd, {"reward": 1}, None),
    "boolean-reward": (Odd, {"reward": True}, None),
    "no-super-reset": (NoSuper, {}, None),
    "cut-at-the-end": (Odd, {"cut": 10}, None),
    "ends-at-the-end": (Odd, {"ends": 10}, None),
    "none-reward": (Odd, {"reward": None}, "returns the reward None; return one number"),
    "two-rewards": (Odd, {"reward": np.ones(2)}, "returns the reward array"),
    "text-reward": (Odd, {"reward": "much"}, "returns the reward 'much'"),
    "infinite-reward": (Odd, {"reward": np.inf}, "returns the reward inf"),
    "huge-reward": (Odd, {"reward": 1e39}, r"the reward 1e\+39, which is no finite float32"),
    "gradient-reward": (
        Odd,
        {"reward": torch.ones((), requires_grad=True)},
        "the reward tensor.*; return one number",
    ),
    "numpy-end": (Odd, {"done": np.array([False])}, None),
    "text-end": (Odd, {"done": "no"}, "returns terminated as 'no'; return True or False"),
    "two-ends": (Odd, {"done": np.zeros(2, bool)}, "returns terminated as array"),
    "ragged-end": (
        Odd,
        {"done": [[True], [True, False]]},
        "raised ValueError in its terminated",
    ),
    "no-end": (Odd, {"done": None}, "returns terminated as None; return True or False"),
    "ends-early": (Odd, {"ends": 4}, None),
    "cut-early": (Odd, {"cut": 4}, None),
    "dict-obs-space": (Odd, {"obs_space": Dict(a=ROW)}, "is Dict, not Box"),
    "nested-obs-space": (Odd, {"obs_space": Dict(a=Dict(b=ROW))}, "is Dict, not Box"),
    "tuple-obs-space": (Odd, {"obs_space": Tuple((ROW, ROW))}, "is Tuple, not Box"),
    "discrete-obs-space": (Odd, {"obs_space": Discrete(4)}, "is Discrete, not Box"),
    "image-obs-space": (Odd, {"obs_space": _box(8, 8, 3)}, "a flat row"),
    "scalar-obs-space": (Odd, {"obs_space": _box()}, "a flat row"),
    "dict-obs": (Odd, {"obs": {"a": 1}}, "observation of dict that is no row of numbers"),
    "text-obs": (Odd, {"obs": ["a", "b"]}, "no row of numbers"),
    "wide-obs": (Odd, {"obs": np.zeros(3)}, r"of shape \[3\], its space has \[2\]"),
    "column-obs": (Odd, {"obs": np.zeros((2, 1))}, r"of shape \[2, 1\]"),
    "nan-obs": (Odd, {"obs": np.array([0, np.nan])}, "with NaN"),
    "gradient-obs": (
        Odd,
        {"obs": torch.zeros(2, requires_grad=True)},
        "observation of Tensor that is no row of numbers",
    ),
    "huge-obs": (Odd, {"obs": np.array([0, 1e300])}, "beyond float32"),
    "binary-actions": (Odd, {"act_space": MultiBinary(3)}, "is MultiBinary, not Box"),
    "multi-discrete": (Odd, {"act_space": MultiDiscrete([2, 2])}, "is MultiDiscrete, not"),
    "dict-actions": (Odd, {"act_space": Dict(a=ONE)}, "is Dict, not Box"),
    "integer-actions": (Odd, {"act_space": _box(1, low=0, high=9, dtype=np.int64)}, "int64"),
    "half-infinite": (Odd, {"act_space": _box(1, low=0, high=np.inf)}, "unbounded"),
    "float32-max": (Odd, {"act_space": _box(1, low=-3e38, high=3e38)}, "unbounded"),
    "equal-bounds": (Odd, {"act_space": _box(1, low=1, high=1)}, "low that is not below"),
    "matrix-actions": (Odd, {"act_space": _box(2, 2)}, "a flat row"),
    "no-seed": (NoSeed, {}, "raised TypeError in reset"),
    "bare-reset": (Odd, {"start": np.zeros(2)}, r"returns ndarray from reset\(\)"),
    "old-step": (OldStep, {}, "raised ValueError in step"),
    "raises": (Odd, {"raises": KeyError("joint")}, "raised KeyError in step.*'joint'"),
    "exits": (Odd, {"raises": SystemExit("usage")}, r"raised SystemExit in step\(\): usage"),
    "no-spaces": (NoSpaces, {}, "raised AttributeError in its spaces"),
    "closing": (Closing, {}, r"raised OSError in close\(\): the robot is gone"),
    "bad-constructor": (BadConstructor, {}, "raised ValueError in its constructor: no lic"),
    "needs-argument": (NeedsArgument, {}, "in its constructor: .*robot"),
}


@pytest.fixture(autouse=True)
def _registered(request):
    callspec = getattr(request.node, "callspec", None)
    name = callspec.params["name"] if callspec else "no-library"
    kind, habits, _ = ENVIRONMENTS.get(name, (NoLibrary, {}, None))
    spec = {"id": f"odd/{name}-v0", "entry_point": kind, "max_episode_steps": 10}
    gymnasium.register(**spec, kwargs=habits)
    yield
    del gymnasium.registry[f"odd/{name}-v0"]


@pytest.mark.filterwarnings("ignore::UserWarning:gymnasium")
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_odd_environment_runs_or_is_refused_in_one_line(name, capsys):
    message = ENVIRONMENTS[name][2]
    if message is not None:
        with pytest.raises(InputError, match=message):
            choose_tasks(f"odd/{name}-v0")
        assert cli.main(["tasks", "--tasks", f"odd/{name}-v0"]) == 1
        assert capsys.readouterr().err.count("\n") == 1
        return
    env = make_env(f"odd/{name}-v0")
    obs, _ = env.reset(seed=1)
    assert obs.dtype == np.float32
    steps = [env.step(np.ones(env.action_space.shape, np.float32)) for _ in range(10)]
    assert all(isinstance(step[1], float) for step in steps)
    if name == "one-array":
        assert [step[0][0] for step in steps] == [*range(1, 11)]
    expected = [(False, False)] * 9 + [(False, True)]
    if name.endswith("-early"):
        expected[3] = (name == "ends-early", name == "cut-early")
    assert [step[2:4] for step in steps] == expected


def test_a_library_that_an_environment_lacks_is_named(capsys):
    assert cli.main(["tasks", "--tasks", "odd/no-library-v0"]) == 1
    error = capsys.readouterr().err
    assert "pybullet, which is not installed: pip install pybullet" in error
    assert error.count("\n") == 1
