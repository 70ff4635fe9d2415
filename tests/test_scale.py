"""The benchmarks' own measurements, on sizes that a test can wait for."""

import shutil

import pytest
from sampling_scale import Config, measure, timed_import
from synthetic_shards import EPISODE_BYTES, write_shard
from teacher_memory import fresh, load, write_random

from tdmpc_opt.data.official import open_official
from tdmpc_opt.task_table import MT30

_ON_THE_WAY = 128_000_000  # blocks that are read and not yet dropped by the system, in bytes


def test_a_synthetic_shard_has_the_official_layout(tmp_path):
    path = tmp_path / "chunk_0.pt"
    assert write_shard(path, 100 * EPISODE_BYTES, mixed=True) == 100
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
    fresh(write_random, "317", layout, stored, path)
    for use, computes in (("agent", stored.replace("fp16", "bf16")), ("reward", "fp32")):
        found = fresh(load, path, use, computes)
        rise = found["peak_bytes"] - found["before_bytes"]
        assert rise <= 1.2 * found["kept_bytes"] + _ON_THE_WAY, (use, found)
    assert found["peak_bytes"] < path.stat().st_size
