"""Measure the memory that a 317M checkpoint of each public layout takes to load.

Files of random weights are written into a temporary folder, one at a time, and each is loaded
in a fresh process, as an agent or as a teacher. The peak is what that process ever held
resident; what the interpreter and its libraries held before is told beside it:

    python benchmarks/teacher_memory.py
"""

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from public_layouts import layout_a, layout_b, layout_c

from tdmpc_opt import provenance
from tdmpc_opt.checkpoints.checkpoint import build, expected_shapes
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.configs import ModelConfig, Size, model_config
from tdmpc_opt.task_table import MT30, UNNAMED, Task, TaskTable
from tdmpc_opt.training.teachers import Question, WorldModelTeacher

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TERMS = {
    "reward": frozenset({"reward_mse"}),
    "reward, value, policy": frozenset({"reward_kl", "value_kl", "policy_kl"}),
}
SINGLE = TaskTable((Task(UNNAMED, 24, 6),))


@dataclass(frozen=True)
class Config:
    """What to measure."""

    size: Size = "317"
    """Published size of the model, in millions of parameters."""
    output: Path = Path("results/bench-teacher-memory.json")
    """Result file."""
    folder: Path | None = None
    """Where the files are written for a while; none means the system's temporary folder."""


def main(config: Config) -> None:
    """Write and load the files, then the result file."""
    rows = []
    with tempfile.TemporaryDirectory(dir=config.folder) as folder:
        for layout in ("A", "B", "C"):
            for stored in ("fp32", "fp16"):
                path = Path(folder) / f"{layout}-{stored}.pt"
                fresh(write_random, config.size, layout, stored, path)
                rows += [_row(path, layout, stored, *use) for use in _uses(stored)]
                path.unlink()
    content = {
        "kind": "teacher-memory",
        "schema": 1,
        "loads": rows,
        "config": {"size": config.size, "model": asdict(sizes(config.size, "A"))},
        "versions": provenance.versions(),
        "machine": provenance.machine(),
    }
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(json.dumps(content, indent=1) + "\n")


def _uses(stored: str) -> list[tuple[str, str]]:
    """Return what each file is loaded as, and the number format it computes in."""
    half = "bf16" if stored == "fp16" else "fp32"
    return [("agent", half), ("reward", "fp32"), ("reward, value, policy", "bf16")]


def _row(path: Path, layout: str, stored: str, use: str, computes: str) -> dict[str, Any]:
    found = fresh(load, path, use, computes)
    row = {"layout": layout, "stored": stored, "use": use, "computes": computes, **found}
    row["file_bytes"] = path.stat().st_size
    row["peak_over_file"] = found["peak_bytes"] / row["file_bytes"]
    rise = found["peak_bytes"] - found["before_bytes"]
    row["rise_over_file"] = rise / row["file_bytes"]
    row["rise_over_kept"] = rise / found["kept_bytes"]
    print(json.dumps(row), flush=True)  # noqa: T201
    return row


def sizes(size: Size, layout: str) -> ModelConfig:
    """Return the widths of a model; layout C knows a single task alone."""
    if layout != "C":
        return model_config(size, MT30)
    return ModelConfig(
        **{**asdict(model_config(size, MT30)), "task_dim": 0, "num_tasks": len(SINGLE)}
    )


def write_random(size: Size, layout: str, stored: str, path: Path) -> dict[str, Any]:
    """Write a checkpoint of random weights in one of the public layouts."""
    config, source = sizes(size, layout), torch.Generator().manual_seed(0)
    tensors = {
        name: torch.empty(shape).normal_(std=0.02, generator=source).to(DTYPES[stored])
        for name, shape in expected_shapes(config).items()
    }
    if layout == "B":
        entries = layout_b(tensors, [task.action_dim for task in MT30.tasks])
    else:
        entries = {"A": layout_a, "C": layout_c}[layout](tensors)
    torch.save({"model": entries}, path)
    return {}


def load(path: Path, use: str, computes: str) -> dict[str, Any]:
    """Load a checkpoint and tell what that took, and what is left of it in memory."""
    torch.set_num_threads(1)
    before, start = peak_bytes(), time.process_time()
    checkpoint, dtype = read_checkpoint(path, check_values=False), DTYPES[computes]
    if use == "agent":
        model = build(checkpoint, dtype=dtype)
    else:
        question = Question(TERMS[use], first_reward_only=True)
        cpu = torch.device("cpu")
        model = WorldModelTeacher(checkpoint, checkpoint.tasks, question, cpu, dtype).model
    seconds = time.process_time() - start
    kept = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return {
        "kept_bytes": kept,
        "cpu_seconds": seconds,
        "before_bytes": before,
        "peak_bytes": peak_bytes(),
    }


def peak_bytes() -> int:
    """Return the most that this process ever held resident, mapped pages of files included."""
    # Not ru_maxrss: a new program inherits that of the process it was started from.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell the peak of a process")


def fresh(function: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """Call a function in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
