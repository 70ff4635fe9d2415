"""Number formats of a graph: weights in half precision, large products in 8-bit integers.

A product in integers takes each row of a batch by itself. Codes of a row count from its
smallest number to its largest; those of a weight are symmetric, one scale for each output, as
in this project's int8 checkpoints. No product needs a zero point: the smallest number's share
is added in floats, times the sum of each output's weights.
"""

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from tdmpc_opt.errors import CheckpointError

SMALLEST_INT8 = 128
"""Products of fewer inputs or outputs stay in fp32: they decode values, or gain no time."""
LARGEST_CODE = 127
"""Of rows, which are unsigned and have 7 bits, and of weights. x86 CPUs without VNNI add two
products in 16 bits, where 2 * 127 * 127 fits and rows of 8 bits would overflow."""
_LEAST = np.float32(1e-20)
"""Least scale, of weights and rows that are constant."""


_WORTH_IT = 1024
"""Numbers from which a constant is stored in half precision; the rest is sizes and scales."""


def in_integers(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with its large products in int8.

    Norms, activations and what decodes rewards and values stay fp32.
    """
    model = ir.from_proto(graph)
    for node in list(model.graph):
        weight = _large_weight(node)
        if weight is not None:
            _replace(model.graph, node, weight)
    ir.passes.common.RemoveUnusedNodesPass()(model)  # the floats of the weights
    return ir.to_proto(model)


def _large_weight(product: ir.Node) -> NDArray[np.float32] | None:
    """Return the constant [in, out] that a large product multiplies with, None elsewhere."""
    if product.op_type not in ("Gemm", "MatMul") or product.inputs[1] is None:
        return None
    constant = product.inputs[1].const_value
    if constant is None or len(constant.shape) != 2:
        return None
    weight: NDArray[np.float32] = constant.numpy()
    if min(weight.shape) < SMALLEST_INT8:
        return None
    return weight.T if product.attributes.get_int("transB", 0) else weight


def _replace(graph: ir.Graph, product: ir.Node, weight: NDArray[np.float32]) -> None:
    """Put nodes in place of a product that give nearly the same."""
    scale = np.maximum(np.abs(weight).max(0) / np.float32(LARGEST_CODE), _LEAST)
    codes = np.rint(weight / scale).astype(np.int8)
    built = _Nodes(graph, f"{product.outputs[0].name}.int8")
    x, *bias = (value for position, value in enumerate(product.inputs) if position != 1)
    assert x is not None, "a product has inputs"
    last_axis = built.constant(np.array([-1]))
    smallest = built.node("ReduceMin", x, last_axis, keepdims=1)
    raised = built.node("Sub", x, smallest)
    largest = built.node("ReduceMax", raised, last_axis, keepdims=1)
    step = built.node("Mul", largest, built.constant(np.float32(1 / LARGEST_CODE)))
    step = built.node("Max", step, built.constant(_LEAST))
    steps = built.node("Div", raised, step)
    one, zero = built.constant(np.float32(1)), built.constant(np.uint8(0))
    row = built.node("QuantizeLinear", steps, one, zero)
    whole = built.node("MatMulInteger", row, built.constant(codes))
    y = built.node("Mul", built.node("Cast", whole, to=ir.DataType.FLOAT), step)
    y = built.node("Mul", y, built.constant(scale))
    sums = codes.sum(0, dtype=np.float32) * scale
    y = built.node("Add", y, built.node("Mul", smallest, built.constant(sums)))
    for addend in bias:
        assert addend is not None, "a third input is the bias"
        y = built.node("Add", y, addend)
    old = product.outputs[0]
    y.shape, y.type = old.shape, old.type
    ir.convenience.replace_nodes_and_values(graph, product, [product], built.nodes, [old], [y])


class _Nodes:
    """Nodes to be put into a graph, and constants that are in it already."""

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self.nodes: list[ir.Node] = []
        self._graph, self._prefix, self._constants = graph, prefix, 0

    def constant(self, value: NDArray[np.generic] | np.generic) -> ir.Value:
        """Return a constant of the graph."""
        name = f"{self._prefix}.constant.{self._constants}"
        self._constants += 1
        tensor = ir.tensor(np.asarray(value), name=name)
        shape, kind = ir.Shape(np.shape(value)), ir.TensorType(tensor.dtype)
        stored = ir.Value(name=name, const_value=tensor, shape=shape, type=kind)
        self._graph.register_initializer(stored)
        return stored

    def node(self, operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """Append a node and return its output."""
        made = ir.node(operator, inputs, attributes)
        made.outputs[0].name = f"{self._prefix}.{len(self.nodes)}"
        self.nodes.append(made)
        return made.outputs[0]


def halved(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with its large constants stored in fp16.

    Engines widen them when they load the graph, and compute in fp32 as before.

    Raises:
        CheckpointError: A weight that overflows fp16.
    """
    model = ir.from_proto(graph)
    casts: list[ir.Node] = []
    for value in list(model.graph.initializers.values()):
        full = value.const_value
        if full is None or full.dtype != ir.DataType.FLOAT or full.size < _WORTH_IT:
            continue
        with np.errstate(over="ignore"):
            half = full.numpy().astype(np.float16)
        if not np.isfinite(half).all():
            raise CheckpointError("a weight is too large for fp16; export fp32 or int8")
        name = f"{value.name}.fp16"
        stored = ir.Value(name=name, const_value=ir.tensor(half, name=name))
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
        value.replace_all_uses_with(cast.outputs[0])
        del model.graph.initializers[value.name or ""]
        model.graph.register_initializer(stored)
        casts.append(cast)
    model.graph.insert_before(model.graph[0], casts)
    return ir.to_proto(model)
