"""Gymnasium's own MuJoCo tasks, from an expert's data to a file that acts in them."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tdmpc_opt import cli, make_env
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


@pytest.mark.slow
@pytest.mark.experts
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ROBOTS)
def test_a_robot_goes_from_an_expert_to_files_that_act(name, tmp_path):
    one, experts, student = ("--tasks", name, "--workers", "1"), tmp_path / "e", tmp_path / "s"
    learn = ("--steps", "400", "--envs", "4", "--update-ratio", "0.25", "--episodes", "1")
    words = ("experts", *one, *learn, "--output", str(experts))  # jax warns in this process
    subprocess.run([sys.executable, "-m", "tdmpc_opt", *words], check=True)
    collect = ("collect", "--policy", experts, "--episodes", "2", "--noise", "0.5")
    _run(*collect, *one, "--output", tmp_path / "data")
    size = ("--size", "0.3", "--updates", "4", "--device", "cpu")
    _run("distill", experts, *one, *size, "--output", student)
    episodic = EpisodeDataset.open(student / "work" / "data").episodic
    assert episodic or name not in FALLING
    assert read_checkpoint(student).config.episodic == episodic
    policy = tmp_path / "policy.onnx"
    _run("export", student, "--data", tmp_path / "data", "--policy-only", "--output", policy)
    env = make_env(name, seed=3)
    for path in (policy, student / "planner.onnx", student / "policy-int8.onnx", student):
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
