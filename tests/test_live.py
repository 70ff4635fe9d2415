import base64
import http.client
import io
import json
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tdmpc_opt import cli
from tdmpc_opt.agents.rollout import Player
from tdmpc_opt.agents.sources import open_source
from tdmpc_opt.configs.measure import PlayConfig
from tdmpc_opt.errors import InputError
from tdmpc_opt.play import live as module
from tdmpc_opt.play.live import VIEWERS, Live, LiveJob, live_page
from tdmpc_opt.play.server import HOST
from tdmpc_opt.schema import MT30
from tdmpc_opt.tasks import choose_tasks

POINT, FALL, STILL = "own_envs:Point-v0", "own_envs:Fall-v0", "own_policies:still"


@pytest.fixture
def watched(monkeypatch):
    """A point that one page watches, and which need not wait for real time."""
    monkeypatch.setattr(module, "_FRAME_SECONDS", 0.0)
    monkeypatch.setattr(Live, "_sleep", lambda self, seconds: None)
    tasks = choose_tasks(f"{POINT},{FALL}")
    agents = {name: open_source(name) for name in (STILL, "random")}
    live = Live(LiveJob(agents, tasks, 0))
    with live.viewer() as admitted:
        assert admitted
        yield live


def _state(live, steps=1):
    for _ in range(steps):
        live.advance()
    return _read(live.newest(0)[0])


def _read(event):
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    return json.loads(event[6:])


def test_each_step_is_shown_with_its_reward_and_picture(watched):
    begin = _state(watched)
    assert (begin["steps"], begin["return"], begin["latency_ms"]) == (0, 0.0, None)
    assert (begin["task"], begin["agent"]) == ("Point-v0", STILL)
    assert begin["tasks"] == ["Point-v0", "Fall-v0"]
    assert begin["agents"] == [STILL, "random"]
    assert begin["wanted_rate"] == 10
    shown = [_state(watched) for _ in range(3)]
    assert [state["steps"] for state in shown] == [1, 2, 3]
    env = watched._player.env.unwrapped_environment
    assert shown[-1]["rewards"] == [pytest.approx(np.exp(-abs(env.x)))]
    assert shown[-1]["return"] == pytest.approx(sum(state["rewards"][0] for state in shown))
    assert shown[-1]["latency_ms"] > 0
    picture = Image.open(io.BytesIO(base64.b64decode(shown[-1]["picture"])))
    assert picture.size == (60, 40)
    brightest = np.asarray(picture).sum(axis=(0, 2)).argmax()
    assert abs(brightest - (30 + 10 * env.x)) <= 2


def test_an_episode_that_is_over_is_followed_by_another(watched):
    over = _state(watched, 9)
    assert over["steps"] == over["most_steps"] == 8
    assert over["last"] == {"return": over["return"], "steps": 8, "why": "time limit"}
    first = watched._player.env.unwrapped_environment.x
    again = _state(watched)
    assert (again["steps"], again["return"]) == (0, 0.0)
    assert again["last"] == over["last"]
    assert watched._player.env.unwrapped_environment.x != first


def test_a_task_that_terminates_is_chosen_and_says_so(watched):
    watched.ask({"task": "Fall-v0"})
    fell = 0
    for _ in range(40):
        state = _state(watched)
        assert state["task"] == "Fall-v0"
        if watched._player.over:
            early = state["steps"] < 8
            assert state["last"]["why"] == ("terminated" if early else "time limit")
            fell += early
    assert fell


def test_noise_changes_the_actions_and_another_agent_acts(watched):
    actions = lambda: watched._player.env.unwrapped_environment.actions  # noqa: E731
    _state(watched, 4)
    assert set(actions()) == {-1.0}  # the middle of the bounds
    watched.ask({"noise": 0.5})
    assert _state(watched, 3)["noise"] == 0.5
    noisy = actions()[3:]
    assert len(set(noisy)) == 3
    assert min(noisy) >= -3
    watched.ask({"agent": "random", "noise": 0})
    assert _state(watched, 5)["agent"] == "random"
    assert len(set(actions())) == 4


