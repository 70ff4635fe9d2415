"""Rewards and observations of the MT30 tasks for whole batches of states.

Source: the rewards of dm_control's suite and those of `tasks.custom`, over sensors in place of
a `Physics`.
"""

import importlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import mujoco
import numpy as np
from dm_control.suite import common
from dm_control.utils import rewards

from tdmpc_opt.schema import MT30, Task
from tdmpc_opt.tasks import custom
from tdmpc_opt.tasks.batched import (
    Array,
    Batch,
    BatchedPhysics,
    BatchedTask,
    Measure,
    Sensor,
    own_batched_task,
    with_sensors,
)
from tdmpc_opt.tasks.environment import ACTION_REPEAT, DMControlEnv

_XBODY, _BODY = mujoco.mjtObj.mjOBJ_XBODY, mujoco.mjtObj.mjOBJ_BODY
_GEOM, _SITE = mujoco.mjtObj.mjOBJ_GEOM, mujoco.mjtObj.mjOBJ_SITE
_POSITION = mujoco.mjtSensor.mjSENS_FRAMEPOS
_AXES = {
    "x": mujoco.mjtSensor.mjSENS_FRAMEXAXIS,
    "y": mujoco.mjtSensor.mjSENS_FRAMEYAXIS,
    "z": mujoco.mjtSensor.mjSENS_FRAMEZAXIS,
}
_FISH_RADII = 0.04 + 0.005  # of the target and the mouth, metres
_FINGER_RADII = {"finger-turn-easy": 0.07, "finger-turn-hard": 0.03}
_REACHER_RADII = {
    "reacher-easy": 0.05,
    "reacher-hard": 0.015,
    "reacher-three-easy": 0.05,
    "reacher-three-hard": 0.015,
}
_WALKER = (
    "torso",
    *(f"{side}_{part}" for side in ("right", "left") for part in ("thigh", "leg", "foot")),
)


def _position(of: str, frame: mujoco.mjtObj = _XBODY) -> Sensor:
    return Sensor(name=f"{of}.position", kind=_POSITION, frame=frame, of=of)


def _axis(of: str, axis: str, frame: mujoco.mjtObj = _XBODY) -> Sensor:
    return Sensor(name=f"{of}.{axis}", kind=_AXES[axis], frame=frame, of=of)


def _speed(batch: Batch) -> Array:
    return batch["torso_subtreelinvel"][..., 0]


def _column(array: Array) -> Array:
    return array[..., None]


def _within(value: Array, low: float, high: float) -> Array:
    return ((value >= low) & (value <= high)).astype(np.float64)


def _walker_stand(batch: Batch) -> Array:
    return custom.walker_stand(batch["torso.position"][..., 2], batch["torso.z"][..., 2])


def _walker_move(batch: Batch, speed: float, direction: float) -> Array:
    height, upright = batch["torso.position"][..., 2], batch["torso.z"][..., 2]
    return custom.walker_move(height, upright, direction * _speed(batch), speed)


def _observe_walker(batch: Batch) -> Array:
    axes = [batch[f"{body}.{axis}"][..., :1] for body in _WALKER for axis in "xz"]
    return np.concatenate([*axes, batch["torso.position"][..., 2:], batch.qvel], axis=-1)


def _cheetah_run(batch: Batch, speed: float, direction: float) -> Array:
    return custom.cheetah_run(direction * _speed(batch), speed)


def _cheetah_height(batch: Batch, body: str) -> Array:
    return batch[f"{body}.position"][..., 2]


def _cheetah_foot(batch: Batch, raised: str) -> Array:
    return custom.cheetah_on_one_foot(
        _speed(batch), _cheetah_height(batch, "torso"), _cheetah_height(batch, raised)
    )


def _cheetah_jump(batch: Batch) -> Array:
    feet = [_cheetah_height(batch, foot) for foot in ("bfoot", "ffoot")]
    return custom.cheetah_jump(_speed(batch), _cheetah_height(batch, "torso"), feet)


def _observe_planar(batch: Batch) -> Array:
    return np.concatenate([batch.qpos[..., 1:], batch.qvel], axis=-1)


def _hopper_height(batch: Batch) -> Array:
    return batch["torso.position"][..., 2] - batch["foot.position"][..., 2]


def _hopper_stand(batch: Batch) -> Array:
    control = rewards.tolerance(
        batch.control, margin=1, value_at_margin=0, sigmoid="quadratic"
    ).mean(axis=-1)
    return _within(_hopper_height(batch), 0.6, 2.0) * (control + 4) / 5


def _hopper_hop(batch: Batch) -> Array:
    hop = rewards.tolerance(_speed(batch), (2.0, np.inf), 1.0, "linear", 0.5)
    return _within(_hopper_height(batch), 0.6, 2.0) * hop


def _hopper_backwards(batch: Batch) -> Array:
    return custom.hopper_backwards(_hopper_height(batch), _speed(batch))


