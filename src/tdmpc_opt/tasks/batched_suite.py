"""Rewards and observations of the MT30 tasks for whole batches of states.

Source: the rewards of dm_control's suite and those of `tasks.custom`, over sensors in place of
a `Physics`.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from tdmpc_opt.tasks.environment import ACTION_REPEAT, DMControlEnv  # chooses the renderer

# isort: split
import mujoco
import numpy as np
from dm_control.suite import common
from dm_control.utils import rewards
from numpy.typing import NDArray

from tdmpc_opt.errors import InputError
from tdmpc_opt.schema import MT30, Task
from tdmpc_opt.tasks import custom
from tdmpc_opt.tasks.batched import Array, Batch, BatchedTask, Measure, own_batched_task

_XBODY, _BODY = mujoco.mjtObj.mjOBJ_XBODY, mujoco.mjtObj.mjOBJ_BODY
_GEOM, _SITE = mujoco.mjtObj.mjOBJ_GEOM, mujoco.mjtObj.mjOBJ_SITE
_POSITION = mujoco.mjtSensor.mjSENS_FRAMEPOS
_AXES = {
    "x": mujoco.mjtSensor.mjSENS_FRAMEXAXIS,
    "y": mujoco.mjtSensor.mjSENS_FRAMEYAXIS,
    "z": mujoco.mjtSensor.mjSENS_FRAMEZAXIS,
}
_FISH_RADII = 0.04 + 0.005  # of the target and the mouth, metres
_FINGER_RADII = {"turn-easy": 0.07, "turn-hard": 0.03}
_REACHER_RADII = {"easy": 0.05, "hard": 0.015, "three-easy": 0.05, "three-hard": 0.015}
_WALKER = (
    "torso",
    *(f"{side}_{part}" for side in ("right", "left") for part in ("thigh", "leg", "foot")),
)


class _Sensor(NamedTuple):
    """A sensor of the frame of a body, geom or site, added so that a reward can read it."""

    name: str
    kind: mujoco.mjtSensor
    frame: mujoco.mjtObj
    """`mjOBJ_XBODY` (a body's frame), `mjOBJ_BODY` (its inertial frame), geom or site."""
    of: str
    """Name of that body, geom or site."""


def _position(of: str, frame: mujoco.mjtObj = _XBODY) -> _Sensor:
    return _Sensor(f"{of}.position", _POSITION, frame, of)


def _axis(of: str, axis: str, frame: mujoco.mjtObj = _XBODY) -> _Sensor:
    return _Sensor(f"{of}.{axis}", _AXES[axis], frame, of)


def _joined(*parts: Array) -> Array:
    return np.concatenate(parts, axis=-1)


def _speed(batch: Batch) -> Array:
    return batch["torso_subtreelinvel"][..., 0]


def _height(batch: Batch, body: str) -> Array:
    return batch[f"{body}.position"][..., 2]


def _within(value: Array, low: float, high: float) -> Array:
    return ((value >= low) & (value <= high)).astype(np.float64)


def _small_control(control: Array) -> Array:
    return rewards.tolerance(control, margin=1, value_at_margin=0, sigmoid="quadratic")


def _walker_move(batch: Batch, speed: float, direction: float = 1.0) -> Array:
    height, upright = _height(batch, "torso"), batch["torso.z"][..., 2]
    return custom.walker_move(height, upright, direction * _speed(batch), speed)


def _cheetah_foot(batch: Batch, raised: str) -> Array:
    torso, foot = _height(batch, "torso"), _height(batch, raised)
    return custom.cheetah_on_one_foot(_speed(batch), torso, foot)


def _cheetah_jump(batch: Batch) -> Array:
    feet = [_height(batch, foot) for foot in ("bfoot", "ffoot")]
    return custom.cheetah_jump(_speed(batch), _height(batch, "torso"), feet)


def _hopper_height(batch: Batch) -> Array:
    return _height(batch, "torso") - _height(batch, "foot")


def _hopper_stand(batch: Batch) -> Array:
    control = _small_control(batch.control).mean(axis=-1)
    return _within(_hopper_height(batch), 0.6, 2.0) * (control + 4) / 5


def _hopper_hop(batch: Batch) -> Array:
    hop = rewards.tolerance(_speed(batch), (2.0, np.inf), 1.0, "linear", 0.5)
    return _within(_hopper_height(batch), 0.6, 2.0) * hop


def _finger_to_target(batch: Batch) -> Array:
    return (batch.constants - batch["finger.position"])[..., :2]


def _reach(batch: Batch, radius: float) -> Array:
    distance = np.linalg.norm(_finger_to_target(batch), axis=-1)
    return _within(distance, 0.0, radius + 0.01)


def _acrobot(batch: Batch) -> Array:
    distance = np.linalg.norm(batch.constants - batch["tip.position"], axis=-1)
    return rewards.tolerance(distance, (0, 0.2), 1)


def _cartpole_smooth(batch: Batch) -> Array:
    upright = (batch["pole_1.z"][..., 2] + 1) / 2
    centred = (1 + rewards.tolerance(batch.qpos[..., 0], margin=2)) / 2
    slow = (1 + rewards.tolerance(batch.qvel[..., 1], margin=5)) / 2
    return upright * (4 + _small_control(batch.control[..., 0])) / 5 * slow * centred


def _cartpole_sparse(batch: Batch) -> Array:
    centred = _within(batch.qpos[..., 0], -0.25, 0.25)
    return centred * _within(batch["pole_1.z"][..., 2], 0.995, 1.0)


def _ball_to_cup(batch: Batch) -> Array:
    away: Array = batch["target.position"] - batch["ball.position"]
    return away[..., [0, 2]]


def _cup_catch(batch: Batch) -> Array:
    inside = (np.abs(_ball_to_cup(batch)) < 0.025).all(axis=-1)
    return np.asarray(inside, np.float64)


def _cup_spin(batch: Batch) -> Array:
    distance = np.linalg.norm(_ball_to_cup(batch), axis=-1)
    speed = np.linalg.norm(batch.qvel[..., 2:], axis=-1)
    return custom.cup_spin(distance, speed, _cup_catch(batch))


def _finger_tip(batch: Batch) -> Array:
    return (batch["tip"] - batch["spinner"])[..., [0, 2]]


def _finger_target(batch: Batch) -> Array:
    return (batch.constants - batch["spinner"])[..., [0, 2]]


def _finger_distance(batch: Batch, radius: float) -> Array:
    away = _finger_target(batch) - _finger_tip(batch)
    distance: Array = np.asarray(np.linalg.norm(away, axis=-1) - radius)
    return distance


def _finger_turn(batch: Batch, radius: float) -> Array:
    return (_finger_distance(batch, radius) <= 0).astype(np.float64)


def _observe_finger(batch: Batch) -> Array:
    joints = [batch["proximal"], batch["distal"], _finger_tip(batch)]
    names = ("proximal_velocity", "distal_velocity", "hinge_velocity")
    touch = [np.log1p(batch[name]) for name in ("touchtop", "touchbottom")]
    return _joined(*joints, *(batch[name] for name in names), *touch)


def _observe_finger_turn(batch: Batch, radius: float) -> Array:
    distance = _finger_distance(batch, radius)[..., None]
    return _joined(_observe_finger(batch), _finger_target(batch), distance)


def _mouth_to_target(batch: Batch) -> Array:
    away = batch.constants - batch["mouth.position"]
    return np.stack([(away * batch[f"mouth.{axis}"]).sum(axis=-1) for axis in "xyz"], axis=-1)


def _fish_swim(batch: Batch) -> Array:
    distance = np.linalg.norm(_mouth_to_target(batch), axis=-1)
    near = rewards.tolerance(distance, (0, _FISH_RADII), 2 * _FISH_RADII)
    return (7 * near + (batch["torso.z"][..., 2] + 1) / 2) / 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Domain:
    """The tasks of one domain."""

    module: str
    """Module of the suite with the model."""
    observe: Measure
    rewards: Mapping[str, Measure]
    """By the names of the tasks without that of the domain."""
    sensors: tuple[_Sensor, ...] = ()
    target: tuple[str, str] | None = None
    """Kind and name of what marks the target: `geom` or `site`."""


_DOMAINS = {
    "walker": _Domain(
        module="walker",
        sensors=(_position("torso"), *(_axis(body, axis) for body in _WALKER for axis in "xz")),
        observe=lambda batch: _joined(
            *(batch[f"{body}.{axis}"][..., :1] for body in _WALKER for axis in "xz"),
            batch["torso.position"][..., 2:],
            batch.qvel,
        ),
        rewards={
            "stand": lambda batch: custom.walker_stand(
                _height(batch, "torso"), batch["torso.z"][..., 2]
            ),
            "walk": partial(_walker_move, speed=1.0),
            "run": partial(_walker_move, speed=8.0),
            "walk-backwards": partial(_walker_move, speed=1.0, direction=-1.0),
            "run-backwards": partial(_walker_move, speed=8.0, direction=-1.0),
        },
    ),
    "cheetah": _Domain(
        module="cheetah",
        sensors=tuple(_position(body) for body in ("torso", "bfoot", "ffoot")),
        observe=lambda batch: _joined(batch.qpos[..., 1:], batch.qvel),
        rewards={
            "run": lambda batch: custom.cheetah_run(_speed(batch), 10.0),
            "run-backwards": lambda batch: custom.cheetah_run(-_speed(batch), 8.0),
            "run-front": partial(_cheetah_foot, raised="bfoot"),
            "run-back": partial(_cheetah_foot, raised="ffoot"),
            "jump": _cheetah_jump,
        },
    ),
    "hopper": _Domain(
        module="hopper",
        sensors=(_position("torso", _BODY), _position("foot", _BODY)),
        observe=lambda batch: _joined(
            *(batch.qpos[..., 1:], batch.qvel),
            *(np.log1p(batch[sensor]) for sensor in ("touch_toe", "touch_heel")),
        ),
        rewards={
            "stand": _hopper_stand,
            "hop": _hopper_hop,
            "hop-backwards": lambda batch: custom.hopper_backwards(
                _hopper_height(batch), _speed(batch)
            ),
        },
    ),
    "reacher": _Domain(
        module="reacher",
        sensors=(_position("finger", _GEOM),),
        target=("geom", "target"),
        observe=lambda batch: _joined(batch.qpos, _finger_to_target(batch), batch.qvel),
        rewards={
            name: partial(_reach, radius=radius) for name, radius in _REACHER_RADII.items()
        },
    ),
    "acrobot": _Domain(
        module="acrobot",
        sensors=(_position("tip", _SITE), _axis("upper_arm", "z"), _axis("lower_arm", "z")),
        target=("site", "target"),
        observe=lambda batch: _joined(
            *(batch[f"{arm}.z"][..., :1] for arm in ("upper_arm", "lower_arm")),
            *(batch[f"{arm}.z"][..., 2:] for arm in ("upper_arm", "lower_arm")),
            batch.qvel,
        ),
        rewards={"swingup": _acrobot},
    ),
    "pendulum": _Domain(
        module="pendulum",
        sensors=(_axis("pole", "z"),),
        observe=lambda batch: _joined(
            batch["pole.z"][..., 2:], batch["pole.z"][..., :1], batch.qvel
        ),
        rewards={
            "swingup": lambda batch: _within(
                batch["pole.z"][..., 2], np.cos(np.deg2rad(8)), 1.0
            ),
            "spin": lambda batch: custom.pendulum_spin(batch.qvel[..., 0]),
        },
    ),
    "cartpole": _Domain(
        module="cartpole",
        sensors=(_axis("pole_1", "z"),),
        observe=lambda batch: _joined(
            *(batch.qpos[..., :1], batch["pole_1.z"][..., 2:]),
            *(batch["pole_1.z"][..., :1], batch.qvel),
        ),
        rewards={
            "balance": _cartpole_smooth,
            "swingup": _cartpole_smooth,
            "balance-sparse": _cartpole_sparse,
            "swingup-sparse": _cartpole_sparse,
        },
    ),
    "cup": _Domain(
        module="ball_in_cup",
        sensors=(_position("target", _SITE), _position("ball")),
        observe=lambda batch: _joined(batch.qpos, batch.qvel),
        rewards={"catch": _cup_catch, "spin": _cup_spin},
    ),
    "finger": _Domain(
        module="finger",
        target=("site", "target"),
        observe=_observe_finger,
        rewards={
            "spin": lambda batch: (batch["hinge_velocity"][..., 0] <= -15.0).astype(np.float64),
            **{name: partial(_finger_turn, radius=r) for name, r in _FINGER_RADII.items()},
        },
    ),
    "fish": _Domain(
        module="fish",
        sensors=(
            _axis("torso", "z"),
            _position("mouth", _GEOM),
            *(_axis("mouth", axis, _GEOM) for axis in "xyz"),
        ),
        target=("geom", "target"),
        observe=lambda batch: _joined(
            *(batch.qpos[..., 7:], batch["torso.z"][..., 2:]),
            *(_mouth_to_target(batch), batch.qvel),
        ),
        rewards={"swim": _fish_swim},
    ),
}


def suite_task(name: str) -> BatchedTask:
    """Return a task of MT30 on batches of states.

    Raises:
        UnknownTaskError: No such task.
    """
    task = MT30[name]
    kind, _, short = name.partition("-")
    domain = _DOMAINS[kind]
    env = DMControlEnv(name)
    env.reset()
    substeps = round(env.control_timestep / env.physics.timestep())
    observe = domain.observe
    if kind == "finger" and short in _FINGER_RADII:
        observe = partial(_observe_finger_turn, radius=_FINGER_RADII[short])
    return BatchedTask(
        task,
        _compile(env, domain),
        substeps,
        reward=domain.rewards[short],
        observe=observe,
        read=partial(_read, target=domain.target),
        repeat=ACTION_REPEAT,
    )


class BatchedEpisodes:
    """Whole episodes of one MT30 task, stepped as one batch.

    They start as environments with these seeds do, to the bit. Observations and rewards of a
    step equal the environments' own to rounding.

    Args:
        task: One of the tasks of MT30.
        seeds: Seed of each episode's start.
    """

    def __init__(self, task: Task, seeds: Sequence[int]) -> None:
        self._task = suite_task(task.name)
        env, starts, observations = DMControlEnv(task.name), [], []
        for seed in seeds:
            env.reseed(seed)
            observations.append(env.reset()[0])
            starts.append(self._task.current(env))
        self._states, self._constants = (np.stack(part) for part in zip(*starts, strict=True))
        self.first: NDArray[np.float32] = np.stack(observations)
        """Observations [B, obs] at the start."""

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Apply one action to each episode.

        Args:
            actions: In [-1, 1], [B, action].

        Returns:
            Observations [B, obs] and rewards [B].

        Raises:
            InputError: An action with NaN or infinity.
        """
        if not np.isfinite(actions).all():
            raise InputError(f"an action of {self._task.task.name} is not finite")
        self._states, obs, reward = self._task.step(
            self._states, actions[:, None].astype(np.float64), self._constants
        )
        return obs[:, 0].astype(np.float32), reward[:, 0].astype(np.float32)


def batched_task(task: Task) -> BatchedTask:
    """Return a task on batches of states.

    Raises:
        InputError: An environment of the user's that does not offer it.
        MissingDependencyError: The simulator is missing, or its two parts do not fit.
    """
    return own_batched_task(task) if task.env else suite_task(task.name)


def _compile(env: DMControlEnv, domain: _Domain) -> mujoco.MjModel:
    if env.task.name.startswith("reacher-three"):
        xml, assets = custom.three_link_reacher(), common.ASSETS
    else:
        module = importlib.import_module(f"dm_control.suite.{domain.module}")
        xml, assets = module.get_model_and_assets()
    text = xml.decode() if isinstance(xml, bytes) else xml
    spec = mujoco.MjSpec.from_string(text, include=assets)
    for sensor in domain.sensors:
        spec.add_sensor(
            name=sensor.name, type=sensor.kind, objtype=sensor.frame, objname=sensor.of
        )
    model = custom.compile_model(spec)
    # Finger-spin's reset lowers the spinner's damping.
    model.dof_damping[:] = env.physics.model.dof_damping
    return model


def _read(env: DMControlEnv, target: tuple[str, str] | None) -> tuple[Any, Array]:
    if target is None:
        return env.physics.data.ptr, np.zeros(0)
    kind, name = target
    position: Array = getattr(env.physics.named.data, f"{kind}_xpos")[name].copy()
    return env.physics.data.ptr, position
