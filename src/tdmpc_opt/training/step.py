"""One gradient update of a world model and its policy."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from tdmpc_opt.configs import TrainConfig
from tdmpc_opt.data.sampler import Batch
from tdmpc_opt.errors import NonFiniteError
from tdmpc_opt.model.layers import Dense
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.training.objective import (
    ModelLosses,
    PolicyLosses,
    Rollout,
    RunningScale,
    imitation,
    model_losses,
    policy_losses,
    td_target,
)
from tdmpc_opt.training.ranks import ALONE, Ranks
from tdmpc_opt.training.terms import Losses, Supervision, model_terms, policy_terms

TAU = 0.01
"""Step of the target Qs and of the running value scale towards the newest."""
GRAD_CLIP = 20.0
"""Largest gradient norm of each of the two optimisers."""


class _ModelObjective(nn.Module):
    """The loss of all but the policy, as a module of which Fabric averages the gradients."""

    def __init__(self, model: WorldModel, projection: Dense | None, ranks: Ranks) -> None:
        super().__init__()
        self.model, self.projection, self._ranks = model, projection, ranks

    def forward(
        self,
        batch: Batch,
        config: TrainConfig,
        supervision: Supervision | None,
        labelled: Batch | None,
        generator: torch.Generator,
    ) -> "tuple[Tensor, ModelLosses, Rollout, Losses, _States | None]":
        """Return the loss and what it was computed from."""
        model, ranks = self.model, self._ranks
        with torch.no_grad():
            next_z = model.encode(batch.obs[1:], batch.task)
            target = td_target(
                *(model, next_z, batch.reward, batch.task, generator, ranks),
                td_lambda=config.td_lambda,
                terminated=batch.terminated,
            )
        losses, rollout = model_losses(model, batch, next_z, target, config.weights, ranks)
        total = losses.total(config.weights)
        distilled: Losses = {}
        if supervision is not None:
            distilled = model_terms(model, rollout, batch, supervision, self.projection)
            total = total + supervision.total(distilled)
        states = None if labelled is None else _States.of(model, labelled)
        if states is not None:
            total = total + config.weights.behaviour * states.imitation(model, ranks)
        return total, losses, rollout, distilled, states


class _PolicyObjective(nn.Module):
    """The policy's loss, likewise."""

    def __init__(self, model: WorldModel, ranks: Ranks) -> None:
        super().__init__()
        self.model, self._ranks = model, ranks

    def forward(
        self,
        batch: Batch,
        config: TrainConfig,
        rollout: Rollout,
        supervision: Supervision | None,
        states: "_States | None",
        scale: RunningScale,
        generator: torch.Generator,
    ) -> tuple[Tensor, PolicyLosses]:
        """Return the loss and what it was computed from."""
        model, weights = self.model, config.weights
        zs = rollout.zs.detach()
        losses, output = policy_losses(model, zs, batch, scale, weights, generator)
        total = losses.total(weights)
        if supervision is not None:
            mask = model.mask(batch.task)
            total = total + supervision.total(
                policy_terms(output, mask, supervision, rollout.decay)
            )
        if states is not None:
            behaviour = states.detached().imitation(model, self._ranks)
            total = total + weights.behaviour * behaviour
        return total, losses


@dataclass
class Learner:
    """What an update changes."""

    model: WorldModel
    model_objective: nn.Module
    policy_objective: nn.Module
    model_optimizer: Optimizer
    """Owns all but the policy and the target Qs."""
    policy_optimizer: Optimizer
    """Owns the policy alone."""
    scale: RunningScale
    generator: torch.Generator
    """Source of policy noise and of the choice of Qs; dropout uses torch's own."""
    ranks: Ranks = ALONE
    """Who trains the same model on other slices of each batch."""
    projection: Dense | None = None
    """From the model's latents to its teacher's; the model's optimiser owns it, no file of
    weights holds it."""
    update: int = 0
    """Updates done."""
    skipped: int = 0
    """Batches skipped for NaN or infinity."""
    waits: bool = True
    """Whether the host waits for the losses of each update, and raises where one is not finite.
    Without it a GPU leaves out such an update, and the host reads that later."""


