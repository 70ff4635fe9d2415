"""Latency, memory and size of policies, which are timed in turns, each in its own process.

What else the machine does affects all of them equally.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from tdmpc_opt.configs.measure import BenchConfig
from tdmpc_opt.errors import (
    CheckpointError,
    InputError,
    MissingDependencyError,
    RunError,
    UnknownTaskError,
)
from tdmpc_opt.files import MODEL_FILE, refuse_overwrite, sha256
from tdmpc_opt.machine import ResultFile, choose_processes
from tdmpc_opt.progress import Progress, Silent, expected
from tdmpc_opt.runtime.agent import agent_file
from tdmpc_opt.schema import MT30

_POLICY_PARTS = {"encoder", "policy_head", "task_embedding"}
_THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True)
class Candidate:
    """A file and how it runs."""

    path: str
    engine: str
    """That of the planner, or `runtime` for the device's own code."""
    preset: str | None
    """None where the file itself is all there is."""
    threads: int
    device: str

    @property
    def name(self) -> str:
        """Name it by file and by how it runs."""
        path = Path(self.path)
        file = path.parent.name if path.name == MODEL_FILE else path.name
        if self.engine == "runtime":
            return f"{file} runtime"
        run = " eager" if self.engine == "eager" and self.preset != "policy" else ""
        return f"{file} {self.preset}{run}"


def candidates(config: BenchConfig) -> list[Candidate]:
    """Return what to time; the first is what the others are compared with.

    Raises:
        CheckpointError: A source that does not exist.
    """
    found = []
    for source in config.sources:
        path = agent_file(source)
        if not path.is_file():
            raise CheckpointError(f"{source} is neither a file nor a model folder")
        runs: list[tuple[str, str | None]] = [("runtime", None)]
        if not _is_for_devices(path):
            runs = [
                (engine, preset)
                for preset in config.preset
                for engine in (("eager",) if preset == "policy" else config.engine)
            ]
        found += [Candidate(str(path), *run, config.threads, config.device) for run in runs]
    return list(dict.fromkeys(found))


def _is_for_devices(path: Path) -> bool:
    """Return whether the file is not a checkpoint with a world model, which needs torch."""
    if path.suffix == ".onnx":
        return True
    try:
        with safe_open(path, framework="numpy") as file:
            return {name.partition(".")[0] for name in file.keys()} <= _POLICY_PARTS  # noqa: SIM118
    except SafetensorError:
        return False


class _Worker:
    """A process that times one candidate; it refuses one that cannot run so."""

    def __init__(self, candidate: Candidate) -> None:
        self._candidate = candidate
        threads = dict.fromkeys(_THREAD_VARIABLES, str(candidate.threads))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tdmpc_opt.evaluation.bench_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | threads,
        )
        try:
            self.facts = self.ask(asdict(candidate))
            if "error" in self.facts:
                raise InputError(f"{candidate.name}: {self.facts['error']}")
        except BaseException:
            self.close()
            raise

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its reply."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RunError(f"the process of {self._candidate.name} died, perhaps out of memory")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


_STEPS = 16
_WARM = 2
Array = NDArray[np.float32]
Turns = list[dict[str, Any]]
"""What a worker measured of one policy at one batch size, by turn."""


