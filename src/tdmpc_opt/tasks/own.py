"""A user's own Gymnasium environments as tasks: found by import path, checked, and wrapped."""

import difflib
import importlib
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.spaces import Box
from numpy.typing import ArrayLike, NDArray

from tdmpc_opt.contract import UNBOUNDED, Block, Contract
from tdmpc_opt.errors import InputError, TdmpcOptError, UnknownTaskError
from tdmpc_opt.schema import MT30, Task

Array = NDArray[np.float32]
_LARGEST_REWARD = float(np.finfo(np.float32).max)
_TRIAL_STEPS = 200
"""Most steps for which an environment is tried when it is named."""


def own_task(text: str) -> Task:
    """Build the environment, drive it for a while by random actions, and return it as a task.

    Args:
        text: `MODULE:ID`, an environment that importing the module registers with Gymnasium, or
            `ID` alone where an installed package registers it by itself.

    Raises:
        UnknownTaskError: No such module or environment.
        InputError: An environment that no agent here can act in; the message states why.
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
        with user_code(text, "its spaces"):
            spaces = with_spaces.observation_space, with_spaces.action_space
        width = _box(text, "observation", spaces[0]).shape[0]
        action = _box(text, "action", spaces[1])
        _require_bounds(text, action)
    finally:
        _close(text, with_spaces)
    steps = int(spec.max_episode_steps)
    task = Task(name, width, action.shape[0], episode_length=steps, custom=True, env=text)
    _try(task)
    return task


def own_contract(task: Task) -> Contract:
    """Return the spaces of a user's environment as its contract."""
    env = _make(task.env)
    try:
        spaces = {"observation": env.observation_space, "action": env.action_space}
        rate = _rate(env.unwrapped)
    finally:
        _close(task.env, env)
    blocks = {name: tuple(_blocks(name, space)) for name, space in spaces.items()}
    return Contract(blocks["observation"], blocks["action"], rate)


def _rate(raw: Any) -> float | None:
    """Return the steps per second of a user's environment, None where it does not state them.

    They follow from its `dt`, seconds of a step, or from `frame_skip` and the time step of its
    MuJoCo `model`.
    """
    step = getattr(raw, "dt", None)
    if step is None and hasattr(raw, "frame_skip") and hasattr(raw, "model"):
        step = raw.model.opt.timestep * raw.frame_skip
    if isinstance(step, int | float | np.number) and 0 < step < np.inf:
        return 1 / float(step)
    return None


def _blocks(group: str, space: Box) -> Iterator[Block]:
    """Yield the numbers of a space, neighbours of one range together, named by position."""
    bounds = [
        tuple(float(bound) if abs(bound) < UNBOUNDED else None for bound in pair)
        for pair in zip(space.low, space.high, strict=True)
    ]
    first = 0
    for pair, members in itertools.groupby(bounds):
        count = len(list(members))
        names = tuple(str(position) for position in range(first, first + count))
        yield Block(group, names, "-", *pair)
        first += count


def _try(task: Task) -> None:
    """Step the environment as an agent would, so that a fault shows before hours of work."""
    env, actions = OwnEnv(task), np.random.default_rng(0)
    try:
        env.reset()
        over = False
        for _ in range(min(task.episode_length, _TRIAL_STEPS)):
            if over:
                env.reset()
            _, _, terminated, truncated, _ = env.step(actions.uniform(-1, 1, task.action_dim))
            over = terminated or truncated
    finally:
        env.close()


@contextmanager
def user_code(text: str, what: str, whose: str = "the environment") -> Iterator[None]:
    """Turn what a user's code raises into one line; the cause is kept.

    Any exception may come out of a user's code, also that of a script that leaves.

    Args:
        text: What the user named, such as `MODULE:ID`.
        what: Part of the code that is called.
        whose: What to repair.

    Raises:
        InputError: Something was raised in the block.
    """
    try:
        yield
    except (TdmpcOptError, ModuleNotFoundError):  # one line already, or a library to install
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{text} raised {type(error).__name__} in {what}: {error}; repair {whose}"
        ) from error


