"""The server gives each client the agent's own actions, and survives what is sent to it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from functools import reduce
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("websockets", reason="needs the extra server")
import hostile_messages
from serving import served
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tdmpc_opt import zoo
from tdmpc_opt.errors import InputError
from tdmpc_opt.runtime import load
from tdmpc_opt.schema import PlannerBudget
from tdmpc_opt.server.server import PolicyServer, pack, unpack

TASK = "walker-walk"
OBS = np.linspace(-1, 1, 24, dtype=np.float32)
LIE = {b"__ndarray__": True, b"data": OBS.tobytes(), b"dtype": "<f4", b"shape": [24]}
DEEP = reduce(lambda inner, _: [inner], range(500), [])
"""A list in a list, deeper than Python prints."""


@pytest.fixture(scope="module")
def serving():
    with served(zoo.path("mt30-1m")) as found:
        yield found


def _ask(client, **message):
    client.send(pack(message))
    answer = client.recv(timeout=10)
    return answer if isinstance(answer, str) else unpack(answer)


def _wait_for(condition) -> None:
    for _ in range(200):
        if condition():
            return
        threading.Event().wait(0.02)
    raise AssertionError("it did not come true within four seconds")


def test_a_client_gets_the_facts_and_then_the_agents_own_actions(serving):
    _, address = serving
    agent = load("mt30-1m")
    with connect(f"ws://{address}") as client:
        facts = unpack(client.recv(timeout=10))
        assert (facts["kind"], facts["actions_per_answer"]) == ("policy", 1)
        assert [task["name"] for task in facts["tasks"]] == list(agent.tasks.names)
        assert facts["tasks"][0]["contract"]["rate_hz"] == 20.0
        for obs in (OBS, OBS.tolist(), OBS.astype(np.float64)):
            answer = _ask(client, observation=obs, task=TASK)
            np.testing.assert_array_equal(answer["actions"], agent.act(OBS, TASK))
            assert answer["server_timing"]["infer_ms"] > 0


def test_clients_have_a_last_action_each(serving):
    """One client's sensors must not move another one's robot."""
    _, address = serving
    with connect(f"ws://{address}") as first, connect(f"ws://{address}") as second:
        for client in (first, second):
            client.recv(timeout=10)
        held = _ask(first, observation=OBS, task=TASK, on_invalid="hold")
        assert held["valid"] is True
        answer = _ask(first, task=TASK, on_invalid="hold")
        assert answer["valid"] is False
        np.testing.assert_array_equal(answer["actions"], held["actions"])
        answer = _ask(second, observation=OBS * np.nan, task=TASK, on_invalid="hold")
        np.testing.assert_array_equal(answer["actions"], np.zeros(6))


def test_health_and_statistics_are_answered_by_http(serving):
    _, address = serving
    with urllib.request.urlopen(f"http://{address}/healthz", timeout=10) as answer:
        assert (answer.status, answer.read()) == (200, b"OK\n")
    with connect(f"ws://{address}") as client:
        client.recv(timeout=10)
        _ask(client, observation=OBS, task=TASK)
        with urllib.request.urlopen(f"http://{address}/statistics", timeout=10) as answer:
            counts = json.load(answer)
    assert counts["clients"] == 1
    assert counts["answers"] >= 1
    assert 0 < counts["ms_p50"] <= counts["ms_p99"] <= counts["ms_max"]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"observation": OBS, "task": "walk"}, "unknown task 'walk'"),
        ({"observation": OBS}, "name a task; known: "),
        ({"observation": OBS, "task": 99}, "task ids must be in 0..29, got 99"),
        ({"observation": OBS, "task": True}, "a task is a name or an id, got True"),
        ({"observation": OBS, "task": OBS}, "a task is a name or an id, got ndarray"),
        ({"observation": OBS, "task": "w" * 500_000}, "unknown task 'wwww"),
        ({"observation": OBS[:5], "task": TASK}, "observations of walker-walk have 24 numbers"),
        ({"observation": [*OBS[1:], np.nan], "task": TASK}, "the observation contains NaN"),
        ({"observation": ["a"] * 24, "task": TASK}, "not an array of numbers"),
        (
            {"observation": OBS[None], "task": TASK},
            r"an observation is [obs], got shape [1, 24]",
        ),
        ({"observation": OBS, "task": TASK, "deadline_ms": "x"}, "must be a number, got 'x'"),
        ({"observation": OBS, "task": TASK, "reset": [1]}, "reset is true or false"),
        ({"observation": OBS, "task": TASK, "deadline_ms": -1}, "deadline_ms must be above 0"),
        ({"observation": OBS, "task": TASK, "on_invalid": 3}, "on_invalid must be error, hold"),
        ({"observation": OBS, "task": TASK, "on_invalid": OBS}, "hold or zero, got ndarray"),
        ({"observation": OBS, "task": TASK, "on_invalid": DEEP}, "hold or zero, got list"),
        (
            {"observation": {**LIE, b"dtype": DEEP}, "task": TASK},
            "an array of dtype list; send",
        ),
        (
            {"observation": {**LIE, b"dtype": "<,4"}, "task": TASK},
            "an array of dtype '<,4'; send",
        ),
        (
            {"observation": {**LIE, b"shape": DEEP}, "task": TASK},
            "shape is not a list of sizes",
        ),
        ({"observation": {**LIE, b"data": 7}, "task": TASK}, "an array without data or shape"),
        ({"obs": OBS, "task": TASK}, 'send a map with "observation"'),
        ([1, 2], 'send a map with "observation"'),
    ],
)
def test_a_bad_message_is_answered_with_one_line_and_the_next_one_is_served(
    serving, message, reason, unchecked
):
    _, address = serving
    with connect(f"ws://{address}") as client:
        client.recv(timeout=10)
        client.send(pack(message))
        answer = client.recv(timeout=10)
        assert isinstance(answer, str)
        assert reason in answer
        assert "\n" not in answer
        assert "actions" in _ask(client, observation=OBS, task=TASK)


def test_hostile_messages_leave_the_server_standing(tmp_path):
    output = tmp_path / "hostile.json"
    hostile_messages.main(
        hostile_messages.Config(messages=2000, clients=2, seed=1, output=output)
    )
    content = json.loads(output.read_text())
    assert content["messages"] == sum(content["sent"].values()) == 2000
    ended = content["sent"]["too long"] + content["sent"]["broken off"]
    assert sum(content["answers"].values()) > 2000 - 32 * ended
    assert min(content["answers"]["one line"], content["answers"]["actions"]) > 50


def test_a_message_beyond_the_limit_ends_its_own_connection_alone():
    with (
        served(zoo.path("mt30-1m"), max_bytes=1000) as (server, address),
        connect(f"ws://{address}") as bystander,
        connect(f"ws://{address}") as client,
    ):
        bystander.recv(timeout=10)
        client.recv(timeout=10)
        client.send(b"x" * 1001)
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=10)
        assert "actions" in _ask(bystander, observation=OBS, task=TASK)
        _wait_for(lambda: server.clients == 1)


def test_clients_beyond_the_limit_are_refused_until_one_leaves():
    with served(zoo.path("mt30-1m"), max_clients=1) as (server, address):
        with connect(f"ws://{address}") as client:
            client.recv(timeout=10)
            with pytest.raises(InvalidStatus) as refused:
                connect(f"ws://{address}")
            assert refused.value.response.status_code == 503
        _wait_for(lambda: server.clients == 0)
        with connect(f"ws://{address}") as client:
            client.recv(timeout=10)


def test_a_dead_client_frees_its_state():
    """A client that neither closes nor answers pings, as behind a pulled cable."""
    with served(zoo.path("mt30-1m"), ping_seconds=0.2) as (server, address):
        host, port = address.split(":")
        with socket.create_connection((host, int(port))) as dead:
            dead.sendall(
                f"GET / HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
                "Sec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            _wait_for(lambda: server.clients == 1)
            _wait_for(lambda: server.clients == 0)


def test_a_web_page_cannot_connect(serving):
    _, address = serving
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://{address}", origin="https://example.org")
    assert refused.value.response.status_code == 403


def test_a_taken_port_is_one_line(serving):
    _, address = serving
    taken = int(address.split(":")[1])
    server = PolicyServer(zoo.path("mt30-1m"))
    with pytest.raises(InputError, match=f"cannot listen at 127.0.0.1, port {taken}"):
        asyncio.run(server.run("127.0.0.1", taken))


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_without_torch_and_stops_by_a_signal(which, tmp_path):
    code = (
        "import sys; from tdmpc_opt.cli import main; status = main(); "
        "sys.exit(status or 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "serve", str(zoo.path("mt30-1m")), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        line = run.stdout.readline()
        assert line.startswith("serving at ws://127.0.0.1:")
        with connect(line.split()[2].rstrip(";")) as client:
            client.recv(timeout=10)
            assert "actions" in _ask(client, observation=OBS, task=TASK)
            os.kill(run.pid, which)
            out, err = run.communicate(timeout=20)
    assert run.returncode == 0
    assert "stopped; answers: 1, errors: 0; an answer took " in out
    assert not err


@pytest.fixture(scope="module")
def planner(tmp_path_factory, checkpoint_file) -> Path:
    """A planner of which one plan serves for two actions."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from tdmpc_opt.configs.deploy import ExportConfig
    from tdmpc_opt.export.export import export

    path = tmp_path_factory.mktemp("planner") / "planner.onnx"
    sizes = {"horizon": 3, "iterations": 2, "samples": 24, "policy_samples": 4, "elites": 6}
    budget = PlannerBudget(**sizes, replan_every=2)
    export(ExportConfig(checkpoint=str(checkpoint_file), output=path), budget)
    return path


