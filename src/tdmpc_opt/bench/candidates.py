"""What is timed: each source with each way to run it, in a process of its own."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tdmpc_opt import zoo
from tdmpc_opt.configs import BenchConfig
from tdmpc_opt.errors import CheckpointError, InputError, RunError

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
        if self.engine == "runtime":
            return f"{Path(self.path).name} runtime"
        run = " eager" if self.engine == "eager" and self.preset != "policy" else ""
        return f"{Path(self.path).name} {self.preset}{run}"

    def file(self) -> dict[str, Any]:
        """Return name, content hash and size of the file."""
        path = Path(self.path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"name": path.name, "sha256": digest, "size_bytes": path.stat().st_size}


def candidates(config: BenchConfig) -> list[Candidate]:
    """Return what to time; the first is what the others are compared with.

    Raises:
        CheckpointError: A source that does not exist.
    """
    found = []
    for source in config.sources:
        path = _path(source)
        if _is_for_devices(path):
            found.append(_candidate(config, path, "runtime", None))
            continue
        for preset in config.preset:
            engines = ("eager",) if preset == "policy" else config.engine
            found += [_candidate(config, path, engine, preset) for engine in engines]
    return list(dict.fromkeys(found))


def _candidate(config: BenchConfig, path: Path, engine: str, preset: str | None) -> Candidate:
    return Candidate(str(path), engine, preset, config.threads, config.device)


def _path(source: str) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if source in zoo.names():
        return zoo.path(source)
    raise CheckpointError(
        f"{source} is neither a file nor a bundled checkpoint; bundled: "
        f"{', '.join(zoo.names()) or 'none'}"
    )


def _is_for_devices(path: Path) -> bool:
    """Return whether the file is not a checkpoint with a world model, which needs torch."""
    if path.suffix == ".onnx":
        return True
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
    except SafetensorError:
        return False
    return {name.partition(".")[0] for name in names} <= _POLICY_PARTS


class Worker:
    """A process that times one candidate.

    Args:
        candidate: What it holds.

    Raises:
        InputError: The candidate cannot be loaded or cannot run so.
    """

    def __init__(self, candidate: Candidate) -> None:
        self._candidate = candidate
        threads = dict.fromkeys(_THREAD_VARIABLES, str(candidate.threads))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tdmpc_opt.bench.worker"],
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
            self.end()
            raise

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its reply.

        Raises:
            RunError: The process died.
        """
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

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def workers(found: Sequence[Candidate]) -> Iterator[list[Worker]]:
    """Start a process for each candidate, and end them all with the block."""
    with ExitStack() as stack:
        started = []
        for candidate in found:
            started.append(Worker(candidate))
            stack.callback(started[-1].end)
        yield started
