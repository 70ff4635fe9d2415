"""Commands that train, with a teacher or without."""

from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from tdmpc_opt.configs.common import (
    COST,
    LATER,
    POSITIONAL,
    UNRECORDED,
    ByWorkers,
    OnDevice,
    OnTasks,
    Seeded,
    ToOutput,
)
from tdmpc_opt.configs.distill_weights import DistillWeights
from tdmpc_opt.errors import InputError
from tdmpc_opt.schema import Size

REMOVED: dict[str, object] = {
    "grad_clip": 20.0,
    "tau": 0.01,
    "td_heads": "least",
    "precision": "32-true",
    "weights.rho": 0.5,
    "temperature": 1.0,
    "teacher_precision": "32-true",
    "label_mode": "policy",
    "planner_preset": "realtime",
}
"""Options of older versions, which records may name, with the value that is fixed today."""
REMOVED_COST = ("eval_episodes", "score_episodes")
"""Such options that never affected a result."""


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the terms of the objective (TD-MPC2, arXiv:2310.16828, equation 3)."""

    consistency: float = 20.0
    """Weight of the latent consistency loss."""
    reward: float = 0.1
    """Weight of the reward's soft cross-entropy."""
    value: float = 0.1
    """Weight of the value's soft cross-entropy."""
    entropy: float = 1e-4
    """Weight of the policy's log-probability in the policy loss."""
    behaviour: float = 0.0
    """Weight of the squared distance between the policy's action and the dataset's label (its
    action, where it has no labels), which trains the policy and, through the latents, the
    encoder and the dynamics."""


