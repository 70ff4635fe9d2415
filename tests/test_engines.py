"""The engine of the exported planner against eager torch, from the same noise."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tdmpc_opt
from tdmpc_opt import zoo
from tdmpc_opt.agents.agent import Agent
from tdmpc_opt.errors import InputError
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.planning.planner import EagerEngine
from tdmpc_opt.schema import PlannerBudget

pytest.importorskip("onnxruntime", reason="needs the extra export")
pytest.importorskip("onnxscript", reason="needs the extra export")

from tdmpc_opt.export import engine as module  # needs onnx
from tdmpc_opt.export import graphs
from tdmpc_opt.export.engine import OnnxEngine, engine_choice, fast_engine

TOLERANCE = 1e-3
"""Largest difference of an action, except where two samples tie and change places."""
LOOPED = PlannerBudget(iterations=3, samples=24, policy_samples=4, elites=6)


def _seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _obs(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def large_ensemble(make_model) -> WorldModel:
    """A model whose rows draw different members of the Q ensemble."""
    return make_model(num_q=5)


@pytest.fixture(scope="module")
def pair(large_ensemble):
    """Makes an agent of each engine that plan alike."""

    def make(**changes: object) -> tuple[Agent, Agent]:
        budget = replace(LOOPED, **changes)
        return tuple(
            Agent(large_ensemble, budget=budget, engine=engine)
            for engine in (EagerEngine, OnnxEngine)
        )

    return make


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_student_acts_by_both_engines_alike(deterministic):
    agents = [
        tdmpc_opt.load_agent(zoo.path("mt30-1m"), preset="realtime", engine=engine)
        for engine in ("eager", "auto")
    ]
    assert [agent.engine for agent in agents] == ["eager", "onnxruntime"]
    sources = [_seeded(1, 2, 3) for _ in agents]
    differences = []
    for step in range(10):
        obs = _obs(3, 17, seed=step)
        eager, fast = (
            agent.act(obs, "cheetah-run", deterministic=deterministic, generator=source)
            for agent, source in zip(agents, sources, strict=True)
        )
        differences.append(np.abs(eager - fast).max())
    assert np.quantile(differences, 0.9) < TOLERANCE
    assert max(differences) < 0.2
    for left, right in zip(*sources, strict=True):
        assert torch.equal(left.get_state(), right.get_state())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"replan_every": 2, "mean_action": True},
        {"warm_mean": 0.5, "warm_std": 1.5},
        {"converged_std": 0.5},
    ],
)
def test_every_row_averages_its_own_heads_and_keeps_its_own_plan(pair, changes):
    agents, rounds = pair(**changes), [[], []]
    sources = [_seeded(4, 5, 6) for _ in agents]
    for step in range(5):
        actions = []
        for agent, source, counts in zip(agents, sources, rounds, strict=True):
            if step == 3:
                agent.reset([1])
            actions.append(agent.act(_obs(3, 5, seed=step), [0, 1, 1], generator=source))
            counts.append(agent.iterations)
        np.testing.assert_allclose(*actions, atol=TOLERANCE)
    assert rounds[0] == rounds[1]
    if changes.get("converged_std"):
        assert min(rounds[0]) < LOOPED.iterations, "else nothing converged"


def test_a_deadline_leaves_out_rounds_of_the_graph(large_ensemble):
    clock = SimpleNamespace(now=0.0)

    def tick() -> float:
        clock.now += 0.01
        return clock.now

    agent = Agent(large_ensemble, budget=LOOPED, engine=OnnxEngine, clock=tick)
    for deadline, rounds in ((1000.0, 3), (35.0, 1)):
        agent.act(_obs(5), "one", deadline_ms=deadline)
        assert agent.iterations == rounds


@pytest.fixture
def stored(large_ensemble, monkeypatch, tmp_path) -> Path:
    """The file of a graph that was traced before, in a cache folder of its own."""
    graph = module._graph(large_ensemble, LOOPED)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    again = SimpleNamespace(SerializeToString=lambda: graph)
    monkeypatch.setattr(graphs, "planner_graph", lambda *_: again)
    assert module._graph(large_ensemble, LOOPED) == graph
    (path,) = tmp_path.glob("tdmpc-opt/planner-*.onnx")
    return path


def _no_tracing(*_: object) -> None:
    raise AssertionError("traced although the cache has the graph")


def test_a_graph_is_traced_once_for_all_budgets_that_share_it(
    stored, large_ensemble, monkeypatch
):
    graph = module._graph(large_ensemble, LOOPED)
    monkeypatch.setattr(graphs, "planner_graph", _no_tracing)
    for same in ({"replan_every": 2}, {"warm_std": 1.0}, {"iterations": 5}):
        assert module._graph(large_ensemble, replace(LOOPED, **same)) == graph
    for other in ({"elites": 7}, {"prior_hold": 1.0}, {"iterations": 1}):
        with pytest.raises(AssertionError, match="traced although"):
            module._graph(large_ensemble, replace(LOOPED, **other))


def test_other_weights_have_another_graph(stored, make_model, monkeypatch):
    monkeypatch.setattr(graphs, "planner_graph", _no_tracing)
    with pytest.raises(AssertionError, match="traced although"):
        module._graph(make_model(num_q=5, seed=1), LOOPED)


def test_a_damaged_cache_file_is_replaced(stored, large_ensemble):
    whole = stored.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1] + bytes([whole[-1] ^ 1])):
        stored.write_bytes(damaged)
        assert module._graph(large_ensemble, LOOPED) == whole[32:]
        assert stored.read_bytes() == whole


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX")
def test_a_cache_that_cannot_be_written_is_done_without(
    stored, large_ensemble, monkeypatch, tmp_path
):
    graph = module._graph(large_ensemble, LOOPED)
    blocked = tmp_path / "file"
    blocked.write_text("where the cache folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert module._graph(large_ensemble, LOOPED) == graph


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "dtype", "widths", "expected"),
    [
        (CPU, torch.float32, {}, OnnxEngine),
        (CPU, torch.bfloat16, {}, EagerEngine),
        (CPU, torch.float64, {}, EagerEngine),
        (CUDA, torch.float32, {}, EagerEngine),
        (CPU, torch.float32, {"mlp_dim": 4096}, EagerEngine),
    ],
)
def test_onnx_runtime_plans_where_it_computes_as_the_agent_does(
    model, device, dtype, widths, expected
):
    assert fast_engine(replace(model.config, **widths), device, dtype) is expected
    assert engine_choice("eager")(model.config, device, dtype) is EagerEngine


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_without_its_libraries_torch_plans(missing, checkpoint_file, monkeypatch):
    find = module.importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name: None if name == missing else find(name)
    )
    assert tdmpc_opt.load_agent(checkpoint_file).engine == "eager"


@pytest.mark.parametrize("name", ["native", "compile", "openvino"])
def test_engines_that_are_gone_are_refused(name, checkpoint_file, unchecked):
    with pytest.raises(InputError, match=f"unknown engine '{name}'; take auto or eager"):
        tdmpc_opt.load_agent(checkpoint_file, engine=name)
