import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmpc_opt.agents.rollout import rollout
from tdmpc_opt.agents.sources import open_source
from tdmpc_opt.configs.measure import EvaluateConfig
from tdmpc_opt.errors import (
    CheckpointError,
    InputError,
    ResultError,
    RunError,
    UnknownTaskError,
)
from tdmpc_opt.evaluation.compare import compare
from tdmpc_opt.evaluation.evaluate import _identity, evaluate
from tdmpc_opt.evaluation.results import EvaluationFile, read_evaluation, read_finished
from tdmpc_opt.evaluation.score import (
    NORMALIZED,
    normalized_score,
    stored_score,
    unit_of,
)
from tdmpc_opt.export.engine import fast_engine
from tdmpc_opt.planning.planner import ChooseEngine, eager_engine
from tdmpc_opt.progress import Silent
from tdmpc_opt.schema import MT30, Task, TaskTable
from tdmpc_opt.tasks.environment import make_env

TASKS = "pendulum-swingup,cartpole-balance"


def _config(output: Path, **changes: object) -> EvaluateConfig:
    config = EvaluateConfig(
        checkpoint="random", tasks=TASKS, episodes=2, output=output, device="cpu", workers=1
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """An uninterrupted evaluation of random actions. Read it, do not change it."""
    path = tmp_path_factory.mktemp("finished") / "random.json"
    evaluate(_config(path))
    return path


@pytest.fixture
def result(finished, tmp_path) -> Path:
    """A copy of it to change."""
    path = tmp_path / "random.json"
    path.write_bytes(finished.read_bytes())
    return path


class Interrupting(Silent):
    """Raises what Ctrl-C does once so many tasks are done."""

    def __init__(self, after: int) -> None:
        self._after = after

    def update(self, done: int, total: int, text: str) -> None:
        if done == self._after:
            raise KeyboardInterrupt


def _edit(path: Path, change) -> Path:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def _returns(content: dict) -> dict[str, list[float]]:
    return {name: record["returns"] for name, record in content["tasks"].items()}


def test_the_score_is_the_plain_mean_of_task_means_over_ten():
    score = normalized_score({"a": [100.0, 300.0], "b": [500.0, 500.0, 500.0, 500.0]})
    assert score.mean == pytest.approx((20 + 50) / 2)


def test_the_interval_is_that_of_the_resampled_means():
    """Task b never varies and a has two values: the resampled mean of a is 0, 50 or 100."""
    score = normalized_score({"a": [0.0, 1000.0], "b": [300.0, 300.0]})
    assert score.mean == pytest.approx(40)
    assert score.ci95 == pytest.approx((15, 65))
    constant = normalized_score({"a": [200.0] * 3, "b": [400.0] * 2})
    assert constant.ci95 == pytest.approx((30, 30))


def test_a_number_added_to_a_score_moves_its_interval():
    score = normalized_score({"a": [0.0, 1000.0], "b": [300.0, 300.0]})
    moved = score.plus(3.0)
    assert moved.mean == score.mean + 3
    assert moved.ci95 == (score.ci95[0] + 3, score.ci95[1] + 3)


def test_the_score_of_a_committed_result_is_the_same_to_the_last_digit():
    path = Path(__file__).parents[1] / "results" / "mt30-1m-policy.json"
    stored = read_evaluation(path)
    assert normalized_score(_returns(stored)) == stored_score(stored["score"])
    assert unit_of(stored["tasks"]) == NORMALIZED


def test_the_interval_agrees_with_a_bootstrap_by_hand(rng):
    returns = {name: rng.uniform(0, 1000, 8).tolist() for name in "abc"}
    low, high = normalized_score(returns).ci95
    draws = [
        np.mean([rng.choice(np.array(values) / 10, 8).mean() for values in returns.values()])
        for _ in range(4000)
    ]
    expected = np.percentile(draws, [2.5, 97.5])
    np.testing.assert_allclose([low, high], expected, atol=1.0)
    assert low < normalized_score(returns).mean < high


def test_one_episode_has_no_interval():
    score = normalized_score({"a": [100.0, 200.0], "b": [300.0]})
    assert score.mean == pytest.approx(22.5)
    assert score.ci95 is None
    assert str(score) == "22.50"
    assert str(normalized_score({"a": [100.0, 100.0]})) == "10.00 [10.00, 10.00]"


def test_the_same_returns_give_the_same_interval(rng):
    returns = {"a": rng.uniform(0, 1000, 5).tolist()}
    assert normalized_score(returns) == normalized_score(returns)


@pytest.mark.parametrize(("seed", "episodes"), [(999_999, 2), (1_000_000, 1), (-1, 1), (0, 0)])
def test_seeds_that_collection_may_have_seen_are_refused(tmp_path, seed, episodes):
    with pytest.raises(InputError, match=r"stays below 1,000,000|at least"):
        _config(tmp_path / "x.json", seed=seed, episodes=episodes)
    _config(tmp_path / "x.json", seed=999_999, episodes=1)


def test_the_file_says_what_was_measured_and_how(finished):
    content = json.loads(finished.read_text())
    assert content["kind"] == "evaluation"
    assert content["complete"]
    assert set(content["tasks"]) == set(TASKS.split(","))
    for record in content["tasks"].values():
        assert record["seeds"] == [10_000, 10_001]
        assert len(record["returns"]) == 2
        assert record["score"] == pytest.approx(sum(record["returns"]) / 20)
        assert all(0 <= value <= 1000 for value in record["returns"])
    expected = np.mean([np.mean(values) / 10 for values in _returns(content).values()])
    assert content["score"]["mean"] == pytest.approx(expected)
    low, high = content["score"]["ci95"]
    assert low <= content["score"]["mean"] <= high
    assert content["config"]["checkpoint"] == {"name": "random", "sha256": None}
    assert (content["config"]["episodes"], content["config"]["seed"]) == (2, 10_000)
    assert {"tdmpc_opt", "mujoco", "dm_control", "numpy", "torch"} <= content["versions"].keys()
    assert content["machine"]["cores"] >= 1
    assert str(finished.parent) not in finished.read_text()


def test_episode_k_starts_from_the_seed_plus_k(tmp_path):
    config = _config(tmp_path / "r.json", tasks="cartpole-balance", seed=40)
    start = time.perf_counter()
    content = evaluate(config)
    seconds = time.perf_counter() - start
    assert 0 < content["tasks"]["cartpole-balance"]["seconds"] < seconds + 0.01
    got = _returns(content)["cartpole-balance"]
    for k in range(2):
        env = make_env("cartpole-balance", 40 + k)
        env.reset()
        source = np.random.default_rng((40, 8, k))  # cartpole-balance is task 8 of MT30
        total = 0.0
        for _ in range(500):
            total += np.float32(env.step(source.uniform(-1, 1, 1).astype(np.float32))[1])
        assert got[k] == pytest.approx(total, abs=1e-3)
        assert total > 10


@pytest.mark.parametrize(("mode", "noise"), [("policy", True), ("planner", False)])
def test_each_episode_of_an_agent_draws_from_its_own_stream(checkpoint_file, mode, noise):
    """From one state, so that nothing but the streams can tell the episodes apart."""
    source = open_source(str(checkpoint_file), mode=mode, noise=noise, device="cpu")
    policy = source.load(source.tasks("pendulum-swingup"))
    streams = [(0, 7, 0), (0, 7, 1), (1, 7, 0), (0, 8, 0), (0, 7, 0)]
    act = policy("pendulum-swingup", streams, [])
    actions = act(np.ones((len(streams), 3), np.float32))[:, 0]
    assert np.diff(np.sort(actions[:4])).min() > 1e-4
    assert actions[0] == pytest.approx(actions[4], abs=1e-6)


def test_the_same_command_again_does_nothing(result):
    before, time = result.read_bytes(), result.stat().st_mtime_ns
    content = evaluate(_config(result))
    assert result.read_bytes() == before
    assert result.stat().st_mtime_ns == time
    assert content["score"]["mean"] == json.loads(before)["score"]["mean"]
    assert content["schema"] == 1


def test_an_interrupted_evaluation_goes_on_and_agrees_exactly(finished, tmp_path):
    path = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        evaluate(_config(path), Interrupting(after=1))
    half = json.loads(path.read_text())
    assert not half["complete"]
    assert len(half["tasks"]) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]
    whole, expected = evaluate(_config(path)), json.loads(finished.read_text())
    assert whole["complete"]
    assert _returns(whole) == _returns(expected)
    assert whole["score"]["mean"] == expected["score"]["mean"]
    assert list(whole["score"]["ci95"]) == expected["score"]["ci95"]
    assert list(whole["tasks"]) == list(expected["tasks"])


