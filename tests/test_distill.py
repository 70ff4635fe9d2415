import json
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from public_layouts import layout_c

from tdmpc_opt.agents.own import Assigned, write_assignment
from tdmpc_opt.agents.sources import open_source
from tdmpc_opt.checkpoints.checkpoint import from_model
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.cli import main
from tdmpc_opt.configs.deploy import ExportConfig
from tdmpc_opt.configs.pipeline import DistillConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.errors import CheckpointError, InputError, UnknownTaskError
from tdmpc_opt.export.export import export
from tdmpc_opt.files import sha256
from tdmpc_opt.pipeline import distill as stages
from tdmpc_opt.pipeline import plan as planning
from tdmpc_opt.pipeline.distill import distill
from tdmpc_opt.pipeline.plan import identities, open_teachers, plan
from tdmpc_opt.planning.presets import find_preset
from tdmpc_opt.progress import Silent
from tdmpc_opt.schema import MT30, TaskTable
from tdmpc_opt.tasks import choose_tasks

pytest.importorskip("dm_control")
pytest.importorskip("onnxruntime")

POINT = "own_envs:Point-v0"
FILES = ("model.safetensors", "README.md", "work/corrected/students/round-1.safetensors")


def _config(output: Path, **changes) -> DistillConfig:
    values = {"teachers": ("own_policies:centre",), "tasks": POINT, "size": "0.3"}
    values |= {"updates": 20, "workers": 1, "device": "cpu", "output": output}
    return DistillConfig(**values | changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distilled") / "student"
    distill(_config(folder))
    return folder


def test_a_policy_of_the_users_code_becomes_a_scored_student(whole):
    student = distill(_config(whole))  # all is done: the same again
    content = json.loads((whole / "results/student.json").read_text())
    assert content["complete"]
    assert content["tasks"]["Point-v0"]["seeds"] == list(range(10_000, 10_010))
    returns = content["tasks"]["Point-v0"]["returns"]
    assert student.policy.mean == pytest.approx(np.mean(returns))  # not on MT30's scale
    assert student.lost.difference.mean == pytest.approx(
        student.policy.mean - student.teacher.mean
    )
    card = (whole / "README.md").read_text()
    assert f"| Point-v0 | {student.teacher.mean:.2f} | {student.policy.mean:.2f} |" in card
    assert "student less teacher" in card
    assert "The numbers are mean returns." in card
    assert (whole / "report.html").read_text().startswith("<!doctype html>")
    facts = read_checkpoint(whole).extra
    assert [each["name"] for each in json.loads(facts["teachers"])] == ["own_policies:centre"]
    preset = find_preset("realtime", facts)  # whose plans stay near the policy
    assert (preset.budget.prior_penalty, preset.budget.prior_hold) == (0.3, 300.0)
    data = EpisodeDataset.open(whole / "work/data")
    episode = next(data.episodes(next(s for s in data.shards if "noise0.5" in s.name)))
    assert np.abs(episode.label[1:] - np.clip(-2 * episode.obs[:-1, :1], -1, 1)).max() < 1e-6
    assert np.abs(episode.label[1:] - episode.action[1:]).max() > 0.1


@pytest.mark.slow
def test_a_student_of_a_task_whose_episodes_end_foresees_ends(tmp_path):
    folder = tmp_path / "student"
    distill(
        _config(folder, teachers=("own_policies:still",), tasks="own_envs:Fall-v0", updates=4)
    )
    data = EpisodeDataset.open(folder / "work/data")
    rows = [data.rows_of(shard).tolist() for shard in data.shards]
    assert data.episodic
    assert min(min(rows)) < 9
    config = json.loads((folder / "config.json").read_text())
    assert config["model"]["episodic"]
    assert read_checkpoint(folder).config.episodic
    assert (folder / "planner.onnx").exists()


def test_an_interrupted_distillation_goes_on_to_the_same_files(whole, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    folder = tmp_path / "student"
    for stage in ("collect", "train", "dagger", "export", "evaluate", "save_folder"):
        with monkeypatch.context() as patch:
            patch.setattr(stages, stage, interrupt)
            with pytest.raises(KeyboardInterrupt):
                distill(_config(folder))
    distill(_config(folder))
    for name in FILES:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    # Exported files differ in the latency that they state, and in no action.
    for name in ("teacher", "student", "student-int8"):
        tasks = [
            json.loads((path / f"results/{name}.json").read_text())["tasks"]["Point-v0"]
            for path in (folder, whole)
        ]
        assert tasks[0]["returns"] == tasks[1]["returns"]


class _Reports(Silent):
    def __init__(self) -> None:
        self.lines: list[tuple[int, int, str]] = []

    def update(self, done: int, total: int, text: str) -> None:
        self.lines.append((done, total, text))


def test_reports_name_their_step_and_what_they_count(whole):
    reports = _Reports()
    distill(_config(whole), reports)  # all is done: a report a stage
    steps = [re.match(r"step (\d) of 6, (\w+)", text) for _, _, text in reports.lines]
    found = list(dict.fromkeys((step[1], step[2]) for step in steps))
    assert found == [("2", "collect"), ("3", "train"), ("4", "correct"), ("6", "score")]
    assert any("(tasks of student)" in text for _, _, text in reports.lines)


def test_a_plan_reports_what_it_measures_and_is_short_for_little_work(tmp_path):
    reports = _Reports()
    text = str(plan(_config(tmp_path), reports))
    assert [line[:2] for line in reports.lines] == [(0, 2), (1, 2)]
    assert all(text.startswith("measure (speeds): ") for _, _, text in reports.lines)
    assert text.startswith("1 task; ")
    assert " in 1 on-policy round\n" in text
    assert re.search(r"about [\d.]+ min on this machine", text)
    assert "about 2.5 h on" in str(replace(plan(_config(tmp_path)), hours=2.5))


def test_a_teacher_whose_rewards_are_not_the_datas_is_refused(make_model, tmp_path):
    model = make_model(choose_tasks(POINT), task_dim=0)
    with torch.no_grad():
        model.reward_head[-1].bias[-1] += 100  # foresees the largest reward everywhere
    path = tmp_path / "broken.safetensors"
    write_native(path, from_model(model))
    with pytest.raises(InputError, match="teacher's rewards differ from the data's"):
        distill(_config(tmp_path / "student", teachers=(str(path),), updates=2))
    assert not (tmp_path / "student/work/trained").exists()


def test_another_budget_or_teacher_is_another_distillation(whole, capsys):
    words = ["distill", "own_policies:centre", "--tasks", POINT, "--size", "0.3"]
    words += ["--workers", "1", "--output", str(whole)]
    assert main([*words, "--updates", "21"]) == 1
    assert "belongs to another run: existing run has updates=20" in capsys.readouterr().err
    words[1] = "own_policies:still"
    assert main([*words, "--updates", "20"]) == 1
    assert "belongs to another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ("own_policies:wide", r"returned actions of shape \[1, 2\]"),
        ("own_policies:strong", "NaN or outside"),
        ("own_policies:failing", "raised KeyError in act"),
        ("own_policies:nothing", "without a method act"),
        ("own_policies:number", "has no function number"),
        ("own_policies:missing", "has no function missing"),
        ("no_such_module:make", "cannot import no_such_module"),
        ("random", "nothing to imitate"),
        ("no-such-file.pt", "no-such-file.pt"),
    ],
)
def test_teachers_that_cannot_teach_are_refused_in_one_line(teacher, said, tmp_path, capsys):
    output = tmp_path / "student"
    words = ["distill", teacher, "--tasks", POINT, "--updates", "2", "--output", str(output)]
    assert main(words) == 1
    error = capsys.readouterr().err
    last = error.strip().splitlines()[-1]
    assert last.startswith("tdmpc-opt: ")
    assert re.search(said, last)
    assert not (output / "work/data").exists()


