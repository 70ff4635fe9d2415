"""Real observations, and what a world model's layers see when it acts and plans on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdmpc_opt.data.episodes import EpisodeDataset, Shard
from tdmpc_opt.errors import DataError
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.schema import UNNAMED, TaskTable

ROWS = 16_384
"""Observations that are taken of a dataset, spread evenly over its shards."""
_HELD_OUT = 4  # one in so many is kept for measuring
_HORIZON = 3  # steps the planner looks ahead


@dataclass(frozen=True, slots=True)
class Observations:
    """Padded observations of known tasks."""

    obs: Float[Tensor, "rows obs"]
    task: Int[Tensor, " rows"]

    def __len__(self) -> int:
        """Return their number."""
        return len(self.obs)

    def spread(self, rows: int) -> "Observations":
        """Return at most so many of them, evenly spaced."""
        index = torch.linspace(0, len(self) - 1, min(rows, len(self))).long()
        return Observations(self.obs[index], self.task[index])


def read_observations(path: Path, tasks: TaskTable) -> tuple[Observations, Observations]:
    """Return observations to calibrate with, and others of later rows to measure with.

    Raises:
        DataError: No dataset there, or none of these tasks in it.
    """
    dataset = EpisodeDataset.open(path)
    shards = _shards_of(dataset, tasks)
    each = max(ROWS // len(shards), 2 * _HELD_OUT)
    used: list[tuple[Tensor, int]] = []
    held_out: list[tuple[Tensor, int]] = []
    for shard in shards:
        task = 0 if tasks.names == (UNNAMED,) else tasks.index(shard.task)
        rows = _rows(dataset, shard, tasks, each)
        cut = len(rows) - len(rows) // _HELD_OUT
        used.append((rows[:cut], task))
        held_out.append((rows[cut:], task))
    return _joined(used), _joined(held_out)


def _shards_of(dataset: EpisodeDataset, tasks: TaskTable) -> list[Shard]:
    if tasks.names == (UNNAMED,):  # such an agent does not say which task it is for
        shards, fits = list(dataset.shards), len(dataset.task_names) == 1
    else:
        shards = [shard for shard in dataset.shards if shard.task in tasks.names]
        fits = all(
            dataset.tasks[shard.task].obs_dim == tasks[shard.task].obs_dim for shard in shards
        )
    if not shards or not fits:
        raise DataError(
            f"{dataset.path} holds no observations of this agent's tasks "
            f"({', '.join(tasks.names[:3])}{', ...' if len(tasks) > 3 else ''}); it has "
            f"{', '.join(dataset.task_names[:3]) or 'none'}"
        )
    return shards


def _rows(dataset: EpisodeDataset, shard: Shard, tasks: TaskTable, count: int) -> Tensor:
    """Return evenly spaced observations of a shard, padded to the agent's width."""
    stored = dataset.arrays(shard).obs
    index = np.unique(np.linspace(0, stored.shape[0] * stored.shape[1] - 1, count).astype(int))
    episode, step = np.divmod(index, stored.shape[1])
    width = dataset.tasks[shard.task].obs_dim
    if width > tasks.obs_dim:
        raise DataError(
            f"{dataset.path}: observations of {shard.task} have {width} numbers, this agent "
            f"takes {tasks.obs_dim}"
        )
    rows = torch.from_numpy(np.asarray(stored[episode, step, :width], dtype=np.float32))
    return torch.nn.functional.pad(rows, (0, tasks.obs_dim - width))


def _joined(parts: Sequence[tuple[Tensor, int]]) -> Observations:
    task = [torch.full((len(rows),), number) for rows, number in parts]
    return Observations(torch.cat([rows for rows, _ in parts]), torch.cat(task))


@dataclass(frozen=True, slots=True)
class Sequences:
    """Observations with action sequences as a planner tries them."""

    start: Observations
    actions: Float[Tensor, "horizon rows action"]
    last: Float[Tensor, "rows action"]
    """The policy's action after them."""


def try_actions(model: WorldModel, start: Observations, seed: int = 0) -> Sequences:
    """Draw sequences of the policy for every other row, and wide random ones for the rest."""
    source = torch.Generator().manual_seed(seed)
    width, mask = model.config.action_dim, model.mask(start.task)
    z, actions = model.encode(start.obs, start.task), []
    for _ in range(_HORIZON):
        noise = torch.randn(len(start), width, generator=source)
        action = model.policy(z, start.task, noise).action * mask
        action[1::2] = (noise[1::2] * mask[1::2] * 2.0).clamp(-1.0, 1.0)
        z = model.next(z, action, start.task)
        actions.append(action)
    last = model.policy(z, start.task, torch.zeros(len(start), width)).mean * mask
    return Sequences(start, torch.stack(actions), last)


def latents(model: WorldModel, tried: Sequences) -> Float[Tensor, "steps rows latent"]:
    """Return the latents of the start and after each action."""
    z = [model.encode(tried.start.obs, tried.start.task)]
    for action in tried.actions:
        z.append(model.next(z[-1], action, tried.start.task))
    return torch.stack(z)


def inputs_of(
    part: str, model: WorldModel, acting: Observations, tried: Sequences | None
) -> Float[Tensor, "rows in_dim"]:
    """Return what the first layer of a part sees.

    Encoder and policy see real observations, the rest the latents of tried sequences: rewards
    and dynamics all but the last, Q the last.
    """
    if part == "encoder":
        return torch.cat([acting.obs, model.embed(acting.task, acting.obs)], dim=-1)
    if part == "policy_head":
        z = model.encode(acting.obs, acting.task)
        return torch.cat([z, model.embed(acting.task, z)], dim=-1)
    assert tried is not None, "only a policy's file has no sequences"
    z = latents(model, tried)
    if part == "q_ensemble":
        z, actions = z[-1], tried.last
    else:
        z, actions = z[:-1], tried.actions
    joint = torch.cat([z, model.embed(tried.start.task, z), actions], dim=-1)
    return joint.flatten(0, -2)
