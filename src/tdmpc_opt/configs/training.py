"""Commands that train on data, and what they learn from."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

from tdmpc_opt.configs.common import (
    COST,
    LATER,
    UNRECORDED,
    ByWorkers,
    Labelled,
    MatmulPrecision,
    Numbers,
    OnDevice,
    OnTasks,
    Seeded,
    ToOutput,
)
from tdmpc_opt.errors import InputError
from tdmpc_opt.schema import Size


@dataclass(frozen=True, slots=True)
class Schedule:
    """A weight over the updates of a run: constant, or on a line and then constant."""

    start: float
    """Weight at the first update, at least 0."""
    end: float | None = None
    """Weight from update number `updates` on; None keeps `start`."""
    updates: int = 0
    """Updates that lead from `start` to `end`; 0 without an `end`."""

    def __post_init__(self) -> None:
        for value in (self.start, self.end):
            if value is not None and not 0 <= value < 2**63:
                raise InputError(f"a weight must be finite and at least 0, got {value}")
        if (self.end is None) != (self.updates == 0) or self.updates < 0:
            raise InputError(
                f"a schedule needs an end and at least 1 update to get there, got end "
                f"{self.end} after {self.updates} updates"
            )

    def at(self, update: int) -> float:
        """Return the weight in force when `update` updates are done."""
        if self.end is None:
            return self.start
        part = min(update / self.updates, 1.0)
        return (1 - part) * self.start + part * self.end

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """Read `0.4` (constant) or `0.4:0@10000` (from 0.4 to 0 in 10,000 updates).

        Raises:
            InputError: Another text, or numbers that cannot be meant.
        """
        start, line, rest = text.partition(":")
        end, _, updates = rest.partition("@")
        try:
            return cls(float(start), float(end), int(updates)) if line else cls(float(start))
        except InputError:
            raise
        except ValueError:
            raise InputError(
                f"{text!r} is no weight; write a number, or START:END@UPDATES such as "
                "0.4:0@10000"
            ) from None

    def __str__(self) -> str:
        return f"{self.start}" + ("" if self.end is None else f":{self.end}@{self.updates}")


@dataclass(frozen=True, kw_only=True)
class DistillWeights:
    """Weights of the distillation terms; only the published one is on (arXiv:2507.01823).

    Each is a number, or START:END@UPDATES: 0.4:0@10000 falls from 0.4 to 0 in 10,000 updates.
    """

    reward_mse: Schedule = Schedule(0.4)
    """Weight d of the squared distance to the teacher's decoded reward."""
    reward_kl: Schedule = Schedule(0.0)
    """Weight of the divergence from the teacher's two-hot reward distribution."""
    value_kl: Schedule = Schedule(0.0)
    """Weight of the divergence of each Q from the mean of the teacher's Q distributions."""
    policy_mse: Schedule = Schedule(0.0)
    """Weight of the squared distance to the teacher's mean action. It trains the policy and,
    through the latents, the encoder and the dynamics."""
    policy_kl: Schedule = Schedule(0.0)
    """Weight of the divergence from the teacher's policy; trains what `policy_mse` trains."""
    latent: Schedule = Schedule(0.0)
    """Weight of the divergence of a learned projection of the student's latents from the
    teacher's latents."""

    def at(self, update: int) -> dict[str, float]:
        """Return the weights in force when `update` updates are done, by term.

        Terms whose weight is 0 all along are left out.
        """
        schedules = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: schedule.at(update)
            for name, schedule in schedules.items()
            if schedule.start or schedule.end
        }