def import_named(text: str, module: str, error: type[TdmpcOptError]) -> Any:
    """Import the module that a text of the user's names.

    Raises:
        TdmpcOptError: Of class `error`; there is no such module.
        InputError: What its import raises.
    """
    try:
        with user_code(text, "its import", "the module"):
            return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if not f"{module}.".startswith(f"{missing.name}."):
            raise  # the module is there, but lacks a library of its own
        raise error(
            f"cannot import {module}, which {text} names; install it, or put its folder on "
            "PYTHONPATH"
        ) from missing


def _registered(text: str) -> EnvSpec:
    """Import the module that a text names, if any, and return what it registered."""
    module, _, name = text.rpartition(":")
    if module:
        if not all(module.split(".")):
            raise UnknownTaskError(f"{text} is no import path; write MODULE:ID")
        import_named(text, module, UnknownTaskError)
    if name not in gymnasium.registry:
        near = difflib.get_close_matches(name, list(gymnasium.registry), n=3, cutoff=0.6)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UnknownTaskError(
            f"{module or 'Gymnasium'} registers no environment {name!r}{hint} "
            "(gymnasium.register(id=...) registers one)"
        )
    return gymnasium.registry[name]


def _make(text: str, render_mode: str | None = None) -> Any:
    spec = _registered(text)
    # Some constructors have no parameter render_mode.
    drawn: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    try:
        with user_code(text, "its constructor"):
            if drawn:
                _require_mode(text, spec, render_mode)
            # Its checker warns of what is checked here with an error.
            return gymnasium.make(spec, disable_env_checker=True, **drawn)
    except InputError as error:
        if isinstance(error.__cause__, gymnasium.error.Error):
            raise InputError(f"Gymnasium cannot build {text}: {error.__cause__}") from error
        raise


def _require_mode(text: str, spec: EnvSpec, render_mode: str | None) -> None:
    entry = spec.entry_point
    creator = load_env_creator(entry) if isinstance(entry, str) else entry
    metadata = getattr(creator, "metadata", None)  # functions have none
    if metadata is not None and render_mode not in metadata.get("render_modes", ()):
        raise InputError(
            f"{text} cannot be drawn: name {render_mode} in the render_modes of its metadata, "
            "take render_mode in its constructor, and return [height, width, 3] from render()"
        )


def _close(text: str, env: Any) -> None:
    with user_code(text, "close()"):
        env.close()


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
    if not np.issubdtype(action.dtype, np.floating):
        raise InputError(
            f"the action space of {text} holds {action.dtype}; agents here act by continuous "
            "numbers, so give its Box a floating dtype and round in the environment"
        )
    bounds = np.array([action.low, action.high], np.float64)
    if not (np.abs(bounds) < UNBOUNDED).all():
        raise InputError(
            f"the action space of {text} is unbounded; give its Box finite low and high, on "
            "which -1 and 1 are laid"
        )
    if not (action.low < action.high).all():
        raise InputError(
            f"the action space of {text} has a low that is not below its high; leave such a "
            "number out"
        )


def _numbers(value: Any, dtype: type[np.floating]) -> NDArray[np.floating] | None:
    """Return what an environment gives as an array; None where it is none."""
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is refused
            return np.asarray(value, dtype)
    except (TypeError, ValueError, RuntimeError):  # the last of tensors with a gradient
        return None


def _observation(text: str, obs: Any, width: int) -> Array:
    """Return an observation as float32, or refuse it."""
    values = _numbers(obs, np.float32)
    if values is None:
        raise InputError(
            f"{text} returns an observation of {type(obs).__name__} that is no row of numbers; "
            "return an array of numbers, or wrap it in gymnasium.wrappers.FlattenObservation"
        )
    if values.shape != (width,):
        raise InputError(
            f"{text} returns observations of shape {list(values.shape)}, its space has "
            f"[{width}]; make them agree"
        )
    if not np.isfinite(values).all():
        raise InputError(
            f"{text} returns an observation with NaN, infinity or a number beyond float32; "
            "repair the environment"
        )
    return np.array(values, np.float32)  # the environment may return one array each time


