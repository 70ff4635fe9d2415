"""The library's learner for one expert: how it is built, warmed up and read out."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tdmpc_opt.agents.expert import ExpertNetwork
from tdmpc_opt.agents.rollout import Act, Stream, rollout
from tdmpc_opt.agents.sources import PolicySource, open_source
from tdmpc_opt.configs.common import COLLECTION_SEED
from tdmpc_opt.configs.data import ExpertsConfig
from tdmpc_opt.schema import Task, TaskTable, seed_number
from tdmpc_opt.tasks.batched import offers_batches
from tdmpc_opt.tasks.environment import make_env

WARM_UP_SEED = COLLECTION_SEED + 400_000
"""First environment seed of the episodes that a warm-up policy drives."""

_WARM_UP = 100  # agent steps of random actions in each environment before the first update
_WARM_UP_NOISE = 0.3  # of a warm-up policy's actions: the learner needs more than one path
_BUFFER_LIMIT = 1_000_000
BATCH_SIZE = 64
"""Transitions of an update. Training returns of walker-run-backwards reach 300 after
128,000 steps; with a quarter of the updates on 256, which compute as much, after 416,000."""
RETURN_STEPS = 3
"""Rewards in a target before the critic's estimate. One reward takes twice the steps on
cheetah-run-front and as many on reacher-three-hard."""


def build_learner(config: ExpertsConfig, task: Task, first_episode: int) -> Any:
    """Return the library's model on fresh environments.

    Args:
        config: What to train and how.
        task: What to train for.
        first_episode: Episodes done before: a resumed run takes other seeds than it had.
    """
    import sbx
    import torch
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

    from tdmpc_opt.experts.vector_env import BatchedVecEnv

    torch.set_num_threads(1)
    episode = task.episode_length
    env_seed = COLLECTION_SEED + config.seed + first_episode
    batched = not task.env or offers_batches(task)
    envs: Any
    if batched:
        envs = BatchedVecEnv(task, config.envs, env_seed)
    else:
        envs = DummyVecEnv([lambda: make_env(task, env_seed) for _ in range(config.envs)])
    warm_up_steps = 0 if config.warm_up else min(_WARM_UP * config.envs, config.steps // 2)
    model: Any = sbx.SAC(
        "MlpPolicy",
        VecMonitor(envs),
        learning_rate=1e-3,
        buffer_size=min(config.steps + config.envs * episode, _BUFFER_LIMIT),
        learning_starts=warm_up_steps,
        batch_size=BATCH_SIZE,
        gamma=task.discount,
        train_freq=1,
        gradient_steps=round(config.envs * config.update_ratio),
        policy_delay=2,
        n_steps=RETURN_STEPS,
        # Where an episode times out, the value of the state after it counts.
        replay_buffer_kwargs={"handle_timeout_termination": True},
        policy_kwargs={"net_arch": [config.hidden, config.hidden], "layer_norm": True},
        seed=config.seed + first_episode,
    )
    if not batched:
        model.env.seed(env_seed)  # the library has just seeded it with its own seed
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def warm_up_source(config: ExpertsConfig, task: str) -> tuple[PolicySource, str] | None:
    """Return the source of the first episodes' policy and the task that it is asked for."""
    if config.warm_up is None:
        return None
    return open_source(config.warm_up, noise=True), config.warm_up_task or task


def warm_up(model: Any, config: ExpertsConfig, task: Task) -> int:
    """Fill the replay buffer with episodes of another policy, and return their number of steps.

    Where random actions rarely reach any reward, episodes of a weak policy, of a related task's
    expert or of planning in the simulator show the learner states with reward from the start.
    """
    found = warm_up_source(config, task.name)
    if found is None:
        return 0
    source, known_as = found
    table = TaskTable((replace(task, name=known_as),))
    known = source.load(table)

    def policy(_: str, streams: Sequence[Stream], envs: Sequence[Any]) -> Act:
        return known(known_as, streams, envs)

    steps = 0
    for first in range(0, config.warm_up_episodes, config.envs):
        seeds = [WARM_UP_SEED + config.seed + first + row for row in range(config.envs)]
        streams = [(seed, seed_number(task)) for seed in seeds]
        episodes = rollout(policy, task, seeds, streams, noise=_WARM_UP_NOISE)
        done = [(episode, t) for episode in episodes for t in range(1, len(episode.action))]
        # The buffer takes one transition an environment at a time, and sums the rewards of
        # those that follow in one environment: each takes a part without gaps. A few are left.
        rows = len(done) // config.envs
        for row in range(rows):
            part = [done[begin + row] for begin in range(0, rows * config.envs, rows)]
            ended = [t == len(episode.action) - 1 for episode, t in part]
            cut = row == rows - 1
            model.replay_buffer.add(
                np.stack([episode.obs[t - 1] for episode, t in part]),
                np.stack([episode.obs[t] for episode, t in part]),
                np.stack([episode.action[t] for episode, t in part]),
                np.array([episode.reward[t] for episode, t in part]),
                np.array([end or cut for end in ended]),
                [
                    {"TimeLimit.truncated": (end or cut) and not (end and episode.terminated)}
                    for end, (episode, _) in zip(ended, part, strict=True)
                ],
            )
            steps += config.envs
    model.num_timesteps = steps
    return steps


def read_network(model: Any, task: str, step: int) -> ExpertNetwork:
    """Return the deterministic policy of the model's present weights."""
    params = model.policy.actor_state.params
    params = params.get("params", params)
    # Flax numbers the layers in order; the last one is the log std beside the mean.
    layers = [params[f"Dense_{index}"] for index in range(3)]
    return ExpertNetwork(
        task=task,
        algorithm="sac",
        steps=step,
        returns=(),
        weights=tuple(np.asarray(layer["kernel"]).T for layer in layers),
        biases=tuple(np.asarray(layer["bias"]) for layer in layers),
    )
