"""The tasks of MT30 as data: names, sizes and action masks, with no simulator behind them.

Source: the public TD-MPC2 task definition (arXiv:2310.16828, appendix on MT30).
"""

import difflib
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmpc_opt.errors import UnknownTaskError

_MOST = 1 << 24
"""Largest width or length that a file may tell of a task."""
UNNAMED = "task"
"""Name of the one task of a single-task checkpoint, whose file does not tell it."""


@dataclass(frozen=True, slots=True)
class Task:
    """One control task, in agent steps (an agent step repeats its action)."""

    name: str
    """Field name such as `walker-walk`: domain, dash, task."""
    obs_dim: int
    """Width of the unpadded observation."""
    action_dim: int
    """Number of actuators, each in [-1, 1]."""
    episode_length: int = 500
    """Agent steps in one episode."""
    custom: bool = False
    """True where the task is not part of the dm_control suite."""
    env: str = ""
    """`MODULE:ID` of a user's own Gymnasium environment; empty for the tasks of MT30. A file
    tells it, but only a name that the user gives is ever imported."""

    @property
    def discount(self) -> float:
        """Discount factor by TD-MPC2's heuristic on the episode length, in [0.95, 0.995]."""
        fraction = self.episode_length / 5
        return min(max((fraction - 1) / fraction, 0.95), 0.995)


@dataclass(frozen=True, slots=True)
class TaskTable:
    """An ordered set of tasks; a task's position is its id and row of the task embedding."""

    tasks: tuple[Task, ...]

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def names(self) -> tuple[str, ...]:
        """Task names in id order."""
        return tuple(task.name for task in self.tasks)

    @property
    def obs_dim(self) -> int:
        """Padded observation width: the widest task's."""
        return max(task.obs_dim for task in self.tasks)

    @property
    def action_dim(self) -> int:
        """Padded action width: the widest task's."""
        return max(task.action_dim for task in self.tasks)

    def __getitem__(self, name: str) -> Task:
        """Return the task called `name`.

        Raises:
            UnknownTaskError: No such task; the message lists near matches.
        """
        return self.tasks[self.index(name)]

    def index(self, name: str) -> int:
        """Return the id of the task called `name`.

        Raises:
            UnknownTaskError: No such task; the message lists near matches.
        """
        try:
            return self.names.index(name)
        except ValueError:
            raise UnknownTaskError(self._unknown(name)) from None

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name.replace("_", "-"), self.names, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(self.names)}"
        return f"unknown task {name!r}; {hint}"

    def subset(self, names: Sequence[str]) -> "TaskTable":
        """Return a table of these tasks in the order of this table, without repeats.

        Raises:
            UnknownTaskError: A name that this table does not hold.
        """
        chosen = sorted({self.index(name) for name in names})
        return TaskTable(tuple(self.tasks[i] for i in chosen))

    def select(self, text: str) -> "TaskTable":
        """Return the tasks that a command line names: `mt30` (all), or names joined by commas.

        Raises:
            UnknownTaskError: A name that this table does not hold, or an empty list.
        """
        names = [part.strip() for part in text.split(",") if part.strip()]
        if not names:
            raise UnknownTaskError("no task named; write mt30 or names joined by commas")
        return self if names == ["mt30"] else self.subset(names)

    def action_mask(self) -> NDArray[np.float32]:
        """Return 1 for real and 0 for padded actions, [tasks, action_dim]."""
        widths = np.array([task.action_dim for task in self.tasks])
        return (np.arange(self.action_dim) < widths[:, None]).astype(np.float32)

    def discounts(self) -> NDArray[np.float32]:
        """Return each task's discount factor, [tasks]."""
        return np.array([task.discount for task in self.tasks], dtype=np.float32)

    @property
    def selection(self) -> str:
        """The word for these tasks on a command line."""
        return ",".join(task.env or task.name for task in self.tasks)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the table as JSON-ready records, one a task."""
        records = [asdict(task) for task in self.tasks]
        for record in records:
            if not record["env"]:  # as records were before there were own tasks
                del record["env"]
        return records

    @classmethod
    def from_json(cls, records: list[dict[str, Any]]) -> "TaskTable":
        """Rebuild a table that `to_json` wrote.

        Raises:
            TypeError: A record with missing or foreign fields, or a value of a wrong kind.
            ValueError: A width or length that no task has, or a name that cannot be shown.
        """
        return cls(tuple(_task_of(record) for record in records))


def _task_of(record: dict[str, Any]) -> Task:
    task = Task(**record)
    kinds = {item.name: item.type for item in fields(Task)}
    for name, kind in kinds.items():
        value = getattr(task, name)
        if type(value) is not kind:  # a bool must not pass for an int
            raise TypeError(f"a task has {name} = {value!r:.40}")
    sizes = (task.obs_dim, task.action_dim, task.episode_length)
    if min(sizes) < 1 or max(sizes) > _MOST:
        raise ValueError(f"task {task.name!r:.40} has a width or length not in 1..{_MOST:,}")
    if not (task.name.isprintable() and task.env.isprintable()):
        raise ValueError(f"a task is called {task.name!r:.40}")
    return task


def _task(name: str, obs_dim: int, action_dim: int, *, custom: bool = False) -> Task:
    return Task(name, obs_dim, action_dim, custom=custom)


MT30 = TaskTable(
    (
        _task("walker-stand", 24, 6),
        _task("walker-walk", 24, 6),
        _task("walker-run", 24, 6),
        _task("cheetah-run", 17, 6),
        _task("reacher-easy", 6, 2),
        _task("reacher-hard", 6, 2),
        _task("acrobot-swingup", 6, 1),
        _task("pendulum-swingup", 3, 1),
        _task("cartpole-balance", 5, 1),
        _task("cartpole-balance-sparse", 5, 1),
        _task("cartpole-swingup", 5, 1),
        _task("cartpole-swingup-sparse", 5, 1),
        _task("cup-catch", 8, 2),
        _task("finger-spin", 9, 2),
        _task("finger-turn-easy", 12, 2),
        _task("finger-turn-hard", 12, 2),
        _task("fish-swim", 24, 5),
        _task("hopper-stand", 15, 4),
        _task("hopper-hop", 15, 4),
        _task("walker-walk-backwards", 24, 6, custom=True),
        _task("walker-run-backwards", 24, 6, custom=True),
        _task("cheetah-run-backwards", 17, 6, custom=True),
        _task("cheetah-run-front", 17, 6, custom=True),
        _task("cheetah-run-back", 17, 6, custom=True),
        _task("cheetah-jump", 17, 6, custom=True),
        _task("hopper-hop-backwards", 15, 4, custom=True),
        _task("reacher-three-easy", 8, 3, custom=True),
        _task("reacher-three-hard", 8, 3, custom=True),
        _task("cup-spin", 8, 2, custom=True),
        _task("pendulum-spin", 3, 1, custom=True),
    )
)
"""The 30 tasks of MT30; padded to 24 observations and 6 actions."""


def seed_number(task: Task) -> int:
    """Return a task's part in the seeds of its episodes: its id in MT30, or of its name."""
    if task.name in MT30.names:
        return MT30.index(task.name)
    return len(MT30) + zlib.crc32(task.name.encode())


