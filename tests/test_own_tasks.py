import json
import multiprocessing
import re
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from tdmpc_opt import cli, make_env
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.configs.data import ExpertsConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.errors import InputError, UnknownTaskError
from tdmpc_opt.experts.train import train_experts
from tdmpc_opt.schema import MT30, Task, TaskTable
from tdmpc_opt.tasks import choose_tasks
from tdmpc_opt.tasks.environment import make_env as make_task

POINT = "own_envs:Point-v0"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    yield
    sys.modules.pop("own_envs", None)
    for name in [
        name for name in gymnasium.registry if "own_envs" in repr(gymnasium.registry[name])
    ]:
        del gymnasium.registry[name]


def test_an_own_task_tells_its_sizes():
    table = choose_tasks(f"{POINT},walker-walk,own_envs:test/Point-v1")
    assert table.names == ("walker-walk", "Point-v0", "test-Point-v1")
    point = table["Point-v0"]
    assert (point.obs_dim, point.action_dim, point.episode_length) == (2, 1, 8)
    assert point.env == POINT
    assert choose_tasks(table.selection) == table
    assert TaskTable.from_json(table.to_json()) == table
    assert "env" not in table.to_json()[0]


def test_actions_are_laid_onto_the_bounds_and_seeds_restart():
    env = make_env(POINT, seed=3)
    first = env.reset()[0]
    assert first.dtype == np.float32
    for action in (-1.0, 0.0, 1.0):
        env.step(np.array([action], np.float32))
    assert env._env.unwrapped.actions == pytest.approx([-3, -1, 1])
    assert not np.array_equal(env.reset()[0], first)
    assert np.array_equal(env.reset(seed=3)[0], first)
    ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(8)]
    assert ends == [(False, False)] * 7 + [(False, True)]


