"""Valid files of every kind that is read here, as small as they can be."""

import contextlib
import io
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from public_layouts import layout_a, layout_b, layout_c
from tensordict import TensorDict

from tdmpc_opt.checkpoints.checkpoint import Checkpoint, expected_shapes, from_model
from tdmpc_opt.checkpoints.convert import with_origin
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.compression.extract import policy_only
from tdmpc_opt.compression.integers import to_integers
from tdmpc_opt.compression.recipe import recipe
from tdmpc_opt.configs import LossWeights, ModelConfig, PlannerBudget, TrainConfig
from tdmpc_opt.data.episodes import Episode, EpisodeDataset
from tdmpc_opt.expert_policy import ExpertNetwork
from tdmpc_opt.planning.presets import Preset, storable
from tdmpc_opt.task_table import MT30, Task, TaskTable
from tdmpc_opt.training.draws import Draws
from tdmpc_opt.training.run import Run
from tdmpc_opt.training.step import Learner, build_learner
from tdmpc_opt.world_model.model import WorldModel

Seed = dict[str, bytes]
"""A file, or the files of a folder, by name; the first is the one a reader is given."""

TASKS = MT30.subset(["pendulum-swingup", "cartpole-balance"])
RUN = {"kind": "run", "config": {"size": "0.3", "updates": 4, "lr": 0.001, "data": [None, "x"]}}
BUDGET = PlannerBudget(horizon=2, iterations=2, samples=8, policy_samples=2, elites=3)
_WIDTHS = {"enc_dim": 8, "mlp_dim": 8, "latent_dim": 8, "num_enc_layers": 2, "num_q": 2}


def _config(tasks: TaskTable, task_dim: int = 4) -> ModelConfig:
    return ModelConfig(
        obs_dim=tasks.obs_dim,
        action_dim=tasks.action_dim,
        num_tasks=len(tasks),
        task_dim=task_dim,
        num_bins=11,
        **_WIDTHS,
    )


def _agent(folder: Path) -> Checkpoint:
    torch.manual_seed(0)
    model = WorldModel(_config(TASKS), TASKS)
    with torch.no_grad():  # heads that start as zero would make all plans equal
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    facts = storable({"quick": Preset(budget=BUDGET)})
    origin = folder / "origin.safetensors"
    write_native(origin, from_model(model))
    facts |= {"run": json.dumps(RUN["config"]), "updates": "4"}
    return with_origin(from_model(model, facts), origin)


def native(folder: Path) -> list[Seed]:
    """Checkpoints of this project, with and without all their networks."""
    agent = _agent(folder)
    origin = {key: agent.extra[key] for key in ("source", "source_sha256")}
    half = {name: tensor.half() for name, tensor in agent.without_targets().items()}
    small = Checkpoint(agent.config, agent.tasks, half, extra=origin)
    return [_native(folder, each) for each in (agent, small, policy_only(small))]


def quantised(folder: Path) -> list[Seed]:
    """The same in integers."""
    whole = _agent(folder)
    part = Checkpoint(whole.config, whole.tasks, whole.without_targets(), extra=whole.extra)
    return [
        _native(folder, to_integers(each, recipe(kind, each), None))
        for kind in ("int8", "int4")
        for each in (part, policy_only(part))
    ]


def _native(folder: Path, checkpoint: Checkpoint) -> Seed:
    path = folder / "model.safetensors"
    write_native(path, checkpoint)
    return {path.name: path.read_bytes()}


def public(folder: Path) -> list[Seed]:
    """The three public layouts, quantised entries, and the format of old torch."""
    source = torch.Generator().manual_seed(1)
    shapes = expected_shapes(_config(TASKS))
    tensors = {name: torch.randn(shape, generator=source) for name, shape in shapes.items()}
    alone = expected_shapes(_config(TaskTable(TASKS.tasks[:1]), task_dim=0))
    single = {name: torch.randn(shape, generator=source) for name, shape in alone.items()}
    with warnings.catch_warnings(action="ignore"):  # torch's own, of its quantised tensors
        integers = {
            key: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)
            for key, tensor in layout_a(tensors).items()
        }
    old = {"_use_new_zipfile_serialization": False}
    return [
        _saved({"model": layout_a(tensors)}),
        _saved(layout_b(tensors, [1, 1])),
        _saved({"model": layout_c(single)}),
        _saved({"model": integers}),
        _saved({"model": layout_a(tensors)}, **old),
    ]


