"""Everything that can drive a task behind one type, and the loop that drives episodes."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tdmpc_opt.agents.agent import Agent
from tdmpc_opt.data.episodes import Episode
from tdmpc_opt.schema import MT30, UNNAMED, Task, seed_number
from tdmpc_opt.tasks.batched_suite import BatchedEpisodes
from tdmpc_opt.tasks.environment import make_env

Array = NDArray[np.float32]

Stream = tuple[int, ...]
"""Numbers that together seed one episode's randomness, such as (seed, task id, episode)."""

Act = Callable[[Array], Array]
"""Maps observations [B, obs] of the task to actions [B, action] in [-1, 1]."""

Policy = Callable[[str, Sequence[Stream], Sequence[Any]], Act]
"""Begins one episode of a task for each stream, and returns what acts in them, step by step.

The third argument are the environments of the episodes, for planning in the simulator. The
randomness of a row comes from its stream alone. Another beginning ends the episodes.
"""


def torch_generator(stream: Stream) -> torch.Generator:
    """Return a CPU generator seeded by all numbers of a stream."""
    seed = np.random.SeedSequence(stream).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed) >> 1)


def agent_policy(agent: Agent, *, deterministic: bool = True) -> Policy:
    """Return an agent as a policy."""

    def begin(task: str, streams: Sequence[Stream], _: Sequence[Any]) -> Act:
        name = None if agent.tasks.names == (UNNAMED,) else agent.tasks[task].name
        generators = [torch_generator(stream) for stream in streams]
        agent.reset()
        return lambda obs: agent.act(
            obs, name, deterministic=deterministic, generator=generators
        )

    return begin


def rollout(
    policy: Policy,
    task: Task | str,
    seeds: Sequence[int],
    streams: Sequence[Stream],
    *,
    noise: float = 0.0,
    labeller: Policy | None = None,
    batched: bool = False,
) -> list[Episode]:
    """Run one whole episode per seed, all in step with each other.

    The policy acts for all of them until the last has ended, so that the rows of its batch, and
    with them its rounding and its random numbers, do not depend on when others end. It never
    sees the state that ended an episode, which may be out of any bounds.

    Args:
        policy: The acting policy.
        task: A task, or the name of one of MT30.
        seeds: Environment seeds; an episode is the first after building with its seed.
        streams: Seeds of the policy's own randomness, one per episode.
        noise: Standard deviation of Gaussian noise on its actions.
        labeller: Its actions are recorded as labels: another policy, or the acting one itself
            for its actions without the noise. None labels with NaN.
        batched: Step the physics of all episodes of an MT30 task as one batch, which is several
            times as fast and equal to rounding. Policies are then given no environments.

    Returns:
        Finished episodes in the order of the seeds.

    Raises:
        UnknownTaskError: A task that the simulator or a policy does not have.
        InputError: An environment of the user's whose results do not fit its spaces.
    """
    task = MT30[task] if isinstance(task, str) else task
    together = BatchedEpisodes(task, seeds) if batched else None
    envs = [] if together else [make_env(task, seed) for seed in seeds]
    act = policy(task.name, streams, envs)
    label_of = None
    if labeller is not None and labeller is not policy:
        label_of = labeller(task.name, [(*stream, 2) for stream in streams], envs)
    disturbances = [np.random.default_rng((*stream, 1)) for stream in streams]
    obs = together.first if together else np.stack([env.reset()[0] for env in envs])
    nothing = np.full((len(seeds), task.action_dim), np.nan, np.float32)
    observations, actions, labels = [obs], [nothing], [nothing]
    rewards = [nothing[:, 0]]
    rows, terminated = np.zeros(len(seeds), int), np.zeros(len(seeds), bool)
    while not rows.all():
        action = clean = act(obs)
        if noise:
            drawn = [source.standard_normal(clean.shape[1]) for source in disturbances]
            action = np.clip(clean + noise * np.array(drawn), -1, 1).astype(np.float32)
        label = clean if labeller is policy else nothing
        if label_of is not None:
            label = label_of(obs)
        if together:
            after, reward = together.step(action)
            if len(observations) == task.episode_length:
                rows[:] = len(observations) + 1
        else:
            after, reward = obs.copy(), np.zeros(len(envs), np.float32)
            for index in np.flatnonzero(rows == 0):
                after[index], reward[index], ended, cut, _ = envs[index].step(action[index])
                if ended or cut:
                    rows[index], terminated[index] = len(observations) + 1, ended
        obs = np.where(rows[:, None] == 0, after, obs)
        observations.append(after)
        actions.append(action)
        labels.append(label)
        rewards.append(reward)
    for env in envs:
        env.close()
    parts = (observations, actions, rewards, labels)
    columns = (np.stack(part, axis=1) for part in parts)
    return [
        Episode(task.name, seed, o[:n], a[:n], r[:n], label[:n], bool(ended))
        for seed, n, ended, o, a, r, label in zip(
            seeds, rows, terminated, *columns, strict=True
        )
    ]


_TIMED = 25  # actions whose median time is shown


class Player:
    """One agent in one environment that can be drawn, step by step.

    Args:
        policy: What acts.
        task: Its task.
        seed: Seed of the environment and of the policy's own randomness.

    Raises:
        InputError: An environment of the user's that cannot be built or reset.
    """

    def __init__(self, policy: Policy, task: Task, seed: int) -> None:
        self.env = make_env(task, seed, render_mode="rgb_array")
        self.task = task
        self.noise = 0.0
        """Standard deviation of Gaussian noise on the actions."""
        self._policy, self._seed = policy, seed
        self._episodes = 0
        self.begin()

    def begin(self) -> None:
        """Begin an episode."""
        stream = (self._seed, seed_number(self.task), self._episodes)
        self._act = self._policy(self.task.name, [stream], [self.env])
        self._disturbance = np.random.default_rng((*stream, 1))
        self._obs: Array = self.env.reset()[0]
        self._episodes += 1
        self._times: deque[float] = deque(maxlen=_TIMED)
        self.steps = 0
        self.reward = self.total = 0.0
        self.terminated = False
        """Whether a state has ended the episode."""
        self.over = False
        """Whether the episode has ended."""

    def step(self) -> None:
        """Act once; after the end of the episode nothing changes."""
        if self.over:
            return
        start = time.perf_counter()
        action = self._act(self._obs[None])
        self._times.append(1000 * (time.perf_counter() - start))
        if self.noise:
            drawn = self._disturbance.standard_normal(action.shape)
            action = np.clip(action + self.noise * drawn, -1, 1).astype(np.float32)
        self._obs, reward, self.terminated, truncated, _ = self.env.step(action[0])
        self.over = self.terminated or truncated
        self.reward = float(reward)
        self.total += self.reward
        self.steps += 1

    @property
    def steps_per_second(self) -> float:
        """Rate of the task's actions in simulated time."""
        return float(self.env.metadata["render_fps"])

    @property
    def latency_ms(self) -> float | None:
        """Median time of the latest actions; None before the first."""
        return median(self._times) if self._times else None

    def picture(self) -> NDArray[np.uint8]:
        """Return the view of the environment, [height, width, 3].

        Raises:
            InputError: An environment that draws nothing.
        """
        picture: Any = self.env.render()
        return np.asarray(picture)