def test_a_gymnasium_environment_of_an_installed_package_needs_no_module():
    task = choose_tasks("Pendulum-v1").tasks[0]
    assert (task.obs_dim, task.action_dim, task.episode_length) == (3, 1, 200)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.envs:Lift-v0", "cannot import nowhere.envs"),
        ("own_envs:Piont-v0", "registers no environment 'Piont-v0'; did you mean.*Point-v0"),
        ("walker-wlak", "did you mean walker-walk"),
        ("own_envs.deeper:X-v0", "cannot import own_envs.deeper"),
        (".own:X-v0", "no import path"),
        ("own_envs:Unbounded-v0", "unbounded; give its Box finite"),
        ("own_envs:Discrete-v0", "action space .* is Discrete, not Box"),
        ("own_envs:Dict-v0", "observation space .* is Dict, not Box; wrap it in"),
        ("own_envs:Image-v0", r"shape \[8, 8, 3\]"),
        ("own_envs:Endless-v0", "register it with max_episode_steps"),
        ("own_envs:Long-v0", "2 observations, 1 actions and 100000000 steps; each must be in"),
        ("own_envs:Width-v0", r"shape \[5\], its space has \[2\]"),
        ("own_envs:NanObs-v0", "NaN"),
        ("own_envs:walker-walk", "name of a task of MT30"),
    ],
)
def test_environments_that_do_not_fit_are_refused_in_one_line(name, message, capsys):
    with pytest.raises((InputError, UnknownTaskError), match=message):
        choose_tasks(name)
    assert cli.main(["tasks", "--tasks", name]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("code", "raised"),
    [
        ("def broken(:", "SyntaxError"),
        ("from math import nothing", "ImportError"),
        ("import sys; sys.exit('usage: robot.py PORT')", "SystemExit"),
        ("import gymnasium; gymnasium.register('a b', 'x:Y')", "Error"),
    ],
)
def test_what_a_module_raises_while_it_is_imported_is_one_line(
    code, raised, tmp_path, monkeypatch, capsys
):
    (tmp_path / "faulty_envs.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(["tasks", "--tasks", "faulty_envs:X-v0"]) == 1
    error = capsys.readouterr().err
    assert f"faulty_envs:X-v0 raised {raised} in its import: " in error
    assert error.count("\n") == 1


def test_rewards_that_are_no_numbers_are_refused(tmp_path, capsys):
    words = ["--tasks", "own_envs:NanReward-v0", "--episodes", "1", "--workers", "1"]
    output = str(tmp_path / "data")
    assert cli.main(["collect", "--policy", "random", *words, "--output", output]) == 1
    assert "nan" in capsys.readouterr().err


def _small_student(folder: Path) -> Path:
    """Collect random episodes and train on them for two updates."""
    tasks = ("--tasks", POINT, "--workers", "1", "--episodes", "2")
    data, run = str(folder / "data"), folder / "run"
    assert cli.main(["collect", "--policy", "random", *tasks, "--output", data]) == 0
    train = ("--size", "0.3", "--updates", "2", "--batch-size", "4", "--device", "cpu")
    assert cli.main(["train", "--data", data, "--output", str(run), *train]) == 0
    return run / "model.safetensors"


def test_an_own_task_goes_from_collection_to_evaluation(tmp_path, capsys):
    model = _small_student(tmp_path)
    dataset = EpisodeDataset.open(tmp_path / "data")
    assert dataset.tasks.names == ("Point-v0",)
    assert dataset.length == 9
    assert read_checkpoint(model).tasks["Point-v0"].env == POINT
    small = tmp_path / "small.safetensors"
    assert cli.main(["quantize", str(model), "--policy-only", "--output", str(small)]) == 0
    score = tmp_path / "score.json"
    words = ["evaluate", str(small), "--mode", "policy", "--episodes", "2", "--workers", "1"]
    words += ["--output", str(score)]
    assert cli.main(words) == 1
    assert f"--tasks {POINT}" in capsys.readouterr().err
    assert cli.main([*words, "--tasks", POINT]) == 0
    out = capsys.readouterr().out
    content = json.loads(score.read_text())
    mean = np.mean(content["tasks"]["Point-v0"]["returns"])
    assert re.search(rf"mean return {mean:.2f} \[-?\d", out)
    assert "score" not in out.replace("score.json", "")
    for words in (["compare", str(score), str(score)], ["ablation", str(score.parent / "run")]):
        cli.main(words)
    shown = capsys.readouterr()
    assert "in return over 2 episodes" in shown.out
    assert "write one with: tdmpc-opt evaluate" in shown.err
    assert content["config"]["environments"] == {"Point-v0": POINT}
    assert len(content["tasks"]["Point-v0"]["returns"]) == 2


def test_a_policy_that_writes_into_its_arrays_is_recorded_like_another(tmp_path):
    found = []
    for name in ("centre", "in_place"):
        data = tmp_path / name
        words = ("--policy", f"own_policies:{name}", "--label", "own_policies:centre")
        words += ("--tasks", POINT, "--episodes", "2", "--output", str(data))
        assert cli.main(["collect", *words]) == 0
        dataset = EpisodeDataset.open(data)
        found.append([*dataset.episodes(dataset.shards[0])])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one.obs, other.obs)
        np.testing.assert_array_equal(one.action, other.action)
        np.testing.assert_array_equal(one.label, other.label)


def test_nothing_is_imported_because_a_file_says_so(tmp_path, capsys):
    model = _small_student(tmp_path)
    del sys.modules["own_envs"]
    assert cli.main(["inspect", str(model)]) == 0
    scored = ("--eval-every", "1", "--updates", "4", "--size", "0.3", "--batch-size", "4")
    words = ["train", "--data", str(tmp_path / "data"), "--output", str(tmp_path / "again")]
    assert cli.main([*words, *scored]) == 1
    assert "--eval-every cannot drive tasks of your own" in capsys.readouterr().err
    assert "own_envs" not in sys.modules


