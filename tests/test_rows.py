"""A row's action depends on that row alone, whatever rows are beside it in a batch."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmpc_opt.agents.agent import Agent, load_agent
from tdmpc_opt.checkpoints.checkpoint import Checkpoint, build
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.compression.extract import policy_only
from tdmpc_opt.compression.rounding import DTYPES, layers, recipe, round_weights, to_integers
from tdmpc_opt.runtime import load
from tdmpc_opt.schema import PlannerBudget

TASK, ROWS = "walker-stand", 17
BUDGET = PlannerBudget(horizon=2, iterations=2, samples=24, policy_samples=4, elites=6)
FORMATS = ["fp32", "fp16", "int8", "int4", "mixed"]


def _observations() -> np.ndarray:
    """Rows of very different sizes: a number that all share is then wrong for most."""
    rows = np.random.default_rng(0).normal(size=(ROWS, 24)).astype(np.float32)
    return rows * np.logspace(-2, 2, ROWS, dtype=np.float32)[:, None]


def _in_format(checkpoint: Checkpoint, kind: str) -> Checkpoint:
    if kind in DTYPES:
        return replace(checkpoint, tensors=round_weights(checkpoint.tensors, DTYPES[kind]))
    if kind == "mixed":
        kinds = ("int4", "int8", "fp16")
        formats = {name: kinds[i % 3] for i, name in enumerate(layers(checkpoint))}
    else:
        formats = recipe(kind, checkpoint)
    return to_integers(checkpoint, formats, None)


def _differs(agent, tolerance: float) -> None:
    rows = _observations()
    together = agent.act(rows, TASK)
    assert np.abs(together - together[0]).max() > 0.1, "else any mistake would pass"
    for row, expected in zip(rows, together, strict=True):
        np.testing.assert_allclose(agent.act(row, TASK), expected, atol=tolerance)


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_of_a_checkpoint_are_independent_in_numpy_and_torch(kind, tmp_path: Path):
    path = tmp_path / "policy.safetensors"
    write_native(path, _in_format(policy_only(read_checkpoint("demo-teacher")), kind))
    _differs(load(path), 2e-5)
    _differs(load_agent(path, mode="policy"), 2e-5)


def test_planned_rows_are_independent_in_torch():
    model = build(read_checkpoint("demo-teacher"))
    agents = Agent(model, budget=BUDGET), Agent(model, budget=BUDGET)
    rows = _observations()
    sources = [torch.Generator().manual_seed(k) for k in range(ROWS)]
    together = agents[0].act(rows, TASK, generator=sources)
    for k in (0, 8, 16):
        alone = agents[1].act(rows[k], TASK, generator=torch.Generator().manual_seed(k))
        np.testing.assert_allclose(alone, together[k], atol=1e-3)
        agents[1].reset()


@cache
def _graph(planning: bool, quantize: bool):
    from tdmpc_opt.export.graphs import planner_graph, policy_graph

    model = build(read_checkpoint("demo-teacher"))
    if planning:
        return planner_graph(model, BUDGET, quantize=quantize)
    return policy_graph(model, quantize=quantize)


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("planning", [False, True], ids=["policy", "planner"])
def test_rows_of_an_exported_graph_are_independent(planning, kind):
    """int8 scaled all rows of a batch by one number: alone a row's action differed by 1.03."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    from tdmpc_opt.export.formats import halved  # it needs onnx

    graph = _graph(planning, quantize=kind == "int8")
    content = (graph if kind == "fp32" else halved(graph)).SerializeToString()
    session = onnxruntime.InferenceSession(content)
    inputs = {"obs": _observations(), "task": np.zeros(ROWS, np.int64)}
    axes = {"obs": 0, "task": 0}
    if planning:
        rng, sizes, width = np.random.default_rng(1), BUDGET, 6
        prior, samples = sizes.policy_samples, sizes.samples
        shapes = {
            "prior": (sizes.horizon, prior, ROWS, width),
            "samples": (sizes.iterations, sizes.horizon, samples - prior, ROWS, width),
            "value": (sizes.iterations, samples, ROWS, width),
            "mean": (sizes.horizon, ROWS, width),
            "std": (sizes.horizon, ROWS, width),
        }
        for name, shape in shapes.items():
            inputs[name] = np.abs(rng.standard_normal(shape, dtype=np.float32))
            axes[name] = len(shape) - 2
        inputs |= {"pick": rng.random(ROWS, np.float32), "heads": np.array([[0, 1]] * 2)}
        axes["pick"] = 0
    name = "new_mean" if planning else "action"
    together = session.run([name], inputs)[0]
    for row in range(ROWS):
        own = {
            key: np.take(value, [row], axes[key]) if key in axes else value
            for key, value in inputs.items()
        }
        alone = session.run([name], own)[0]
        np.testing.assert_allclose(
            alone, np.take(together, [row], -2), atol=1e-3 if planning else 2e-5
        )
