"""Rewards that hold plans near the policy, whatever the planner's budget.

A world model trained on episodes of its policy predicts the rewards of other actions wrongly,
and a plan maximises these errors. Here the reward head is trained on to predict less for
actions the farther they are from the policy's, so that plans need no regularisation.
"""

import copy
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from tdmpc_opt.agents.agent import Agent
from tdmpc_opt.agents.compute import best_device, threads
from tdmpc_opt.checkpoints.checkpoint import Checkpoint, build
from tdmpc_opt.checkpoints.load import read_checkpoint, resolve, with_origin
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.configs.deploy import RegularizeConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.data.sampler import Batch, SliceSampler
from tdmpc_opt.errors import RunError
from tdmpc_opt.files import REGULARIZED, STORED_PRESETS, refuse_overwrite
from tdmpc_opt.machine import choose_threads
from tdmpc_opt.model.layers import Network
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.progress import Progress, Silent
from tdmpc_opt.training.batches import on_device

_PENALTY = 100.0
"""Reward that an action loses per distance from the policy's, the root mean square over the
dimensions."""
_HORIZON = 3
_BATCH = 512
_LR = 1e-3
_NARROWEST, _WIDEST = 0.02, 2.0
"""Standard deviations of the tried actions around the policy's, drawn on a log scale."""
_RANDOM, _EXACT = 0.25, 0.1
"""Shares of the tried actions that are random, and the policy's own."""
_COMPARED = 64
"""Observations from which plans are compared with the policy."""


@dataclass(frozen=True, slots=True)
class RegularizeReport:
    """What regularising the rewards changed."""

    output: Path
    before: float
    """Mean distance of plans of TD-MPC2's own budget from the policy, in action units."""
    after: float
    """The same with the new rewards."""


def regularize(config: RegularizeConfig, progress: Progress | None = None) -> RegularizeReport:
    """Write a copy of an agent whose rewards hold plans near its policy.

    All weights but the reward head's stay as they are, and so does the policy. The rewards are
    no longer the environment's: the copy teaches none.

    Source:
        The value penalty of behaviour-regularised RL, arXiv:1911.11361, section 3, in the
        rewards of a world model as MOPO's penalty, arXiv:2005.13239, section 4.

    Raises:
        CheckpointError: A source that cannot be read, is quantised or cannot plan, or a file
            that cannot be written.
        DataError: No dataset there, one that is damaged, or tasks that the agent lacks.
        UnknownTaskError: Task names that do not match those of the source.
        RunError: The loss became NaN or infinite.
    """
    refuse_overwrite(config, ".safetensors")
    progress = progress or Silent()
    source = resolve(config.checkpoint)
    checkpoint = read_checkpoint(source, tasks=config.tasks)
    model = build(checkpoint, device=best_device(config.device)).requires_grad_(False)
    sampler = SliceSampler(
        [EpisodeDataset.open(folder) for folder in config.data],
        checkpoint.tasks,
        horizon=1,
        batch_size=_BATCH,
        seed=config.seed,
        sampling="task",
    )
    generator = torch.Generator().manual_seed(config.seed)
    with threads(choose_threads().count, config.matmul):
        compared = on_device(sampler.sample(), model.bins.device)
        before = _plan_distance(model, compared, generator)
        _fit(model, sampler, config.updates, generator, progress)
        after = _plan_distance(model, compared, generator)
    how = {"penalty": _PENALTY, "updates": config.updates}
    write_native(config.output, _with_rewards(with_origin(checkpoint, source), model, how))
    return RegularizeReport(config.output, before, after)


