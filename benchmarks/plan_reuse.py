"""Score of plans of which several actions are carried out before the next is made.

One result file for each number of actions, from the same starts; the checkpoint's copies with
the changed presets lie in a temporary folder:

    python benchmarks/plan_reuse.py --checkpoint FILE --preset PRESET --name NAME
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from rich.console import Console

from tdmpc_opt.checkpoints.load import read_checkpoint, resolve
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.configs import EvaluateConfig
from tdmpc_opt.evaluation.evaluate import evaluate
from tdmpc_opt.planning.presets import find_preset, storable


@dataclass(frozen=True)
class Config:
    """What to score."""

    checkpoint: str
    """Checkpoint that can plan."""
    name: str
    """How the result files begin."""
    preset: str = "realtime"
    """Budget of the plans."""
    episodes: int = 3
    """Episodes per task."""
    workers: int = 0
    """Processes that share the tasks; 0 takes one per CPU core."""
    results: Path = Path("results")
    """Folder of the result files."""


def main(config: Config) -> None:
    """Score plans that serve for one action up to as many as they are long."""
    checkpoint = read_checkpoint(resolve(config.checkpoint))
    preset = find_preset(config.preset, checkpoint.extra)
    with tempfile.TemporaryDirectory() as folder:
        for actions in range(1, preset.budget.horizon + 1):
            name = f"{config.preset}-every-{actions}"
            budget = replace(preset.budget, replan_every=actions)
            presets = {name: replace(preset, budget=budget)}
            path = Path(folder, f"{config.name}-{name}.safetensors")
            write_native(path, replace(checkpoint, extra=checkpoint.extra | storable(presets)))
            found = evaluate(
                EvaluateConfig(
                    checkpoint=str(path),
                    episodes=config.episodes,
                    mode="planner",
                    preset=name,
                    workers=config.workers,
                    output=config.results / f"{config.name}-{name}.json",
                )
            )
            Console().print(f"{name}: {found['score']['mean']:.2f}", highlight=False)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
