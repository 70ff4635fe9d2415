"""Every knob of the project, as frozen dataclasses that need neither torch nor a simulator."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tdmpc_opt.distill_weights import DistillWeights
from tdmpc_opt.errors import InputError
from tdmpc_opt.task_table import TaskTable

Size = Literal["0.3", "1", "5", "19", "48", "317"]
Mode = Literal["planner", "policy"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]

COLLECTION_SEED = 1_000_000
"""First environment seed of experts, collection and relabelling; evaluation stays below."""


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

    def __post_init__(self) -> None:
        """Refuse widths that cannot be built."""
        if self.latent_dim % self.simnorm_dim:
            raise ValueError(
                f"latent_dim must be a multiple of simnorm_dim, got {self.latent_dim} and "
                f"{self.simnorm_dim}"
            )
        if min(self.obs_dim, self.action_dim, self.num_tasks, self.num_q) < 1:
            raise ValueError(f"dimensions must be positive, got {self}")


@dataclass(frozen=True)
class _Widths:
    enc_dim: int
    mlp_dim: int
    latent_dim: int
    num_enc_layers: int
    num_q: int
    task_dim: int


_SIZES: dict[str, _Widths] = {
    "0.3": _Widths(128, 160, 64, 2, 2, 32),  # ours, for quick trials; the others are published
    "1": _Widths(256, 384, 128, 2, 2, 96),
    "5": _Widths(256, 512, 512, 2, 5, 64),
    "19": _Widths(1024, 1024, 512, 3, 5, 64),  # latent 512 as in the MT30 release, else 768
    "48": _Widths(1792, 1792, 768, 4, 5, 64),
    "317": _Widths(4096, 4096, 1376, 5, 8, 96),
}


def model_config(size: Size, tasks: TaskTable) -> ModelConfig:
    """Return the widths of a size (millions of parameters) for these tasks."""
    widths = _SIZES[size]
    return ModelConfig(
        obs_dim=tasks.obs_dim,
        action_dim=tasks.action_dim,
        num_tasks=len(tasks),
        enc_dim=widths.enc_dim,
        mlp_dim=widths.mlp_dim,
        latent_dim=widths.latent_dim,
        num_enc_layers=widths.num_enc_layers,
        num_q=widths.num_q,
        task_dim=widths.task_dim,
    )


@dataclass(frozen=True, kw_only=True)
class PlannerBudget:
    """What one MPPI plan may spend (TD-MPC2, arXiv:2310.16828, appendix on planning)."""

    horizon: int = 3
    """Latent steps of each sampled action sequence."""
    iterations: int = 6
    """Refinements of the sampling distribution."""
    samples: int = 512
    """Action sequences per iteration, those of the policy prior included."""
    policy_samples: int = 24
    """Sequences per iteration that the policy prior proposes."""
    elites: int = 64
    """Best sequences that refit the distribution."""
    temperature: float = 0.5
    """Inverse temperature on the elites' values."""
    min_std: float = 0.05
    """Lower clip of the sampling standard deviation."""
    max_std: float = 2.0
    """Upper clip of the sampling standard deviation, and its start."""

    def __post_init__(self) -> None:
        """Refuse budgets that cannot be run."""
        if not 0 <= self.policy_samples < self.samples:
            raise ValueError("policy_samples must be at least 0 and below samples")
        if not 0 < self.elites <= self.samples:
            raise ValueError("elites must be between 1 and samples")
        if self.horizon < 1 or self.iterations < 1:
            raise ValueError("horizon and iterations must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TasksConfig:
    """List the tasks with their ids and sizes."""


@dataclass(frozen=True, kw_only=True)
class ZooConfig:
    """List the bundled checkpoints."""


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Show a checkpoint's sizes, tasks, dtypes and parameters per part."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Checkpoint file of any known layout, or a zoo name."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Rewrite a public checkpoint as safetensors of this project."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Checkpoint file of any known layout, or a zoo name."""
    output: Path
    """File to write."""


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """Write a smaller file of the same agent, without target Qs."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Checkpoint file of any known layout, or a zoo name."""
    output: Path
    """File to write."""
    format: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Number format of the stored weights."""
    policy_only: bool = False
    """Keep encoder and policy alone: a file that acts but cannot plan."""
    task: str | None = None
    """Keep one task alone, with its embedding folded into the biases and no padding."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score a policy on real tasks and write a result file."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Checkpoint file or zoo name, a folder of experts, or the word random."""
    tasks: str | None = None
    """`mt30`, or task names joined by commas; none means every task of the policy."""
    episodes: int = 10
    """Episodes per task."""
    seed: int = 0
    """Episode k of every task starts from environment seed `seed + k`."""
    mode: Mode = "planner"
    """Act by planning, or by the policy network alone."""
    preset: str | None = None
    """Planner budget by name; none means the full published budget."""
    noise: bool = False
    """Keep exploration noise on, as the published scores did."""
    output: Path
    """Result file (JSON); an interrupted run goes on from it."""
    device: Device = "auto"
    """Where the networks run."""
    workers: int = 0
    """Processes that share the tasks; 0 takes one per CPU core."""

    def __post_init__(self) -> None:
        """Refuse seeds that data collection may have seen."""
        if self.episodes < 1 or self.seed < 0:
            raise InputError("episodes must be at least 1 and seed at least 0")
        if self.seed + self.episodes > COLLECTION_SEED:
            raise InputError(
                f"evaluation seeds stay below {COLLECTION_SEED:,}, where those of data "
                f"collection begin; got {self.seed} + {self.episodes} episodes"
            )


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Show the paired difference of two result files with its interval."""

    first: Annotated[Path, tyro.conf.Positional]
    """Result file A."""
    second: Annotated[Path, tyro.conf.Positional]
    """Result file B; the difference shown is B - A."""


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """Show what training runs of equal budget scored, grouped by what they differ in."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Result files of `tdmpc-opt evaluate`, one per run; runs that differ in their seed alone
    become one row."""
    plot: Path | None = None
    """PNG of the scores with their intervals; none draws none."""


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Train one single-task policy per task with a library's SAC family."""

    tasks: str = "mt30"
    """`mt30`, or task names joined by commas."""
    steps: int = 250_000
    """Agent steps per task."""
    output: Path
    """Folder for fp16 policies (half-trained ones in `early/`), learning curves and the states
    to resume from."""
    algorithm: Literal["sac", "tqc", "crossq"] = "sac"
    """Algorithm of sbx-rl."""
    seed: int = 0
    """Seed of networks and exploration."""
    hidden: int = 256
    """Width of the two hidden layers."""
    envs: int = 4
    """Episodes driven in step with each other; more of them cost less time per agent step."""
    update_ratio: float = 0.5
    """Gradient updates per agent step."""
    n_steps: int = 1
    """Rewards summed before the value of a state is asked for."""
    warm_up: str | None = None
    """Who drives the first episodes instead of random actions: a checkpoint or zoo name, or a
    folder of experts. Finds rewards that random actions do not."""
    warm_up_task: str | None = None
    """Task of the same body that this driver knows; none means the trained task itself."""
    warm_up_episodes: int = 20
    """Episodes that it drives, a multiple of `envs`."""
    episodes: int = 10
    """Episodes that measure the finished policy."""
    save_every: int = 25_000
    """Agent steps between saved states; a killed run loses at most these."""
    workers: int = 0
    """Tasks trained at once, one process each; 0 takes one per CPU core."""

    def __post_init__(self) -> None:
        """Refuse counts that cannot be run."""
        counts = (self.steps, self.hidden, self.episodes, self.save_every, self.envs)
        if min(*counts, self.n_steps) < 1:
            raise InputError(
                "steps, hidden, episodes, save_every, envs and n_steps must be at least 1"
            )
        updates = self.envs * self.update_ratio
        if updates < 1 or updates != round(updates):
            raise InputError(
                f"envs * update_ratio must be a whole number of updates, got {updates:g}"
            )
        if self.warm_up_episodes < self.envs or self.warm_up_episodes % self.envs:
            raise InputError(f"warm_up_episodes must be a multiple of envs ({self.envs})")


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """Roll out a policy into a dataset on disk, with labels to imitate."""

    policy: str
    """Checkpoint file or zoo name, a folder of experts, or the word random."""
    tasks: str | None = None
    """Task names joined by commas, or `mt30`; none means every task of the policy."""
    episodes: int = 20
    """Episodes per task."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise added to the actions, in action units."""
    seed: int = 0
    """Offset of the environment seeds, which start at 1,000,000."""
    mode: Mode = "policy"
    """How a checkpoint acts: by its policy network, or by planning."""
    label: str | None = None
    """Checkpoint file, zoo name or folder of experts whose actions in the states on the way are
    stored for imitation; none means the policy's own actions without the noise."""
    label_mode: Mode = "policy"
    """How a checkpoint labels: by its policy network, or by planning."""
    output: Path
    """Dataset folder; a new run adds to what is there."""
    device: Device = "auto"
    """Where the networks run."""
    workers: int = 0
    """Processes that share the tasks; 0 takes one per CPU core."""

    def __post_init__(self) -> None:
        """Refuse counts and noise that cannot be run."""
        if self.episodes < 1 or self.seed < 0 or self.noise < 0:
            raise InputError("episodes must be at least 1; seed and noise at least 0")
        if self.label is None and self.label_mode == "planner":
            raise InputError("a label mode needs to know who labels; name it with --label")


@dataclass(frozen=True, kw_only=True)
class DataInfoConfig:
    """Show what a dataset holds, and draw its returns."""

    data: Annotated[Path, tyro.conf.Positional]
    """Dataset folder."""
    plot: Path | None = None
    """PNG of return histograms; none writes `returns.png` into the dataset folder."""


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
    """Weight of the squared distance between the policy's mean and the dataset's label (its
    action, where it has no labels), which trains the policy and, through the latents, the
    encoder and the dynamics."""
    rho: float = 0.5
    """Factor by which each further step of the horizon counts less."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a world model on a dataset, without a teacher."""

    data: Annotated[Path | tuple[Path, ...], tyro.conf.arg(metavar="PATH [PATH ...]")]
    """Dataset folder, or several whose episodes are drawn from as one."""
    on_policy: Path | None = None
    """Further dataset folder, of what the student visited itself: collected with labels between
    two calls of the same run, it may grow where `data` must stay as it is."""
    on_policy_share: float | None = None
    """Share of each batch that `on_policy` gives; none draws uniformly from all data."""
    output: Path
    """Run folder: model.safetensors, metrics.csv, config.json; the same command resumes it."""
    size: Size = "1"
    """Size of the model in millions of parameters: the published ones, and 0.3 of our own."""
    updates: int
    """Gradient updates in all, those before a resume included."""
    seed: int = 0
    """Seed of initial weights, sampling, dropout and policy noise."""
    batch_size: int = 256
    """Slices per update."""
    horizon: int = 3
    """Latent steps of a slice."""
    weights: LossWeights = field(default_factory=LossWeights)
    """Weights of the objective."""
    lr: float = 3e-4
    """Adam's learning rate."""
    encoder_lr_scale: float = 0.3
    """Factor on the learning rate of the encoder."""
    grad_clip: float = 20.0
    """Largest gradient norm of each of the two optimisers."""
    tau: float = 0.01
    """Step of the target Qs and of the running value scale towards the newest."""
    start: str | None = None
    """Checkpoint whose weights the training starts from; none starts from random ones."""
    device: Device = "auto"
    """Where to train."""
    precision: Precision = "32-true"
    """Lightning Fabric's precision."""
    log_every: int = 50
    """Updates between rows of metrics.csv."""
    save_every: int = 500
    """Updates between checkpoints."""
    eval_every: int = 0
    """Updates between evaluations by the policy alone; 0 evaluates never."""
    eval_episodes: int = 2
    """Episodes per task of such an evaluation."""
    wandb: bool = False
    """Log to Weights & Biases as well; needs its package and login."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """The dataset folders that must not change during a run."""
        return (self.data,) if isinstance(self.data, Path) else self.data

    def __post_init__(self) -> None:
        """Refuse counts and shares that cannot be run."""
        if not self.folders:
            raise InputError("name a dataset folder at least with --data")
        share = self.on_policy_share
        if share is not None and (self.on_policy is None or not 0 <= share <= 1):
            raise InputError("on_policy_share is from 0 to 1, and needs --on-policy")
        counts = (self.updates, self.batch_size, self.horizon, self.log_every, self.save_every)
        if min(counts) < 1:
            raise InputError(
                "updates, batch_size, horizon, log_every and save_every must be at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainConfig):
    """Train a student on a dataset with frozen teachers (TD-MPC-Opt, arXiv:2507.01823)."""

    teacher: str
    """Checkpoint file of the teacher, or a zoo name; or experts, for `policy_mse` alone."""
    more_teachers: tuple[str, ...] = ()
    """Further teachers; each answers for the tasks that none before it knows."""
    policy_teacher: str | None = None
    """Folder of experts or checkpoint that is asked for policies first; the others answer for
    tasks it does not know. None asks the others alone."""
    terms: DistillWeights = field(default_factory=DistillWeights)
    """Weights of the distillation terms."""
    reward_steps: Literal["first", "all"] = "first"
    """Steps of a slice at which the reward terms compare; the paper's is the first alone."""
    temperature: float = 1.0
    """Divides the two-hot logits of student and teacher in `reward_kl` and `value_kl`."""
    teacher_precision: Literal["32-true", "bf16-true"] = "32-true"
    """Number format in which teachers compute; half precision is slower on most CPUs."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        super().__post_init__()
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"temperature must be above 0, got {self.temperature}")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Distil the bundled teacher on this machine and show what it bought."""

    output: Path = Path("demo-output")
    """Folder for data, runs, result files and plots."""
    updates: int = 1500
    """Gradient updates of each student."""
    episodes: int = 10
    """Evaluation episodes per task."""