def _saved(content: object, **options: bool) -> Seed:
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # torch's own, of its quantised tensors
        torch.save(content, file, **options)
    return {"model.pt": file.getvalue()}


def official(folder: Path) -> list[Seed]:
    """Shards of the published data."""
    del folder
    ids = torch.tensor([7, 8, 7])
    seeds = []
    for kind in (torch.float32, torch.float16):
        obs = torch.zeros(3, 4, MT30.obs_dim)
        obs[..., :3] = torch.arange(12).reshape(3, 4, 1)
        action = torch.zeros(3, 4, MT30.action_dim)
        action[..., :1] = 0.5
        reward = torch.ones(3, 4)
        action[:, 0], reward[:, 0] = torch.nan, torch.nan
        values = {"obs": obs.to(kind), "action": action.to(kind), "reward": reward.to(kind)}
        values["task"] = ids[:, None].expand(-1, 4).contiguous().int()
        seeds.append(_saved(TensorDict(values, batch_size=[3, 4])))
        seeds.append(_saved(values))
    return seeds


def dataset(folder: Path) -> list[Seed]:
    """A dataset of four shards: plain, labelled, in half precision, without checksums."""
    path = folder / "data"
    shutil.rmtree(path, ignore_errors=True)
    made = EpisodeDataset.create(path, TASKS, 4)
    for name, task, labelled in (
        ("plain", TASKS.tasks[0], False),
        ("labelled", TASKS.tasks[1], True),
    ):
        made.append_shard(
            name, [_episode(task, labelled=labelled) for _ in range(2)], {"policy": "p"}
        )
    files = [path / "dataset.json", *sorted(path.rglob("*/*"))]
    whole = {str(file.relative_to(path)): file.read_bytes() for file in files}
    listing = json.loads(whole["dataset.json"])
    for shard in listing["shards"]:
        shard["sha256"] = {}
    return [whole, whole | {"dataset.json": json.dumps(listing).encode()}]


def _episode(task: Task, *, labelled: bool) -> Episode:
    action = np.full((4, task.action_dim), 0.5, np.float32)
    reward = np.ones(4, np.float32)
    action[0], reward[0] = np.nan, np.nan
    obs = np.ones((4, task.obs_dim), np.float32)
    return Episode(task.name, 3, obs, action, reward, action if labelled else None)


def onnx(folder: Path) -> list[Seed]:
    """A policy of one task, one of several, and a planner, written once and kept."""
    from tdmpc_opt.configs import ExportConfig
    from tdmpc_opt.export.export import export

    source = folder / "agent.safetensors"
    write_native(source, _agent(folder))
    seeds = []
    for name, options in (
        ("one", {"policy_only": True, "task": TASKS.names[0]}),
        ("several", {"policy_only": True}),
        ("planner", {}),
    ):
        path = folder / f"{name}.onnx"
        if not path.exists():
            config = ExportConfig(checkpoint=str(source), output=path, tolerance=9.0, **options)
            with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(None):
                export(config, None if "policy_only" in options else BUDGET)
        seeds.append({"agent.onnx": path.read_bytes()})
    return seeds


def results(folder: Path) -> list[Seed]:
    """One result file of each kind."""
    del folder
    about = {
        "config": {"task": "walker-run"},
        "versions": {"numpy": "2"},
        "machine": {"cores": 2},
    }
    record = {"returns": [1.0, 2.5, 3.0], "seeds": [0, 1, 2], "score": 0.2, "seconds": 1.0}
    who = {"checkpoint": {"name": "m", "sha256": "a" * 64}, "mode": "planner"}
    budget = {"budget": asdict(BUDGET), "tasks": ["walker-run", "cup-spin"], "noise": False}
    evaluation = {
        "kind": "evaluation",
        "schema": 1,
        "complete": True,
        "score": {"mean": 0.2, "ci95": [0.1, 0.3]},
        "tasks": {"walker-run": record, "cup-spin": record},
        "training": {"size": "0.3", "updates": 4, "seed": 0},
    }
    row = {"name": "a", "score": 1.5, "ci95": [1, 2], "size_bytes": 10}
    timed = {
        "file": {"name": "m", "sha256": "b", "size_bytes": 10},
        "name": "m",
        "mode": "policy",
    }
    found = [
        evaluation | about | {"config": who | budget},
        {
            "kind": "expert",
            "learning_curve": [[500 * n, 1.0 * n] for n in range(1, 12)],
            **about,
        },
        {"kind": "demo", "rows": [row, row | {"ci95": None, "size_bytes": 0}], **about},
        {"kind": "dagger", "rounds": [{"updates": 4, "score": 0.5}], **about},
        {"kind": "bench", "candidates": [timed | {"batches": {"1": {"p50_ms": 0.2}}}], **about},
    ]
    seeds = [{"result.json": _text(content)} for content in found]
    curves = b"update,loss,score\n1,0.5,\n2,0.4,3.5\n"
    return [*seeds, {"config.json": _text(RUN | about), "metrics.csv": curves}]


