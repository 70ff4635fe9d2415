"""The 11 tasks of MT30 that the dm_control suite lacks, on the suite's own models.

Source: the public TD-MPC2 task definition (arXiv:2310.16828, appendix on MT30).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mujoco
import numpy as np
from dm_control import suite
from dm_control.mujoco import wrapper
from dm_control.rl import control
from dm_control.suite import ball_in_cup, base, cheetah, common, reacher
from dm_control.utils import rewards
from lxml import etree

Array = Any
"""A number, or an array of numbers: the rewards below are computed elementwise."""

Reward = Callable[[Any], float]
"""Maps a dm_control physics to the reward of one control step, in [0, 1]."""

CONTROL_STEPS = 1000
"""Control steps of an episode, in every task."""

_REACHER_TARGETS = {"reacher-three-easy": 0.05, "reacher-three-hard": 0.015}  # radii, metres


@dataclass(frozen=True, slots=True)
class CustomTask:
    """A suite task whose reward, and for cup-spin its reset, is replaced."""

    domain: str
    """Suite domain whose model, observation and control step are used."""
    task: str
    """Suite task of that domain whose reset is used."""
    reward: Reward


class RewardTask(base.Task):  # type: ignore[misc]  # dm_control carries no types
    """A suite task with another reward."""

    def __init__(self, inner: Any, reward: Reward) -> None:
        super().__init__(random=inner.random)
        self._inner = inner
        self._reward = reward

    def initialize_episode(self, physics: Any) -> None:
        """Draw the start of an episode as the suite task does."""
        self._inner.initialize_episode(physics)

    def get_observation(self, physics: Any) -> dict[str, Any]:
        """Return the suite task's observation."""
        observation: dict[str, Any] = self._inner.get_observation(physics)
        return observation

    def get_reward(self, physics: Any) -> float:
        """Return this task's reward."""
        return self._reward(physics)


class CupSpinTask(RewardTask):
    """Swing the ball around the cup; nine episodes in ten start with the ball inside."""

    def initialize_episode(self, physics: Any) -> None:
        """Draw ball positions until one touches nothing and, mostly, is in the cup."""
        anywhere = self.random.uniform() < 0.1
        while True:
            physics.named.data.qpos["ball_x"] = self.random.uniform(-0.2, 0.2)
            physics.named.data.qpos["ball_z"] = self.random.uniform(0.2, 0.5)
            physics.after_reset()
            if physics.data.ncon == 0 and (anywhere or physics.in_target()):
                return


def _tolerance(
    value: Array,
    bounds: tuple[float, float],
    margin: float,
    at_margin: float = 0.1,
    sigmoid: Literal["gaussian", "linear"] = "gaussian",
) -> Array:
    result: Array = rewards.tolerance(value, bounds, margin, sigmoid, at_margin)
    return result


def _above(value: Array, bound: float) -> Array:
    """Return 1 from `bound` up, with the walker's soft edge of half the bound below."""
    return _tolerance(value, (bound, math.inf), bound / 2)


def _at_least(value: Array, bound: float, *, margin: float, at_margin: float) -> Array:
    return _tolerance(value, (bound, math.inf), margin, at_margin, "linear")


def walker_stand(height: Array, upright: Array) -> Array:
    """Reward a torso 1.2 m up and upright.

    Args:
        height: Of the torso, metres.
        upright: z-component of the torso's z axis.
    """
    return (3 * _above(height, 1.2) + (1 + upright) / 2) / 4


def walker_move(height: Array, upright: Array, velocity: Array, speed: float) -> Array:
    """Reward an upright walker whose velocity is `speed` m/s or more.

    Args:
        height: Of the torso, metres.
        upright: z-component of the torso's z axis.
        velocity: Horizontal, in the rewarded direction, m/s.
        speed: Velocity of the full reward, m/s.
    """
    move = _at_least(velocity, speed, margin=speed / 2, at_margin=0.5)
    return walker_stand(height, upright) * (5 * move + 1) / 6


def cheetah_run(velocity: Array, speed: float) -> Array:
    """Reward running, in full from `speed` m/s on; `velocity` is in the rewarded direction."""
    return _at_least(velocity, speed, margin=speed, at_margin=0.0)


