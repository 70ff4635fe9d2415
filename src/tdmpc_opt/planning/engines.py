"""What can compute a planner iteration: torch, compiled code of ours, and two libraries."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tdmpc_opt.configs import INT8_ENGINES, EngineName, EnginePrecision, PlannerBudget
from tdmpc_opt.errors import InputError, MissingDependencyError
from tdmpc_opt.planning.mppi import Engine, Problem, Refined, RoundNoise, refine
from tdmpc_opt.planning.native import NativeNetworks
from tdmpc_opt.planning.native_library import check_native
from tdmpc_opt.planning.networks import (
    PlannerNetworks,
    norm_mish_by_sigmoid,
    norm_mish_operators,
)

Session = Callable[[dict[str, np.ndarray]], Sequence[np.ndarray]]
"""Runs a graph: named inputs to outputs in the order of `Refined`."""

_NEEDS = {
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
    "openvino": ("openvino", "onnx", "onnxscript"),
}
_EXTRA = {"onnxruntime": "export", "openvino": "openvino"}


def make_engine(
    name: EngineName,
    precision: EnginePrecision,
    networks: PlannerNetworks,
    budget: PlannerBudget,
) -> Engine:
    """Return the engine of that name for these networks.

    What it compiles it compiles at its first use, for the batch size it meets. It runs on as
    many threads as torch has at that moment.

    Raises:
        InputError: An unknown engine, or one that cannot do this precision, device or format.
        MissingDependencyError: A library or compiler that the engine needs is not here.
    """
    check_engine(name, precision, networks.model.bins)
    if name == "eager":
        return partial(refine, networks, budget)
    if name == "native":
        return partial(refine, NativeNetworks(networks.model, precision), budget)
    if name == "openvino":
        fused = networks.computed_by(norm_mish_operators)
        return GraphEngine(fused, budget, _openvino)
    by_sigmoid = networks.computed_by(norm_mish_by_sigmoid)
    engine: Engine = GraphEngine(by_sigmoid, budget, _onnxruntime, quantize=precision == "int8")
    if name == "compile":
        engine = torch.compile(partial(refine, by_sigmoid, budget), fullgraph=True)
    return engine


def check_engine(name: EngineName, precision: EnginePrecision, like: Tensor) -> None:
    """Refuse what cannot run, before any work is done.

    Args:
        name: Name of an engine.
        precision: Number format of its large products.
        like: A tensor of the device and number format of the model.

    Raises:
        InputError: An unknown engine, or one that cannot do this precision, device or format.
        MissingDependencyError: A library or compiler that the engine needs is not here.
    """
    if name not in get_args(EngineName):
        raise InputError(
            f"unknown engine {name!r}; take eager, compile, native, onnxruntime or openvino"
        )
    if precision == "int8" and name not in INT8_ENGINES:
        raise InputError(f"engine {name} has no int8; take engine native or onnxruntime")
    if name in ("native", *_NEEDS):
        _check_cpu(name, like)
    if name == "native":
        check_native()
    elif name in _NEEDS:
        _check_installed(name)
    if name == "compile" and like.device.type == "cpu" and not _has_compiler():
        raise MissingDependencyError(
            "engine compile needs a C++ compiler: install g++ or clang, or name one in CXX"
        )


def _check_cpu(name: str, like: Tensor) -> None:
    if like.device.type != "cpu" or like.dtype != torch.float32:
        raise InputError(
            f"engine {name} runs on the CPU in float32, this agent on {like.device.type} in "
            f"{str(like.dtype).removeprefix('torch.')}; take engine compile or eager"
        )


def _check_installed(name: str) -> None:
    missing = [part for part in _NEEDS[name] if importlib.util.find_spec(part) is None]
    if missing:
        raise MissingDependencyError(
            f'engine {name} needs {missing[0]}: pip install "tdmpc-opt[{_EXTRA[name]}]"'
        )


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "cl"))


class GraphEngine:
    """Runs the iteration as an ONNX graph, one session for each batch size it meets.

    Args:
        networks: Heads of the world model; their weights go into the graph.
        budget: Sizes of the search.
        start: Makes a session of a serialized graph.
        quantize: Compute the large products in int8.
    """

    def __init__(
        self,
        networks: PlannerNetworks,
        budget: PlannerBudget,
        start: Callable[[bytes], Session],
        *,
        quantize: bool = False,
    ) -> None:
        self._networks, self._budget = networks, budget
        self._start, self._quantize = start, quantize
        self._sessions: dict[int, Session] = {}

    def __call__(
        self,
        problem: Problem,
        mean: Float[Tensor, "horizon batch action"],
        std: Float[Tensor, "horizon batch action"],
        noise: RoundNoise,
    ) -> Refined:
        """Refine the distribution once."""
        from tdmpc_opt.planning.graph import arguments, iteration_graph, quantized

        rows = mean.shape[1]
        if rows not in self._sessions:
            graph = iteration_graph(self._networks, self._budget, problem, mean, std, noise)
            if self._quantize:
                graph = quantized(graph)
            self._sessions[rows] = self._start(graph.SerializeToString())
        named = arguments(problem, mean, std, noise)
        arrays = {name: np.ascontiguousarray(value.numpy()) for name, value in named.items()}
        return Refined(*map(torch.from_numpy, self._sessions[rows](arrays)))


def _onnxruntime(graph: bytes) -> Session:
    import onnxruntime

    from tdmpc_opt.planning.graph import OUTPUTS

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return partial(session.run, OUTPUTS)


def _openvino(graph: bytes) -> Session:
    import openvino

    from tdmpc_opt.planning.graph import OUTPUTS

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # else every process is bound to the same first core
        "INFERENCE_PRECISION_HINT": "f32",  # else bf16 where the CPU has it
    }
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(graph), "CPU", settings)
    request = compiled.create_infer_request()
    used = {name for port in compiled.inputs for name in port.names}  # it drops the others

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        used_inputs = {name: value for name, value in inputs.items() if name in used}
        request.infer(used_inputs, share_inputs=True)
        # Copies: the request writes its next results over these.
        return [request.get_tensor(name).data.copy() for name in OUTPUTS]

    return run
