"""Any task as an environment: those of MT30 on dm_control physics, and users' own."""

from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tdmpc_opt.errors import InputError, MissingDependencyError
from tdmpc_opt.schema import MT30, Task
from tdmpc_opt.tasks import choose_tasks
from tdmpc_opt.tasks.offscreen import load_renderer


def _unusable(error: Exception) -> MissingDependencyError:
    """Return in one line what keeps the simulator from being imported."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    if name and "." not in name:
        return MissingDependencyError(
            f"the tasks need {name}, which is not installed; run: pip install 'tdmpc-opt[envs]'"
        )
    return MissingDependencyError(
        "gymnasium, mujoco or dm_control is installed in part, or they do not fit each other "
        f"({type(error).__name__}: {error}); run: pip install --force-reinstall 'gymnasium<2' "
        "mujoco==3.17.0 dm_control==1.0.50"
    )


try:
    import gymnasium

    _NO_RENDERER = load_renderer()  # before all else of the simulator

    import mujoco

    from tdmpc_opt.tasks import custom
    from tdmpc_opt.tasks.own import OwnEnv
except (ImportError, AttributeError, OSError, RuntimeError, ValueError) as error:
    # What a missing part, a missing shared library or another binary interface raises.
    raise _unusable(error) from error

ACTION_REPEAT = 2
"""Control steps that one action lasts."""

_VERSION_FIX = "pip install mujoco==3.17.0 dm_control==1.0.50"
# Displayed half-length of the floor; the suite's ends 2 m behind a backward runner.
_DRAWN_FLOOR = {"walker": ("floor", 500.0), "cheetah": ("ground", 200.0)}


class DMControlEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One MT30 task: unpadded float32 observations, action repeat 2, 500 steps an episode."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  # Gymnasium's own form

    def __init__(
        self,
        task: str,
        seed: int = 0,
        *,
        render_mode: str | None = None,
        legacy_cup_physics: bool = False,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise InputError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.task = MT30[task]
        self.render_mode = render_mode
        self._legacy_cup_physics = legacy_cup_physics
        self._environment = self._build(seed)
        rate = round(1 / (ACTION_REPEAT * self.control_timestep))
        self.metadata = {**self.metadata, "render_fps": rate}
        self.observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (self.task.obs_dim,), np.float32
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self.task.action_dim,), np.float32)
        self._observation = np.zeros(self.task.obs_dim)
        self._steps: int | None = None  # none until the first reset

    def _build(self, seed: int) -> Any:
        try:
            environment = custom.load(self.task.name, seed)
        except (AttributeError, KeyError) as error:
            # What dm_control raises when MuJoCo's model struct lacks a field it lists.
            raise MissingDependencyError(
                f"dm_control {version('dm_control')} cannot load models with mujoco "
                f"{version('mujoco')} ({error}); run: {_VERSION_FIX}"
            ) from error
        if self._legacy_cup_physics and self.task.name.startswith("cup-"):
            custom.use_legacy_cup_physics(environment.physics)
        return environment

    @property
    def physics(self) -> Any:
        """The dm_control physics; a reset with a seed replaces it."""
        return self._environment.physics

    @property
    def control_timestep(self) -> float:
        """Seconds of a control step; an action lasts two."""
        return float(self._environment.control_timestep())

    def reseed(self, seed: int) -> None:
        """Let the next reset, without a seed, draw the start of an environment of this seed.

        It takes a fraction of the time of a reset with the seed, which builds the model anew.
        """
        self._environment.task.random.seed(seed)

    @property
    def observation(self) -> NDArray[np.float64]:
        """Observation of the current state before it is rounded to float32."""
        return self._observation

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Restarts the environment as if built with this seed; without it the
                task's random stream goes on.
            options: Not used.

        Returns:
            The first observation and an empty dict.
        """
        super().reset(seed=seed)
        if seed is not None:
            # Rebuilding undoes edits of the model too, so the restart is exact to the bit.
            self._environment = self._build(seed)
        step = self._environment.reset()
        self._steps = 0
        return self._flatten(step.observation), {}

    def step(
        self, action: ArrayLike
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Apply an action for two control steps.

        Args:
            action: One number per actuator, in [-1, 1]; not clipped here.

        Returns:
            Observation after the second control step, the sum of the two rewards,
            `terminated` (always False), `truncated` (True at step 500) and an empty dict.

        Raises:
            InputError: An action of another shape or with NaN or infinity, or a step
                before a reset.
        """
        if self._steps is None or self._steps >= self.task.episode_length:
            state = "has not begun" if self._steps is None else "is over"
            raise InputError(f"the episode of {self.task.name} {state}; call reset() first")
        values = self._check(action)
        reward = 0.0
        for _ in range(ACTION_REPEAT):
            step = self._environment.step(values)
            reward += float(step.reward)
        self._steps += 1
        truncated = self._steps >= self.task.episode_length
        return self._flatten(step.observation), reward, False, truncated, {}

    def _check(self, action: ArrayLike) -> NDArray[np.float64]:
        try:
            values = np.asarray(action, dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(
                f"an action must be {self.task.action_dim} numbers, got {action!r}"
            ) from None
        if values.shape != (self.task.action_dim,):
            raise InputError(
                f"an action of {self.task.name} has shape ({self.task.action_dim},), "
                f"got {values.shape}"
            )
        if not np.isfinite(values).all():
            raise InputError(f"an action must be finite, got {values.tolist()}")
        return values

    def _flatten(self, observation: dict[str, Any]) -> NDArray[np.float32]:
        parts = [np.ravel(value) for value in observation.values()]
        self._observation = np.concatenate(parts).astype(np.float64, copy=False)
        return self._observation.astype(np.float32)

    def render(self) -> NDArray[np.uint8]:
        """Return the view of the first camera, [384, 384, 3].

        Raises:
            InputError: Built without `render_mode="rgb_array"`.
            MissingDependencyError: No OpenGL backend on this machine.
        """
        if self.render_mode is None:
            raise InputError('to render, build the environment with render_mode="rgb_array"')
        floor = _DRAWN_FLOOR.get(self.task.name.partition("-")[0])
        if floor is not None:
            # Planes are infinite for contacts, so this changes the picture only.
            self.physics.named.model.geom_size[floor[0], 0] = floor[1]
        try:
            pixels: NDArray[np.uint8] = self.physics.render(384, 384, camera_id=0)
        except (RuntimeError, mujoco.FatalError) as error:
            if "OpenGL" not in str(error):
                raise
            raise MissingDependencyError(
                f"rendering needs an OpenGL backend ({_NO_RENDERER or error}): set the "
                "environment variable MUJOCO_GL to egl or osmesa before starting Python "
                "(without a display glfw cannot draw)"
            ) from error
        return pixels


Environment = gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]


def make_env(
    task: Task | str,
    seed: int = 0,
    *,
    render_mode: str | None = None,
    legacy_cup_physics: bool = False,
) -> Environment:
    """Build the environment of a task: float32 observations, actions in [-1, 1].

    Args:
        task: A task, or its name as in `choose_tasks`.
        seed: Seed of the first episode; a reset without a seed continues its random stream.
        render_mode: `rgb_array` to allow `render()`.
        legacy_cup_physics: Let the ball of the cup tasks touch as it did up to MuJoCo
            2.3.7, with which the public agents were trained; no effect on other tasks.

    Raises:
        UnknownTaskError: No such task; the message lists near matches.
        InputError: An environment that no agent here can act in, or another render mode.
        MissingDependencyError: The simulator is missing, or its two parts do not fit.
    """
    if isinstance(task, str):
        task = choose_tasks(task).tasks[0]
    if task.env:
        return OwnEnv(task, seed, render_mode)
    return DMControlEnv(
        task.name, seed, render_mode=render_mode, legacy_cup_physics=legacy_cup_physics
    )
