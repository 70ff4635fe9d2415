"""Several processes that train one model together, as torchrun starts them."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmpc_opt.checkpoints.checkpoint import from_model
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.checkpoints.torch_files import StateFolder
from tdmpc_opt.cli import main
from tdmpc_opt.errors import InputError
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.schema import MT30, model_config
from tdmpc_opt.training.ranks import ALONE, Ranks, join

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-4
"""Relative, of each loss at each update: what docs/cluster.md promises."""


def _start(
    arguments: Sequence[object], *options: str, processes: int = 2
) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    # Without the dashes torchrun takes --start for one of its own options.
    launcher = [*launcher, *options, "-m", "--"] if processes > 1 else ["-m"]
    command = [sys.executable, *launcher, "tdmpc_opt"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _run(arguments: Sequence[object], *options: str, processes: int = 2) -> str:
    """Run to the end and return what was printed as an error."""
    process = _start(arguments, *options, processes=processes)
    _, errors = _end(process)
    assert process.returncode == 0, errors
    return errors


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for the end; leave nothing running where it does not come."""
    try:
        return process.communicate(timeout=300)
    finally:
        process.terminate()  # torchrun ends its ranks first


def _train(data: Path, output: Path, updates: int, **settings: object) -> list[object]:
    given = {"size": "0.3", "batch-size": 8, "device": "cpu", "log-every": 1, **settings}
    options = [word for name, value in given.items() for word in (f"--{name}", value)]
    return ["train", "--data", data, "--output", output, "--updates", updates, *options]


def _rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["updates_per_second"]
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def _require_same_losses(a: Path, b: Path) -> None:
    first, second = _rows(a), _rows(b)
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert other == pytest.approx(one, rel=TOLERANCE, abs=1e-7)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(folder / "model.safetensors").tensors)


def _update(folder: Path) -> int:
    files = StateFolder(folder).files()
    return int(files[0].stem) if files else 0


@pytest.fixture
def without_dropout(tmp_path) -> Path:
    """A model to start from, whose losses do not depend on which rank draws what it drops."""
    tasks = MT30.subset(["pendulum-swingup", "cartpole-balance"])
    config = replace(model_config("0.3", tasks), dropout=0.0)
    path = tmp_path / "start.safetensors"
    write_native(path, from_model(WorldModel(config, tasks, torch.Generator().manual_seed(0))))
    return path


@pytest.mark.slow
def test_two_processes_have_the_losses_and_weights_of_one(
    dataset_dir, without_dropout, tmp_path
):
    for processes in (1, 2):
        run = _train(dataset_dir, tmp_path / str(processes), 6, start=without_dropout)
        _run(run, processes=processes)
    _require_same_losses(tmp_path / "1", tmp_path / "2")
    first, second = _tensors(tmp_path / "1"), _tensors(tmp_path / "2")
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_together(dataset_dir, tmp_path):
    """Losses without dropout agree before the first step; GPUs draw its masks otherwise."""
    for processes in (1, 2):
        run = _train(dataset_dir, tmp_path / str(processes), 6, device="cuda")
        _run(run, processes=processes)
    first, second = _rows(tmp_path / "1"), _rows(tmp_path / "2")
    for term in ("consistency", "reward"):
        assert second[0][term] == pytest.approx(first[0][term], rel=1e-3)
    assert len(second) == 6