def test_a_task_that_changed_its_sizes_is_refused(make_model, tmp_path, capsys):
    from tdmpc_opt.checkpoints.checkpoint import from_model
    from tdmpc_opt.checkpoints.native import write_native

    tasks = TaskTable((Task("Point-v0", 3, 1, 8, custom=True, env=POINT),))
    path = tmp_path / "old.safetensors"
    write_native(path, from_model(make_model(tasks, task_dim=0)))
    words = ["evaluate", str(path), "--mode", "policy", "--tasks", POINT, "--episodes", "1"]
    assert cli.main([*words, "--output", str(tmp_path / "x.json")]) == 1
    assert "knows a Point-v0 of 3 observations" in capsys.readouterr().err


def test_a_dataset_takes_more_of_tasks_it_holds_and_no_others(tmp_path):
    point, other = (choose_tasks(name) for name in (POINT, "own_envs:test/Point-v1"))
    both = TaskTable((*point.tasks, *other.tasks))
    EpisodeDataset.create(tmp_path, both)
    assert EpisodeDataset.open_or_create(tmp_path, point).tasks == both
    with pytest.raises(
        Exception,
        match=r"made for Point-v0 \(2 obs.*; walker-stand \(24 .*27 more tasks cannot be",
    ):
        EpisodeDataset.open_or_create(tmp_path, MT30)


def test_an_environment_can_be_drawn():
    env = make_task(choose_tasks(POINT).tasks[0], 0, render_mode="rgb_array")
    env.reset()
    assert env.render().shape == (40, 60, 3)
    assert env.metadata["render_fps"] == 10
    blind = make_task(POINT)
    blind.reset()
    with pytest.raises(InputError, match="draws no picture"):
        blind.render()


def test_what_an_environment_raises_while_it_draws_is_named(tmp_path, capsys):
    words = ["--tasks", "own_envs:NoPicture-v0", "--output", str(tmp_path / "x.gif")]
    assert cli.main(["video", "random", *words]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "own_envs:NoPicture-v0 raised KeyError in render(): 'camera'" in line


def test_a_folder_of_own_experts_needs_their_tasks_named(two_experts, tmp_path, capsys):
    own = tmp_path / "own"
    own.mkdir()
    words = ["evaluate", str(own), "--output", str(tmp_path / "x.json")]
    (own / "other.safetensors").write_bytes(b"")
    assert cli.main(words) == 1
    assert "holds neither a model nor experts; name a checkpoint" in capsys.readouterr().err
    (two_experts / "cartpole-balance.safetensors").rename(own / "Point-v0.safetensors")
    assert cli.main(words) == 1
    assert "name them with --tasks" in capsys.readouterr().err


def test_an_expert_under_the_name_of_another_task_is_refused(two_experts, tmp_path, capsys):
    (two_experts / "cartpole-balance.safetensors").rename(
        two_experts / "cartpole-swingup.safetensors"
    )
    words = ["evaluate", str(two_experts), "--tasks", "cartpole-swingup", "--episodes", "1"]
    assert cli.main([*words, "--workers", "1", "--output", str(tmp_path / "x.json")]) == 1
    assert "is an expert of cartpole-balance" in capsys.readouterr().err


@pytest.mark.experts
def test_an_expert_learns_an_own_task(tmp_path):
    experts, data = tmp_path / "experts", tmp_path / "data"
    config = ExpertsConfig(tasks=POINT, output=experts, steps=64, envs=2, episodes=1, workers=1)
    # JAX warns while it is imported, which in this process would be an error.
    learner = multiprocessing.get_context("spawn").Process(target=train_experts, args=(config,))
    learner.start()
    learner.join()
    assert learner.exitcode == 0
    words = ["collect", "--policy", str(experts), "--output", str(data), "--episodes", "1"]
    assert cli.main([*words, "--tasks", POINT, "--workers", "1"]) == 0
    assert EpisodeDataset.open(data).task_names == ("Point-v0",)
