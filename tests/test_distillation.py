"""Distillation as a whole: schedules, the update, runs and their resumption."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from tdmpc_opt.checkpoints.checkpoint import from_model
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.checkpoints.torch_files import StateFolder
from tdmpc_opt.cli import main
from tdmpc_opt.configs.training import TERMS, DistillWeights, LossWeights, Schedule, TrainConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.data.sampler import SliceSampler
from tdmpc_opt.errors import InputError, RunError
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.progress import Silent
from tdmpc_opt.schema import MT30
from tdmpc_opt.training import step
from tdmpc_opt.training.distillation import open_distillation
from tdmpc_opt.training.loop import train
from tdmpc_opt.training.step import Learner, build_learner, train_step

EXPERTS = Path(__file__).parents[1] / "experts"
TASKS = MT30.subset(["pendulum-swingup", "cartpole-balance"])
OFF = DistillWeights(reward_mse=Schedule(0.0))
CPU = torch.device("cpu")


def test_a_schedule_is_a_line_between_its_ends():
    schedule = Schedule(0.4, 0.1, 3)
    assert [schedule.at(update) for update in (0, 1, 2, 3, 1000)] == pytest.approx(
        [0.4, 0.3, 0.2, 0.1, 0.1]
    )
    assert (schedule.at(0), schedule.at(3)) == (0.4, 0.1)
    assert [Schedule(0.7).at(update) for update in (0, 9)] == [0.7, 0.7]


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("0.4", Schedule(0.4)),
        ("0", Schedule(0.0)),
        ("1e-3", Schedule(0.001)),
        ("0.4:0@10000", Schedule(0.4, 0.0, 10_000)),
        ("0:2.5@1", Schedule(0.0, 2.5, 1)),
    ],
)
def test_a_schedule_is_written_as_it_is_read(text, schedule):
    assert Schedule.parse(text) == schedule
    assert Schedule.parse(str(schedule)) == schedule


_NO_SCHEDULES = "", "x", "-0.1", "nan", "inf", "0.4:", "0.4:0", "0.4:0@", "0.4:0@0", "0.4@10"


@pytest.mark.parametrize("text", [*_NO_SCHEDULES, "0.4:0@-3", "0.4:-1@3", "0.4:0@1.5"])
def test_text_that_is_no_schedule_is_refused(text):
    with pytest.raises(InputError) as caught:
        Schedule.parse(text)
    assert "\n" not in str(caught.value)


def test_only_the_published_term_is_on_by_default():
    assert DistillWeights().at(0) == DistillWeights().at(10**9) == {"reward_mse": 0.4}
    assert OFF.at(0) == {}
    assert DistillWeights(latent=Schedule(0.0, 1.0, 5)).at(0) == {
        "reward_mse": 0.4,
        "latent": 0,
    }


@pytest.fixture(scope="module")
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture(scope="module")
def teacher_file(make_model, tmp_path_factory) -> Path:
    """A teacher that is not the student: wider, and of other weights."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    write_native(path, from_model(make_model(TASKS, seed=6, latent_dim=24, num_q=3)))
    return path


def _config(teacher: Path, terms: DistillWeights, **settings) -> TrainConfig:
    return TrainConfig(
        data=Path("unused"),
        output=Path("unused"),
        updates=1,
        teacher=str(teacher),
        terms=terms,
        **settings,
    )


def _learner(fabric: Fabric, student: WorldModel, config: TrainConfig):
    found = open_distillation(config, student, CPU)
    return build_learner(fabric, student, config, found)


def _sampler(dataset_dir: Path, model: WorldModel) -> SliceSampler:
    dataset = EpisodeDataset.open(dataset_dir)
    return SliceSampler([dataset], model.tasks, horizon=3, batch_size=32, seed=0)


def _step(learner: Learner, sampler: SliceSampler) -> dict[str, Tensor]:
    return train_step(learner, sampler.sample())