@pytest.mark.slow
def test_they_agree_with_every_term_labels_and_skipped_batches(
    dataset_dir, checkpoint_file, without_dropout, tmp_path
):
    """On data of which a third is labelled, and a few episodes bring infinite losses."""
    data = tmp_path / "data"
    shutil.copytree(dataset_dir, data)
    path = sorted(data.rglob("obs.memmap"))[0]
    values = np.memmap(path, dtype="<f4", mode="r+")
    values[: 60 * values.size // 1000] = 3e38
    values.flush()
    terms = ("reward-mse", "reward-kl", "value-kl", "policy-mse", "policy-kl", "latent")
    weights = [word for term in terms for word in (f"--terms.{term}", "0.1")]
    labels = tmp_path / "labels"
    collect = ["collect", "--policy", "random", "--tasks", "pendulum-swingup", "--episodes", 1]
    collect += ["--label", checkpoint_file, "--output", labels, "--device", "cpu", "--seed", 7]
    _run(collect, processes=1)
    for processes in (1, 2):
        run = _train(data, tmp_path / str(processes), 60, start=without_dropout)
        run[:3] = ["train", "--data", data, labels]
        run += ["--teacher", checkpoint_file, *weights, "--weights.behaviour", "1.0"]
        run += ["--max-skipped", 100]
        errors = _run(run, processes=processes)
        assert "batch skipped (1 of at most 100)" in errors
        assert "episode 0 (" in errors
    _require_same_losses(tmp_path / "1", tmp_path / "2")


@pytest.mark.slow
def test_the_objective_trains_networks_that_fsdp_shards_over_two_processes():
    """By Fabric's ModelParallelStrategy, on CPUs: half the weights, and the same losses."""
    script = Path(__file__).parent / "sharded_training.py"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    found = []
    for words in ([], launcher):
        run = subprocess.run(
            [sys.executable, *words, str(script)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert run.returncode == 0, run.stderr
        found.append(json.loads(run.stdout.splitlines()[-1]))
    whole, sharded = found
    assert sharded["losses"] == pytest.approx(whole["losses"], rel=TOLERANCE)
    assert 0.49 < sharded["held"] / whole["held"] < 0.51


def _pid_of_rank(launcher: int, rank: int) -> int:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    mark = f"RANK={rank}".encode()
    (found,) = (
        int(child)
        for child in children
        if mark in Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
    )
    return found


def _wait_for_update(process: subprocess.Popen[str], folder: Path, update: int) -> None:
    deadline = time.monotonic() + 120
    while _update(folder) < update and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_costs_the_updates_since_the_last_checkpoint_alone(
    rank, dataset_dir, tmp_path
):
    options = {"save-every": 5}
    _run(_train(dataset_dir, tmp_path / "whole" / "run", 60, **options))
    killed = tmp_path / "killed" / "run"
    run = _start(_train(dataset_dir, killed, 60, **options), "--max-restarts=1")
    _wait_for_update(run, killed, 5)
    os.kill(_pid_of_rank(run.pid, rank), signal.SIGKILL)
    _, errors = _end(run)
    assert run.returncode == 0, errors
    assert "Signal 9 (SIGKILL)" in errors or "exitcode: -9" in errors
    whole, resumed = _tensors(tmp_path / "whole" / "run"), _tensors(killed)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert _rows(tmp_path / "whole" / "run") == _rows(killed)


@pytest.mark.slow
def test_a_signal_to_torchrun_saves_and_another_number_of_ranks_goes_on(dataset_dir, tmp_path):
    run = _start(_train(dataset_dir, tmp_path / "run", 100_000, **{"save-every": 5}))
    _wait_for_update(run, tmp_path / "run", 5)
    run.send_signal(signal.SIGTERM)
    _end(run)
    done = _update(tmp_path / "run")
    assert done % 5 or done > 5
    for processes in (1, 2):
        done += 3
        goes_on = _train(dataset_dir, tmp_path / "run", done, **{"save-every": 5})
        _run(goes_on, processes=processes)
        assert _update(tmp_path / "run") == done
    assert [row["update"] for row in _rows(tmp_path / "run")] == list(range(1, done + 1))


@pytest.mark.slow
def test_what_cannot_be_run_is_said_by_the_first_rank_and_ends_all(dataset_dir, tmp_path):
    run = _start(_train(dataset_dir, tmp_path / "run", 5, **{"batch-size": 7}))
    _, errors = _end(run)
    assert run.returncode != 0
    assert "tdmpc-opt: a batch of 7 slices cannot be shared out evenly over 2 ranks" in errors
    assert not (tmp_path / "run").exists()


def test_a_rank_alone_talks_to_nobody():
    value = torch.ones(2)
    assert ALONE.mean(value) is value
    assert ALONE.gather({"a": 1}) == [{"a": 1}]
    assert ALONE.any(True)
    assert not ALONE.any(False)
    assert ALONE.is_first


def test_ranks_share_the_rows_of_the_same_noise():
    def drawn(ranks: Ranks, rows: int) -> torch.Tensor:
        return ranks.randn((3, rows, 2), torch.Generator().manual_seed(1))

    whole = drawn(ALONE, 4)
    for rank in range(2):
        assert torch.equal(drawn(Ranks(rank, 2), 2), whole[:, rank::2])


@pytest.fixture
def as_rank_1(monkeypatch) -> None:
    told = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("as_rank_1")
def test_commands_that_ranks_cannot_share_are_refused(capsys, tmp_path):
    assert main(["evaluate", "random", "--output", str(tmp_path / "x.json")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tdmpc-opt, rank 1: torchrun can start train alone; call ")


@pytest.mark.usefixtures("as_rank_1")
def test_more_processes_than_devices_are_refused():
    with pytest.raises(
        InputError, match="torchrun started 2 processes here, for 1 mps device;"
    ):
        join(torch.device("mps"))


def test_other_launchers_variables_are_not_torchruns(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    _, ranks = join(torch.device("cpu"))
    assert (ranks.rank, ranks.count) == (0, 1)
