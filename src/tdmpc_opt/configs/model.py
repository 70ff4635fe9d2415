"""Sizes of world models and budgets of their planner."""

import math
from dataclasses import dataclass
from typing import Literal

from tdmpc_opt.errors import InputError
from tdmpc_opt.task_table import TaskTable

Size = Literal["0.3", "1", "5", "19", "48", "317"]

_WIDEST = 1 << 16
"""Largest width: a file may state widths of networks that it does not hold."""


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
        """Refuse widths that cannot be built, so that no reader or writer takes them.

        Raises:
            InputError: The message says which.
        """
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
    prior_penalty: float = 0.0
    """What a sequence loses per squared distance from what the policy would do, summed over
    steps, as a share of what the policy's own sequences are worth. One action changes the
    return of a good policy by less than a value network errs; this keeps a plan from following
    those errors. Published: 0."""
    prior_hold: float = 0.0
    """What it loses besides, in units of return, whatever the policy is worth: a share holds
    nothing where no reward is foreseen, and there the errors are all that a plan could follow.
    Published: 0."""
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
        """Refuse budgets that cannot be run."""
        if not 0 <= self.policy_samples < self.samples:
            raise InputError("policy_samples must be at least 0 and below samples")
        if not 0 < self.elites <= self.samples:
            raise InputError("elites must be between 1 and samples")
        if self.horizon < 1 or self.iterations < 1:
            raise InputError("horizon and iterations must be at least 1")
        if not 1 <= self.replan_every <= self.horizon:
            raise InputError("replan_every must be between 1 and the horizon")
        if not 0 <= self.min_std <= self.max_std:
            raise InputError("min_std must be at least 0 and at most max_std")
        least = min(self.prior_penalty, self.prior_hold)
        if least < 0 or (self.held and not self.policy_samples):
            raise InputError(
                "prior_penalty and prior_hold are at least 0, and need policy_samples to know "
                "the policy by"
            )
        if not 0 <= self.warm_mean <= 1 or self.warm_std < 0 or self.converged_std < 0:
            raise InputError("warm_mean is in 0..1; warm_std, converged_std are at least 0")

    @property
    def held(self) -> bool:
        """Whether plans are held by the policy."""
        return bool(self.prior_penalty or self.prior_hold)