def _observe_hopper(batch: Batch) -> Array:
    touch = np.concatenate([batch["touch_toe"], batch["touch_heel"]], axis=-1)
    return np.concatenate([_observe_planar(batch), np.log1p(touch)], axis=-1)


def _finger_to_target(batch: Batch) -> Array:
    return (batch.constants - batch["finger.position"])[..., :2]


def _reach(batch: Batch, radius: float) -> Array:
    distance = np.linalg.norm(_finger_to_target(batch), axis=-1)
    return _within(distance, 0.0, radius + 0.01)


def _observe_reacher(batch: Batch) -> Array:
    return np.concatenate([batch.qpos, _finger_to_target(batch), batch.qvel], axis=-1)


def _acrobot(batch: Batch) -> Array:
    distance = np.linalg.norm(batch.constants - batch["tip.position"], axis=-1)
    return rewards.tolerance(distance, (0, 0.2), 1)


def _observe_acrobot(batch: Batch) -> Array:
    z = [batch[f"{arm}.z"] for arm in ("upper_arm", "lower_arm")]
    return np.concatenate(
        [*(axis[..., :1] for axis in z), *(axis[..., 2:] for axis in z), batch.qvel], axis=-1
    )


def _pendulum_swingup(batch: Batch) -> Array:
    return _within(batch["pole.z"][..., 2], np.cos(np.deg2rad(8)), 1.0)


def _pendulum_spin(batch: Batch) -> Array:
    return custom.pendulum_spin(batch.qvel[..., 0])


def _observe_pendulum(batch: Batch) -> Array:
    axis = batch["pole.z"]
    return np.concatenate([axis[..., 2:], axis[..., :1], batch.qvel], axis=-1)


def _cartpole_smooth(batch: Batch) -> Array:
    upright = (batch["pole_1.z"][..., 2] + 1) / 2
    centred = (1 + rewards.tolerance(batch.qpos[..., 0], margin=2)) / 2
    control = rewards.tolerance(
        batch.control[..., 0], margin=1, value_at_margin=0, sigmoid="quadratic"
    )
    slow = (1 + rewards.tolerance(batch.qvel[..., 1], margin=5)) / 2
    return upright * (4 + control) / 5 * slow * centred


def _cartpole_sparse(batch: Batch) -> Array:
    centred = _within(batch.qpos[..., 0], -0.25, 0.25)
    return centred * _within(batch["pole_1.z"][..., 2], 0.995, 1.0)


def _observe_cartpole(batch: Batch) -> Array:
    axis = batch["pole_1.z"]
    return np.concatenate(
        [batch.qpos[..., :1], axis[..., 2:], axis[..., :1], batch.qvel], axis=-1
    )


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


def _observe_state(batch: Batch) -> Array:
    return np.concatenate([batch.qpos, batch.qvel], axis=-1)


def _finger_tip(batch: Batch) -> Array:
    return (batch["tip"] - batch["spinner"])[..., [0, 2]]


def _finger_target(batch: Batch) -> Array:
    return (batch.constants - batch["spinner"])[..., [0, 2]]


def _finger_distance(batch: Batch, radius: float) -> Array:
    away = _finger_target(batch) - _finger_tip(batch)
    distance: Array = np.asarray(np.linalg.norm(away, axis=-1) - radius)
    return distance


def _finger_spin(batch: Batch) -> Array:
    return (batch["hinge_velocity"][..., 0] <= -15.0).astype(np.float64)


def _finger_turn(batch: Batch, radius: float) -> Array:
    return (_finger_distance(batch, radius) <= 0).astype(np.float64)


def _observe_finger(batch: Batch) -> Array:
    joints = [batch["proximal"], batch["distal"], _finger_tip(batch)]
    names = ("proximal_velocity", "distal_velocity", "hinge_velocity")
    touch = [np.log1p(batch[name]) for name in ("touchtop", "touchbottom")]
    return np.concatenate([*joints, *(batch[name] for name in names), *touch], axis=-1)


def _observe_finger_turn(batch: Batch, radius: float) -> Array:
    distance = _column(_finger_distance(batch, radius))
    return np.concatenate([_observe_finger(batch), _finger_target(batch), distance], axis=-1)


def _mouth_to_target(batch: Batch) -> Array:
    away = batch.constants - batch["mouth.position"]
    return np.stack([(away * batch[f"mouth.{axis}"]).sum(axis=-1) for axis in "xyz"], axis=-1)


def _fish_swim(batch: Batch) -> Array:
    radii = _FISH_RADII
    distance = np.linalg.norm(_mouth_to_target(batch), axis=-1)
    near = rewards.tolerance(distance, (0, radii), 2 * radii)
    return (7 * near + (batch["torso.z"][..., 2] + 1) / 2) / 8


def _observe_fish(batch: Batch) -> Array:
    upright = batch["torso.z"][..., 2:]
    parts = [batch.qpos[..., 7:], upright, _mouth_to_target(batch), batch.qvel]
    return np.concatenate(parts, axis=-1)


