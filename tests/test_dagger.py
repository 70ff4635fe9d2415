import csv
import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import config as jaxtyping_config
from torch import Tensor

from tdmpc_opt.agents.agent import load_agent
from tdmpc_opt.agents.collect import collect
from tdmpc_opt.agents.expert import ExpertNetwork, expert_path
from tdmpc_opt.checkpoints.checkpoint import from_model
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.checkpoints.torch_files import StateFolder
from tdmpc_opt.configs.data import CollectConfig
from tdmpc_opt.configs.training import DaggerConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.errors import (
    CheckpointError,
    DataError,
    InputError,
    RunError,
    UnknownTaskError,
)
from tdmpc_opt.files import sha256
from tdmpc_opt.progress import Silent
from tdmpc_opt.schema import MT30
from tdmpc_opt.training import dagger as module
from tdmpc_opt.training.dagger import Round, dagger

EXPERTS = Path(__file__).parents[1] / "experts"
TASKS = ("cartpole-balance", "pendulum-spin")


@pytest.fixture(scope="module", autouse=True)
def _unchecked():
    """Whole episodes crawl under the annotation checks."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def student(make_model, tmp_path_factory) -> Path:
    """A tiny untrained student of two tasks that have committed experts."""
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    write_native(path, from_model(make_model(MT30.subset(TASKS))))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """One episode of each expert. Read it, do not change it."""
    path = tmp_path_factory.mktemp("base") / "base"
    collect(
        CollectConfig(
            policy=str(EXPERTS), tasks=",".join(TASKS), episodes=1, output=path, workers=1
        )
    )
    return path


def _config(base: Path, student: Path, output: Path, **changes: object) -> DaggerConfig:
    config = DaggerConfig(
        data=base,
        start=str(student),
        teacher=str(EXPERTS),
        rounds=2,
        updates=4,
        episodes=1,
        noise=0.1,
        batch_size=8,
        device="cpu",
        log_every=1,
        save_every=3,
        workers=1,
        output=output,
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def whole(base, student, tmp_path_factory):
    """The config and the rows of two rounds that nothing interrupted. Read it only."""
    config = _config(base, student, tmp_path_factory.mktemp("whole") / "run")
    return config, dagger(config)


@pytest.fixture
def config(base, student, tmp_path) -> DaggerConfig:
    return _config(base, student, tmp_path / "run")


@pytest.fixture
def short(config) -> DaggerConfig:
    """One round of one task."""
    return replace(config, rounds=1, tasks="pendulum-spin")


def _state(folder: Path) -> dict:
    state = StateFolder(folder).newest(pytest.fail)
    assert state is not None
    return state


def _same(a: object, b: object) -> bool:
    """Whether two nests of tensors and plain values are equal to the bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.memmap")}


class Dies(Silent):
    """Stands in for a kill: raises at the first report of a stage with so much done."""

    def __init__(self, stage: str, done: int) -> None:
        self._stage, self._done = stage, done

    def update(self, done: int, total: int, text: str) -> None:
        if text.startswith(self._stage) and done >= self._done:
            raise RuntimeError("as if killed")


def test_each_round_the_student_drives_and_the_expert_labels(whole, student):
    config, rounds = whole
    assert [(row.round, row.updates, row.episodes) for row in rounds] == [(1, 4, 2), (2, 8, 4)]
    dataset = EpisodeDataset.open(config.on_policy)
    dataset.check()
    assert len(dataset) == 4
    drivers = {2_000_000: student, 2_000_001: config.output / "students/round-1.safetensors"}
    assert {shard.seeds for shard in dataset.shards} == {(seed,) for seed in drivers}
    for shard in dataset.shards:
        assert shard.source["policy"]["sha256"] == sha256(drivers[shard.seeds[0]])
        assert shard.source["label"]["policy"]["name"] == "experts"
        expert = ExpertNetwork.load(expert_path(EXPERTS, shard.task))
        (episode,) = dataset.episodes(shard)
        clean = expert.mean(episode.obs[:-1])
        np.testing.assert_allclose(episode.label[1:], clean, atol=1e-5)
        row = rounds[shard.seeds[0] - 2_000_000]
        assert row.returns[shard.task] == pytest.approx(episode.total_reward)


