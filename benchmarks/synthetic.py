"""Data with the shapes of MT30, for benchmarks that need no simulator."""

from pathlib import Path

import numpy as np

from tdmpc_opt.data.episodes import Episode, EpisodeDataset
from tdmpc_opt.task_table import MT30, Task


def synthetic_dataset(folder: Path, tasks: int, episodes: int) -> EpisodeDataset:
    """Write episodes of normal observations and uniform actions for the first tasks of MT30."""
    table = MT30.subset(MT30.names[:tasks])
    dataset = EpisodeDataset.create(folder, table)
    rng = np.random.default_rng(0)
    for task in table.tasks:
        made = [_episode(task, seed, dataset.length, rng) for seed in range(episodes)]
        dataset.append_shard(task.name, made, {"policy": "synthetic"})
    return dataset


def _episode(task: Task, seed: int, rows: int, rng: np.random.Generator) -> Episode:
    action = rng.uniform(-1, 1, (rows, task.action_dim)).astype(np.float32)
    reward = rng.uniform(0, 2, rows).astype(np.float32)
    action[0], reward[0] = np.nan, np.nan
    obs = rng.standard_normal((rows, task.obs_dim), dtype=np.float32)
    return Episode(task.name, seed, obs, action, reward)
