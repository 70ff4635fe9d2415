"""Two traced graphs as one: what a plan starts with, and a loop over its rounds."""

import onnx
import onnx_ir as ir
from onnx import compose
from onnx_ir.passes import Sequential, common

SCANNED = ["round.samples", "round.value", "round.heads"]
"""Inputs of a round that have a leading axis of rounds in the whole graph."""


def planner_of(start: onnx.ModelProto, body: onnx.ModelProto) -> onnx.ModelProto:
    """Return one graph that runs `start`, and then `body` for each round of its noise.

    Args:
        start: From observation, task and the prior's noise to what the rounds share.
        body: A round: from what `start` gives, by the same names, `pick`, the distribution
            `round.mean` and `round.std`, and the round's noise `SCANNED`, to the next
            distribution and the action.
    """
    # Names that both graphs have would be one name for two things.
    unlike = compose.add_prefix(body, "round/", rename_inputs=False, rename_outputs=False)
    whole, rounds = ir.from_proto(start), ir.from_proto(unlike).graph
    outer = whole.graph
    state = [value for value in rounds.inputs if value.name in ("round.mean", "round.std")]
    noise = [value for value in rounds.inputs if value.name in SCANNED]
    added = [_outer(value) for value in state] + [_outer(value, "rounds") for value in noise]
    shared = {value.name: value for value in outer.outputs}
    for value in rounds.inputs:
        if value.name == "pick":
            added.append(shared.setdefault("pick", _outer(value)))
        if value.name in shared:
            value.replace_all_uses_with(shared[value.name])
    mean, std, *_ = added
    zero = ir.tensor(0, name="first_step")
    kind = ir.TensorType(ir.DataType.INT64)
    first = ir.Value(name="first_step", const_value=zero, shape=ir.Shape([]), type=kind)
    outer.register_initializer(first)
    # A state needs a value before the first round, of the shape that it has after it.
    gather = ir.node("Gather", [mean, first], {"axis": 0})
    action = rounds.outputs[2]
    before = ir.Value(name="round.action_before", shape=action.shape, type=action.type)
    rounds.inputs[:] = [*state, before, *noise]
    loop = ir.node(
        "Scan",
        [mean, std, gather.outputs[0], *added[2 : 2 + len(noise)]],
        {"body": rounds, "num_scan_inputs": len(noise)},
        num_outputs=len(rounds.outputs),
    )
    for result, inside in zip(loop.outputs, rounds.outputs, strict=True):
        assert inside.name is not None, "outputs have names"
        result.name = inside.name.removeprefix("round.")
        result.shape, result.type = inside.shape, inside.type
    outer.extend([gather, loop])
    outer.inputs.extend(added)
    outer.outputs[:] = loop.outputs
    whole.opset_imports.update(ir.from_proto(body).opset_imports)
    tidy = Sequential(
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateHashedInitializersPass(size_limit=2**62),
        common.RemoveUnusedNodesPass(),
    )
    return ir.to_proto(tidy(whole).model)


def _outer(value: ir.Value, *lead: str) -> ir.Value:
    """Return an input of the whole graph for one of the rounds'."""
    assert value.name is not None, "inputs have names"
    assert value.shape is not None, "inputs have shapes"
    name = value.name.removeprefix("round.")
    return ir.Value(name=name, shape=ir.Shape([*lead, *value.shape]), type=value.type)
