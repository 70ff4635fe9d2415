"""Outputs of frozen teachers for a student's batch, which the distillation terms compare."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tdmpc_opt.agents.policies import ExpertNetwork, expert_path
from tdmpc_opt.checkpoints.checkpoint import Checkpoint, build
from tdmpc_opt.data.sampler import Batch
from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.model import two_hot
from tdmpc_opt.model.layers import Dense
from tdmpc_opt.model.world_model import WorldModel, bin_centres
from tdmpc_opt.schema import TaskTable

POLICY_TERMS = frozenset({"policy_mse", "policy_kl"})
"""Terms that ask for the teacher's policy."""
TWO_HOT_TERMS = frozenset({"reward_kl", "value_kl"})
"""Terms that compare distributions over bins, which must then be the same bins."""


@dataclass(frozen=True, slots=True)
class TeacherTargets:
    """Outputs of teachers along the real observations of a batch; None where no term needs it.

    In float32, and padded to the student's widths but for the latents. Policies and latents
    have a row per observation, values and rewards one per transition; where the reward terms
    compare the first step alone, rewards have that one row.
    """

    reward: Float[Tensor, "steps batch 1"] | None = None
    """Decoded rewards of (s_t, a_t), in environment units."""
    reward_logits: Float[Tensor, "steps batch bins"] | None = None
    """Two-hot rewards of (s_t, a_t)."""
    value_logits: Float[Tensor, "horizon batch bins"] | None = None
    """Log of the mean of the ensemble's two-hot probabilities of the return of (s_t, a_t)."""
    policy_location: Float[Tensor, "rows batch action"] | None = None
    """Mean actions before tanh; 0 in padded dimensions."""
    policy_log_std: Float[Tensor, "rows batch action"] | None = None
    """Log standard deviations before tanh; 0 in padded dimensions."""
    latent: Float[Tensor, "rows batch latent"] | None = None
    """Latents, at the teacher's width."""


Teacher = Callable[[Tensor, Tensor, Tensor], TeacherTargets]
"""Maps observations [H+1, B, obs], actions [H, B, action] and the student's task ids [B]."""


@dataclass(frozen=True, slots=True)
class Question:
    """Outputs of a teacher that are used."""

    terms: frozenset[str]
    """Names of the distillation terms that use the teacher."""
    first_reward_only: bool
    """Whether the reward terms compare the first step alone."""


class WorldModelTeacher:
    """A frozen world model; only the networks that the question needs stay in memory.

    Args:
        checkpoint: The teacher's weights.
        tasks: The student's tasks; only those that the teacher has may occur.
        question: Outputs to compute.
        device: Where it computes.

    Raises:
        CheckpointError: Weights that do not fit together.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tasks: TaskTable,
        question: Question,
        device: torch.device,
    ) -> None:
        self.config = checkpoint.config
        parts = _parts(question.terms)
        self.model = build(checkpoint, device=device, parts=parts)
        self.model.requires_grad_(False)
        if device.type == "cpu":
            _lay_out_for_products(self.model)
        self._bins = bin_centres(self.config).to(device)  # in half precision they would move
        self._question = question
        known = checkpoint.tasks.names
        ids = [known.index(name) if name in known else -1 for name in tasks.names]
        self._ids = torch.tensor(ids, device=device)
        self._action_dim = tasks.action_dim

    @torch.no_grad()
    def __call__(
        self,
        obs: Float[Tensor, "rows batch obs"],
        action: Float[Tensor, "horizon batch action"],
        task: Int[Tensor, " batch"],
    ) -> TeacherTargets:
        """Compute the outputs for a batch of the student's."""
        terms, model = self._question.terms, self.model
        ids = self._ids[task]
        action = _fit(action, self.config.action_dim).to(model.dtype)
        obs = _fit(obs[: self._observations(len(action))], self.config.obs_dim)
        z = model.encode(obs.to(model.dtype), ids)
        found: dict[str, Tensor] = {}
        if terms & {"reward_mse", "reward_kl"}:
            steps = 1 if self._question.first_reward_only else len(action)
            logits = model.reward(z[:steps], action[:steps], ids).float()
            if "reward_mse" in terms:
                found["reward"] = two_hot.decode(logits, self._bins).unsqueeze(-1)
            if "reward_kl" in terms:
                found["reward_logits"] = logits
        if "value_kl" in terms:
            logits = model.q_values(z[: len(action)], action, ids).float()
            found["value_logits"] = _log_of_mean(logits)
        if terms & POLICY_TERMS:
            found |= self._policy(z, ids)
        if "latent" in terms:
            found["latent"] = z.float()
        return TeacherTargets(**found)

    def _observations(self, horizon: int) -> int:
        """Return how many of the observations 0..H the terms look at."""
        terms = self._question.terms
        if terms & {*POLICY_TERMS, "latent"}:
            return horizon + 1
        return 1 if self._question.first_reward_only and "value_kl" not in terms else horizon

    def _policy(self, z: Tensor, ids: Tensor) -> dict[str, Tensor]:
        still = z.new_zeros(*z.shape[:-1], self.config.action_dim)
        output = self.model.policy(z, ids, still)
        found = {"policy_location": _fit(output.location.float(), self._action_dim)}
        if "policy_kl" in self._question.terms:
            found["policy_log_std"] = _fit(output.log_std.float(), self._action_dim)
        return found


def _lay_out_for_products(model: WorldModel) -> None:
    """Store each weight by inputs, its shape as it was.

    Rows of 1792 numbers lie so that the product with the transposed weight took 1.4 times as
    long (MKL on Zen 3); a student's narrower ones gain nothing.
    """
    for layer in model.modules():
        if isinstance(layer, Dense):
            layer.weight.data = layer.weight.data.mT.contiguous().mT


