"""Single-task experts as policy teachers of their own tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tdmpc_opt.agents.policies import ExpertNetwork, expert_path
from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.schema import TaskTable
from tdmpc_opt.training.teachers import TeacherTargets


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
        tasks: The student's tasks; only those with an expert may be asked about.
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
