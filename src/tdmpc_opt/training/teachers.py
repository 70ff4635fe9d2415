"""Outputs of frozen teachers for a student's batch."""

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from tdmpc_opt.agents.expert import (
    ExpertNetwork,
    expert_path,
    experts_identity,
    is_expert_folder,
    known_experts,
)
from tdmpc_opt.checkpoints.checkpoint import Checkpoint, build
from tdmpc_opt.checkpoints.load import resolve
from tdmpc_opt.data.sampler import Batch
from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.files import Identity, file_identity
from tdmpc_opt.model import two_hot
from tdmpc_opt.model.layers import Dense
from tdmpc_opt.model.world_model import bin_centres
from tdmpc_opt.schema import TaskTable
from tdmpc_opt.training.batches import slices_of

OUTPUTS = {
    "reward_mse": {"reward"},
    "reward_kl": {"reward_logits"},
    "value_kl": {"value_logits"},
    "policy_mse": {"policy_location"},
    "policy_kl": {"policy_location", "policy_log_std"},
    "latent": {"latent"},
}
"""Fields of `TeacherTargets` that each term needs."""
POLICY_TERMS = frozenset(
    term for term, needed in OUTPUTS.items() if "policy_location" in needed
)
"""Terms that ask for the teacher's policy."""
_NETWORKS = {
    **dict.fromkeys(("reward", "reward_logits"), "reward_head"),
    "value_logits": "q_ensemble",
    **dict.fromkeys(("policy_location", "policy_log_std"), "policy_head"),
}
"""Networks of a teacher that compute these fields, beside the encoder."""
_OF_REWARDS = frozenset({"reward", "reward_logits"})


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


Teacher = Callable[[Batch], TeacherTargets]
"""Maps slices, whose tasks have the student's ids, to its outputs."""


class WorldModelTeacher:
    """A frozen world model; only the networks that its terms need stay in memory.

    Args:
        checkpoint: The teacher's weights.
        tasks: The student's tasks; only those that the teacher has may occur.
        terms: Names of the distillation terms that use it.
        device: Where it computes.
        first_reward_only: Whether the reward terms compare the first step alone.

    Raises:
        CheckpointError: Weights that do not fit together.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tasks: TaskTable,
        terms: Set[str],
        device: torch.device,
        *,
        first_reward_only: bool = False,
    ) -> None:
        self.config = checkpoint.config
        self._outputs = {name for term in terms for name in OUTPUTS[term]}
        parts = {_NETWORKS[name] for name in self._outputs & _NETWORKS.keys()}
        self.model = build(checkpoint, device=device, parts=parts)
        self.model.requires_grad_(False)
        if device.type == "cpu":
            # Rows of 1792 numbers lie so that the product with the transposed weight took 1.4
            # times as long (MKL on Zen 3); a student's narrower ones gain nothing.
            for layer in self.model.modules():
                if isinstance(layer, Dense):
                    layer.weight.data = layer.weight.data.mT.contiguous().mT
        self._bins = bin_centres(self.config).to(device)  # in half precision they would move
        self._first_reward_only = first_reward_only
        known = checkpoint.tasks.names
        ids = [known.index(name) if name in known else -1 for name in tasks.names]
        self._ids = torch.tensor(ids, device=device)
        self._action_dim = tasks.action_dim

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherTargets:
        """Compute the outputs for a batch of the student's."""
        asked, model, ids = self._outputs, self.model, self._ids[batch.task]
        action = _fit(batch.action, self.config.action_dim).to(model.dtype)
        horizon = len(action)
        steps = 1 if self._first_reward_only else horizon
        rows = horizon if "value_logits" in asked else steps
        if asked & {"policy_location", "latent"}:
            rows = horizon + 1
        z = model.encode(_fit(batch.obs[:rows], self.config.obs_dim).to(model.dtype), ids)
        found: dict[str, Tensor] = {}
        if asked & _OF_REWARDS:
            logits = model.reward(z[:steps], action[:steps], ids).float()
            if "reward" in asked:
                found["reward"] = two_hot.decode(logits, self._bins).unsqueeze(-1)
            if "reward_logits" in asked:
                found["reward_logits"] = logits
        if "value_logits" in asked:
            logits = model.q_values(z[:horizon], action, ids).float()
            shares = functional.log_softmax(logits, dim=-1).logsumexp(0)
            found["value_logits"] = shares - math.log(len(logits))
        if "policy_location" in asked:
            output = model.policy(z, ids)
            found["policy_location"] = _fit(output.location.float(), self._action_dim)
            if "policy_log_std" in asked:
                found["policy_log_std"] = _fit(output.log_std.float(), self._action_dim)
        if "latent" in asked:
            found["latent"] = z.float()
        return TeacherTargets(**found)