@pytest.mark.parametrize("name", TERMS)
def test_a_weight_counts_in_proportion(
    name, fabric, make_model, teacher_file, dataset_dir, monkeypatch
):
    """In the model's loss and, of the policy terms, in the gradient of the policy's own."""
    monkeypatch.setattr(step, "GRAD_CLIP", 1e9)  # clipped ones do not add up
    rows = []
    for weight in (0.0, 1.0, 2.0):
        weights = replace(OFF, **{name: Schedule(weight)})
        config = _config(teacher_file, weights)
        learner = _learner(fabric, make_model(TASKS), config)
        torch.manual_seed(1)  # dropout
        sampler = _sampler(dataset_dir, learner.model)
        row = _step(learner, sampler)
        policy = [p.grad.flatten() for p in learner.model.policy_head.parameters()]
        rows.append((row, torch.cat(policy)))
    (off, plain), (one, some), (two, more) = rows
    term = one[f"distill_{name}"]
    assert float(term) > 0
    torch.testing.assert_close(one["loss"] - off["loss"], term, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(two["loss"] - off["loss"], 2 * term, rtol=1e-3, atol=1e-4)
    assert {key for key in one if key.startswith("distill_")} == {f"distill_{name}"}
    assert float(two[f"weight_{name}"]) == 2
    assert f"distill_{name}" not in off
    if name.startswith("policy"):
        torch.testing.assert_close(more - plain, 2 * (some - plain), rtol=1e-2, atol=1e-4)
        assert (some - plain).abs().max() > 1e-3


def test_the_models_optimiser_owns_the_projection(
    fabric, make_model, teacher_file, dataset_dir, monkeypatch
):
    monkeypatch.setattr(step, "GRAD_CLIP", 1e-3)
    config = _config(teacher_file, replace(OFF, latent=Schedule(1.0)))
    learner = _learner(fabric, make_model(TASKS), config)
    projection = learner.projection
    assert projection.weight.shape == (24, 16)
    owned = [p for group in learner.model_optimizer.param_groups for p in group["params"]]
    policy = [p for group in learner.policy_optimizer.param_groups for p in group["params"]]
    for parameter in projection.parameters():
        assert sum(parameter is other for other in owned) == 1
        assert not any(parameter is other for other in policy)
    before = [parameter.detach().clone() for parameter in projection.parameters()]
    sampler = _sampler(dataset_dir, learner.model)
    row = _step(learner, sampler)
    for parameter, old in zip(projection.parameters(), before, strict=True):
        assert not torch.equal(parameter, old)
    clipped = torch.stack([p.grad.norm() for p in owned if p.grad is not None]).norm()
    assert float(row["grad_norm"]) > 1e-3
    assert float(clipped) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", TERMS)
def test_a_term_falls_when_it_is_trained_on(
    name, fabric, make_model, teacher_file, dataset_dir
):
    weights = replace(OFF, **{name: Schedule(1.0)})
    quiet = LossWeights(consistency=1.0, reward=0.0, value=0.0)
    config = _config(teacher_file, weights, lr=3e-3, weights=quiet, reward_steps="all")
    learner = _learner(fabric, make_model(TASKS), config)
    sampler = _sampler(dataset_dir, learner.model)
    curve = [float(_step(learner, sampler)[f"distill_{name}"]) for _ in range(40)]
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])


@pytest.mark.usefixtures("unchecked")
def test_the_loss_falls_within_50_steps(fabric, make_model, teacher_file, dataset_dir):
    config = _config(teacher_file, DistillWeights(), lr=1e-3)
    learner = _learner(fabric, make_model(TASKS, seed=4), config)
    sampler = _sampler(dataset_dir, learner.model)
    curves = [_step(learner, sampler) for _ in range(50)]
    for name in ("loss", "reward", "distill_reward_mse"):
        first, last = (
            sum(float(row[name]) for row in part) for part in (curves[:5], curves[-5:])
        )
        assert last < first, name


def test_a_projection_takes_nothing_from_the_random_streams(make_model, teacher_file):
    student = make_model(TASKS)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    weights = replace(OFF, latent=Schedule(1.0))
    first, second, other = (
        open_distillation(_config(teacher_file, weights, seed=seed), student, CPU).projection
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, other.weight)


ALL_SCHEDULED = DistillWeights(
    reward_mse=Schedule(0.4, 0.0, 4),
    reward_kl=Schedule(0.1),
    value_kl=Schedule(0.0, 0.1, 5),
    policy_mse=Schedule(1.0, 0.5, 3),
    policy_kl=Schedule(0.01),
    latent=Schedule(0.2, 0.3, 6),
)


