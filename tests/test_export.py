"""Exported files act as torch does, on real observations, and say what they are."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch

import tdmpc_opt
from tdmpc_opt import make_env, zoo
from tdmpc_opt.agents.agent import Agent, load_agent
from tdmpc_opt.checkpoints.checkpoint import build, from_model
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.cli import main
from tdmpc_opt.configs.deploy import ExportConfig
from tdmpc_opt.errors import (
    BusyError,
    CheckpointError,
    InputError,
    MissingDependencyError,
    NonFiniteError,
    ResultError,
)
from tdmpc_opt.files import sha256
from tdmpc_opt.model.fold import FoldedModel
from tdmpc_opt.planning import planner as planner_module
from tdmpc_opt.planning.mppi import PlanNoise, draw_noise, plan
from tdmpc_opt.runtime import load
from tdmpc_opt.schema import PlannerBudget
from tdmpc_opt.tasks import choose_tasks

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from tdmpc_opt.export.export import export  # noqa: E402  # needs onnx

TASK = "cup-catch"
BUDGET = PlannerBudget(horizon=2, iterations=3, samples=24, policy_samples=4, elites=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def policy(folder):
    path = folder / "policy.onnx"
    return path, export(ExportConfig(checkpoint="demo-teacher", policy_only=True, output=path))


@pytest.fixture(scope="module")
def planner(folder, checkpoint_file):
    path = folder / "planner.onnx"
    return path, export(ExportConfig(checkpoint=str(checkpoint_file), output=path), BUDGET)


ONE_ROUND = replace(
    BUDGET,
    iterations=1,
    warm_mean=0.5,
    warm_std=1.5,
    mean_action=True,
    prior_penalty=5.0,
    prior_hold=1.0,
)


@pytest.fixture(scope="module")
def one_round(folder, checkpoint_file) -> Path:
    path = folder / "one.onnx"
    export(ExportConfig(checkpoint=str(checkpoint_file), output=path), ONE_ROUND)
    return path


def _changed_plan(source: Path, path: Path, **changes: float) -> Path:
    """Write a copy of a planner whose search has other sizes, so far as the graph lets it."""
    model = onnx.load(source)
    for entry in model.metadata_props:
        if entry.key == "plan":
            entry.value = json.dumps(json.loads(entry.value) | changes)
    onnx.save(model, path)
    return path


def _observations(task: str, count: int = 20) -> np.ndarray:
    env = make_env(task, 3)
    rng = np.random.default_rng(3)
    actions = rng.uniform(-1, 1, (count - 1, *env.action_space.shape)).astype(np.float32)
    return np.stack([env.reset()[0], *(env.step(action)[0] for action in actions)])


def test_the_policy_acts_as_torch_in_every_task(policy):
    path, report = policy
    agent, reference = load(path), load_agent("demo-teacher", mode="policy")
    assert agent.tasks == reference.tasks
    for name in agent.tasks.names:
        obs = _observations(name)
        found = agent.act(obs, name)
        np.testing.assert_allclose(found, reference.act(obs, name), atol=5e-5)
        np.testing.assert_allclose(agent.act(obs[5], name), found[5], atol=1e-5)
        assert found.dtype == np.float32
    assert report.parity.tasks == len(agent.tasks)
    assert report.parity.max_error < 5e-5
    assert report.output_bytes == path.stat().st_size


@pytest.mark.parametrize("name", ["own_envs:Point-v0", "own_envs:Early-v0"])
def test_a_policy_is_checked_in_the_environment_that_is_named(
    name, tmp_path, make_model, monkeypatch, capsys
):
    """Whose episodes are shorter than the check, and one ends early."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    tasks = choose_tasks(name)
    source, path = tmp_path / "own.safetensors", tmp_path / "policy.onnx"
    write_native(source, from_model(make_model(tasks, task_dim=0)))
    words = ["export", str(source), "--policy-only", "--output", str(path)]
    assert main(words) == 1
    assert "name their environments with --tasks MODULE:ID" in capsys.readouterr().err
    assert main([*words, "--tasks", name]) == 0
    assert "on 40 real observations of 1 task:" in capsys.readouterr().out.replace("\n", " ")
    assert load(path).contract() is not None


