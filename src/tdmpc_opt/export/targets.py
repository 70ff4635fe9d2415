"""Kinds of files: what each states about itself, what runs it here, and its bytes."""

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common

import tdmpc_opt
from tdmpc_opt.configs.deploy import ExportConfig
from tdmpc_opt.contract import Contracts, contracts_to_json
from tdmpc_opt.errors import MissingDependencyError
from tdmpc_opt.export.c_source import c_policy
from tdmpc_opt.export.formats import halved
from tdmpc_opt.export.graphs import Inputs, Run, planner_graph, policy_graph
from tdmpc_opt.files import CONTRACT, FORMAT
from tdmpc_opt.model.fold import FoldedModel
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.planning.mppi import iterations
from tdmpc_opt.runtime.onnx_file import SCHEMA
from tdmpc_opt.schema import ModelConfig, PlannerBudget, PlanRules, TaskTable

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Where a file comes from, and what it contains."""

    source: Path
    """Checkpoint it was made from."""
    sha256: str
    config: ModelConfig
    """Widths of the exported agent."""
    tasks: TaskTable
    contracts: Contracts
    number_format: str
    preset: str | None
    """Name of the planner's budget; None for the policy alone."""
    budget: PlannerBudget | None
    score: Mapping[str, Any] | None


def metadata(facts: Facts, check: Mapping[str, Any]) -> dict[str, str]:
    """Return the entries of a file's metadata; `check` is its comparison with torch."""
    entries = {
        "format": FORMAT,
        "schema": str(SCHEMA),
        "version": tdmpc_opt.__version__,
        "kind": "policy" if facts.budget is None else "planner",
        "tasks": json.dumps(facts.tasks.to_json()),
        CONTRACT: contracts_to_json(facts.contracts),
        "number_format": facts.number_format,
        "source": facts.source.name,
        "source_sha256": facts.sha256,
        "check": json.dumps(check),
    }
    if facts.score is not None:
        entries["score"] = json.dumps(facts.score)
    if facts.budget is not None:
        sizes = {rule.name: getattr(facts.budget, rule.name) for rule in fields(PlanRules)}
        plan = sizes | {
            "preset": facts.preset,
            "rounds": iterations(facts.budget, facts.config.action_dim),
            "num_q": facts.config.num_q,
        }
        entries["plan"] = json.dumps(plan)
    return entries


class Artifact(NamedTuple):
    """An agent made for an engine, not yet written."""

    run: Run
    """Runs it in that engine on one thread."""
    files: Callable[[Mapping[str, Any]], dict[str, bytes]]
    """Content of what is written, with what the check found in it, by names inside the output
    folder; one named "" is the output itself."""


def make_artifact(config: ExportConfig, model: WorldModel, facts: Facts) -> Artifact:
    """Make an agent, in eval mode, ready for an engine.

    Raises:
        CheckpointError: A weight that does not fit the number format.
        MissingDependencyError: The target's library is not installed.
    """
    if config.target == "executorch":
        return _executorch(model, facts)
    if config.target == "c":
        origin = f"{facts.source.name} (SHA-256 {facts.sha256[:16]}), {facts.number_format}"
        quantize = config.format == "int8"
        run, files = c_policy(model, facts.contracts, facts.source, origin, quantize=quantize)
        return Artifact(run, lambda check: files | _c_metadata(facts, check))
    graph = _graph(config, model, facts.budget)
    return Artifact(runner(graph.SerializeToString()), partial(_with_facts, graph, facts))


def _c_metadata(facts: Facts, check: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the file that states what a folder of C source contains, for `inspect`."""
    return {"metadata.json": json.dumps(metadata(facts, check), indent=1).encode()}


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


def runner(graph: bytes) -> Run:
    """Return what runs a serialized graph on the CPU, on as many threads as torch has now."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Inputs) -> dict[str, Array]:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run


def _with_facts(
    graph: onnx.ModelProto, facts: Facts, check: Mapping[str, Any]
) -> dict[str, bytes]:
    onnx.helper.set_model_props(graph, metadata(facts, check))
    graph.producer_name = "tdmpc-opt"
    return {"": graph.SerializeToString(deterministic=True)}


def _executorch(model: WorldModel, facts: Facts) -> Artifact:
    """Return a program whose `forward` maps padded `obs` [1, obs] and `task` [1] to actions.

    Its method `metadata` returns the metadata of the file as JSON.
    """
    if importlib.util.find_spec("executorch") is None:
        raise MissingDependencyError(
            'target executorch needs executorch: pip install "tdmpc-opt[executorch]"'
        )
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    zeros = {
        "obs": torch.zeros(1, model.config.obs_dim),
        "task": torch.zeros(1, dtype=torch.int64),
    }
    names = ["obs"] if model.task_embedding is None else ["obs", "task"]
    network = FoldedModel(model, centred=True).eval()

    def content(check: Mapping[str, Any]) -> bytes:
        with torch.no_grad():
            program = torch.export.export(network, tuple(zeros[name] for name in names))
        lowered = to_edge_transform_and_lower(  # it changes the program it is given
            program,
            partitioner=[XnnpackPartitioner()],
            constant_methods={"metadata": json.dumps(metadata(facts, check))},
        )
        buffer: bytes = lowered.to_executorch().buffer
        return buffer

    # The method reads from the program, and that from the bytes: both have to live on.
    loaded = content({})
    program = Runtime.get().load_program(loaded)
    method = program.load_method("forward")

    def run(inputs: Inputs, _alive: object = (loaded, program)) -> dict[str, Array]:
        short = model.config.obs_dim - inputs["obs"].shape[1]
        padded = inputs | {"obs": np.pad(inputs["obs"], ((0, 0), (0, short)))}
        columns = [torch.from_numpy(padded[name]) for name in names]
        rows = [
            method.execute([column[i : i + 1] for column in columns])[0].numpy().copy()
            for i in range(len(columns[0]))
        ]
        return {"action": np.concatenate(rows)}

    return Artifact(run, lambda check: {"": content(check)})