def cheetah_on_one_foot(velocity: Array, torso: Array, raised: Array) -> Array:
    """Reward running towards +x with the torso and one foot at a height of 1.2 m.

    Args:
        velocity: Along x, m/s.
        torso: Height of the torso, metres.
        raised: Height of the raised foot, metres.
    """
    up = (3 * _above(raised, 1.2) + 2 * _above(torso, 1.2)) / 5
    return up * (5 * _at_least(velocity, 6.0, margin=6.0, at_margin=0.0) + 1) / 6


def cheetah_jump(velocity: Array, torso: Array, feet: Sequence[Array]) -> Array:
    """Reward height of torso and both feet while x hardly moves.

    Args:
        velocity: Along x, m/s.
        torso: Height of the torso, metres.
        feet: Heights of both feet, metres.
    """
    still = _tolerance(velocity, (-0.5, 0.5), 0.5, 0.0, "linear")
    heights = [_above((torso + foot) / 2, 1.2) for foot in feet]
    return ((5 * heights[0] + still) / 6 + (5 * heights[1] + still) / 6) / 2


def hopper_backwards(height: Array, velocity: Array) -> Array:
    """Reward hopping towards -x, in full from 1 m/s; not the suite's hop mirrored.

    Args:
        height: Of the torso above the foot, metres.
        velocity: Along x, m/s.
    """
    standing = _tolerance(height, (0.6, 2.0), 0.0)
    return standing * _at_least(-velocity, 1.0, margin=0.5, at_margin=0.5)


def cup_spin(distance: Array, speed: Array, in_target: Array) -> Array:
    """Reward a fast ball far from the cup; 0 while it is inside.

    Args:
        distance: From the ball to the cup's target, metres.
        speed: Of the ball, m/s.
        in_target: 1 while the ball is inside, else 0.
    """
    far = _at_least(distance, 0.5, margin=0.25, at_margin=0.5)
    fast = _at_least(speed, 6.0, margin=3.0, at_margin=0.5)
    return (1 - in_target) * (far + 2 * fast) / 3


def pendulum_spin(velocity: Array) -> Array:
    """Reward turning either way, in full from 9 rad/s."""
    return _at_least(abs(velocity), 9.0, margin=4.5, at_margin=0.5)


def _walker_back(physics: Any, speed: float) -> float:
    height, upright = physics.torso_height(), physics.torso_upright()
    return float(walker_move(height, upright, -physics.horizontal_velocity(), speed))


def _height(physics: Any, body: str) -> Any:
    return physics.named.data.xpos[body, "z"]


def _one_foot(physics: Any, raised: str) -> float:
    torso, foot = _height(physics, "torso"), _height(physics, raised)
    return float(cheetah_on_one_foot(physics.speed(), torso, foot))


def _jump(physics: Any) -> float:
    feet = [_height(physics, foot) for foot in ("bfoot", "ffoot")]
    return float(cheetah_jump(physics.speed(), _height(physics, "torso"), feet))


def _cup(physics: Any) -> float:
    distance = np.linalg.norm(physics.ball_to_target())
    speed = np.linalg.norm(physics.named.data.qvel[["ball_x", "ball_z"]])
    return float(cup_spin(distance, speed, physics.in_target()))


CUSTOM_TASKS: dict[str, CustomTask] = {
    "walker-walk-backwards": CustomTask("walker", "walk", lambda p: _walker_back(p, 1.0)),
    "walker-run-backwards": CustomTask("walker", "run", lambda p: _walker_back(p, 8.0)),
    "cheetah-run-backwards": CustomTask(
        "cheetah", "run", lambda p: float(cheetah_run(-p.speed(), 8.0))
    ),
    # The foot named here is the raised one, so the other one runs.
    "cheetah-run-front": CustomTask("cheetah", "run", lambda p: _one_foot(p, "bfoot")),
    "cheetah-run-back": CustomTask("cheetah", "run", lambda p: _one_foot(p, "ffoot")),
    "cheetah-jump": CustomTask("cheetah", "run", _jump),
    "hopper-hop-backwards": CustomTask(
        "hopper", "hop", lambda p: float(hopper_backwards(p.height(), p.speed()))
    ),
    "cup-spin": CustomTask("ball_in_cup", "catch", _cup),
    "pendulum-spin": CustomTask(
        "pendulum", "swingup", lambda p: float(pendulum_spin(p.angular_velocity()[0]))
    ),
}
"""Custom tasks that run on an unchanged suite model."""


