"""Two traced graphs as one: what a plan starts with, and a loop over its rounds."""

import onnx
import onnx_ir as ir
from onnx import compose
from onnx_ir.passes import Sequential, common

SCANNED = ["round.samples", "round.value", "round.heads"]
"""Inputs of a round that have a leading axis of rounds in the whole graph."""
RESULTS = ("new_mean", "new_std", "action")
"""Outputs of the whole graph; a round has them in this order."""
_STATE = ("round.mean", "round.std")
_GIVEN = (*_STATE, "pick")
"""Further inputs of the whole graph that only a round reads."""


def planner_of(start: onnx.ModelProto, body: onnx.ModelProto, *, once: bool) -> onnx.ModelProto:
    """Return one graph that runs `start`, and then `body` for each round of its noise.

    Args:
        start: From observation, task and the prior's noise to what the rounds share.
        body: A round: from what `start` gives, by the same names, `pick`, the distribution
            `round.mean` and `round.std`, and the round's noise `SCANNED`, to the next
            distribution and the action.
        once: Plans have one round: the graph needs no loop, which OpenVINO cannot read.
    """
    # Names that both graphs have would be one name for two things.
    unlike = compose.add_prefix(body, "round/", rename_inputs=False, rename_outputs=False)
    whole, rounds = ir.from_proto(start), ir.from_proto(unlike).graph
    outer = whole.graph
    shared = {value.name: value for value in outer.outputs}
    shared |= {value.name: _outer(value) for value in rounds.inputs if value.name in _GIVEN}
    noise = [value for value in rounds.inputs if value.name in SCANNED]
    for value in rounds.inputs:
        if value.name in shared and (once or value.name not in _STATE):
            value.replace_all_uses_with(shared[value.name])
    scanned = [_outer(value, 1 if once else "rounds") for value in noise]
    given = [shared[name] for name in _GIVEN]
    outer.inputs.extend([*given[:2], *scanned, *given[2:]])
    results = (_inlined if once else _looped)(outer, rounds, noise, scanned)
    for name, result in zip(RESULTS, results, strict=True):
        result.name = name
    outer.outputs[:] = results
    whole.opset_imports.update(ir.from_proto(body).opset_imports)
    tidy = Sequential(
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateHashedInitializersPass(size_limit=2**62),
        common.RemoveUnusedNodesPass(),
    )
    return ir.to_proto(tidy(whole).model)


def _looped(
    outer: ir.Graph, rounds: ir.Graph, noise: list[ir.Value], scanned: list[ir.Value]
) -> list[ir.Value]:
    """Run the rounds in a loop over their noise, and return what the last one gives."""
    mean, std = (value for value in outer.inputs if value.name in ("mean", "std"))
    # A state needs a value before the first round, of the shape that it has after it.
    gather = ir.node("Gather", [mean, _zero(outer)], {"axis": 0})
    action = rounds.outputs[2]
    before = ir.Value(name="round.action_before", shape=action.shape, type=action.type)
    state = [value for value in rounds.inputs if value.name in _STATE]
    rounds.inputs[:] = [*state, before, *noise]
    loop = ir.node(
        "Scan",
        [mean, std, gather.outputs[0], *scanned],
        {"body": rounds, "num_scan_inputs": len(noise)},
        num_outputs=len(rounds.outputs),
    )
    outer.extend([gather, loop])
    for result, inside in zip(loop.outputs, rounds.outputs, strict=True):
        result.shape, result.type = inside.shape, inside.type
    return list(loop.outputs)


def _inlined(
    outer: ir.Graph, rounds: ir.Graph, noise: list[ir.Value], scanned: list[ir.Value]
) -> list[ir.Value]:
    """Append the one round there is, and return what it gives."""
    zero = _zero(outer)
    for inside, outside in zip(noise, scanned, strict=True):
        first = ir.node("Gather", [outside, zero], {"axis": 0})
        outer.append(first)
        inside.replace_all_uses_with(first.outputs[0])
    for value in list(rounds.initializers.values()):
        assert value.name is not None, "initializers have names"
        rounds.initializers.pop(value.name)
        outer.register_initializer(value)
    results, nodes = list(rounds.outputs), list(rounds)
    rounds.outputs.clear()
    rounds.remove(nodes)
    outer.extend(nodes)
    return results


def _zero(graph: ir.Graph) -> ir.Value:
    """Return a constant 0, to take the first of something with."""
    kind = ir.TensorType(ir.DataType.INT64)
    constant = ir.tensor(0, name="first_step")
    value = ir.Value(name="first_step", const_value=constant, shape=ir.Shape([]), type=kind)
    graph.register_initializer(value)
    return value


def _outer(value: ir.Value, *lead: str | int) -> ir.Value:
    """Return an input of the whole graph for one of the rounds'."""
    assert value.name is not None, "inputs have names"
    assert value.shape is not None, "inputs have shapes"
    name = value.name.removeprefix("round.")
    return ir.Value(name=name, shape=ir.Shape([*lead, *value.shape]), type=value.type)
