"""The 11 tasks of MT30 that the dm_control suite lacks, on the suite's own models.

Source: the public TD-MPC2 task definition (arXiv:2310.16828, appendix on MT30).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from dm_control import suite
from dm_control.rl import control
from dm_control.suite import ball_in_cup, base, common, reacher
from dm_control.utils import rewards
from lxml import etree

Reward = Callable[[Any], float]
"""Maps a dm_control physics to the reward of one control step, in [0, 1]."""

CONTROL_STEPS = 1000
"""Control steps of an episode, in every task."""

_REACHER_TARGETS = {"reacher-three-easy": 0.05, "reacher-three-hard": 0.015}  # radii, metres


@dataclass(frozen=True, slots=True)
class CustomTask:
    """A suite task whose reward, and for cup-spin its reset, is replaced."""

    domain: str
    """Suite domain that lends model, observation and control step."""
    task: str
    """Suite task of that domain that lends the reset."""
    reward: Reward
    """Reward of one control step."""


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
        """Draw ball positions until one touches nothing and, mostly, lies in the cup."""
        anywhere = self.random.uniform() < 0.1
        while True:
            physics.named.data.qpos["ball_x"] = self.random.uniform(-0.2, 0.2)
            physics.named.data.qpos["ball_z"] = self.random.uniform(0.2, 0.5)
            physics.after_reset()
            if physics.data.ncon == 0 and (anywhere or physics.in_target()):
                return


def _tolerance(
    value: float,
    bounds: tuple[float, float],
    margin: float,
    at_margin: float = 0.1,
    sigmoid: Literal["gaussian", "linear"] = "gaussian",
) -> float:
    return float(rewards.tolerance(value, bounds, margin, sigmoid, at_margin))


def _above(value: float, bound: float) -> float:
    """Return 1 from `bound` up, with the walker's soft edge of half the bound below."""
    return _tolerance(value, (bound, math.inf), bound / 2)


def _at_least(value: float, bound: float, *, margin: float, at_margin: float) -> float:
    return _tolerance(value, (bound, math.inf), margin, at_margin, "linear")


def _height(physics: Any, body: str) -> float:
    return float(physics.named.data.xpos[body, "z"])


def walker_backwards(physics: Any, speed: float) -> float:
    """Reward an upright walker that moves at `speed` m/s or faster towards -x."""
    upright = (1 + physics.torso_upright()) / 2
    stand = (3 * _above(physics.torso_height(), 1.2) + upright) / 4
    velocity = -physics.horizontal_velocity()
    move = _at_least(velocity, speed, margin=speed / 2, at_margin=0.5)
    return float(stand * (5 * move + 1) / 6)


def cheetah_backwards(physics: Any) -> float:
    """Reward running towards -x, in full from 8 m/s."""
    return _at_least(-physics.speed(), 8.0, margin=8.0, at_margin=0.0)


def cheetah_on_one_foot(physics: Any, raised: str) -> float:
    """Reward running towards +x with the `raised` foot and the torso up."""
    foot, torso = (_above(_height(physics, body), 1.2) for body in (raised, "torso"))
    up = (3 * foot + 2 * torso) / 5
    return up * (5 * _at_least(physics.speed(), 6.0, margin=6.0, at_margin=0.0) + 1) / 6


def cheetah_jump(physics: Any) -> float:
    """Reward height of torso and both feet while x hardly moves."""
    still = _tolerance(physics.speed(), (-0.5, 0.5), 0.5, 0.0, "linear")
    torso = _height(physics, "torso")
    feet = [_above((torso + _height(physics, foot)) / 2, 1.2) for foot in ("bfoot", "ffoot")]
    return sum((5 * height + still) / 6 for height in feet) / 2


def hopper_backwards(physics: Any) -> float:
    """Reward hopping towards -x, in full from 1 m/s; not the suite's hop mirrored."""
    standing = _tolerance(physics.height(), (0.6, 2.0), 0.0)
    return standing * _at_least(-physics.speed(), 1.0, margin=0.5, at_margin=0.5)


def cup_spin(physics: Any) -> float:
    """Reward a fast ball far from the cup; nothing while it lies inside."""
    distance = float(np.linalg.norm(physics.ball_to_target()))
    speed = float(np.linalg.norm(physics.named.data.qvel[["ball_x", "ball_z"]]))
    far = _at_least(distance, 0.5, margin=0.25, at_margin=0.5)
    fast = _at_least(speed, 6.0, margin=3.0, at_margin=0.5)
    return float((1 - physics.in_target()) * (far + 2 * fast) / 3)


def pendulum_spin(physics: Any) -> float:
    """Reward turning either way, in full from 9 rad/s."""
    return _at_least(abs(float(physics.angular_velocity()[0])), 9.0, margin=4.5, at_margin=0.5)


CUSTOM_TASKS: dict[str, CustomTask] = {
    "walker-walk-backwards": CustomTask("walker", "walk", lambda p: walker_backwards(p, 1.0)),
    "walker-run-backwards": CustomTask("walker", "run", lambda p: walker_backwards(p, 8.0)),
    "cheetah-run-backwards": CustomTask("cheetah", "run", cheetah_backwards),
    # The foot named here is the one held up, so the other one runs.
    "cheetah-run-front": CustomTask(
        "cheetah", "run", lambda p: cheetah_on_one_foot(p, "bfoot")
    ),
    "cheetah-run-back": CustomTask("cheetah", "run", lambda p: cheetah_on_one_foot(p, "ffoot")),
    "cheetah-jump": CustomTask("cheetah", "run", cheetah_jump),
    "hopper-hop-backwards": CustomTask("hopper", "hop", hopper_backwards),
    "cup-spin": CustomTask("ball_in_cup", "catch", cup_spin),
    "pendulum-spin": CustomTask("pendulum", "swingup", pendulum_spin),
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


def load(domain: str, task: str, seed: int) -> Any:
    """Build the dm_control environment of an MT30 task.

    Args:
        domain: Suite name of the domain, such as `ball_in_cup`.
        task: Task of that domain, with underscores.
        seed: Seed of the task's `numpy.random.RandomState`.

    Returns:
        The `dm_control.rl.control.Environment`, not yet reset.
    """
    name = f"{'cup' if domain == 'ball_in_cup' else domain}-{task.replace('_', '-')}"
    if name in _REACHER_TARGETS:
        physics = reacher.Physics.from_xml_string(three_link_reacher(), common.ASSETS)
        three_link = reacher.Reacher(target_size=_REACHER_TARGETS[name], random=seed)
        return _environment(physics, three_link, physics.timestep())
    if name not in CUSTOM_TASKS:
        return suite.load(domain, task, task_kwargs={"random": seed})
    spec = CUSTOM_TASKS[name]
    lender = suite.load(spec.domain, spec.task, task_kwargs={"random": seed})
    wrapper = CupSpinTask if name == "cup-spin" else RewardTask
    wrapped = wrapper(lender.task, spec.reward)
    return _environment(lender.physics, wrapped, lender.control_timestep())


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
