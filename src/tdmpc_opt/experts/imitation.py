"""Experts from planning in the simulator: a small network learns the planner's actions.

Each round drives a batch of episodes, one half by the planner and one half by the network
learned so far; the planner labels every state (DAgger, arXiv:1011.0686). The network's own
sequences then join the planner's samples, and a value learned from the returns ends its
sequences (POLO, arXiv:1811.01848), so that later rounds are labelled by better plans.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tdmpc_opt.agents.expert import ExpertNetwork
from tdmpc_opt.configs.common import COLLECTION_SEED
from tdmpc_opt.configs.data import ExpertsConfig
from tdmpc_opt.experts.state import Progress, read_arrays, whole_state, write_arrays
from tdmpc_opt.planning.simulator import SimulatorBudget, SimulatorPlanner
from tdmpc_opt.schema import Task, seed_number
from tdmpc_opt.tasks.batched_suite import batched_task
from tdmpc_opt.tasks.environment import make_env

Array = NDArray[np.float32]

_BATCH = 512
_UPDATES = 4_000  # of each fit: the networks are small, the labels few and expensive
_LEARNING_RATE = 1e-3
_NOISE = 0.2  # on the planner's actions: states off its path are labelled too
# Last steps of an episode, whose returns lack what would have followed; at most half of it.
_CUT_STEPS = 100
_FIELDS = ("obs", "label", "reward")


class Imitation:
    """What one task's planner has labelled so far, and the networks learned from it.

    Args:
        config: What to train and how.
        task: A task that batches of states can be stepped of.
    """

    def __init__(self, config: ExpertsConfig, task: Task) -> None:
        self._config = config
        self._task = task
        self._simulator = batched_task(task)
        width = config.hidden
        sizes = (task.obs_dim, width, width)
        torch.manual_seed(config.seed)
        self.policy = _network(*sizes, task.action_dim)
        self._value = _network(*sizes, 1)
        self._value_scale = 0.0  # 0: no value has been learned yet
        self._episodes: dict[str, list[Array]] = {name: [] for name in _FIELDS}

    def round(self, progress: Progress) -> None:
        """Drive and label one batch of episodes, then fit both networks to all of them."""
        envs, length = self._config.envs, self._task.episode_length
        first = COLLECTION_SEED + self._config.seed + len(progress.curve)
        number, learned = seed_number(self._task), self._value_scale > 0
        generators = [np.random.default_rng((first + row, number)) for row in range(envs)]
        planner = SimulatorPlanner(
            self._simulator,
            SimulatorBudget(),
            generators,
            policy=self.act if learned else None,
            value=self.value if learned else None,
        )
        drives = np.arange(envs) % 2 == 0 if learned else np.ones(envs, bool)
        noise = np.random.default_rng((first, 1))
        states, constants, obs = self._start(first)
        rows: dict[str, list[Array]] = {name: [] for name in _FIELDS}
        for _ in range(length):
            label = planner.plan(states, constants).astype(np.float32)
            disturbed = label + _NOISE * noise.standard_normal(label.shape)
            action = np.where(drives[:, None], disturbed, self.act(obs)).clip(-1, 1)
            states, after, reward = self._simulator.step(states, action[:, None], constants)
            rows["obs"].append(obs)
            rows["label"].append(label)
            rows["reward"].append(reward[:, 0].astype(np.float32))
            obs = after[:, 0].astype(np.float32)
        for name, values in rows.items():
            self._episodes[name].append(np.stack(values, axis=1))
        returns = self._episodes["reward"][-1].sum(axis=1)
        progress.step += envs * length
        progress.curve.extend((progress.step, float(value)) for value in returns)
        self._fit(progress)

    def _start(self, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64], Array]:
        env, starts = make_env(self._task, seed), []
        for _ in range(self._config.envs):
            env.reset()
            starts.append(self._simulator.current(env))
        env.close()
        states, constants = (np.stack(part) for part in zip(*starts, strict=True))
        return states, constants, self._simulator.observe_now(states, constants)

    def act(self, obs: Array) -> Array:
        """Map observations [B, obs] to the network's actions [B, action]."""
        with torch.no_grad():
            action: Array = torch.tanh(self.policy(torch.from_numpy(obs))).numpy()
        return action

    def value(self, obs: Array) -> Array:
        """Map observations [B, obs] to discounted returns [B]."""
        with torch.no_grad():
            value: Array = self._value(torch.from_numpy(obs))[:, 0].numpy()
        return value * self._value_scale

    def _fit(self, progress: Progress) -> None:
        obs, label, returns = self._regression()
        generator = torch.Generator().manual_seed(self._config.seed + progress.step)
        self._value_scale = float(returns.abs().max()) or 1.0
        inside = torch.arange(len(obs)).reshape(-1, self._task.episode_length)
        cut = min(_CUT_STEPS, self._task.episode_length // 2)
        counted = inside[:, : self._task.episode_length - cut].reshape(-1)
        fits = (
            (self.policy, torch.arange(len(obs)), lambda x, i: torch.tanh(x) - label[i]),
            (self._value, counted, lambda x, i: x[:, 0] - returns[i] / self._value_scale),
        )
        for network, rows, error in fits:
            optimiser = torch.optim.Adam(network.parameters(), _LEARNING_RATE)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _UPDATES)
            for _ in range(_UPDATES):
                drawn = torch.randint(len(rows), (_BATCH,), generator=generator)
                chosen = rows[drawn]
                loss = error(network(obs[chosen]), chosen).square().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()

    def _regression(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return observations [N, obs], labels [N, action] and discounted returns [N]."""
        whole = self._whole()
        returns = np.zeros_like(whole["reward"])
        following = np.zeros(len(returns), np.float32)
        for step in reversed(range(returns.shape[1])):
            following = whole["reward"][:, step] + self._task.discount * following
            returns[:, step] = following
        return (
            torch.from_numpy(whole["obs"]).flatten(0, 1),
            torch.from_numpy(whole["label"]).flatten(0, 1),
            torch.from_numpy(returns).flatten(),
        )

    def _whole(self) -> dict[str, Any]:
        return {name: np.concatenate(parts) for name, parts in self._episodes.items()}

    def save(self, path: Path, progress: Progress) -> None:
        """Write episodes, networks and progress into one file.

        Raises:
            OSError: A folder that cannot be written, or a full disk.
        """
        arrays = self._whole()
        arrays["value_scale"] = np.array(self._value_scale)
        for name, network in self._networks():
            parameters = network.state_dict().items()
            arrays |= {f"{name}.{key}": tensor.numpy() for key, tensor in parameters}
        write_arrays(path, arrays, progress)

    def load(self, path: Path) -> None:
        """Read what `save` wrote of a run with the same config.

        Raises:
            RunError: The file is damaged.
        """
        with whole_state(path):
            arrays = read_arrays(path)
            for name, network in self._networks():
                tensors = {
                    key: torch.from_numpy(arrays[f"{name}.{key}"])
                    for key in network.state_dict()
                }
                network.load_state_dict(tensors)
            self._value_scale = float(arrays["value_scale"])
            self._episodes = {name: [arrays[name]] for name in _FIELDS}

    def _networks(self) -> tuple[tuple[str, nn.Sequential], ...]:
        return ("policy", self.policy), ("value", self._value)

    def network(self, progress: Progress) -> ExpertNetwork:
        """Return the policy learned so far."""
        layers = [layer for layer in self.policy if isinstance(layer, nn.Linear)]
        return ExpertNetwork(
            task=self._task.name,
            algorithm="plan",
            steps=progress.step,
            returns=(),
            weights=tuple(layer.weight.detach().numpy() for layer in layers),
            biases=tuple(layer.bias.detach().numpy() for layer in layers),
        )


def _network(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