def _fit(
    model: WorldModel,
    sampler: SliceSampler,
    updates: int,
    generator: torch.Generator,
    progress: Progress,
) -> None:
    """Train the reward head of the model, on latents that tried actions reach."""
    true_rewards = copy.deepcopy(model.reward_head)
    _begin_as_policy(model, generator)
    head = model.reward_head.requires_grad_(True)
    optimizer = torch.optim.Adam(head.parameters(), lr=_LR)
    for update in range(updates):
        for group in optimizer.param_groups:  # constant, then falling to zero
            group["lr"] = _LR * min(1.0, 2 * (1 - update / updates))
        batch = on_device(sampler.sample(), model.bins.device)
        with torch.no_grad():
            tried = _try(model, true_rewards, batch, generator)
        logits = model.reward(tried.z, tried.action, tried.task)
        loss = model.soft_cross_entropy(logits, tried.reward).mean()
        if not loss.isfinite():
            raise RunError(f"the loss became {loss.item()} at update {update + 1}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress.update(update + 1, updates, f"loss {loss.item():.3f}")
    head.requires_grad_(False)


@torch.no_grad()
def _begin_as_policy(model: WorldModel, generator: torch.Generator) -> None:
    """Give the reward head the policy's hidden layers, for it has to know the policy's action.

    From its own layers it takes several times the updates.
    """
    for layer in range(2):
        own, state = model.reward_head[layer], model.policy_head[layer].state_dict()
        width = state["weight"].shape[-1]
        weight = own.get_parameter("weight").clone()
        weight[:, :width] = state["weight"]
        of_action = weight[:, width:]
        of_action.copy_(0.1 * torch.randn(of_action.shape, generator=generator))
        own.load_state_dict(state | {"weight": weight})


@dataclass(frozen=True, slots=True)
class _Tried:
    """Actions tried in latents, and what they are to be worth."""

    z: Float[Tensor, "steps batch latent"]
    action: Float[Tensor, "steps batch action"]
    reward: Float[Tensor, "steps batch 1"]
    task: Tensor


def _try(
    model: WorldModel, true_rewards: Network, batch: Batch, generator: torch.Generator
) -> _Tried:
    """Follow actions at all distances from the policy's, each row's of one spread."""
    device, task = model.bins.device, batch.task
    mask, rows = model.mask(task), len(task)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    low, high = math.log(_NARROWEST), math.log(_WIDEST)
    spread = torch.exp(low + (high - low) * drawn(rows, 1))
    random = drawn(rows, 1) < _RANDOM
    z = model.encode(batch.obs[0], task)
    steps: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(_HORIZON):
        policy = model.policy(z, task).mean
        noise = torch.randn(policy.shape, generator=generator).to(device)
        action = torch.where(random, _WIDEST * noise, policy + spread * noise)
        action = torch.where(drawn(rows, 1) < _EXACT, policy, action.clamp(-1, 1) * mask)
        given = model.decode(true_rewards(z, model.task_rows(task), policy))
        steps.append((z, action, given - _PENALTY * _distance(action, policy, mask)))
        z = model.next(z, action, task)
    zs, actions, rewards = (torch.stack(part) for part in zip(*steps, strict=True))
    return _Tried(zs, actions, rewards, task)


def _plan_distance(model: WorldModel, batch: Batch, generator: torch.Generator) -> float:
    """Return the mean distance of planned actions from the policy's, with TD-MPC2's budget."""
    obs, task = batch.obs[0, :_COMPARED], batch.task[:_COMPARED]
    planned = Agent(model).act(obs, task, generator=generator)
    with torch.no_grad():
        policy = model.policy(model.encode(obs, task), task).mean
    return float(_distance(planned, policy, model.mask(task)).mean())


def _distance(
    action: Float[Tensor, "batch action"],
    policy: Float[Tensor, "batch action"],
    mask: Float[Tensor, "batch action"],
) -> Float[Tensor, "batch 1"]:
    """Return the root mean square distance over the dimensions of each row's task."""
    squared = ((action - policy) ** 2 * mask).sum(-1, keepdim=True)
    return (squared / mask.sum(-1, keepdim=True)).sqrt()


def _with_rewards(
    checkpoint: Checkpoint, model: WorldModel, how: dict[str, float]
) -> Checkpoint:
    """Return the checkpoint with the model's reward head, in the number formats of the file.

    Its presets were chosen for the former rewards, so they go.
    """
    state = model.reward_head.state_dict(prefix="reward_head.")
    tensors = {
        name: state[name].to(tensor) if name in state else tensor
        for name, tensor in checkpoint.tensors.items()
    }
    extra = checkpoint.extra | {REGULARIZED: json.dumps(how)}
    extra = {name: fact for name, fact in extra.items() if name != STORED_PRESETS}
    return replace(checkpoint, tensors=tensors, extra=extra)
