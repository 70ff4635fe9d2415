"""Simulator steps per second of an evaluation, and of a loop over single environments.

The evaluation batches the episodes of a task, and runs tasks in parallel processes. Writes
results/bench-evaluation.json:

    python benchmarks/evaluation_throughput.py --checkpoint student.safetensors
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from timing import race, records, report

from tdmpc_opt import load_agent
from tdmpc_opt.agents.agent import Agent
from tdmpc_opt.configs.common import Mode
from tdmpc_opt.configs.measure import EvaluateConfig
from tdmpc_opt.evaluation.evaluate import evaluate
from tdmpc_opt.machine import cores
from tdmpc_opt.schema import MT30
from tdmpc_opt.tasks.environment import make_env


@dataclass(frozen=True)
class Config:
    """What to time."""

    checkpoint: str
    """Checkpoint file of an agent that knows the tasks."""
    tasks: str = "mt30"
    """`mt30`, or task names joined by commas."""
    episodes: int = 10
    """Episodes per task of the evaluation."""
    mode: Mode = "policy"
    """Act by the policy network alone, or by planning."""
    preset: str | None = None
    """Planner budget by name."""
    output: Path = Path("results/bench-evaluation.json")
    """Result file."""


def main(config: Config) -> None:
    """Time both, write the result file and print it as a table."""
    torch.set_num_threads(1)
    tasks = MT30.select(config.tasks)
    agent = load_agent(config.checkpoint, preset=config.preset, mode=config.mode)
    steps = sum(task.episode_length for task in tasks.tasks)
    contenders = {
        "plain": lambda: _one_at_a_time(agent, tasks.names),
        "tdmpc-opt": lambda: _evaluate(config),
    }
    times = race(contenders, rounds=1, warm=0)
    found = records(times, {"plain": steps, "tdmpc-opt": steps * config.episodes})
    for record in found.values():  # the time of worker processes is not counted
        del record["cpu_ms"], record["cpu_ms_min"], record["speedup_cpu"]
    facts = {"evaluation_seconds": times["tdmpc-opt"][0][0], "cores": cores()}
    report("evaluation-throughput", "steps", found, config, facts)


def _one_at_a_time(agent: Agent, names: Sequence[str]) -> None:
    """Act one episode of each task, one environment step at a time."""
    for name in names:
        env, done = make_env(name, 0), False
        agent.reset()
        obs, _ = env.reset()
        while not done:
            obs, _, terminated, truncated, _ = env.step(agent.act(obs, name))
            done = terminated or truncated
        env.close()


def _evaluate(config: Config) -> None:
    with tempfile.TemporaryDirectory() as folder:
        evaluate(
            EvaluateConfig(
                checkpoint=config.checkpoint,
                tasks=config.tasks,
                episodes=config.episodes,
                mode=config.mode,
                preset=config.preset,
                device="cpu",
                output=Path(folder) / "result.json",
            )
        )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
