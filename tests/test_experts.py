import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tdmpc_opt.agents.expert import ExpertNetwork, expert_path
from tdmpc_opt.agents.rollout import Act, Stream
from tdmpc_opt.agents.sources import SimulatorSource
from tdmpc_opt.configs.data import ExpertsConfig
from tdmpc_opt.data.episodes import Episode
from tdmpc_opt.errors import CheckpointError, InputError, MissingDependencyError, RunError
from tdmpc_opt.experts import imitation, learner
from tdmpc_opt.experts import train as experts
from tdmpc_opt.experts.learner import WARM_UP_SEED, warm_up
from tdmpc_opt.experts.state import Progress
from tdmpc_opt.progress import Silent
from tdmpc_opt.schema import MT30
from tdmpc_opt.tasks.environment import make_env
from tdmpc_opt.tasks.own import own_task

EXPERTS = Path(__file__).parents[1] / "experts"

METADATA = {
    "kind": "expert",
    "schema": "1",
    "task": "pendulum-swingup",
    "algorithm": "sac",
    "steps": "7",
    "returns": "[]",
}


def _network(seed: int = 0, returns: tuple[float, ...] = (1.5, 2.0)) -> ExpertNetwork:
    rng = np.random.default_rng(seed)
    widths = [(8, 3), (8, 8), (1, 8)]
    return ExpertNetwork(
        task="pendulum-swingup",
        algorithm="sac",
        steps=7,
        returns=returns,
        weights=tuple(rng.normal(size=width) for width in widths),
        biases=tuple(rng.normal(size=width[0]) for width in widths),
    )


def _config(output: Path, **changes: object) -> ExpertsConfig:
    config = ExpertsConfig(
        tasks="pendulum-swingup",
        steps=1500,
        output=output,
        hidden=16,
        episodes=1,
        envs=2,
        update_ratio=0.5,
        workers=1,
    )
    return replace(config, **changes)


def test_saved_expert_acts_the_same_after_loading(tmp_path: Path) -> None:
    network, path = _network(), expert_path(tmp_path, "pendulum-swingup")
    network.save(path)
    loaded = ExpertNetwork.load(path)
    obs = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded.mean(obs), network.mean(obs))
    assert (loaded.task, loaded.algorithm, loaded.steps) == ("pendulum-swingup", "sac", 7)
    assert loaded.returns == (1.5, 2.0)
    assert [file.name for file in tmp_path.iterdir()] == ["pendulum-swingup.safetensors"]


def test_transposed_weights_are_stored_as_they_are_meant(tmp_path: Path) -> None:
    network, path = _network(), tmp_path / "expert.safetensors"
    turned = tuple(np.asfortranarray(weight) for weight in network.weights)
    replace(network, weights=turned).save(path)
    for stored, meant in zip(ExpertNetwork.load(path).weights, network.weights, strict=True):
        np.testing.assert_array_equal(stored, meant)


def test_expert_file_holds_fp16_and_computes_in_fp32(tmp_path: Path) -> None:
    network, path = _network(), tmp_path / "expert.safetensors"
    network.save(path)
    assert {tensor.dtype for tensor in load_file(path).values()} == {np.dtype(np.float16)}
    assert network.weights[0].dtype == np.float32
    assert network.mean(np.zeros((2, 3), np.float32)).dtype == np.float32


def test_expert_mean_is_the_squashed_mlp() -> None:
    network = _network()
    obs = np.random.default_rng(2).normal(size=(4, 3))
    (w0, w1, w2), (b0, b1, b2) = network.weights, network.biases
    hidden = np.maximum(np.maximum(obs @ w0.T + b0, 0) @ w1.T + b1, 0)
    np.testing.assert_allclose(
        network.mean(obs), np.tanh(hidden @ w2.T + b2), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(InputError, match=r"shape \[batch, 3\], got \[4, 5\]"):
        network.mean(np.zeros((4, 5)))


def test_missing_or_damaged_experts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "expert.safetensors"
    with pytest.raises(CheckpointError, match="no expert policy at"):
        ExpertNetwork.load(path)
    _network().save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="cannot read expert policy") as caught:
        ExpertNetwork.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "is not an expert policy of schema 1: kind None"),
        (METADATA | {"kind": "world_model"}, "kind 'world_model'"),
        (METADATA | {"schema": "9"}, "schema '9'"),
        (METADATA | {"steps": "many"}, "damaged"),
        (METADATA | {"returns": "[1,"}, "damaged"),
    ],
)
def test_foreign_metadata_is_refused(
    tmp_path: Path, metadata: dict[str, str], message: str
) -> None:
    path = tmp_path / "expert.safetensors"
    _network().save(path)
    save_file(load_file(path), path, metadata)
    with pytest.raises(CheckpointError, match=message):
        ExpertNetwork.load(path)


