"""Weights of a graph in half precision, for half the bytes."""

import numpy as np
import onnx
import onnx_ir as ir

from tdmpc_opt.errors import CheckpointError

_WORTH_IT = 1024
"""Numbers from which a constant is stored in half precision; the rest is sizes and scales."""


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