TERMS: tuple[str, ...] = tuple(field.name for field in fields(DistillWeights))
"""Names of the distillation terms."""


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
class LossWeights(Numbers):
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
    alone. Without it there is no teacher."""
    more_teachers: Annotated[tuple[str, ...], LATER] = ()
    """Further teachers; each is used for the tasks that none before it has."""
    policy_teacher: str | None = None
    """Folder of experts or checkpoint that gives the policies of its tasks; the others give
    those of the remaining tasks. Without it all are the others'."""
    terms: DistillWeights = field(default_factory=DistillWeights)
    """Weights of the distillation terms."""
    reward_steps: Literal["first", "all"] = "first"
    """Steps of a slice at which the reward terms compare; the paper's is the first alone."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(FromTeacher, OnTasks, ToOutput, OnDevice, Seeded):
    """Train a world model on a dataset, with frozen teachers or without.

    The output is a folder with checkpoints and metrics. The same command continues an
    interrupted one. It is one step of `distill`, which runs every stage from a teacher to a
    scored student.
    """

    data: Path | tuple[Path, ...]
    """Dataset folder, or several whose episodes are drawn from as one."""
    on_policy: Path | None = None
    """Further dataset folder, of what the student visited itself: collected with labels between
    two calls of the same run, it may grow where `data` must stay as it is. Without it `data` is
    all."""
    on_policy_share: float | None = None
    """Share of each batch that `on_policy` gives; without it draws are uniform."""
    sampling: Annotated[Literal["uniform", "task", "return"], LATER] = "uniform"
    """How slices are drawn: each as likely; each task as likely; or, within each task, episodes
    of high return more often than others. The last leaves what `on_policy_share` gives as it
    is: there the student earned the returns, and the labels are the teacher's."""
    size: Size = "1"
    """Size of the model in millions of parameters: the published sizes, and 0.3."""
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
    should end; without it the rate is constant."""
    encoder_lr_scale: float = 0.3
    """Factor on the learning rate of the encoder."""
    td_lambda: Annotated[float, LATER] = 0.0
    """How far TD targets look along a slice before they use the target Qs: 0, as published, one
    step; 1 to its end; between them a mixture (TD(lambda))."""
    start: str | None = None
    """Checkpoint whose weights the training starts from; without it random ones."""
    matmul: Annotated[MatmulPrecision, LATER] = "highest"
    """Precision of float32 matrix products, as torch names it: `medium` multiplies in bf16 and
    sums in float32 on processors with units for that; weights stay float32."""
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
    """Updates between evaluations by the policy alone; 0 never evaluates."""
    wandb: Annotated[bool, COST] = False
    """Log to Weights & Biases as well; needs its package and login."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """The dataset folders that must not change during a run."""
        return (self.data,) if isinstance(self.data, Path) else self.data

    @property
    def agents(self) -> list[str]:
        """The checkpoint to start from and the teachers, those that there are."""
        named = (self.start, self.teacher, *self.more_teachers, self.policy_teacher)
        return [name for name in named if name is not None]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.folders:
            raise InputError("name at least one dataset folder with --data")
        names, without = [f.name for f in fields(FromTeacher)], FromTeacher()
        idle = [name for name in names if getattr(self, name) != getattr(without, name)]
        if self.teacher is None and idle:
            raise InputError(f"--{idle[0].replace('_', '-')} needs a --teacher")
        share = self.on_policy_share
        if share is not None and (self.on_policy is None or not 0 <= share <= 1):
            raise InputError("`on_policy_share` is from 0 to 1, and needs --on-policy")
        if self.lr_zero_at is not None and self.lr_zero_at < self.updates:
            raise InputError(
                f"`lr_zero_at` is {self.lr_zero_at}: of the {self.updates} `updates` those "
                "beyond it would change nothing"
            )
        if self.behaviour_batch and not self.weights.behaviour:
            raise InputError("`behaviour_batch` needs a weight of `behaviour`")
        if not 0 <= self.td_lambda <= 1:
            raise InputError(f"`td_lambda` is from 0 to 1, got {self.td_lambda}")
        counts = (self.updates, self.batch_size, self.horizon, self.log_every, self.save_every)
        if min(*counts, self.keep) < 1:
            raise InputError(
                "`updates`, `batch_size`, `horizon`, `log_every`, `save_every` and `keep` must "
                "be at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class DaggerConfig(TrainConfig, ByWorkers, Labelled):
    """Correct a student where it goes itself, round by round (DAgger, arXiv:1011.0686).

    Each round the student drives, the teacher labels the states on the way, and the training
    continues with these episodes and the data. The output is a folder with checkpoints, metrics
    and the episodes. The same command continues an interrupted one.
    """

    teacher: str = field()
    """Policy that labels the states that the student visits: any that `collect` takes. Of a
    checkpoint the terms with a weight are learned too."""
    start: str = field()
    """Checkpoint of the student to correct."""
    on_policy_share: float | None = None
    """Share of each batch that the student's own episodes give; without it draws are
    uniform."""
    label: str | None = None
    """Checkpoint file, zoo name, folder of experts, MODULE:FACTORY or `plan` whose actions in
    the visited states are stored to imitate; without it those of the teacher."""
    rounds: Annotated[int, COST]
    """Rounds in all, those before a resume included."""
    updates: int
    """Gradient updates of each round."""
    weights: LossWeights = field(default_factory=lambda: LossWeights(behaviour=20.0))
    """Weights of the objective; that of behaviour decides how much the labels count."""
    episodes: int = 4
    """Episodes per task and round."""
    planner_episodes: Annotated[int, LATER] = 0
    """Episodes per task and round that the student drives by planning: they teach its model
    what plans get wrong, and its policy the way back."""
    on_policy: Annotated[Path, COST] = field(init=False)
    """The dataset that grows: `data` in the output folder."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "on_policy", self.output / "data")
        super().__post_init__()
        if min(self.rounds, self.episodes) < 1:
            raise InputError("`rounds` and `episodes` must be at least 1")
        if self.lr_zero_at is not None and self.lr_zero_at < self.rounds * self.updates:
            raise InputError(
                f"{self.rounds} rounds make {self.rounds * self.updates} updates, but the "
                f"learning rate is zero from `lr_zero_at` {self.lr_zero_at} on"
            )