@pytest.mark.parametrize("fault", ["width", "nan", "missing"])
def test_layers_that_do_not_fit_are_refused(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "expert.safetensors"
    _network().save(path)
    tensors = load_file(path)
    if fault == "width":
        tensors["layers.1.weight"] = np.zeros((8, 9), np.float16)
    elif fault == "nan":
        tensors["layers.1.bias"] = np.full(8, np.nan, np.float16)
    else:
        del tensors["layers.1.bias"]
    save_file(tensors, path, METADATA)
    with pytest.raises(CheckpointError, match="damaged"):
        ExpertNetwork.load(path)


def test_missing_sbx_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tdmpc-opt\[experts\]'"):
        experts.train_experts(_config(tmp_path))


def _pretend_finished(config: ExpertsConfig) -> None:
    task = "pendulum-swingup"
    _network().save(expert_path(config.output, task))
    record = {"kind": "expert", "config": experts._identity(config, task), "steps": 1500}
    (config.output / f"{task}.json").write_text(json.dumps(record))


class _Reports(Silent):
    """Keeps what a run reports."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def update(self, done: int, total: int, text: str) -> None:
        self.texts.append(text)


def test_a_return_is_reported_once_an_episode_has_finished(tmp_path: Path) -> None:
    reports = _Reports()
    training = experts._Training(_config(tmp_path), MT30["pendulum-swingup"], reports)
    training._report_speed(100)
    training.progress.curve += [(500, 20.0), (500, 40.0)]
    training._report_speed(500)
    before, after = reports.texts
    assert "recent return" not in before
    assert "steps/s, recent return 30, " in after


@pytest.fixture
def _sbx_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts.importlib.util, "find_spec", lambda name: object())


@pytest.mark.usefixtures("_sbx_present")
def test_finished_tasks_are_skipped(tmp_path: Path) -> None:
    _pretend_finished(_config(tmp_path))
    reports = _Reports()
    experts.train_experts(_config(tmp_path, workers=3, save_every=9), reports)
    assert reports.texts == ["pendulum-swingup: already finished, skipped"]


@pytest.mark.usefixtures("_sbx_present")
def test_results_of_another_config_are_refused(tmp_path: Path) -> None:
    _pretend_finished(_config(tmp_path))
    with pytest.raises(RunError, match="belongs to another run") as caught:
        experts.train_experts(_config(tmp_path, seed=99))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_sbx_present")
@pytest.mark.parametrize("name", ["pendulum-swingup.json", "state/pendulum-swingup.npz"])
def test_damaged_results_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"{half")
    with pytest.raises(RunError, match="is damaged"):
        experts.train_experts(_config(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"save_every": 0}, "at least 1"),
        ({"update_ratio": 0.3}, "whole number of updates, got 0.6"),
        ({"warm_up": "experts", "warm_up_episodes": 5}, r"multiple of `envs` \(2\)"),
    ],
)
def test_counts_that_cannot_be_run_are_refused(
    tmp_path: Path, changes: dict[str, float | str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _config(tmp_path, **changes)


class _Buffer:
    """What a warm-up asks of the library's model: a buffer, and a count of steps."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.replay_buffer = self
        self.num_timesteps = 0

    def add(self, *row: Any) -> None:
        self.rows.append(row)


def test_no_two_training_episodes_have_the_same_start() -> None:
    pytest.importorskip("stable_baselines3")
    from tdmpc_opt.experts.vector_env import BatchedVecEnv

    task = MT30.subset(["reacher-three-hard"]).tasks[0]
    envs = BatchedVecEnv(task, 8, seed=0)
    again = BatchedVecEnv(task, 8, seed=0)
    starts = [envs.reset() for _ in range(3)]
    assert len(np.unique(np.concatenate(starts).round(6), axis=0)) == 24
    # The starts are those of the environment itself.
    env = make_env(task, 0)
    assert np.allclose(starts[0], [env.reset()[0] for _ in range(8)], atol=1e-5)
    assert all(np.array_equal(start, again.reset()) for start in starts)


def test_warm_up_fills_the_buffer_with_the_drivers_transitions(tmp_path: Path) -> None:
    config = _config(
        tmp_path, warm_up=str(EXPERTS), warm_up_task="walker-stand", warm_up_episodes=4
    )
    model = _Buffer()
    assert warm_up(model, config, MT30["walker-run"]) == model.num_timesteps == 2000
    assert len(model.rows) == 1000
    env = make_env("walker-run", WARM_UP_SEED + 1)
    env.reset()
    for obs, next_obs, action, reward, done, infos in model.rows[:500]:
        np.testing.assert_array_equal(obs.shape, (2, 24))
        expected, expected_reward, _, truncated, _ = env.step(action[1])
        np.testing.assert_array_equal(next_obs[1], expected)
        assert reward[1] == np.float32(expected_reward)
        assert done.tolist() == [truncated] * 2
        assert infos[1] == {"TimeLimit.truncated": truncated}
    assert not np.array_equal(model.rows[0][0], model.rows[500][0])  # other seeds


def test_each_environment_of_the_buffer_gets_transitions_that_follow_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def episode(first: float, steps: int, *, terminated: bool) -> Episode:
        rows = np.arange(first, first + steps + 1, dtype=np.float32)[:, None]
        return Episode("walker-run", 0, rows, rows, rows[:, 0], terminated=terminated)

    # 3 + 5 + 2 steps make five for each of the two environments of the buffer.
    episodes = [
        episode(0, 3, terminated=True),
        episode(10, 5, terminated=False),
        episode(20, 2, terminated=True),
    ]
    monkeypatch.setattr(learner, "rollout", lambda *_, **__: episodes)
    config = _config(
        tmp_path, warm_up=str(EXPERTS), warm_up_task="walker-stand", warm_up_episodes=2
    )
    model = _Buffer()
    assert learner.warm_up(model, config, MT30["walker-run"]) == 10
    columns = [
        [
            (row[0][env, 0], row[4][env], row[5][env]["TimeLimit.truncated"])
            for row in model.rows
        ]
        for env in range(2)
    ]
    # Terminated after state 2; the last row is cut off, for other transitions follow it.
    first = [(0, False, False), (1, False, False), (2, True, False), (10, False, False)]
    second = [(12, False, False), (13, False, False), (14, True, True), (20, False, False)]
    assert columns == [[*first, (11, True, True)], [*second, (21, True, False)]]


class _Watching:
    """A policy that reads the environments' own states, as planning in the simulator does."""

    def __init__(self) -> None:
        self.states: list[int] = []
        self.task = ""

    def __call__(self, task: str, streams: Sequence[Stream], envs: Sequence[Any]) -> Act:
        self.task = task

        def act(obs: NDArray[np.float32]) -> NDArray[np.float32]:
            self.states.append(len(envs))
            return np.zeros((len(obs), 1), np.float32)

        return act


@pytest.mark.parametrize("known_as", ["pendulum-swingup", "pendulum-spin"])
def test_warm_up_shows_a_planning_policy_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known_as: str
) -> None:
    policy = _Watching()
    monkeypatch.setattr(SimulatorSource, "load", lambda self, tasks: policy)
    config = _config(tmp_path, warm_up="plan", warm_up_task=known_as, warm_up_episodes=2)
    assert warm_up(_Buffer(), config, MT30["pendulum-swingup"]) == 1000
    assert policy.task == known_as
    assert policy.states == [2] * 500