def test_more_episodes_are_added_to_those_of_the_file(tmp_path):
    grown, whole = tmp_path / "grown.json", tmp_path / "whole.json"
    first = evaluate(_config(grown, episodes=1))
    assert first["score"]["ci95"] is None
    with pytest.raises(KeyboardInterrupt):
        evaluate(_config(grown, episodes=3), Interrupting(after=1))
    assert not json.loads(grown.read_text())["complete"]
    got, expected = (evaluate(_config(path, episodes=3)) for path in (grown, whole))
    assert got["complete"]
    assert _returns(got) == _returns(expected)
    assert [record["seeds"] for record in got["tasks"].values()] == 2 * [
        [10_000, 10_001, 10_002]
    ]
    assert got["score"] == expected["score"]
    assert got["config"]["episodes"] == 3
    for name, record in got["tasks"].items():
        assert record["score"] == expected["tasks"][name]["score"]


def test_the_estimate_counts_the_episodes_that_are_missing(result, monkeypatch):
    counted = []
    monkeypatch.setattr(
        "tdmpc_opt.evaluation.evaluate.estimate",
        lambda _, episodes, __: counted.append(episodes),
    )
    with pytest.raises(KeyboardInterrupt):
        evaluate(_config(result, episodes=5), Interrupting(after=0))
    assert list(counted[0].values()) == [3, 3]