def bench(config: BenchConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Time the policies and write the result file, if one is asked for.

    Returns:
        The content of the result file.

    Raises:
        CheckpointError: A source that does not exist.
        InputError: A policy that cannot be loaded or run as asked; the message names it.
        UnknownTaskError: A policy that does not know the task.
        RunError: A process died.
        ResultError: The result file cannot be written.
    """
    refuse_overwrite(config, ".json")
    progress = progress or Silent()
    found = candidates(config)
    free = choose_processes()
    if free.count < config.threads:
        progress.warn(
            f"{config.threads} threads were asked for, {free.count} cores are free "
            f"({free.reason}): times will vary, and --threads {free.count} or a quiet machine "
            "measures better"
        )
    turns = config.rounds * len(config.batch) * len(found)
    progress.update(0, turns, f"{len(found)} policies{expected(turns * config.seconds)}")
    with ExitStack() as stack:
        workers = [stack.enter_context(closing(_Worker(candidate))) for candidate in found]
        task = _task(config, found, workers)
        steps, kind = _observations(task, workers[0].facts["tasks"][task], max(config.batch))
        times = _timed_in_turns(config, workers, task, steps, progress)
        records = [
            _record(candidate, worker.facts, own, times[0])
            for candidate, worker, own in zip(found, workers, times, strict=True)
        ]
    settings = {
        name: getattr(config, name) for name in ("threads", "device", "rounds", "seconds")
    }
    settings = {"task": task, "observations": kind} | settings
    # The load of the machine, where the system states it; 0 to 1 is a quiet one.
    load = {"load_average": os.getloadavg()[0]} if hasattr(os, "getloadavg") else {}
    return ResultFile(config.output, "bench", settings).write(
        reference=found[0].name, candidates=records, **load
    )


def _task(config: BenchConfig, found: Sequence[Candidate], started: Sequence[_Worker]) -> str:
    task = config.task or next(iter(started[0].facts["tasks"]))
    for candidate, worker in zip(found, started, strict=True):
        if task not in worker.facts["tasks"]:
            known = ", ".join(worker.facts["tasks"])
            raise UnknownTaskError(
                f"{candidate.name} does not know {task}; it knows {known}: choose with --task"
            )
    return str(task)


def _observations(task: str, obs_dim: int, batch: int) -> tuple[Array, str]:
    """Return observations [steps, batch, obs] and what they are."""
    try:
        from tdmpc_opt.tasks.environment import make_env

        if task in MT30.names:
            rows = [_walk(make_env(task, seed)) for seed in range(batch)]
            return np.stack(rows, axis=1), "first steps of real episodes, random actions"
    except (ModuleNotFoundError, MissingDependencyError):
        pass
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((_STEPS, batch, obs_dim), dtype=np.float32)
    return normal, "standard normal noise: no simulator of the task is installed"


def _walk(env: Any) -> Array:
    obs = [env.reset()[0]]
    env.action_space.seed(0)
    while len(obs) < _STEPS:
        obs.append(env.step(env.action_space.sample())[0])
    env.close()
    return np.asarray(obs, np.float32)


def _timed_in_turns(
    config: BenchConfig, workers: Sequence[_Worker], task: str, steps: Array, progress: Progress
) -> list[dict[int, Turns]]:
    """Return what was measured of each policy by those batch sizes that it can do."""
    measured: list[dict[int, Turns]] = [{} for _ in workers]
    turns = list(product(config.batch, range(config.rounds), range(len(workers))))
    refused: set[tuple[int, int]] = set()
    for done, (batch, turn, index) in enumerate(turns, 1):
        progress.update(done, len(turns), f"batch {batch}")
        if (batch, index) in refused:
            continue
        warm, obs = 0 if turn else _WARM, steps[:, :batch].tolist()
        request = {"task": task, "obs": obs, "seconds": config.seconds, "warm": warm}
        reply = workers[index].ask(request)
        if "error" in reply:
            refused.add((batch, index))
        else:
            measured[index].setdefault(batch, []).append(reply)
    return measured


def _record(
    candidate: Candidate,
    facts: dict[str, Any],
    own: dict[int, Turns],
    reference: dict[int, Turns],
) -> dict[str, Any]:
    path = Path(candidate.path)
    size = path.stat().st_size
    return {
        "name": candidate.name,
        "file": {"name": path.name, "sha256": sha256(path), "size_bytes": size},
        "preset": candidate.preset,
        "threads": candidate.threads,
        **{name: facts[name] for name in ("engine", "mode", "budget", "load_seconds")},
        "batches": {
            str(batch): _statistics(turns, batch, reference.get(batch))
            for batch, turns in own.items()
        },
    }


def _statistics(turns: Turns, batch: int, reference: Turns | None) -> dict[str, Any]:
    wall, cpu = (np.concatenate([turn[of] for turn in turns]) for of in ("wall_ms", "cpu_ms"))
    p50, p95, p99 = (float(value) for value in np.quantile(wall, (0.5, 0.95, 0.99)))
    return {
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "jitter_ms": float(wall.std()),
        "hz": 1000 / p50,
        "actions_per_second": 1000 * batch / p50,
        "cpu_p50_ms": float(np.median(cpu)),
        "cpu_min_ms": float(cpu.min()),
        "timed": len(wall),
        "peak_rss_bytes": turns[-1]["peak_rss_bytes"],
        "speedup": _speedup(turns, reference, "wall_ms"),
        "speedup_cpu": _speedup(turns, reference, "cpu_ms"),
    }


def _speedup(own: Turns, reference: Turns | None, time: str) -> float | None:
    """Return the median over turns of the ratio of both's medians, of turns side by side."""
    if reference is None:
        return None
    pairs = zip(reference, own, strict=True)
    return float(np.median([np.median(r[time]) / np.median(o[time]) for r, o in pairs]))
