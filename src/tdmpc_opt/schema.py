"""Facts that torch and the device runtime share.

Tasks, model sizes, planner budgets, their records in files, codes of 4 bits, limits of numbers.

Source: the public TD-MPC2 task definition (arXiv:2310.16828, appendix on MT30).
"""

import difflib
import math
import zlib
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tdmpc_opt.errors import InputError, NonFiniteError, ObservationError, UnknownTaskError

_MOST = 1 << 24
"""Largest width or length of a task in a file."""
UNNAMED = "task"
"""Name of the one task of a single-task checkpoint, whose file does not name it."""


@dataclass(frozen=True, slots=True)
class Task:
    """One control task, in agent steps (an agent step repeats its action)."""

    name: str
    """Name such as `walker-walk`: domain, dash, task."""
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
    may contain it, but only a name that the user gives is ever imported."""

    def __post_init__(self) -> None:
        """Refuse what readers of files would refuse (InputError)."""
        sizes = (self.obs_dim, self.action_dim, self.episode_length)
        if min(sizes) < 1 or max(sizes) > _MOST:
            raise InputError(
                f"task {self.name!r:.40} has {self.obs_dim} observations, {self.action_dim} "
                f"actions and {self.episode_length} steps; each must be in 1..{_MOST:,}"
            )
        if not (self.name.isprintable() and self.env.isprintable()):
            raise InputError(f"a task is called {self.name!r:.40}")

    @property
    def discount(self) -> float:
        """Discount factor by TD-MPC2's heuristic on the episode length, in [0.95, 0.995]."""
        fraction = self.episode_length / 5
        return min(max((fraction - 1) / fraction, 0.95), 0.995)


@dataclass(frozen=True)
class TaskTable:
    """An ordered set of tasks; a task's position is its id and row of the task embedding."""

    tasks: tuple[Task, ...]

    def __len__(self) -> int:
        return len(self.tasks)

    @cached_property
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

    @property
    def unnamed(self) -> bool:
        """True for the tasks of a public checkpoint that does not name them."""
        return self.names in ((UNNAMED,), tuple(f"{UNNAMED}-{i}" for i in range(len(self))))

    def __getitem__(self, name: str) -> Task:
        """Return the task called `name`, as `index` finds it."""
        return self.tasks[self.index(name)]

    def index(self, name: str) -> int:
        """Return the id of the task called `name`.

        Raises:
            UnknownTaskError: No such task; the message lists near matches.
        """
        if name in self.names:
            return self.names.index(name)
        name = name[:100]  # comparing takes long where a message has a million characters
        near = difflib.get_close_matches(name.replace("_", "-"), self.names, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(self.names)}"
        raise UnknownTaskError(f"unknown task {name!r}; {hint}")

    def subset(self, names: Sequence[str]) -> "TaskTable":
        """Return a table of these tasks in the order of this table, without repeats.

        Raises:
            UnknownTaskError: A name that is not in this table.
        """
        chosen = sorted({self.index(name) for name in names})
        return TaskTable(tuple(self.tasks[i] for i in chosen))

    def select(self, text: str) -> "TaskTable":
        """Return the tasks that a command line names: `mt30` (all), or names joined by commas.

        Raises:
            UnknownTaskError: A name that is not in this table, or an empty list.
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
    def from_json(cls, records: Sequence[Any]) -> "TaskTable":
        """Rebuild a table that `to_json` wrote.

        Raises:
            TypeError: A record with missing or foreign fields, or a value of a wrong kind.
            ValueError: A width or length that no task has, or a name that cannot be shown.
        """
        tasks = []
        for record in records:
            if not isinstance(record, dict):
                raise TypeError(f"the entry {record!r:.40} is not a task")
            tasks.append(from_record(Task, record))
        return cls(tuple(tasks))


MT30 = TaskTable(
    (
        Task("walker-stand", 24, 6),
        Task("walker-walk", 24, 6),
        Task("walker-run", 24, 6),
        Task("cheetah-run", 17, 6),
        Task("reacher-easy", 6, 2),
        Task("reacher-hard", 6, 2),
        Task("acrobot-swingup", 6, 1),
        Task("pendulum-swingup", 3, 1),
        Task("cartpole-balance", 5, 1),
        Task("cartpole-balance-sparse", 5, 1),
        Task("cartpole-swingup", 5, 1),
        Task("cartpole-swingup-sparse", 5, 1),
        Task("cup-catch", 8, 2),
        Task("finger-spin", 9, 2),
        Task("finger-turn-easy", 12, 2),
        Task("finger-turn-hard", 12, 2),
        Task("fish-swim", 24, 5),
        Task("hopper-stand", 15, 4),
        Task("hopper-hop", 15, 4),
        Task("walker-walk-backwards", 24, 6, custom=True),
        Task("walker-run-backwards", 24, 6, custom=True),
        Task("cheetah-run-backwards", 17, 6, custom=True),
        Task("cheetah-run-front", 17, 6, custom=True),
        Task("cheetah-run-back", 17, 6, custom=True),
        Task("cheetah-jump", 17, 6, custom=True),
        Task("hopper-hop-backwards", 15, 4, custom=True),
        Task("reacher-three-easy", 8, 3, custom=True),
        Task("reacher-three-hard", 8, 3, custom=True),
        Task("cup-spin", 8, 2, custom=True),
        Task("pendulum-spin", 3, 1, custom=True),
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


Size = Literal["0.3", "1", "5", "19", "48", "317"]

_WIDEST = 1 << 16
"""Largest width: a damaged file may state any."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Widths of one world model (TD-MPC2, arXiv:2310.16828, table of model sizes)."""

    obs_dim: int
    """Padded observation width."""
    action_dim: int
    """Padded action width."""
    num_tasks: int
    """Rows of the task embedding; 1 for a single-task model, which has none."""
    enc_dim: int
    """Width of the encoder's hidden layers."""
    mlp_dim: int
    """Width of the hidden layers of dynamics, reward, policy and Q."""
    latent_dim: int
    """Width of the latent state z; a multiple of `simnorm_dim`."""
    num_enc_layers: int
    """Encoder layers, the SimNorm layer included; one hidden layer at least is built."""
    num_q: int
    """Members of the Q ensemble."""
    task_dim: int
    """Width of the task embedding; 0 for a single-task model without one."""
    simnorm_dim: int = 8
    """Length of one SimNorm simplex."""
    num_bins: int = 101
    """Bins of the two-hot regression of reward and value."""
    bin_limit: float = 10.0
    """Symlog value of the last bin; the first is its negative."""
    dropout: float = 0.01
    """Dropout rate after the first linear layer of each Q, in training only."""
    episodic: bool = False
    """Whether there is a termination head: states of its tasks may end an episode."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values; without `episodic`, as before, where it is off."""
        return {name: value for name, value in asdict(self).items() if value is not False}

    def __post_init__(self) -> None:
        """Refuse widths that cannot be built, in files as in options (InputError)."""
        if self.num_bins < 2:
            raise InputError(
                f"rewards and values are decoded from at least 2 bins, got {self.num_bins}; "
                "TD-MPC2 with num_bins 0 or 1 regresses them directly, which is not supported"
            )
        counts = {name: value for name, value in vars(self).items() if type(value) is int}
        task_dim = counts.pop("task_dim")
        if min(counts.values()) < 1 or task_dim < 0:
            raise InputError(f"dimensions must be positive, got {self}")
        if max(counts.values()) > _WIDEST or task_dim > _WIDEST:
            raise InputError(f"dimensions must be at most {_WIDEST}, got {self}")
        if self.latent_dim % self.simnorm_dim:
            raise InputError(
                f"latent_dim must be a multiple of simnorm_dim, got {self.latent_dim} and "
                f"{self.simnorm_dim}"
            )
        if not (0 <= self.dropout < 1 and 0 < self.bin_limit < math.inf):
            raise InputError(
                "dropout must be in [0, 1) and bin_limit positive and finite, got "
                f"{self.dropout} and {self.bin_limit}"
            )


