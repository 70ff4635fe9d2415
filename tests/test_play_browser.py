import gzip
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdmpc_opt.agents.agent import load_agent
from tdmpc_opt.configs.measure import PlayConfig
from tdmpc_opt.play.live import live_page
from tdmpc_opt.play.server import BUNDLE, page_server
from tdmpc_opt.schema import MT30
from tdmpc_opt.tasks.environment import make_env

Policy = Callable[[np.ndarray, str], np.ndarray]

pytestmark = pytest.mark.slow

SECONDS = 10
SEEDS = (0, 1)
PATIENCE_MS = 300_000
FLAGS = [
    *("--no-sandbox", "--no-first-run", "--disable-quic", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    # Drawing in software, where a machine has no graphics card.
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    found = [shutil.which(name) for name in ("chromium", "google-chrome", "chrome")]
    executable = next((path for path in found if path), None)
    if executable is None:
        pytest.skip("no Chromium here; on Debian: apt-get install chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield chromium
        chromium.close()


@contextmanager
def _served(*checkpoints: str) -> Iterator[str]:
    with page_server(PlayConfig(checkpoints=checkpoints, port=0)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.address
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with _served() as address:
        yield address


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1000, "height": 640})
    page.set_default_timeout(PATIENCE_MS)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda line: page.problems.append(line.text) if _bad(line) else None)
    yield page
    page.close()


def _bad(line: Any) -> bool:
    return line.type == "error"


def _open(page: Any, address: str, **asked: str | int) -> None:
    query = "&".join(f"{key}={value}" for key, value in asked.items())
    page.goto(f"{address}?{query}")
    page.wait_for_selector("body:not(.loading)")


def _policy(checkpoint: str) -> Policy:
    agent = load_agent(checkpoint, mode="policy")
    return lambda observation, task: agent.act(observation, task)


def _planner(checkpoint: str) -> Policy:
    agent = load_agent(checkpoint, preset="realtime")
    return lambda observation, task: agent.act(observation, task)


def _bundled_int8() -> Policy:
    """Return the page's own int8 file, run by ONNX Runtime in Python."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the export extra")
    packed = BUNDLE / "agents" / "mt30-1m.policy.int8.onnx.gz"
    session = onnxruntime.InferenceSession(gzip.decompress(packed.read_bytes()))
    listed = json.loads(gzip.decompress((BUNDLE / "agents.json.gz").read_bytes()))["agents"]
    tasks = next(entry["tasks"] for entry in listed if entry["name"] == "mt30-1m")

    def act(observation: np.ndarray, task: str) -> np.ndarray:
        feeds = {"obs": observation[None], "task": np.array([tasks.index(task)])}
        return session.run(None, feeds)[0][0, : MT30[task].action_dim]

    return act


def _python_return(policy: Policy, task: str, seed: int) -> float:
    env = make_env(task, seed)
    observation, _ = env.reset()
    step_seconds = 2 * env._environment.control_timestep()
    total = 0.0
    for _ in range(round(SECONDS / step_seconds)):
        observation, reward, *_ = env.step(policy(observation, task))
        total += reward
    return total


def _earned(page: Any) -> float:
    runs = [page.evaluate(f"tdmpcPlay.earn({seed}, {SECONDS})") for seed in SEEDS]
    return float(sum(runs))


def test_the_page_starts_and_the_agent_earns(page: Any, address: str) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    _open(page, address, task="cartpole-balance", seed=0)
    page.wait_for_function("Number(document.getElementById('return').textContent) > 5")
    assert page.title() == "cartpole-balance · tdmpc-opt play"
    assert page.locator("#message").is_hidden()
    assert page.problems == []
    # Nothing is fetched from, or sent to, anywhere else.
    assert {url.partition("?")[0].startswith((address, "blob:")) for url in requests} == {True}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_bundled_agent_earns_what_it_earns_in_python(
    page: Any, address: str, precision: str
) -> None:
    policy = _policy("mt30-1m") if precision == "fp32" else _bundled_int8()
    # In int8 an input's last bit moves a product by a whole step: what falls or bounces then
    # goes another way.
    chaotic = ("walker-stand", "cup-catch") if precision == "fp32" else ()
    steady = ("cartpole-balance", "cartpole-swingup", "pendulum-spin", "reacher-easy")
    for task in (*chaotic, *steady, "cartpole-swingup-sparse"):
        _open(page, address, task=task, agent="mt30-1m", seed=0)
        page.get_by_role("radio", name=precision).check()
        expected = sum(_python_return(policy, task, seed) for seed in SEEDS)
        assert expected > 50
        assert _earned(page) == pytest.approx(expected, rel=0.1), task


def test_a_public_agent_earns_what_it_earns_in_python(page: Any, public_file: Path) -> None:
    policy = _policy(str(public_file))
    with _served(str(public_file)) as address:
        for task in (
            *("cartpole-balance", "cartpole-balance-sparse", "cartpole-swingup"),
            *("cup-catch", "pendulum-spin", "reacher-three-easy"),
        ):  # none in which rounding decides where a falling body lands
            _open(page, address, task=task, agent=public_file.stem, seed=0)
            expected = sum(_python_return(policy, task, seed) for seed in SEEDS)
            assert expected > 50
            assert _earned(page) == pytest.approx(expected, rel=0.1), task


def test_the_planner_earns_and_holds_its_rate(page: Any, address: str) -> None:
    # Drawing in software takes both cores of a small machine; a picture so small does not.
    page.set_viewport_size({"width": 320, "height": 240})
    _open(page, address, task="cartpole-balance", agent="mt30-1m", seed=0)
    page.get_by_role("radio", name="planner").check()
    expected = _python_return(_planner("mt30-1m"), "cartpole-balance", 0)
    assert expected > 50
    # Each plan draws other noise, so the two differ by chance.
    assert page.evaluate(f"tdmpcPlay.earn(0, {SECONDS})") > 0.7 * expected
    page.get_by_role("combobox", name="Task").select_option("walker-walk")
    rate = "Number(document.getElementById('hz').textContent)"
    asked = "Number(document.getElementById('hz-target').textContent.split(' ')[1])"
    page.wait_for_function(f"{asked} === 20 && {rate} >= 0.95 * {asked}")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("**/agents/*.onnx", "mt30-1m is damaged"), ("**/models/*.xml", "cannot read")],
)
def test_a_broken_file_shows_a_clear_message(
    page: Any, address: str, pattern: str, message: str
) -> None:
    page.route(pattern, lambda route: route.fulfill(body="this is no model"))
    _open(page, address)
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert message in alert.inner_text()
    page.get_by_role("button", name="Close").click()
    assert alert.is_hidden()


def test_controls_have_names_and_answer_to_keys(page: Any, address: str) -> None:
    _open(page, address, agent="random", task="cheetah-run")
    for label in ("Task", "Agent"):
        assert page.get_by_role("combobox", name=label).count() == 1
    for label in ("Noise on its actions", "Gravity", "Speed"):
        assert page.get_by_role("slider", name=label).count() == 1
    stage = page.get_by_role("application")
    stage.focus()
    page.keyboard.press("Space")
    assert page.get_by_role("button", name="Play").get_attribute("aria-pressed") == "true"
    page.keyboard.press("n")
    page.wait_for_function("document.title.startsWith('cheetah-run-backwards')")


def test_a_weightless_task_offers_no_gravity(page: Any, address: str) -> None:
    _open(page, address, agent="random", task="fish-swim")
    assert page.get_by_role("slider", name="Gravity").is_disabled()
    page.get_by_role("combobox", name="Task").select_option("walker-run")
    page.wait_for_selector("#gravity:enabled")


def test_a_body_can_be_held(page: Any, address: str) -> None:
    _open(page, address, agent="none", task="pendulum-swingup")
    page.wait_for_timeout(500)
    box = page.locator("#view").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + 0.43 * box["height"]  # its hinge
    page.mouse.move(x, y)
    page.mouse.down()
    assert "holding" in page.locator("#view").get_attribute("class")
    page.mouse.up()
    assert "holding" not in page.locator("#view").get_attribute("class")


def test_an_own_task_is_shown_and_controlled_live(page: Any) -> None:
    with live_page(PlayConfig(tasks="own_envs:Point-v0", port=0)) as running:
        page.goto(next(running))
        page.wait_for_function("Number(document.getElementById('return').textContent) > 1")
        drawn = "document.getElementById('picture').naturalWidth"
        assert page.evaluate(drawn) == 60
        assert page.title() == "Point-v0 · tdmpc-opt play"
        page.get_by_role("slider", name="Noise on the actions").fill("0.5")
        page.get_by_role("button", name="Pause").click()
        page.get_by_role("button", name="Go on").wait_for()
        assert page.locator("#noise-value").inner_text() == "0.5"
        assert page.get_by_role("button", name="+ x").is_disabled()  # without MuJoCo
        page.get_by_role("button", name="New episode").click()
        page.wait_for_function("document.getElementById('step').textContent.startsWith('0 of')")
        assert page.problems == []
    page.wait_for_selector("#message.fault")
    assert "No connection to tdmpc-opt play" in page.get_by_role("alert").inner_text()