def _parts(terms: frozenset[str]) -> set[str]:
    """Return the networks that the terms read."""
    parts = set()
    if terms & {"reward_mse", "reward_kl"}:
        parts.add("reward_head")
    if "value_kl" in terms:
        parts.add("q_ensemble")
    if terms & POLICY_TERMS:
        parts.add("policy_head")
    return parts


def _fit(x: Float[Tensor, "*batch dim"], width: int) -> Float[Tensor, "*batch width"]:
    # Padding beyond a task's own width is zero in every table, so cutting it loses nothing.
    return functional.pad(x, (0, width - x.shape[-1]))


def _log_of_mean(logits: Float[Tensor, "heads *batch bins"]) -> Float[Tensor, "*batch bins"]:
    return functional.log_softmax(logits, dim=-1).logsumexp(0) - math.log(len(logits))


@dataclass(frozen=True, slots=True)
class Member:
    """A teacher of a panel."""

    teacher: Teacher
    answers: Bool[Tensor, " tasks"]
    """Which of the student's tasks it is used for."""


class Panel:
    """Several teachers that share the rows of a batch by task.

    Args:
        members: Where two give the same output for a task, that of the first one named is used.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = tuple(members)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherTargets:
        """Return the members' outputs for a batch."""
        if len(self.members) == 1:  # it has every task: no rows to pick, no wait for a GPU
            return self.members[0].teacher(batch.obs, batch.action, batch.task)
        found: dict[str, Tensor] = {}
        for member in reversed(self.members):
            rows = member.answers[batch.task].nonzero().squeeze(1)
            if len(rows):
                part = member.teacher(
                    batch.obs[:, rows], batch.action[:, rows], batch.task[rows]
                )
                _put(part, rows, found, len(batch.task))
        return TeacherTargets(**found)


def _put(part: TeacherTargets, rows: Tensor, found: dict[str, Tensor], batch: int) -> None:
    for field in fields(part):
        values: Tensor | None = getattr(part, field.name)
        if values is not None:
            empty = values.new_zeros(len(values), batch, values.shape[-1])
            found.setdefault(field.name, empty)[:, rows] = values


def load_experts(folder: Path, tasks: TaskTable) -> dict[str, ExpertNetwork]:
    """Read the experts that a folder has for some of these tasks, by task.

    Raises:
        CheckpointError: None for any of the tasks, a damaged one, or one for other sizes than
            its task's.
    """
    experts = {
        name: ExpertNetwork.of_task(folder, name)
        for name in tasks.names
        if expert_path(folder, name).is_file()
    }
    if not experts:
        raise CheckpointError(
            f"{folder} holds no expert for any of {', '.join(tasks.names)}; name a checkpoint, "
            "or make experts with tdmpc-opt experts"
        )
    for name, expert in experts.items():
        task = tasks[name]
        if (expert.obs_dim, expert.action_dim) != (task.obs_dim, task.action_dim):
            raise CheckpointError(
                f"{expert_path(folder, name)} takes {expert.obs_dim} observations and gives "
                f"{expert.action_dim} actions; {name} has {task.obs_dim} and {task.action_dim}"
            )
    if len({len(expert.weights) for expert in experts.values()}) > 1:
        raise CheckpointError(f"{folder} holds experts with different numbers of layers")
    return experts


class ExpertTeacher:
    """Experts of several tasks as one stack of layers: a batched product per layer.

    Args:
        experts: At least one, by task, of equally many layers.
        tasks: The student's tasks; only those with an expert may occur.
        device: Where they compute.
    """

    def __init__(
        self, experts: Mapping[str, ExpertNetwork], tasks: TaskTable, device: torch.device
    ) -> None:
        networks = list(experts.values())
        self._layers = [
            (
                _stack([network.weights[index] for network in networks]).to(device),
                _stack([network.biases[index] for network in networks]).to(device),
            )
            for index in range(len(networks[0].weights))
        ]
        order = list(experts)
        rows = [order.index(name) if name in experts else -1 for name in tasks.names]
        self._expert = torch.tensor(rows, device=device)
        self._obs_dim = self._layers[0][0].shape[-1]
        self._action_dim = tasks.action_dim

    @torch.no_grad()
    def __call__(
        self,
        obs: Float[Tensor, "rows batch obs"],
        action: Float[Tensor, "horizon batch action"],
        task: Int[Tensor, " batch"],
    ) -> TeacherTargets:
        """Return the experts' mean actions before tanh."""
        expert = self._expert[task]
        count = len(self._layers[0][0])
        # Slices of one expert lie side by side in its part of `x`, as `place` says.
        place = functional.one_hot(expert, count).cumsum(0).gather(1, expert[:, None])[:, 0] - 1
        x = obs.new_zeros(count, int(place.max()) + 1, len(obs), self._obs_dim)
        x[expert, place] = obs[..., : self._obs_dim].transpose(0, 1)
        shape, x = x.shape[:-1], x.flatten(1, 2)
        for index, (weight, bias) in enumerate(self._layers):
            x = torch.relu(x) if index else x
            x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
        location = x.unflatten(1, shape[1:])[expert, place].transpose(0, 1)
        spare = self._action_dim - location.shape[-1]
        return TeacherTargets(policy_location=functional.pad(location, (0, spare)))


def _stack(arrays: Sequence[NDArray[np.floating]]) -> Tensor:
    """Stack arrays padded with zeros to one size; relu(0) = 0 adds nothing further on."""
    shape = np.max([array.shape for array in arrays], axis=0)
    padded = [
        np.pad(array, [(0, most - size) for most, size in zip(shape, array.shape, strict=True)])
        for array in arrays
    ]
    return torch.from_numpy(np.stack(padded))
