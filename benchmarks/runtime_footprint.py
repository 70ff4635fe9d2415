"""Start-up time, memory and latency of the torch-free runtime.

Each round starts a new interpreter for every file. Writes results/bench-runtime-footprint.json:

    python benchmarks/runtime_footprint.py --task cup-catch --files policy.onnx planner.onnx
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from timing import save

from tdmpc_opt.files import sha256

# Peak memory in KiB, from Linux. That of getrusage would begin with the parent's.
_PEAK = "next(int(x.split()[1]) for x in open('/proc/self/status') if x.startswith('VmHWM'))"
_RUN = """
import time
wall, cpu = time.perf_counter(), time.process_time()
from tdmpc_opt.runtime import load
imported = time.perf_counter(), time.process_time()
agent = load({path!r})
import numpy as np
width = agent.tasks[{task!r}].obs_dim
obs = np.linspace(-1, 1, width, dtype=np.float32)
agent.act(obs, {task!r})
first = time.perf_counter() - wall, time.process_time() - cpu
import json, sys
peak = {peak}
times = []
for _ in range({actions}):
    start = time.perf_counter(), time.process_time()
    agent.act(obs, {task!r})
    times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
print(json.dumps({{
    "first_s": first[0], "first_cpu_s": first[1],
    "import_cpu_s": imported[1] - cpu, "peak_kib": peak, "times": times,
    "torch": "torch" in sys.modules,
}}))
"""


@dataclass(frozen=True)
class Config:
    """What to measure."""

    files: tuple[Path, ...]
    """Files of `tdmpc-opt export` or `quantize`."""
    task: str
    """Task that they act in."""
    rounds: int = 5
    """Fresh starts of each file, after one that is not counted."""
    actions: int = 200
    """Actions after the first."""
    python: str = sys.executable
    """Interpreter to start, such as one without torch."""
    output: Path = Path("results/bench-runtime-footprint.json")
    """Result file."""


def main(config: Config) -> None:
    """Measure, write the result file and print its figures."""
    found: dict[Path, list[dict[str, Any]]] = {path: [] for path in config.files}
    bare = []
    for _ in range(config.rounds + 1):
        bare.append(int(_child(config.python, f"print({_PEAK})")))
        for path, records in found.items():
            code = _RUN.format(
                path=str(path), task=config.task, actions=config.actions, peak=_PEAK
            )
            records.append(json.loads(_child(config.python, code)))
    baseline = float(np.median(bare))
    files = [_record(path, found[path][1:], baseline) for path in config.files]
    facts = {"files": files, "bare_python_mb": baseline * 1024 / 1e6}
    save("runtime-footprint", config, facts, ("output", "files", "python"))
    Console().print_json(data=files)


def _child(python: str, code: str) -> str:
    run = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout


def _record(path: Path, records: list[dict[str, Any]], baseline: float) -> dict[str, Any]:
    if any(record["torch"] for record in records):
        raise SystemExit(f"{path}: the runtime loaded torch")
    wall, cpu = (np.array([record["times"] for record in records])[..., i] for i in (0, 1))
    peak = np.median([record["peak_kib"] for record in records]) - baseline
    return {
        "name": path.name,
        "sha256": sha256(path),
        "size_bytes": path.stat().st_size,
        "first_action_s": float(np.median([record["first_s"] for record in records])),
        "first_action_cpu_s": float(np.median([record["first_cpu_s"] for record in records])),
        "import_cpu_s": float(np.median([record["import_cpu_s"] for record in records])),
        "memory_over_bare_python_mb": float(peak * 1024 / 1e6),
        "act_ms_p50": float(1000 * np.median(wall)),
        "act_cpu_ms_p50": float(1000 * np.median(cpu)),
        "act_cpu_ms_min": float(1000 * cpu.min()),
    }


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
