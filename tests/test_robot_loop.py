"""The example loop keeps its rate, and keeps the last action where one is late or invalid."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tdmpc_opt import zoo
from tdmpc_opt.runtime import load

EXAMPLE = Path(__file__).parents[1] / "examples" / "robot_loop.py"
TASK = "pendulum-swingup"


@pytest.fixture(scope="module")
def loop():
    spec = importlib.util.spec_from_file_location("robot_loop", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Rows:
    def __init__(self, rows, end):
        self._rows, self._end, self.actions = iter(rows), end, []

    def read(self, seconds):
        return next(self._rows, self._end)

    def write(self, action):
        self.actions.append(action.copy())


def test_an_observation_with_nan_or_of_a_wrong_width_keeps_the_last_action(loop):
    agent, good = load("mt30-1m"), np.array([1.0, 0.0, 0.5], np.float32)
    agent.act(good, TASK)  # the first action takes longer
    source = _Rows([good, good * np.nan, good[:2], -good], loop.END)
    steps = list(loop.control(agent, TASK, source, 0.5, None))
    assert [missed for _, missed in steps] == [False, True, True, False]
    first, *held, last = source.actions
    np.testing.assert_array_equal(first, agent.act(good, TASK))
    np.testing.assert_array_equal(held, [first, first])
    np.testing.assert_array_equal(last, agent.act(-good, TASK))


def test_a_late_action_is_missed_and_dropped_and_the_rate_is_kept(loop, monkeypatch):
    agent, good = load("mt30-1m"), np.array([1.0, 0.0, 0.5], np.float32)
    act, calls = agent.act, []

    def slow_once(obs, task, **options):
        calls.append(obs)
        if len(calls) == 2:
            time.sleep(0.25)
        return act(obs, task, **options)

    monkeypatch.setattr(agent, "act", slow_once)
    source = _Rows([good, -good, good, good, good, good, good, good], loop.END)
    start = time.perf_counter()
    steps = list(loop.control(agent, TASK, source, 0.1, None))
    took = time.perf_counter() - start
    missed = [missed for _, missed in steps]
    assert missed[0] is False
    assert missed[1] is True
    assert missed[2] is True
    assert missed[-1] is False
    assert len(calls) < len(steps)
    assert took >= 0.7
    wanted = act(good, TASK)
    for action in source.actions:  # the late action, for -good, reaches no actuator
        np.testing.assert_array_equal(action, wanted)


_COMMAND = (
    "import runpy, sys; sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__'); "
    "sys.exit('torch' in sys.modules or 'mujoco' in sys.modules)"
)


def _started(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _COMMAND, str(EXAMPLE), str(zoo.path("mt30-1m")), TASK]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command += ["--source", "stdin", "--rate", "20", *options]
    return subprocess.Popen(command, text=True, bufsize=1, **pipes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.onnx", TASK], "cannot read nothing.onnx"),
        (["mt30-1m", "walker"], "unknown task 'walker'; did you mean walker-"),
        (["mt30-1m", TASK, "--rate", "nan"], "--rate must be in 0.01..10000 actions a second"),
        (["mt30-1m", TASK, "--log", "model.onnx"], "name it model.mcap, not model.onnx"),
        (["mt30-1m", TASK, "--log", "nowhere/log.mcap"], "No such file or directory"),
    ],
)
def test_the_loop_refuses_what_it_cannot_run_in_one_line(
    loop, words, message, monkeypatch, tmp_path
):
    pytest.importorskip("mcap", reason="the log needs mcap")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["robot_loop.py", *words, "--source", "stdin"])
    with pytest.raises(SystemExit, match=message) as stopped:
        loop.main()
    assert "\n" not in str(stopped.value)
    assert not [*tmp_path.iterdir()]


def test_the_rate_is_that_of_the_contract_unless_another_is_named(loop):
    agent = load("mt30-1m")
    assert loop.rate_of(agent, TASK, None) == agent.contract(TASK).rate_hz == 25
    assert loop.rate_of(agent, TASK, 10.0) == 10


def test_a_source_without_an_observation_is_an_error_and_ctrl_c_ends_the_loop():
    with _started() as run:
        _, err = run.communicate("", timeout=60)
    assert (run.returncode, err) == (
        1,
        "robot_loop.py: the source ended before its first step\n",
    )
    for end in (signal.SIGINT, signal.SIGTERM):
        with _started() as run:
            run.stdin.write("1 0 0.5\n")
            for _ in range(2):  # the second action is written after the first step has ended
                run.stdout.readline()
            run.send_signal(end)
            _, err = run.communicate(timeout=60)
        assert run.returncode == 0, err
        assert "actions were late" in err


def test_a_loop_interrupted_before_its_first_step_says_so(loop, monkeypatch):
    def interrupted(file):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "load", interrupted)
    monkeypatch.setattr(sys, "argv", ["robot_loop.py", "mt30-1m", TASK])
    with pytest.raises(SystemExit, match="the loop was interrupted before its first step"):
        loop.main()


def test_the_loop_acts_on_the_newest_line_without_torch_and_logs_what_foxglove_opens(tmp_path):
    pytest.importorskip("mcap", reason="the log needs mcap")
    from mcap.reader import make_reader

    log = tmp_path / "loop.mcap"
    with _started("--log", str(log)) as run:
        out, err = run.communicate("1 0 0.5\nnan 0 0.5\n-1 0 0\n", timeout=60)
    assert run.returncode == 0, err
    wanted = load("mt30-1m").act(np.array([-1.0, 0.0, 0.0], np.float32), TASK)
    np.testing.assert_allclose([float(line) for line in out.splitlines()], wanted, rtol=1e-6)
    assert "0 of 1 actions were late or had no valid observation (hold)" in err
    with log.open("rb") as file:
        ((_, channel, message),) = make_reader(file).iter_messages()
    assert channel.topic == "/step"
    assert json.loads(message.data)["observation"] == [-1.0, 0.0, 0.0]


@pytest.mark.parametrize("on_invalid", ["hold", "zero"])
def test_the_loop_goes_on_without_a_new_line_and_with_words_that_are_no_numbers(on_invalid):
    with _started("--on-invalid", on_invalid) as run:
        run.stdin.write("1 0 0.5\n")
        while not (first := float(run.stdout.readline())):
            pass  # the observation was not there yet
        late = [float(run.stdout.readline()) for _ in range(2)]
        run.stdin.write("1 0 x\n")
        late += [float(run.stdout.readline()) for _ in range(3)]
        _, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    assert late == [first if on_invalid == "hold" else 0.0] * 5
