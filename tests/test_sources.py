"""What kinds of sources have in common: reading once, and tasks that a file does not name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from public_layouts import layout_b, layout_c

from tdmpc_opt.agents import sources
from tdmpc_opt.agents.sources import CheckpointSource, open_source
from tdmpc_opt.checkpoints import load
from tdmpc_opt.checkpoints.checkpoint import from_model
from tdmpc_opt.checkpoints.load import read_checkpoint, share_names
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.cli import main
from tdmpc_opt.configs.measure import EvaluateConfig
from tdmpc_opt.errors import InputError, UnknownTaskError
from tdmpc_opt.evaluation.evaluate import evaluate
from tdmpc_opt.schema import MT30

PENDULUM, CARTPOLE = "pendulum-swingup", "cartpole-balance"
BOTH = f"{CARTPOLE},{PENDULUM}"


def _model(make_model, names: str, **widths: int):
    tasks = MT30.subset(names.split(","))
    return make_model(tasks, num_bins=101, mlp_dim=32, enc_dim=32, **widths)


@pytest.fixture
def single(make_model, tmp_path) -> Path:
    """A public file of one task, which does not say which."""
    path = tmp_path / "single.pt"
    model = _model(make_model, PENDULUM, task_dim=0)
    torch.save({"model": layout_c(from_model(model).tensors)}, path)
    return path


@pytest.fixture
def several(make_model, tmp_path) -> Path:
    """A public file of two tasks, which does not name them."""
    path = tmp_path / "several.pt"
    model = _model(make_model, BOTH)
    torch.save({"model": layout_b(from_model(model).tensors, None)}, path)
    return path


@pytest.mark.usefixtures("unchecked")
def test_an_evaluation_of_three_tasks_reads_the_checkpoint_once(
    make_model, tmp_path, monkeypatch
):
    """In one process, as each worker is."""
    tasks = MT30.subset([PENDULUM, CARTPOLE, "cartpole-swingup"])
    path = tmp_path / "three.safetensors"
    write_native(path, from_model(make_model(tasks)))
    opened, built = [], []
    read, build = load._read, sources.build
    monkeypatch.setattr(load, "_read", lambda *a: opened.append(a) or read(*a))
    monkeypatch.setattr(sources, "build", lambda *a, **k: built.append(a) or build(*a, **k))
    config = EvaluateConfig(
        checkpoint=str(path),
        episodes=1,
        output=tmp_path / "result.json",
        device="cpu",
        workers=1,
    )
    assert len(evaluate(config)["tasks"]) == 3
    assert (len(opened), len(built)) == (1, 1)
    write_native(path, from_model(make_model(tasks, seed=1)))
    open_source(str(path)).load()
    assert (len(opened), len(built)) == (2, 2)


def test_agents_of_one_file_do_not_share_their_plans(checkpoint_file):
    source = CheckpointSource(source=str(checkpoint_file), mode="planner", preset="realtime")
    alone, first, second = (source.load()("pendulum-swingup", [(0,)], []) for _ in range(3))
    for obs in np.random.default_rng(0).normal(size=(3, 1, 3)).astype(np.float32):
        wanted = alone(obs)
        np.testing.assert_array_equal(first(obs), wanted)
        np.testing.assert_array_equal(second(obs), wanted)


def _acts(path: Path, names: str, task: str) -> np.ndarray:
    act = open_source(str(path), names=names).load()(task, [(0,)], [])
    return act(np.full((1, MT30[task].obs_dim), 0.3, np.float32))


def test_tasks_named_by_the_user_are_those_of_the_file(several, single, tmp_path):
    assert open_source(str(several), names=BOTH).tasks(BOTH).names == tuple(BOTH.split(","))
    named = tmp_path / "named.safetensors"
    assert main(["convert", str(several), "--tasks", BOTH, "--output", str(named)]) == 0
    assert read_checkpoint(named).tasks.names == tuple(BOTH.split(","))
    for task in BOTH.split(","):
        np.testing.assert_array_equal(_acts(several, BOTH, task), _acts(named, None, task))
    assert open_source(str(single), names=PENDULUM).tasks(PENDULUM).names == (PENDULUM,)


def test_the_order_of_the_names_is_that_of_the_embedding(several):
    other = f"{PENDULUM},{CARTPOLE}"
    found = [open_source(str(several), names=names) for names in (BOTH, other)]
    first, second = (source.identity(source.tasks(source.names)) for source in found)
    assert first["name"] == second["name"]
    assert first["sha256"] != second["sha256"]


@pytest.mark.parametrize(
    ("names", "error", "said"),
    [
        (PENDULUM, UnknownTaskError, "has 2 tasks without names, and --tasks names 1"),
        (f"{BOTH},cup-catch", UnknownTaskError, "--tasks names 3"),
        (f"{PENDULUM},{PENDULUM}", UnknownTaskError, "--tasks names 1"),
        ("walker-walk,walker-run", InputError, "its tasks have 5 observations"),
        ("nothing,cup-catch", UnknownTaskError, "unknown task 'nothing'"),
    ],
)
def test_names_that_do_not_fit_are_refused_in_one_line(names, error, said, several):
    with pytest.raises(error, match=said) as caught:
        read_checkpoint(several, tasks=names)
    assert "\n" not in str(caught.value)


def test_a_file_without_names_asks_for_them(several, single):
    for path, said in ((several, "does not name its 2 tasks"), (single, "its 1 task;")):
        with pytest.raises(UnknownTaskError, match=said):
            open_source(str(path)).tasks(None)


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "data"
    words = ["collect", "--policy", "random", "--tasks", BOTH, "--episodes", "2"]
    assert main([*words, "--output", str(path), "--device", "cpu", "--workers", "1"]) == 0
    return path


@pytest.mark.usefixtures("unchecked")
def test_every_command_takes_a_file_without_names(several, single, data, tmp_path, capsys):
    def run(command: str, *words: object, output: str = "out") -> Path:
        path = tmp_path / output
        assert main([command, *map(str, words), "--output", str(path)]) == 0, (
            capsys.readouterr().err
        )
        return path

    few = ("--device", "cpu", "--workers", 1, "--episodes", 1)
    run("evaluate", single, "--tasks", PENDULUM, *few, output="e.json")
    run("collect", "--policy", several, "--tasks", BOTH, *few, output="collected")
    train = ("--data", data, "--updates", 2, "--batch-size", 4, "--device", "cpu")
    terms = ("--terms.reward-mse", 1.0, "--tasks", BOTH)
    folder = run("train", "--teacher", several, *train, *terms, output="student")
    student = folder / "model.safetensors"
    assert {*read_checkpoint(student).tasks.names} == {*BOTH.split(",")}
    run("train", "--start", several, *train, "--tasks", BOTH, output="trained")
    dagger = ("--start", student, "--teacher", several, "--rounds", 1, "--tasks", BOTH)
    run("dagger", *dagger, *train, *few[2:], output="corrected")
    run("export", single, "--policy-only", "--tasks", PENDULUM, output="policy.onnx")


def test_single_task_teachers_share_the_names_out(make_model, single, data, tmp_path, capsys):
    other = tmp_path / "other.pt"
    model = _model(make_model, CARTPOLE, task_dim=0)
    torch.save({"model": layout_c(from_model(model).tensors)}, other)
    words = ["train", "--data", data, "--updates", 2, "--batch-size", 4, "--device", "cpu"]
    words += ["--terms.policy-mse", 1.0, "--teacher", single, "--more-teachers", other]
    command = [*map(str, words), "--output", str(tmp_path / "student")]
    assert main(command) == 1
    assert "single.pt does not name its 1 task; name each" in capsys.readouterr().err
    assert main([*command, "--tasks", f"{PENDULUM},{CARTPOLE},cup-catch"]) == 1
    assert "other.pt has 1 task without names, and --tasks names 2" in capsys.readouterr().err
    assert main([*command, "--tasks", f"{PENDULUM},{CARTPOLE}"]) == 0
    assert share_names([str(single), "mt30-1m", str(other)], BOTH) == [CARTPOLE, None, PENDULUM]


def test_names_that_no_file_needs_are_refused(checkpoint_file, data, tmp_path, capsys):
    words = ["train", "--data", data, "--updates", 1, "--start", checkpoint_file]
    words += ["--tasks", BOTH, "--output", tmp_path / "run", "--device", "cpu"]
    assert main([*map(str, words)]) == 1
    assert "--tasks names the tasks of checkpoints that do not" in capsys.readouterr().err


def test_a_file_with_names_keeps_them(checkpoint_file):
    own = read_checkpoint(checkpoint_file).tasks
    assert read_checkpoint(checkpoint_file, tasks="walker-walk").tasks == own
