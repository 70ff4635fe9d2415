"""Losses and updates per second of training in one process and in two (torchrun).

All train the same student on the same global batches of synthetic data through the command
line, and take turns by resuming their runs. Writes results/bench-ddp.json:

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

from tdmpc_opt.schema import Size

ROOT = Path(__file__).resolve().parents[1]
WARM = 5
"""First updates of each turn, whose time is not counted."""


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


CONTENDERS = {"1 x 1 threads": (1, 1), "1 x 2 threads": (1, 2), "2 x 1 threads": (2, 1)}
"""Processes, and threads of each."""


def main(config: Config) -> None:
    """Train in turns, write the result file and print its content."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        synthetic_dataset(folder / "data", config.tasks, episodes=2)
        load = []
        for done in range(1, config.rounds + 1):
            for name in CONTENDERS:
                _train(config, name, folder, done * config.updates)
                load.append(os.getloadavg()[0])
        rows = {name: _rows(folder / name) for name in CONTENDERS}
    one, *_, two = rows.values()
    turns = [number for number in range(len(one)) if number % config.updates >= WARM]
    facts = {
        "updates_per_second": {
            name: float(np.median([float(found[i]["updates_per_second"]) for i in turns]))
            for name, found in rows.items()
        },
        "updates_compared": len(one),
        "largest_relative_difference": _differences(one, two),
        "loss_first_and_last": [float(one[0]["loss"]), float(one[-1]["loss"])],
        "load_average": [min(load), max(load)],
    }
    save("ddp", config, facts)
    Console().print(facts)


def _train(config: Config, name: str, folder: Path, updates: int) -> None:
    processes, threads = CONTENDERS[name]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    options = {
        "data": folder / "data",
        "output": folder / name,
        "size": config.size,
        "batch-size": config.batch_size,
        "updates": updates,
        "log-every": 1,
        "save-every": updates,
        "device": "cpu",
    }
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "tdmpc_opt", "train"]
    command += [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    environment = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        command, env=os.environ | environment, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


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