Record = TypeVar("Record", Task, ModelConfig)


def from_record(kind: type[Record], values: dict[str, Any]) -> Record:
    """Build a task or a config from a stored record, which may have any content.

    Raises:
        TypeError: A missing or unknown field, or a value of another type.
        ValueError: A value that no task or config has.
    """
    known = {item.name: item for item in fields(kind)}
    for name, value in values.items():
        if name not in known:
            raise TypeError(f"it has the unknown field {str(name)!r:.40}")
        expected = known[name].type
        number = expected is float and type(value) is int
        if type(value) is not expected and not number:  # a bool must not pass for an int
            raise TypeError(f"it has {name} = {value!r:.40}")
    for name, item in known.items():
        if item.default is MISSING and name not in values:
            raise TypeError(f"it lacks the field {name!r}")
    return kind(**values)


_WIDTHS = ("enc_dim", "mlp_dim", "latent_dim", "num_enc_layers", "num_q", "task_dim")
_SIZES: dict[Size, tuple[int, int, int, int, int, int]] = {
    "0.3": (128, 160, 64, 2, 2, 32),  # ours, for quick trials; the others are published
    "1": (256, 384, 128, 2, 2, 96),
    "5": (256, 512, 512, 2, 5, 64),
    "19": (1024, 1024, 512, 3, 5, 64),  # latent 512 as in the MT30 release, else 768
    "48": (1792, 1792, 768, 4, 5, 64),
    "317": (4096, 4096, 1376, 5, 8, 96),
}


def model_config(size: Size, tasks: TaskTable) -> ModelConfig:
    """Return the widths of a size (millions of parameters) for these tasks."""
    widths: dict[str, Any] = dict(zip(_WIDTHS, _SIZES[size], strict=True))
    return ModelConfig(
        obs_dim=tasks.obs_dim,
        action_dim=tasks.action_dim,
        num_tasks=len(tasks),
        **widths,
    )


