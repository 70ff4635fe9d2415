"""Kill a distillation run again and again, and compare what it ends as with one left alone.

Two kills of three come at a random moment, from outside. The third comes from inside a
checkpoint: at a fault point before, in the middle of or after a write, a sync to disk or a
rename.

    python benchmarks/kills.py --kills 100
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console

from tdmpc_opt import atomic, provenance
from tdmpc_opt.checkpoints import native, training_state
from tdmpc_opt.collection.collect import collect
from tdmpc_opt.configs import CollectConfig, DistillConfig, DistillWeights, Schedule
from tdmpc_opt.training.distillation import distill

POINTS = (
    *("before write", "in write", "after write"),
    *("before sync", "after sync", "before rename", "after rename"),
)
WRITERS = ("weights", "state")
RANDOM = "random moment"


@dataclass(frozen=True)
class Config:
    """How often to kill."""

    kills: int = 100
    """Kills in all; a run that ends is compared and the next begins."""
    updates: int = 60
    """Updates of a run."""
    save_every: int = 4
    """Updates between checkpoints."""
    seed: int = 0
    """Seed of moments and fault points."""
    output: Path = Path("results/kills.json")
    """Result file."""


@dataclass(frozen=True)
class FaultPoint:
    """A place in the writing of a checkpoint."""

    point: str
    """One of `POINTS`."""
    writer: str
    """Which of the two files of a checkpoint is written: one of `WRITERS`."""
    after: int
    """Checkpoints that are written whole before."""


def main(config: Config) -> None:
    """Kill, resume, compare, and write the result file."""
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        result = _experiment(config, Path(folder))
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(json.dumps(result, indent=1) + "\n")
    Console().print(
        f"{result['identical']} of {result['kills']} kills survived to the bit, over "
        f"{result['runs']} runs; {config.output}",
        highlight=False,
    )
    if result["identical"] != result["kills"]:
        sys.exit(1)


def _experiment(config: Config, folder: Path) -> dict[str, Any]:
    task = _task(config, folder)
    reference = task(folder / "reference" / "run")
    started = time.monotonic()
    assert _in_child(lambda: distill(reference)) == 0
    seconds = time.monotonic() - started
    draw = random.Random(config.seed)
    kinds: Counter[str] = Counter()
    identical = runs = 0
    while kinds.total() < config.kills:
        run = task(folder / str(runs) / "run")
        suffered = _one_run(run, draw, seconds, kinds, config.kills)
        same = _same_ending(run.output, reference.output)
        kinds += suffered
        identical += suffered.total() * same
        runs += 1
        shutil.rmtree(run.output.parent)
    return {
        "kind": "kills",
        "kills": kinds.total(),
        "identical": identical,
        "runs": runs,
        "by_point": dict(sorted(kinds.items())),
        "config": {**asdict(config), "output": config.output.name},
        "versions": provenance.versions(),
        "machine": provenance.machine(),
    }


def _task(config: Config, folder: Path) -> Callable[[Path], DistillConfig]:
    """Collect a little of real data, and return what every run does."""
    drive = CollectConfig(
        policy="demo-teacher",
        tasks="pendulum-spin,cartpole-balance",
        episodes=1,
        output=folder / "data",
        device="cpu",
        workers=1,
    )
    collect(drive)
    return lambda output: DistillConfig(
        data=folder / "data",
        output=output,
        teacher="demo-teacher",
        size="0.3",
        updates=config.updates,
        batch_size=8,
        device="cpu",
        log_every=1,
        save_every=config.save_every,
        terms=DistillWeights(latent=Schedule(1.0), policy_mse=Schedule(0.5)),
    )


def _one_run(
    run: DistillConfig, draw: random.Random, seconds: float, before: Counter[str], kills: int
) -> Counter[str]:
    """Start a run, kill it, go on, until it ends by itself; return how it was killed."""
    suffered: Counter[str] = Counter()
    while (so_far := before + suffered).total() < kills:
        if 3 * (so_far.total() - so_far[RANDOM]) <= so_far.total():
            fault = FaultPoint(draw.choice(POINTS), draw.choice(WRITERS), draw.randrange(4))
            kind = f"{fault.point} of {fault.writer}"
            status = _in_child(_with_fault(run, fault))
        else:
            kind = RANDOM
            status = _in_child(lambda: distill(run), kill_after=draw.uniform(0, seconds))
        if status == 0:
            return suffered
        assert status == -signal.SIGKILL, f"the run failed by itself: {status}"
        suffered[kind] += 1
    assert _in_child(lambda: distill(run)) == 0
    return suffered


def _in_child(work: Callable[[], object], kill_after: float | None = None) -> int:
    """Run in a process forked from this one, which has imported everything already."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            work()
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _with_fault(run: DistillConfig, fault: FaultPoint) -> Callable[[], object]:
    def work() -> object:
        _Saboteur(fault).install()
        return distill(run)

    return work


class _Saboteur:
    """Watches the files of checkpoints being written, and dies at its fault point."""

    def __init__(self, fault: FaultPoint) -> None:
        self._fault = fault
        self._seen = 0
        self._armed = False

    def install(self) -> None:
        """Wrap what writes, syncs and renames, in this process alone."""
        native.save_file = self._write(native.save_file, "weights", path_at=1)
        training_state.torch.save = self._write(torch.save, "state", path_at=1)
        atomic.os.fsync = self._around(os.fsync, "sync")
        Path.replace = self._around(Path.replace, "rename")

    def _write(
        self, write: Callable[..., Any], writer: str, path_at: int
    ) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            self._armed = writer == self._fault.writer and self._seen >= self._fault.after
            self._seen += writer == self._fault.writer
            self._die_at("before write")
            result = write(*arguments, **options)
            if self._armed and self._fault.point == "in write":
                path = Path(arguments[path_at])
                os.truncate(path, path.stat().st_size // 2)
            self._die_at("in write")
            self._die_at("after write")
            return result

        return wrapped

    def _around(self, act: Callable[..., Any], name: str) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            self._die_at(f"before {name}")
            result = act(*arguments)
            self._die_at(f"after {name}")
            return result

        return wrapped

    def _die_at(self, point: str) -> None:
        if self._armed and point == self._fault.point:
            os.kill(os.getpid(), signal.SIGKILL)


def _same_ending(run: Path, reference: Path) -> bool:
    """Compare weights, newest state and curves (but for speed) of two runs, to the bit."""
    weights = [(folder / "model.safetensors").read_bytes() for folder in (run, reference)]
    states = [training_state.StateFolder(folder).newest(_refuse) for folder in (run, reference)]
    curves = [_curves(folder) for folder in (run, reference)]
    left_over = list(run.rglob("*.tmp"))
    return (
        weights[0] == weights[1] and curves[0] == curves[1] and _same(*states) and not left_over
    )


def _curves(folder: Path) -> list[list[str]]:
    rows = [row.split(",") for row in (folder / "metrics.csv").read_text().splitlines()]
    speed = rows[0].index("updates_per_second")
    return [row[:speed] + row[speed + 1 :] for row in rows]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _refuse(text: str) -> None:
    raise AssertionError(text)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