def test_a_pause_and_a_restart_are_obeyed(watched):
    _state(watched, 4)
    watched.ask({"paused": True})
    paused = _state(watched)
    assert (paused["steps"], paused["paused"], paused["rewards"]) == (3, True, [])
    watched.ask({"restart": True})
    assert _state(watched)["steps"] == 0
    watched.ask({"paused": False})
    assert _state(watched)["steps"] == 1


def test_a_paused_task_costs_nothing(watched):
    _state(watched)
    watched.ask({"paused": True})
    _state(watched)
    number = watched.newest(0)[1]
    begin = time.monotonic()
    watched.advance()
    assert time.monotonic() - begin > 0.9  # it waits for a wish
    assert watched.newest(0)[1] == number


@pytest.mark.parametrize(
    "wish",
    [
        {"task": "walker-walk"},
        {"agent": ["random"]},
        {"noise": 2},
        {"noise": float("nan")},
        {"noise": True},
        {"paused": 1},
        {"restart": False},
        {"push": [5, 0]},
        {"push": None},
        {"seed": 1},
    ],
)
def test_other_wishes_are_refused(watched, wish):
    with pytest.raises(InputError, match=f"cannot set '{next(iter(wish))}'"):
        watched.ask(wish)


def test_a_push_accelerates_all_bodies_and_ends():
    tasks = MT30.subset(["cartpole-balance"])
    player = Player(open_source("random").load(tasks), tasks.tasks[0], 0)
    data = player.env.physics.data
    data.qvel[:] = 0
    module._push(player, 10.0, 0.0)
    player.env.step(np.zeros(1))
    # Two control steps of 0.01 s; the hinge does not turn where all accelerate alike.
    assert data.qvel[0] == pytest.approx(10 * 0.02, rel=0.01)
    assert abs(data.qvel[1]) < 0.01
    module._push(player, 0.0, 0.0)
    assert not data.xfrc_applied.any()


def test_a_push_lasts_a_tenth_of_a_second(monkeypatch, watched):
    pushes = []
    monkeypatch.setattr(module, "_push", lambda player, x, y: pushes.append((x, y)))
    _state(watched)
    watched.ask({"push": [0, -1]})
    _state(watched, 2)
    assert pushes == [(0.0, 0.0), (0.0, -10.0), (0.0, 0.0)]  # one step of 0.1 s, by 1 m/s


@pytest.mark.parametrize(
    ("task", "agent", "message"),
    [
        ("own_envs:Grey-v0", "random", r"returns float64 of shape \[40, 60\]; return uint8"),
        ("own_envs:Slider-v0", "random", "Slider-v0 cannot be drawn: name rgb_array"),
        (POINT, "plan", "lacks model, data, frame_skip"),
    ],
)
def test_each_pair_of_task_and_agent_is_tried_before_anything_is_served(task, agent, message):
    job = LiveJob({agent: open_source(agent)}, choose_tasks(task), 0)
    with pytest.raises(InputError, match=message):
        Live(job)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "own_envs:NoPicture-v0"], r"raised KeyError in render\(\): 'camera'"),
        (["--tasks", "own_envs:Nothing-v0"], "registers no environment 'Nothing-v0'"),
        (["mt30-1m", "--tasks", POINT], "mt30-1m was not made for Point-v0"),
    ],
)
def test_what_cannot_be_shown_is_one_line_before_the_server_starts(words, message, capsys):
    assert cli.main(["play", *words]) == 1
    found = capsys.readouterr()
    assert "open http" not in found.out
    assert re.search(message, found.err)
    assert found.err.count("\n") == 1


@pytest.fixture(scope="module")
def port():
    config = PlayConfig(checkpoints=(STILL,), tasks=POINT, port=0)
    with live_page(config) as running:
        yield int(next(running).split(":")[2].strip("/"))