@dataclass(frozen=True, kw_only=True)
class PlanRules:
    """The part of a planner budget that the state between plans needs, here and on a device."""

    horizon: int = 3
    """Latent steps of each sampled action sequence."""
    samples: int = 512
    """Action sequences per iteration, those of the policy prior included."""
    policy_samples: int = 24
    """Sequences per iteration that the policy prior proposes."""
    min_std: float = 0.05
    """Lower clip of the sampling standard deviation."""
    max_std: float = 2.0
    """Upper clip of the sampling standard deviation, and its start."""
    replan_every: int = 1
    """Actions executed of one plan before the next is made; up to the horizon. Published: 1."""
    warm_mean: float = 1.0
    """Share of the last plan's mean to start from, shifted by the steps since. Published: 1."""
    warm_std: float = 0.0
    """How many of the last plan's standard deviations, shifted as well, to start from, at most
    `max_std`; 0, as published, starts from `max_std`."""
    converged_std: float = 0.0
    """Leave out the iterations after one whose mean standard deviation is below this; it has an
    effect above `min_std` alone. Published: 0, never."""
    mean_action: bool = False
    """Act by the mean of the plan; else, as published, by one of its elites, drawn by weight.
    After few iterations the elites are far apart still."""

    def __post_init__(self) -> None:
        """Refuse plans that cannot be made."""
        if not 0 <= self.policy_samples < self.samples:
            raise InputError("policy_samples must be at least 0 and below samples")
        if self.horizon < 1:
            raise InputError("horizon must be at least 1")
        if not 1 <= self.replan_every <= self.horizon:
            raise InputError("`replan_every` must be between 1 and the horizon")
        if not 0 <= self.min_std <= self.max_std:
            raise InputError("min_std must be at least 0 and at most max_std")
        if not 0 <= self.warm_mean <= 1 or self.warm_std < 0 or self.converged_std < 0:
            raise InputError("warm_mean is in 0..1; warm_std, converged_std are at least 0")


@dataclass(frozen=True, kw_only=True)
class PlannerBudget(PlanRules):
    """What one MPPI plan may spend (TD-MPC2, arXiv:2310.16828, appendix on planning)."""

    iterations: int = 6
    """Refinements of the sampling distribution."""
    elites: int = 64
    """Best sequences that refit the distribution."""
    temperature: float = 0.5
    """Inverse temperature on the elites' values."""
    prior_penalty: float = 0.0
    """Subtracted from a sequence's value per squared distance from the policy's sequences,
    summed over steps, as a share of the value of the policy's sequences. One action changes the
    return of a good policy by less than the error of a value network; the penalty limits how
    far a plan follows such errors. Published: 0."""
    prior_hold: float = 0.0
    """Subtracted in addition, in units of return: a share of the policy's value has no effect
    where no reward is predicted, and there a plan would follow errors alone. Published: 0."""

    def __post_init__(self) -> None:
        """Refuse budgets that cannot be run."""
        super().__post_init__()
        if not 0 < self.elites <= self.samples:
            raise InputError("elites must be between 1 and samples")
        if self.iterations < 1:
            raise InputError("iterations must be at least 1")
        least = min(self.prior_penalty, self.prior_hold)
        if least < 0 or (self.regularised and not self.policy_samples):
            raise InputError(
                "prior_penalty and prior_hold are at least 0, and need policy_samples: "
                "the policy's sequences are what plans are compared with"
            )

    @property
    def regularised(self) -> bool:
        """Whether plans are kept near the policy."""
        return bool(self.prior_penalty or self.prior_hold)


INT4_ZERO = 8
"""Stored code of a weight of 0: codes of 4 bits are stored without a sign."""


def int4_halves(codes: Any) -> tuple[Any, Any]:
    """Return the codes of both halves of each row, which share bytes, low bits first."""
    return codes & 15, codes >> 4


LARGEST_OBSERVATION = 1e15
"""Magnitude up to which the first layer's sums of squares do not overflow float32."""
_ROUNDING = 1e-3
"""By how much a tanh may exceed 1 in some engine's arithmetic."""


def check_observation(largest: float) -> None:
    """Refuse observations whose largest magnitude is NaN or overflows the network.

    Raises:
        ObservationError: It is NaN or above `LARGEST_OBSERVATION`.
    """
    if not largest <= LARGEST_OBSERVATION:
        raise ObservationError(
            "the observation contains NaN, infinity or a number too large for the network (at "
            f"most {LARGEST_OBSERVATION:.0e}); check the sensors"
        )


def check_action(largest: float) -> None:
    """Refuse actions whose largest magnitude is NaN or above 1, but for rounding.

    Raises:
        NonFiniteError: The network overflowed, or its weights are damaged.
    """
    if not largest <= 1 + _ROUNDING:
        raise NonFiniteError(
            f"the action has a magnitude of {largest:.3g}, not at most 1: the network "
            "overflows on this observation or its file is damaged; check the sensors' units, "
            "then the file"
        )
