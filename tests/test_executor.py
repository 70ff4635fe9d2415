import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tdmpc_opt import machine
from tdmpc_opt.agents.executor import run_parallel
from tdmpc_opt.agents.sources import open_source
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.cli import main
from tdmpc_opt.configs.measure import EvaluateConfig
from tdmpc_opt.configs.training import TrainConfig
from tdmpc_opt.errors import InputError, RunError
from tdmpc_opt.evaluation.evaluate import TaskWork, evaluate, evaluate_task
from tdmpc_opt.machine import _quota, choose_processes, choose_threads, cores
from tdmpc_opt.progress import Silent
from tdmpc_opt.training.loop import train


def _square(x: int) -> int:
    return x * x


def _die(x: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return x


def test_one_worker_works_in_this_process_and_in_order():
    assert list(run_parallel(_square, [1, 2, 3], workers=1)) == [(1, 1), (2, 4), (3, 9)]
    assert list(run_parallel(_square, [], workers=0)) == []
    assert cores() >= 1


def test_the_work_ends_where_the_worker_dies_with_a_message_that_helps():
    with pytest.raises(RunError, match="worker process died"):
        list(run_parallel(_die, [1, 2], workers=2))


UNGUARDED = """
from tdmpc_opt.agents.executor import run_parallel

list(run_parallel(abs, [1, 2], workers=2))
"""


def test_a_script_without_its_guard_is_told_of_it(tmp_path):
    """Each worker imports the script, starts workers in turn, and dies of that."""
    script = tmp_path / "collect_all.py"
    script.write_text(UNGUARDED)
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    last = run.stderr.strip().splitlines()[-1]
    assert 'put its calls under `if __name__ == "__main__":`' in last
    assert str(script) in last
    assert "memory" not in last


PARENT = """
import os, sys, time
from pathlib import Path
from tdmpc_opt.agents.executor import run_parallel

def work(folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)

if __name__ == "__main__":
    list(run_parallel(work, [sys.argv[1]] * 2, workers=2))
"""


def _is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().split()[2] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_workers_leave_when_their_parent_is_killed(tmp_path):
    script, marks = tmp_path / "parent.py", tmp_path / "marks"
    script.write_text(PARENT)
    marks.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(marks)])
    deadline = time.monotonic() + 60
    while len(list(marks.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = [int(mark.name) for mark in marks.iterdir()]
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    while any(map(_is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_is_running, workers))


def test_an_address_where_no_ray_cluster_listens_is_refused_at_once():
    pytest.importorskip("ray")
    with pytest.raises(RunError, match=r"no Ray cluster at 127\.0\.0\.1:9 .*--ray local"):
        list(run_parallel(_square, [1], 1, "127.0.0.1:9"))


@pytest.fixture(scope="module")
def on_ray() -> Iterator[None]:
    """Ends the cluster that the first use of Ray starts."""
    ray = pytest.importorskip("ray")
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("on_ray")
def test_a_ray_cluster_gives_what_local_processes_give(checkpoint_file, tmp_path):
    asked = EvaluateConfig(
        checkpoint=str(checkpoint_file),
        mode="policy",
        episodes=2,
        workers=2,
        output=tmp_path / "local.json",
        device="cpu",
    )
    local = evaluate(asked)
    ray = evaluate(replace(asked, ray="local", output=tmp_path / "ray.json"))
    for name, record in local["tasks"].items():
        assert ray["tasks"][name]["returns"] == record["returns"]
    assert ray["config"] == local["config"]


@pytest.mark.slow
@pytest.mark.usefixtures("on_ray")
def test_work_whose_ray_worker_is_killed_is_done_again(checkpoint_file, tmp_path):
    table = read_checkpoint(checkpoint_file).tasks
    policy = open_source(str(checkpoint_file), mode="policy", device="cpu")
    work = [TaskWork(policy, task, 1, 0) for task in table.tasks]

    def killed_once(item: TaskWork) -> dict[str, Any]:
        mark = tmp_path / item.task.name
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return evaluate_task(item)

    found = {
        item.task.name: record for item, record in run_parallel(killed_once, work, 2, "local")
    }
    assert len(list(tmp_path.iterdir())) == len(work)
    for item in work:
        assert found[item.task.name]["returns"] == evaluate_task(item)["returns"]


@pytest.mark.slow
@pytest.mark.usefixtures("on_ray")
def test_ray_work_sees_the_same_folder_and_raises_what_it_raised(tmp_path, monkeypatch):
    def fail(text: str) -> None:
        raise RunError(f"{text} in {Path.cwd()}")

    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=rf"^wrong in {tmp_path}$"):
        list(run_parallel(fail, ["wrong"], 1, "local"))

    def die(_: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RunError, match="a Ray worker died 4 times over the same work"):
        list(run_parallel(die, [1], 1, "local"))


def test_ray_shares_cpus_alone(checkpoint_file, tmp_path):
    asked = EvaluateConfig(
        checkpoint=str(checkpoint_file), output=tmp_path / "x", ray="local", device="cuda"
    )
    with pytest.raises(InputError, match="--ray shares CPUs alone"):
        evaluate(asked)


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"cpu.max": "max 100000", "a/cpu.max": "400000 100000"}, 4),
        ("0::/a/b", {"cpu.max": "200000 100000", "a/cpu.max": "400000 100000"}, 2),
        ("0::/a", {"a/cpu.max": "max 100000"}, math.inf),
        (
            "4:memory:/x\n3:cpu,cpuacct:/y",
            {"cpu/y/cpu.cfs_quota_us": "300000", "cpu/y/cpu.cfs_period_us": "100000"},
            3,
        ),
        (
            "3:cpu:/y",
            {"cpu/y/cpu.cfs_quota_us": "-1", "cpu/y/cpu.cfs_period_us": "100000"},
            math.inf,
        ),
    ],
)
def test_the_quota_of_a_control_group_limits_the_cores(tmp_path, own, files, expected):
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (tmp_path / "own").write_text(own + "\n")
    assert _quota(tmp_path / "root", tmp_path / "own") == expected