def _answer(port, path, method="GET", body=None, **headers):
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    connection.request(method, path, body, {"Host": f"localhost:{port}", **headers})
    return connection, connection.getresponse()


def _status(*words, **more):
    connection, answer = _answer(*words, **more)
    connection.close()
    return answer.status


def _next(response):
    event = response.readline()
    assert response.readline() == b"\n"
    return json.loads(event[6:])


def test_the_page_and_its_events_are_served_in_real_time(port):
    connection, answer = _answer(port, "/")
    assert b'<script type="module" src="page.js">' in answer.read()
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self';")
    connection.close()
    connection, events = _answer(port, "/events")
    assert events.headers["Content-Type"] == "text/event-stream"
    first = _next(events)
    begin = time.monotonic()
    states = [first, *(_next(events) for _ in range(6))]
    assert time.monotonic() - begin > 0.4  # at 10 actions a second
    steps = [state["steps"] for state in states]
    assert any(after > before for before, after in pairwise(steps))
    wish = json.dumps({"noise": 0.25, "paused": True})
    assert _status(port, "/control", "POST", wish) == 204
    while not (state := _next(events))["paused"]:
        pass
    assert state["noise"] == 0.25
    assert _status(port, "/control", "POST", '{"noise": 0, "paused": false}') == 204
    connection.close()


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/control", '{"noise": 3}', {}, 400),
        ("/control", '{"task": "\N{SNOWMAN}"}', {}, 400),
        ("/control", "[1]", {}, 400),
        ("/control", "[" * 4000, {}, 400),
        ("/control", "{", {}, 400),
        ("/control", " " * 5000, {}, 400),
        ("/control", "{}", {"Content-Length": "many"}, 400),
        ("/control", "{}", {"Origin": "http://evil.example"}, 403),
        ("/control", "{}", {"Host": "evil.example"}, 403),
        ("/other", "{}", {}, 404),
    ],
)
def test_only_the_page_controls_the_task(port, path, body, headers, status):
    assert _status(port, path, "POST", body.encode(), **headers) == status
    own = {"Origin": f"http://localhost:{port}"}
    assert _status(port, "/control", "POST", "{}", **own) == 204


def test_events_are_not_for_other_sites(port):
    assert _status(port, "/events", Host="evil.example") == 403


def test_the_number_of_pages_is_bounded(port):
    pages: list = []
    until = time.monotonic() + 60
    while (
        len(pages) < VIEWERS
    ):  # the server sees with its next message that an earlier page left
        connection, answer = _answer(port, "/events")
        if answer.status == 200:
            pages.append((connection, answer))
            continue
        connection.close()
        assert time.monotonic() < until
        time.sleep(0.1)
    assert _status(port, "/events") == 503
    for connection, answer in pages:
        answer.close()
        connection.close()
    until = time.monotonic() + 60
    while _status(port, "/events") != 200:
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("ended_by", "status", "shown"), [("SIGINT", 0, "stopped\n"), ("SIGTERM", -15, "")]
)
def test_the_command_plays_an_own_task_until_it_is_ended(ended_by, status, shown):
    # As from a terminal: a shell's background job, and so this child of it, ignores SIGINT.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from tdmpc_opt.cli import main\n"
        f"sys.exit(main(['play', '--tasks', {POINT!r}, '--port', '0']))"
    )
    command = [sys.executable, "-u", "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("starting the process")
        port = int(process.stdout.readline().split("http://127.0.0.1:")[1].split("/")[0])
        connection, events = _answer(port, "/events")
        state = _next(events)
        process.send_signal(signal.Signals[ended_by])
        connection.close()
        rest, errors = process.communicate(timeout=120)
    assert (state["agent"], process.returncode, rest) == ("random", status, shown)
    assert errors == ""
    with pytest.raises(ConnectionRefusedError):
        _answer(port, "/")
