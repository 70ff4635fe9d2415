"""Gymnasium's own MuJoCo tasks, from an expert's data to a file that acts in them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tdmpc_opt import cli, make_env
from tdmpc_opt.agents.expert import ExpertNetwork, expert_path
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.runtime import load
from tdmpc_opt.tasks import choose_tasks

ROBOTS = {
    "Ant-v5": (105, 8, 1000),
    "HalfCheetah-v5": (17, 6, 1000),
    "Hopper-v5": (11, 3, 1000),
    "Humanoid-v5": (348, 17, 1000),
    "HumanoidStandup-v5": (348, 17, 1000),
    "InvertedDoublePendulum-v5": (9, 1, 1000),
    "InvertedPendulum-v5": (4, 1, 1000),
    "Pusher-v5": (23, 7, 100),
    "Reacher-v5": (10, 2, 50),
    "Swimmer-v5": (8, 2, 1000),
    "Walker2d-v5": (17, 6, 1000),
}
"""Observations, actions and steps of each."""
FALLING = {
    *("Hopper-v5", "Humanoid-v5", "Walker2d-v5"),
    *("InvertedDoublePendulum-v5", "InvertedPendulum-v5"),
}
"""Those that random actions make fall within some tens of steps."""


@pytest.fixture(autouse=True)
def _imageio(monkeypatch):
    """Gymnasium imports imageio with these tasks, and uses it for screenshots alone."""
    if importlib.util.find_spec("imageio") is None:
        monkeypatch.setitem(sys.modules, "imageio", ModuleType("imageio"))


def _run(*words: str | Path) -> None:
    assert cli.main([str(word) for word in words]) == 0


@pytest.mark.parametrize("name", ROBOTS)
def test_a_robot_is_taken_by_its_name(name):
    task = choose_tasks(name).tasks[0]
    assert (task.obs_dim, task.action_dim, task.episode_length) == ROBOTS[name]


def test_the_extra_is_named_that_has_what_they_import(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "imageio", None)  # importing it fails
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, name)
    assert cli.main(["tasks", "--tasks", "Hopper-v5"]) == 1
    error = capsys.readouterr().err
    assert 'needs imageio: pip install "tdmpc-opt[envs]"' in error
    assert error.count("\n") == 1


def _expert(folder: Path, name: str) -> Path:
    """An untrained policy: what a file of one looks like, at no cost."""
    obs, action, _ = ROBOTS[name]
    rng, sizes = np.random.default_rng(0), (obs, 8, 8, action)
    layers = list(zip(sizes[1:], sizes[:-1], strict=True))
    weights = tuple(0.1 * rng.standard_normal(shape) for shape in layers)
    biases = tuple(np.zeros(rows) for rows, _ in layers)
    ExpertNetwork(name, "sac", 0, (), weights, biases).save(expert_path(folder, name))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ROBOTS)
def test_a_robot_goes_from_data_to_a_file_that_acts(name, tmp_path):
    one, data = ("--tasks", name, "--workers", "1"), tmp_path / "data"
    for policy in ("random", _expert(tmp_path / "experts", name)):
        collect = ("collect", "--policy", policy, "--episodes", "3", "--noise", "0.5")
        _run(*collect, *one, "--output", data)
    assert EpisodeDataset.open(data).episodic or name not in FALLING
    run, small = tmp_path / "run", ("--size", "0.3", "--batch-size", "8", "--device", "cpu")
    _run("train", "--data", data, "--output", run, "--updates", "2", *small)
    model = run / "model.safetensors"
    assert read_checkpoint(model).config.episodic == EpisodeDataset.open(data).episodic
    planner, policy = tmp_path / "planner.onnx", tmp_path / "policy.onnx"
    _run("export", model, "--data", data, "--preset", "realtime", "--output", planner)
    _run("export", model, "--data", data, "--policy-only", "--output", policy)
    env = make_env(name, seed=3)
    for path in (planner, policy, model):
        agent, (obs, _) = load(path), env.reset(seed=3)
        for _ in range(5):
            action = agent.act(obs, name)
            assert action.shape == env.action_space.shape
            obs, reward, *_ = env.step(action)
            assert np.isfinite(reward)


@pytest.mark.slow
def test_robots_of_several_lengths_share_one_student(tmp_path):
    names = "Hopper-v5,Reacher-v5,InvertedPendulum-v5,Pusher-v5"
    data, run = tmp_path / "data", tmp_path / "run"
    collect = ("collect", "--policy", "random", "--tasks", names, "--workers", "1")
    _run(*collect, "--episodes", "2", "--output", data)
    dataset = EpisodeDataset.open(data)
    assert (dataset.length, dataset.episodic) == (1001, True)
    small = ("--size", "0.3", "--batch-size", "8", "--device", "cpu")
    _run("train", "--data", data, "--output", run, "--updates", "2", *small)
    assert read_checkpoint(run / "model.safetensors").tasks.names == (
        "Hopper-v5",
        "Reacher-v5",
        "InvertedPendulum-v5",
        "Pusher-v5",
    )
    score = ("--episodes", "1", "--mode", "policy", "--output", tmp_path / "score.json")
    _run("evaluate", run / "model.safetensors", "--tasks", names, "--workers", "1", *score)
