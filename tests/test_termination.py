"""Episodes that a state ends, from the environment to the plan."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from public_layouts import layout_a, layout_b, layout_c
from safetensors import safe_open
from torch import Tensor

from tdmpc_opt import cli
from tdmpc_opt.agents.agent import Agent
from tdmpc_opt.agents.rollout import agent_policy, rollout
from tdmpc_opt.agents.sources import RandomSource, open_source
from tdmpc_opt.checkpoints.checkpoint import build, from_model
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.compression.calibration import Observations, Reference
from tdmpc_opt.compression.extract import compact_embedding, one_task
from tdmpc_opt.configs.training import TrainConfig
from tdmpc_opt.data.episodes import Episode, EpisodeDataset
from tdmpc_opt.data.reports import summarize
from tdmpc_opt.data.sampler import Batch
from tdmpc_opt.model.fold import FoldedModel
from tdmpc_opt.model.world_model import WorldModel, with_termination_head
from tdmpc_opt.planning.mppi import PlanNoise, draw_noise, plan, prepare, sequence_values
from tdmpc_opt.report import film
from tdmpc_opt.schema import PlannerBudget, Task, TaskTable, model_config
from tdmpc_opt.tasks import choose_tasks
from tdmpc_opt.training.losses import model_losses, td_target
from tdmpc_opt.training.step import build_learner, train_step

FALL = "own_envs:Fall-v0"
CONFIG = TrainConfig(data=Path("unused"), output=Path("unused"), updates=1, lr=1e-2)
BUDGET = PlannerBudget(iterations=2, samples=48, policy_samples=8, elites=8)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    yield
    sys.modules.pop("own_envs", None)
    for name in [
        name for name in gymnasium.registry if "own_envs" in repr(gymnasium.registry[name])
    ]:
        del gymnasium.registry[name]


@pytest.fixture
def episodic(make_model) -> WorldModel:
    """As `model`, with a termination head that is of two minds about random latents."""
    model = make_model(episodic=True)
    source = torch.Generator().manual_seed(11)
    with torch.no_grad():
        task = torch.arange(500) % 2
        z = model.encode(torch.randn(500, 5, generator=source), task)
        z = model.next(z, torch.rand(500, 3, generator=source) * model.mask(task), task)
        last = model.termination_head[-1]
        offset = last.bias - model.termination(z, task).median()
        last.weight.mul_(20)
        last.bias.copy_(20 * offset)
    return model


@pytest.fixture
def batch() -> Batch:
    """Four slices of the two tasks of `model`."""
    source = torch.Generator().manual_seed(7)
    task = torch.tensor([0, 1, 0, 1])
    action = torch.rand(3, 4, 3, generator=source) * 2 - 1
    action[:, 1::2, 2:] = 0
    obs = torch.randn(4, 4, 5, generator=source)
    return Batch(obs=obs, action=action, label=action, reward=action[..., :1], task=task)


def _generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _chain(make_model, value: Tensor) -> WorldModel:
    """A model of one task whose Qs give these values after each step, discounted by 0.9."""
    model = make_model(TaskTable((Task("one", 5, 3),)), task_dim=0)
    model.discount.fill_(0.9)
    model.q_values = lambda *_, **__: torch.zeros(2, 3, 1, 101)
    model.decode = lambda _: torch.stack([value, value + 1]).reshape(2, 3, 1, 1)
    return model


@pytest.mark.parametrize(
    ("td_lambda", "ended", "expected"),
    [
        (0.0, None, [10.0, 20.0, 30.0]),
        (0.0, [0, 0, 1], [10.0, 20.0, 3.0]),
        (0.0, [1, 0, 0], [1.0, 20.0, 30.0]),
        # From the last to the first: 3, 2 + 0.9 * mean(20, 3), 1 + 0.9 * mean(10, 12.35).
        (0.5, [0, 0, 1], [11.0575, 12.35, 3.0]),
        # Likewise: 30, 2, 1 + 0.9 * mean(10, 2).
        (0.5, [0, 1, 0], [6.4, 2.0, 30.0]),
    ],
)
def test_nothing_is_earned_after_an_end(make_model, td_lambda, ended, expected):
    """By hand: rewards 1, 2, 3 before states worth 10, 20, 30, discounted by 0.9."""
    model = _chain(make_model, torch.tensor([10.0, 20.0, 30.0]))
    action = torch.zeros(3, 1, 3)
    batch = Batch(
        obs=torch.zeros(4, 1, 5),
        action=action,
        label=action,
        reward=torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1),
        task=torch.zeros(1, dtype=torch.int64),
        terminated=None if ended is None else torch.tensor(ended).float().reshape(3, 1, 1),
    )
    next_z = torch.zeros(3, 1, 16)
    found = td_target(model, next_z, batch, torch.Generator(), td_lambda=td_lambda)
    assert found.flatten().tolist() == pytest.approx(expected)


def test_the_loss_of_the_head_is_its_cross_entropy(make_model, batch):
    model = make_model(episodic=True)
    with torch.no_grad():
        model.termination_head[-1].weight.zero_()
        model.termination_head[-1].bias.fill_(1.0)
    ends = torch.zeros(3, 4, 1)
    ends[2, 1:] = 1
    stay, end = math.log(1 + math.e), math.log(1 + 1 / math.e)  # at a logit of 1
    for terminated, expected in ((None, stay), (ends, (9 * stay + 3 * end) / 12)):
        ended = replace(batch, terminated=terminated)
        losses, _ = model_losses(
            model, ended, torch.zeros(3, 4, 16), torch.zeros(3, 4, 1), CONFIG.weights
        )
        assert losses.termination.item() == pytest.approx(expected)
    rest = replace(losses, termination=None)
    difference = losses.total(CONFIG.weights) - rest.total(CONFIG.weights)
    assert difference.item() == pytest.approx(expected, rel=1e-4)


def test_an_update_trains_the_head_and_a_model_without_one_has_no_such_term(
    make_model, batch, model
):
    ended = replace(batch, terminated=torch.ones(3, 4, 1))
    found, fabric = [], Fabric(accelerator="cpu", devices=1)
    for trained in (make_model(episodic=True), model):
        learner = build_learner(fabric, trained, CONFIG)
        found.append([train_step(learner, ended) for _ in range(30)])
    with_head, without = found
    assert with_head[-1]["termination"] < 0.5 * with_head[0]["termination"]
    assert "termination" not in without[0]


def test_a_model_gets_a_head_and_stays_otherwise_as_it_was(model):
    assert with_termination_head(model).config == replace(model.config, episodic=True)
    more = with_termination_head(model, _generators(3)[0])
    assert with_termination_head(more) is more
    assert not more.training
    state = more.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value)
    assert {n.partition(".")[0] for n in state.keys() - model.state_dict().keys()} == {
        "termination_head"
    }


def _published(model: WorldModel, z: Tensor, actions: Tensor, last: Tensor, task: Tensor):
    """The value of sequences as the public code writes it, for two Qs."""
    total, discount = 0.0, torch.ones(len(task), 1)
    ended = torch.zeros(len(task), 1)
    for action in actions:
        reward = model.decode(model.reward(z, action, task))
        z = model.next(z, action, task)
        total = total + discount * (1 - ended) * reward
        discount = discount * model.discount[task].unsqueeze(-1)
        prediction = torch.sigmoid(model.termination(z, task)) > 0.5
        ended = torch.clip(ended + prediction.float(), max=1.0)
    action = model.policy(z, task, last).action
    q = model.decode(model.q_values(z, action, task)).mean(0)
    return (total + discount * (1 - ended) * q)[:, 0], ended


def test_a_plan_stops_earning_at_the_predicted_end(episodic):
    source = torch.Generator().manual_seed(2)
    task = torch.tensor([0, 1])
    with torch.no_grad():
        z = episodic.encode(torch.randn(2, 5, generator=source), task)
        prior = torch.randn(3, 40, 2, 3, generator=source)
        actions = torch.randn(3, 60, 2, 3, generator=source).clamp(-1, 1)
        actions = actions * episodic.mask(task)
        last = torch.randn(100, 2, 3, generator=source)
        networks = FoldedModel(episodic)
        problem = prepare(networks, z, task, prior)
        heads = torch.tensor([[0, 0], [1, 1]])
        found = sequence_values(networks, problem, actions, last, heads)
        every = torch.cat([problem.prior_actions, actions], dim=1)
        ends = 0.0
        for row in range(100):
            value, ended = _published(episodic, z, every[:, row], last[row], task)
            assert torch.allclose(found[row], value, rtol=1e-4, atol=1e-4)
            ends += float(ended.sum())
    assert 20 < ends < 180


def test_compression_compares_values_that_stop_at_the_predicted_end(episodic):
    source = torch.Generator().manual_seed(5)
    task = torch.arange(40) % 2
    reference = Reference(episodic, Observations(torch.randn(40, 5, generator=source), task))
    deaf = build(from_model(episodic))
    with torch.no_grad():
        deaf.termination_head[-1].bias.fill_(-1e6)
    assert reference.errors(episodic).value == pytest.approx(0, abs=1e-6)
    assert reference.errors(deaf).value > 0.05


def test_a_head_that_predicts_no_end_changes_no_plan(make_model, episodic):
    plain = make_model()
    plain.load_state_dict(episodic.state_dict(), strict=False)
    with torch.no_grad():
        episodic.termination_head[-1].weight.zero_()
        episodic.termination_head[-1].bias.fill_(-1.0)
        plans = []
        for model in (plain, episodic):
            noise = draw_noise(model, BUDGET, _generators(0, 1))
            task = torch.tensor([0, 1])
            z = model.encode(torch.ones(2, 5), task)
            zeros = torch.zeros(BUDGET.horizon, 2, 3)
            plans.append(plan(FoldedModel(model), z, task, zeros, noise, BUDGET))
    assert torch.equal(plans[0].mean, plans[1].mean)
    assert torch.equal(plans[0].action, plans[1].action)


@pytest.mark.parametrize("iterations", [1, 2])
def test_an_exported_planner_ends_as_torch_does(episodic, tmp_path, iterations):
    pytest.importorskip("onnxscript")
    ort = pytest.importorskip("onnxruntime")
    from tdmpc_opt.export.graphs import planner_graph

    budget = replace(BUDGET, iterations=iterations)
    noise = draw_noise(episodic, budget, _generators(0, 1, 2))
    task, obs = torch.tensor([0, 1, 0]), torch.randn(3, 5, generator=_generators(3)[0])
    obs[1, 4:] = 0
    mean = torch.zeros(budget.horizon, 3, 3)
    heads = noise.heads[:, :, :1].expand_as(noise.heads).contiguous()
    noise = replace(noise, heads=heads)
    graph = planner_graph(episodic, budget)
    session = ort.InferenceSession(graph.SerializeToString())
    feeds = {
        **{"obs": obs, "task": task, "mean": mean},
        "std": torch.full_like(mean, budget.max_std),
        **{name: getattr(noise, name) for name in ("prior", "samples", "value", "pick")},
        "heads": noise.heads[:, :, 0],
    }
    feeds = {name: value.numpy() for name, value in feeds.items()}
    (found,) = session.run(["new_mean"], feeds)
    deaf = build(from_model(episodic))
    with torch.no_grad():
        deaf.termination_head[-1].bias.fill_(-1e6)
        means = []
        for model in (episodic, deaf):
            z = model.encode(obs, task)
            networks = FoldedModel(model)
            means.append(plan(networks, z, task, mean, noise, budget).mean.numpy())
    assert np.abs(found - means[0]).max() < 1e-3
    assert np.abs(means[1] - means[0]).max() > 1e-2


def test_plans_are_compared_up_to_the_first_action_where_the_rest_follows_an_end(make_model):
    """Samples are clipped to one first action, and those that it ends have equal values."""
    pytest.importorskip("onnxscript")
    from tdmpc_opt.export import export

    budget, tasks = PlannerBudget(iterations=1, samples=256), TaskTable((Task("one", 5, 1),))
    model = make_model(tasks, task_dim=0, episodic=True)
    obs = torch.randn(32, 5, generator=_generators(0)[0])
    with torch.no_grad():
        z = model.next(model.encode(obs, None), torch.ones(32, 1), None)
        model.termination_head[-1].bias.sub_(model.termination(z, None).median())
    networks = FoldedModel(model)

    def reversed_samples(inputs):
        """As another engine: of samples with equal values it prefers others."""
        found = {name: torch.from_numpy(value) for name, value in inputs.items()}
        prior, drawn = found["value"].split([24, 232], dim=1)
        noise = PlanNoise(
            found["prior"],
            found["samples"].flip(2),
            torch.cat([prior, drawn.flip(1)], dim=1),
            found["heads"].unsqueeze(-1),
            found["pick"],
            found["pick"].unsqueeze(-1),
        )
        with torch.no_grad():
            z = model.encode(found["obs"], None)
            mean = plan(networks, z, None, found["mean"], noise, budget).mean
        return {"new_mean": mean.numpy()}

    agent = Agent(model, mode="policy")
    parity = export._planner_parity(reversed_samples, agent, budget, {"one": obs.numpy()})
    assert parity.max_error < 1e-4


def test_every_file_keeps_the_head(episodic, tmp_path):
    path = tmp_path / "native.safetensors"
    write_native(path, from_model(episodic))
    assert read_checkpoint(path).config == episodic.config
    native = episodic.state_dict()
    single = one_task(read_checkpoint(path), "two")
    files = {
        "a": layout_a(native),
        "b": layout_b(native, [3, 2]),
        "c": layout_c(single.tensors),
    }
    for name, entries in files.items():
        torch.save({"model": entries}, tmp_path / f"{name}.pt")
        found = read_checkpoint(tmp_path / f"{name}.pt")
        assert any(key.startswith("_termination.") for key in entries)
        assert found.config.episodic
        expected = single.tensors if name == "c" else native
        assert found.tensors.keys() == expected.keys()
        assert all(torch.equal(found.tensors[key], expected[key]) for key in expected)


def test_files_of_models_without_the_head_are_as_before(model, tmp_path):
    write_native(tmp_path / "plain.safetensors", from_model(model))
    with safe_open(tmp_path / "plain.safetensors", framework="np") as file:
        assert "episodic" not in json.loads(file.metadata()["config"])
        assert not [name for name in file.keys() if "termination" in name]  # noqa: SIM118


def test_the_head_goes_with_a_task_that_is_taken_out(episodic):
    checkpoint = from_model(episodic)
    source = torch.Generator().manual_seed(4)
    z = torch.softmax(torch.randn(6, 2, 8, generator=source), -1).flatten(1)
    task = torch.ones(6, dtype=torch.int64)
    with torch.no_grad():
        expected = episodic.termination(z, task)
        for small in (one_task(checkpoint, "two"), compact_embedding(checkpoint)):
            found = build(small).termination(z, task if small.config.task_dim else None)
            assert torch.allclose(found, expected, atol=1e-4)


def test_a_rollout_ends_each_episode_where_its_state_does():
    task = choose_tasks(FALL).tasks[0]
    table = TaskTable((task,))
    seeds, streams = range(12), [(0, k) for k in range(12)]
    episodes = rollout(RandomSource(source="random").load(table), task, seeds, streams)
    rows = [len(episode.obs) for episode in episodes]
    assert len({*rows}) > 2
    for episode, seed, stream in zip(episodes, seeds, streams, strict=True):
        fell = abs(episode.obs[-1, 0]) > 1
        assert (np.abs(episode.obs[1:-1, 0]) <= 1).all()
        assert episode.terminated == (fell and len(episode.obs) < 9)
        assert fell or len(episode.obs) == 9
        (alone,) = rollout(RandomSource(source="random").load(table), task, [seed], [stream])
        assert np.array_equal(alone.obs, episode.obs)
        assert np.array_equal(alone.reward[1:], episode.reward[1:])
    assert any(episode.terminated for episode in episodes)


def test_the_state_that_ends_an_episode_is_not_acted_in(make_model):
    """Here it is too large for any agent, which would refuse the whole batch."""
    table = choose_tasks("own_envs:Burst-v0")
    policy = agent_policy(Agent(make_model(table, task_dim=0), mode="policy"))
    episodes = rollout(policy, table.tasks[0], range(12), [(k,) for k in range(12)])
    assert len({len(episode.obs) for episode in episodes}) > 2
    assert {float(e.obs[-1, 0]) for e in episodes if e.terminated} == {float(np.float32(3e38))}


TINY = ("--size", "0.3", "--batch-size", "8", "--device", "cpu")


def _run(*words: str | Path) -> None:
    assert cli.main([str(word) for word in words]) == 0


def test_a_contact_sheet_shows_an_end_before_half_of_the_steps_and_its_time():
    tasks = choose_tasks("own_envs:Early-v0")
    (shot,) = film.film(film._Job((open_source("random"),), tasks, poses=True))
    assert shot.seconds == pytest.approx(0.3)


def test_a_task_that_ends_goes_from_collection_to_a_file_that_acts(tmp_path, capsys):
    one = ("--tasks", FALL, "--workers", "1")
    data, run = tmp_path / "data", tmp_path / "run"
    _run("collect", "--policy", "random", *one, "--episodes", "20", "--output", data)
    dataset = EpisodeDataset.open(data)
    assert dataset.episodic
    _run("data", "info", data)
    assert "terminated" in capsys.readouterr().out
    assert summarize(dataset)[0].terminated == sum(dataset.shards[0].terminated)
    _run("train", "--data", data, "--output", run, "--updates", "2", *TINY)
    model = run / "model.safetensors"
    assert read_checkpoint(model).config.episodic
    assert "termination" in (run / "metrics.csv").read_text()
    for mode in ("policy", "planner"):
        words = ("--mode", mode, "--episodes", "3", "--output", tmp_path / f"{mode}.json")
        _run("evaluate", model, *one, *words)
        returns = json.loads((tmp_path / f"{mode}.json").read_text())["tasks"]["Fall-v0"]
        assert len(returns["returns"]) == 3
    small = tmp_path / "small.safetensors"
    _run("quantize", model, "--format", "int8", "--data", data, "--output", small)
    assert read_checkpoint(small).config.episodic
    onnx = tmp_path / "small.onnx"
    _run("export", model, "--data", data, "--policy-only", "--output", onnx)
    _run("evaluate", onnx, *one, "--episodes", "2", "--output", tmp_path / "onnx.json")


@pytest.mark.parametrize("share", [(), ("--on-policy-share", "0.5")])
def test_a_student_that_falls_at_once_does_not_stop_its_correction(tmp_path, share):
    """Its episodes of one step have no slice of the horizon's length; the teacher's have."""
    table, draw = choose_tasks("own_envs:Drop-v0"), np.random.default_rng(0)
    start, base, run = tmp_path / "start.safetensors", tmp_path / "base", tmp_path / "run"
    write_native(start, from_model(WorldModel(model_config("0.3", table), table)))
    obs, action = (draw.uniform(-1, 1, (9, n)).astype(np.float32) for n in (2, 1))
    episode = Episode("Drop-v0", 0, obs, action, action[:, 0], action)
    EpisodeDataset.create(base, table).append_shard("a", [episode], {})
    words = ("--teacher", "own_policies:centre", "--tasks", "own_envs:Drop-v0", "--rounds", "2")
    words += ("--updates", "1", "--episodes", "2", "--batch-size", "8", "--workers", "1")
    _run("dagger", "--start", start, "--data", base, *words, *share, "--output", run)
    driven = EpisodeDataset.open(run / "data")
    assert [shard.rows for shard in driven.shards] == [(2, 2), (2, 2)]
    assert driven.episodic
    assert read_checkpoint(run / "model.safetensors").extra["updates"] == "2"


def _cut_off(dataset: EpisodeDataset) -> list[Episode]:
    """The episodes of the first shard as if none of them had ended."""
    return [
        replace(episode, terminated=False) for episode in dataset.episodes(dataset.shards[0])
    ]


def test_a_run_that_began_before_any_end_goes_on_without_the_head(tmp_path):
    """Rounds on the student's own episodes bring the first one in the middle of a run."""
    data, own, run = tmp_path / "data", tmp_path / "own", tmp_path / "run"
    words = ("--tasks", FALL, "--workers", "1", "--episodes", "10")
    _run("collect", "--policy", "random", *words, "--output", data)
    ended = EpisodeDataset.open(data)
    assert ended.episodic
    calm = EpisodeDataset.create(tmp_path / "calm", ended.tasks)
    grown = EpisodeDataset.create(own, ended.tasks)
    for dataset in (calm, grown):
        dataset.append_shard("a", _cut_off(ended), {})
    train = ("train", "--data", calm.path, "--on-policy", own, "--output", run, *TINY)
    _run(*train, "--updates", "1")
    grown.append_shard("b", list(ended.episodes(ended.shards[0])), {})
    _run(*train, "--updates", "2")
    assert not read_checkpoint(run / "model.safetensors").config.episodic
    again = ("train", "--data", data, "--start", run / "model.safetensors")
    _run(*again, "--output", tmp_path / "more", "--updates", "1", *TINY[2:])
    assert read_checkpoint(tmp_path / "more" / "model.safetensors").config.episodic


@pytest.mark.experts
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_expert_learns_from_true_ends(tmp_path, monkeypatch):
    from tdmpc_opt.experts import learner, train

    built = []
    build_learner = learner.build_learner
    monkeypatch.setattr(
        train, "build_learner", lambda *a, **k: built.append(build_learner(*a, **k)) or built[0]
    )
    one = ("--tasks", FALL, "--workers", "1", "--output", tmp_path / "experts")
    _run("experts", *one, "--steps", "200", "--envs", "4", "--hidden", "16")
    buffer = built[0].replay_buffer
    count = buffer.size()
    fell = np.abs(buffer.next_observations[:count, :, 0]) > 1
    ended = (buffer.dones * (1 - buffer.timeouts))[:count].astype(bool)
    timed_out = buffer.timeouts[:count].astype(bool)
    assert ended.any()
    assert timed_out.any()
    assert np.array_equal(fell & ~timed_out, ended)
    record = json.loads((tmp_path / "experts" / "Fall-v0.json").read_text())
    assert record["steps"] >= 200
