"""Trains a world model whose networks are sharded by FSDP: `test_ranks.py` starts it.

Prints as JSON the loss of the whole batch at each update, and how many numbers of the weights
this process holds. One process alone trains unsharded.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import nn
from torch.distributed import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tdmpc_opt import machine
from tdmpc_opt.configs.training import LossWeights, TrainConfig
from tdmpc_opt.data.sampler import Batch
from tdmpc_opt.model.world_model import NETWORKS, WorldModel
from tdmpc_opt.schema import MT30, model_config
from tdmpc_opt.training.losses import model_losses, td_target
from tdmpc_opt.training.ranks import ALONE, Ranks
from tdmpc_opt.training.step import build_learner

UPDATES = 8
BATCH = 16


def _shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    for name in (*NETWORKS, "encoder", "task_embedding"):
        fully_shard(
            getattr(model, name), mesh=mesh["data_parallel"], reshard_after_forward=True
        )
    return model


def _fabric(device: str) -> tuple[Fabric, Ranks]:
    if machine.world_size() == 1:
        return Fabric(accelerator=device, devices=1), ALONE
    strategy = ModelParallelStrategy(
        _shard, data_parallel_size=machine.world_size(), tensor_parallel_size=1
    )
    fabric = Fabric(accelerator=device, devices=machine.local_world_size(), strategy=strategy)
    fabric.launch()
    return fabric, Ranks(fabric.global_rank, fabric.world_size)


def _batch(model: WorldModel, ranks: Ranks, source: torch.Generator) -> Batch:
    sizes = model.config
    obs = torch.randn(4, BATCH, sizes.obs_dim, generator=source)
    action = torch.rand(3, BATCH, sizes.action_dim, generator=source) * 2 - 1
    reward = torch.rand(3, BATCH, 1, generator=source)
    task = torch.randint(0, sizes.num_tasks, (BATCH,), generator=source)
    own = slice(ranks.rank, None, ranks.count)
    parts = (part[:, own] for part in (obs, action, action, reward))
    return Batch(*parts, task[own])


def _held(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def main() -> None:
    fabric, ranks = _fabric("cpu")
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    config = TrainConfig(data=Path("unused"), output=Path("unused"), updates=UPDATES)
    sizes = replace(model_config("0.3", MT30), dropout=0.0)  # ranks draw their own
    model = WorldModel(sizes, MT30, generator)
    fabric.setup_module(model)
    learner = build_learner(fabric, model, config)
    weights = LossWeights()
    told = []
    for _ in range(UPDATES):
        batch = _batch(model, ranks, generator)
        with torch.no_grad():
            next_z = model.encode(batch.obs[1:], batch.task)
            target = td_target(model, next_z, batch, learner.generator, ranks)
        losses, _ = model_losses(model, batch, next_z, target, weights, ranks)
        loss = losses.total(weights)
        learner.model_optimizer.zero_grad()
        fabric.backward(loss)
        fabric.clip_gradients(
            model, learner.model_optimizer, max_norm=20.0, error_if_nonfinite=False
        )
        learner.model_optimizer.step()
        model.renormalize_task_embedding()
        told.append(float(ranks.mean(loss.detach())))
    held = sum(_held(parameter).numel() for parameter in model.parameters())
    if ranks.is_first:
        sys.stdout.write(json.dumps({"losses": told, "held": held}) + "\n")


if __name__ == "__main__":
    main()