def build_learner(
    fabric: Fabric,
    model: WorldModel,
    config: TrainConfig,
    projection: Dense | None = None,
    ranks: Ranks = ALONE,
) -> Learner:
    """Put the model on its device and give it optimisers.

    Args:
        fabric: The device.
        model: What is trained.
        config: Learning rates.
        projection: Trained with the model, for the latent distillation term.
        ranks: Who trains the same model; all start from the weights of the first.

    Source:
        TD-MPC2, arXiv:2310.16828, hyper-parameters: Adam, a smaller rate for the encoder, and
        eps 1e-5 for the policy.
    """
    fabric.to_device(model)
    model.target_q_ensemble.requires_grad_(False)
    encoder = list(model.encoder.parameters())
    apart = {id(p) for part in (model.encoder, model.policy_head) for p in part.parameters()}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
    if projection is not None:
        rest += fabric.to_device(projection).parameters()
    # Of each objective Fabric averages the gradients of what requires them now.
    with _only(model, *(part for part in model.children() if part is not model.policy_head)):
        model_objective = _set_up(fabric, _ModelObjective(model, projection, ranks), ranks)
    with _only(model, model.policy_head):
        policy_objective = _set_up(fabric, _PolicyObjective(model, ranks), ranks)
    groups: list[dict[str, Any]] = [
        {"params": rest},
        {"params": encoder, "lr": config.lr * config.encoder_lr_scale},
    ]
    # One pass over the weights instead of a dozen, which the device itself can leave out.
    fused = True if fabric.device.type in ("cpu", "cuda") else None
    adam = torch.optim.Adam(groups, lr=config.lr, fused=fused)
    policy = model.policy_head.parameters()
    policy_adam = torch.optim.Adam(policy, lr=config.lr, eps=1e-5, fused=fused)
    return Learner(
        model=model,
        model_objective=model_objective,
        policy_objective=policy_objective,
        model_optimizer=_optimizer(fabric, adam),
        policy_optimizer=_optimizer(fabric, policy_adam),
        scale=RunningScale(TAU, fabric.device, ranks),
        generator=torch.Generator().manual_seed(config.seed),
        ranks=ranks,
        projection=projection,
        waits=fabric.device.type != "cuda" or ranks.count > 1,
    )


def _set_up(fabric: Fabric, objective: nn.Module, ranks: Ranks) -> nn.Module:
    """Let Fabric's strategy wrap an objective where there are several ranks."""
    return objective if ranks.count == 1 else fabric.strategy.setup_module(objective)


def _optimizer(fabric: Fabric, optimizer: Optimizer) -> Optimizer:
    # Fabric's wrapper behaves as an Optimizer without being one by type.
    return cast(Optimizer, fabric.setup_optimizers(optimizer))


