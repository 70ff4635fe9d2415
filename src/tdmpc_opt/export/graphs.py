"""The policy, and the whole planner, as ONNX graphs for any number of rows.

A plan is two traced graphs as one: what it starts with, and a loop over its rounds.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx import compose
from onnx_ir.passes import Sequential, common
from torch import Tensor, nn
from torch.export import Dim

from tdmpc_opt.export.formats import in_integers
from tdmpc_opt.model.fold import FoldedModel, Shares
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.planning.mppi import (
    Problem,
    RoundNoise,
    draw_elite,
    draw_noise,
    iterations,
    prepare,
    refine,
)
from tdmpc_opt.schema import PlannerBudget

Inputs = dict[str, NDArray[Any]]
Run = Callable[[Inputs], dict[str, NDArray[np.float32]]]
"""Runs a graph: inputs by name to outputs by name."""

OPSET = 18
"""Operator set of a graph that names no other, for the oldest engines."""

_TRACED_ROWS = 3
"""Any number but 1, which would be taken for a constant."""
_ROWS = Dim("rows", min=2)


def policy_graph(
    model: WorldModel, *, quantize: bool = False, opset: int = OPSET
) -> onnx.ModelProto:
    """Trace the policy: `obs` [B, width] and `task` [B] to `action` [B, action].

    Observations may be padded or of the task's own width, and actions are padded. A model of
    one task has no input `task`.

    Args:
        model: World model in eval mode, or its encoder and policy alone.
        quantize: Compute the large products in int8.
        opset: Operator set of the graph.
    """
    names, values, axes = _observation(model)
    graph = traced(FoldedModel(model, centred=True), values, names, ["action"], axes, opset)
    return in_integers(graph) if quantize else graph


def planner_graph(
    model: WorldModel, budget: PlannerBudget, *, quantize: bool = False, opset: int = OPSET
) -> onnx.ModelProto:
    """Trace a whole plan; it refines as often as the noise has rounds, or once if budgeted so.

    Its inputs are `obs` and `task` as in `policy_graph`, the distribution to start from, `mean`
    and `std` [horizon, B, action], and the noise: `prior` [horizon, prior, B, action],
    `samples` [rounds, horizon, sampled, B, action], `value` [rounds, samples, B, action],
    `heads` [rounds, 2] and `pick` [B], as in `PlanNoise` but that all rows share their heads,
    as in the public code. Its outputs are `action` [B, action], `new_mean` and `new_std`.

    A plan may be cut into several calls: `new_mean` and `new_std` go in as `mean` and `std`,
    with the same `prior` and `pick`, and the noise of the rounds to come.

    Args:
        model: Whole world model in eval mode.
        budget: Sizes of the search.
        quantize: Compute the large products in int8.
        opset: Operator set of the graph.
    """
    networks = FoldedModel(model, centred=True)
    names, values, axes = _observation(model)
    task = values[1] if "task" in names else None
    noise = draw_noise(model, budget, [None] * _TRACED_ROWS)
    with torch.no_grad():
        z = networks.encode(values[0], task)
        problem = prepare(networks, z, task, noise.prior)
    mean = noise.prior.new_zeros(budget.horizon, _TRACED_ROWS, model.config.action_dim)
    std = torch.ones_like(mean)  # the tracer takes one tensor given twice for one input
    round_noise = RoundNoise(noise.samples[0], noise.value[0], noise.heads[0, :, 0])
    shared = _names(problem)
    start = traced(
        _Start(networks),
        (noise.prior, *values),
        ["prior", *names],
        shared,
        {"prior": {2: _ROWS}} | axes,
        opset,
    )
    problem_axes, noise_axes = _open_axes(problem)
    body = traced(
        _Round(networks, budget),
        (_given(problem), mean, std, round_noise, noise.pick),
        [*shared, "round.mean", "round.std", *SCANNED, "pick"],
        ["round.new_mean", "round.new_std", "round.action"],
        {
            "problem": problem_axes,
            "mean": {1: _ROWS},
            "std": {1: _ROWS},
            "noise": noise_axes,
            "pick": {0: _ROWS},
        },
        opset,
    )
    if quantize:
        start, body = in_integers(start), in_integers(body)
    once = iterations(budget, model.config.action_dim) == 1
    return _planner_of(start, body, once=once)


class _Start(nn.Module):
    """What the rounds of a plan have in common."""

    def __init__(self, networks: FoldedModel) -> None:
        super().__init__()
        self._networks = networks

    def forward(
        self, prior: Tensor, obs: Tensor, task: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        z = self._networks.encode(obs, task)
        problem = prepare(self._networks, z, task, prior)
        shares = problem.shares
        return (*shares.later, *shares.at_start, shares.q, *_given(problem)[1:])


class _Round(nn.Module):
    """One refinement, and the action if it is the last."""

    def __init__(self, networks: FoldedModel, budget: PlannerBudget) -> None:
        super().__init__()
        self._networks, self._budget = networks, budget

    def forward(
        self,
        problem: tuple[Any, ...],
        mean: Tensor,
        std: Tensor,
        noise: RoundNoise,
        pick: Tensor,
    ) -> tuple[Tensor, ...]:
        one_pair = noise._replace(heads=noise.heads.unsqueeze(1))
        result = refine(self._networks, self._budget, Problem(*problem), mean, std, one_pair)
        action = draw_elite(result.first, result.weights, pick)
        return result.mean, result.std, action


def _observation(
    model: WorldModel,
) -> tuple[list[str], tuple[Tensor, ...], dict[str, dict[int, Any]]]:
    """Return names, values to trace with and open axes of observation and task."""
    obs = torch.zeros(_TRACED_ROWS, model.config.obs_dim)
    axes: dict[str, dict[int, Any]] = {"obs": {0: _ROWS}}
    if model.task_embedding is None:
        return ["obs"], (obs,), axes
    axes["obs"][1] = Dim("width", max=model.config.obs_dim)
    task = torch.zeros(_TRACED_ROWS, dtype=torch.int64)
    return ["obs", "task"], (obs, task), axes | {"task": {0: _ROWS}}


def _given(problem: Problem) -> tuple[Any, ...]:
    """Return the parts of a problem that there are: the exporter counts None as an input."""
    return tuple(part for part in problem if part is not None)


def _names(problem: Problem) -> list[str]:
    """Return the names of a problem's tensors in the graph, in their order."""
    shares = problem.shares
    later = [f"shares.later.{i}" for i in range(len(shares.later))]
    at_start = [f"shares.at_start.{i}" for i in range(len(shares.at_start))]
    given = [name for name in Problem._fields[1:] if getattr(problem, name) is not None]
    return [*later, *at_start, "shares.q", *given]


