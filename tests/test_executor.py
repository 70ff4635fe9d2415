import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tdmpc_opt.errors import RunError
from tdmpc_opt.executor import cores, run_parallel


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
