"""Losses and updates per second of one process, and of two that torchrun starts.

All train the same student on the same global batches of synthetic data, through the command
line. They take turns, each resuming its own run for some updates more, so that what else the
machine does hits all of them alike:

    python benchmarks/ddp.py
"""

import csv
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from synthetic import synthetic_dataset
from timing import save

from tdmpc_opt.configs.model import Size

ROOT = Path(__file__).resolve().parents[1]
WARM = 5
"""Updates of each turn whose time does not count."""


@dataclass(frozen=True)
class Config:
    """What to measure."""

    size: Size = "1"
    """Student, in millions of parameters."""
    batch_size: int = 256
    """Slices per update, over all processes."""
    tasks: int = 30
    """Tasks of the data."""
    updates: int = 20
    """Updates of each turn."""
    rounds: int = 3
    """Turns of each contender."""
    output: Path = Path("results/bench-ddp.json")
    """Result file."""


@dataclass(frozen=True)
class Contender:
    """A way to train."""

    processes: int
    threads: int

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.processes} x {self.threads} threads"


CONTENDERS = (Contender(1, 1), Contender(1, 2), Contender(2, 1))


def main(config: Config) -> None:
    """Train in turns, write the result file and print what it says."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic_dataset(folder / "data", config.tasks, episodes=2)
        load = []
        for done in range(1, config.rounds + 1):
            for contender in CONTENDERS:
                _train(config, contender, folder, done * config.updates)
                load.append(os.getloadavg()[0])
        rows = {c: _rows(folder / c.name) for c in CONTENDERS}
    one, two = rows[CONTENDERS[0]], rows[CONTENDERS[-1]]
    facts = {
        "updates_per_second": {
            c.name: float(np.median(_speeds(found, config.updates)))
            for c, found in rows.items()
        },
        "updates_compared": len(one),
        "largest_relative_difference": _differences(one, two),
        "loss_first_and_last": [float(one[0]["loss"]), float(one[-1]["loss"])],
        "load_average": [min(load), max(load)],
    }
    save("ddp", config, facts)
    Console().print(facts)


def _train(config: Config, contender: Contender, folder: Path, updates: int) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone"]
    launcher += [f"--nproc-per-node={contender.processes}"]
    options = {
        "data": folder / "data",
        "output": folder / contender.name,
        "size": config.size,
        "batch-size": config.batch_size,
        "updates": updates,
        "log-every": 1,
        "save-every": updates,
        "device": "cpu",
    }
    command = [*(launcher if contender.processes > 1 else []), "-m", "tdmpc_opt", "train"]
    command += [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    threads = str(contender.threads)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": threads}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _speeds(rows: list[dict[str, str]], updates: int) -> list[float]:
    """Return the speed at each update that is not one of the first of a turn."""
    return [
        float(row["updates_per_second"])
        for index, row in enumerate(rows)
        if index % updates >= WARM
    ]


def _differences(one: list[dict[str, str]], two: list[dict[str, str]]) -> dict[str, Any]:
    """Return the largest relative difference over all updates, of each column."""
    columns = ("loss", "consistency", "reward", "value", "policy", "grad_norm", "q_scale")
    return {
        name: max(
            abs(float(a[name]) - float(b[name])) / abs(float(a[name]))
            for a, b in zip(one, two, strict=True)
        )
        for name in columns
    }


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