@dataclass(frozen=True, kw_only=True)
class FromTeacher:
    """What a training run learns from frozen teachers (TD-MPC-Opt, arXiv:2507.01823)."""

    teacher: str | None = None
    """Checkpoint file of the teacher, or a zoo name; or a folder of experts, for `policy_mse`
    alone. None trains without a teacher. In `dagger` it also labels the states that the student
    visits, and may be any policy that `collect` takes."""
    more_teachers: Annotated[tuple[str, ...], LATER] = ()
    """Further teachers; each is used for the tasks that none before it has."""
    policy_teacher: str | None = None
    """Folder of experts or checkpoint that gives the policies of its tasks; the others give
    those of the remaining tasks. None takes all from the others."""
    terms: DistillWeights = field(default_factory=DistillWeights)
    """Weights of the distillation terms."""
    reward_steps: Literal["first", "all"] = "first"
    """Steps of a slice at which the reward terms compare; the paper's is the first alone."""
    teacher_cache: Annotated[Path | None, UNRECORDED] = None
    """Folder that stores the teachers' outputs for every row of the data, for this run and
    later ones with the same teachers and data; it is filled first. None computes them at each
    update."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(FromTeacher, OnTasks, ToOutput, OnDevice, Seeded):
    """Train a world model on a dataset, with frozen teachers or without.

    `distill` does all from a teacher to a scored student; this is its training alone.
    """

    data: Path | tuple[Path, ...]
    """Dataset folder, or several whose episodes are drawn from as one."""
    on_policy: Path | None = None
    """Further dataset folder, of what the student visited itself: collected with labels between
    two calls of the same run, it may grow where `data` must stay as it is."""
    on_policy_share: float | None = None
    """Share of each batch that `on_policy` gives; none draws uniformly from all data."""
    sampling: Annotated[Literal["uniform", "task", "return"], LATER] = "uniform"
    """How slices are drawn: each as likely; each task as likely; or, within each task, episodes
    of high return more often than others. The last leaves what `on_policy_share` gives as it
    is: there the student earned the returns, and the labels are somebody else's."""
    size: Size = "1"
    """Size of the model in millions of parameters: the published ones, and 0.3 of our own."""
    updates: Annotated[int, COST]
    """Gradient updates in all, those before a resume included."""
    batch_size: int = 256
    """Slices per update."""
    behaviour_batch: Annotated[int, LATER] = 0
    """Further slices per update, for the behaviour term alone: their states are encoded one by
    one, without the dynamics and the Qs, so that labels are seen more often at little cost."""
    horizon: int = 3
    """Latent steps of a slice."""
    weights: LossWeights = field(default_factory=LossWeights)
    """Weights of the objective."""
    lr: float = 3e-4
    """Adam's learning rate."""
    lr_zero_at: int | None = None
    """Update at which the learning rate, falling from `lr` on a line, reaches zero, where a run
    should end; none keeps it constant."""
    encoder_lr_scale: float = 0.3
    """Factor on the learning rate of the encoder."""
    td_lambda: Annotated[float, LATER] = 0.0
    """How far TD targets look along a slice before they ask the target Qs: 0, as published, one
    step; 1 to its end; between them a mixture (TD(lambda))."""
    start: str | None = None
    """Checkpoint whose weights the training starts from; none starts from random ones."""
    threads: Annotated[int, UNRECORDED] = 0
    """Threads of torch on the CPU; 0 takes OMP_NUM_THREADS, or the cores that are given and not
    busy when the training starts."""
    log_every: Annotated[int, COST] = 50
    """Updates between rows of metrics.csv."""
    save_every: Annotated[int, COST] = 500
    """Updates between checkpoints."""
    keep: Annotated[int, COST] = 2
    """Checkpoints kept to resume from: if the newest is damaged, the one before it serves."""
    max_skipped: Annotated[int, COST] = 10
    """Batches with NaN or infinity in data, loss or gradient that are skipped, each with a
    warning that names the episode; one more stops the run."""
    eval_every: Annotated[int, COST] = 0
    """Updates between evaluations by the policy alone; 0 evaluates never."""
    wandb: Annotated[bool, COST] = False
    """Log to Weights & Biases as well; needs its package and login."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """The dataset folders that must not change during a run."""
        return (self.data,) if isinstance(self.data, Path) else self.data

    def __post_init__(self) -> None:
        """Refuse counts and shares that cannot be run."""
        if not self.folders:
            raise InputError("name a dataset folder at least with --data")
        idle = [f.name for f in fields(FromTeacher) if getattr(self, f.name) != _default(f)]
        if self.teacher is None and idle:
            raise InputError(f"--{idle[0].replace('_', '-')} needs a --teacher")
        share = self.on_policy_share
        if share is not None and (self.on_policy is None or not 0 <= share <= 1):
            raise InputError("on_policy_share is from 0 to 1, and needs --on-policy")
        if self.lr_zero_at is not None and self.lr_zero_at < self.updates:
            raise InputError(
                f"the learning rate is zero at update {self.lr_zero_at}, so that none of the "
                f"{self.updates} updates beyond it would change anything"
            )
        if self.behaviour_batch < 0 or (self.behaviour_batch and not self.weights.behaviour):
            raise InputError(
                "behaviour_batch is at least 0, and needs a weight of behaviour to count"
            )
        if not 0 <= self.td_lambda <= 1:
            raise InputError(f"td_lambda is from 0 to 1, got {self.td_lambda}")
        counts = (self.updates, self.batch_size, self.horizon, self.log_every, self.save_every)
        if min(*counts, self.keep) < 1 or min(self.max_skipped, self.threads) < 0:
            raise InputError(
                "updates, batch_size, horizon, log_every, save_every and keep must be at least "
                "1, max_skipped and threads at least 0"
            )


def _default(option: Field[Any]) -> object:
    factory = option.default_factory
    return option.default if factory is MISSING else factory()


@dataclass(frozen=True, kw_only=True)
class DistillConfig(OnTasks, ToOutput, OnDevice, ByWorkers, Seeded):
    """Make a small student of a teacher: collect, train, correct, quantise, export and score.

    The output is a model folder. The same command continues an interrupted one.
    """

    teachers: Annotated[tuple[str, ...], POSITIONAL]
    """Checkpoint files of any known layout, zoo names, folders of experts, exported ONNX files,
    or MODULE:FACTORY for a policy of your own: a function without arguments that returns an
    object with act(obs [B, obs]) -> [B, action]. Each task goes to the first that has it."""
    size: Size = "1"
    """Size of the student in millions of parameters."""
    hours: float | None = None
    """Time to spend on this machine, from which the updates follow by measured speeds."""
    updates: int | None = None
    """Gradient updates in all, from which episodes and rounds follow; none without `hours`
    means 30,000."""

    def __post_init__(self) -> None:
        """Refuse budgets that cannot be spent."""
        if not self.teachers:
            raise InputError("name a teacher: a checkpoint, zoo name, folder or MODULE:FACTORY")
        if self.hours is not None and self.updates is not None:
            raise InputError("--hours and --updates both set the budget; leave one out")
        if (self.updates or 1) < 1 or not (self.hours is None or self.hours > 0):
            raise InputError("updates must be at least 1, and hours above 0")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Distil a teacher on this machine and compare the student with ones without a teacher."""

    output: Path = Path("demo-output")
    """Folder for data, runs, result files and plots."""
