"""The example loop keeps its rate, and keeps the last action where one is late or invalid."""

import importlib.util
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
    def __init__(self, rows):
        self._rows, self.actions = iter(rows), []

    def read(self):
        return next(self._rows, None)

    def write(self, action):
        self.actions.append(action.copy())


def test_an_observation_with_nan_or_of_a_wrong_width_keeps_the_last_action(loop):
    agent, good = load("mt30-1m"), np.array([1.0, 0.0, 0.5], np.float32)
    source = _Rows([good, good * np.nan, good[:2], -good])
    steps = list(loop.control(agent, TASK, source, 0.05, None))
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
    source = _Rows([good, -good, good, good, good, good, good, good])
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


def test_the_loop_runs_on_lines_without_torch_and_logs_what_foxglove_opens(tmp_path):
    pytest.importorskip("mcap", reason="the log needs mcap")
    from mcap.reader import make_reader

    log = tmp_path / "loop.mcap"
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__'); "
        "sys.exit('torch' in sys.modules or 'mujoco' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(EXAMPLE), str(zoo.path("mt30-1m")), TASK]
    command += ["--source", "stdin", "--rate", "20", "--log", str(log)]
    lines = "1 0 0.5\nnan 0 0.5\n-1 0 0\n"
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert "of 3 actions were late or had no valid observation" in done.stderr
    with log.open("rb") as file:
        found = list(make_reader(file).iter_messages())
    assert [channel.topic for _, channel, _ in found] == ["/step"] * 3
