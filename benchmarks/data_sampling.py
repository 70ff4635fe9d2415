"""Batches per second of the sampler, against slices cut one by one.

Both read the same memory-mapped synthetic data on one thread:

    python benchmarks/data_sampling.py
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from racing import race, records, report
from synthetic import synthetic_dataset
from torch import Tensor

from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.data.sampler import SliceSampler

HORIZON = 3


@dataclass(frozen=True)
class Config:
    """What to time."""

    batch_size: int = 256
    """Slices per batch."""
    tasks: int = 30
    """Tasks of the data."""
    episodes: int = 20
    """Episodes of each."""
    rounds: int = 200
    """Batches of each contender, after one that does not count."""
    output: Path = Path("results/bench-data-sampling.json")
    """Result file."""


def main(config: Config) -> None:
    """Time the batches, write the result file and print it as a table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset = synthetic_dataset(Path(folder) / "data", config.tasks, config.episodes)
        plain = PlainSampler(dataset, config.batch_size)
        ours = SliceSampler(
            [dataset], dataset.tasks, horizon=HORIZON, batch_size=config.batch_size, seed=0
        )
        times = race({"plain": plain.sample, "tdmpc-opt": ours.sample}, config.rounds)
    found = records(times, dict.fromkeys(times, 1.0))
    report("data-sampling", "batches", found, config, {"threads": 1})


class PlainSampler:
    """Draws a shard, an episode and a start for each slice, and stacks the slices."""

    def __init__(self, dataset: EpisodeDataset, batch_size: int) -> None:
        self._shards = [
            (dataset.arrays(shard), dataset.tasks.index(shard.task)) for shard in dataset.shards
        ]
        self._batch_size, self._length = batch_size, dataset.length
        self._generator = np.random.default_rng(0)

    def sample(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return observations, actions, rewards and task ids of a batch."""
        obs, action, reward, tasks = [], [], [], []
        for _ in range(self._batch_size):
            arrays, task = self._shards[self._generator.integers(len(self._shards))]
            episode = self._generator.integers(len(arrays.obs))
            start = self._generator.integers(self._length - HORIZON)
            steps = slice(start + 1, start + 1 + HORIZON)
            obs.append(torch.from_numpy(arrays.obs[episode, start : steps.stop].copy()))
            action.append(torch.from_numpy(arrays.action[episode, steps].copy()))
            reward.append(torch.from_numpy(arrays.reward[episode, steps].copy()))
            tasks.append(task)
        batch = torch.stack(obs, 1), torch.stack(action, 1), torch.stack(reward, 1)
        for part in batch:
            if not bool(torch.isfinite(part).all()):
                raise ValueError("the batch holds NaN or infinity")
        return *batch, torch.tensor(tasks)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
