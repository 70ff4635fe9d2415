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

from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.configs import EvaluateConfig
from tdmpc_opt.errors import InputError, RunError
from tdmpc_opt.evaluation.evaluate import TaskWork, evaluate, evaluate_task
from tdmpc_opt.executor import cores, run_parallel
from tdmpc_opt.policies import PolicySource


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
from tdmpc_opt.executor import run_parallel

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
from tdmpc_opt.executor import run_parallel

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
    policy = PolicySource(source=str(checkpoint_file), mode="policy", device="cpu")
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