def test_padded_observations_act_alike(policy):
    agent, obs = load(policy[0]), _observations(TASK)
    wide = np.pad(obs, ((0, 0), (0, agent.tasks.obs_dim - obs.shape[1])))
    np.testing.assert_array_equal(agent.act(wide, TASK), agent.act(obs, TASK))


def test_a_file_says_what_it_is(policy):
    properties = {entry.key: entry.value for entry in onnx.load(policy[0]).metadata_props}
    assert properties["format"] == "tdmpc-opt"
    assert properties["schema"] == "1"
    assert properties["kind"] == "policy"
    assert properties["number_format"] == "fp32"
    assert properties["source_sha256"] == sha256(zoo.path("demo-teacher"))
    assert json.loads(properties["tasks"])[0]["name"] == "walker-stand"
    assert str(Path.cwd()).encode() not in policy[0].read_bytes()
    assert json.loads(properties["check"])["max_error"] == policy[1].parity.max_error
    onnx.checker.check_model(onnx.load(policy[0]))


def test_one_task_and_int8_make_small_files(folder, policy):
    path = folder / "one-int8.onnx"
    small = ExportConfig(
        checkpoint="demo-teacher", policy_only=True, task=TASK, format="int8", output=path
    )
    report = export(small)
    assert report.output_bytes < 0.35 * policy[1].output_bytes
    assert report.parity.cosine > 0.99
    graph = onnx.load(path).graph
    assert [node.op_type for node in graph.node].count("MatMulInteger") == 3
    agent, obs = load(path), _observations(TASK)
    wanted = load_agent("demo-teacher", mode="policy").act(obs, TASK)
    assert agent.act(obs).shape == (20, 2)
    assert np.abs(agent.act(obs) - wanted).max() < 0.1
    with pytest.raises(
        CheckpointError, match=r"differ from torch's in one of ten by .* tolerance 1\.0e-06"
    ):
        export(
            ExportConfig(**(vars(small) | {"tolerance": 1e-6, "output": folder / "no.onnx"}))
        )
    assert not (folder / "no.onnx").exists()


def test_half_precision_halves_the_file(folder, policy):
    path = folder / "half.onnx"
    config = ExportConfig(
        checkpoint="demo-teacher", policy_only=True, format="fp16", tolerance=0.01, output=path
    )
    assert export(config).output_bytes < 0.55 * policy[1].output_bytes
    obs = _observations(TASK)
    np.testing.assert_allclose(
        load(path).act(obs, TASK), load(policy[0]).act(obs, TASK), atol=0.01
    )


def _plan_inputs(model, task: int, obs: np.ndarray):
    noise = draw_noise(model, BUDGET, [torch.Generator().manual_seed(5)])
    mean = torch.zeros(BUDGET.horizon, 1, model.config.action_dim)
    named = {"prior": noise.prior, "samples": noise.samples, "value": noise.value}
    named |= {"heads": noise.heads[..., 0], "pick": noise.pick, "mean": mean}
    named |= {"std": torch.full_like(mean, BUDGET.max_std)}
    arrays = {name: np.ascontiguousarray(value.numpy()) for name, value in named.items()}
    return noise, mean, arrays | {"obs": obs, "task": np.array([task])}


