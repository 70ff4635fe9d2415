"""Boundary of agent and robot: what the numbers are, and the answer to invalid ones.

Agents with torch and without share its checks of observations, task ids and generators.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tdmpc_opt.errors import InputError, ObservationError, UnknownTaskError
from tdmpc_opt.files import parse_json
from tdmpc_opt.schema import MT30, Task, TaskTable

UNBOUNDED = 1e30
"""Magnitude from which a bound means that there is none, as float32's largest number does."""


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring numbers of one unit and one range."""

    group: str
    """What they are part of, such as `velocity`."""
    names: tuple[str, ...]
    """Their names in order: joints, axes of bodies, or positions in an own environment."""
    unit: str = "1"
    """Unit; 1 where they have none."""
    low: float | None = None
    """Lowest value; None without a bound."""
    high: float | None = None
    """Highest value; None without a bound."""

    @property
    def range(self) -> str:
        """The range as text, such as `[-1, 1]`; empty without a bound."""
        if self.low is None and self.high is None:
            return ""
        low, high = ("" if bound is None else f"{bound:.6g}" for bound in (self.low, self.high))
        return f"[{low or '-inf'}, {high or 'inf'}]"


@dataclass(frozen=True, slots=True)
class Contract:
    """What the numbers of a task's observations and actions are."""

    observation: tuple[Block, ...]
    """In the order of the numbers."""
    action: tuple[Block, ...]
    """Actuators in order; an agent's -1 and 1 are the low and the high of their ranges."""
    rate_hz: float | None
    """Actions a second; None where the environment does not state it."""

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield the blocks as text: positions, names, unit and range."""
        for kind, blocks in (("observation", self.observation), ("action", self.action)):
            first = 0
            for block in blocks:
                last = first + len(block.names) - 1
                numbers = f"{first}" if first == last else f"{first}-{last}"
                names = f"{block.group}: {', '.join(block.names)}"
                yield f"{kind} {numbers}", names, block.unit, block.range
                first = last + 1

    @property
    def rate(self) -> str:
        """The rate as text."""
        return "unknown rate" if self.rate_hz is None else f"{self.rate_hz:g} actions/s"


Contracts = Mapping[str, Contract]
"""By task name; tasks whose numbers are not known are missing."""


def _direction(group: str, names: str) -> Block:
    return Block(group, tuple(names.split()), "1", -1.0, 1.0)


def _block(group: str, names: str, unit: str, low: float | None = None) -> Block:
    return Block(group, tuple(names.split()), unit, low)


def _contract(rate_hz: float, actions: str, *observation: Block) -> Contract:
    """Return a contract; all actuators of the 30 tasks have the range [-1, 1]."""
    return Contract(observation, (_direction("control", actions),), rate_hz)


_LEGS = "right_hip right_knee right_ankle left_hip left_knee left_ankle"
_WALKER = ("torso", *(f"{s}_{b}" for s in ("right", "left") for b in ("thigh", "leg", "foot")))
_CHEETAH = "bthigh bshin bfoot fthigh fshin ffoot"
_HOPPER = "waist hip knee ankle"
_ARM = "shoulder0 shoulder1 wrist"
_CUP = "cup_x cup_z ball_x ball_z"
_FISH = "tail1 tail_twist tail2 finright_roll finright_pitch finleft_roll finleft_pitch"
_FORCE = "ln(1 + N)"
_FINGER = (
    _block("position", "proximal distal", "rad"),
    _block("position", "tip_x tip_z", "m"),
    _block("velocity", "proximal distal hinge", "rad/s"),
    _block("touch", "touchtop touchbottom", _FORCE, 0.0),
)


def _reacher(joints: str) -> Contract:
    return _contract(
        25.0,
        joints,
        _block("position", joints, "rad"),
        _block("to_target", "x y", "m"),
        _block("velocity", joints, "rad/s"),
    )


_DOMAINS = {
    "walker": _contract(
        20.0,
        _LEGS,
        _direction(
            "orientations", " ".join(f"{b}_{axis}" for b in _WALKER for axis in ("xx", "xz"))
        ),
        _block("height", "torso", "m"),
        _block("velocity", "rootz rootx", "m/s"),
        _block("velocity", f"rooty {_LEGS}", "rad/s"),
    ),
    "cheetah": _contract(
        50.0,
        _CHEETAH,
        _block("position", "rootz", "m"),
        _block("position", f"rooty {_CHEETAH}", "rad"),
        _block("velocity", "rootx rootz", "m/s"),
        _block("velocity", f"rooty {_CHEETAH}", "rad/s"),
    ),
    "hopper": _contract(
        25.0,
        _HOPPER,
        _block("position", "rootz", "m"),
        _block("position", f"rooty {_HOPPER}", "rad"),
        _block("velocity", "rootx rootz", "m/s"),
        _block("velocity", f"rooty {_HOPPER}", "rad/s"),
        _block("touch", "touch_toe touch_heel", _FORCE, 0.0),
    ),
    "reacher": _reacher("shoulder wrist"),
    "reacher-three": _reacher(_ARM),
    "acrobot": _contract(
        50.0,
        "elbow",
        _direction("orientations", "upper_arm_xz lower_arm_xz upper_arm_zz lower_arm_zz"),
        _block("velocity", "shoulder elbow", "rad/s"),
    ),
    "pendulum": _contract(
        25.0,
        "torque",
        _direction("orientation", "pole_zz pole_xz"),
        _block("velocity", "hinge", "rad/s"),
    ),
    "cartpole": _contract(
        50.0,
        "slide",
        _block("position", "slider", "m"),
        _direction("position", "pole_1_zz pole_1_xz"),
        _block("velocity", "slider", "m/s"),
        _block("velocity", "hinge_1", "rad/s"),
    ),
    "cup": _contract(
        25.0, "x z", _block("position", _CUP, "m"), _block("velocity", _CUP, "m/s")
    ),
    "finger": _contract(25.0, "proximal distal", *_FINGER),
    "finger-turn": _contract(
        25.0,
        "proximal distal",
        *_FINGER,
        _block("target_position", "x z", "m"),
        _block("dist_to_target", "edge", "m"),
    ),
    "fish": _contract(
        12.5,
        "tail tail_twist fins_flap finleft_pitch finright_pitch",
        _block("joint_angles", _FISH, "rad"),
        _direction("upright", "torso_zz"),
        _block("target", "x y z", "m"),
        _block("velocity", "root_x root_y root_z", "m/s"),
        _block("velocity", f"root_rx root_ry root_rz {_FISH}", "rad/s"),
    ),
}
"""By the beginning of a task's name; the longest that fits counts.