def train_step(
    fabric: Fabric,
    learner: Learner,
    batch: Batch,
    config: TrainConfig,
    supervision: Supervision | None = None,
    labelled: Batch | None = None,
) -> dict[str, Tensor]:
    """Update the model, then its policy, then the target Qs.

    Of several ranks all call it, each with its slices of the batch.

    Args:
        fabric: Device and precision.
        learner: Changed in place.
        batch: Slices of the horizon's length, on the model's device.
        config: Weights and rates.
        supervision: Outputs of teachers for the batch; None trains without.
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
    _set_rates(learner, config)
    if learner.ranks.count > 1:  # each rank has dropout of its own, the same after a resume
        seed = np.random.SeedSequence((config.seed, learner.update, learner.ranks.rank))
        torch.manual_seed(int(seed.generate_state(1)[0]))
    with fabric.autocast():
        total, losses, rollout, distilled, states = learner.model_objective(
            batch, config, supervision, labelled, learner.generator
        )
    norm, finite = _descend(fabric, learner, learner.model_optimizer, total)
    # Before the policy's update: the public code shortens rows at each look-up.
    model.renormalize_task_embedding()
    policy, policy_norm, finite = _update_policy(
        fabric, learner, batch, config, rollout, supervision, states, finite
    )
    _move_targets(model, TAU if learner.waits else TAU * finite)
    learner.update += 1
    terms = {
        "loss": total.detach(),
        "consistency": losses.consistency.detach(),
        "reward": losses.reward.detach(),
        "value": losses.value.detach(),
        "policy": policy.objective.detach(),
        "behaviour": policy.behaviour.detach(),
        "grad_norm": norm,
        "policy_grad_norm": policy_norm,
        "q_scale": learner.scale.value,
        **({} if losses.termination is None else {"termination": losses.termination.detach()}),
        **{f"distill_{name}": loss.detach() for name, loss in distilled.items()},
    }
    if not learner.waits:
        terms = {name: torch.where(finite, value, 0.0) for name, value in terms.items()}
        terms["finite"] = finite
    return terms | _weights(supervision)


@dataclass(frozen=True, slots=True)
class _States:
    """Labelled states in addition to the rollout, each encoded."""

    zs: Tensor
    batch: Batch

    @classmethod
    def of(cls, model: WorldModel, batch: Batch) -> "_States":
        return cls(model.encode(batch.obs[:-1], batch.task), batch)

    def detached(self) -> "_States":
        return _States(self.zs.detach(), self.batch)

    def imitation(self, model: WorldModel, ranks: Ranks) -> Tensor:
        return imitation(model, self.zs, self.batch, ranks)


def _update_policy(
    fabric: Fabric,
    learner: Learner,
    batch: Batch,
    config: TrainConfig,
    rollout: Rollout,
    supervision: Supervision | None,
    states: _States | None,
    model_finite: Tensor,
) -> tuple[PolicyLosses, Tensor, Tensor]:
    """Step the policy alone; return losses, the norm of its gradient, and if all is finite."""
    scale_before = learner.scale.value
    with _only(learner.model, learner.model.policy_head):
        with fabric.autocast():
            total, losses = learner.policy_objective(
                batch, config, rollout, supervision, states, learner.scale, learner.generator
            )
        try:
            norm, finite = _descend(
                fabric, learner, learner.policy_optimizer, total, model_finite
            )
        except NonFiniteError:
            learner.scale.value = scale_before
            raise
    if not learner.waits:
        learner.scale.value = torch.where(finite, learner.scale.value, scale_before)
    return losses, norm, finite


def _set_rates(learner: Learner, config: TrainConfig) -> None:
    """Let the learning rates fall on a line to zero, where the run asks for it.

    Source:
        Straight to Zero, arXiv:2502.15938: for how it is done, and that a line does best.
    """
    if config.lr_zero_at is None:
        return
    lr = config.lr * (1 - learner.update / config.lr_zero_at)
    rest, encoder = learner.model_optimizer.param_groups
    rest["lr"], encoder["lr"] = lr, lr * config.encoder_lr_scale
    learner.policy_optimizer.param_groups[0]["lr"] = lr


def _weights(supervision: Supervision | None) -> dict[str, Tensor]:
    weights = supervision.weights if supervision is not None else {}
    return {
        f"weight_{name}": torch.tensor(w, dtype=torch.float64) for name, w in weights.items()
    }


def _descend(
    fabric: Fabric,
    learner: Learner,
    optimizer: Optimizer,
    loss: Tensor,
    before: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Step; return the norm of the gradient, and whether it, loss and `before` are finite."""
    optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    loss = learner.ranks.mean(loss.detach())  # NaN on one rank is NaN on all
    norm = fabric.clip_gradients(
        learner.model, optimizer, max_norm=GRAD_CLIP, error_if_nonfinite=False
    )
    assert norm is not None
    finite = torch.isfinite(loss + norm)
    if not learner.waits:
        finite = finite if before is None else finite & before
        # What torch's scaler of gradients does too: the fused kernel reads it on the device.
        cast(Any, optimizer).optimizer.found_inf = (~finite).float()
    elif not finite:
        what = "a gradient" if torch.isfinite(loss) else "the loss"
        raise NonFiniteError(f"{what} is NaN or infinite")
    optimizer.step()
    return norm.detach(), finite


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
