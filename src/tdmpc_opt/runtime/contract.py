"""What the numbers of an observation and an action of the 30 tasks are, and their rate.

Source: the models and observations of dm_control 1.0.50.
"""

from dataclasses import dataclass

from tdmpc_opt.schema import MT30, Task


@dataclass(frozen=True)
class Group:
    """Neighbouring numbers of an observation."""

    name: str
    width: int
    unit: str
    """Unit of the numbers; 1 where they have none, with their range where they have one."""


@dataclass(frozen=True)
class Contract:
    """Boundary between a policy and its robot; actions are in [-1, 1], the actuators' range."""

    observation: tuple[Group, ...]
    """In the order of the numbers."""
    actions: tuple[str, ...]
    """Actuators in the order of the numbers."""
    rate_hz: float
    """Actions a second: each is applied for two control steps of the simulator."""


_LEGS = ("thigh", "shin", "foot")
_DIRECTION = "1, in [-1, 1]"
_MOVES, _PLACES = "m/s and rad/s", "m and rad"
_TOUCH = Group("touch", 2, "ln(1 + N), from 0")
_DOMAINS = {
    "walker": Contract(
        (
            Group("orientations", 14, _DIRECTION),
            Group("height", 1, "m"),
            Group("velocity", 9, _MOVES),
        ),
        tuple(
            f"{side}_{joint}"
            for side in ("right", "left")
            for joint in ("hip", "knee", "ankle")
        ),
        20.0,
    ),
    "cheetah": Contract(
        (Group("position", 8, _PLACES), Group("velocity", 9, _MOVES)),
        tuple(f"{end}{part}" for end in "bf" for part in _LEGS),
        50.0,
    ),
    "hopper": Contract(
        (Group("position", 6, _PLACES), Group("velocity", 7, _MOVES), _TOUCH),
        ("waist", "hip", "knee", "ankle"),
        25.0,
    ),
    "reacher": Contract(
        (
            Group("position", 2, "rad"),
            Group("to_target", 2, "m"),
            Group("velocity", 2, "rad/s"),
        ),
        ("shoulder", "wrist"),
        25.0,
    ),
    "reacher-three": Contract(
        (
            Group("position", 3, "rad"),
            Group("to_target", 2, "m"),
            Group("velocity", 3, "rad/s"),
        ),
        ("shoulder0", "shoulder1", "wrist"),
        25.0,
    ),
    "acrobot": Contract(
        (Group("orientations", 4, _DIRECTION), Group("velocity", 2, "rad/s")), ("elbow",), 50.0
    ),
    "pendulum": Contract(
        (Group("orientation", 2, _DIRECTION), Group("velocity", 1, "rad/s")), ("torque",), 25.0
    ),
    "cartpole": Contract(
        (Group("position", 3, "m, then cosine and sine"), Group("velocity", 2, _MOVES)),
        ("slide",),
        50.0,
    ),
    "cup": Contract((Group("position", 4, "m"), Group("velocity", 4, "m/s")), ("x", "z"), 25.0),
    "finger": Contract(
        (Group("position", 4, "rad, then m"), Group("velocity", 3, "rad/s"), _TOUCH),
        ("proximal", "distal"),
        25.0,
    ),
    "finger-turn": Contract(
        (
            *(Group("position", 4, "rad, then m"), Group("velocity", 3, "rad/s"), _TOUCH),
            *(Group("target_position", 2, "m"), Group("dist_to_target", 1, "m")),
        ),
        ("proximal", "distal"),
        25.0,
    ),
    "fish": Contract(
        (
            *(Group("joint_angles", 7, "rad"), Group("upright", 1, _DIRECTION)),
            *(Group("target", 3, "m"), Group("velocity", 13, _MOVES)),
        ),
        ("tail", "tail_twist", "fins_flap", "finleft_pitch", "finright_pitch"),
        12.5,
    ),
}
"""By the beginning of a task's name; the longest that fits counts."""


def contract(task: Task) -> Contract | None:
    """Return what the numbers of a task are; None for a task that is not one of the 30."""
    if task.name not in MT30.names or MT30[task.name] != task:
        return None
    fitting = [name for name in _DOMAINS if f"{task.name}-".startswith(f"{name}-")]
    return _DOMAINS[max(fitting, key=len)]
