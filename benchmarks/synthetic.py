"""Random data with the shapes of MT30: datasets, and shard files of any size."""

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict

from tdmpc_opt.data.episodes import Episode, EpisodeDataset
from tdmpc_opt.data.official_files import open_official
from tdmpc_opt.schema import MT30, Task

ROWS = 501
EPISODE_BYTES = ROWS * (MT30.obs_dim + MT30.action_dim + 2) * 4
_BLOCK = 128


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


def write_shard(path: Path, size_bytes: int) -> int:
    """Write a shard of the official layout in float32.

    Args:
        path: File to write.
        size_bytes: Approximate size of the file.

    Returns:
        Number of episodes.
    """
    episodes = max(size_bytes // EPISODE_BYTES, len(MT30))
    rng = np.random.default_rng(0)
    tasks = np.sort(np.arange(episodes) % len(MT30))
    _write_outline(path, episodes)
    places = open_official(path).places
    with path.open("r+b") as file:
        for field, place in places.items():
            file.seek(place)
            for start in range(0, episodes, _BLOCK):
                file.write(_values(field, tasks[start : start + _BLOCK], rng).data)
        file.flush()
        os.fsync(file.fileno())
    return episodes


def _write_outline(path: Path, episodes: int) -> None:
    """Write the file by torch without values, as a sparse file."""
    lead = (episodes, ROWS)
    shapes = {
        "obs": ((*lead, MT30.obs_dim), torch.float32),
        "action": ((*lead, MT30.action_dim), torch.float32),
        "reward": (lead, torch.float32),
        "task": (lead, torch.int32),
    }
    tensors, hole = {}, path.with_suffix(".hole")
    for name, (shape, dtype) in shapes.items():
        count = int(np.prod(shape))
        hole.touch()
        os.truncate(hole, 4 * count)
        tensors[name] = torch.from_file(str(hole), size=count, dtype=dtype).view(shape)
        hole.unlink()
    with torch.serialization.skip_data():
        torch.save(TensorDict(tensors, batch_size=lead), path)


def _values(field: str, tasks: NDArray[np.int64], rng: np.random.Generator) -> NDArray:
    """Return a block of episodes, each of the same rows: their values do not matter."""
    lead = (len(tasks), ROWS)
    if field == "task":
        return np.repeat(tasks.astype("<i4")[:, None], ROWS, axis=1)
    if field == "reward":
        values = np.tile(rng.random((len(tasks), 1), "<f4"), (1, ROWS))
        values[:, 0] = np.nan
        return values
    known = [getattr(task, f"{field}_dim") for task in MT30.tasks]
    width = MT30.obs_dim if field == "obs" else MT30.action_dim
    values = np.empty((*lead, width), "<f4")
    values[:] = rng.uniform(-1, 1, (ROWS, width)).astype("<f4")
    values *= np.arange(width) < np.array(known)[tasks][:, None, None]
    if field == "action":
        values[:, 0] = np.nan
    return values