def test_a_correction_leaves_a_run_its_students_and_what_it_was(whole, base):
    config, rounds = whole
    assert _state(config.output)["update"] == 8
    first, last = (config.output / f"students/round-{k}.safetensors" for k in (1, 2))
    assert last.read_bytes() == (config.output / "model.safetensors").read_bytes()
    assert read_checkpoint(first).extra["updates"] == "4"
    assert first.read_bytes() != last.read_bytes()
    content = json.loads((config.output / "rounds.json").read_text())
    assert [Round(**row) for row in content["rounds"]] == rounds
    assert str(base.parent) not in (config.output / "rounds.json").read_text()
    assert len(EpisodeDataset.open(base)) == 2


def test_a_correction_that_is_killed_again_and_again_comes_to_the_same_bits(
    config, whole, monkeypatch
):
    """And one that is asked for more rounds when those before are done."""

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    first = replace(config, rounds=1)
    for asked, stage, done in (
        (first, "round 1 of 1, collect", 1),  # one task of two
        (first, "round 1 of 1, collect", 2),
        (first, "round 1 of 1, train", 2),  # nothing saved yet
        (first, "round 1 of 1, train", 4),  # the last update, saved one update ago
        (first, None, 0),
        (config, "round 2 of 2, collect", 0),
        (config, "round 2 of 2, train", 7),
    ):
        if stage is None:
            assert dagger(asked) == whole[1][:1]
            continue
        with pytest.raises(RuntimeError, match="as if killed"):
            dagger(asked, Dies(stage, done))
        torch.manual_seed(99)  # what happened in between must not matter
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "copyfile", full)
        with pytest.raises(RunError, match=r"round-2\.safetensors: No space left"):
            dagger(config)
    expected, rows = whole
    assert dagger(config) == rows
    assert _same(_state(config.output), _state(expected.output))
    assert _bytes(config.output) == _bytes(expected.output)
    for name in ("model.safetensors", "students/round-1.safetensors"):
        assert (config.output / name).read_bytes() == (expected.output / name).read_bytes()


def test_finished_rounds_are_left_alone(short):
    rounds = dagger(short)
    times = {path: path.stat().st_mtime_ns for path in short.output.rglob("*.safetensors")}
    assert dagger(short) == rounds
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_the_student_drives_by_planning_as_well_and_the_expert_labels(short, student):
    rows = dagger(replace(short, planner_episodes=2))
    data = EpisodeDataset.open(short.on_policy)
    by_mode = {shard.source["mode"]: shard for shard in data.shards}
    assert {mode: shard.episodes for mode, shard in by_mode.items()} == {
        "policy": 1,
        "planner": 2,
    }
    planned = by_mode["planner"]
    assert planned.source["preset"] == "realtime"
    assert planned.source["label"]["policy"] == by_mode["policy"].source["label"]["policy"]
    assert planned.source["seed"] != by_mode["policy"].source["seed"]
    assert rows[0].episodes == 3
    assert rows[0].returns == {
        "pendulum-spin": next(iter(data.episodes(by_mode["policy"]))).total_reward
    }
    with pytest.raises(RunError, match="planner_episodes"):
        dagger(short)


def test_what_is_labelled_is_learned(short, student):
    def distance(path: Path) -> float:
        agent = load_agent(path, mode="policy")
        action = agent.act(episode.obs[:-1], "pendulum-spin")
        return float(((action - episode.label[1:]) ** 2).mean())

    dagger(replace(short, updates=60, lr=3e-3, on_policy_share=0.5))
    dataset = EpisodeDataset.open(short.on_policy)
    assert dataset.task_names == ("pendulum-spin",)
    (episode,) = dataset.episodes(dataset.shards[0])
    assert distance(short.output / "model.safetensors") < 0.5 * distance(student)