def test_two_teachers_of_one_name_are_both_stated(make_model, tmp_path):
    names, files = ("pendulum-swingup", "cartpole-balance"), []
    for seed, name in enumerate(names):
        files.append(tmp_path / name / "teacher.safetensors")
        write_native(files[-1], from_model(make_model(MT30.subset([name]), seed=seed)))
    config = _config(tmp_path / "out", teachers=(*map(str, files),), tasks=",".join(names))
    found = identities(open_teachers(config))
    expected = [{"name": path.name, "sha256": sha256(path)} for path in files]
    assert found == expected
    assert expected[0] != expected[1]


def test_budgets_that_cannot_be_spent_are_refused(tmp_path):
    for changes in ({"hours": 1.0}, {"updates": None, "hours": 0.0}, {"updates": 0}):
        with pytest.raises(InputError):
            _config(tmp_path, **changes)
    with pytest.raises(InputError, match="too short"):
        plan(_config(tmp_path, updates=None, hours=1e-4))
    with pytest.raises(InputError, match="does not name its tasks"):
        plan(_config(tmp_path, tasks=None))
    with pytest.raises(InputError, match="own_policies:still is not used"):
        plan(_config(tmp_path, teachers=("own_policies:centre", "own_policies:still")))


def test_the_updates_of_a_plan_fill_the_hours(tmp_path):
    small, large = (
        plan(_config(tmp_path / str(hours), updates=None, hours=hours)) for hours in (0.1, 0.4)
    )
    assert 0.05 < small.hours <= 0.1
    assert large.updates > 2 * small.updates
    assert large.rounds * large.round_updates <= large.updates + 1


