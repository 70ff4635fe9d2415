"""One gradient update of a world model and its policy."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from tdmpc_opt.configs import TrainConfig
from tdmpc_opt.data.sampler import Batch
from tdmpc_opt.training.objective import (
    RunningScale,
    model_losses,
    policy_losses,
    td_target,
)
from tdmpc_opt.world_model.model import WorldModel


@dataclass
class Learner:
    """What an update changes."""

    model: WorldModel
    model_optimizer: Optimizer
    """Owns all but the policy and the target Qs."""
    policy_optimizer: Optimizer
    """Owns the policy alone."""
    scale: RunningScale
    generator: torch.Generator
    """Source of policy noise and of the choice of Qs; dropout uses torch's own."""
    update: int = 0
    """Updates done."""


def build_learner(fabric: Fabric, model: WorldModel, config: TrainConfig) -> Learner:
    """Put the model on its device and give it optimisers.

    Source:
        TD-MPC2, arXiv:2310.16828, hyper-parameters: Adam, a smaller rate for the encoder, and
        eps 1e-5 for the policy.
    """
    fabric.to_device(model)
    model.target_q_ensemble.requires_grad_(False)
    encoder = list(model.encoder.parameters())
    apart = {id(p) for part in (model.encoder, model.policy_head) for p in part.parameters()}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
    groups: list[dict[str, Any]] = [
        {"params": rest},
        {"params": encoder, "lr": config.lr * config.encoder_lr_scale},
    ]
    adam = torch.optim.Adam(groups, lr=config.lr)
    policy_adam = torch.optim.Adam(model.policy_head.parameters(), lr=config.lr, eps=1e-5)
    return Learner(
        model=model,
        model_optimizer=_set_up(fabric, adam),
        policy_optimizer=_set_up(fabric, policy_adam),
        scale=RunningScale(config.tau, fabric.device),
        generator=torch.Generator().manual_seed(config.seed),
    )


def _set_up(fabric: Fabric, optimizer: Optimizer) -> Optimizer:
    # Fabric's wrapper behaves as an Optimizer without being one by type.
    return cast(Optimizer, fabric.setup_optimizers(optimizer))


def train_step(
    fabric: Fabric,
    learner: Learner,
    batch: Batch,
    config: TrainConfig,
    teacher_reward: Float[Tensor, "batch 1"] | None = None,
    reward_weight: float = 0.0,
) -> dict[str, Tensor]:
    """Update the model, then its policy, then the target Qs.

    Args:
        fabric: Device and precision.
        learner: Changed in place.
        batch: Slices of the horizon's length, on the model's device.
        config: Weights and rates.
        teacher_reward: Decoded teacher rewards at (s_0, a_0).
        reward_weight: Weight d of the distance to them.

    Returns:
        Loss terms and gradient norms before clipping, as detached scalars.

    Source:
        TD-MPC2, arXiv:2310.16828, algorithm 2; TD-MPC-Opt, arXiv:2507.01823, section 3.
    """
    model = learner.model.train()
    with torch.no_grad(), fabric.autocast():
        next_z = model.encode(batch.obs[1:], batch.task)
        target = td_target(model, next_z, batch.reward, batch.task, learner.generator)
    with fabric.autocast():
        losses, zs = model_losses(model, batch, next_z, target, config.weights, teacher_reward)
        total = losses.total(config.weights, reward_weight)
    norm = _descend(fabric, model, learner.model_optimizer, total, config.grad_clip)
    with fabric.autocast(), _only(model, model.policy_head):
        policy = policy_losses(
            model, zs.detach(), batch, learner.scale, config.weights, learner.generator
        )
        policy_total = policy.total(config.weights)
    policy_norm = _descend(
        fabric, model, learner.policy_optimizer, policy_total, config.grad_clip
    )
    model.renormalize_task_embedding()
    _move_targets(model, config.tau)
    learner.update += 1
    return {
        "loss": total.detach(),
        "consistency": losses.consistency.detach(),
        "reward": losses.reward.detach(),
        "value": losses.value.detach(),
        "distill": losses.distill.detach(),
        "policy": policy.objective.detach(),
        "behaviour": policy.behaviour.detach(),
        "grad_norm": norm,
        "policy_grad_norm": policy_norm,
        "q_scale": learner.scale.value,
    }


def _descend(
    fabric: Fabric, model: nn.Module, optimizer: Optimizer, loss: Tensor, clip: float
) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    norm = fabric.clip_gradients(model, optimizer, max_norm=clip, error_if_nonfinite=False)
    optimizer.step()
    assert norm is not None
    return norm.detach()


@contextmanager
def _only(model: nn.Module, part: nn.Module) -> Iterator[None]:
    """Let gradients reach `part` alone: the others' would be thrown away."""
    kept = {id(parameter) for parameter in part.parameters()}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in kept]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


@torch.no_grad()
def _move_targets(model: WorldModel, tau: float) -> None:
    targets: list[Tensor] = list(model.target_q_ensemble.parameters())
    online: list[Tensor] = list(model.q_ensemble.parameters())
    torch._foreach_lerp_(targets, online, tau)
