import copy
import importlib.util
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tdmpc_opt.checkpoints.checkpoint import build
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.configs import PlannerBudget
from tdmpc_opt.errors import InputError, MissingDependencyError
from tdmpc_opt.planning import engines, native_library
from tdmpc_opt.planning.engines import make_engine
from tdmpc_opt.planning.mppi import Engine, Plan, draw_noise, prepare, refine, search
from tdmpc_opt.planning.networks import PlannerNetworks
from tdmpc_opt.task_table import MT30

# torch's compiler trips over a deprecation of torch's own.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")

TOLERANCE = 1e-4
"""Largest difference of mean and std from the reference, except where two samples tie."""
BUDGET = PlannerBudget(iterations=3, samples=256, policy_samples=24, elites=32)
HELD = replace(BUDGET, samples=64, policy_samples=16, prior_penalty=0.1, prior_hold=0.1)
"""Plans that are held close to the policy."""

needs_compiler = pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX")
    or not (shutil.which("g++") or shutil.which("clang++")),
    reason="needs a C++ compiler and a CPU with AVX2",
)
every_engine = pytest.mark.parametrize(
    "name",
    [
        pytest.param("compile", marks=pytest.mark.compile),
        pytest.param("native", marks=needs_compiler),
        "onnxruntime",
        "openvino",
    ],
)


def _engine(
    name: str, networks: PlannerNetworks, budget: PlannerBudget, precision: str = "fp32"
) -> Engine:
    if name not in ("compile", "native"):
        pytest.importorskip(name)
        pytest.importorskip("onnxscript")
    return make_engine(name, precision, networks, budget)


def _plans(
    networks: PlannerNetworks,
    budget: PlannerBudget,
    obs: Tensor,
    task: Tensor,
    *tried: Engine,
) -> list[Plan]:
    """Plans of the reference and of these engines, from the same noise."""
    model = networks.model
    sources = [torch.Generator().manual_seed(seed) for seed in range(len(obs))]
    with torch.inference_mode():
        noise = draw_noise(model, budget, sources)
        problem = prepare(networks, model.encode(obs, task), task, noise.prior)
        previous = torch.zeros(budget.horizon, len(obs), model.config.action_dim)
        return [
            search(engine, problem, previous, noise, budget.max_std)
            for engine in (partial(refine, networks, budget), *tried)
        ]


def _differences(reference: Plan, other: Plan) -> Tensor:
    """Largest difference of each row's mean or std."""
    parts = ((reference.mean, other.mean), (reference.std, other.std))
    return torch.stack([(a - b).abs().amax(dim=(0, 2)) for a, b in parts]).amax(0)


@pytest.fixture(scope="module")
def student() -> PlannerNetworks:
    return PlannerNetworks(build(read_checkpoint("mt30-1m")))


@pytest.fixture(scope="module")
def large_ensemble(make_model) -> PlannerNetworks:
    return PlannerNetworks(make_model(num_q=5))