def test_a_missing_task_is_measured_again(result, finished):
    _edit(result, lambda content: content["tasks"].pop("pendulum-swingup"))
    evaluate(_config(result))
    expected = json.loads(finished.read_text())
    assert _returns(json.loads(result.read_text())) == _returns(expected)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seed": 5}, "seed"),
        ({"checkpoint": "plan"}, "checkpoint"),
        ({"tasks": "pendulum-swingup"}, "tasks"),
    ],
)
def test_a_file_of_another_evaluation_is_refused(result, changes, key):
    before = result.read_bytes()
    with pytest.raises(ResultError, match=rf"existing run has {key}[.=]|{key} .* has changed"):
        evaluate(_config(result, **changes))
    assert result.read_bytes() == before


def test_a_process_evaluates_on_one_thread(tmp_path, monkeypatch):
    module, seen = sys.modules[evaluate.__module__], list[int]()

    def watched(*arguments: object) -> object:
        seen.append(torch.get_num_threads())
        return rollout(*arguments)

    monkeypatch.setattr(module, "rollout", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        evaluate(_config(tmp_path / "r.json", tasks="pendulum-swingup", episodes=1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


def test_fewer_episodes_than_a_file_has_are_refused(result):
    before = result.read_bytes()
    with pytest.raises(ResultError, match="has 2 episodes a task already, more than the 1"):
        evaluate(_config(result, episodes=1))
    assert result.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "realtime"}, "--preset is for checkpoints; random acts in one way"),
        ({"noise": True}, "--noise is for checkpoints"),
        ({"replan_every": 2}, "--replan-every is for checkpoints"),
        ({"engine": "eager"}, "--engine is for checkpoints"),
        ({"mode": "planner"}, "random acts by the mode `policy` alone; leave --mode out"),
        ({"checkpoint": "plan", "mode": "policy"}, "plan acts by the mode `planner` alone"),
    ],
)
def test_options_that_would_not_be_followed_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=re.escape(message)):
        evaluate(_config(tmp_path / "r.json", **changes))
    assert not (tmp_path / "r.json").exists()


