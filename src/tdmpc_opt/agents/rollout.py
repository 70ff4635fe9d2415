"""Drives a policy through a batch of episodes of one task."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch

from tdmpc_opt.agents.policies import ActionNoise, Policy, SimulatorPolicy, Stream
from tdmpc_opt.data.episodes import Episode
from tdmpc_opt.schema import MT30, Task
from tdmpc_opt.tasks.environment import make_env


def rollout(
    policy: Policy,
    task: Task | str,
    seeds: Sequence[int],
    streams: Sequence[Stream],
    *,
    noise: float = 0.0,
    labeller: Policy | None = None,
) -> list[Episode]:
    """Run one whole episode per seed, all in step with each other.

    Args:
        policy: Who acts.
        task: A task, or the name of one of MT30.
        seeds: Environment seeds; an episode is the first after building with its seed.
        streams: Seeds of the policy's own randomness, one per episode.
        noise: Standard deviation of Gaussian noise on its actions.
        labeller: Says in each state what it would do, which changes nothing: another policy,
            or the acting one itself for its actions without the noise. None labels with NaN.

    Returns:
        Finished episodes in the order of the seeds.

    Raises:
        UnknownTaskError: A task the simulator or a policy does not know.
        InputError: An environment of the user's that breaks its own promises.
    """
    task = MT30[task] if isinstance(task, str) else task
    envs = [make_env(task, seed) for seed in seeds]
    policy.start(task.name, streams)
    if labeller is not None and labeller is not policy:
        labeller.start(task.name, [(*stream, 2) for stream in streams])
    disturbance = ActionNoise(noise, streams)
    obs = np.stack([env.reset()[0] for env in envs])
    for driver in (policy, labeller):
        if isinstance(driver, SimulatorPolicy):
            driver.watch(envs)
    nothing = np.full((len(envs), task.action_dim), np.nan, np.float32)
    observations, actions, labels = [obs], [nothing], [nothing]
    rewards = [nothing[:, 0]]
    done = False
    while not done:
        clean = policy.act(obs)
        action = disturbance.add(clean) if noise else clean
        label = nothing
        if labeller is not None:
            label = clean if labeller is policy else labeller.act(obs)
        steps = [env.step(row) for env, row in zip(envs, action, strict=True)]
        obs = np.stack([step[0] for step in steps])
        # All episodes of a task have one length, so the batch ends as one.
        done = any(step[2] or step[3] for step in steps)
        observations.append(obs)
        actions.append(action)
        labels.append(label)
        rewards.append(np.array([step[1] for step in steps], np.float32))
    for env in envs:
        env.close()
    parts = (observations, actions, rewards, labels)
    columns = (np.stack(part, axis=1) for part in parts)
    return [Episode(task.name, seed, *row) for seed, *row in zip(seeds, *columns, strict=True)]


def one_thread() -> AbstractContextManager[None]:
    """Keep torch to one thread: sums split over threads round differently elsewhere."""
    return threads(1)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
