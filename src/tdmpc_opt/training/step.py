"""One gradient update of a world model and its policy."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Adam

from tdmpc_opt.configs.training import TrainConfig
from tdmpc_opt.data.sampler import Batch
from tdmpc_opt.errors import NonFiniteError
from tdmpc_opt.model.layers import Dense
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.training.distillation import Distillation
from tdmpc_opt.training.losses import (
    Losses,
    ModelLosses,
    PolicyLosses,
    Rollout,
    RunningScale,
    Supervision,
    imitation,
    model_losses,
    model_terms,
    policy_losses,
    policy_terms,
    td_target,
)
from tdmpc_opt.training.ranks import ALONE, Ranks

TAU = 0.01
"""Step of the target Qs and of the running value scale towards the newest."""
GRAD_CLIP = 20.0
"""Largest gradient norm of each of the two optimisers."""


@dataclass
class Learner:
    """What an update changes, and what it needs for that."""

    fabric: Fabric
    config: TrainConfig
    model: WorldModel
    model_objective: nn.Module
    policy_objective: nn.Module
    model_optimizer: Adam
    """Owns all but the policy and the target Qs."""
    policy_optimizer: Adam
    """Owns the policy alone."""
    scale: RunningScale
    generator: torch.Generator
    """Source of policy noise and of the choice of Qs; dropout uses torch's own."""
    ranks: Ranks
    """Who trains the same model on other slices of each batch."""
    distillation: Distillation | None
    """Teachers; the model's optimiser owns the projection to their latents, which no file of
    weights holds."""
    waits: bool
    """Whether the host waits for the losses of each update, and raises where one is not finite.
    Without it a GPU leaves out such an update, and the host reads that later."""
    update: int = 0
    """Updates done."""
    skipped: int = 0
    """Batches skipped for NaN or infinity."""

    @property
    def projection(self) -> Dense | None:
        """Maps the model's latents to its teacher's, where the latent term has a weight."""
        return self.distillation.projection if self.distillation else None


class _ModelObjective(nn.Module):
    """The loss of all but the policy, as a module of which Fabric averages the gradients."""

    def __init__(
        self,
        model: WorldModel,
        projection: Dense | None,
        config: TrainConfig,
        generator: torch.Generator,
        ranks: Ranks,
    ) -> None:
        super().__init__()
        self.model, self.projection = model, projection
        self._config, self._generator, self._ranks = config, generator, ranks

    def forward(
        self, batch: Batch, supervision: Supervision | None, labelled: Batch | None
    ) -> tuple[Tensor, ModelLosses, Rollout, Losses, Tensor | None]:
        """Return the loss, what it was computed from, and latents of the labelled states."""
        model, config, ranks = self.model, self._config, self._ranks
        with torch.no_grad():
            next_z = model.encode(batch.obs[1:], batch.task)
        target = td_target(model, next_z, batch, self._generator, ranks, config.td_lambda)
        losses, rollout = model_losses(model, batch, next_z, target, config.weights, ranks)
        total = losses.total(config.weights)
        distilled: Losses = {}
        if supervision is not None:
            distilled = model_terms(model, rollout, batch, supervision, self.projection)
            total = total + supervision.total(distilled)
        zs = None
        if labelled is not None:
            zs = model.encode(labelled.obs[:-1], labelled.task)
            total = total + config.weights.behaviour * imitation(model, zs, labelled, ranks)
        return total, losses, rollout, distilled, zs


