"""Training updates per second, with and without a teacher, and of plain torch modules.

The contenders take turns in one process on one thread, on synthetic batches drawn beforehand.
On a GPU each turn is `UPDATES_ON_A_GPU` updates, after which the host waits for the device.
Writes results/bench-training.json, or the file named by `--output`:

    python benchmarks/training_throughput.py
    python benchmarks/training_throughput.py --teacher 48 --output results/bench-distill.json
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from lightning_fabric import Fabric
from plain import PlainLearner
from synthetic import synthetic_dataset
from timing import cycle, race, records, report

from tdmpc_opt.agents.compute import best_device
from tdmpc_opt.checkpoints.checkpoint import from_model
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.configs.training import TrainConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.data.sampler import Batch, SliceSampler
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.schema import Size, TaskTable, model_config
from tdmpc_opt.training.distillation import Distillation, open_distillation
from tdmpc_opt.training.step import build_learner, train_step

UPDATES_ON_A_GPU = 20


@dataclass(frozen=True)
class Config:
    """What to time."""

    size: Size = "1"
    """Student, in millions of parameters."""
    teacher: Size | None = None
    """Teacher of random weights for the published distillation term; None trains without."""
    batch_size: int = 256
    """Slices per update."""
    tasks: int = 30
    """Tasks of the data."""
    device: str = "cpu"
    """Where the networks run."""
    rounds: int = 20
    """Turns of each contender, after one that is not counted."""
    output: Path = Path("results/bench-training.json")
    """Result file."""


def main(config: Config) -> None:
    """Time the updates, write the result file and print it as a table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        dataset = synthetic_dataset(Path(folder) / "data", config.tasks, episodes=2)
        contenders = _contenders(config, dataset, Path(folder))
        updates = UPDATES_ON_A_GPU if config.device == "cuda" else 1
        turns = {name: _turn(contender, updates) for name, contender in contenders.items()}
        times = race(turns, config.rounds)
    found = records(times, dict.fromkeys(contenders, float(updates)))
    report("training-throughput", "updates", found, config, {"threads": 1})


def _turn(update: Callable[[], object], updates: int) -> Callable[[], object]:
    """Return a function that makes updates and waits until the device has computed them."""

    def turn() -> None:
        for _ in range(updates):
            update()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return turn


def _contenders(
    config: Config, dataset: EpisodeDataset, folder: Path
) -> dict[str, Callable[[], object]]:
    device = best_device(config.device)
    student = _model(config.size, dataset.tasks, seed=0).to(device)
    sampler = SliceSampler(
        [dataset], dataset.tasks, horizon=3, batch_size=config.batch_size, seed=0
    )
    batches = [_moved(sampler.sample(), device) for _ in range(8)]
    draw = cycle(batches)
    settings = TrainConfig(
        data=dataset.path,
        output=folder / "run",
        updates=1,
        teacher=str(folder / "teacher.safetensors"),
    )
    if config.teacher is None:
        plain = PlainLearner(student, None, 0.0)
        return {
            "plain": lambda: plain.step(draw(), settings.weights),
            "tdmpc-opt": _ours(student, batches, settings, None),
        }
    teacher = _model(config.teacher, dataset.tasks, seed=1).to(device)
    write_native(Path(settings.teacher), from_model(teacher))
    found = open_distillation(settings, student, device)
    assert found is not None, "the published term is on by default"
    plain = PlainLearner(student, teacher, found.weights.at(0)["reward_mse"])
    return {
        "plain": lambda: plain.step(draw(), settings.weights),
        "tdmpc-opt": _ours(student, batches, settings, found),
    }


def _moved(batch: Batch, device: torch.device) -> Batch:
    fields = ("obs", "action", "label", "reward", "task")
    return replace(batch, **{field: getattr(batch, field).to(device) for field in fields})


def _ours(
    student: WorldModel,
    batches: Sequence[Batch],
    settings: TrainConfig,
    distillation: Distillation | None,
) -> Callable[[], object]:
    fabric = Fabric(accelerator=student.bins.device.type, devices=1)
    copied = WorldModel(student.config, student.tasks).to(student.bins.device)
    copied.load_state_dict(student.state_dict())
    learner = build_learner(fabric, copied, settings, distillation)
    draw = cycle(batches)

    return lambda: train_step(learner, draw())


def _model(size: Size, tasks: TaskTable, seed: int) -> WorldModel:
    generator = torch.Generator().manual_seed(seed)
    return WorldModel(model_config(size, tasks), tasks, generator)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
