"""The search of planner budgets, and the presets that come of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tdmpc_opt
from tdmpc_opt.agents.agent import Agent
from tdmpc_opt.checkpoints.checkpoint import from_model
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.cli import main
from tdmpc_opt.configs.measure import TUNING_SEED, EvaluateConfig, TuneConfig
from tdmpc_opt.errors import CheckpointError, InputError, ResultError
from tdmpc_opt.evaluation import tune as search
from tdmpc_opt.evaluation.evaluate import evaluate
from tdmpc_opt.evaluation.score import Score
from tdmpc_opt.evaluation.tune import Trial, budget_of, choose, cost_of, starts, tune
from tdmpc_opt.planning.presets import PRESETS, Preset, find_preset, storable, stored
from tdmpc_opt.schema import PlannerBudget

TASKS = "pendulum-swingup"


def _config(checkpoint: Path, output: Path, **changes: object) -> TuneConfig:
    settings = {"episodes": 2, "trials": 2, "max_samples": 40, "max_iterations": 1}
    settings |= {"score_full": False, "workers": 1, "tasks": TASKS}
    return TuneConfig(checkpoint=str(checkpoint), output=output, **(settings | changes))


def _trial(score: float, ms: float, **budget: Any) -> Trial:
    return Trial(0, PlannerBudget(**budget), Score(score, None), ms / 300, ms, on_front=True)


def test_the_first_budgets_are_cheap_and_every_one_samples_enough():
    first = [budget_of(parameters) for parameters in starts(512, 6)]
    work = [each.samples * each.iterations * each.horizon for each in first]
    assert work == sorted(work)
    for budget in first:
        assert budget.samples - budget.policy_samples >= 32
        assert budget.horizon >= 2
    assert starts(32, 1) == starts(512, 6)[:4]


def test_presets_are_the_best_within_their_time():
    trials = [_trial(10.0, 2.0), _trial(30.0, 9.0, horizon=2), _trial(40.0, 25.0, horizon=4)]
    trials += [_trial(50.0, 90.0, horizon=5)]
    presets = choose(trials, realtime_ms=10.0, balanced_ms=30.0)
    assert list(presets) == ["full", "balanced", "realtime", "policy"]
    assert presets["full"] == Preset()
    assert presets["realtime"].budget.horizon == 2
    assert presets["balanced"].budget.horizon == 4
    assert presets["policy"].mode == "policy"
    assert choose(trials[1:], 1.0, 1.0)["realtime"].budget.horizon == 2, "the fastest there is"


def test_full_keeps_as_close_to_the_policy_as_balanced_does():
    held = {"prior_penalty": 0.3, "prior_hold": 10.0, "mean_action": True}
    trials = [_trial(10.0, 2.0), _trial(30.0, 25.0, horizon=2, **held)]
    full = choose(trials, realtime_ms=10.0, balanced_ms=30.0)["full"].budget
    assert full == PlannerBudget(**held)


def test_stored_presets_are_chosen_by_name_and_others_stay(checkpoint_file, tmp_path):
    quick = PlannerBudget(
        samples=40, policy_samples=4, iterations=1, elites=4, mean_action=True
    )
    checkpoint = read_checkpoint(checkpoint_file)
    path = tmp_path / "tuned.safetensors"
    extra = checkpoint.extra | storable(
        {"realtime": Preset(budget=quick), "x": PRESETS["policy"]}
    )
    write_native(path, replace(checkpoint, extra=extra))
    assert tdmpc_opt.load_agent(path, preset="realtime").budget == quick
    assert tdmpc_opt.load_agent(path, preset="x").mode == "policy"
    assert tdmpc_opt.load_agent(path, preset="full").budget == PlannerBudget()
    assert tdmpc_opt.load_agent(path).budget == PlannerBudget()
    assert tdmpc_opt.load_agent(path, preset="realtime", mode="policy").mode == "policy"
    assert tdmpc_opt.load_agent(checkpoint_file, preset="policy").mode == "policy"
    with pytest.raises(
        InputError, match=r"unknown planner preset 'y'; known: published, full, .*, x"
    ):
        tdmpc_opt.load_agent(path, preset="y")


@pytest.mark.parametrize(
    "text", ["x", "[]", '{"a": 1}', '{"a": {"mode": "planner", "budget": {"samples": "s"}}}']
)
def test_presets_that_cannot_be_read_are_refused(text):
    with pytest.raises(CheckpointError, match="presets in the checkpoint cannot be read"):
        stored({"presets": text})


def test_evaluations_say_what_a_preset_stood_for(checkpoint_file, tmp_path, unchecked):
    config = EvaluateConfig(
        checkpoint=str(checkpoint_file),
        tasks=TASKS,
        episodes=1,
        preset="policy",
        output=tmp_path / "r.json",
        device="cpu",
        workers=1,
    )
    found = evaluate(config)["config"]
    assert (found["mode"], found["budget"]) == ("policy", None)


def test_built_in_presets_plan_enough_to_be_called_planning():
    for name in ("balanced", "realtime"):
        budget = find_preset(name).budget
        assert budget.samples - budget.policy_samples >= 32
        assert budget.horizon >= 2
        assert budget.iterations >= 1


def test_a_killed_search_goes_on_and_stores_presets(
    checkpoint_file, tmp_path, unchecked, monkeypatch
):
    output, calls = tmp_path / "search", []
    evaluate_task = search.evaluate_task

    def dies_at_the_second(work):
        calls.append(work)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate_task(work)

    monkeypatch.setattr(search, "evaluate_task", dies_at_the_second)
    config = _config(checkpoint_file, output, trials=4, episodes=1)
    with pytest.raises(KeyboardInterrupt):
        tune(config)
    tuned = tmp_path / "tuned.safetensors"
    content = tune(replace(config, store=tuned))
    first, killed, *waiting, again = (work.policy.preset for work in calls)
    assert killed == again, "what was killed is scored after what had been waiting"
    assert len(waiting) == 2
    assert killed not in (first, *waiting)
    assert {work.seed for work in calls} == {TUNING_SEED}
    assert len(content["trials"]) == 4
    assert content == json.loads((output / "tuning.json").read_text())
    costs = [trial["share"] for trial in content["trials"]]
    assert costs == sorted(costs)
    best = max(content["trials"], key=lambda trial: trial["score"]["mean"])
    assert best["on_front"]
    agent = tdmpc_opt.load_agent(tuned, preset="balanced")
    assert agent.budget == PlannerBudget(**content["presets"]["balanced"]["budget"])
    with pytest.raises(ResultError, match="existing run has episodes=1, requested episodes=2"):
        tune(replace(config, episodes=2))
    assert len(calls) == 5


def test_the_cost_of_plans_is_measured_in_own_tasks(make_model):
    from tdmpc_opt.tasks import choose_tasks

    tasks = choose_tasks("own_envs:Point-v0")
    small = PlannerBudget(samples=40, elites=8, iterations=1)
    agent = Agent(make_model(tasks, task_dim=0), budget=small)
    full = Agent(make_model(tasks, task_dim=0), budget=PlannerBudget())
    assert 0 < cost_of(agent, full, tasks.tasks[0])[0] < 1


def test_an_agent_that_cannot_plan_is_not_tuned(make_model, tmp_path, capsys):
    from tdmpc_opt.schema import MT30

    model = make_model(MT30.subset([TASKS]))
    model.keep_only({"policy_head"})
    path = tmp_path / "policy.safetensors"
    write_native(path, from_model(model))
    assert main(["tune-planner", str(path), "--output", str(tmp_path / "o")]) == 1
    assert "contains a policy alone and cannot plan" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_presets_are_stored_in_no_file_of_a_public_layout(public_file, tmp_path):
    path = tmp_path / "teacher.pt"
    path.write_bytes(public_file.read_bytes())
    with pytest.raises(InputError, match="would replace a file of another layout by one of"):
        tune(_config(path, tmp_path / "tuning", store=path))
    assert path.read_bytes() == public_file.read_bytes()


def test_presets_may_be_stored_in_a_model_folder(checkpoint_file, tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(checkpoint_file.read_bytes())
    tune(_config(folder, tmp_path / "tuning", trials=1, episodes=1, store=folder))
    assert {"realtime", "balanced"} <= stored(read_checkpoint(folder).extra).keys()
