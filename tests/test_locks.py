import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tdmpc_opt import cli
from tdmpc_opt.checkpoints.checkpoint import from_model
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.errors import RunError
from tdmpc_opt.files import alone
from tdmpc_opt.schema import MT30

HOLD = """
import sys
from pathlib import Path
from tdmpc_opt.files import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

Hold = Callable[[Path], subprocess.Popen[str]]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Lets another process work on a file until its standard input closes."""
    with ExitStack() as processes:

        def start(path: Path) -> subprocess.Popen[str]:
            words = [sys.executable, "-c", HOLD, str(path)]
            pipe = subprocess.PIPE
            process = processes.enter_context(
                subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)
            )
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            return process

        yield start


def test_the_second_process_is_told_which_one_works(hold, tmp_path):
    path = tmp_path / "run" / "model.safetensors"
    process = hold(path)
    message = f"is being written by process {process.pid} on .* since"
    with pytest.raises(RunError, match=message), alone(path):
        pytest.fail("two processes work on one file")
    process.communicate()
    with alone(path):
        pass
    assert not path.parent.exists()  # neither the lock nor the folder made for it


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_process_keeps_nobody_out(hold, tmp_path):
    process = hold(tmp_path / "x")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with alone(tmp_path / "x"):
        assert f"process {os.getpid()} " in (tmp_path / ".x.lock").read_text()


def test_a_full_disk_is_one_line_and_leaves_no_lock(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with (
        pytest.raises(RunError, match=r"cannot write .*: No space left"),
        alone(tmp_path / "a/b"),
    ):
        pass
    assert not (tmp_path / "a").exists()


def test_waiting_ends_when_the_other_has_finished(hold, tmp_path):
    process = hold(tmp_path / "x")
    assert process.stdin is not None
    process.stdin.close()
    with alone(tmp_path / "x", wait=True):
        assert process.wait() == 0


@pytest.mark.parametrize(
    ("words", "held"),
    [
        (["train", "--data", "D", "--updates", "1", "--output", "O"], "model.safetensors"),
        (
            ["train", "--data", "D", "--updates", "1", "--teacher", "T", "--output", "O"],
            "model.safetensors",
        ),
        (
            [
                *("dagger", "--data", "D", "--start", "T", "--teacher", "T", "--output", "O"),
                *("--updates", "1", "--rounds", "1", "--horizon", "1"),
            ],
            "rounds.json",
        ),
        (["demo", "--output", "O"], "demo.json"),
        (["evaluate", "random", "--tasks", "cup-catch", "--output", "O/x.json"], "x.json"),
        (
            ["collect", "--policy", "random", "--tasks", "cup-catch", "--output", "O"],
            "cup-catch-random-policy-noise0-seed0-n20",
        ),
        (["tune-planner", "T", "--output", "O"], "tuning.json"),
        (["data", "import", "D", "--output", "O"], "import"),
        (["data", "export", "D", "--output", "O"], "export"),
        (["convert", "T", "--output", "O"], "model.safetensors"),
        (
            [
                *("export", "T", "--policy-only", "--task", "cartpole-balance", "--data", "D"),
                *("--output", "O/x.onnx"),
            ],
            "x.onnx",
        ),
    ],
)
def test_commands_refuse_an_output_that_another_process_writes(
    words, held, hold, make_model, dataset_dir, tmp_path, capsys
):
    if words[0] == "export":
        pytest.importorskip("onnxscript")
    teacher, output = tmp_path / "teacher.safetensors", tmp_path / "output"
    write_native(teacher, from_model(make_model(MT30)))
    process = hold(output / held)
    places = {"D": str(dataset_dir), "T": str(teacher), "O": str(output)}
    found = [places.get(word[:1], word[:1]) + word[1:] for word in words]
    before = sorted(path.name for path in output.iterdir() if path.name != "dataset.json")
    assert cli.main(found) == 1
    error = capsys.readouterr().err
    assert f"is being written by process {process.pid}" in error
    after = sorted(path.name for path in output.iterdir() if path.name != "dataset.json")
    assert after == before