def _reward(text: str, reward: Any) -> float:
    """Return a reward as a number; arrays of one number are one."""
    values = _numbers(reward, np.float64)
    if reward is None or values is None or values.size != 1:
        raise InputError(f"{text} returns the reward {reward!r:.60}; return one number")
    if not abs(values.item()) <= _LARGEST_REWARD:
        raise InputError(
            f"{text} returns the reward {values.item():g}, which is no finite float32; repair "
            "the environment"
        )
    return float(values.item())


def _flag(text: str, name: str, value: Any) -> bool:
    """Return whether an episode is over; arrays of one boolean are one."""
    with user_code(text, f"its {name}"):
        flags = np.asarray(value)
    if flags.size != 1 or flags.dtype.kind not in "bi":
        raise InputError(f"{text} returns {name} as {value!r:.60}; return True or False")
    return bool(flags.item())


class OwnEnv(gymnasium.Env[Array, Array]):
    """A user's environment with actions in [-1, 1] and episodes of at most the task's length.

    An action lasts one step of the environment, whose own frame skip is the action repeat. An
    end in the last step counts as the time limit, whatever the environment calls it.

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
        self.metadata = dict(self._env.metadata)
        rate = _rate(self._env.unwrapped) or self.metadata.get("render_fps") or 30
        self.metadata["render_fps"] = rate
        self._seed: int | None = seed
        space = self._env.action_space
        self.bounds = (np.asarray(space.low, np.float64), np.asarray(space.high, np.float64))
        self.observation_space = Box(-np.inf, np.inf, (task.obs_dim,), np.float32)
        self.action_space = Box(-1.0, 1.0, (task.action_dim,), np.float32)
        self._steps = 0

    @property
    def unwrapped_environment(self) -> Any:
        """The user's own object, below Gymnasium's wrappers."""
        return self._env.unwrapped

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode; without a seed the environment's random stream goes on.

        Raises:
            InputError: What the environment raises, or a result that is no pair of a valid
                observation and infos.
        """
        with user_code(self.task.env, "reset()"):
            found = self._env.reset(seed=self._seed if seed is None else seed, options=options)
        if not (isinstance(found, tuple) and len(found) == 2):
            raise InputError(
                f"{self.task.env} returns {type(found).__name__} from reset(); return the pair "
                "(observation, info)"
            )
        self._seed, self._steps = None, 0
        return _observation(self.task.env, found[0], self.task.obs_dim), found[1]

    def step(self, action: ArrayLike) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Apply an action in [-1, 1], laid onto the bounds of the environment.

        Raises:
            InputError: What the environment raises, or a reward, observation or end that is
                none.
        """
        share = (np.clip(np.asarray(action, np.float64), -1, 1) + 1) / 2
        low, high = self.bounds
        scaled = low + share * (high - low)
        with user_code(self.task.env, "step()"):
            obs, reward, terminated, truncated, info = self._env.step(
                scaled.astype(self._env.action_space.dtype)
            )
        self._steps += 1
        last = self._steps >= self.task.episode_length
        ended = _flag(self.task.env, "terminated", terminated) and not last
        cut = _flag(self.task.env, "truncated", truncated) or last
        value = _reward(self.task.env, reward)
        return _observation(self.task.env, obs, self.task.obs_dim), value, ended, cut, info

    def render(self) -> NDArray[np.uint8]:
        """Return the environment's picture, [height, width, 3].

        Raises:
            InputError: Built without a render mode, or it raises or returns no such picture.
        """
        picture = None
        if self.render_mode:
            with user_code(self.task.env, "render()"):
                picture = self._env.render()
        if picture is None:
            raise InputError(
                f"{self.task.env} draws no picture; it needs the render mode rgb_array in its "
                "metadata, and to return an array"
            )
        pixels = np.asarray(picture)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise InputError(
                f"render() of {self.task.env} returns {pixels.dtype} of shape "
                f"{list(pixels.shape)}; return uint8 of shape [height, width, 3]"
            )
        return pixels

    def close(self) -> None:
        """Close the environment.

        Raises:
            InputError: What the environment raises.
        """
        _close(self.task.env, self._env)