class _PolicyObjective(nn.Module):
    """The policy's loss, likewise."""

    def __init__(
        self,
        model: WorldModel,
        config: TrainConfig,
        scale: RunningScale,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.model = model
        self._weights, self._scale, self._generator = config.weights, scale, generator

    def forward(
        self,
        batch: Batch,
        rollout: Rollout,
        supervision: Supervision | None,
        labelled: Batch | None,
        labelled_zs: Tensor | None,
    ) -> tuple[Tensor, PolicyLosses]:
        """Return the loss and what it was computed from."""
        model, weights, scale = self.model, self._weights, self._scale
        zs = rollout.zs.detach()
        losses, output = policy_losses(model, zs, batch, scale, weights, self._generator)
        total = losses.total(weights)
        if supervision is not None:
            mask = model.mask(batch.task)
            distilled = policy_terms(output, mask, supervision, rollout.decay)
            total = total + supervision.total(distilled)
        if labelled is not None and labelled_zs is not None:
            behaviour = imitation(model, labelled_zs.detach(), labelled, scale.ranks)
            total = total + weights.behaviour * behaviour
        return total, losses


def build_learner(
    fabric: Fabric,
    model: WorldModel,
    config: TrainConfig,
    distillation: Distillation | None = None,
    ranks: Ranks = ALONE,
) -> Learner:
    """Put the model on its device and give it optimisers.

    Of several ranks all start from the weights of the first.

    Source:
        TD-MPC2, arXiv:2310.16828, hyper-parameters: Adam, a smaller rate for the encoder, and
        eps 1e-5 for the policy.
    """
    fabric.to_device(model)
    model.target_q_ensemble.requires_grad_(False)
    encoder = list(model.encoder.parameters())
    apart = {id(p) for part in (model.encoder, model.policy_head) for p in part.parameters()}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
    projection = distillation.projection if distillation else None
    if projection is not None:
        rest += fabric.to_device(projection).parameters()
    scale = RunningScale(TAU, fabric.device, ranks)
    generator = torch.Generator().manual_seed(config.seed)
    model_objective: nn.Module = _ModelObjective(model, projection, config, generator, ranks)
    policy_objective: nn.Module = _PolicyObjective(model, config, scale, generator)
    # Of several ranks Fabric averages the gradients of what requires them now.
    parts = [part for part in model.children() if part is not model.policy_head]
    with _only(model, *parts):
        model_objective = fabric.strategy.setup_module(model_objective)
    with _only(model, model.policy_head):
        policy_objective = fabric.strategy.setup_module(policy_objective)
    groups: list[dict[str, Any]] = [
        {"params": rest},
        {"params": encoder, "lr": config.lr * config.encoder_lr_scale},
    ]
    # One pass over the weights instead of a dozen, which the device itself can leave out.
    fused = True if fabric.device.type in ("cpu", "cuda") else None
    policy = model.policy_head.parameters()
    return Learner(
        fabric,
        config,
        model,
        model_objective,
        policy_objective,
        model_optimizer=Adam(groups, lr=config.lr, fused=fused),
        policy_optimizer=Adam(policy, lr=config.lr, eps=1e-5, fused=fused),
        scale=scale,
        generator=generator,
        ranks=ranks,
        distillation=distillation,
        waits=fabric.device.type != "cuda" or ranks.count > 1,
    )


def train_step(
    learner: Learner, batch: Batch, labelled: Batch | None = None
) -> dict[str, Tensor]:
    """Update the model, then its policy, then the target Qs.

    Of several ranks all call it, each with its slices of the batch.

    Args:
        learner: Changed in place.
        batch: Slices of the horizon's length, on the model's device.
        labelled: Further slices, for the behaviour term alone.

    Returns:
        Loss terms and gradient norms before clipping, as detached scalars; of several ranks
        the losses are those of its own slices, and their mean is the batch's. Of a learner that
        does not wait also `finite`: False where the device left out the update, of which all
        terms are 0; it counts as an update.

    Raises:
        NonFiniteError: A loss or gradient is NaN or infinite, and the learner waits. What it
            belongs to has not been changed: neither network, or the model alone.

    Source:
        TD-MPC2, arXiv:2310.16828, algorithm 2; TD-MPC-Opt, arXiv:2507.01823, section 3.
    """
    model = learner.model.train()
    supervision = None
    if learner.distillation is not None:
        supervision = learner.distillation.supervision(batch, learner.update)
    _set_rates(learner)
    if learner.ranks.count > 1:  # each rank has dropout of its own, the same after a resume
        seeds = (learner.config.seed, learner.update, learner.ranks.rank)
        torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
    total, losses, rollout, distilled, zs = learner.model_objective(
        batch, supervision, labelled
    )
    norm, finite = _descend(learner, learner.model_optimizer, total)
    # Before the policy's update: the public code shortens rows at each look-up.
    model.renormalize_task_embedding()
    scale_before = learner.scale.value
    with _only(model, model.policy_head):
        policy_total, policy = learner.policy_objective(
            batch, rollout, supervision, labelled, zs
        )
        try:
            policy_norm, finite = _descend(
                learner, learner.policy_optimizer, policy_total, finite
            )
        except NonFiniteError:
            learner.scale.value = scale_before
            raise
    if not learner.waits:
        learner.scale.value = torch.where(finite, learner.scale.value, scale_before)
    _move_targets(model, TAU if learner.waits else TAU * finite)
    learner.update += 1
    terms = {
        "loss": total,
        **{field.name: getattr(losses, field.name) for field in fields(losses)},
        "policy": policy.objective,
        "behaviour": policy.behaviour,  # in place of the model's
        "grad_norm": norm,
        "policy_grad_norm": policy_norm,
        "q_scale": learner.scale.value,
        **{f"distill_{name}": loss for name, loss in distilled.items()},
    }
    return _reported(terms, supervision, None if learner.waits else finite)


def _reported(
    terms: dict[str, Tensor | None], supervision: Supervision | None, finite: Tensor | None
) -> dict[str, Tensor]:
    """Return what `train_step` does; `finite` is None where the host has waited for it."""
    found = {name: value.detach() for name, value in terms.items() if value is not None}
    if finite is not None:
        found = {name: torch.where(finite, value, 0.0) for name, value in found.items()}
        found["finite"] = finite
    for name, weight in (supervision.weights if supervision else {}).items():
        found[f"weight_{name}"] = torch.tensor(weight, dtype=torch.float64)
    return found


def _set_rates(learner: Learner) -> None:
    """Let the learning rates fall on a line to zero, where the run asks for it.

    Source:
        Straight to Zero, arXiv:2502.15938: for how it is done, and that a line does best.
    """
    config = learner.config
    if config.lr_zero_at is None:
        return
    lr = config.lr * (1 - learner.update / config.lr_zero_at)
    rest, encoder = learner.model_optimizer.param_groups
    rest["lr"], encoder["lr"] = lr, lr * config.encoder_lr_scale
    learner.policy_optimizer.param_groups[0]["lr"] = lr


def _descend(
    learner: Learner, optimizer: Adam, loss: Tensor, before: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Step; return the norm of the gradient, and whether it, loss and `before` are finite."""
    optimizer.zero_grad(set_to_none=True)
    learner.fabric.backward(loss)
    loss = learner.ranks.mean(loss.detach())  # NaN on one rank is NaN on all
    norm = learner.fabric.clip_gradients(
        learner.model, optimizer, max_norm=GRAD_CLIP, error_if_nonfinite=False
    )
    assert norm is not None
    finite = torch.isfinite(loss + norm)
    if not learner.waits:
        finite = finite if before is None else finite & before
        # What torch's scaler of gradients does too: the fused kernel reads it on the device.
        cast(Any, optimizer).found_inf = (~finite).float()
    elif not finite:
        what = "a gradient" if torch.isfinite(loss) else "the loss"
        raise NonFiniteError(f"{what} is NaN or infinite")
    optimizer.step()
    return norm, finite


@contextmanager
def _only(model: nn.Module, *parts: nn.Module) -> Iterator[None]:
    """Let gradients reach these parts alone: the others' would be thrown away."""
    kept = {id(parameter) for part in parts for parameter in part.parameters()}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in kept]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


@torch.no_grad()
def _move_targets(model: WorldModel, share: float | Tensor) -> None:
    targets: list[Tensor] = list(model.target_q_ensemble.parameters())
    online: list[Tensor] = list(model.q_ensemble.parameters())
    if isinstance(share, float):
        torch._foreach_lerp_(targets, online, share)
        return
    for target, value in zip(targets, online, strict=True):
        target.lerp_(value, share)