def test_the_planner_plans_as_torch_whole_or_cut_into_rounds(planner, checkpoint_file):
    path, report = planner
    assert report.parity.judged_error < 1e-4
    model = build(read_checkpoint(checkpoint_file))
    obs = _observations("pendulum-swingup")[7:8]
    noise, mean, inputs = _plan_inputs(model, 0, obs)
    networks, ids = FoldedModel(model), torch.tensor([0])
    with torch.inference_mode():
        padded = torch.nn.functional.pad(torch.from_numpy(obs), (0, 2))
        z = model.encode(padded, ids)
        wanted = plan(networks, z, ids, mean, noise, BUDGET)
    session = onnxruntime.InferenceSession(str(path))
    names = ["action", "new_mean", "new_std"]
    whole = session.run(names, inputs)
    for found, expected in zip(whole, (wanted.action, wanted.mean, wanted.std), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    cut = dict(inputs)
    for k in range(BUDGET.iterations):
        cut |= {name: inputs[name][k : k + 1] for name in ("samples", "value", "heads")}
        parts = session.run(names, cut)
        cut |= {"mean": parts[1], "std": parts[2]}
    for found, expected in zip(parts, whole, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


class _Clock:
    """Time that passes with every look at it."""

    def __init__(self) -> None:
        self.now, self.step = 0.0, 0.001

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_a_deadline_cuts_a_plan_and_is_counted(planner, unchecked):
    clock = _Clock()
    agent, obs = load(planner[0], clock=clock), _observations("pendulum-swingup")[0]
    clock.step = 0.002
    agent.act(obs, "pendulum-swingup", deadline_ms=1000.0)
    assert (agent.iterations, agent.deadlines, agent.deadline_misses) == (3, 1, 0)
    clock.step = (
        0.001  # after 3 looks another part of 2 ms would be late, and the fourth is not
    )
    agent.act(obs, "pendulum-swingup", deadline_ms=4.5)
    assert (agent.iterations, agent.deadline_misses) == (1, 0)
    clock.step = 0.1
    agent.act(obs, "pendulum-swingup", deadline_ms=4.0)
    assert (agent.iterations, agent.deadlines, agent.deadline_misses) == (1, 3, 1)
    agent.act(obs, "pendulum-swingup")
    assert (agent.iterations, agent.deadlines) == (3, 3)
    with pytest.raises(InputError, match="deadline_ms must be above 0, got -1"):
        agent.act(obs, "pendulum-swingup", deadline_ms=-1.0)
    with pytest.raises(InputError, match="deadline_ms must be a number, got 'soon'"):
        agent.act(obs, "pendulum-swingup", deadline_ms="soon")


def test_plans_start_warm_until_the_reset_and_follow_the_generator(planner, unchecked):
    agent, obs = load(planner[0]), _observations("cartpole-balance")[:3]
    rngs = [np.random.default_rng(2) for _ in range(3)]
    first = agent.act(obs, "cartpole-balance", generator=rngs[0])
    warm = agent.act(obs, "cartpole-balance", generator=rngs[1])
    agent.reset()
    again = agent.act(obs, "cartpole-balance", generator=rngs[2])
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, warm)
    assert first.shape == (3, 1)
    assert np.abs(first).max() <= 1
    with pytest.raises(
        InputError, match="a generator is an object of numpy's Generator, got 0"
    ):
        agent.act(obs, "cartpole-balance", generator=0)


def test_a_plan_may_serve_for_several_steps(folder, planner):
    path = _changed_plan(planner[0], folder / "twice.onnx", replan_every=2)
    agent, obs = load(path), _observations("pendulum-swingup")
    rng = np.random.default_rng(0)
    states = []
    for k in range(4):
        agent.act(obs[k], "pendulum-swingup", generator=rng)
        states.append(rng.bit_generator.state["state"]["state"])
    assert states[0] == states[1] != states[2] == states[3]


@pytest.mark.parametrize("one", [True, False], ids=["warm and by the mean", "converging"])
def test_plans_follow_each_other_as_torchs_do(
    one, folder, planner, one_round, checkpoint_file, monkeypatch
):
    path, budget = one_round, ONE_ROUND
    if not one:
        changes = {"converged_std": 0.45, "replan_every": 2}
        path = _changed_plan(planner[0], folder / "converging.onnx", **changes)
        budget = replace(BUDGET, **changes)
    asked: list[list[dict[str, np.ndarray]]] = []
    agent = load(path)
    run = agent._planner._run

    def recorded(names, inputs):
        asked[-1].append(inputs)
        return run(names, inputs)

    agent._planner._run = recorded
    obs, found, rounds = _observations("cartpole-balance"), [], []
    rng = np.random.default_rng(0)
    for k in range(0, len(obs), 2):
        asked.append([])
        found.append(agent.act(obs[k : k + 2], "cartpole-balance", generator=rng))
        rounds.append(agent.iterations)
    drawn = [noise for parts in asked if parts for noise in _recorded(parts, budget)]
    monkeypatch.setattr(planner_module, "draw_noise", lambda *_: drawn.pop(0))
    reference = load_agent(checkpoint_file, preset=budget)
    for k, action in zip(range(0, len(obs), 2), found, strict=True):
        wanted = reference.act(obs[k : k + 2], "cartpole-balance")
        np.testing.assert_allclose(action, wanted, atol=1e-3)
        assert reference.iterations == rounds[k // 2]
    assert not drawn
    if budget.converged_std:
        assert min(rounds) < max(rounds), "some plans stop earlier than others"


def _recorded(parts: list[dict[str, np.ndarray]], budget: PlannerBudget) -> list[PlanNoise]:
    """Return the noise of a call's plans as one batch; zeros for rounds left out."""
    rows: list[list[dict[str, np.ndarray]]] = []
    for part in parts:  # a plan's rounds share the array of the prior's noise
        if not rows or part["prior"] is not rows[-1][0]["prior"]:
            rows.append([])
        rows[-1].append(part)

    def rounds(name: str, axis: int) -> torch.Tensor:
        whole = []
        for row in rows:
            asked = np.concatenate([part[name] for part in row])
            missing = np.zeros((budget.iterations - len(asked), *asked.shape[1:]), asked.dtype)
            whole.append(torch.from_numpy(np.concatenate([asked, missing])))
        return torch.stack(whole, axis) if name == "heads" else torch.cat(whole, axis)

    def first(name: str, axis: int) -> torch.Tensor:
        return torch.cat([torch.from_numpy(row[0][name]) for row in rows], axis)

    prior = first("prior", 2)
    noise = PlanNoise(
        prior=prior,
        samples=rounds("samples", 3),
        value=rounds("value", 2),
        heads=rounds("heads", 2),
        pick=first("pick", 0),
        explore=torch.zeros(len(rows), prior.shape[-1]),
    )
    return [noise]


BAD_INPUT = [
    (np.zeros(9), TASK, r"observations of cup-catch have 8 \(or padded to 24\) numbers; got"),
    (
        np.zeros((2, 3, 8)),
        TASK,
        r"observations are \[obs\] or \[B, obs\]; got shape \[2, 3, 8\]",
    ),
    (np.zeros((0, 8)), TASK, r"observations are \[obs\] or \[B, obs\]; got shape \[0, 8\]"),
    (
        np.full(8, np.nan),
        TASK,
        "the observation contains NaN, infinity or .*; check the sensors",
    ),
    (np.array([3e38, *[0.0] * 7]), TASK, "too large for the network .at most 1e.15.; check"),
    (np.array([-1e300, *[0.0] * 7]), TASK, "too large for the network"),
    (np.array([2e15, *[0.0] * 7], np.float32), TASK, "too large for the network"),
    (np.zeros(8), "cup-cach", "unknown task 'cup-cach'; did you mean cup-catch"),
    (np.zeros(8), None, "name a task; known: walker-stand, "),
    (np.zeros(8), 99, r"task ids must be in 0\.\.3, got 99"),
    (np.zeros(8), True, "a task is a name or an id, got True"),
]


@pytest.mark.parametrize("kind", ["torch", "safetensors", "onnx"])
@pytest.mark.parametrize(("obs", "task", "message"), BAD_INPUT)
def test_every_runtime_refuses_bad_input_in_the_same_words(
    kind, obs, task, message, policy, unchecked
):
    if kind == "torch":
        agent = load_agent("demo-teacher", mode="policy")
    else:
        agent = load(zoo.path("demo-teacher") if kind == "safetensors" else policy[0])
    with pytest.raises(ValueError, match=message) as caught:
        agent.act(obs, task)
    assert "\n" not in str(caught.value)


def _with_property(source: Path, path: Path, **changes: str) -> Path:
    model = onnx.load(source)
    for entry in model.metadata_props:
        entry.value = changes.get(entry.key, entry.value)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "is an ONNX file of another program; write one with tdmpc-opt"),
        (
            {"schema": "7"},
            "written by a newer version .its schema is 7, the newest known here 1",
        ),
        ({"schema": "x"}, "is damaged: its schema number is 'x'"),
        ({"tasks": "[{}]"}, "is damaged: TypeError"),
        ({"tasks": "{"}, "is damaged: JSONDecodeError"),
        ({"kind": "planner"}, "is damaged: KeyError"),
    ],
)
def test_foreign_and_damaged_files_are_refused(policy, tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load(_with_property(policy[0], tmp_path / "changed.onnx", **changes))


def test_damaged_graphs_are_refused(policy, tmp_path):
    path, content = tmp_path / "damaged.onnx", policy[0].read_bytes()
    for damaged in (content[:1000], content[:-1000], b"", b"\x08" * 100, b"no graph at all"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged") as caught:
            load(path)
        assert "\n" not in str(caught.value)
    model = onnx.load(policy[0])
    model.graph.node[5].op_type = "NoSuchOperator"
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match="is damaged, or not an ONNX"):
        load(path)
    with pytest.raises(CheckpointError, match=r"cannot read .*No such file"):
        load(tmp_path / "nothing.onnx")


def test_what_this_machine_or_file_has_not_is_refused(policy, planner, monkeypatch):
    with pytest.raises(InputError, match=r"has no TensorrtExecutionProvider; it has .*CPUExec"):
        load(policy[0], providers=[("TensorrtExecutionProvider", {}), "CPUExecutionProvider"])
    with pytest.raises(InputError, match="has a policy, which has no planner presets, not r"):
        load(policy[0], preset="realtime")
    with pytest.raises(InputError, match="has the planner preset full, not realtime; export"):
        load(planner[0], preset="realtime")
    load(planner[0], preset="full")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'pip install "tdmpc-opt\[runtime\]"'):
        load(policy[0])