Source: the models and observations of dm_control 1.0.50.
"""


def contract(task: Task) -> Contract | None:
    """Return what the numbers of a task are; None for a task that is not one of the 30."""
    if task.name not in MT30.names or MT30[task.name] != task:
        return None
    fitting = [name for name in _DOMAINS if f"{task.name}-".startswith(f"{name}-")]
    return _DOMAINS[max(fitting, key=len)]


def contracts_of(tasks: TaskTable, stored: str | None = None) -> Contracts:
    """Return what is known of the numbers of tasks.

    Args:
        tasks: The tasks.
        stored: What `contracts_to_json` wrote into the file of an agent of these tasks, which
            has the contracts of users' own tasks as well.

    Raises:
        ValueError, TypeError, LookupError: A text that it did not write for these tasks.
    """
    known = {task.name: found for task in tasks.tasks if (found := contract(task)) is not None}
    return known if stored is None else known | _parsed(stored, tasks)


def by_contract(contracts: Contracts) -> dict[Contract, list[str]]:
    """Return the names of the tasks that share each contract."""
    grouped: dict[Contract, list[str]] = {}
    for name, found in contracts.items():
        grouped.setdefault(found, []).append(name)
    return grouped


def contracts_to_json(contracts: Contracts) -> str:
    """Return contracts as a document for the metadata of a file."""
    records = [
        {
            "tasks": names,
            "rate_hz": found.rate_hz,
            "observation": [astuple(block) for block in found.observation],
            "action": [astuple(block) for block in found.action],
        }
        for found, names in by_contract(contracts).items()
    ]
    return json.dumps(records, separators=(",", ":"))


def _parsed(text: str, tasks: TaskTable) -> dict[str, Contract]:
    found = {}
    for record in parse_json(text):
        rate = record["rate_hz"]
        if rate is not None and not (type(rate) in (int, float) and 0 < rate < 1e9):
            raise ValueError(f"a rate of {rate!r:.20}")
        for name in record["tasks"]:
            if name not in tasks.names:  # of the agent that this one was taken out of
                continue
            task = tasks[name]
            found[name] = Contract(
                _blocks(record["observation"], task.obs_dim),
                _blocks(record["action"], task.action_dim),
                rate,
            )
    return found


def _blocks(records: list[Any], size: int) -> tuple[Block, ...]:
    blocks = []
    for group, names, unit, low, high in records:
        if not all(type(text) is str and text.isprintable() for text in (group, unit, *names)):
            raise ValueError(f"numbers of {group!r:.40} without a printable name or unit")
        for bound in (low, high):
            if bound is not None and not (type(bound) in (int, float) and abs(bound) < 1e38):
                raise ValueError(f"a bound of {bound!r:.20}")
        blocks.append(Block(group, tuple(names), unit, low, high))
    if sum(len(block.names) for block in blocks) != size:
        raise ValueError(f"a contract of another width than {size}")
    return tuple(blocks)


OnInvalid = Literal["error", "hold", "zero"]
"""Answer to an invalid observation: an error, the last valid action again, or zeros."""


def check_on_invalid(on_invalid: object) -> None:
    """Refuse an answer to invalid observations that is none.

    Raises:
        InputError: It is not one of `OnInvalid`.
    """
    if not (isinstance(on_invalid, str) and on_invalid in get_args(OnInvalid)):
        raise InputError(f"on_invalid must be error, hold or zero, got {shown(on_invalid)}")


def shown(value: object) -> str:
    """Return a wrong value for a message: numbers and words themselves, of others the kind."""
    return f"{value!r:.40}" if isinstance(value, str | float | int) else type(value).__name__


def numbers(obs: Any) -> NDArray[np.floating]:
    """Return an observation as an array of float16, float32 or float64.

    Raises:
        ObservationError: It is missing, or not an array of real numbers.
    """
    try:
        given = np.asarray(obs)
    except ValueError as error:
        raise ObservationError(
            f"the observation is not an array of numbers: {error}"
        ) from error
    if given.dtype.char in "efd":
        return given
    if given.dtype.kind not in "fiub":
        what = "is missing" if obs is None else "is not an array of numbers"
        raise ObservationError(f"the observation {what}; give one number per sensor")
    return given.astype(np.float64)


def task_id(tasks: TaskTable, task: str | int | np.integer[Any] | None) -> int:
    """Return the id of the task that is named; an agent of one task needs no name.

    Raises:
        UnknownTaskError: A task that the agent does not know, none of several, or what is
            neither a name nor an id.
    """
    if isinstance(task, str):
        return tasks.index(task)
    if task is None:
        if len(tasks) > 1:
            raise UnknownTaskError(f"name a task; known: {', '.join(tasks.names)}")
        return 0
    if isinstance(task, bool) or not isinstance(task, int | np.integer):
        raise UnknownTaskError(f"a task is a name or an id, got {shown(task)}")
    if not 0 <= task < len(tasks):
        raise UnknownTaskError(f"task ids must be in 0..{len(tasks) - 1}, got {task}")
    return int(task)


def check_generators(generators: Sequence[object], rows: int, kind: type) -> None:
    """Refuse sources of noise that are not one for each row.

    Raises:
        InputError: Another number than of rows, or one of another kind, such as a seed.
    """
    if len(generators) != rows:
        raise InputError(f"{rows} observations need as many generators, got {len(generators)}")
    for each in generators:
        if not isinstance(each, kind):
            name = f"{kind.__module__.partition('.')[0]}'s {kind.__name__}"
            raise InputError(f"a generator is an object of {name}, got {shown(each)}")


def check_shape(tasks: TaskTable, task: int | None, shape: Sequence[int]) -> None:
    """Refuse observations that are neither padded nor of the task's own width.

    Args:
        tasks: The agent's tasks.
        task: Id of the task of all rows; None where they differ.
        shape: Shape of the observations.

    Raises:
        ObservationError: Another width or another number of axes.
    """
    if len(shape) not in (1, 2) or 0 in shape:
        raise ObservationError(f"observations are [obs] or [B, obs]; got shape {list(shape)}")
    full = tasks.obs_dim
    own = full if task is None else tasks.tasks[task].obs_dim
    if shape[-1] not in (own, full):
        name = "the tasks" if task is None else tasks.names[task]
        widths = str(full) if own == full else f"{own} (or padded to {full})"
        raise ObservationError(
            f"observations of {name} have {widths} numbers; got shape {list(shape)}"
        )