def _open_axes(problem: Problem) -> tuple[Any, Any]:
    """Return which axes of a problem's tensors and of a round's noise are those of the rows."""
    named: Any = (
        Problem,
        Shares,
        RoundNoise,
    )  # their fields are axes here instead of tensors
    axes_of_problem, axes_of_shares, axes_of_noise = named
    later, at_start = (tuple({0: _ROWS} for _ in part) for part in problem.shares[:2])
    shares = axes_of_shares(later=later, at_start=at_start, q={1: _ROWS})
    problem_axes = axes_of_problem(
        shares=shares,
        mask={0: _ROWS},
        discount={0: _ROWS},
        prior_actions={2: _ROWS},
        prior_latent={1: _ROWS},
        prior_value={1: _ROWS},
        prior_weight=None if problem.prior_weight is None else {1: _ROWS},
    )
    return _given(problem_axes), axes_of_noise(samples={2: _ROWS}, value={1: _ROWS}, heads={})


def traced(
    module: nn.Module,
    inputs: tuple[Any, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic: dict[str, Any] | None = None,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Trace a module, with its weights in the graph.

    Args:
        module: What the graph computes.
        inputs: Arguments whose shapes the graph takes and whose values do not matter.
        input_names: Names of the graph's inputs, tuples of tensors taken apart.
        output_names: Names of its outputs.
        dynamic: Axes that stay open, by the names of the module's arguments, in the form of
            `torch.export`.
        opset: Operator set of the graph.
    """
    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            module.eval(),
            inputs,
            input_names=list(input_names),
            output_names=list(output_names),
            opset_version=opset,
            dynamic_shapes=dynamic,
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "the exporter returns a program where no file is named"
    return program.model_proto


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress the exporter's messages that a user cannot act on.

    It lists operators that no planner has, copies a deprecated class of torch itself, and names
    an axis that several inputs share twice and then warns that the second name is unused.
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


SCANNED = ["round.samples", "round.value", "round.heads"]
"""Inputs of a round that have a leading axis of rounds in the whole graph."""
RESULTS = ("new_mean", "new_std", "action")
"""Outputs of the whole graph; a round has them in this order."""
_STATE = ("round.mean", "round.std")
_GIVEN = (*_STATE, "pick")
"""Further inputs of the whole graph that only a round reads."""


def _planner_of(
    start: onnx.ModelProto, body: onnx.ModelProto, *, once: bool
) -> onnx.ModelProto:
    """Return one graph that runs `start`, and then `body` for each round of its noise.

    A graph of one round needs no loop, which OpenVINO cannot read.
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
