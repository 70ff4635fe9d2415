"""Everything that can drive a task: agents, experts and random actions, behind one protocol."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from tdmpc_opt.agents.agent import Agent
from tdmpc_opt.agents.expert_policy import ExpertNetwork, existing_expert
from tdmpc_opt.planning.simulator import SimulatorBudget, SimulatorPlanner
from tdmpc_opt.runtime.agent import Agent as DeviceAgent
from tdmpc_opt.schema import MT30, UNNAMED, TaskTable

if TYPE_CHECKING:
    from tdmpc_opt.tasks.batched import BatchedTask

Array = NDArray[np.float32]

Stream = tuple[int, ...]
"""Numbers that together seed one episode's randomness, such as (seed, task id, episode)."""


@runtime_checkable
class Policy(Protocol):
    """Drives batches of episodes of one task at a time.

    It remembers the episodes between `start` and the last `act`: one object serves one thread.
    """

    def start(self, task: str, streams: Sequence[Stream]) -> None:
        """Begin one episode per stream; a row's randomness comes from its stream alone."""

    def act(self, obs: Array) -> Array:
        """Map observations [B, obs] of the task to actions [B, action] in [-1, 1]."""


@runtime_checkable
class SimulatorPolicy(Policy, Protocol):
    """A policy that looks at the state of the simulator, not at observations alone."""

    def watch(self, envs: Sequence[Any]) -> None:
        """Take the environments of the episodes that have begun, one per stream."""


def torch_generator(stream: Stream) -> torch.Generator:
    """Return a CPU generator seeded by all numbers of a stream."""
    seed = np.random.SeedSequence(stream).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed) >> 1)


class AgentPolicy:
    """An agent that drives whole episodes."""

    def __init__(self, agent: Agent, *, deterministic: bool = True) -> None:
        self.agent = agent
        self._deterministic = deterministic
        self._task: str | None = None
        self._generators: list[torch.Generator] = []

    def start(self, task: str, streams: Sequence[Stream]) -> None:
        """Begin one episode per stream."""
        unnamed = self.agent.tasks.names == (UNNAMED,)
        self._task = None if unnamed else self.agent.tasks[task].name
        self._generators = [torch_generator(stream) for stream in streams]
        self.agent.reset()

    def act(self, obs: Array) -> Array:
        """Map observations [B, obs] to actions [B, action]."""
        return self.agent.act(
            obs,
            self._task,
            deterministic=self._deterministic,
            generator=self._generators,
        )


class DevicePolicy:
    """An exported file that drives whole episodes, as the device would run it."""

    def __init__(self, agent: DeviceAgent) -> None:
        self._agent = agent
        self._task: str | None = None
        self._generators: list[np.random.Generator] = []

    def start(self, task: str, streams: Sequence[Stream]) -> None:
        """Begin one episode per stream."""
        self._task = None if self._agent.tasks.names == (UNNAMED,) else task
        self._generators = [np.random.default_rng(stream) for stream in streams]
        self._agent.reset()

    def act(self, obs: Array) -> Array:
        """Map observations [B, obs] to actions [B, action]."""
        return self._agent.act(obs, self._task, generator=self._generators)


class RandomPolicy:
    """Uniform actions."""

    def __init__(self, tasks: TaskTable = MT30) -> None:
        self._tasks = tasks
        self._width = 0
        self._generators: list[np.random.Generator] = []

    def start(self, task: str, streams: Sequence[Stream]) -> None:
        """Begin one episode per stream."""
        self._width = self._tasks[task].action_dim
        self._generators = [np.random.default_rng(stream) for stream in streams]

    def act(self, obs: Array) -> Array:
        """Draw actions [B, action] uniformly from [-1, 1]."""
        rows = [source.uniform(-1, 1, self._width) for source in self._generators]
        return np.array(rows, dtype=np.float32)


class ExpertPolicy:
    """The single-task experts of a folder, each on its own task."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._network: ExpertNetwork | None = None

    def start(self, task: str, streams: Sequence[Stream]) -> None:
        """Load the task's expert."""
        existing_expert(self._folder, task)
        self._network = ExpertNetwork.of_task(self._folder, task)

    def act(self, obs: Array) -> Array:
        """Map observations [B, obs] to the expert's mean actions [B, action]."""
        assert self._network is not None, "start an episode first"
        return self._network.mean(obs)


class PlanPolicy:
    """Planning with the simulator's own dynamics.

    Args:
        tasks: Those it may be asked to drive.
    """

    def __init__(self, tasks: TaskTable = MT30) -> None:
        self._tasks = tasks
        self._simulator: BatchedTask | None = None
        self._planner: SimulatorPlanner | None = None
        self._envs: Sequence[Any] = ()

    def start(self, task: str, streams: Sequence[Stream]) -> None:
        """Begin one episode per stream."""
        from tdmpc_opt.tasks.environment import batched_task  # needs the simulator

        self._simulator = batched_task(self._tasks[task])
        generators = [np.random.default_rng(stream) for stream in streams]
        self._planner = SimulatorPlanner(self._simulator, SimulatorBudget(), generators)

    def watch(self, envs: Sequence[Any]) -> None:
        """Take the environments of the episodes that have begun, one per stream."""
        self._envs = envs

    def act(self, obs: Array) -> Array:
        """Return the first actions [B, action] of plans from the states of the environments."""
        assert self._simulator is not None, "start an episode first"
        assert self._planner is not None
        states, constants = zip(*map(self._simulator.current, self._envs), strict=True)
        return self._planner.plan(np.stack(states), np.stack(constants)).astype(np.float32)


class ActionNoise:
    """Gaussian noise on actions; each episode's comes from a stream of its own."""

    def __init__(self, std: float, streams: Sequence[Stream]) -> None:
        self._std = std
        self._generators = [np.random.default_rng((*stream, 1)) for stream in streams]

    def add(self, action: Array) -> Array:
        """Return actions [B, action] with the noise of one step, clipped to [-1, 1]."""
        noise = [source.standard_normal(action.shape[1]) for source in self._generators]
        return np.clip(action + self._std * np.array(noise), -1, 1).astype(np.float32)
