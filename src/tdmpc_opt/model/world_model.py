"""The multi-task world model: encoder, dynamics, reward, policy prior and Q ensemble."""

import math
from collections.abc import Collection
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from tdmpc_opt.model import two_hot
from tdmpc_opt.model.layers import Dense, Network, Tasks, mlp
from tdmpc_opt.schema import ModelConfig, TaskTable

LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0
NETWORKS = (
    *("dynamics", "reward_head", "termination_head", "policy_head"),
    *("q_ensemble", "target_q_ensemble"),
)
"""What a model may lack, in part or as a whole: all but task embedding and encoder."""


class PolicyOutput(NamedTuple):
    """The output of the policy prior for a batch of latents."""

    mean: Float[Tensor, "*batch action"]
    """Mean action after tanh, in [-1, 1]; 0 in padded dimensions."""
    log_std: Float[Tensor, "*batch action"]
    """Log standard deviation before tanh; 0 in padded dimensions."""
    action: Float[Tensor, "*batch action"]
    """Sampled action in [-1, 1]; 0 in padded dimensions."""
    log_prob: Float[Tensor, "*batch 1"]
    """Log-probability of `action` as the public code scales it, in nats."""
    location: Float[Tensor, "*batch action"]
    """Mean before tanh; 0 in padded dimensions."""


