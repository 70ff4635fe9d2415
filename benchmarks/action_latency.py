"""Latency of one action, from observation to action, by preset and by exported file.

The plans of plain modules, the presets, and exported files in the runtime without torch take
turns in one process on one thread. Writes results/bench-action-latency.json:

    python benchmarks/action_latency.py --checkpoint student.safetensors
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from plain import PlainPlanner
from timing import cycle, race, records, report

from tdmpc_opt import load_agent, make_env
from tdmpc_opt.compression.quantize import quantize
from tdmpc_opt.configs import ExportConfig, QuantizeConfig
from tdmpc_opt.export.export import export
from tdmpc_opt.planning.mppi import draw_noise
from tdmpc_opt.planning.presets import find_preset
from tdmpc_opt.runtime import load
from tdmpc_opt.schema import PlannerBudget

Act = Callable[[], Any]


@dataclass(frozen=True)
class Config:
    """What to time."""

    checkpoint: str
    """Checkpoint file of a world model."""
    task: str = "walker-walk"
    """Task of the observations."""
    presets: tuple[str, ...] = ("full", "balanced", "realtime")
    """Planner budgets by name; the last one is exported as well."""
    rounds: int = 20
    """Turns of each, after one that is not counted."""
    turn_ms: float = 300.0
    """Approximate duration of a turn, which contains many fast actions."""
    output: Path = Path("results/bench-action-latency.json")
    """Result file."""


def main(config: Config) -> None:
    """Time the actions, write the result file and print it as a table."""
    torch.set_num_threads(1)
    draw = cycle(_observations(config.task))
    with tempfile.TemporaryDirectory() as folder:
        acts = {"plain modules, full": _plain(config, draw)}
        for preset in (*config.presets, "policy"):
            agent = load_agent(config.checkpoint, preset=preset)
            acts[preset] = _with(agent, draw, config)
            if agent.engine not in (None, "eager"):
                agent = load_agent(config.checkpoint, preset=preset, engine="eager")
                acts[f"{preset}, eager torch"] = _with(agent, draw, config)
        for name, path in _files(config, Path(folder)).items():
            acts[name] = _with(load(path), draw, config)
        tried = records(race(acts, 3, warm=2), dict.fromkeys(acts, 1))
        turns = {name: max(1, int(config.turn_ms / r["ms"])) for name, r in tried.items()}
        repeated = {name: _repeat(act, turns[name]) for name, act in acts.items()}
        found = records(race(repeated, config.rounds), turns)
    budgets = {name: vars(find_preset(name).budget) for name in config.presets}
    facts = {"threads": 1, "actions_a_turn": turns, "budgets": budgets}
    report("action-latency", "actions", found, config, facts)


def _repeat(act: Act, count: int) -> Act:
    def turn() -> None:
        for _ in range(count):
            act()

    return turn


def _with(agent: Any, draw: Callable[[], np.ndarray], config: Config) -> Act:
    return lambda: agent.act(draw(), config.task)


def _files(config: Config, folder: Path) -> dict[str, Path]:
    """Export the last preset and the policy, and return the files by name."""
    preset, path = config.presets[-1], folder / "planner.onnx"
    source, found = config.checkpoint, {f"runtime, {preset} (ONNX)": path}
    export(ExportConfig(checkpoint=source, output=path, preset=preset))
    for kind in ("fp32", "int8"):
        path = found[f"runtime, policy {kind} (ONNX)"] = folder / f"policy-{kind}.onnx"
        export(ExportConfig(checkpoint=source, output=path, policy_only=True, format=kind))
        path = found[f"runtime, policy {kind} (numpy)"] = folder / f"{kind}.safetensors"
        quantize(QuantizeConfig(checkpoint=source, output=path, policy_only=True, format=kind))
    return found


def _plain(config: Config, draw: Callable[[], np.ndarray]) -> Act:
    model, budget = load_agent(config.checkpoint).world_model, PlannerBudget()
    planner = PlainPlanner(model, budget)
    task = torch.tensor([model.tasks.index(config.task)])
    source = torch.Generator().manual_seed(0)
    previous = torch.zeros(budget.horizon, 1, model.config.action_dim)

    @torch.inference_mode()
    def act() -> None:
        nonlocal previous
        obs = torch.from_numpy(draw())
        padded = torch.nn.functional.pad(obs, (0, model.config.obs_dim - len(obs)))
        z = model.encode(padded.unsqueeze(0), task)
        previous, _ = planner.plan(z, task, previous, draw_noise(model, budget, [source]))

    return act


def _observations(task: str) -> list[np.ndarray]:
    """Return the first observations of an episode of random actions."""
    env = make_env(task, 0)
    env.action_space.seed(0)
    found = [env.reset()[0]]
    while len(found) < 50:
        found.append(env.step(env.action_space.sample())[0])
    return found


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