@pytest.fixture(scope="module", autouse=True)
def _each_graph_is_traced_once() -> Iterator[None]:
    """Tracing takes seconds, and both graph engines run the same graphs."""
    if importlib.util.find_spec("onnxscript") is None:
        yield
        return
    from tdmpc_opt.planning import graph

    trace, traced = graph.iteration_graph, {}

    def cached(networks: PlannerNetworks, budget: PlannerBudget, *inputs: Any) -> Any:
        key = networks, budget, inputs[1].shape
        if key not in traced:
            traced[key] = trace(networks, budget, *inputs)
        return copy.deepcopy(traced[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "iteration_graph", cached)
        yield


@pytest.fixture(scope="module")
def observations() -> tuple[Tensor, Tensor]:
    """Real observations of 20 tasks, and the tasks."""
    obs = torch.zeros(20, MT30.obs_dim)
    with np.load(Path(__file__).parent / "golden" / "mt30.npz") as arrays:
        for row, task in enumerate(MT30.tasks[:20]):
            obs[row, : task.obs_dim] = torch.from_numpy(arrays[f"{task.name}/11/obs"][30])
    return obs, torch.arange(20)


@every_engine
@pytest.mark.parametrize("budget", [BUDGET, HELD], ids=["published", "held"])
def test_engines_agree_with_the_reference_on_real_observations(
    name, budget, student, observations
):
    obs, task = observations
    assert len(task.unique()) >= 10
    reference, other = _plans(student, budget, obs, task, _engine(name, student, budget))
    difference = _differences(reference, other)
    # Two samples whose values tie up to rounding may swap places among the elites.
    assert (difference < TOLERANCE).float().mean() >= 0.9
    assert difference.max() < 0.2
    drawn = (reference.action - other.action).abs().amax(1)
    assert (drawn < TOLERANCE).float().mean() >= 0.9


@every_engine
@pytest.mark.parametrize("task", [[0], [0, 1, 1]])
def test_engines_average_the_heads_drawn_for_each_row(name, task, large_ensemble, small_budget):
    engine = _engine(name, large_ensemble, small_budget)
    obs = torch.randn(len(task), 5, generator=torch.Generator().manual_seed(0))
    plans = _plans(large_ensemble, small_budget, obs, torch.tensor(task), engine)
    assert _differences(*plans).max() < TOLERANCE
    assert not plans[1].mean[:, 1:, 2].any()


@pytest.mark.parametrize("name", ["onnxruntime", pytest.param("native", marks=needs_compiler)])
def test_int8_plans_come_close(name, student, observations):
    """Their values err by a fraction of what the samples' values differ among themselves."""
    obs, task = observations
    engine = _engine(name, student, BUDGET, "int8")
    reference, low = _plans(student, BUDGET, obs, task, engine)
    start = BUDGET.max_std
    assert (reference.mean - low.mean).abs().mean() < 0.15
    assert (reference.std - low.std).abs().mean() < 0.1 * start
    assert not torch.equal(reference.mean, low.mean)


def test_int8_keeps_what_decodes_and_what_is_small_in_fp32(student, observations):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from tdmpc_opt.planning.graph import iteration_graph, quantized

    graph = _graph(iteration_graph, student, observations)
    shapes = _product_shapes(graph)
    low = quantized(graph)
    kinds = [node.op_type for node in low.graph.node]
    large = [shape for shape in shapes if min(shape) >= 128]
    assert kinds.count("MatMulInteger") == len(large) == 19
    assert len(_product_shapes(low)) == len(shapes) - len(large)


def _graph(trace: Callable, networks: PlannerNetworks, observations: tuple[Tensor, Tensor]):
    obs, task = (part[:1] for part in observations)
    model = networks.model
    noise = draw_noise(model, BUDGET, [None])
    with torch.no_grad():
        problem = prepare(networks, model.encode(obs, task), task, noise.prior)
    mean = torch.zeros(3, 1, 6)
    return trace(networks, BUDGET, problem, mean, torch.ones_like(mean), noise.round(0))


def _product_shapes(graph) -> list[tuple[int, ...]]:
    """Shapes of the constant weights that fp32 products multiply with."""
    sizes = {weight.name: tuple(weight.dims) for weight in graph.graph.initializer}
    products = [node for node in graph.graph.node if node.op_type in ("Gemm", "MatMul")]
    return [sizes[node.input[1]] for node in products if node.input[1] in sizes]


@pytest.mark.parametrize(
    ("name", "precision", "message"),
    [
        (
            "tensorrt",
            "fp32",
            "unknown engine 'tensorrt'; take eager, compile, native, onnxruntime",
        ),
        ("eager", "int8", "engine eager has no int8; take engine native or onnxruntime"),
        ("openvino", "int8", "engine openvino has no int8; take engine native or onnxruntime"),
    ],
)
def test_unknown_engines_and_precisions_are_refused(
    name, precision, message, model, small_budget, unchecked
):
    with pytest.raises(InputError, match=message):
        make_engine(name, precision, PlannerNetworks(model), small_budget)


@pytest.mark.parametrize("name", ["native", "onnxruntime", "openvino"])
def test_engines_for_cpus_refuse_other_number_formats(name, make_model, small_budget):
    low = PlannerNetworks(make_model().bfloat16())
    with pytest.raises(InputError, match="runs on the CPU in float32, this agent on cpu in bf"):
        make_engine(name, "fp32", low, small_budget)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_engines_may_run_on_any_core(name, student, observations):
    """Bound to a core while they compute, two processes share it and others idle."""
    obs, task = observations
    allowed, planner = os.sched_getaffinity(0), threading.get_native_id()
    seen, done = set(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.add(frozenset(os.sched_getaffinity(planner)))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        _plans(student, HELD, obs, task, _engine(name, student, HELD))
    finally:
        done.set()
        watcher.join()
    assert seen == {frozenset(allowed)}


@pytest.mark.parametrize(
    ("name", "extra"), [("onnxruntime", "export"), ("openvino", "openvino")]
)
def test_a_missing_library_is_named_with_its_extra(
    name, extra, model, small_budget, monkeypatch
):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda part: None)
    message = rf'^engine {name} needs {name}: pip install "tdmpc-opt\[{extra}\]"$'
    with pytest.raises(MissingDependencyError, match=message):
        make_engine(name, "fp32", PlannerNetworks(model), small_budget)


@pytest.mark.parametrize("name", ["compile", pytest.param("native", marks=needs_compiler)])
def test_compiling_without_a_compiler_is_refused(name, model, small_budget, monkeypatch):
    monkeypatch.setattr(engines.shutil, "which", lambda program: None)
    with pytest.raises(MissingDependencyError, match=r"needs a C\+\+ compiler: install g\+\+"):
        make_engine(name, "fp32", PlannerNetworks(model), small_budget)


@needs_compiler
def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native_library, "_FLAGS", ("--no-such-flag",))
    native_library.library.cache_clear()
    with pytest.raises(
        MissingDependencyError, match=r"cannot compile engine native: .*no-such"
    ):
        native_library.library()
    assert not list(tmp_path.rglob("*.so"))


def test_native_code_needs_avx2(model, small_budget, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    with pytest.raises(InputError, match="needs an x86 CPU with AVX2; take engine onnxruntime"):
        make_engine("native", "fp32", PlannerNetworks(model), small_budget)


@needs_compiler
def test_native_code_refuses_widths_that_it_cannot_divide(make_model, small_budget):
    odd = PlannerNetworks(make_model(mlp_dim=24))
    with pytest.raises(InputError, match=r"needs layers of multiples of 16 .* has 24"):
        make_engine("native", "fp32", odd, small_budget)


@needs_compiler
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_native_plans_do_not_depend_on_threads(precision, student, observations):
    obs, task = (part[:3] for part in observations)
    engine = _engine("native", student, BUDGET, precision)
    (_, one), threads = _plans(student, BUDGET, obs, task, engine), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        _, three = _plans(student, BUDGET, obs, task, engine)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one.mean, three.mean)
    assert torch.equal(one.std, three.std)