def test_another_checkpoint_or_budget_is_refused(tmp_path, checkpoint_file, make_model):
    base = _config(
        tmp_path / "r.json",
        checkpoint=str(checkpoint_file),
        tasks="pendulum-swingup",
        episodes=1,
        mode="policy",
    )
    evaluate(base)
    copy = tmp_path / checkpoint_file.name
    content = bytearray(checkpoint_file.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    with pytest.raises(ResultError, match=r"checkpoint tiny\.safetensors has changed"):
        evaluate(replace(base, checkpoint=str(copy)))
    with pytest.raises(ResultError, match="has mode=policy, requested mode=planner"):
        evaluate(replace(base, mode="planner"))
    with pytest.raises(ResultError, match="has noise=False, requested noise=True"):
        evaluate(replace(base, noise=True))
    moved = tmp_path / "elsewhere" / checkpoint_file.name
    moved.parent.mkdir()
    moved.write_bytes(checkpoint_file.read_bytes())
    evaluate(replace(base, checkpoint=str(moved)))  # the content counts, not the place


def _planner_config(
    checkpoint: Path, choose_engine: ChooseEngine = eager_engine, **changes: object
) -> dict:
    """What a result file says of a planner's evaluation."""
    config = _config(Path("unused.json"), checkpoint=str(checkpoint), **changes)
    policy = open_source(
        config.checkpoint,
        mode=config.mode or "planner",
        replan_every=config.replan_every,
        choose_engine=choose_engine,
    )
    return _identity(config, policy, policy.tasks(None))


def test_the_file_says_what_planned(checkpoint_file):
    assert _planner_config(checkpoint_file)["engine"] == "eager"
    config = _planner_config(checkpoint_file, fast_engine)
    assert config["engine"] == "onnxruntime"
    assert config["budget"]["replan_every"] == 1
    config = _planner_config(checkpoint_file, replan_every=2)
    assert config["budget"]["replan_every"] == 2
    assert config["budget"]["samples"] == 512
    config = _planner_config(checkpoint_file, fast_engine, mode="policy")
    assert (config["engine"], config["budget"]) == (None, None)
    with pytest.raises(InputError, match="`replan_every` must be between 1 and the horizon"):
        _planner_config(checkpoint_file, replan_every=4)


def _write_old(path: Path, config: dict) -> Path:
    task = {"returns": [1.0], "seeds": [0]}
    content = {"kind": "evaluation", "config": config, "tasks": {"cartpole-balance": task}}
    path.write_text(json.dumps(content))
    return path


def test_a_file_from_before_the_engines_goes_on_as_eager(tmp_path, checkpoint_file):
    path, today = tmp_path / "old.json", _planner_config(checkpoint_file)
    old = {name: part for name, part in today.items() if name != "engine"}
    old["budget"] = {k: v for k, v in today["budget"].items() if k != "replan_every"}
    for further in ({}, {"engine": "eager", "precision": "fp32"}):
        assert EvaluationFile(_write_old(path, old | further), today).tasks
    with pytest.raises(ResultError, match=r"existing run has budget\."):
        EvaluationFile(path, _planner_config(checkpoint_file, replan_every=2))
    with pytest.raises(ResultError, match=r"resume with --engine eager"):
        EvaluationFile(path, _planner_config(checkpoint_file, fast_engine))


def test_episodes_are_added_to_a_file_from_before_the_seconds(tmp_path):
    config = {"tasks": ["cartpole-balance"], "episodes": 2}
    path = _write_old(tmp_path / "old.json", config | {"episodes": 1})
    file = EvaluationFile(path, config)
    assert (file.finished, file.measured("cartpole-balance")) == (0, 1)
    assert file.measured("cup-catch") == 0
    file.add("cartpole-balance", {"returns": [3.0], "seeds": [1], "seconds": 1.2345})
    assert file.finished == 1
    assert json.loads(path.read_text())["tasks"]["cartpole-balance"] == {
        "returns": [1.0, 3.0],
        "seeds": [0, 1],
        "score": 0.2,
        "seconds": 1.23,
    }


def test_the_file_names_the_environments_of_own_tasks_alone():
    own = Task("Point-v0", 2, 1, env="module:Point-v0")
    config, policy = _config(Path("unused.json")), open_source("random")
    both = _identity(config, policy, TaskTable((own, MT30["cup-catch"])))
    assert both["environments"] == {"Point-v0": "module:Point-v0"}
    assert "environments" not in _identity(config, policy, MT30)


@pytest.mark.parametrize(
    ("engine", "precision"),
    [("native", "int8"), ("openvino", "fp32"), ("compile", "fp32"), ("onnxruntime", "int8")],
)
def test_files_of_engines_that_are_gone_are_read_and_not_gone_on_with(
    engine, precision, tmp_path, checkpoint_file
):
    today = _planner_config(checkpoint_file)
    path = tmp_path / "old.json"
    _write_old(path, today | {"engine": engine, "precision": precision})
    assert read_evaluation(path)["config"]["engine"] == engine
    assert compare(path, path).episodes == 1
    message = f"planned by the engine {engine} in {precision}, which no longer exists"
    with pytest.raises(ResultError, match=message):
        EvaluationFile(path, today)


def _content(record: str) -> str:
    return f'{{"kind": "evaluation", "config": {{}}, "tasks": {{"a": {record}}}}}'


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        '{"kind": "other"}',
        '{"kind": "evaluation"}',
        '{"kind": "evaluation", "tasks": [], "config": {}}',
        _content("1"),
        _content('{"returns": [], "seeds": []}'),
        _content('{"returns": [1], "seeds": []}'),
        _content('{"returns": [NaN], "seeds": [0]}'),
        _content('{"returns": ["1"], "seeds": [0]}'),
        _content('{"returns": [1], "seeds": [[0]]}'),
        "[" * 100_000,
        b"\xff\xfe\x00",
    ],
)
def test_damaged_files_are_refused_and_kept(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = path.read_bytes()
    with pytest.raises(ResultError) as caught:
        evaluate(_config(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    with pytest.raises(ResultError):
        compare(path, path)
    assert path.read_bytes() == before


def test_a_finished_result_of_one_checkpoint_can_be_asked_for(tmp_path):
    path = _write_old(tmp_path / "r.json", {"checkpoint": {"name": "agent", "sha256": "a"}})
    with pytest.raises(ResultError, match="is not complete"):
        read_finished(path, "a")
    _edit(path, lambda content: content.update(complete=True))
    assert read_finished(path, "a") == read_finished(path)
    with pytest.raises(ResultError, match=r"of another checkpoint \(agent\)"):
        read_finished(path, "b")


def test_a_missing_or_unwritable_file_is_refused(tmp_path):
    with pytest.raises(ResultError, match="cannot read"):
        read_evaluation(tmp_path / "none.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        evaluate(_config(tmp_path / "file" / "r.json", tasks="pendulum-swingup", episodes=1))
    with pytest.raises(ResultError, match="is a folder; name a file"):
        evaluate(_config(tmp_path))


def test_unknown_tasks_and_policies_are_refused_before_any_work(tmp_path, checkpoint_file):
    path = tmp_path / "r.json"
    with pytest.raises(UnknownTaskError, match="did you mean"):
        evaluate(_config(path, tasks="pendulum-swing"))
    with pytest.raises(UnknownTaskError, match="unknown task 'walker-walk'"):
        evaluate(_config(path, checkpoint=str(checkpoint_file), tasks="walker-walk"))
    with pytest.raises(CheckpointError, match="neither a file nor a bundled checkpoint"):
        evaluate(_config(path, checkpoint="randm"))
    with pytest.raises(InputError, match="unknown planner preset"):
        evaluate(_config(path, checkpoint=str(checkpoint_file), preset="tiny"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unchecked")
def test_an_agent_is_scored_on_all_of_its_tasks_by_default(tmp_path, checkpoint_file):
    config = _config(
        tmp_path / "r.json", checkpoint=str(checkpoint_file), tasks=None, mode="policy"
    )
    content = evaluate(replace(config, episodes=1))
    assert content["config"]["tasks"] == TASKS.split(",")
    assert content["score"]["ci95"] is None
    assert len(content["config"]["checkpoint"]["sha256"]) == 64


@pytest.mark.slow
def test_worker_processes_do_not_change_the_result(tmp_path, checkpoint_file):
    agent = _config(
        tmp_path / "a.json", checkpoint=str(checkpoint_file), mode="policy", noise=True
    )
    one = evaluate(agent)
    two = evaluate(replace(agent, output=tmp_path / "b.json", workers=2))
    assert _returns(one) == _returns(two)


X, Y = "walker-walk", "cup-catch"


def _result(path: Path, tasks: dict[str, dict[int, float]]) -> Path:
    records = {
        name: {"returns": list(values.values()), "seeds": list(values)}
        for name, values in tasks.items()
    }
    path.write_text(json.dumps({"kind": "evaluation", "config": {}, "tasks": records}))
    return path


def test_the_difference_is_b_minus_a_paired_on_task_and_seed(tmp_path):
    a = _result(tmp_path / "a.json", {X: {0: 100.0, 1: 300.0, 2: 900.0}, Y: {0: 50.0}})
    b = _result(tmp_path / "b.json", {Y: {0: 250.0}, X: {1: 340.0, 0: 120.0, 7: 0.0}})
    result = compare(a, b)
    assert result.per_task == pytest.approx({X: 3.0, Y: 20.0})
    assert result.difference.mean == pytest.approx(11.5)
    assert result.difference.ci95 is None
    assert result.episodes == 3
    assert compare(b, a).difference.mean == pytest.approx(-11.5)


def test_a_constant_difference_has_a_narrow_interval(tmp_path, rng):
    first = dict(enumerate(rng.uniform(0, 1000, 6).tolist()))
    second = {seed: value + 50 for seed, value in first.items()}
    a = _result(tmp_path / "a.json", {X: first})
    b = _result(tmp_path / "b.json", {X: second})
    assert compare(a, b).difference.ci95 == pytest.approx((5, 5))
    assert compare(a, a).difference.mean == 0


def test_a_share_is_on_the_scale_from_random_actions_to_a(tmp_path):
    a = _result(tmp_path / "a.json", {X: {0: 20.0, 1: 40.0}, Y: {0: -10.0, 1: -10.0}})
    b = _result(tmp_path / "b.json", {X: {0: 15.0, 1: 35.0}, Y: {0: -8.0, 1: -8.0}})
    random = _result(tmp_path / "random.json", {X: {5: 10.0}, Y: {5: -50.0}, "more": {5: 0.0}})
    result = compare(a, b, random)
    assert result.shares == pytest.approx({X: 75.0, Y: 105.0})
    assert result.share.mean == pytest.approx(90.0)
    assert result.share.ci95 == pytest.approx((90.0, 90.0))  # every episode lost as much
    assert compare(a, b).shares == {}
    assert compare(a, b).share is None


def test_references_that_make_no_scale_are_refused(tmp_path):
    a = _result(tmp_path / "a.json", {X: {0: 20.0}})
    with pytest.raises(ResultError, match=r"a\.json earns 20\.00 in .* random actions 20\.00"):
        compare(a, a, a)
    with pytest.raises(ResultError, match="has no episode of"):
        compare(a, a, _result(tmp_path / "other.json", {Y: {0: 1.0}}))


def test_files_that_cannot_be_paired_are_refused(tmp_path):
    a = _result(tmp_path / "a.json", {"x": {0: 1.0}, "y": {0: 1.0}})
    b = _result(tmp_path / "b.json", {"x": {0: 1.0}})
    with pytest.raises(ResultError, match=r"different tasks; only one of them has: \['y'\]"):
        compare(a, b)
    c = _result(tmp_path / "c.json", {"x": {5: 1.0}})
    with pytest.raises(ResultError, match="no episode seed of x is in both"):
        compare(b, c)


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, "policy"),
        ({"preset": "realtime"}, "planner"),
        ({"replan_every": 2}, "planner"),
        ({"engine": "eager"}, "planner"),
        ({"mode": "policy", "preset": "full"}, "policy"),
        ({"mode": "planner"}, "planner"),
    ],
)
def test_agents_plan_only_where_it_is_asked_for(options, mode):
    assert _config(Path("unused.json"), **options).chosen_mode == mode


def test_the_time_is_estimated_before_the_work_starts(tmp_path):
    shown: list[tuple[int, str]] = []

    class Shown(Silent):
        def update(self, done: int, total: int, text: str) -> None:
            shown.append((done, text))

    evaluate(_config(tmp_path / "r.json", tasks="pendulum-swingup"), Shown())
    assert shown[0][0] == 0
    assert re.search(
        r"processes: 1 \(as asked\), (less than a minute|about \d+ min)", shown[0][1]
    )
