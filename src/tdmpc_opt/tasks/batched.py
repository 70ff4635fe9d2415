"""Many states of one MuJoCo task stepped, observed and rewarded at once.

`mujoco.rollout` steps a batch of states in compiled code; rewards and observations are then
numpy expressions over positions, velocities and sensors. Reinforcement learning with many
environments and planning with the true dynamics use this.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import mujoco
import numpy as np
from mujoco import rollout
from numpy.typing import ArrayLike, NDArray

from tdmpc_opt.errors import InputError
from tdmpc_opt.schema import Task
from tdmpc_opt.tasks.own import OwnEnv

Array = NDArray[np.float64]

_STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS


@dataclass(frozen=True, slots=True)
class Batch:
    """States after control steps, with what their sensors read; any leading axes.

    As in dm_control, position and velocity sensors read the state itself, and sensors of
    forces, such as touch, what acted during the physics step that led to it.
    """

    qpos: Array
    """Generalised positions [*batch, nq]."""
    qvel: Array
    """Generalised velocities [*batch, nv]."""
    control: Array
    """Controls that led to the states, [*batch, nu]."""
    sensordata: Array
    """Readings of all sensors [*batch, nsensordata]."""
    constants: Array
    """What differs between episodes and stays within one, such as the position of a target,
    [*batch, constants]."""
    slices: Mapping[str, slice]
    """Place of each sensor's readings."""

    @classmethod
    def of(cls, model: mujoco.MjModel, data: mujoco.MjData, constants: ArrayLike) -> "Batch":
        """Return the present state of a simulation, without axes before those of its numbers.

        Its position and velocity sensors are read anew, those of forces are not.
        """
        mujoco.mj_step1(model, data)
        return cls(
            qpos=data.qpos.copy(),
            qvel=data.qvel.copy(),
            control=data.ctrl.copy(),
            sensordata=data.sensordata.copy(),
            constants=np.array(constants, np.float64),
            slices=_places(model),
        )

    def __getitem__(self, sensor: str) -> Array:
        """Return the readings of one sensor, [*batch, width]."""
        return self.sensordata[..., self.slices[sensor]]


def _places(model: mujoco.MjModel) -> dict[str, slice]:
    return {
        model.sensor(index).name: slice(
            model.sensor_adr[index], model.sensor_adr[index] + model.sensor_dim[index]
        )
        for index in range(model.nsensor)
    }


Measure = Callable[[Batch], Array]
"""Maps a batch to one number a state [*batch] or to observations [*batch, obs]."""


class BatchedTask:
    """A task on batches of states: steps, rewards and observations of many episodes at once.

    Args:
        task: The task.
        model: Compiled MuJoCo model, with the sensors that reward and observation read.
        substeps: Physics steps in a control step.
        reward: Reward of each control step.
        observe: Observation after each control step.
        read: Returns an environment's `mujoco.MjData` and its episode's constants.
        repeat: Control steps that an action lasts.
        control: Maps actions in [-1, 1], [B, steps, action], to controls [B, steps, nu]; None
            where they are the controls.
    """

    def __init__(
        self,
        task: Task,
        model: mujoco.MjModel,
        substeps: int,
        *,
        reward: Measure,
        observe: Measure,
        read: Callable[[Any], tuple[Any, Array]],
        repeat: int = 1,
        control: Callable[[Array], Array] | None = None,
    ) -> None:
        self.task = task
        self.step_seconds = repeat * substeps * float(model.opt.timestep)
        self._model, self._substeps, self._repeat = model, substeps, repeat
        self._reward, self._observe, self._read, self._control = reward, observe, read, control
        self._data = mujoco.MjData(model)
        self._rollout = rollout.Rollout(nthread=0)  # on the calling thread
        self._slices = _places(model)
        stages = model.sensor_needstage == mujoco.mjtStage.mjSTAGE_ACC
        self._of_forces = np.repeat(stages, model.sensor_dim)

    def current(self, env: Any) -> tuple[Array, Array]:
        """Return the physics state [state] and the constants of an environment's episode."""
        data, constants = self._read(env)
        state = np.empty(mujoco.mj_stateSize(self._model, _STATE.value))
        mujoco.mj_getState(self._model, data, state, _STATE.value)
        return state, constants

    def step(
        self, states: Array, actions: Array, constants: Array
    ) -> tuple[Array, Array, Array]:
        """Apply sequences of actions.

        Args:
            states: Full physics states [B, state].
            actions: In [-1, 1], [B, steps, action].
            constants: Constants of the episodes [B, constants].

        Returns:
            States after the last action [B, state], observations after each action
            [B, steps, obs] and rewards of each action [B, steps].
        """
        controls = actions if self._control is None else self._control(actions)
        controls = np.repeat(controls, self._repeat, axis=1)
        steps = controls.shape[1]
        held = np.repeat(controls, self._substeps, axis=1)
        # Sensors are read before a step: one step more reads those of the last state.
        held = np.concatenate([held, held[:, -1:]], axis=1)
        path, readings = self._simulated(states, held)
        last = np.arange(1, steps + 1) * self._substeps - 1
        after = readings[:, last + 1]
        after[..., self._of_forces] = readings[:, last][..., self._of_forces]
        reached = path[:, last]
        batch = self._batch(reached, controls, after, np.repeat(constants[:, None], steps, 1))
        reward = self._reward(batch).reshape(len(states), -1, self._repeat).sum(axis=-1)
        observed = self._observe(batch)[:, self._repeat - 1 :: self._repeat]
        return reached[:, -1], observed, reward

    def observe_now(self, states: Array, constants: Array) -> NDArray[np.float32]:
        """Return the observations [B, obs] of states, with no control acting on them.

        Args:
            states: Full physics states [B, state].
            constants: Constants of the episodes [B, constants].
        """
        still = np.zeros((len(states), 1, self._model.nu))
        _, readings = self._simulated(states, still)
        batch = self._batch(states[:, None], still, readings, constants[:, None])
        return self._observe(batch)[:, 0].astype(np.float32)

    def _simulated(self, states: Array, controls: Array) -> tuple[Array, Array]:
        """Return the states and the sensor readings of each physics step."""
        path, readings = self._rollout.rollout(self._model, self._data, states, controls)
        return cast("Array", path), cast("Array", readings)

    def _batch(
        self, states: Array, control: Array, sensordata: Array, constants: Array
    ) -> Batch:
        velocity = 1 + self._model.nq  # time comes before the positions
        return Batch(
            qpos=states[..., 1:velocity],
            qvel=states[..., velocity : velocity + self._model.nv],
            control=control,
            sensordata=sensordata,
            constants=constants,
            slices=self._slices,
        )


