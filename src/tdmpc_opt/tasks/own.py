"""A user's own Gymnasium environments as tasks: found by import path, checked, and wrapped."""

import difflib
import importlib
import math
import re
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box
from numpy.typing import ArrayLike, NDArray

from tdmpc_opt.errors import InputError, UnknownTaskError
from tdmpc_opt.task_table import MT30, Task

Array = NDArray[np.float32]


def own_task(text: str) -> Task:
    """Build the environment once and return it as a task.

    Args:
        text: `MODULE:ID`, an environment that importing the module registers with Gymnasium, or
            `ID` alone where an installed package registers it by itself.

    Raises:
        UnknownTaskError: No such module or environment.
        InputError: An environment that no agent here can act in; the message says why.
    """
    spec = _registered(text)
    if spec.max_episode_steps is None:
        raise InputError(
            f"{text} has no episode length; register it with max_episode_steps, the number of "
            "steps that one episode lasts"
        )
    name = re.sub(r"[^\w.+-]", "-", spec.id, flags=re.ASCII)
    if name in MT30.names:
        raise InputError(f"{text} has the name of a task of MT30; register it under another id")
    with_spaces = _make(text)
    try:
        width = _box(text, "observation", with_spaces.observation_space).shape[0]
        action = _box(text, "action", with_spaces.action_space)
        _require_bounds(text, action)
        obs, _ = with_spaces.reset(seed=0)
        _require_observation(text, obs, width)
    finally:
        with_spaces.close()
    steps = int(spec.max_episode_steps)
    return Task(name, width, action.shape[0], episode_length=steps, custom=True, env=text)


def _registered(text: str) -> EnvSpec:
    """Import the module that a text names, if any, and return what it registered."""
    module, _, name = text.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise  # the module is there, but lacks a library of its own
            raise UnknownTaskError(
                f"cannot import {module}, which {text} names; install it, or put its folder on "
                "PYTHONPATH"
            ) from error
        except (ValueError, TypeError) as error:
            raise UnknownTaskError(f"{text} is no import path: {error}") from error
    if name not in gymnasium.registry:
        near = difflib.get_close_matches(name, list(gymnasium.registry), n=3, cutoff=0.6)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UnknownTaskError(
            f"{module or 'Gymnasium'} registers no environment {name!r}{hint}; it is "
            "gymnasium.register(id=...) that does"
        )
    return gymnasium.registry[name]


def _make(text: str, render_mode: str | None = None) -> Any:
    spec = _registered(text)
    try:
        # Its checker warns of what is checked here with an error.
        return gymnasium.make(spec, render_mode=render_mode, disable_env_checker=True)
    except gymnasium.error.Error as error:
        raise InputError(f"Gymnasium cannot build {text}: {error}") from error


def _box(text: str, kind: str, space: gymnasium.Space[Any]) -> Box:
    if not isinstance(space, Box):
        advice = (
            "wrap it in gymnasium.wrappers.FlattenObservation"
            if kind == "observation"
            else "agents here act by continuous numbers alone"
        )
        raise InputError(
            f"the {kind} space of {text} is {type(space).__name__}, not Box; {advice}"
        )
    if len(space.shape) != 1 or not space.shape[0]:
        raise InputError(
            f"the {kind} space of {text} has shape {list(space.shape)}; a flat row of numbers "
            "is needed, so reshape it in the environment"
        )
    return space


def _require_bounds(text: str, action: Box) -> None:
    if not np.isfinite(action.low).all() or not np.isfinite(action.high).all():
        raise InputError(
            f"the action space of {text} is unbounded; give its Box finite low and high, on "
            "which -1 and 1 are laid"
        )
    if not (action.low < action.high).all():
        raise InputError(
            f"the action space of {text} has a low that is not below its high; leave such a "
            "number out"
        )


def _require_observation(text: str, obs: Any, width: int) -> None:
    values = np.asarray(obs)
    if values.shape != (width,):
        raise InputError(
            f"{text} returns observations of shape {list(values.shape)}, its space says "
            f"[{width}]; make them agree"
        )
    if not np.isfinite(values).all():
        raise InputError(f"{text} returns an observation with NaN or infinity; mend that first")


class OwnEnv(gymnasium.Env[Array, Array]):
    """A user's environment with actions in [-1, 1] and episodes of one length.

    An action lasts one step of the environment, whose own frame skip is the action repeat.

    Args:
        task: What `own_task` returned.
        seed: Seed of the first reset.
        render_mode: `rgb_array`, to allow `render()`.

    Attributes:
        bounds: Lowest and highest values of the environment's actions, [action] each.

    Raises:
        UnknownTaskError: The environment is not registered any more.
    """

    def __init__(self, task: Task, seed: int = 0, render_mode: str | None = None) -> None:
        self.task = task
        self.render_mode = render_mode
        self._env = _make(task.env, render_mode)
        self.metadata = {"render_fps": 30, **self._env.metadata}
        self._seed: int | None = seed
        space = self._env.action_space
        self.bounds = (np.asarray(space.low, np.float64), np.asarray(space.high, np.float64))
        self.observation_space = Box(-np.inf, np.inf, (task.obs_dim,), np.float32)
        self.action_space = Box(-1.0, 1.0, (task.action_dim,), np.float32)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode; without a seed the environment's random stream goes on."""
        obs, info = self._env.reset(seed=self._seed if seed is None else seed, options=options)
        self._seed, self._steps = None, 0
        return self._checked(obs), info

    def step(self, action: ArrayLike) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Apply an action in [-1, 1], laid onto the bounds of the environment.

        Raises:
            InputError: A reward or observation with NaN, or an episode that ends early.
        """
        share = (np.clip(np.asarray(action, np.float64), -1, 1) + 1) / 2
        low, high = self.bounds
        scaled = low + share * (high - low)
        obs, reward, terminated, truncated, info = self._env.step(
            scaled.astype(self._env.action_space.dtype)
        )
        self._steps += 1
        last = self._steps >= self.task.episode_length
        if (terminated or truncated) and not last:
            raise InputError(
                f"an episode of {self.task.env} ended after {self._steps} of its "
                f"{self.task.episode_length} steps; here episodes run their full length, so "
                "let it go on, with rewards that say that nothing is to be gained any more"
            )
        if not math.isfinite(reward):
            raise InputError(f"{self.task.env} returns the reward {reward}; mend that first")
        return self._checked(obs), float(reward), False, last, info

    def _checked(self, obs: Any) -> Array:
        _require_observation(self.task.env, obs, self.task.obs_dim)
        return np.asarray(obs, np.float32)

    def render(self) -> Any:
        """Return the environment's picture, [height, width, 3].

        Raises:
            InputError: Built without a render mode, or it draws nothing.
        """
        picture = self._env.render() if self.render_mode else None
        if picture is None:
            raise InputError(
                f"{self.task.env} draws no picture; it needs the render mode rgb_array in its "
                "metadata, and to return an array"
            )
        return picture

    def close(self) -> None:
        """Close the environment."""
        self._env.close()