def _result(path: Path, digest: str) -> Path:
    record = {"returns": [250.0], "seeds": [0], "score": 25.0, "seconds": 1.0}
    config = {"checkpoint": {"name": "x", "sha256": digest}, "episodes": 1, "mode": "policy"}
    content = {"kind": "evaluation", "schema": 1, "complete": True, "config": config}
    content |= {"tasks": {TASK: record}, "score": {"mean": 25.0, "ci95": None}}
    path.write_text(json.dumps(content))
    return path


def test_the_command_tells_what_it_cost_and_the_file_its_score(tmp_path, dataset_dir, capsys):
    digest = sha256(zoo.path("demo-teacher"))
    result = _result(tmp_path / "result.json", digest)
    words = ["export", "demo-teacher", "--policy-only", "--task", "cartpole-balance"]
    words += ["--data", str(dataset_dir), "--output", str(tmp_path / "one.onnx")]
    assert main([*words, "--result", str(result)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "40 real observations of 1 task:" in told
    assert "bytes, " in told
    properties = {p.key: p.value for p in onnx.load(tmp_path / "one.onnx").metadata_props}
    assert json.loads(properties["score"])["mean"] == 25.0
    other = _result(tmp_path / "other.json", "0" * 64)
    assert main([*words, "--result", str(other)]) == 1
    assert "is a result of another checkpoint (x)" in capsys.readouterr().err


def test_mistakes_are_found_before_the_work(tmp_path):
    with pytest.raises(InputError, match="executorch files hold the policy; add --policy-only"):
        ExportConfig(checkpoint="x", output=tmp_path / "x.pte", target="executorch")
    with pytest.raises(InputError, match="a policy has no planner preset"):
        ExportConfig(
            checkpoint="x", output=tmp_path / "x.onnx", policy_only=True, preset="full"
        )
    with pytest.raises(InputError, match="`tolerance` must be above 0"):
        ExportConfig(checkpoint="x", output=tmp_path / "x.onnx", tolerance=0.0)
    config = ExportConfig(
        checkpoint="demo-teacher", output=tmp_path / "x.onnx", result=tmp_path / "none.json"
    )
    with pytest.raises(ResultError, match="cannot read"):
        export(config)


def test_openvino_reads_the_file_and_acts_alike(policy):
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(policy[0]), "CPU", settings)
    agent = load(policy[0])
    for name in agent.tasks.names:
        obs = _observations(name)
        ids = np.full(len(obs), agent.tasks.index(name))
        found = compiled({"obs": obs, "task": ids})["action"]
        width = agent.tasks[name].action_dim
        np.testing.assert_allclose(found[:, :width], agent.act(obs, name), atol=1e-4)


def test_openvino_reads_plans_of_one_round(one_round, checkpoint_file):
    """It has no loop over rounds as ONNX writes it."""
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(one_round), "CPU", settings)
    session = onnxruntime.InferenceSession(str(one_round))
    model = build(read_checkpoint(checkpoint_file))
    for obs in _observations("pendulum-swingup")[5:9]:
        *_, inputs = _plan_inputs(model, 0, obs[None])
        inputs |= {name: inputs[name][:1] for name in ("samples", "value", "heads")}
        for name in ("new_mean", "new_std", "action"):
            wanted = session.run([name], inputs)[0]
            np.testing.assert_allclose(compiled(inputs)[name], wanted, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_executorch_acts_as_torch(tmp_path):
    pytest.importorskip("executorch", reason="needs the extra executorch")
    path = tmp_path / "policy.pte"
    report = export(
        ExportConfig(
            checkpoint="demo-teacher", policy_only=True, target="executorch", output=path
        )
    )
    assert report.parity.max_error < 1e-4
    assert path.stat().st_size == report.output_bytes
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    says = program.load_method("metadata").execute([])[0]
    assert json.loads(says)["source_sha256"] == sha256(zoo.path("demo-teacher"))


def test_exported_files_are_evaluated_and_inspected(planner, tmp_path, capsys):
    output = tmp_path / "score.json"
    words = ["evaluate", str(planner[0]), "--tasks", "pendulum-swingup", "--episodes", "1"]
    assert main([*words, "--workers", "1", "--output", str(output)]) == 0
    content = json.loads(output.read_text())
    assert content["complete"]
    assert content["config"]["mode"] is None
    assert content["config"]["checkpoint"]["sha256"] == sha256(planner[0])
    capsys.readouterr()
    assert main([*words, "--mode", "policy", "--output", str(tmp_path / "p.json")]) == 1
    assert "acts by the mode `planner` alone; leave --mode out" in capsys.readouterr().err
    assert main(["inspect", str(planner[0])]) == 0
    told = capsys.readouterr().out
    assert sha256(planner[0]) in told
    assert all(word in told for word in ("planning", "fp32", "samples", "pendulum-swingup"))
    changed = tmp_path / "changed.safetensors"
    assert main(["convert", str(planner[0]), "--output", str(changed)]) == 1
    assert not changed.exists()
    assert "is an ONNX file, which contains no weights to load" in capsys.readouterr().err


class _StoppedClock:
    """Time that stands still at its second look, inside the plan, until it is let go."""

    def __init__(self) -> None:
        self.looks, self.inside, self.go = 0, Event(), Event()

    def __call__(self) -> float:
        self.looks += 1
        if self.looks == 2:
            self.inside.set()
            assert self.go.wait(60)
        return 0.0


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_a_second_thread_cannot_plan_with_the_same_agent(kind, planner, checkpoint_file):
    clock, obs = _StoppedClock(), _observations("pendulum-swingup")[0]
    if kind == "torch":
        agent = Agent(build(read_checkpoint(checkpoint_file)), budget=BUDGET, clock=clock)
    else:
        agent = load(planner[0], clock=clock)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(agent.act, obs, "pendulum-swingup", deadline_ms=1000.0)
        try:
            assert clock.inside.wait(60)
            with pytest.raises(BusyError, match="load an agent for each thread"):
                agent.act(obs, "pendulum-swingup")
            with pytest.raises(BusyError):
                agent.reset()
        finally:
            clock.go.set()
        assert np.abs(first.result()).max() <= 1
    agent.reset()
    agent.act(obs, "pendulum-swingup")


def test_a_planned_row_depends_on_that_row_alone(planner):
    """Draws that all rows shared made an episode's return depend on the number beside it."""
    obs = _observations("cartpole-balance", 17)
    alone, together = load(planner[0]), load(planner[0])
    sources = [np.random.default_rng(k) for k in range(17)]
    single = np.random.default_rng(3)
    for step in range(3):
        rows = together.act(np.roll(obs, step, 0), "cartpole-balance", generator=sources)
        one = alone.act(np.roll(obs, step, 0)[3], "cartpole-balance", generator=single)
        np.testing.assert_allclose(rows[3], one, atol=1e-5)
    with pytest.raises(InputError, match="17 observations need as many generators, got 2"):
        together.act(obs, "cartpole-balance", generator=sources[:2])


def _with_constant(source: Path, path: Path, output: str, value: float) -> Path:
    """Write a copy of a file whose graph adds a number to one of its outputs."""
    model = onnx.load(source)
    added = onnx.numpy_helper.from_array(np.array(value, np.float32), "added")
    model.graph.initializer.append(added)
    for node in model.graph.node:
        node.output[:] = [f"{name}.true" if name == output else name for name in node.output]
    node = onnx.helper.make_node("Add", [f"{output}.true", "added"], [output])
    model.graph.node.append(node)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("value", "found"), [(np.nan, "nan"), (np.inf, "inf"), (3.0, r"\d")])