_NEEDED = ("model", "data", "frame_skip", "batched_reward", "batched_observation")
_CHECKED_STEPS = 20  # whose rewards and observations are compared
_TOLERANCE = 1e-3


def offers_batches(task: Task) -> bool:
    """Return whether an environment of the user's has what batches of states need."""
    env = OwnEnv(task)
    try:
        return all(hasattr(env.unwrapped_environment, name) for name in _NEEDED)
    finally:
        env.close()


def own_batched_task(task: Task) -> BatchedTask:
    """Return a user's task on batches of states, after a check against its environment's steps.

    The environment has, in addition to Gymnasium's methods, the attributes `model`
    (`mujoco.MjModel`), `data` (`mujoco.MjData`) and `frame_skip` (physics steps an action), and
    the methods `batched_reward(batch)` -> [*batch] and `batched_observation(batch)` ->
    [*batch, obs], whose argument is a `tdmpc_opt.tasks.batched.Batch`. It may have
    `batched_control(actions)`, which maps actions in the environment's bounds to controls, and
    `episode_constants()`, the numbers [constants] that a reset draws and that are no part of
    the physics state.

    Raises:
        InputError: Something is missing, or batches differ from the environment's own steps.
    """
    env = OwnEnv(task)
    inner = env.unwrapped_environment
    missing = [name for name in _NEEDED if not hasattr(inner, name)]
    if missing:
        raise InputError(
            f"{task.env} lacks {', '.join(missing)}, needed to plan in the simulator; see "
            "docs/own-tasks.md, or train its expert with --method sac"
        )
    low, high = env.bounds
    own_control = getattr(inner, "batched_control", None)

    def control(actions: Array) -> Array:
        scaled = low + (np.clip(actions, -1, 1) + 1) / 2 * (high - low)
        return scaled if own_control is None else np.asarray(own_control(scaled), np.float64)

    batched = BatchedTask(
        task,
        inner.model,
        int(inner.frame_skip),
        reward=inner.batched_reward,
        observe=inner.batched_observation,
        read=_read,
        control=control,
    )
    _require_agreement(batched, env)
    env.close()
    return batched


def _read(env: OwnEnv) -> tuple[Any, Array]:
    inner = env.unwrapped_environment
    constants = inner.episode_constants() if hasattr(inner, "episode_constants") else ()
    return inner.data, np.array(constants, np.float64)


def _require_agreement(batched: BatchedTask, env: OwnEnv) -> None:
    """Refuse a batched reward or observation that is not the environment's own."""
    task, draw = env.task, np.random.default_rng(0)
    env.reset()
    state, constants = batched.current(env)
    shape = (max(_CHECKED_STEPS, task.episode_length), task.action_dim)
    actions = draw.uniform(-1, 1, shape).astype(np.float32)
    first = actions[None, :_CHECKED_STEPS].astype(np.float64)
    _, seen, earned = batched.step(state[None], first, constants[None])
    for step, action in enumerate(actions):
        obs, reward, terminated, truncated, _ = env.step(action)
        if terminated or (truncated and step + 1 < task.episode_length):
            raise InputError(
                f"{task.env} ends an episode after {step + 1} steps, which batches of states "
                "cannot; take batched_reward out to train its expert with --method sac"
            )
        if step >= _CHECKED_STEPS:
            continue
        pairs = (("reward", earned[0, step], reward), ("observation", seen[0, step], obs))
        for what, found, wanted in pairs:
            if not np.allclose(found, wanted, rtol=_TOLERANCE, atol=_TOLERANCE):
                raise InputError(
                    f"batched_{what} of {task.env} differs from its step() after {step + 1} "
                    f"steps: {np.round(found, 4)} where the environment gave "
                    f"{np.round(wanted, 4)}; make them agree"
                )
