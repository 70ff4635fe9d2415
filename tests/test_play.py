import gzip
import hashlib
import http.client
import importlib.util
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tdmpc_opt import runtime, zoo
from tdmpc_opt.cli import main
from tdmpc_opt.configs.measure import PlayConfig
from tdmpc_opt.errors import CheckpointError, InputError, MissingDependencyError
from tdmpc_opt.play.agents import read_list, write_agents
from tdmpc_opt.play.server import BUNDLE, HOST, PlayServer, page_server
from tdmpc_opt.schema import MT30
from tdmpc_opt.tasks.environment import make_env

WEB = Path(__file__).parents[1] / "web"
FIXTURES = json.loads((WEB / "tests" / "fixtures" / "tasks.json").read_text())
LARGEST_BUNDLE = 15_000_000


def _tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, WEB / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _running(server: PlayServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with PlayServer([BUNDLE], 0) as server, _running(server) as port:
        yield port


def _get(
    port: int, path: str, *, method: str = "GET", host: str = "localhost", accept: str = "gzip"
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    headers = {"Host": f"{host}:{port}", "Accept-Encoding": accept}
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response, content


@pytest.mark.parametrize(
    ("path", "kind", "start"),
    [
        ("/", "text/html; charset=utf-8", b"<!doctype html>"),
        ("/index.html?task=walker-stand", "text/html; charset=utf-8", b"<!doctype html>"),
        ("/agents.json", "application/json", b"{"),
        ("/models/walker.xml", "text/xml; charset=utf-8", b"<mujoco"),
    ],
)
def test_files_come_compressed_and_with_their_type(
    port: int, path: str, kind: str, start: bytes
) -> None:
    response, content = _get(port, path)
    assert response.status == 200
    assert response.headers["Content-Type"] == kind
    assert response.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(content).startswith(start)
    assert "connect-src" not in response.headers["Content-Security-Policy"]
    assert response.headers["Content-Security-Policy"].startswith("default-src 'self';")


def test_webassembly_has_the_type_that_browsers_insist_on(port: int) -> None:
    names = [file.name.removesuffix(".gz") for file in (BUNDLE / "assets").glob("*.wasm.gz")]
    assert len(names) == 2
    for name in names:
        response, content = _get(port, f"/assets/{name}")
        assert response.headers["Content-Type"] == "application/wasm"
        assert gzip.decompress(content).startswith(b"\0asm")


def test_a_client_without_gzip_gets_plain_files(port: int) -> None:
    response, content = _get(port, "/", accept="identity")
    assert response.headers["Content-Encoding"] is None
    assert content.startswith(b"<!doctype html>")


def test_a_head_request_gets_no_body(port: int) -> None:
    response, content = _get(port, "/", method="HEAD")
    assert int(response.headers["Content-Length"]) > 0
    assert content == b""


@pytest.mark.parametrize(
    "path", ["/nothing", "/../server.py", "/%2e%2e/server.py", "/assets/", "//etc/passwd"]
)
def test_nothing_but_the_page_is_served(port: int, path: str) -> None:
    assert _get(port, path)[0].status == 404


def test_other_sites_cannot_read_through_a_name_of_theirs(port: int) -> None:
    assert _get(port, "/agents.json", host="evil.example")[0].status == 403
    assert _get(port, "/agents.json", host=HOST)[0].status == 200


def test_a_taken_port_is_one_clear_line(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"port {port} is taken; choose another with --port" in error


def test_a_port_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="from 0 to 65535, got 70000"):
        PlayServer([BUNDLE], 70000)


def test_a_missing_page_tells_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="run: make web"):
        PlayServer([tmp_path], 0)


def test_a_missing_checkpoint_is_named() -> None:
    config = PlayConfig(checkpoints=("nowhere.pt",), port=0)
    with pytest.raises(CheckpointError, match=r"nowhere\.pt"), page_server(config):
        pass


def test_the_command_serves_until_it_is_interrupted() -> None:
    # As from a terminal: a shell's background job, and so this child of it, ignores the signal.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from tdmpc_opt.cli import main; sys.exit(main(['play', '--port', '0']))"
    )
    command = [sys.executable, "-u", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = int(line.split("http://127.0.0.1:")[1].split("/")[0])
        status = _get(port, "/")[0].status
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert (status, process.returncode, rest) == (200, 0, "stopped\n")


def test_playing_the_bundled_agent_needs_no_torch() -> None:
    code = (
        "import sys; from tdmpc_opt.configs.measure import PlayConfig\n"
        "from tdmpc_opt.play.server import page_server\n"
        "with page_server(PlayConfig(port=0)):\n"
        "    sys.exit(bool({'torch', 'onnx', 'dm_control'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_bundle_is_small_and_of_the_present_sources() -> None:
    files = [file for file in BUNDLE.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < LARGEST_BUNDLE
    sources = ["src", "public/models", "index.html", "package-lock.json", "vite.config.ts"]
    paths = [WEB / source for source in sources]
    inside = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    names = sorted(file.relative_to(WEB).as_posix() for file in inside if file.is_file())
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0".encode())
        digest.update((WEB / name).read_bytes())
    built = _bundled("sources.txt").decode().strip()
    assert built == digest.hexdigest(), "the page is of older sources; run: make web"


def _bundled(name: str) -> bytes:
    file = BUNDLE / name
    return (
        file.read_bytes()
        if file.exists()
        else gzip.decompress(file.with_name(f"{file.name}.gz").read_bytes())
    )


def test_the_bundled_models_are_those_of_the_tasks() -> None:
    for name, xml in _tool("export_models").models().items():
        assert _bundled(f"models/{name}.xml").decode() == xml


def test_the_bundle_lists_an_agent_whose_files_are_there() -> None:
    agents = json.loads(_bundled("agents.json"))["agents"]
    assert agents
    for entry in agents:
        assert set(entry["tasks"]) <= set(MT30.names)
        for file in entry["files"]:
            assert len(_bundled(file["file"])) == file["bytes"]


@pytest.fixture(scope="module")
def exported() -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
    """The bundled student as the page gets it: what the list says, and its files by kind."""
    pytest.importorskip("onnxruntime", reason="exporting needs the export extra")
    began: list[str] = []
    config = PlayConfig(checkpoints=("mt30-1m",), port=0)
    with page_server(config, began.append) as server, _running(server) as port:
        agents = json.loads(gzip_free(port, "/agents.json"))["agents"]
        assert began == ["mt30-1m-2"] == [agents[0]["name"]]
        assert agents[1]["name"] == "mt30-1m"
        files = agents[0]["files"]
        yield (
            agents[0],
            {
                f"{file['mode']} {file['precision']}": gzip_free(port, f"/{file['file']}")
                for file in files
            },
        )


@pytest.mark.parametrize(("kind", "tolerance"), [("policy fp32", 1e-5), ("policy int8", 0.2)])
def test_a_checkpoint_is_exported_as_it_acts(exported, kind, tolerance, tmp_path) -> None:
    path = tmp_path / "policy.onnx"
    path.write_bytes(exported[1][kind])
    agent, reference = runtime.load(path), runtime.load(zoo.path("mt30-1m"))
    random = np.random.default_rng(0)
    for task in reference.tasks.tasks:
        obs = random.standard_normal(task.obs_dim).astype(np.float32)
        error = np.abs(agent.act(obs, task.name) - reference.act(obs, task.name)).max()
        assert error <= tolerance


def test_a_world_model_comes_with_a_planner(exported, tmp_path) -> None:
    entry, files = exported
    path = tmp_path / "planner.onnx"
    path.write_bytes(files["planner fp32"])
    agent = runtime.load(path, preset="realtime")
    assert agent.plan is not None
    assert [file["plan"] for file in entry["files"] if "plan" in file] == [asdict(agent.plan)]
    assert agent.act(np.zeros(3, np.float32), "pendulum-spin").shape == (1,)


def test_an_exported_file_is_offered_as_it_is(exported, tmp_path) -> None:
    path = tmp_path / "mine.onnx"
    path.write_bytes(exported[1]["policy int8"])
    site = tmp_path / "site"
    site.mkdir()
    (entry,) = write_agents([str(path)], site)
    assert (entry["name"], list(entry["tasks"])) == ("mine", exported[0]["tasks"])
    (file,) = entry["files"]
    assert (file["mode"], file["precision"]) == ("policy", "int8")
    assert (site / file["file"]).read_bytes() == path.read_bytes()
    assert [listed["name"] for listed in read_list(site)] == ["mine"]


def gzip_free(port: int, path: str) -> bytes:
    return _get(port, path, accept="identity")[1]


@pytest.mark.parametrize("task", MT30.names)
def test_what_the_browser_is_held_to_is_what_python_computes(task: str) -> None:
    recorder = _tool("record_fixtures")
    recorded = FIXTURES["tasks"][task]
    env = make_env(task, FIXTURES["seed"])
    env.reset()
    for state in recorded["probes"]:
        observation, reward = recorder.probe(env, state)
        np.testing.assert_allclose(observation, state["observation"], rtol=0, atol=1e-9)
        assert reward == pytest.approx(state["reward"], rel=0, abs=1e-9)
    env.reset(seed=FIXTURES["seed"])
    env.reset()
    env.reset()
    for action, observation, reward in zip(
        recorded["actions"], recorded["observations"], recorded["rewards"], strict=True
    ):
        earned = env.step(action)[1]
        np.testing.assert_allclose(env.observation, observation, rtol=0, atol=1e-6)
        assert earned == pytest.approx(reward, rel=0, abs=1e-6)