def three_link_reacher() -> bytes:
    """Return the XML of the suite's reacher with a third link; its reach is 0.27 m."""
    root = etree.fromstring(common.read_model("reacher.xml"))
    names = ("arm", "hand", "finger")
    first, hand, finger = (root.find(f".//body[@name='{name}']") for name in names)
    first.set("name", "arm0")
    first.find("geom").set("name", "arm0")
    first.find("geom").set("fromto", "0 0 0 0.09 0 0")
    first.find("joint").set("name", "shoulder0")
    middle = etree.SubElement(first, "body", name="arm1", pos="0.09 0 0")
    capsule = {"fromto": "0 0 0 0.09 0 0", "size": "0.01", "material": "self"}
    etree.SubElement(middle, "geom", name="arm1", type="capsule", **capsule)
    etree.SubElement(middle, "joint", name="shoulder1", limited="true", range="-80 80")
    middle.append(hand)  # lxml moves the element from its old parent
    hand.set("pos", "0.09 0 0")
    hand.find("joint").set("range", "-80 80")
    finger.set("pos", "0.09 0 0")
    motors = root.find("actuator")
    motors[0].attrib.update({"name": "shoulder0", "joint": "shoulder0"})
    motors.insert(1, etree.Element("motor", name="shoulder1", joint="shoulder1"))
    xml: bytes = etree.tostring(root)
    return xml


def load(name: str, seed: int) -> Any:
    """Build the dm_control environment of an MT30 task.

    Args:
        name: Name of the task, such as `cup-catch`.
        seed: Seed of the task's `numpy.random.RandomState`.

    Returns:
        The `dm_control.rl.control.Environment`, not yet reset.
    """
    if name in _REACHER_TARGETS:
        physics = reacher.Physics.from_xml_string(three_link_reacher(), common.ASSETS)
        three_link = reacher.Reacher(target_size=_REACHER_TARGETS[name], random=seed)
        return _environment(physics, three_link, physics.timestep())
    if name not in CUSTOM_TASKS:
        domain, _, task = name.partition("-")
        domain = "ball_in_cup" if domain == "cup" else domain
        return _suite_task(domain, task.replace("-", "_"), seed)
    spec = CUSTOM_TASKS[name]
    lender = _suite_task(spec.domain, spec.task, seed)
    kind = CupSpinTask if name == "cup-spin" else RewardTask
    wrapped = kind(lender.task, spec.reward)
    return _environment(lender.physics, wrapped, lender.control_timestep())


def _suite_task(domain: str, name: str, seed: int) -> Any:
    """Build the environment of a task of the suite, the cheetah's without a warning."""
    if domain != "cheetah":
        return suite.load(domain, name, task_kwargs={"random": seed})
    xml, assets = cheetah.get_model_and_assets()
    model = compile_model(mujoco.MjSpec.from_string(xml.decode(), include=assets))
    physics = cheetah.Physics.from_model(wrapper.MjModel(model))
    return _environment(physics, cheetah.Cheetah(random=seed), physics.timestep())


def compile_model(spec: mujoco.MjSpec) -> mujoco.MjModel:
    """Compile a model, and scale it to the total mass that it names, as the cheetah's does.

    MuJoCo 3.17 warns whenever its compiler scales to a total mass.
    """
    mass = spec.compiler.settotalmass
    spec.compiler.settotalmass = -1
    model = spec.compile()
    if mass > 0:
        mujoco.mj_setTotalmass(model, mass)
        mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


def _environment(physics: Any, task: Any, control_timestep: float) -> Any:
    time_limit = CONTROL_STEPS * control_timestep
    return control.Environment(
        physics, task, time_limit=time_limit, control_timestep=control_timestep
    )


def use_legacy_cup_physics(physics: Any) -> None:
    """Give the cup's ball the contact regularisation it had up to MuJoCo 2.3.7.

    From 3.0 on the ball's translational `body_invweight0` compiles to 1/mass instead of
    2/(3 mass); with this one entry set back, cup trajectories of 2.3.1 are reproduced.
    """
    assert isinstance(physics, ball_in_cup.Physics)
    mass = physics.named.model.body_mass["ball"]
    physics.named.model.body_invweight0["ball", 0] = 2 / (3 * mass)