def records(folder: Path) -> list[Seed]:
    """What runs, corrected runs and experts keep of their configuration."""
    del folder
    done = {
        "round": 1,
        "updates": 4,
        "episodes": 2,
        "returns": {"cup-spin": 1.0},
        "score": None,
    }
    corrected = {"kind": "dagger", "rounds": [done], "config": RUN["config"]}
    expert = {"config": {"task": "walker-run", "seed": 0}, "steps": 10, "returns": [1.0]}
    return [
        {"config.json": _text(RUN)},
        {"rounds.json": _text(corrected), "states/000000004.pt": b""},
        {"expert.json": _text(expert)},
    ]


def _text(content: object) -> bytes:
    return json.dumps(content).encode()


def learner_of(folder: Path) -> tuple[Run, Learner, Draws]:
    """Return a run, what it trains, and where it draws from."""
    shutil.rmtree(folder, ignore_errors=True)
    data = EpisodeDataset.create(folder / "data", TASKS, 4)
    for task in TASKS.tasks:
        data.append_shard(task.name, [_episode(task, labelled=False)] * 2, {"policy": "p"})
    config = TrainConfig(
        data=folder / "data",
        output=folder / "run",
        device="cpu",
        updates=4,
        horizon=2,
        batch_size=4,
        behaviour_batch=4,
        weights=LossWeights(behaviour=1.0),
    )
    model = WorldModel(_config(TASKS), TASKS, torch.Generator().manual_seed(0))
    learner = build_learner(Fabric(accelerator="cpu", devices=1), model, config)
    for optimizer, part in (
        (learner.model_optimizer, model.dynamics),
        (learner.policy_optimizer, model.policy_head),
    ):
        torch.stack([weight.sum() for weight in part.parameters()]).sum().backward()
        optimizer.step()
    return Run(config, [data]), learner, Draws(config, [data], TASKS)


def states(folder: Path) -> list[Seed]:
    """The state of an unfinished run, of networks of a few numbers."""
    run, learner, draws = learner_of(folder / "run")
    learner.update = 4
    run.save(learner, draws)
    (state,) = (run.folder / "states").glob("*.pt")
    return [{"state.pt": state.read_bytes()}]


def experts(folder: Path) -> list[Seed]:
    """A small expert policy."""
    network = ExpertNetwork(
        "cup-spin",
        "sac",
        10,
        (1.0, 2.0),
        (np.ones((4, 8)), np.ones((2, 4))),
        (np.ones(4), np.ones(2)),
    )
    path = folder / "expert.safetensors"
    network.save(path)
    return [{path.name: path.read_bytes()}]


def expert_states(folder: Path) -> list[Seed]:
    """How far the training of an expert has come, without its networks."""
    del folder
    progress = {"identity": {"task": "x"}, "step": 3, "seconds": 1.0, "curve": [[1, 2.0]]}
    file = io.BytesIO()
    np.savez(
        file,
        progress=np.frombuffer(_text(progress), np.uint8),
        rewards=np.ones(4, np.float32),
        position=np.array(3),
    )
    return [{"state.npz": file.getvalue()}]


MAKERS: dict[str, Callable[[Path], list[Seed]]] = {
    "public checkpoints": public,
    "safetensors": native,
    "quantised safetensors": quantised,
    "safetensors on the device": lambda folder: native(folder) + quantised(folder),
    "ONNX": onnx,
    "official shards": official,
    "datasets": dataset,
    "result files": results,
    "run records": records,
    "training states": states,
    "expert policies": experts,
    "expert states": expert_states,
}