@dataclass(frozen=True, slots=True)
class _Domain:
    """What the tasks of one domain share."""

    module: str
    """Module of the suite with the model."""
    observe: Measure
    sensors: tuple[Sensor, ...] = ()
    target: tuple[str, str] | None = None
    """Kind and name of what marks the target: `geom` or `site`."""


_DOMAINS = {
    "walker": _Domain(
        "walker",
        _observe_walker,
        (_position("torso"), *(_axis(body, axis) for body in _WALKER for axis in "xz")),
    ),
    "cheetah": _Domain(
        "cheetah", _observe_planar, tuple(_position(b) for b in ("torso", "bfoot", "ffoot"))
    ),
    "hopper": _Domain(
        "hopper", _observe_hopper, (_position("torso", _BODY), _position("foot", _BODY))
    ),
    "reacher": _Domain(
        "reacher", _observe_reacher, (_position("finger", _GEOM),), ("geom", "target")
    ),
    "acrobot": _Domain(
        "acrobot",
        _observe_acrobot,
        (_position("tip", _SITE), _axis("upper_arm", "z"), _axis("lower_arm", "z")),
        ("site", "target"),
    ),
    "pendulum": _Domain("pendulum", _observe_pendulum, (_axis("pole", "z"),)),
    "cartpole": _Domain("cartpole", _observe_cartpole, (_axis("pole_1", "z"),)),
    "cup": _Domain(
        "ball_in_cup", _observe_state, (_position("target", _SITE), _position("ball"))
    ),
    "finger": _Domain("finger", _observe_finger, (), ("site", "target")),
    "fish": _Domain(
        "fish",
        _observe_fish,
        (
            _axis("torso", "z"),
            _position("mouth", _GEOM),
            *(_axis("mouth", axis, _GEOM) for axis in "xyz"),
        ),
        ("geom", "target"),
    ),
}

_REWARDS: dict[str, Measure] = {
    "walker-stand": _walker_stand,
    "walker-walk": partial(_walker_move, speed=1.0, direction=1.0),
    "walker-run": partial(_walker_move, speed=8.0, direction=1.0),
    "walker-walk-backwards": partial(_walker_move, speed=1.0, direction=-1.0),
    "walker-run-backwards": partial(_walker_move, speed=8.0, direction=-1.0),
    "cheetah-run": partial(_cheetah_run, speed=10.0, direction=1.0),
    "cheetah-run-backwards": partial(_cheetah_run, speed=8.0, direction=-1.0),
    "cheetah-run-front": partial(_cheetah_foot, raised="bfoot"),
    "cheetah-run-back": partial(_cheetah_foot, raised="ffoot"),
    "cheetah-jump": _cheetah_jump,
    "hopper-stand": _hopper_stand,
    "hopper-hop": _hopper_hop,
    "hopper-hop-backwards": _hopper_backwards,
    "acrobot-swingup": _acrobot,
    "pendulum-swingup": _pendulum_swingup,
    "pendulum-spin": _pendulum_spin,
    "cartpole-balance": _cartpole_smooth,
    "cartpole-swingup": _cartpole_smooth,
    "cartpole-balance-sparse": _cartpole_sparse,
    "cartpole-swingup-sparse": _cartpole_sparse,
    "cup-catch": _cup_catch,
    "cup-spin": _cup_spin,
    "finger-spin": _finger_spin,
    "fish-swim": _fish_swim,
    **{name: partial(_finger_turn, radius=radius) for name, radius in _FINGER_RADII.items()},
    **{name: partial(_reach, radius=radius) for name, radius in _REACHER_RADII.items()},
}


def suite_task(name: str) -> BatchedTask:
    """Return a task of MT30 on batches of states.

    Args:
        name: Task of MT30.

    Raises:
        UnknownTaskError: No such task.
    """
    task = MT30[name]
    domain = _DOMAINS[name.partition("-")[0]]
    env = DMControlEnv(name)
    env.reset()
    substeps = round(env.control_timestep / env.physics.timestep())
    radius = _FINGER_RADII.get(name)
    observe = domain.observe
    if radius is not None:
        observe = partial(_observe_finger_turn, radius=radius)
    return BatchedTask(
        task,
        BatchedPhysics(_compile(env, domain), substeps),
        reward=_REWARDS[name],
        observe=observe,
        read=partial(_read, target=domain.target),
        repeat=ACTION_REPEAT,
    )


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
    model = with_sensors(mujoco.MjSpec.from_string(text, include=assets), domain.sensors)
    # Finger-spin's reset lowers the spinner's damping.
    model.dof_damping[:] = env.physics.model.dof_damping
    return model


def _read(env: DMControlEnv, target: tuple[str, str] | None) -> tuple[Any, Array]:
    if target is None:
        return env.physics.data.ptr, np.zeros(0)
    kind, name = target
    position: Array = getattr(env.physics.named.data, f"{kind}_xpos")[name].copy()
    return env.physics.data.ptr, position