def test_planning_is_left_out_where_it_costs_more_than_all_else(tmp_path, monkeypatch):
    config = _config(tmp_path / "cheap", teachers=("mt30-1m",), tasks="cartpole-balance")
    seconds = {"policy": 1e-3, "planner": 1e-3}
    monkeypatch.setattr(
        planning, "seconds_per_step", lambda sources, *_, **__: seconds[sources[0].mode]
    )
    assert plan(config).planned == ("cartpole-balance",)
    seconds["planner"] = 23.0
    config = replace(config, output=tmp_path / "dear")
    dear = plan(config)
    assert dear.planned == ()
    assert "no labels by planning (23 s a state)" in str(dear)


def test_slow_plans_label_fewer_episodes(tmp_path, monkeypatch):
    seconds = {"policy": 1e-3, "planner": 1e-3}
    monkeypatch.setattr(
        planning, "seconds_per_step", lambda sources, *_, **__: seconds[sources[0].mode]
    )
    monkeypatch.setattr(planning, "_measure_student", lambda *_: (0.01, 1e-3, 1_000_000))
    config = _config(
        tmp_path / "fast", teachers=("mt30-1m",), tasks="cartpole-balance", updates=50_000
    )
    fast = plan(config)
    assert fast.planned_episodes == fast.episodes
    seconds["planner"] = 0.01
    slow = plan(replace(config, output=tmp_path / "slow"))
    assert slow.planned == ("cartpole-balance",)
    assert slow.episodes == fast.episodes
    assert 0.1 < slow.planned_episodes / slow.episodes < 0.6
    assert 0.1 < slow.round_episodes / fast.round_episodes < 0.6
    # The policy may turn out better, and then labels all episodes; 30 score, 6 compare.
    most = 3 * slow.episodes + slow.rounds * slow.round_episodes + 30 + 6
    assert slow.environment_steps == most * 500
    seconds["planner"] = 0.2
    dear = plan(replace(config, output=tmp_path / "dear"))
    assert dear.planned == ()
    assert dear.round_episodes == fast.round_episodes
    # Plans take as long as all other work, which is what is left without them.
    assert 1.5 < slow.hours / dear.hours < 2.2


