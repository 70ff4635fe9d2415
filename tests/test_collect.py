from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tdmpc_opt.agents.agent import Agent, load_agent
from tdmpc_opt.agents.collect import collect
from tdmpc_opt.agents.expert import ExpertNetwork, expert_path
from tdmpc_opt.agents.rollout import agent_policy, rollout
from tdmpc_opt.agents.sources import ExpertSource
from tdmpc_opt.configs.data import CollectConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.errors import CheckpointError, InputError, RunError, UnknownTaskError
from tdmpc_opt.progress import Silent
from tdmpc_opt.schema import PlannerBudget
from tdmpc_opt.tasks.environment import make_env


def _config(output: Path, **changes: object) -> CollectConfig:
    config = CollectConfig(
        policy="random",
        tasks="pendulum-swingup",
        episodes=2,
        output=output,
        device="cpu",
        workers=1,
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def experts(tmp_path_factory) -> Path:
    """A folder with one expert, of pendulum-swingup."""
    folder, rng = tmp_path_factory.mktemp("experts"), np.random.default_rng(0)
    network = ExpertNetwork(
        task="pendulum-swingup",
        algorithm="sac",
        steps=1,
        returns=(),
        weights=(rng.normal(size=(8, 3)) / 8, rng.normal(size=(1, 8)) / 8),
        biases=(np.zeros(8), np.zeros(1)),
    )
    network.save(expert_path(folder, "pendulum-swingup"))
    return folder


class Watching(Silent):
    """Keeps the reports, and stops the work after so many tasks."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.reports: list[tuple[int, int]] = []
        self._stop_after = stop_after

    def update(self, done: int, total: int, text: str) -> None:
        self.reports.append((done, total))
        if done == self._stop_after:
            raise KeyboardInterrupt


def _episodes(dataset: EpisodeDataset) -> list:
    return [episode for shard in dataset.shards for episode in dataset.episodes(shard)]


def test_each_task_becomes_a_shard_that_says_where_it_comes_from(dataset_dir):
    dataset = EpisodeDataset.open(dataset_dir)
    dataset.check()
    assert len(dataset) == 4
    assert dataset.length == 501
    assert dataset.task_names == ("pendulum-swingup", "cartpole-balance")
    for shard in dataset.shards:
        assert shard.seeds == (1_000_000, 1_000_001)
        assert shard.task in shard.name
        assert shard.source["policy"] == {"name": "random", "sha256": None}
        assert (shard.source["noise"], shard.source["seed"]) == (0.0, 0)


def test_stored_actions_lead_to_the_stored_rewards_and_observations(dataset_dir):
    """Row t holds the action that led to observation t, and its reward."""
    dataset = EpisodeDataset.open(dataset_dir)
    for episode in _episodes(dataset)[::2]:
        env = make_env(episode.task, episode.seed)
        obs, _ = env.reset()
        np.testing.assert_array_equal(episode.obs[0], obs)
        assert np.isnan(episode.action[0]).all()
        assert np.isnan(episode.reward[0])
        for t in range(1, 501):
            obs, reward, _, truncated, _ = env.step(episode.action[t])
            np.testing.assert_allclose(episode.obs[t], obs, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(episode.reward[t], reward, rtol=1e-4, atol=1e-4)
        assert truncated


def test_the_seed_is_an_offset_from_one_million(tmp_path):
    dataset = collect(_config(tmp_path / "d", seed=30, episodes=1))
    assert dataset.shards[0].seeds == (1_000_030,)


def test_the_same_call_again_adds_nothing(tmp_path):
    config = _config(tmp_path / "d", episodes=1)
    collect(config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "d").rglob("*.memmap")}
    watching = Watching()
    assert len(collect(config, watching)) == 1
    assert watching.reports == [(1, 1)]
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "d").rglob("*.memmap")}
    assert after == before


def test_an_interrupted_collection_goes_on_and_agrees_exactly(tmp_path, dataset_dir):
    config = _config(tmp_path / "d", tasks="pendulum-swingup,cartpole-balance")
    with pytest.raises(KeyboardInterrupt):
        collect(config, Watching(stop_after=1))
    assert len(EpisodeDataset.open(tmp_path / "d")) == 2
    whole = collect(config)
    expected = EpisodeDataset.open(dataset_dir)
    assert [shard.name for shard in whole.shards] == [shard.name for shard in expected.shards]
    for got, wanted in zip(_episodes(whole), _episodes(expected), strict=True):
        np.testing.assert_array_equal(got.obs, wanted.obs)
        np.testing.assert_array_equal(got.action, wanted.action)
        np.testing.assert_array_equal(got.reward, wanted.reward)


def test_several_sources_mix_in_one_dataset(tmp_path, experts):
    config = _config(tmp_path / "d", episodes=1)
    collect(config)
    collect(replace(config, seed=1))
    collect(replace(config, policy=str(experts)))
    dataset = collect(replace(config, policy=str(experts), noise=0.2))
    assert len(dataset) == len(dataset.shards) == 4


def test_noise_changes_the_actions_and_stays_within_bounds(tmp_path, experts):
    config = _config(tmp_path / "d", policy=str(experts), episodes=1)
    collect(config)
    collect(replace(config, noise=0.1))
    plain, noisy = _episodes(collect(replace(config, noise=3.0)))[::2]
    assert np.abs(noisy.action[1:]).max() == 1
    assert not np.array_equal(plain.action, noisy.action, equal_nan=True)
    network = ExpertNetwork.load(expert_path(experts, "pendulum-swingup"))
    np.testing.assert_allclose(plain.action[1:], network.mean(plain.obs[:-1]), atol=1e-6)


@pytest.fixture(scope="module")
def cartpole() -> Path:
    """The committed experts, among them one of cartpole-balance."""
    return Path(__file__).parents[1] / "experts"


def _expert(folder: Path, task: str) -> ExpertNetwork:
    return ExpertNetwork.load(expert_path(folder, task))


def test_labels_are_the_experts_actions_without_the_noise(tmp_path, cartpole):
    config = _config(tmp_path / "d", policy=str(cartpole), tasks="cartpole-balance", noise=0.3)
    dataset = collect(config)
    dataset.check()
    assert dataset.shards[0].labelled
    assert "label" not in dataset.shards[0].source
    for episode in _episodes(dataset):
        assert np.isnan(episode.label[0]).all()
        clean = _expert(cartpole, "cartpole-balance").mean(episode.obs[:-1])
        np.testing.assert_allclose(episode.label[1:], clean, atol=1e-5)
        assert np.abs(episode.action[1:] - clean).mean() > 0.1


def test_random_actions_have_no_labels(dataset_dir):
    dataset = EpisodeDataset.open(dataset_dir)
    assert all(shard.labelled for shard in dataset.shards)
    assert all(np.isnan(episode.label).all() for episode in _episodes(dataset))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("driver", ["random", "agent"])
def test_a_labeller_says_what_it_would_do_where_another_policy_goes(
    tmp_path, cartpole, checkpoint_file, driver
):
    policy = str(checkpoint_file) if driver == "agent" else driver
    config = _config(tmp_path / "d", policy=policy, tasks="cartpole-balance", noise=0.1)
    collect(config)
    dataset = collect(replace(config, label=str(cartpole)))
    (plain, shard), episodes = dataset.shards, _episodes(dataset)
    for alone, labelled in zip(episodes[:2], episodes[2:], strict=True):
        np.testing.assert_array_equal(labelled.obs, alone.obs)
        np.testing.assert_array_equal(labelled.action, alone.action)
        np.testing.assert_array_equal(labelled.reward, alone.reward)
        expected = _expert(cartpole, "cartpole-balance").mean(labelled.obs[:-1])
        np.testing.assert_allclose(labelled.label[1:], expected, atol=1e-5)
        assert not np.allclose(labelled.label[1:], labelled.action[1:], atol=0.05)
    sha = shard.source["label"]["policy"]["sha256"]
    assert shard.source["label"] == {
        "policy": {"name": "experts", "sha256": sha},
        "mode": "policy",
    }
    assert shard.name == f"{plain.name}-label-{sha[:12]}-policy"


@pytest.mark.usefixtures("unchecked")
def test_a_planner_labels_with_its_warm_start_along_the_way(checkpoint_file, cartpole):
    """Row by row the labels are those of an agent that is shown one episode, step by step."""
    task, seeds, streams = "cartpole-balance", (5, 6), [(0, 5), (0, 6)]
    budget = PlannerBudget(horizon=2, iterations=1, samples=6, policy_samples=1, elites=3)

    def planner() -> Agent:
        model = load_agent(checkpoint_file).world_model
        return Agent(model, mode="planner", budget=budget)

    expert, labeller = ExpertSource(source=str(cartpole)).load(), agent_policy(planner())
    episodes = rollout(expert, task, seeds, streams, noise=0.1, labeller=labeller)
    alone = rollout(expert, task, seeds, streams, noise=0.1)
    for episode, same, stream in zip(episodes, alone, streams, strict=True):
        np.testing.assert_array_equal(episode.action, same.action)
        assert np.isnan(same.label).all()
        agents = planner(), planner()
        shown, forgetful = (agent_policy(each)(task, [(*stream, 2)], []) for each in agents)
        said, fresh = [], []
        for obs in episode.obs[:20]:
            agents[1].reset()
            said.append(shown(obs[None])[0])
            fresh.append(forgetful(obs[None])[0])
        np.testing.assert_allclose(episode.label[1:21], said, atol=1e-4)
        assert not np.allclose(said, fresh, atol=0.05)


def test_noise_has_the_asked_spread(tmp_path, experts):
    config = _config(tmp_path / "d", policy=str(experts), episodes=1, noise=0.1)
    (episode,) = _episodes(collect(config))
    network = ExpertNetwork.load(expert_path(experts, "pendulum-swingup"))
    mean = network.mean(episode.obs[:-1])
    inside = np.abs(mean[:, 0]) < 0.6
    assert inside.sum() > 100
    noise = (episode.action[1:] - mean)[inside]
    assert 0.07 < noise.std() < 0.13


@pytest.mark.usefixtures("unchecked")
def test_an_agent_collects_its_own_tasks_by_default(tmp_path, checkpoint_file):
    config = _config(tmp_path / "d", policy=str(checkpoint_file), tasks=None, episodes=1)
    dataset = collect(config)
    assert dataset.task_names == ("pendulum-swingup", "cartpole-balance")
    assert len(dataset.shards[0].source["policy"]["sha256"]) == 64
    assert str(checkpoint_file.parent) not in (tmp_path / "d" / "dataset.json").read_text()


def test_experts_that_are_missing_are_named(tmp_path, experts):
    with pytest.raises(
        UnknownTaskError, match=r"no expert for cartpole-balance; train it with"
    ):
        collect(_config(tmp_path / "d", policy=str(experts), tasks="cartpole-balance"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        CheckpointError, match="holds neither a model nor experts; name a checkpoint"
    ):
        collect(_config(tmp_path / "d", policy=str(tmp_path / "empty")))
    assert not (tmp_path / "d").exists()


def test_a_labeller_that_cannot_is_refused_and_leaves_nothing(
    tmp_path, experts, checkpoint_file
):
    config = _config(tmp_path / "d", label=str(experts))
    with pytest.raises(UnknownTaskError, match="no expert for cartpole-balance; train it"):
        collect(replace(config, tasks="cartpole-balance"))
    with pytest.raises(UnknownTaskError, match="unknown task 'walker-walk'"):
        collect(replace(config, tasks="walker-walk", label=str(checkpoint_file)))
    with pytest.raises(InputError, match="random actions are nothing to imitate"):
        collect(replace(config, label="random"))
    with pytest.raises(CheckpointError, match="nowhere is neither a file"):
        collect(replace(config, label=str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match="needs --mode planner"):
        replace(config, mode="policy", preset="realtime")
    assert not (tmp_path / "d").exists()


def test_an_unknown_policy_or_task_is_refused_and_leaves_nothing(tmp_path, checkpoint_file):
    with pytest.raises(CheckpointError, match=r"randm is neither a file .* the word random"):
        collect(_config(tmp_path / "d", policy="randm"))
    with pytest.raises(UnknownTaskError, match="did you mean pendulum-swingup"):
        collect(_config(tmp_path / "d", tasks="pendulum_swingup"))
    with pytest.raises(UnknownTaskError, match="unknown task 'walker-walk'"):
        collect(_config(tmp_path / "d", policy=str(checkpoint_file), tasks="walker-walk"))
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("changes", [{"episodes": 0}, {"seed": -1}, {"noise": -0.1}])
def test_counts_that_cannot_be_run_are_refused(tmp_path, changes):
    with pytest.raises(InputError, match="at least"):
        _config(tmp_path, **changes)


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        collect(_config(tmp_path / "file" / "d"))


def test_the_time_is_estimated_before_the_work_starts(tmp_path, experts):
    texts: list[str] = []

    class Shown(Silent):
        def update(self, done: int, total: int, text: str) -> None:
            texts.append(text)

    collect(_config(tmp_path / "d", label=str(experts)), Shown())
    assert texts[0].endswith((", less than a minute", " min"))
    collect(_config(tmp_path / "d", label=str(experts)), Shown())
    assert texts[-1] == "processes: 1 (as asked)"
