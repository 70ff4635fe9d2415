"""Killed runs end with the same bits as a run that was not interrupted.

Two kills of three come from outside at a random moment; the third from inside a checkpoint.
"""

import itertools
import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.context import BaseContext
from pathlib import Path

import pytest
import torch
from killing import POINTS, WRITERS, FaultPoint, train

from tdmpc_opt.agents.collect import collect
from tdmpc_opt.checkpoints.torch_files import StateFolder
from tdmpc_opt.configs.data import CollectConfig
from tdmpc_opt.configs.training import DistillWeights, Schedule, TrainConfig

pytest.importorskip("dm_control")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kills") / "data"
    collect(
        CollectConfig(
            policy="demo-teacher",
            tasks="pendulum-spin,cartpole-balance",
            episodes=1,
            output=folder,
            device="cpu",
            workers=1,
        )
    )
    return folder


def _config(data: Path, output: Path, updates: int) -> TrainConfig:
    return TrainConfig(
        data=data,
        output=output / "run",  # whose name is part of the weights' file
        teacher="demo-teacher",
        size="0.3",
        updates=updates,
        batch_size=8,
        device="cpu",
        log_every=1,
        save_every=4,
        terms=DistillWeights(latent=Schedule(1.0), policy_mse=Schedule(0.5)),
    )


@pytest.fixture(scope="module")
def context() -> BaseContext:
    """Makes processes that start with everything imported."""
    with pytest.MonkeyPatch.context() as patch:  # the server of Python 3.11 ignores sys.path
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["killing"])
        process = context.Process(target=int)  # which starts the server
        process.start()
        process.join()
    return context


def _train(
    context: BaseContext,
    config: TrainConfig,
    fault: FaultPoint | None = None,
    kill_after: float | None = None,
) -> int:
    """Distil in a process of its own, and return how it ended."""
    process = context.Process(target=train, args=(config, fault))
    process.start()
    process.join(kill_after)
    process.kill()
    process.join()
    return process.exitcode


@pytest.mark.parametrize(
    ("kills", "updates"), [(5, 16), pytest.param(30, 60, marks=pytest.mark.slow)]
)
def test_killed_runs_end_with_the_bits_of_an_uninterrupted_one(
    data, context, tmp_path, kills, updates
):
    reference = _config(data, tmp_path / "reference", updates)
    assert _train(context, reference) == 0
    begun = time.monotonic()
    assert _train(context, _config(data, tmp_path / "timed", updates)) == 0
    seconds = time.monotonic() - begun
    draw, done, within = random.Random(1), 0, 0
    for number in itertools.count():
        run = _config(data, tmp_path / str(number), updates)
        while done < kills:
            fault, kill_after = None, None
            if within * 3 <= done:
                fault = FaultPoint(draw.choice(POINTS), draw.choice(WRITERS), draw.randrange(4))
            else:
                kill_after = draw.uniform(0, seconds)
            status = _train(context, run, fault, kill_after)
            if status == 0:
                break
            assert status == -signal.SIGKILL
            done += 1
            within += fault is not None
        if done == kills:
            assert _train(context, run) == 0
        _assert_same_ending(run.output, reference.output)
        if done == kills:
            break
    assert 3 * within >= kills


def _assert_same_ending(run: Path, reference: Path) -> None:
    """Compare weights, newest state and curves (but for the speed) to the bit."""
    weights = [(folder / "model.safetensors").read_bytes() for folder in (run, reference)]
    assert weights[0] == weights[1]
    assert _curves(run) == _curves(reference)
    assert _same(*(StateFolder(folder).newest(pytest.fail) for folder in (run, reference)))
    assert not list(run.rglob("*.tmp"))


def _curves(folder: Path) -> list[list[str]]:
    rows = [row.split(",") for row in (folder / "metrics.csv").read_text().splitlines()]
    speed = rows[0].index("updates_per_second")
    return [row[:speed] + row[speed + 1 :] for row in rows]


def _same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
