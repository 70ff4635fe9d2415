"""Labels by planning per second, by the number of states that are planned for at once.

Writes results/bench-planner-labels.json, or the file named by `--output`:

    python benchmarks/planner_labels.py --size 317 --device cuda
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from timing import race, records, report

from tdmpc_opt.agents.agent import Agent
from tdmpc_opt.agents.compute import best_device
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.planning.presets import PRESETS
from tdmpc_opt.schema import MT30, Size, model_config


@dataclass(frozen=True)
class Config:
    """What to time."""

    size: Size = "317"
    """Teacher of random weights, in millions of parameters."""
    preset: str = "realtime"
    """Budget of a plan."""
    states: tuple[int, ...] = (1, 16, 256)
    """Numbers of states that are planned for at once."""
    device: str = "cpu"
    """Where the networks run."""
    rounds: int = 5
    """Turns of each number, after one that is not counted."""
    output: Path = Path("results/bench-planner-labels.json")
    """Result file."""


def main(config: Config) -> None:
    """Time the plans, write the result file and print it as a table."""
    torch.set_num_threads(1)
    device = best_device(config.device)
    generator = torch.Generator().manual_seed(0)
    model = WorldModel(model_config(config.size, MT30), MT30, generator).to(device).eval()
    contenders = {f"{count} at once": _plan(config, model, count) for count in config.states}
    times = race(contenders, config.rounds)
    counts = dict(zip(contenders, map(float, config.states), strict=True))
    report("planner-labels", "labels", records(times, counts), config, {"threads": 1})


def _plan(config: Config, model: WorldModel, count: int) -> Callable[[], object]:
    agent = Agent(model, budget=PRESETS[config.preset].budget)
    generator = torch.Generator().manual_seed(1)
    obs = torch.randn(count, model.config.obs_dim, generator=generator).numpy()
    task = torch.arange(count).numpy() % len(MT30)
    # Arrays come back on the host, so that a turn ends when the device has computed them.
    return lambda: agent.act(obs, task, generator=generator)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
