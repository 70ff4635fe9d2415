"""Memory of importing, of training and of large teachers does not grow with the file."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from public_layouts import layout_a, layout_b, layout_c
from sampling_scale import Config, fresh, measure, memory, timed_import
from synthetic import EPISODE_BYTES, write_shard

from tdmpc_opt.checkpoints.checkpoint import build, expected_shapes
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.data.official_files import open_official
from tdmpc_opt.schema import MT30, model_config
from tdmpc_opt.training.teachers import WorldModelTeacher

_ON_THE_WAY = 128_000_000  # blocks that are read and not yet dropped by the system, in bytes
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def _write_random(layout: str, stored: str, path: Path) -> dict[str, Any]:
    """Write a 317M checkpoint of random weights; layout C is of a single task."""
    config, source = model_config("317", MT30), torch.Generator().manual_seed(0)
    if layout == "C":
        config = replace(config, task_dim=0, num_tasks=1)
    tensors = {
        name: torch.empty(shape).normal_(std=0.02, generator=source).to(DTYPES[stored])
        for name, shape in expected_shapes(config).items()
    }
    widths = [task.action_dim for task in MT30.tasks]
    layouts = {"A": layout_a, "B": lambda found: layout_b(found, widths), "C": layout_c}
    torch.save({"model": layouts[layout](tensors)}, path)
    return {}


def _load(path: Path, use: str, computes: str) -> dict[str, Any]:
    """Load a checkpoint as an agent or as a teacher of rewards."""
    torch.set_num_threads(1)
    before = memory()["peak_rss_bytes"]
    checkpoint, dtype = read_checkpoint(path, check_values=False), DTYPES[computes]
    if use == "agent":
        model = build(checkpoint, dtype=dtype)
    else:
        terms, cpu = frozenset({"reward_mse"}), torch.device("cpu")
        model = WorldModelTeacher(checkpoint, checkpoint.tasks, terms, cpu).model
    kept = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    peak = memory()["peak_rss_bytes"]
    return {"kept_bytes": kept, "before_bytes": before, "peak_bytes": peak}


def test_a_synthetic_shard_has_the_official_layout(tmp_path):
    path = tmp_path / "chunk_0.pt"
    assert write_shard(path, 100 * EPISODE_BYTES) == 100
    shard = open_official(path)
    assert (shard.tasks, shard.episodes, shard.length) == (MT30, 100, 501)
    assert set(shard.task_ids().tolist()) == set(range(30))


@pytest.mark.slow
def test_an_import_takes_no_more_memory_for_a_larger_file(tmp_path):
    peaks = []
    for size in (20_000_000, 600_000_000):
        path = tmp_path / f"{size}.pt"
        write_shard(path, size)
        peaks.append(fresh(timed_import, path, tmp_path / f"data-{size}")["peak_rss_bytes"])
        path.unlink()
    assert peaks[1] < peaks[0] + 64_000_000
    assert peaks[1] < 1_500_000_000


@pytest.mark.slow
@pytest.mark.parametrize("gigabytes", [0.2, 12.0])
def test_memory_of_training_does_not_know_the_size_of_the_data(tmp_path, gigabytes):
    if shutil.disk_usage(tmp_path).free < 3.5e9 * gigabytes:
        pytest.skip(f"needs {3.5 * gigabytes:.0f} GB on the disk")
    found = measure(Config(rounds=1, updates=8, batches=8), gigabytes, tmp_path)
    assert found["imports"][0]["peak_rss_bytes"] < 1_500_000_000
    for cache in ("cold", "warm"):
        assert found[f"train_{cache}"]["anonymous_peak_bytes"] < 2_000_000_000
    for sampling in ("uniform", "task", "return"):
        assert found[f"sample_{sampling}"]["anonymous_bytes"] < 1_000_000_000


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["A", "B", "C"])
@pytest.mark.parametrize("stored", ["fp32", "fp16"])
def test_a_317m_teacher_takes_little_more_memory_than_it_keeps(tmp_path, layout, stored):
    path = tmp_path / "teacher.pt"
    fresh(_write_random, layout, stored, path)
    for use, computes in (("agent", stored.replace("fp16", "bf16")), ("reward", "fp32")):
        found = fresh(_load, path, use, computes)
        rise = found["peak_bytes"] - found["before_bytes"]
        assert rise <= 1.2 * found["kept_bytes"] + _ON_THE_WAY, (use, found)
    assert found["peak_bytes"] < path.stat().st_size