def _stat(monkeypatch, tmp_path: Path, ticks: list[list[tuple[int, int, int]]]) -> None:
    """Let (user, nice, idle) ticks of each core be what the system tells, one row a look."""
    looks = iter(ticks)
    path = tmp_path / "stat"

    def write(_: float) -> None:
        rows = [
            f"cpu{n} {u} {nice} 0 {i} 0 0 0 0" for n, (u, nice, i) in enumerate(next(looks))
        ]
        path.write_text("cpu 1 1 1 1 1 1 1 1\n" + "\n".join(rows) + "\nintr 5\n")

    write(0)
    monkeypatch.setattr(machine, "_STAT", path)
    monkeypatch.setattr(machine, "_allowed", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(machine, "_quota", lambda: math.inf)
    monkeypatch.setattr(machine.time, "sleep", write)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_busy_cores_are_left_to_other_work_and_low_priority_gives_way(monkeypatch, tmp_path):
    still = [(0, 0, 0)] * 4
    _stat(monkeypatch, tmp_path, [still, [(25, 0, 0), (25, 0, 0), (0, 25, 0), (0, 0, 25)]])
    found = choose_threads()
    assert found.count == 2
    assert str(found) == "2 (4 cores given, 2.0 busy with other work)"


def test_a_machine_that_is_full_still_gives_one_core(monkeypatch, tmp_path):
    still = [(0, 0, 0)] * 4
    _stat(monkeypatch, tmp_path, [still, [(25, 0, 0)] * 4, [(50, 0, 0)] * 4])
    assert choose_threads().count == 1
    assert choose_processes(3).count == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert choose_threads().count == 7
    assert choose_threads(2).count == 2
    monkeypatch.setattr(machine, "_quota", lambda: 1.5)
    assert cores() == 1


def test_training_computes_on_the_threads_that_were_asked_for_and_tells_them(
    dataset_dir, tmp_path, monkeypatch
):
    counts, shown = [], []

    class Shown(Silent):
        def update(self, done: int, total: int, text: str) -> None:
            counts.append(torch.get_num_threads())
            shown.append(text)

    config = TrainConfig(
        data=dataset_dir, output=tmp_path, updates=1, size="0.3", batch_size=4, threads=2
    )
    before = torch.get_num_threads()
    train(config, Shown())
    assert shown[0] == "threads: 2 (as asked)"
    assert counts[-1] == 2
    assert torch.get_num_threads() == before
    train(replace(config, updates=2, threads=1))  # the same run, on other threads


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("compression.quantize.quantize", ["--format", "int8", "--data", "d"]),
        ("compression.sensitivity.sensitivity", ["--data", "d"]),
        ("export.export.export", ["--policy-only"]),
    ],
)
def test_other_commands_that_compute_take_the_free_cores_too(
    function, words, tmp_path, monkeypatch, capsys
):
    def seen(*_, **__):
        raise InputError(f"on {torch.get_num_threads()} threads")

    pytest.importorskip("onnx")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(f"tdmpc_opt.{function}", seen)
    command = function.rpartition(".")[2]
    before = torch.get_num_threads()
    assert main([command, "mt30-1m", *words, "--output", str(tmp_path / "x")]) == 1
    found = capsys.readouterr()
    assert found.out == "threads: 2 (as OMP_NUM_THREADS says)\n"
    assert "on 2 threads" in found.err
    assert torch.get_num_threads() == before