class WorldModel(nn.Module):
    """TD-MPC2's implicit world model for one or many tasks.

    `task` arguments are ids [B]: rows of `tasks`. Inputs may have further leading axes
    ([H, B, obs]); the ids then broadcast over them. A single-task model (task_dim 0) ignores
    them, and None will do.

    Source:
        TD-MPC2, arXiv:2310.16828, section 3.
    """

    action_mask: Tensor
    discount: Tensor
    bins: Tensor

    def __init__(
        self,
        config: ModelConfig,
        tasks: TaskTable,
        generator: torch.Generator | None = None,
        *,
        draw: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.tasks = tasks
        c = config
        embedded = c.latent_dim + c.task_dim
        empty = None if draw else torch.empty(c.num_tasks, c.task_dim)
        self.task_embedding = (
            nn.Embedding(c.num_tasks, c.task_dim, _weight=empty) if c.task_dim else None
        )
        widths = [c.obs_dim + c.task_dim, *[c.enc_dim] * max(c.num_enc_layers - 1, 1)]
        self.encoder = Network(
            *(Dense(a, b) for a, b in pairwise(widths)),
            Dense(widths[-1], c.latent_dim, activation="simnorm", simnorm_dim=c.simnorm_dim),
        )
        self.dynamics = mlp(
            embedded + c.action_dim,
            c.mlp_dim,
            c.latent_dim,
            last="simnorm",
            simnorm_dim=c.simnorm_dim,
        )
        self.reward_head = mlp(embedded + c.action_dim, c.mlp_dim, c.num_bins)
        self.termination_head = mlp(embedded, c.mlp_dim, 1) if c.episodic else nn.Sequential()
        self.policy_head = mlp(embedded, c.mlp_dim, 2 * c.action_dim)
        self.q_ensemble, target = (
            mlp(
                embedded + c.action_dim,
                c.mlp_dim,
                c.num_bins,
                heads=c.num_q,
                dropout=c.dropout,
            )
            for _ in range(2)
        )
        self.target_q_ensemble = target.requires_grad_(False)
        self.register_buffer("bins", bin_centres(c), persistent=False)
        mask = torch.from_numpy(tasks.action_mask())
        self.register_buffer("action_mask", mask, persistent=False)
        discount = torch.from_numpy(tasks.discounts())
        self.register_buffer("discount", discount, persistent=False)
        if draw:
            self.initialize(generator)

    @classmethod
    def outline(cls, config: ModelConfig, tasks: TaskTable) -> "WorldModel":
        """Return a model on the meta device: names and shapes of the weights, no values."""
        with torch.device("meta"):
            # Drawing there would load torch's compiler, which takes 2 s.
            return cls(config, tasks, draw=False)

    def initialize(self, generator: torch.Generator | None) -> None:
        """Draw all weights anew; the last layers of reward and Q start at zero."""
        if self.task_embedding is not None:
            nn.init.uniform_(self.task_embedding.weight, -0.02, 0.02, generator=generator)
        zeroed = (self.reward_head[-1], self.q_ensemble[-1], self.target_q_ensemble[-1])
        for module in self.modules():
            if isinstance(module, Dense):
                module.initialize(generator, zero=any(module is last for last in zeroed))
        self.target_q_ensemble.load_state_dict(self.q_ensemble.state_dict())

    def train(self, mode: bool = True) -> "WorldModel":
        """Switch dropout of the online Qs on or off; the targets never drop out."""
        super().train(mode)
        self.target_q_ensemble.eval()
        return self

    @torch.no_grad()
    def renormalize_task_embedding(self) -> None:
        """Rescale in place the rows of the task embedding that are longer than 1.

        The public code does this at each look-up (max_norm=1); once after each change of the
        weights is the same, costs less and leaves a frozen model untouched.
        """
        if self.task_embedding is None:
            return
        weight = self.task_embedding.weight
        weight.copy_(unit_rows(weight))

    def keep_only(self, networks: Collection[str]) -> None:
        """Empty those of the `NETWORKS` that are not named."""
        for name in NETWORKS:
            if name not in networks:
                setattr(self, name, nn.Sequential())

    @property
    def can_plan(self) -> bool:
        """False where only encoder and policy are left."""
        return len(self.dynamics) > 0

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights, in which the model computes."""
        return self.bins.dtype

    def task_rows(self, task: Int[Tensor, " batch"] | None) -> Tasks | None:
        """Return the task embeddings and the row of each id; None without an embedding."""
        if self.task_embedding is None:
            return None
        assert task is not None, "a multi-task model needs task ids"
        every = torch.arange(self.config.num_tasks, device=task.device)
        return Tasks(self.task_embedding(every), task)

    def mask(self, task: Int[Tensor, " batch"] | None) -> Float[Tensor, "*batch action"]:
        """Return 1 for the task's real action dimensions and 0 for padded ones, [B, action]."""
        return self.action_mask[0] if task is None else self.action_mask[task]

    def encode(
        self, obs: Float[Tensor, "*batch obs"], task: Int[Tensor, " tasks"] | None
    ) -> Float[Tensor, "*batch latent"]:
        """Map padded observations to latent states z."""
        return self.encoder(obs, self.task_rows(task))

    def next(
        self,
        z: Float[Tensor, "*batch latent"],
        action: Float[Tensor, "*batch action"],
        task: Int[Tensor, " tasks"] | None,
    ) -> Float[Tensor, "*batch latent"]:
        """Predict the latent state after `action`."""
        return self.dynamics(z, self.task_rows(task), action)

    def reward(
        self,
        z: Float[Tensor, "*batch latent"],
        action: Float[Tensor, "*batch action"],
        task: Int[Tensor, " tasks"] | None,
    ) -> Float[Tensor, "*batch bins"]:
        """Predict the reward of `action` as two-hot logits; `decode` turns them to scalars."""
        return self.reward_head(z, self.task_rows(task), action)

    def termination(
        self, z: Float[Tensor, "*batch latent"], task: Int[Tensor, " tasks"] | None
    ) -> Float[Tensor, "*batch 1"]:
        """Predict whether `z` has ended the episode, as a logit: above 0 it has."""
        return self.termination_head(z, self.task_rows(task))

    def q_values(
        self,
        z: Float[Tensor, "*batch latent"],
        action: Float[Tensor, "*batch action"],
        task: Int[Tensor, " tasks"] | None,
        heads: Int[Tensor, " heads"] | None = None,
        *,
        target: bool = False,
    ) -> Float[Tensor, "heads *batch bins"]:
        """Predict returns as two-hot logits, one set per member of the (target) ensemble.

        `heads` are the members to compute; None means all.
        """
        ensemble = self.target_q_ensemble if target else self.q_ensemble
        inputs = (z, self.task_rows(task), action)
        if heads is None:
            return ensemble(*inputs)
        weights = ensemble.state_dict(keep_vars=True)
        chosen = {name: weight[heads] for name, weight in weights.items()}
        return functional_call(ensemble, chosen, inputs)

    def policy(
        self,
        z: Float[Tensor, "*batch latent"],
        task: Int[Tensor, " tasks"] | None,
        noise: Float[Tensor, "*batch action"] | None = None,
    ) -> PolicyOutput:
        """Propose actions for latents, sampled by standard normal noise; None is no noise."""
        raw = self.policy_head(z, self.task_rows(task))
        mask = self.mask(task)
        mean, log_std = raw.chunk(2, dim=-1)
        mean, log_std = mean * mask, log_std_of(log_std) * mask
        noise = torch.zeros_like(mean) if noise is None else noise * mask
        action = torch.tanh(mean + noise * log_std.exp())
        gaussian = (-0.5 * noise**2 - log_std).sum(-1, keepdim=True) - 0.5 * math.log(
            2 * math.pi
        )
        squash = torch.log(torch.relu(1 - action**2) + 1e-6).sum(-1, keepdim=True)
        # The public code multiplies by the number of action dimensions; kept to match it.
        log_prob = gaussian * mask.sum(-1, keepdim=True) - squash
        return PolicyOutput(torch.tanh(mean), log_std, action, log_prob, mean)

    def decode(self, logits: Float[Tensor, "*batch bins"]) -> Float[Tensor, "*batch 1"]:
        """Turn two-hot logits of reward or Q into scalars in environment units."""
        return two_hot.decode(logits, self.bins).unsqueeze(-1)

    def soft_cross_entropy(
        self, logits: Float[Tensor, "*batch bins"], target: Float[Tensor, "*batch 1"]
    ) -> Float[Tensor, "*batch"]:
        """Return the cross-entropy of two-hot logits against raw scalars, in nats."""
        return two_hot.soft_cross_entropy(logits, target.squeeze(-1), self.bins)


def with_termination_head(
    model: WorldModel, generator: torch.Generator | None = None
) -> WorldModel:
    """Return the model itself if it predicts terminations, else a copy with a new head."""
    if model.config.episodic:
        return model
    more = WorldModel(replace(model.config, episodic=True), model.tasks, generator)
    more.load_state_dict(model.state_dict(), strict=False)
    return more.eval()


def bin_centres(config: ModelConfig) -> Float[Tensor, " bins"]:
    """Return the centres of the two-hot bins, in symlog space."""
    # From NumPy, so that they are real even when a module is built on the meta device.
    limit = config.bin_limit
    return torch.from_numpy(np.linspace(-limit, limit, config.num_bins, dtype=np.float32))


def unit_rows(x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
    """Return `x` with the rows that are longer than 1 scaled down to 1."""
    norm = x.norm(dim=-1, keepdim=True)
    return x * torch.where(norm > 1, 1 / (norm + 1e-7), torch.ones_like(norm))


def log_std_of(raw: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Squash the policy's raw output into the range of the log standard deviation."""
    return LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (torch.tanh(raw) + 1)