@pytest.mark.parametrize("label", [None, str(EXPERTS)])
def test_a_checkpoint_labels_and_is_distilled_from(short, make_model, tmp_path, label):
    teacher = tmp_path / "teacher.safetensors"
    model = make_model(MT30.subset([*TASKS, "cup-catch"]), seed=5)
    write_native(teacher, from_model(model))
    dagger(replace(short, teacher=str(teacher), label=label))
    with (short.output / "metrics.csv").open(newline="") as file:
        assert all(float(row["distill_reward_mse"]) > 0 for row in csv.DictReader(file))
    source = EpisodeDataset.open(short.on_policy).shards[0].source["label"]
    assert source["policy"]["name"] == ("experts" if label else "teacher.safetensors")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": Path("nowhere")}, DataError, "no dataset at nowhere"),
        ({"start": "nowhere"}, CheckpointError, "nowhere is neither a file"),
        ({"start": str(EXPERTS)}, CheckpointError, "is a folder; name the checkpoint file"),
        ({"teacher": "nowhere"}, CheckpointError, "nowhere is neither a file"),
        ({"teacher": "random"}, InputError, "random actions are nothing to imitate"),
        ({"tasks": "walker-walk"}, UnknownTaskError, "unknown task 'walker-walk'"),
        ({"horizon": 501}, DataError, "does not fit into the 500 steps"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    config, changes, error, message
):
    with pytest.raises(error, match=message) as caught:
        dagger(replace(config, **changes))
    assert "\n" not in str(caught.value)
    assert not config.output.exists()


def test_teachers_and_data_that_do_not_know_the_tasks_are_refused(
    config, make_model, checkpoint_file, dataset_dir, tmp_path
):
    """The tiny agent knows cartpole-balance, but pendulum-swingup instead of pendulum-spin."""
    for changes in ({"teacher": str(checkpoint_file)}, {"label": str(checkpoint_file)}):
        with pytest.raises(UnknownTaskError, match="unknown task 'pendulum-spin'"):
            dagger(replace(config, **changes))
    one = replace(config, teacher=str(checkpoint_file), tasks="cartpole-balance")
    with pytest.raises(UnknownTaskError, match="unknown task 'pendulum-spin'"):
        dagger(one)
    with pytest.raises(DataError, match="pendulum-swingup, which the model does not know"):
        dagger(replace(config, data=(config.data, dataset_dir)))
    folder = tmp_path / "experts"
    folder.mkdir()
    shutil.copy(expert_path(EXPERTS, TASKS[0]), folder)
    with pytest.raises(UnknownTaskError, match="no expert for pendulum-spin; train it with"):
        dagger(replace(config, teacher=str(folder)))
    assert not config.output.exists()


def test_a_folder_of_another_correction_is_refused_and_kept(short):
    with pytest.raises(RuntimeError):
        dagger(short, Dies("round 1 of 1, collect", 1))
    before = _bytes(short.output)
    for key, value in {
        "episodes": 2,
        "noise": 0.2,
        "updates": 5,
        "tasks": "cartpole-balance",
        "label": str(EXPERTS),
        "lr": 1e-4,
    }.items():
        with pytest.raises(RunError, match=rf"existing run has {key}[.=]"):
            dagger(replace(short, **{key: value}))
    assert _bytes(short.output) == before


def test_a_damaged_record_or_a_lost_state_is_refused(short):
    dagger(short)
    (short.output / "states").rename(short.output / "gone")
    with pytest.raises(RunError, match="has lost its states"):
        dagger(replace(short, rounds=2))
    (short.output / "rounds.json").write_text("{")
    with pytest.raises(RunError, match=r"rounds\.json is damaged"):
        dagger(short)


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 0},
        {"episodes": 0},
        {"noise": -0.1},
        {"planner_episodes": -1},
    ],
)
def test_counts_that_cannot_be_run_are_refused(config, changes):
    with pytest.raises(InputError, match=r"must be at least [01]"):
        replace(config, **changes)
    with pytest.raises(InputError, match="`on_policy_share` is from 0 to 1"):
        replace(config, on_policy_share=1.5)
    with pytest.raises(InputError, match="2 rounds make 8 updates, but"):
        replace(config, lr_zero_at=7)