def test_random_actions_warm_up_the_expert_of_an_own_task(tmp_path: Path) -> None:
    task = own_task("own_envs:Slider-v0")
    config = _config(tmp_path, warm_up="random", warm_up_episodes=2)
    assert warm_up(_Buffer(), config, task) == 2 * task.episode_length


@pytest.mark.usefixtures("_sbx_present")
def test_warm_up_is_part_of_what_a_run_is(tmp_path: Path) -> None:
    config = _config(tmp_path)
    _pretend_finished(config)
    other = replace(config, warm_up=str(EXPERTS), warm_up_task="pendulum-spin")
    with pytest.raises(RunError, match="belongs to another run"):
        experts.train_experts(other)


@pytest.mark.usefixtures("_sbx_present")
def test_more_steps_need_the_state(tmp_path: Path) -> None:
    config = _config(tmp_path)
    _pretend_finished(config)
    with pytest.raises(RunError, match=r"cannot go on to 9,000, for .* is gone"):
        experts.train_experts(replace(config, steps=9000))


def _trained(config: ExpertsConfig) -> dict[str, Any]:
    worker = multiprocessing.get_context("spawn").Process(
        target=experts.train_experts, args=(config,)
    )
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    record: dict[str, Any] = json.loads((config.output / f"{config.tasks}.json").read_text())
    return record


