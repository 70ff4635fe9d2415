"""What teachers said, kept on disk: the same targets, asked once, never mistaken for others."""

import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmpc_opt.checkpoints.checkpoint import from_model
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.configs import TERMS, DistillWeights, Schedule, TrainConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.data.sampler import SliceSampler
from tdmpc_opt.progress import Silent
from tdmpc_opt.schema import MT30
from tdmpc_opt.training.distillation import open_distillation
from tdmpc_opt.training.loop import train
from tdmpc_opt.training.teachers import TeacherCache

TASKS = MT30.subset(["pendulum-swingup", "cartpole-balance"])
CPU = torch.device("cpu")
ALL = DistillWeights(**dict.fromkeys(TERMS, Schedule(1.0)))
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def teacher_file(make_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    write_native(path, from_model(make_model(TASKS, seed=6, latent_dim=24, num_q=3)))
    return path


@pytest.fixture
def config(dataset_dir, teacher_file, tmp_path, unchecked) -> TrainConfig:
    return TrainConfig(
        data=dataset_dir,
        output=tmp_path / "run",
        size="0.3",
        updates=3,
        batch_size=16,
        teacher=str(teacher_file),
        terms=ALL,
        device="cpu",
        teacher_cache=tmp_path / "cache",
    )


def _cache(config: TrainConfig, student) -> tuple[TeacherCache, list[int]]:
    """Fill a cache, and return it with the number of times that the teachers were asked."""
    teachers = open_distillation(config, student, CPU).teachers
    asked: list[int] = []

    def counting(batch):
        asked.append(batch.obs.shape[1])
        return teachers(batch)

    cache = TeacherCache(config, [EpisodeDataset.open(config.data)], student.tasks)
    cache.fill(counting, CPU, Silent())
    return cache, asked


def _files(config: TrainConfig) -> dict[str, bytes]:
    root = config.teacher_cache
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def cut(dataset_dir, tmp_path) -> Path:
    """The same episodes, of different lengths in one shard."""
    whole = EpisodeDataset.open(dataset_dir)
    dataset = EpisodeDataset.create(tmp_path / "cut", whole.tasks)
    for shard in whole.shards:
        episodes = [
            replace(
                e, **{name: getattr(e, name)[:rows] for name in ("obs", "action", "reward")}
            )
            for e, rows in zip(whole.episodes(shard), (9, 40), strict=True)
        ]
        episodes = [replace(e, label=None, terminated=len(e.obs) == 9) for e in episodes]
        dataset.append_shard(shard.name, episodes, {})
    return dataset.path


@pytest.mark.parametrize(("steps", "ended"), [("first", False), ("all", False), ("all", True)])
def test_kept_targets_are_those_that_the_teachers_give(config, make_model, cut, steps, ended):
    config, student = replace(config, reward_steps=steps), make_model(TASKS)
    config = replace(config, data=cut) if ended else config
    cache, _ = _cache(config, student)
    dataset = EpisodeDataset.open(config.data)
    sampler = SliceSampler([dataset], TASKS, horizon=3, batch_size=32, seed=1)
    direct = open_distillation(replace(config, teacher_cache=None), student, CPU).teachers
    for _ in range(3):
        batch = sampler.sample()
        kept, given = cache(batch), direct(batch)
        for field in fields(given):
            expected = getattr(given, field.name)
            assert expected is not None, "every term is on"
            torch.testing.assert_close(
                getattr(kept, field.name), expected, atol=TOLERANCE, rtol=TOLERANCE
            )


def test_a_run_with_a_cache_learns_what_one_without_learns(config):
    path = train(replace(config, output=config.output / "with"))
    other = train(replace(config, output=config.output / "without", teacher_cache=None))
    ours, theirs = read_checkpoint(path), read_checkpoint(other)
    assert ours.extra["run"].replace("with", "") == theirs.extra["run"].replace("without", "")
    for name, tensor in ours.tensors.items():
        torch.testing.assert_close(tensor, theirs.tensors[name], atol=1e-4, rtol=1e-4)


def test_a_second_run_asks_nobody_and_other_terms_add_their_files(config, make_model):
    student = make_model(TASKS)
    few = replace(config, terms=DistillWeights())
    assert len(_cache(few, student)[1]) == 2, "once for each shard"
    kept = _files(few)
    assert {Path(name).name for name in kept} == {"reward.npy"}
    assert not _cache(few, student)[1]
    assert _cache(config, student)[1]
    more = _files(config)
    assert kept.items() <= more.items()
    assert len(more) == 12


def test_other_teachers_and_other_data_are_never_taken_for_these(
    config, make_model, tmp_path, dataset_dir
):
    student, few = make_model(TASKS), replace(config, terms=DistillWeights())
    _cache(few, student)
    other = tmp_path / Path(config.teacher).name  # the same name, other weights
    write_native(other, from_model(make_model(TASKS, seed=7, latent_dim=24, num_q=3)))
    assert len(_cache(replace(few, teacher=str(other)), student)[1]) == 2
    moved = tmp_path / "elsewhere"
    moved.symlink_to(dataset_dir)
    assert not _cache(replace(few, data=moved), student)[1], "the content counts, not the place"
    changed = tmp_path / "changed"
    shutil.copytree(dataset_dir, changed)
    for path in changed.rglob("action.memmap"):
        np.memmap(path, np.float32, "r+")[-1] = 0.5
    assert len(_cache(replace(few, data=changed), student)[1]) == 2


def test_a_filling_that_was_stopped_goes_on_and_damage_is_mended(config, make_model):
    student, few = make_model(TASKS), replace(config, terms=DistillWeights())
    _cache(few, student)
    whole = _files(few)
    first, second = sorted(few.teacher_cache.rglob("*.npy"))
    first.unlink()
    assert len(_cache(few, student)[1]) == 1
    second.write_bytes(second.read_bytes()[:-4])
    assert len(_cache(few, student)[1]) == 1
    assert _files(few) == whole
