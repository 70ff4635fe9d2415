"""The distillation terms: distances of a student from its teachers, as pure functions.

Each takes the student's output at some steps of its rollout, the teacher's at the same
steps of the real episode, and rho^t for at least as many steps; each returns a scalar.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tdmpc_opt.configs import DistillWeights
from tdmpc_opt.data.sampler import Batch
from tdmpc_opt.model.layers import Dense
from tdmpc_opt.model.world_model import PolicyOutput, WorldModel
from tdmpc_opt.training.objective import Rollout
from tdmpc_opt.training.teachers import TeacherTargets

Losses = dict[str, Tensor]
"""Distillation losses by the names of `DistillWeights`, scalars."""


@dataclass(frozen=True, slots=True)
class Supervision:
    """Outputs of the teachers for one batch, and the weight of each term in this update."""

    targets: TeacherTargets | None
    """None where every weight is 0 in this update."""
    weights: Mapping[str, float]
    """Weights in force, by term; a term that is off all along is left out."""

    def total(self, losses: Losses) -> Tensor | float:
        """Return the weighted sum of losses that is minimised (arXiv:2507.01823, eq. 1)."""
        return sum((self.weights[name] * loss for name, loss in losses.items()), 0.0)


@dataclass(frozen=True, slots=True)
class Distillation:
    """How a student learns from its teachers."""

    teachers: Callable[[Batch], TeacherTargets]
    """Their outputs for a batch, without gradients."""
    weights: DistillWeights
    projection: Dense | None
    """Trained with the student and thrown away: from its latents to the teacher's."""

    def supervision(self, batch: Batch, update: int) -> Supervision:
        """Return the teachers' outputs for a batch; none while every weight is 0.

        Args:
            batch: On the teachers' device.
            update: Updates done.
        """
        weights = self.weights.at(update)
        targets = self.teachers(batch) if any(weights.values()) else None
        return Supervision(targets, weights)


def model_terms(
    model: WorldModel,
    rollout: Rollout,
    batch: Batch,
    supervision: Supervision,
    projection: Dense | None,
) -> Losses:
    """Return the terms that train the model: all that have a weight.

    Args:
        model: The student in training.
        rollout: Its outputs along the batch.
        batch: The slices.
        supervision: The teachers' outputs.
        projection: Maps the student's latents to the teacher's; only `latent` needs it.
    """
    targets, weights, decay = supervision.targets, supervision.weights, rollout.decay
    losses: Losses = {}
    if targets is None:
        return losses
    if "reward_mse" in weights:
        teacher = _given(targets.reward)
        own = model.decode(rollout.reward_logits[: len(teacher)])
        losses["reward_mse"] = reward_mse(own, teacher, decay)
    if "reward_kl" in weights:
        teacher = _given(targets.reward_logits)
        own = rollout.reward_logits[: len(teacher)]
        losses["reward_kl"] = reward_kl(own, teacher, decay)
    if "value_kl" in weights:
        teacher = _given(targets.value_logits)
        losses["value_kl"] = value_kl(rollout.q_logits, teacher, decay)
    if "policy_mse" in weights or "policy_kl" in weights:
        still = rollout.zs.new_zeros(*rollout.zs.shape[:-1], batch.action.shape[-1])
        output = model.policy(rollout.zs, batch.task, still)
        losses |= policy_terms(output, model.mask(batch.task), supervision, decay)
    if "latent" in weights:
        assert projection is not None, "the latent term needs a projection"
        own = projection(rollout.zs)
        losses["latent"] = latent_kl(own, _given(targets.latent), projection.simnorm_dim, decay)
    return losses


def policy_terms(
    output: PolicyOutput,
    mask: Float[Tensor, "batch action"],
    supervision: Supervision,
    decay: Float[Tensor, " rows"],
) -> Losses:
    """Return the terms that train the policy, those of them that have a weight.

    Args:
        output: Output of the student's policy along the rollout.
        mask: 1 for real action dimensions.
        supervision: The teachers' outputs.
        decay: rho^t.
    """
    targets = supervision.targets
    losses: Losses = {}
    if targets is None:
        return losses
    if "policy_mse" in supervision.weights:
        goal = _given(targets.policy_location)
        losses["policy_mse"] = policy_mse(output.action, goal, mask, decay)
    if "policy_kl" in supervision.weights:
        goals = _given(targets.policy_location), _given(targets.policy_log_std)
        own = output.location, output.log_std
        losses["policy_kl"] = policy_kl(own, goals, mask, decay)
    return losses


def reward_mse(
    student: Float[Tensor, "steps batch 1"],
    teacher: Float[Tensor, "steps batch 1"],
    decay: Float[Tensor, " rows"],
) -> Float[Tensor, ""]:
    """Return the squared distance of decoded rewards, in environment units squared.

    Source:
        TD-MPC-Opt, arXiv:2507.01823, section 3, where the only step is the first.
    """
    return _over_steps((student - teacher).square().mean(-1), decay)


