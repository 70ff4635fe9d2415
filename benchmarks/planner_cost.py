"""What a plan costs against samples, iterations, model size and batch, as a file and a plot.

Eager plans of models with random weights on one thread, each in turns with a plan of the full
budget of the 1M model, so that what else the machine does hits both alike:

    python benchmarks/planner_cost.py
"""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from racing import save

from tdmpc_opt.agent import Agent
from tdmpc_opt.configs import PlannerBudget, model_config
from tdmpc_opt.configs.model import Size
from tdmpc_opt.task_table import MT30
from tdmpc_opt.world_model.model import WorldModel

Act = Callable[[], Any]
_MOST_SECONDS = 60.0
_SHORT_SECONDS = 0.2
"""Plans that take less are made several times a turn."""


@dataclass(frozen=True)
class Config:
    """What to time."""

    samples: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Sequences per iteration, of which 24 or a half are the policy prior's."""
    iterations: tuple[int, ...] = (1, 2, 4, 6)
    """Refinements."""
    sizes: tuple[Size, ...] = ("1", "5", "19", "48", "317")
    """Models in millions of parameters; the last takes 1.3 GB."""
    batch: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Observations planned for at once."""
    turns: int = 5
    """Turns of each, after a plan that does not count; fewer of plans that take a minute."""
    output: Path = Path("results/bench-planner-cost.json")
    """Result file."""
    plot: Path = Path("docs/planner-cost.png")
    """Plot of it."""


def main(config: Config) -> None:
    """Time the plans, write the result file and draw it."""
    torch.set_num_threads(1)
    reference = _act(_model("1"), PlannerBudget(), 1)

    def cost(size: Size, budget: PlannerBudget, rows: int = 1) -> dict[str, float]:
        return _time(_act(_model(size), budget, rows), reference, config.turns)

    full, small = PlannerBudget(), _budget(64, 1)
    budgets = [
        {"samples": samples, "iterations": rounds, **cost("1", _budget(samples, rounds))}
        for samples, rounds in itertools.product(config.samples, config.iterations)
    ]
    sizes = [
        {
            "size": size,
            "parameters": _parameters(size),
            "full": cost(size, full),
            "small": cost(size, small),
        }
        for size in config.sizes
    ]
    batches = [
        {"batch": rows, "full": cost("1", full, rows), "small": cost("1", small, rows)}
        for rows in config.batch
    ]
    content = {"budgets": budgets, "sizes": sizes, "batches": batches, "threads": 1}
    save("planner-cost", config, content, leave_out=("output", "plot"))
    _draw(content, config.plot)


def _budget(samples: int, iterations: int) -> PlannerBudget:
    prior = min(24, samples // 2)
    elites = max(2, samples // 8)
    return PlannerBudget(
        samples=samples, policy_samples=prior, elites=elites, iterations=iterations
    )


def _model(size: Size) -> WorldModel:
    generator = torch.Generator().manual_seed(0)
    return WorldModel(model_config(size, MT30), MT30, generator).eval()


def _parameters(size: Size) -> int:
    with torch.device("meta"):
        model = WorldModel(model_config(size, MT30), MT30)
    unused = sum(p.numel() for p in model.target_q_ensemble.parameters())
    return sum(p.numel() for p in model.parameters()) - unused


def _act(model: WorldModel, budget: PlannerBudget, rows: int) -> Act:
    agent = Agent(model, budget=budget)
    obs = torch.randn(rows, model.config.obs_dim, generator=torch.Generator().manual_seed(0))
    ids = [0] * rows
    return lambda: agent.act(obs, ids)


def _time(act: Act, reference: Act, turns: int) -> dict[str, float]:
    """Return milliseconds, of processor time too, and the share of the reference's time."""
    wall, cpu, shares = [], [], []
    first = _once(act)[0]
    short = max(1, min(10, int(_SHORT_SECONDS / first)))
    for _ in range(max(1, min(turns, int(_MOST_SECONDS / first)))):
        whole = _once(reference)[1]
        for own in [_once(act) for _ in range(short)]:
            wall.append(1000 * own[0])
            cpu.append(1000 * own[1])
            shares.append(own[1] / whole)
    return {
        "ms": statistics.median(wall),
        "cpu_ms": statistics.median(cpu),
        "share": statistics.median(shares),
    }


def _once(act: Act) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - wall, time.process_time() - cpu


def _draw(content: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(11.0, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for rounds in sorted({row["iterations"] for row in content["budgets"]}):
        rows = [row for row in content["budgets"] if row["iterations"] == rounds]
        points = [(row["samples"], row["ms"]) for row in rows]
        left.plot(*zip(*points, strict=True), "o-", label=f"iterations: {rounds}")
    _label(left, "samples (1M model, one observation)")
    _ticks(left.xaxis, sorted({row["samples"] for row in content["budgets"]}))
    for axis, rows, key in (
        (middle, content["sizes"], "parameters"),
        (right, content["batches"], "batch"),
    ):
        for name, label in (("full", "full budget"), ("small", "64 samples, 1 iteration")):
            points = [(row[key], row[name]["ms"]) for row in rows]
            axis.plot(*zip(*points, strict=True), "o-", label=label)
    _label(middle, "parameters (one observation)")
    _label(right, "batch (1M model)")
    _ticks(right.xaxis, [row["batch"] for row in content["batches"]])
    figure.savefig(path, dpi=120)


def _ticks(axis: Axis, places: list[int]) -> None:
    axis.set_ticks(places, [str(place) for place in places])
    axis.set_minor_locator(NullLocator())


def _label(axis: Axes, name: str) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(name)
    axis.set_ylabel("ms per plan, one thread")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