_META_WORLD = (
    *("assembly", "basketball", "button-press-topdown", "button-press-topdown-wall"),
    *("button-press", "button-press-wall", "coffee-button", "coffee-pull", "coffee-push"),
    *("dial-turn", "disassemble", "door-open", "door-close", "drawer-close", "drawer-open"),
    *("faucet-open", "faucet-close", "hammer", "handle-press-side", "handle-press"),
    *("handle-pull-side", "handle-pull", "lever-pull", "peg-insert-side", "peg-unplug-side"),
    *("pick-out-of-hole", "pick-place", "pick-place-wall", "plate-slide", "plate-slide-side"),
    *("plate-slide-back", "plate-slide-back-side", "push-back", "push", "push-wall"),
    *("reach", "reach-wall", "shelf-place", "soccer", "stick-push", "stick-pull"),
    *("sweep-into", "sweep", "window-open", "window-close", "bin-picking", "box-close"),
    *("door-lock", "door-unlock", "hand-insert"),
)

MT80 = TaskTable(
    (*MT30.tasks, *(Task(f"mw-{name}", 39, 4, episode_length=100) for name in _META_WORLD))
)
"""MT30, then the 50 tasks of Meta-World; padded to 39 observations and 6 actions.

The order is that of the public TD-MPC2 release, since a task's position is its embedding row.
"""
