"""Drives a policy through a batch of episodes of one task."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from tdmpc_opt.data.episodes import Episode
from tdmpc_opt.policies import Policy, Stream
from tdmpc_opt.task_table import MT30
from tdmpc_opt.tasks.dmcontrol import make_env


def rollout(
    policy: Policy, task: str, seeds: Sequence[int], streams: Sequence[Stream]
) -> list[Episode]:
    """Run one whole episode per seed, all in step with each other.

    Args:
        policy: Who acts.
        task: Task name.
        seeds: Environment seeds; an episode is the first after building with its seed.
        streams: Seeds of the policy's own randomness, one per episode.

    Returns:
        Finished episodes in the order of the seeds.

    Raises:
        UnknownTaskError: A task the simulator or the policy does not know.
    """
    envs = [make_env(task, seed) for seed in seeds]
    policy.start(task, streams)
    obs = np.stack([env.reset()[0] for env in envs])
    width = MT30[task].action_dim
    observations = [obs]
    actions = [np.full((len(envs), width), np.nan, np.float32)]
    rewards = [np.full(len(envs), np.nan, np.float32)]
    done = False
    while not done:
        action = policy.act(obs)
        steps = [env.step(row) for env, row in zip(envs, action, strict=True)]
        obs = np.stack([step[0] for step in steps])
        # All episodes of a task have one length, so the batch ends as one.
        done = any(step[2] or step[3] for step in steps)
        observations.append(obs)
        actions.append(action)
        rewards.append(np.array([step[1] for step in steps], np.float32))
    for env in envs:
        env.close()
    columns = (np.stack(part, axis=1) for part in (observations, actions, rewards))
    return [Episode(task, seed, *row) for seed, *row in zip(seeds, *columns, strict=True)]


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: sums split over threads round differently elsewhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