def test_clients_drive_a_planner_each_with_its_own_plan(planner, monkeypatch):
    """Two clients in turn get what an agent alone gives each of them."""
    from tdmpc_opt import make_env

    seeded = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda: seeded(0))
    task = "cartpole-balance"
    alone = [load(planner), load(planner)]
    envs = [make_env(task, seed) for seed in (1, 2)]
    rows = [env.reset()[0] for env in envs]
    with (
        served(planner) as (_, address),
        connect(f"ws://{address}") as first,
        connect(f"ws://{address}") as second,
    ):
        for client in (first, second):
            facts = unpack(client.recv(timeout=10))
            assert (facts["kind"], facts["actions_per_answer"]) == ("planner", 2)
        for _ in range(5):
            for number, client in enumerate((first, second)):
                actions = _ask(client, observation=rows[number], task=task)["actions"]
                agent = alone[number]
                wanted = [agent.act(rows[number], task) for _ in range(2)]
                np.testing.assert_array_equal(actions, wanted)
                for action in actions:
                    rows[number] = envs[number].step(action)[0]
        late = _ask(first, observation=rows[0], task=task, deadline_ms=1e-3)
        assert late["actions"].shape == (2, 1)
        assert np.abs(rows[0] - rows[1]).max() > 0


_CLIENT = """
import json, sys
from openpi_client.websocket_client_policy import WebsocketClientPolicy
policy = WebsocketClientPolicy(host="127.0.0.1", port=int(sys.argv[1]))
for line in sys.stdin:
    answer = policy.infer({"observation": json.loads(line), "task": sys.argv[2]})
    print(json.dumps(answer["actions"].tolist()), flush=True)
"""


@pytest.mark.slow
def test_a_stock_openpi_client_drives_an_episode(serving, tmp_path):
    """In an environment of its own: openpi-client 0.1.2 needs numpy below 2."""
    from tdmpc_opt import make_env

    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    needed = ["openpi-client==0.1.2", "typing_extensions"]  # which it does not declare
    subprocess.run([python, "-m", "pip", "install", "-q", *needed], check=True)
    env, total, done = make_env(TASK, 0), 0.0, False
    obs = env.reset()[0]
    command = [python, "-c", _CLIENT, serving[1].split(":")[1], TASK]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as client:
        while not done:
            client.stdin.write(json.dumps(obs.tolist()) + "\n")
            action = np.array(json.loads(client.stdout.readline()), np.float32)
            obs, reward, terminated, truncated, _ = env.step(action)
            total, done = total + float(reward), terminated or truncated
        client.stdin.close()
    assert total > 700
