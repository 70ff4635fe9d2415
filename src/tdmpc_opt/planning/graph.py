"""The planner iteration as an ONNX graph, traced from `refine`, and its int8 version."""

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tdmpc_opt.configs import PlannerBudget
from tdmpc_opt.planning.mppi import Problem, Refined, RoundNoise, refine
from tdmpc_opt.planning.networks import SMALLEST_INT8, PlannerNetworks

OPSET = 20
OUTPUTS = [f"refined.{name}" for name in Refined._fields]


def arguments(
    problem: Problem,
    mean: Float[Tensor, "horizon batch action"],
    std: Float[Tensor, "horizon batch action"],
    noise: RoundNoise,
) -> dict[str, Tensor]:
    """Return the tensors of an iteration by the names that the graph's inputs have."""
    named = {f"shares.later.{i}": share for i, share in enumerate(problem.shares.later)}
    named |= {f"shares.at_start.{i}": share for i, share in enumerate(problem.shares.at_start)}
    named |= {"shares.q": problem.shares.q}
    named |= dict(zip(Problem._fields[1:], problem[1:], strict=True))
    named |= {"mean": mean, "std": std}
    return named | {f"noise.{name}": value for name, value in noise._asdict().items()}


def iteration_graph(
    networks: PlannerNetworks,
    budget: PlannerBudget,
    problem: Problem,
    mean: Float[Tensor, "horizon batch action"],
    std: Float[Tensor, "horizon batch action"],
    noise: RoundNoise,
) -> onnx.ModelProto:
    """Trace one iteration, with the weights in it.

    Its inputs are those of `arguments`, its outputs `OUTPUTS`. All shapes are fixed:
    those of the tensors given here, whose values do not matter.
    """
    names = list(arguments(problem, mean, std, noise))
    return traced(_Iteration(networks, budget), (problem, mean, std, noise), names, OUTPUTS)


def traced(
    module: nn.Module,
    inputs: tuple[Any, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic: dict[str, Any] | None = None,
) -> onnx.ModelProto:
    """Trace a module, with its weights in the graph.

    Args:
        module: What the graph computes.
        inputs: Arguments whose shapes the graph takes and whose values do not matter.
        input_names: Names of the graph's inputs, tuples of tensors taken apart.
        output_names: Names of its outputs.
        dynamic: Axes that stay open, by the names of the module's arguments, in the form of
            `torch.export`.
    """
    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            module.eval(),
            inputs,
            input_names=list(input_names),
            output_names=list(output_names),
            opset_version=OPSET,
            dynamic_shapes=dynamic,
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "the exporter returns a program where no file is named"
    return program.model_proto


def quantized(graph: onnx.ModelProto, bits: Literal[7, 8] = 7) -> onnx.ModelProto:
    """Return the graph with its large products in int8, by ONNX Runtime's quantiser.

    Weights have a scale per output; activations are scaled as they come. Norms, activations and
    what decodes rewards and values stay fp32.

    Args:
        graph: What the exporter traced.
        bits: Of the weights. On CPUs without VNNI signed products overflow from 8 bits on, so
            8 are unsigned.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    add_pre_process_metadata(graph)  # the exporter has optimised it already
    small = [node.name for node in graph.graph.node if not _is_large(node, graph)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        quantize_dynamic(
            graph,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=bits == 7,
            weight_type=QuantType.QInt8 if bits == 7 else QuantType.QUInt8,
            # It turns each Gemm into a MatMul of this name first.
            nodes_to_exclude=[*small, *(f"{name}_MatMul" for name in small)],
        )
        return onnx.load(path)


class _Iteration(nn.Module):
    def __init__(self, networks: PlannerNetworks, budget: PlannerBudget) -> None:
        super().__init__()
        self._networks, self._budget = networks, budget

    def forward(
        self, problem: Problem, mean: Tensor, std: Tensor, noise: RoundNoise
    ) -> tuple[Tensor, ...]:
        return tuple(refine(self._networks, self._budget, problem, mean, std, noise))


def _is_large(node: onnx.NodeProto, graph: onnx.ModelProto) -> bool:
    shapes = [
        tuple(weight.dims) for weight in graph.graph.initializer if weight.name in node.input
    ]
    return any(len(shape) == 2 and min(shape) >= SMALLEST_INT8 for shape in shapes)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter from reporting what a user can do nothing about.

    It tells of operators that no planner has; copies a class of torch's own that is deprecated;
    and names an axis that several inputs share twice, then says that the second is not used.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
            warnings.filterwarnings("ignore", ".*axis name", UserWarning)
            yield
    finally:
        logger.setLevel(level)