def test_the_record_has_a_mean_return_for_each_batch_of_episodes(tmp_path: Path) -> None:
    curve = [(1000, 1.0), (1000, 3.0), (2000, 5.0), (2000, 6.0)]
    training = experts._Training(_config(tmp_path), MT30["pendulum-swingup"], Silent())
    training.progress = Progress(identity={"task": "pendulum-swingup"}, step=2000, curve=curve)
    training.finish(_network())
    record = json.loads((tmp_path / "pendulum-swingup.json").read_text())
    assert record["learning_curve"] == [[1000, 2.0], [2000, 5.5]]


@pytest.mark.slow
def test_killed_training_goes_on_from_its_saved_state(tmp_path: Path) -> None:
    pytest.importorskip("sbx", reason="sbx-rl is not installed")
    config = _config(tmp_path, steps=5000, save_every=3000)
    context = multiprocessing.get_context("spawn")
    state = tmp_path / "state" / "pendulum-swingup.npz"
    first = context.Process(target=experts.train_experts, args=(config,))
    first.start()
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    first.kill()
    first.join()
    assert state.exists()
    assert not (tmp_path / "pendulum-swingup.json").exists()
    saved_step = experts.read_progress(state).step

    record = _trained(config)
    assert saved_step == 3000
    steps = [step for step, _ in record["learning_curve"]]
    assert steps == list(range(1000, 6000, 1000))
    policy = ExpertNetwork.load(expert_path(tmp_path, "pendulum-swingup"))
    early = ExpertNetwork.load(expert_path(tmp_path / "early", "pendulum-swingup"))
    assert (early.steps, policy.steps) == (1000, 5000)
    assert list(policy.returns) == record["returns"]
    assert policy.mean(np.zeros((2, 3), np.float32)).shape == (2, 1)

    third = context.Process(target=experts.train_experts, args=(replace(config, steps=6000),))
    third.start()
    third.join(180)
    assert third.exitcode == 0
    extended = json.loads((tmp_path / "pendulum-swingup.json").read_text())
    assert extended["steps"] == 6000
    assert extended["learning_curve"][:5] == record["learning_curve"]
    assert ExpertNetwork.load(expert_path(tmp_path / "early", "pendulum-swingup")).steps == 1000


@pytest.mark.slow
def test_a_planned_expert_goes_on_from_its_labels_and_learns_them(tmp_path: Path) -> None:
    config = _config(tmp_path, tasks="pendulum-spin", method="plan", steps=1000, hidden=64)
    experts.train_experts(config)
    experts.train_experts(replace(config, steps=4000))
    record = json.loads((tmp_path / "pendulum-spin.json").read_text())
    assert [step for step, _ in record["learning_curve"]] == list(range(1000, 5000, 1000))
    # Returns of 800 and more are a perfect spin; random actions have about 10.
    assert record["returns"][0] > 600
    assert record["config"]["method"] == "plan"


def test_plans_are_imitated_in_short_episodes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imitation, "_UPDATES", 5)
    task = own_task("own_envs:Slider-v0")
    config = _config(tmp_path, method="plan", envs=3, update_ratio=0.25)
    learner, progress = imitation.Imitation(config, task), Progress(identity={})
    learner.round(progress)
    assert progress.step == 3 * task.episode_length
    assert learner.network(progress).algorithm == "plan"
