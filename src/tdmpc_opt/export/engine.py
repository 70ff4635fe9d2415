"""The exported planner in ONNX Runtime as the engine of the torch agent."""

import hashlib
import importlib.util
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

import tdmpc_opt
from tdmpc_opt.configs.common import EngineName
from tdmpc_opt.errors import InputError
from tdmpc_opt.files import replace_when_done
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.planning.mppi import PlanNoise, iterations
from tdmpc_opt.planning.planner import ChooseEngine, EagerEngine, Engine, eager_engine
from tdmpc_opt.runtime.plan_state import Refine
from tdmpc_opt.schema import ModelConfig, PlannerBudget

if TYPE_CHECKING:
    from tdmpc_opt.export.graphs import Run

Array = NDArray[Any]

_NEEDED = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")
_WIDEST = 2048
"""Largest `mlp_dim` of a model whose graph stays below the 2 GB of one protobuf message."""
_OF_STEPS = ("replan_every", "warm_mean", "warm_std", "converged_std", "mean_action")
"""Fields of a budget that are not in the graph."""


def engine_choice(name: EngineName) -> ChooseEngine:
    """Return the rule that chooses an engine: `auto` or `eager`.

    Raises:
        InputError: Another name.
    """
    if name not in get_args(EngineName):
        raise InputError(f"unknown engine {name!r}; take auto or eager")
    return eager_engine if name == "eager" else fast_engine


def fast_engine(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> type[Engine]:
    """Choose ONNX Runtime where it is installed and computes as the agent does, else torch."""
    installed = all(importlib.util.find_spec(name) for name in _NEEDED)
    fits = device.type == "cpu" and dtype == torch.float32 and config.mlp_dim <= _WIDEST
    return OnnxEngine if installed and fits else EagerEngine


class OnnxEngine(Engine):
    """Plans with the graph that `tdmpc-opt export` writes, for agents on a CPU in float32.

    The graph is traced at the first plan, which takes ten to twenty seconds, and kept in the
    user's cache folder for other processes. It runs on as many threads as torch has then.
    """

    name = "onnxruntime"

    def __init__(self, model: WorldModel, budget: PlannerBudget) -> None:
        super().__init__(model, budget)
        self._run: Run | None = None

    def begin(
        self,
        obs: Float[Tensor, "batch obs"],
        task: Int[Tensor, " batch"],
        noise: PlanNoise,
    ) -> Refine:
        """Take the observations and the noise; the rounds run the graph."""
        from tdmpc_opt.export.targets import runner  # its libraries load with the first plan

        if self._run is None:
            self._run = runner(_graph(self.model, self.budget))
        graph = self._run
        # Rows of one call share their members of the Q ensemble; of two, each averages both.
        shared = self.model.config.num_q <= 2
        parts = [slice(None)] if shared else [slice(row, row + 1) for row in range(len(obs))]

        def run(rounds: range, mean: Array, std: Array) -> tuple[Array, Array, Array]:
            some = slice(rounds.start, rounds.stop)
            found = []
            for rows in parts:
                inputs = {
                    "obs": obs[rows],
                    "prior": noise.prior[:, :, rows],
                    "samples": noise.samples[some, :, :, rows],
                    "value": noise.value[some, :, rows],
                    "heads": noise.heads[some, :, rows][..., 0],
                    "pick": noise.pick[rows],
                }
                if self.model.task_embedding is not None:
                    inputs["task"] = task[rows]
                arrays = {name: values.numpy() for name, values in inputs.items()}
                found.append(graph(arrays | {"mean": mean[:, rows], "std": std[:, rows]}))
            action = np.concatenate([each["action"] for each in found])
            means, stds = (
                np.concatenate([each[name] for each in found], axis=1)
                for name in ("new_mean", "new_std")
            )
            return action, means, stds

        return run


def _graph(model: WorldModel, budget: PlannerBudget) -> bytes:
    """Return the planner's graph, from the cache where it has been traced before."""
    path = _cache_folder() / f"planner-{_digest(model, budget)}.onnx"
    with suppress(OSError):  # not traced yet, or not readable: it is traced again
        check, graph = (content := path.read_bytes())[:32], content[32:]
        if hashlib.sha256(graph).digest() == check:
            return graph
    from tdmpc_opt.export.graphs import planner_graph

    with torch.inference_mode(False):
        graph = planner_graph(model, budget).SerializeToString()
    with suppress(OSError), replace_when_done(path) as unfinished:  # a cache is no must
        unfinished.write_bytes(hashlib.sha256(graph).digest() + graph)
    return graph


def _digest(model: WorldModel, budget: PlannerBudget) -> str:
    """Return a name for everything that decides what the graph computes."""
    sizes = {name: value for name, value in asdict(budget).items() if name not in _OF_STEPS}
    sizes["iterations"] = min(2, iterations(budget, model.config.action_dim))  # a loop or none
    facts = (tdmpc_opt.__version__, torch.__version__, model.config, model.tasks.to_json())
    digest = hashlib.sha256(repr((*facts, sizes)).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _cache_folder() -> Path:
    """Return a folder of the user, where nobody else can put a graph."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "tdmpc-opt"