@pytest.fixture
def run(dataset_dir, teacher_file, tmp_path) -> TrainConfig:
    return TrainConfig(
        data=dataset_dir,
        output=tmp_path / "whole" / "run",
        size="0.3",
        updates=6,
        batch_size=8,
        device="cpu",
        log_every=1,
        save_every=2,
        teacher=str(teacher_file),
        terms=ALL_SCHEDULED,
        reward_steps="all",
    )


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.pop("updates_per_second")
    return rows


def _state(folder: Path) -> dict:
    state = StateFolder(folder).newest(pytest.fail)
    assert state is not None
    return state


def _flat(value: object, name: str = "") -> dict[str, object]:
    """Lay a nest of states out as one level of names."""
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in pairs for k, v in _flat(part, f"{name}.{key}").items()}
    return {name: value}


def test_a_resumed_run_with_every_term_equals_an_uninterrupted_one_to_the_bit(run, tmp_path):
    whole = train(run)
    parts = replace(run, output=tmp_path / "parts" / "run")
    train(replace(parts, updates=3))
    torch.manual_seed(99)
    torch.rand(7)
    resumed = train(parts)
    assert whole.read_bytes() == resumed.read_bytes()
    assert _rows(run.output) == _rows(parts.output)
    before, after = _flat(_state(run.output)), _flat(_state(parts.output))
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = (
            torch.equal(value, after[name])
            if isinstance(value, Tensor)
            else value == after[name]
        )
        assert same, name
    assert before[".projection.weight"].shape == (24, 64)


def test_the_projection_stays_out_of_the_checkpoint(run):
    checkpoint = read_checkpoint(train(run))
    assert not [name for name in checkpoint.tensors if "projection" in name]
    assert checkpoint.config.latent_dim == 64


def test_the_curves_show_each_term_and_the_weight_in_force(run):
    train(run)
    rows = _rows(run.output)
    for name in TERMS:
        schedule = getattr(ALL_SCHEDULED, name)
        shown = [float(row[f"weight_{name}"]) for row in rows]
        assert shown == pytest.approx([schedule.at(update) for update in range(6)])
        assert all(float(row[f"distill_{name}"]) > 0 for row in rows)


def test_a_run_can_go_on_after_its_weights_are_zero(run):
    """Nobody is asked then, and the rows say so."""
    fading = replace(run, terms=DistillWeights(reward_mse=Schedule(0.4, 0.0, 3)), log_every=2)
    train(fading)
    rows = _rows(run.output)
    assert [row["update"] for row in rows] == ["2", "4", "6"]
    assert [float(row["weight_reward_mse"]) for row in rows] == pytest.approx(
        [(0.4 + 0.4 * 2 / 3) / 2, 0.4 / 3 / 2, 0.0]
    )
    assert [bool(row["distill_reward_mse"]) for row in rows] == [True, True, False]
    assert all(row["weight_latent"] == "" for row in rows)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"terms": replace(ALL_SCHEDULED, latent=Schedule(0.2))}, "terms"),
        ({"reward_steps": "first"}, "reward_steps"),
    ],
)
def test_a_run_with_other_terms_is_another_run(run, changes, key):
    train(replace(run, updates=1))
    with pytest.raises(RunError, match=rf"existing run has {key}[.=]"):
        train(replace(run, **changes))


def test_each_teacher_counts_by_its_content(run, make_model, tmp_path):
    """Experts of other tasks may come; those of the run's must stay as they are."""
    for name in TASKS.names:
        model = make_model(MT30.subset([name]), seed=1, task_dim=4)
        write_native(tmp_path / f"{name}.safetensors", from_model(model))
    experts = tmp_path / "experts"
    experts.mkdir()
    shutil.copy(EXPERTS / "cartpole-balance.safetensors", experts)
    taught = replace(
        run,
        updates=1,
        terms=DistillWeights(policy_mse=Schedule(1.0)),
        teacher=str(tmp_path / "pendulum-swingup.safetensors"),
        more_teachers=(str(tmp_path / "cartpole-balance.safetensors"),),
        policy_teacher=str(experts),
    )
    train(taught)
    text = (run.output / "config.json").read_text()
    record = json.loads(text)["config"]
    assert record["policy_teacher"]["name"] == "experts"
    assert record["more_teachers"][0]["name"] == "cartpole-balance.safetensors"
    assert str(tmp_path) not in text
    assert record["terms"] == {"reward_mse": "0.4", "policy_mse": "1.0"}
    shutil.copy(EXPERTS / "cup-catch.safetensors", experts)
    train(taught)
    early = EXPERTS / "early" / "cartpole-balance.safetensors"
    shutil.copy(early, experts / "cartpole-balance.safetensors")
    with pytest.raises(RunError, match="policy_teacher experts has changed since"):
        train(taught)


