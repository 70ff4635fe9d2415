"""Time and memory of importing, starting and sampling, by the size of the data.

For each size a synthetic shard of the official layout is written to a temporary folder, copied
and imported in turns, and trained on in new processes. Three times the largest size must be
free on the disk. Writes results/bench-sampling-scale.json:

    python benchmarks/sampling_scale.py --sizes 1 4 12
"""

import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from synthetic import write_shard
from timing import save

from tdmpc_opt.configs.data import DataImportConfig
from tdmpc_opt.configs.training import TrainConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.data.exchange import import_data
from tdmpc_opt.data.sampler import Batch, Sampling, SliceSampler
from tdmpc_opt.schema import MT30
from tdmpc_opt.training.loop import train


@dataclass(frozen=True)
class Config:
    """What to measure."""

    sizes: tuple[float, ...] = (1, 4, 12)
    """Sizes of the shard file, in gigabytes (10^9 bytes)."""
    rounds: int = 2
    """Copies and imports of each size, in turns."""
    updates: int = 40
    """Updates of the training that is timed."""
    batches: int = 100
    """Batches of each timing of the sampler alone."""
    folder: Path | None = None
    """Where to work; none means the system's temporary folder."""
    output: Path = Path("results/bench-sampling-scale.json")
    """Result file."""


class _Watch:
    """Notes when the first update was done, and the most memory since."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.anonymous = 0

    def update(self, done: int, total: int, text: str) -> None:
        """Record one update."""
        self.first = self.first or time.perf_counter()
        self.anonymous = max(self.anonymous, memory()["anonymous_bytes"])

    def warn(self, text: str) -> None:
        """Stop: the figures would be wrong."""
        raise RuntimeError(text)


def main(config: Config) -> None:
    """Measure every size and write the result file."""
    rows = []
    for size in config.sizes:
        with tempfile.TemporaryDirectory(dir=config.folder) as folder:
            rows.append(measure(config, size, Path(folder)))
            print(json.dumps(rows[-1]), flush=True)  # noqa: T201
    facts = {"sizes": rows, "batch_size": 256, "model_size": "1", "threads": 1}
    save("sampling-scale", config, facts, ("output", "folder"))


def measure(config: Config, gigabytes: float, folder: Path) -> dict[str, Any]:
    """Write a shard, and measure each step that follows in a new process."""
    shard, data = folder / "chunk_0.pt", folder / "data"
    row: dict[str, Any] = {"gigabytes": gigabytes}
    row["episodes"] = write_shard(shard, int(gigabytes * 1e9))
    row["shard_bytes"] = shard.stat().st_size
    copies, imports = [], []
    for _ in range(config.rounds):
        copies.append(_copy(shard, folder / "copy"))
        shutil.rmtree(data, ignore_errors=True)
        imports.append(fresh(timed_import, shard, data))
    row |= {"copies": copies, "imports": imports}
    seconds = [[run["wall_seconds"] for run in runs] for runs in (copies, imports)]
    row["import_over_copy"] = float(np.median(np.divide(*seconds)))
    shard.unlink()
    for cache in ("cold", "warm"):
        row[f"train_{cache}"] = fresh(_train, data, config.updates, cache, folder / cache)
    for sampling in ("uniform", "task", "return"):
        row[f"sample_{sampling}"] = fresh(_sample, data, config.batches, sampling)
    return row


def _copy(source: Path, target: Path) -> dict[str, float]:
    """Copy a file that is not in the cache to the disk."""
    forget(source)
    start, cpu = time.perf_counter(), time.process_time()
    shutil.copyfile(source, target)
    _sync(target)
    spent = {
        "wall_seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
    }
    target.unlink()
    return spent


def timed_import(source: Path, target: Path) -> dict[str, float]:
    """Import a file that is not in the cache."""
    forget(source)
    start, cpu = time.perf_counter(), time.process_time()
    import_data(DataImportConfig(sources=(source,), output=target))
    return {
        "wall_seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        **memory(),
    }


def _train(data: Path, updates: int, cache: str, output: Path) -> dict[str, float]:
    """Train the 1M student as the command does, and time its draws."""
    torch.set_num_threads(1)
    _prepare(data, cache)
    draw, spent, marks = SliceSampler.sample, [], []

    def sample(self: SliceSampler) -> Batch:
        marks.append((time.perf_counter(), time.process_time()))
        start, cpu = marks[-1]
        batch = draw(self)
        spent.append((time.perf_counter() - start, time.process_time() - cpu))
        return batch

    SliceSampler.sample = sample  # type: ignore[method-assign]
    watch, start = _Watch(), time.perf_counter()
    config = TrainConfig(
        data=data, output=output, updates=updates, device="cpu", log_every=1, save_every=updates
    )
    train(config, watch)
    assert watch.first is not None
    # The first updates warm torch up; the time of one is that from draw to draw.
    skip = min(5, updates // 2)
    wall, cpu = (np.array(marks)[-1] - np.array(marks)[skip]).tolist()
    drawn_wall, drawn_cpu = np.array(spent)[skip:-1].sum(axis=0).tolist()
    return {
        "first_update_seconds": watch.first - start,
        "update_seconds": wall / (updates - skip - 1),
        "sampling_share": drawn_wall / wall,
        "sampling_share_cpu": drawn_cpu / cpu,
        **memory(),
        "anonymous_peak_bytes": watch.anonymous,
    }


def _sample(data: Path, batches: int, sampling: Sampling) -> dict[str, float]:
    """Time the sampler alone, on data that is not in the cache and then again."""
    torch.set_num_threads(1)
    forget(data)
    found = {}
    for cache in ("cold", "warm"):
        sampler = _sampler(data, sampling)  # the same draws again
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(batches):
            sampler.sample()
        found[f"{cache}_batches_per_second"] = batches / (time.perf_counter() - start)
        found[f"{cache}_batch_cpu_ms"] = 1000 * (time.process_time() - cpu) / batches
    return found | memory()


def _sampler(data: Path, sampling: Sampling) -> SliceSampler:
    dataset = EpisodeDataset.open(data)
    return SliceSampler([dataset], MT30, horizon=3, batch_size=256, seed=0, sampling=sampling)


def _prepare(data: Path, cache: str) -> None:
    """Remove the data from the cache, or read all of it."""
    if cache == "cold":
        forget(data)
        return
    for path in data.rglob("*.memmap"):
        path.read_bytes()


def forget(path: Path) -> None:
    """Remove a file, or all files of a folder, from the system's cache."""
    for file in filter(Path.is_file, path.rglob("*") if path.is_dir() else [path]):
        _sync(file)
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _sync(path: Path) -> None:
    with path.open("rb") as opened:
        os.fsync(opened.fileno())


def memory() -> dict[str, int]:
    """Return the memory of this process, and its peak, in bytes."""
    found = {}
    for name in ("smaps_rollup", "status"):
        for line in Path(f"/proc/self/{name}").read_text().splitlines():
            key, _, value = line.partition(":")
            if value.strip().endswith("kB"):
                found[key] = int(value.split()[0]) * 1024
    return {
        "rss_bytes": found["Rss"],
        "anonymous_bytes": found["Anonymous"],
        "mapped_bytes": found["Rss"] - found["Anonymous"],
        "peak_rss_bytes": found["VmHWM"],
    }


def fresh(function: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """Call a function in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