def test_tasks_that_plans_label_get_fewer_episodes(tmp_path, monkeypatch):
    tasks = ("cartpole-balance", "pendulum-swingup")
    config = _config(tmp_path, teachers=("mt30-1m",), tasks=",".join(tasks))
    decided = planning.Plan(tasks, tasks, 1e-3, 1, 1, 1, 9, 1, 0, 0.0, 0, planned_episodes=2)
    collected = []
    monkeypatch.setattr(
        stages, "collect", lambda config, _: collected.append((config.tasks, config.episodes))
    )
    monkeypatch.setattr(stages, "compare_teachers", lambda *_: None)
    teachers = planning.open_teachers(config)
    stages._Pipeline(config, decided, teachers, Silent())._collect(["pendulum-swingup"])
    assert collected == 3 * [("cartpole-balance", 9), ("pendulum-swingup", 2)]


def test_the_better_of_policy_and_planner_labels_each_task(tmp_path, monkeypatch):
    tasks = ("cartpole-balance", "pendulum-swingup", "own_envs:Point-v0")
    config = _config(
        tmp_path, teachers=("mt30-1m", "own_policies:centre"), tasks=",".join(tasks)
    )
    teachers = planning.open_teachers(config)
    decided = planning.Plan(tasks, tasks, 1e-3, 1, 1, 1, 1, 1, 0, 0.0, 0)

    def evaluate(config, progress):
        planned = "planner" in config.output.stem
        assert config.seed == 500_000
        returns = {"cartpole-balance": 905.0 if planned else 900.0}  # within the noise
        returns["pendulum-swingup"] = 800.0 if planned else 700.0
        returns["Point-v0"] = -5.0 if planned else -5.2  # on a scale of its own
        return {"tasks": {name: {"returns": [found]} for name, found in returns.items()}}

    monkeypatch.setattr(stages, "evaluate", evaluate)
    pipeline = stages._Pipeline(config, decided, teachers, Silent())
    assert pipeline._choose_labels() == ["pendulum-swingup", "own_envs:Point-v0"]
    labels = json.loads((tmp_path / "work/teachers.json").read_text())["tasks"]
    assert {name: found["mode"] for name, found in labels.items()} == {
        "cartpole-balance": "policy",
        "pendulum-swingup": "planner",
        "own_envs:Point-v0": "planner",
    }


@pytest.mark.slow
def test_the_bundled_student_teaches_a_smaller_one(tmp_path):
    config = _config(
        tmp_path, teachers=("mt30-1m",), tasks="pendulum-swingup,cartpole-balance", updates=20
    )
    student = distill(config)
    assert student.teacher.mean > 80
    assert set(student.lost.per_task) == {"pendulum-swingup", "cartpole-balance"}
    assert (tmp_path / "planner.onnx").is_file()
    assert distill(config) == student


def test_each_task_of_an_assignment_is_driven_by_its_policy(tmp_path):
    path = tmp_path / "policies.json"
    tasks = MT30.subset(["cartpole-balance", "pendulum-swingup"])
    first = {"cartpole-balance": Assigned("mt30-1m"), "pendulum-swingup": Assigned("plan")}
    write_assignment(path, first)
    source = open_source(str(path))
    assert source.tasks(None) == tasks
    before = source.identity(tasks)["sha256"]
    assigned, own = (
        each.load(tasks)("cartpole-balance", [(0,)], [])
        for each in (source, open_source("mt30-1m"))
    )
    obs = np.full((1, 5), 0.1, np.float32)
    assert np.array_equal(assigned(obs), own(obs))
    with pytest.raises(UnknownTaskError, match="no policy for walker-walk"):
        source.tasks("walker-walk")
    write_assignment(path, first | {"pendulum-swingup": Assigned("demo-teacher")})
    assert open_source(str(path)).identity(tasks)["sha256"] != before
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="does not assign policies"):
        open_source(str(path)).tasks(None)