def test_the_command_line_sets_schedules_and_teachers(run, capsys):
    arguments = [
        "train",
        "--data",
        run.data,
        "--output",
        run.output,
        "--teacher",
        run.teacher,
    ]
    arguments += ["--size", "0.3", "--updates", 2, "--batch-size", 8, "--device", "cpu"]
    arguments += ["--terms.reward-mse", "0", "--terms.policy-mse", "2:1@10", "--log-every", 1]
    arguments += [
        "--policy-teacher",
        EXPERTS,
    ]
    assert main([str(word) for word in arguments]) == 0
    rows = _rows(run.output)
    assert [float(row["weight_policy_mse"]) for row in rows] == pytest.approx([2.0, 1.9])
    assert all(row["distill_reward_mse"] == "" for row in rows)


GUIDE = (Path(__file__).parents[1] / "docs" / "distillation.md").read_text()


@pytest.mark.parametrize("block", GUIDE.split("```sh\n")[1:])
def test_the_commands_of_the_guide_run(block, run, make_model, tmp_path, monkeypatch):
    """As they stand, but for the budget."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run.data, "data")
    (tmp_path / "experts").symlink_to(EXPERTS)
    names = {"teacher.pt": TASKS, "walkers.safetensors": MT30.subset(["cartpole-balance"])}
    names["pendulums.safetensors"] = MT30.subset(["pendulum-swingup"])
    for name, tasks in names.items():
        write_native(tmp_path / name, from_model(make_model(tasks)))
    words = block.split("```")[0].replace("\\\n", " ").split()[1:]
    words[words.index("--updates") + 1] = "1"
    small = ["--size", "0.3", "--batch-size", "8", "--device", "cpu", "--log-every", "1"]
    assert main([*words, *small]) == 0
    row = _rows(Path("runs/student"))[0]
    for option, weight in re.findall(r"--terms\.(\S+) ([\d.]+)", block):
        assert float(row["weight_" + option.replace("-", "_")]) == float(weight)


class _Warned(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, text: str) -> None:
        self.texts.append(text)


def _damaged(teacher_file: Path, path: Path, part: str, change: float) -> str:
    """Write the teacher with a last bias that moves what a head tells towards the last bin."""
    checkpoint = read_checkpoint(teacher_file)
    tensors = dict(checkpoint.tensors)
    name = max(name for name in tensors if name.startswith(part) and name.endswith("bias"))
    tensors[name] = tensors[name].clone()
    tensors[name][..., -1] += change
    write_native(path, replace(checkpoint, tensors=tensors))
    return str(path)


@pytest.mark.parametrize(
    ("part", "term", "message"),
    [
        ("reward_head", "reward_mse", "teacher's rewards differ from the data's by a factor"),
        ("reward_head", "reward_kl", "teacher's rewards differ from the data's by a factor"),
        ("q_ensemble", "value_kl", "teacher's values are above what the data allows"),
    ],
)
def test_a_damaged_teacher_is_refused_before_training(
    run, teacher_file, tmp_path, part, term, message
):
    terms = replace(OFF, **{term: Schedule(1.0)})
    teacher = _damaged(teacher_file, tmp_path / "damaged.safetensors", part, 100.0)
    with pytest.raises(InputError, match=message):
        train(replace(run, teacher=teacher, terms=terms))
    assert not (run.output / "model.safetensors").exists()


def test_an_unlikely_teacher_is_warned_of_and_a_likely_one_is_not(
    run, teacher_file, tmp_path, make_model
):
    told = _Warned()
    run = replace(run, terms=replace(OFF, reward_mse=Schedule(1.0)), updates=1)
    train(run, told)
    assert told.texts == []
    path = tmp_path / "unlikely.safetensors"
    train(
        replace(
            run,
            output=tmp_path / "other",
            teacher=_damaged(teacher_file, path, "reward_head", 2.4),
        ),
        told,
    )
    assert len(told.texts) == 1
    assert "the teacher's rewards differ from the data's by a factor of" in told.texts[0]
