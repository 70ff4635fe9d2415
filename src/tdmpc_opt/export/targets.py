"""Kinds of files: for each, what runs it here and what its bytes are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common

from tdmpc_opt.configs import ExportConfig
from tdmpc_opt.errors import InputError
from tdmpc_opt.export.c_source import CPolicy
from tdmpc_opt.export.executorch import ExecutorchPolicy
from tdmpc_opt.export.formats import halved
from tdmpc_opt.export.graphs import planner_graph, policy_graph
from tdmpc_opt.export.metadata import Facts, metadata
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.schema import PlannerBudget

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Artifact:
    """An agent made for an engine, not yet written."""

    run: Callable[[dict[str, NDArray[Any]]], dict[str, Array]]
    """Runs it in that engine on one thread, inputs and outputs by name."""
    files: Callable[[Mapping[str, Any]], dict[str, bytes]]
    """Content of what is written, with what the check found in it, by names inside the output
    folder; one named "" is the output itself."""


def make_artifact(config: ExportConfig, model: WorldModel, facts: Facts) -> Artifact:
    """Make an agent ready for an engine.

    Args:
        config: What to make.
        model: In eval mode.
        facts: Metadata of the file.

    Raises:
        CheckpointError: A weight that does not fit the number format.
        InputError: A number format that the target has not.
        MissingDependencyError: The target's library is not installed.
    """
    if config.target == "executorch":
        if config.format != "fp32":
            raise InputError(f"executorch files are fp32 here, not {config.format}")
        policy = ExecutorchPolicy(model, facts)
        return Artifact(policy.run, lambda check: {"": policy.content(check)})
    if config.target == "c":
        if config.format == "fp16":
            raise InputError("C has no portable fp16; take --format fp32 or int8")
        source = CPolicy(model, facts, quantize=config.format == "int8")
        return Artifact(source.run, source.files)
    graph = _graph(config, model, facts.budget)
    return Artifact(runner(graph.SerializeToString()), partial(_with_facts, graph, facts))


def _graph(
    config: ExportConfig, model: WorldModel, budget: PlannerBudget | None
) -> onnx.ModelProto:
    quantize, opset = config.format == "int8", config.opset
    if budget is None:
        graph = policy_graph(model, quantize=quantize, opset=opset)
    else:
        graph = planner_graph(model, budget, quantize=quantize, opset=opset)
    # What int8 leaves in floats is stored in halves: rounding it costs less than int8 does.
    graph = _bare(graph if config.format == "fp32" else halved(graph))
    graph.ir_version = config.ir_version
    return graph


def _bare(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph without the tracer's notes, which contain paths of this machine."""
    model = ir.from_proto(graph)
    common.ClearMetadataAndDocStringPass()(model)
    return ir.to_proto(model)


def runner(graph: bytes) -> Callable[[dict[str, Any]], dict[str, Array]]:
    """Return what runs a serialized graph on the CPU, on as many threads as torch has now."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: dict[str, NDArray[Any]]) -> dict[str, Array]:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run


def _with_facts(
    graph: onnx.ModelProto, facts: Facts, check: Mapping[str, Any]
) -> dict[str, bytes]:
    onnx.helper.set_model_props(graph, metadata(facts, check))
    graph.producer_name = "tdmpc-opt"
    return {"": graph.SerializeToString(deterministic=True)}