def test_every_kind_of_teacher_opens(
    checkpoint_file, public_file, two_experts, make_model, tmp_path
):
    pendulum, cartpole = "pendulum-swingup", "cartpole-balance"
    alone = []
    for name in (cartpole, pendulum):  # public single-task files do not name their task
        tasks = MT30.subset([name])
        model = make_model(tasks, task_dim=0, num_bins=101, mlp_dim=32, enc_dim=32)
        alone.append(tmp_path / f"{name}.pt")
        torch.save({"model": layout_c(from_model(model).tensors)}, alone[-1])
    policy, own = tmp_path / "policy.onnx", tmp_path / "own.json"
    export(ExportConfig(checkpoint=str(checkpoint_file), policy_only=True, output=policy))
    write_assignment(own, {pendulum: Assigned("plan"), cartpole: Assigned("mt30-1m")})
    both = {pendulum, cartpole}
    for teachers, tasks, expected in (
        (["mt30-1m"], None, {*MT30.names}),
        ([checkpoint_file], None, both),
        ([public_file], cartpole, {cartpole}),
        (alone, f"{cartpole},{pendulum}", both),
        ([two_experts], None, {cartpole, "cup-catch"}),
        ([policy], None, both),
        (["plan"], pendulum, {pendulum}),
        (["own_policies:centre"], POINT, {POINT}),
        ([own], None, both),
        ([two_experts, checkpoint_file], None, {*both, "cup-catch"}),
        ([two_experts, checkpoint_file], f"{pendulum},cup-catch", {pendulum, "cup-catch"}),
    ):
        config = _config(tmp_path / "student", teachers=tuple(map(str, teachers)), tasks=tasks)
        assert planning.open_teachers(config).keys() == expected
    mixed = _config(tmp_path / "student", teachers=(str(two_experts), str(checkpoint_file)))
    found = planning.open_teachers(replace(mixed, tasks=None))
    assert found[cartpole][0].source == str(two_experts)
    assert found[pendulum][0].source == str(checkpoint_file)
    with pytest.raises(UnknownTaskError, match="no teacher has walker-walk"):
        planning.open_teachers(replace(mixed, tasks=f"{cartpole},{pendulum},walker-walk"))


SB3 = """
import numpy as np
from stable_baselines3 import PPO

class Saved:
    def __init__(self, path):
        self.model = PPO.load(path, device="cpu")

    def act(self, obs):
        actions = self.model.predict(obs, deterministic=True)[0]
        return 2 * (actions + 3) / 4 - 1  # from the environment's bounds to [-1, 1]

def make():
    return Saved("point.zip")
"""


def test_a_zip_of_stable_baselines_is_a_teacher(tmp_path, monkeypatch):
    library = pytest.importorskip("stable_baselines3")
    import gymnasium
    import own_envs  # noqa: F401

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    env = gymnasium.make("Point-v0", disable_env_checker=True)
    model = library.PPO("MlpPolicy", env, device="cpu", n_steps=16, batch_size=8)
    model.save("point.zip")
    (tmp_path / "sb3_teacher.py").write_text(SB3)
    words = ["collect", "--policy", "sb3_teacher:make", "--tasks", POINT, "--workers", "1"]
    assert main([*words, "--episodes", "2", "--output", "data"]) == 0
    data = EpisodeDataset.open(Path("data"))
    episode = next(data.episodes(data.shards[0]))
    wanted = model.predict(episode.obs[:-1], deterministic=True)[0]
    assert np.allclose(2 * (wanted + 3) / 4 - 1, episode.action[1:], atol=1e-5)


def test_the_time_of_measuring_is_not_an_action_of_the_student(tmp_path, monkeypatch):
    """Estimates once counted the seconds that the environment's measurement itself takes."""

    def slow(*_, **__):
        time.sleep(1)
        return 0.001

    monkeypatch.setattr(planning, "seconds_per_step", slow)
    tasks = TaskTable((MT30["cup-catch"],))
    _, action, _ = planning._measure_student(_config(tmp_path), tasks)
    assert 0.001 < action < 0.5
