"""Training rounded weights to act and plan as the agent they were made from.

Quantisation-aware distillation: the agent in fp32 teaches, and the student computes with
rounded weights in every update, so that training acts on the values that the file contains.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from tdmpc_opt.checkpoints.checkpoint import Checkpoint, build
from tdmpc_opt.compression.calibration import (
    Observations,
    Sequences,
    latents,
    try_actions,
)
from tdmpc_opt.compression.rounding import LIMITS
from tdmpc_opt.model.quantized import QuantizedWeight, quantized_weight
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.progress import Progress

_BATCH = 128
_LR, _SCALE_LR = 3e-4, 1e-3
_LATENT, _ACTION, _VALUE = 20.0, 10.0, 1.0
"""Weights of the terms."""


def distilled(
    small: Checkpoint,
    teacher: WorldModel,
    observations: Observations,
    updates: int,
    progress: Progress,
) -> Checkpoint:
    """Return a rounded agent after training its codes, scales, biases and norms.

    Each update takes observations and new action sequences as a planner tries them. The student
    follows the teacher's latents along them, its actions in them, and its distributions over
    rewards and values. Gradients pass the rounding as if it were none.

    Source:
        Straight-through gradients: arXiv:1308.3432. Learnt scales: arXiv:1902.08153.
    """
    student, roundings = _student(small)
    for parameter in (*teacher.parameters(), *student.parameters()):
        parameter.requires_grad_(False)
    optimizer = torch.optim.Adam(_trained(student), lr=_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    source = torch.Generator().manual_seed(0)
    for update in range(updates):
        rows = torch.randint(len(observations), (_BATCH,), generator=source)
        starts = Observations(observations.obs[rows], observations.task[rows])
        with torch.no_grad():
            tried = try_actions(teacher, starts, update) if teacher.can_plan else None
            target = _predict(teacher, starts, tried)
        loss = _loss(_predict(student, starts, tried), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.update(update + 1, updates, f"loss {loss.item():.4f}")
    return _stored(small, student, roundings)


class _Rounding(nn.Module):
    """Rounds a weight to codes times scales; both may be learnt."""

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        self.format, self._group, self._columns = weight.format, weight.group, weight.columns
        self.log_scale = nn.Parameter(weight.scale.float().log())

    def forward(self, weight: Float[Tensor, "*heads out in_dim"]) -> Tensor:
        """Return the rounded weight, with the gradient of one that is clipped only."""
        spread = self._spread(self.log_scale.exp())
        steps = (weight / spread).clamp(*LIMITS[self.format])
        return (steps + (steps.round() - steps).detach()) * spread

    def stored(self, weight: Float[Tensor, "*heads out in_dim"]) -> QuantizedWeight:
        """Return the weight as a file stores it."""
        scale = self.log_scale.exp().half()
        codes = (weight / self._spread(scale.float())).round().clamp(*LIMITS[self.format])
        return quantized_weight(codes.to(torch.int8), scale, self.format, self._group)

    def _spread(self, scale: Tensor) -> Tensor:
        return scale.repeat_interleave(self._group, dim=-1)[..., : self._columns]


def _student(small: Checkpoint) -> tuple[WorldModel, dict[str, _Rounding]]:
    """Return the rounded agent in floats whose weights are rounded when they are used."""
    floats = {name: weight.dense() for name, weight in small.quantized.items()}
    student = build(
        replace(small, tensors=small.tensors | floats, quantized={}), policy_will_do=True
    )
    roundings = {}
    for name, weight in small.quantized.items():
        roundings[name] = _Rounding(weight)
        dense = student.get_submodule(name.removesuffix(".weight"))
        parametrize.register_parametrization(dense, "weight", roundings[name])
    return student, roundings


def _trained(student: WorldModel) -> list[dict[str, object]]:
    """Return what is learnt: all but the task embedding and the target Qs."""
    usual: list[Tensor] = []
    scales: list[Tensor] = []
    for name, parameter in student.named_parameters():
        if name.startswith(("task_embedding.", "target_q_ensemble.")):
            continue
        (scales if name.endswith("log_scale") else usual).append(parameter.requires_grad_())
    return [{"params": usual}, {"params": scales, "lr": _SCALE_LR}]


class _Predictions(NamedTuple):
    """What a model predicts along action sequences."""

    latent: Float[Tensor, "steps rows latent"]
    action: Float[Tensor, "steps rows action"]
    logits: tuple[Tensor, ...]
    """Over rewards, values and, of episodic models, ends; empty for a policy alone."""


def _predict(model: WorldModel, starts: Observations, tried: Sequences | None) -> _Predictions:
    task = starts.task
    if tried is None:
        z = model.encode(starts.obs, task).unsqueeze(0)
        return _Predictions(z, model.policy(z, task).mean, ())
    z = latents(model, tried)
    rewards = model.reward(z[:-1], tried.actions, task)
    logits: tuple[Tensor, ...] = (rewards, model.q_values(z[-1], tried.last, task))
    if model.config.episodic:
        ends = model.termination(z[1:], task)
        logits += (torch.cat([ends, torch.zeros_like(ends)], dim=-1),)
    return _Predictions(z, model.policy(z, task).mean, logits)


def _loss(student: _Predictions, teacher: _Predictions) -> Tensor:
    loss = _LATENT * (student.latent - teacher.latent).square().sum(-1).mean()
    loss = loss + _ACTION * (student.action - teacher.action).square().sum(-1).mean()
    for ours, theirs in zip(student.logits, teacher.logits, strict=True):
        a, b = (logits.log_softmax(-1).flatten(0, -2) for logits in (ours, theirs))
        loss = loss + _VALUE * functional.kl_div(a, b, reduction="batchmean", log_target=True)
    return loss


@torch.no_grad()
def _stored(
    small: Checkpoint, student: WorldModel, roundings: Mapping[str, _Rounding]
) -> Checkpoint:
    quantized = {}
    for name, rounding in roundings.items():
        dense: Any = student.get_submodule(name.removesuffix(".weight"))
        quantized[name] = rounding.stored(dense.parametrizations.weight.original)
        parametrize.remove_parametrizations(dense, "weight")
    state = student.state_dict()
    tensors = {name: state[name].half() for name in small.tensors}
    return replace(small, tensors=tensors, quantized=quantized)