def reward_kl(
    student: Float[Tensor, "steps batch bins"],
    teacher: Float[Tensor, "steps batch bins"],
    decay: Float[Tensor, " rows"],
) -> Float[Tensor, ""]:
    """Return KL(teacher || student) of two-hot rewards in nats.

    Source:
        Distilling the knowledge in a neural network, arXiv:1503.02531, section 2, at
        temperature 1.
    """
    return _over_steps(_divergence(student, teacher), decay)


def value_kl(
    student: Float[Tensor, "heads steps batch bins"],
    teacher: Float[Tensor, "steps batch bins"],
    decay: Float[Tensor, " rows"],
) -> Float[Tensor, ""]:
    """Return KL(teacher || student) of return distributions, the mean over the student's Qs.

    Args:
        student: Logits of each Q.
        teacher: Logarithm of the mean of the probabilities of the teacher's Qs.
        decay: rho^t.

    Source:
        As `reward_kl`, arXiv:1503.02531; an ensemble taught by its mean is section 1 there.
    """
    return _over_steps(_divergence(student, teacher).mean(0), decay)


def policy_mse(
    student: Float[Tensor, "rows batch action"],
    teacher_location: Float[Tensor, "rows batch action"],
    mask: Float[Tensor, "batch action"],
    decay: Float[Tensor, " rows"],
) -> Float[Tensor, ""]:
    """Return the squared distance to mean actions in [-1, 1], per real action dimension.

    Args:
        student: Actions after tanh; sampled, so that the distance limits their noise too.
        teacher_location: Means before tanh.
        mask: 1 for real action dimensions.
        decay: rho^t.

    Source:
        Regression onto the teacher's action as in DAgger, arXiv:1011.0686.
    """
    squared = (student.float() - torch.tanh(teacher_location)).square()
    return _over_steps((squared * mask).sum(-1) / mask.sum(-1), decay)


def policy_kl(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    mask: Float[Tensor, "batch action"],
    decay: Float[Tensor, " rows"],
) -> Float[Tensor, ""]:
    """Return KL(teacher || student) of the policies in nats, per real action dimension.

    Of the Gaussians before tanh: a map that both go through and that can be undone leaves the
    divergence as it is. Per dimension, so that tasks with many actuators count like the others.

    Args:
        student: Locations and log standard deviations before tanh, [rows, batch, action] each.
        teacher: The same.
        mask: 1 for real action dimensions.
        decay: rho^t.

    Source:
        Policy distillation, arXiv:1511.06295, section 3.
    """
    (mean, log_std), (goal, goal_log_std) = (
        (a.float(), b.float()) for a, b in (student, teacher)
    )
    ratio = torch.exp(2 * (goal_log_std - log_std))
    distance = (goal - mean).square() * torch.exp(-2 * log_std)
    divergence = log_std - goal_log_std + 0.5 * (ratio + distance - 1)
    return _over_steps((divergence * mask).sum(-1) / mask.sum(-1), decay)


def latent_kl(
    projected: Float[Tensor, "rows batch latent"],
    teacher: Float[Tensor, "rows batch latent"],
    group: int,
    decay: Float[Tensor, " rows"],
) -> Float[Tensor, ""]:
    """Return KL(teacher || student) of latents in nats, the mean over their simplices.

    A teacher's latent is a row of simplices (SimNorm), so the student's is projected to as many
    softmaxes and compared as distributions. A squared distance would lose its gradient where a
    softmax is sure and wrong, and shrink with the length of a simplex; a cosine would ignore
    that each simplex sums to 1.

    Args:
        projected: Learned projection of the student's latents, before the softmax.
        teacher: The teacher's latents of the real observations.
        group: Length of one simplex of the teacher's.
        decay: rho^t.

    Source:
        SimNorm of TD-MPC2, arXiv:2310.16828, section 3.1. TD-MPC-Opt, arXiv:2507.01823, tried
        latents with a projection that was never trained.
    """
    ours = functional.log_softmax(projected.float().unflatten(-1, (-1, group)), dim=-1)
    theirs = teacher.float().unflatten(-1, (-1, group))
    divergence = functional.kl_div(ours, theirs, reduction="none").sum(-1)
    return _over_steps(divergence.mean(-1), decay)


def _divergence(
    student: Float[Tensor, "*lead bins"],
    teacher: Float[Tensor, "*some bins"],
) -> Float[Tensor, "*lead"]:
    ours = functional.log_softmax(student.float(), dim=-1)
    theirs = functional.log_softmax(teacher.float(), dim=-1)
    return (theirs.exp() * (theirs - ours)).sum(-1)


def _over_steps(
    distance: Float[Tensor, "steps batch"], decay: Float[Tensor, " rows"]
) -> Float[Tensor, ""]:
    return (decay[: len(distance)] * distance.mean(1)).mean()


def _given(target: Tensor | None) -> Tensor:
    assert target is not None, "the teachers computed nothing for a term that has a weight"
    return target