def test_an_action_that_is_not_one_never_leaves_an_agent(value, found, policy, tmp_path):
    agent = load(_with_constant(policy[0], tmp_path / "x.onnx", "action", value))
    with pytest.raises(NonFiniteError, match=f"magnitude of {found}.*, not at most 1"):
        agent.act(_observations(TASK), TASK)
    close = load(_with_constant(policy[0], tmp_path / "y.onnx", "action", 1e-4))
    steep = close.act(1e4 * _observations(TASK), TASK)
    assert np.abs(steep).max() <= 1


def test_a_plan_of_nan_is_an_error_and_not_gone_on_from(planner, tmp_path):
    path = _with_constant(planner[0], tmp_path / "nan.onnx", "new_mean", np.nan)
    agent, obs = load(path), _observations("cartpole-balance")
    for _ in range(2):
        with pytest.raises(NonFiniteError, match="the plan contains NaN or infinity"):
            agent.act(obs[0], "cartpole-balance")


def test_an_exported_file_is_inspected_without_torch(policy, tmp_path):
    missing = "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
    (tmp_path / "torch.py").write_text(missing)
    paths = os.pathsep.join([str(tmp_path), str(Path(tdmpc_opt.__file__).parents[1])])
    run = subprocess.run(
        [sys.executable, "-m", "tdmpc_opt", "inspect", str(policy[0])],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert run.returncode == 0, run.stderr
    assert sha256(policy[0])[:20] in run.stdout


_ON_ONE_CORE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np, onnxruntime
from tdmpc_opt.runtime import load
before = len(os.listdir("/proc/self/task"))
agent = load(sys.argv[1], threads=int(sys.argv[2]))
agent.act(np.zeros(8), "cup-catch")
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_runs_on_the_threads_that_were_named_and_on_one_core_without_a_warning(
    threads, policy
):
    command = [sys.executable, "-c", _ON_ONE_CORE, policy[0], str(threads)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, f"{threads - 1}\n", "")


def test_files_are_written_for_the_oldest_engines_or_as_asked(policy, folder, tmp_path):
    def versions(path: Path) -> tuple[int, int]:
        model = onnx.load(path)
        (opset,) = [
            entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")
        ]
        return opset, model.ir_version

    assert versions(policy[0]) == (18, 8)
    path = folder / "newer.onnx"
    config = {"checkpoint": "demo-teacher", "policy_only": True, "task": TASK, "output": path}
    export(ExportConfig(**config, format="int8", opset=20, ir_version=10))
    assert versions(path) == (20, 10)
    with pytest.raises(
        InputError, match=r"`opset` must be in 18\.\.20 and `ir_version` in 8\.\.10"
    ):
        ExportConfig(**config, opset=17)


@pytest.mark.parametrize("change", ["ir_version", "opset"])
def test_a_file_that_is_too_new_is_not_called_damaged(change, policy, tmp_path):
    model = onnx.load(policy[0])
    if change == "opset":
        model.opset_import[0].version = 90
    else:
        model.ir_version = 90
    path = tmp_path / ("long" * 40 + ".onnx")
    onnx.save(model, path)
    with pytest.raises(
        CheckpointError, match=r"is too new for onnxruntime \d.*90.*--opset"
    ) as e:
        load(path)
    assert "max supported IR version" in str(e.value) or change == "opset"
    assert "damaged" not in str(e.value)
