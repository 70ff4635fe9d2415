"""Time one plan by every engine that is installed, against plain eager modules.

All engines take turns in one process on one thread, so that what else the machine does hits all
of them alike:

    python benchmarks/planner_latency.py --checkpoint student.safetensors
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from plain import PlainPlanner
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tdmpc_opt import provenance
from tdmpc_opt.checkpoints.checkpoint import build
from tdmpc_opt.checkpoints.load import read_checkpoint, resolve, sha256
from tdmpc_opt.configs import EngineName, EnginePrecision, PlannerBudget
from tdmpc_opt.errors import MissingDependencyError
from tdmpc_opt.planning.engines import make_engine
from tdmpc_opt.planning.mppi import PlanNoise, draw_noise, prepare, search
from tdmpc_opt.planning.networks import PlannerNetworks
from tdmpc_opt.world_model.model import WorldModel

Plan = Callable[[], tuple[Tensor, Tensor]]

ENGINES: tuple[tuple[EngineName, EnginePrecision], ...] = (
    ("eager", "fp32"),
    ("compile", "fp32"),
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("native", "fp32"),
    ("onnxruntime", "int8"),
    ("native", "int8"),
)


@dataclass(frozen=True)
class Config:
    """What to time."""

    checkpoint: str = "demo-teacher"
    """Checkpoint file, or a zoo name."""
    rows: int = 1
    """Batch size."""
    rounds: int = 40
    """Plans of each engine, after two that do not count."""
    output: Path = Path("results/bench-planner-latency.json")
    """Result file."""


def main(config: Config) -> None:
    """Time the engines, write the result file and print it as a table."""
    torch.set_num_threads(1)
    model = build(read_checkpoint(config.checkpoint))
    with torch.inference_mode():
        plans, missing = _plans(model, config.rows)
        times = _race(plans, config.rounds)
        records = {name: _record(times[name], times["plain"]) for name in plans}
        for name, record in records.items():
            record["agreement"] = _agreement(plans["plain"](), plans[name]())
    path = resolve(config.checkpoint)
    content = {
        "kind": "planner-latency",
        "schema": 1,
        "engines": records,
        "missing": missing,
        "config": {
            "checkpoint": {"name": path.name, "sha256": sha256(path)},
            "model": asdict(model.config),
            "budget": asdict(PlannerBudget()),
            "rows": config.rows,
            "rounds": config.rounds,
            "threads": 1,
        },
        "versions": provenance.versions(),
        "machine": provenance.machine() | {"simd": torch.backends.cpu.get_cpu_capability()},
    }
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(json.dumps(content, indent=1) + "\n")
    _show(records, missing)


def _plans(model: WorldModel, rows: int) -> tuple[dict[str, Plan], dict[str, str]]:
    """Return what plans by name, all from the same noise, and why others cannot."""
    budget, networks = PlannerBudget(), PlannerNetworks(model)
    source = torch.Generator().manual_seed(0)
    task = torch.arange(rows) % len(model.tasks)
    obs = torch.randn(rows, model.config.obs_dim, generator=source)
    z = model.encode(obs, task)
    noise = draw_noise(model, budget, [source] * rows)
    previous = z.new_zeros(budget.horizon, rows, model.config.action_dim)
    modules = PlainPlanner(model, budget)
    plans: dict[str, Plan] = {"plain": lambda: modules.plan(z, task, previous, noise)}
    missing: dict[str, str] = {}
    for name, precision in ENGINES:
        try:
            engine = make_engine(name, precision, networks, budget)
        except MissingDependencyError as error:
            missing[f"{name} {precision}"] = str(error)
            continue

        def plan(engine: Any = engine, noise: PlanNoise = noise) -> tuple[Tensor, Tensor]:
            problem = prepare(networks, z, task, noise.prior)
            result = search(engine, problem, previous, noise, budget.max_std)
            return result.mean, result.std

        plans[f"{name} {precision}"] = plan
    return plans, missing


def _race(plans: dict[str, Plan], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return wall and processor time of each plan in seconds, the engines taking turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in plans}
    for plan in plans.values():
        plan()
        plan()
    for _ in range(rounds):
        for name, plan in plans.items():
            wall, cpu = time.perf_counter(), time.process_time()
            plan()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return times


def _record(own: list[tuple[float, float]], plain: list[tuple[float, float]]) -> dict[str, Any]:
    wall, cpu = (1000 * np.array(part) for part in zip(*own, strict=True))
    plain_wall, plain_cpu = (1000 * np.array(part) for part in zip(*plain, strict=True))
    return {
        "ms_p50": float(np.median(wall)),
        "ms_p95": float(np.quantile(wall, 0.95)),
        "cpu_ms_p50": float(np.median(cpu)),
        "cpu_ms_min": float(cpu.min()),
        "speedup": float(np.median(plain_wall) / np.median(wall)),
        "speedup_cpu": float(np.median(plain_cpu) / np.median(cpu)),
        "speedup_cpu_best": float(plain_cpu.min() / cpu.min()),
    }


def _agreement(reference: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Return the largest difference of mean or std."""
    return max(float((a - b).abs().max()) for a, b in zip(reference, other, strict=True))


def _show(records: dict[str, dict[str, Any]], missing: dict[str, str]) -> None:
    table = Table(title="One plan, one thread", title_justify="left")
    columns = ("ms p50", "p95", "CPU ms p50", "speedup", "by CPU", "by best CPU", "difference")
    table.add_column("engine")
    for column in columns:
        table.add_column(column, justify="right")
    for name, r in records.items():
        numbers = (r["ms_p50"], r["ms_p95"], r["cpu_ms_p50"])
        ratios = (r["speedup"], r["speedup_cpu"], r["speedup_cpu_best"])
        shown = [f"{x:.1f}" for x in numbers] + [f"{x:.2f}x" for x in ratios]
        table.add_row(name, *shown, f"{r['agreement']:.1e}")
    console = Console()
    console.print(table)
    for name, reason in missing.items():
        console.print(f"{name}: {reason}", markup=False)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
