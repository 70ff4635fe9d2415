"""Reducing an agent to the part that one device needs: its policy alone, one task alone."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from tdmpc_opt.checkpoints.checkpoint import POLICY_PREFIXES, Checkpoint
from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.files import STORED_PRESETS
from tdmpc_opt.model.layers import split_inputs, task_biases
from tdmpc_opt.model.world_model import unit_rows
from tdmpc_opt.schema import ModelConfig, Task, TaskTable

Weight = TypeVar("Weight")

_LEFT_OUT = (STORED_PRESETS, "run", "updates")
_EMBEDDING = "task_embedding.weight"
_PARTS = (
    *("encoder", "dynamics", "reward_head", "termination_head", "policy_head"),
    *("q_ensemble", "target_q_ensemble"),
)


def policy_only(checkpoint: Checkpoint) -> Checkpoint:
    """Return the encoder and the policy; what is left acts but cannot plan.

    Planner presets and the record of the training, 2 kB in files of 140, are left out.
    """
    extra = {name: text for name, text in checkpoint.extra.items() if name not in _LEFT_OUT}
    return replace(
        checkpoint,
        extra=extra,
        tensors=_of_policy(checkpoint.tensors),
        quantized=_of_policy(checkpoint.quantized),
    )


def _of_policy(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    return {name: value for name, value in weights.items() if name.startswith(POLICY_PREFIXES)}


def one_task(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Return a single-task agent that acts and plans as the whole one does in this task.

    The task embedding's share of each first layer becomes part of its bias; columns of padded
    observations and actions and rows of padded actions are left out.

    Raises:
        UnknownTaskError: The agent does not have the task.
        CheckpointError: Its weights are quantised, so that none can be taken out exactly.
    """
    if checkpoint.quantized:
        raise CheckpointError(
            "one task cannot be taken out of quantised weights; name the file they were made "
            "from, or make a quantised file of the task with tdmpc-opt quantize --task"
        )
    index = checkpoint.tasks.index(name)
    task, config = checkpoint.tasks.tasks[index], checkpoint.config
    single = replace(
        config,
        obs_dim=task.obs_dim,
        action_dim=task.action_dim,
        num_tasks=1,
        task_dim=0,
    )
    tensors = {key: t for key, t in checkpoint.tensors.items() if key != _EMBEDDING}
    embedding = torch.zeros(1, 0, dtype=torch.float64)
    if config.task_dim:
        row = checkpoint.tensors[_EMBEDDING][index : index + 1].double()
        embedding = unit_rows(row)
    for part in _PARTS:
        if f"{part}.0.weight" in tensors:
            tensors |= _fold(part, tensors, config, task, embedding)
    return replace(
        checkpoint,
        config=single,
        tasks=TaskTable((task,)),
        tensors=tensors | _live_actions(tensors, config, task),
    )


def compact_embedding(checkpoint: Checkpoint) -> Checkpoint:
    """Return the same agent with an embedding no wider than there are tasks.

    n rows span at most n dimensions, so wider rows can be exchanged for rows of the identity,
    and each first layer's columns for what they make of each task: the same function with
    fewer columns, up to rounding.
    """
    config, tasks = checkpoint.config, checkpoint.config.num_tasks
    if tasks >= config.task_dim:
        return checkpoint
    rows = unit_rows(checkpoint.tensors[_EMBEDDING].double())
    tensors = dict(checkpoint.tensors) | {_EMBEDDING: torch.eye(tasks)}
    for part in _PARTS:
        name = f"{part}.0.weight"
        if name in tensors:
            of_state, of_task, of_action = _columns(part, tensors[name], config)
            of_task = (of_task.double() @ rows.T).float()
            tensors[name] = torch.cat([of_state.float(), of_task, of_action.float()], dim=-1)
    return replace(checkpoint, config=replace(config, task_dim=tasks), tensors=tensors)


def _fold(
    part: str, tensors: dict[str, Tensor], config: ModelConfig, task: Task, embedding: Tensor
) -> dict[str, Tensor]:
    """Return a first layer without the columns that are constant or always zero."""
    weight, bias = tensors[f"{part}.0.weight"], tensors[f"{part}.0.bias"]
    of_input, of_task, of_action = _columns(part, weight, config)
    if part == "encoder":
        of_input = of_input[..., : task.obs_dim]
    live = torch.cat([of_input, of_action[..., : task.action_dim]], dim=-1)
    folded = task_biases(bias.double(), of_task.double(), embedding)
    return {
        f"{part}.0.weight": live.contiguous(),
        f"{part}.0.bias": folded[..., 0, :].float(),
    }


def _columns(part: str, weight: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    inputs = config.obs_dim if part == "encoder" else config.latent_dim
    return split_inputs(weight, inputs, config.task_dim)


def _live_actions(
    tensors: dict[str, Tensor], config: ModelConfig, task: Task
) -> dict[str, Tensor]:
    """Return the policy's last layer with the means and log stds of real actions alone."""
    last = max(int(key.split(".")[1]) for key in tensors if key.startswith("policy_head."))
    real = torch.arange(task.action_dim)
    rows = torch.cat([real, real + config.action_dim])
    names = (f"policy_head.{last}.weight", f"policy_head.{last}.bias")
    return {name: tensors[name][rows].contiguous() for name in names}