def _fit(x: Float[Tensor, "*batch dim"], width: int) -> Float[Tensor, "*batch width"]:
    # Padding beyond a task's own width is zero in every table, so cutting it loses nothing.
    return functional.pad(x, (0, width - x.shape[-1]))


class Member(NamedTuple):
    """A teacher of a panel."""

    teacher: Teacher
    answers: Bool[Tensor, " tasks"]
    """Which of the student's tasks it is used for."""


class Panel:
    """Several teachers that share the slices of a batch by task.

    Args:
        members: Where two give the same output for a task, that of the first one named is used.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = tuple(members)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherTargets:
        """Return the members' outputs for a batch."""
        if len(self.members) == 1:  # it has every task: no slices to pick, no wait for a GPU
            return self.members[0].teacher(batch)
        found: dict[str, Tensor] = {}
        for member in reversed(self.members):
            chosen = member.answers[batch.task].nonzero().squeeze(1)
            if not len(chosen):
                continue
            targets = member.teacher(slices_of(batch, chosen))
            for field in fields(targets):
                values: Tensor | None = getattr(targets, field.name)
                if values is not None:
                    empty = values.new_zeros(len(values), len(batch.task), values.shape[-1])
                    found.setdefault(field.name, empty)[:, chosen] = values
        return TeacherTargets(**found)


def teacher_identity(name: str, tasks: TaskTable) -> Identity:
    """Name a teacher by its content; of experts those of the tasks that it has.

    Raises:
        CheckpointError: A file that is missing or cannot be read.
    """
    if is_expert_folder(name):
        return experts_identity(Path(name), known_experts(Path(name), tasks.names))
    return file_identity(resolve(name))


def load_experts(folder: Path, tasks: TaskTable) -> dict[str, ExpertNetwork]:
    """Read the experts that a folder has for some of these tasks, by task.

    Raises:
        CheckpointError: None for any of the tasks, a damaged one, or one for other sizes than
            its task's.
    """
    experts = {
        name: ExpertNetwork.of_task(folder, name) for name in known_experts(folder, tasks.names)
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
    return experts


class ExpertTeacher:
    """Experts of several tasks, each for its own slices.

    Args:
        experts: At least one, by task.
        tasks: The student's tasks; only those with an expert may occur.
        device: Where they compute.
    """

    def __init__(
        self, experts: Mapping[str, ExpertNetwork], tasks: TaskTable, device: torch.device
    ) -> None:
        self._layers = {
            tasks.index(name): [
                (torch.from_numpy(weight).to(device), torch.from_numpy(bias).to(device))
                for weight, bias in zip(expert.weights, expert.biases, strict=True)
            ]
            for name, expert in experts.items()
        }
        self._action_dim = tasks.action_dim

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherTargets:
        """Return the experts' mean actions before tanh."""
        location = batch.obs.new_zeros(*batch.obs.shape[:-1], self._action_dim)
        for task, layers in self._layers.items():
            own = (batch.task == task).nonzero().squeeze(1)
            x = batch.obs[:, own, : layers[0][0].shape[1]]
            for index, (weight, bias) in enumerate(layers):
                x = functional.linear(torch.relu(x) if index else x, weight, bias)
            location[:, own, : x.shape[-1]] = x
        return TeacherTargets(policy_location=location)
