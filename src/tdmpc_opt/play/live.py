"""Tasks live: Python simulates and draws an environment in real time, a page shows it.

The page receives server-sent events, each with a picture and the numbers that belong to it, and
posts what its controls ask for.
"""

import base64
import io
import json
import multiprocessing
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from tdmpc_opt.agents.compute import threads
from tdmpc_opt.agents.rollout import Player
from tdmpc_opt.agents.sources import CheckpointSource, PolicySource, open_source
from tdmpc_opt.configs.measure import PlayConfig
from tdmpc_opt.errors import InputError
from tdmpc_opt.files import parse_json
from tdmpc_opt.play.agents import PRESET
from tdmpc_opt.play.server import FileHandler, PlayServer
from tdmpc_opt.schema import TaskTable
from tdmpc_opt.tasks.offscreen import drawing_process

PAGE = Path(__file__).parent / "live_page"
"""Files of the page."""
VIEWERS = 8
"""Most pages that are served at a time."""
_LONGEST_WISH = 4096  # bytes
_SILENCE = 5.0  # seconds after which a page gets the newest event again, to see whether it left
_PATIENCE = 30.0  # seconds until a connection that takes or sends nothing is closed
_FRAME_SECONDS = 1 / 30
_HOLD_SECONDS = 0.5  # for which the last picture of an episode stays
_LATE = 0.25  # seconds behind real time from which the lost time is given up
_RATED = 50  # actions that the rate is measured over
_PUSH_SECONDS = 0.1
_PUSH = 1.0  # change of speed of all bodies by a push, in metres per second


@dataclass(frozen=True)
class LiveJob:
    """What the process that draws is to serve."""

    agents: Mapping[str, PolicySource]
    """By the name that the page shows."""
    tasks: TaskTable
    port: int


def live_page(config: PlayConfig) -> AbstractContextManager[Iterator[str]]:
    """Serve the page of a task from a process that can draw.

    Returns:
        A context whose iterator yields the page's address once the page can be opened, and then
        waits until the context ends.

    Raises:
        CheckpointError: An agent that cannot be read.
        UnknownTaskError: A task that is not known, or that an agent was not made for.
        InputError: An environment that no agent can act in or that draws no picture, or a port
            that cannot be used.
        MissingDependencyError: No off-screen OpenGL on this machine, or a library is missing.
    """
    agents: dict[str, PolicySource] = {}
    for text in config.checkpoints:
        source = open_source(text, names=config.tasks)
        source.tasks(config.tasks)
        agents[text] = source
        if isinstance(source, CheckpointSource) and source.plans():
            agents[f"{text}, planner"] = replace(source, mode="planner", preset=PRESET)
    agents["random"] = open_source("random")
    tasks = next(iter(agents.values())).tasks(config.tasks)
    return drawing_process(serve_live, LiveJob(agents, tasks, config.port))


def serve_live(job: LiveJob) -> Iterator[str]:
    """Yield the page's address, and serve it until the parent process ends.

    Run it where drawing works.

    Raises:
        TdmpcOptError: As `live_page`, or as the environment or an agent raises it later.
    """
    with threads(1), _LiveServer(job.port) as server:
        live = server.live = Live(job)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.address
            parent = multiprocessing.parent_process()
            while parent is None or parent.is_alive():
                live.advance()
        finally:
            server.shutdown()


@dataclass(frozen=True)
class _Controls:
    task: str
    agent: str
    noise: float | int = 0  # JSON has both
    paused: bool = False
    restart: bool = False
    push: Sequence[int] = (0, 0)


class Live:
    """One environment in real time, which all pages show and control.

    One thread calls `advance` and owns the environments, since OpenGL demands it; the server's
    threads call the other methods.

    Args:
        job: Agents and tasks, of which each pair is tried before anything is served.

    Raises:
        TdmpcOptError: An environment or an agent that does not work.
    """

    def __init__(self, job: LiveJob) -> None:
        self._tasks = {task.name: task for task in job.tasks.tasks}
        self._policies = {name: source.load(job.tasks) for name, source in job.agents.items()}
        for task in self._tasks.values():
            for policy in self._policies.values():
                player = Player(policy, task, 0)
                player.picture()
                player.env.close()
        self._controls = _Controls(next(iter(self._tasks)), next(iter(self._policies)))
        self._still: _Controls | None = None  # the controls of a paused picture that is shown
        self._changed = threading.Condition()
        self._viewers = self._number = 0
        self._event = b""
        self._player: Player | None = None
        self._shown = ("", "")
        self._push_left = 0  # steps
        self._due = self._drawn = 0.0
        self._acted: deque[float] = deque(maxlen=_RATED)
        self._rewards: list[float] = []
        self._last: dict[str, Any] | None = None

    def ask(self, wish: Mapping[str, Any]) -> None:
        """Take what a page asks for.

        Args:
            wish: Some of `task`, `agent`, `noise` (standard deviation, 0 to 1), `paused`,
                `restart` and `push` (-1 to 1 along the world's x and y axes).

        Raises:
            InputError: Something else.
        """
        checks: dict[str, Callable[[Any], bool]] = {
            "task": lambda value: value in list(self._tasks),
            "agent": lambda value: value in list(self._policies),
            "noise": lambda value: type(value) in (int, float) and 0 <= value <= 1,
            "paused": lambda value: isinstance(value, bool),
            "restart": lambda value: value is True,
            "push": lambda value: value in ([-1, 0], [1, 0], [0, -1], [0, 1]),
        }
        for name, value in wish.items():
            if name not in checks or not checks[name](value):
                raise InputError(f"the page cannot set {name!r:.40} to {value!r:.40}")
        with self._changed:
            self._controls = replace(self._controls, **wish)
            self._changed.notify_all()

    @contextmanager
    def viewer(self) -> Iterator[bool]:
        """Count a page that watches; yield whether it may."""
        with self._changed:
            admitted = self._viewers < VIEWERS
            self._viewers += admitted
            self._changed.notify_all()
        try:
            yield admitted
        finally:
            with self._changed:
                self._viewers -= admitted

    def newest(self, seen: int) -> tuple[bytes, int]:
        """Return the newest event and its number, after `seen` or after some seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._number > seen, _SILENCE)
            return self._event, self._number

    def advance(self) -> None:
        """Do one step in real time and show it; wait where nobody watches or nothing moves."""
        with self._changed:
            if not self._viewers or self._controls == self._still:
                self._changed.wait(1.0)
                return
            controls = self._controls
            self._controls = replace(controls, restart=False, push=(0, 0))
            self._still = self._controls if controls.paused else None
        player, begins = self._prepared(controls)
        player.noise = float(controls.noise)
        if not (begins or controls.paused):
            self._step(player, controls.push)
        now = time.monotonic()
        due = now - self._drawn >= _FRAME_SECONDS
        if due or begins or player.over or controls.paused:
            self._drawn = now
            self._publish(player, controls)
        self._sleep(1 / player.steps_per_second + (_HOLD_SECONDS if player.over else 0.0))

    def _prepared(self, controls: _Controls) -> tuple[Player, bool]:
        """Return the player that the controls name, and whether its episode begins."""
        wanted, player = (controls.task, controls.agent), self._player
        if player is None or wanted != self._shown:
            if player is not None:
                player.env.close()
            player = Player(self._policies[controls.agent], self._tasks[controls.task], 0)
            self._player, self._shown, self._last = player, wanted, None
        elif controls.restart or (player.over and not controls.paused):
            player.begin()
        else:
            return player, False
        _push(player, 0.0, 0.0)
        self._rewards.clear()
        self._acted.clear()
        return player, True

    def _step(self, player: Player, push: Sequence[int]) -> None:
        if any(push):
            self._push_left = max(1, round(_PUSH_SECONDS * player.steps_per_second))
            acceleration = _PUSH * player.steps_per_second / self._push_left
            _push(player, acceleration * push[0], acceleration * push[1])
        player.step()
        self._push_left -= 1
        if self._push_left == 0:
            _push(player, 0.0, 0.0)
        self._rewards.append(player.reward)
        self._acted.append(time.monotonic())
        if player.over:
            why = "terminated" if player.terminated else "time limit"
            self._last = {"return": player.total, "steps": player.steps, "why": why}

    def _publish(self, player: Player, controls: _Controls) -> None:
        file = io.BytesIO()
        Image.fromarray(player.picture()).save(file, format="JPEG", quality=85)
        span = self._acted[-1] - self._acted[0] if len(self._acted) > 1 else 0.0
        state = {
            "tasks": list(self._tasks),
            "agents": list(self._policies),
            **asdict(controls),
            "pushable": _mujoco(player) is not None,
            "steps": player.steps,
            "most_steps": player.task.episode_length,
            "rewards": self._rewards,
            "return": player.total,
            "last": self._last,
            "latency_ms": player.latency_ms,
            "rate": (len(self._acted) - 1) / span if span else None,
            "wanted_rate": player.steps_per_second,
            "picture": base64.b64encode(file.getvalue()).decode(),
        }
        self._rewards = []
        with self._changed:
            self._event = f"data: {json.dumps(state)}\n\n".encode()
            self._number += 1
            self._changed.notify_all()

    def _sleep(self, seconds: float) -> None:
        """Sleep until the next step is due."""
        now = time.monotonic()
        self._due = (self._due if now - self._due < _LATE else now) + seconds
        time.sleep(max(0.0, self._due - now))


def _push(player: Player, x: float, y: float) -> None:
    """Accelerate all bodies of a MuJoCo environment, in m/s^2, until the next call."""
    found = _mujoco(player)
    if found is not None:
        model, data = found
        data.xfrc_applied[:, :2] = np.outer(model.body_mass, (x, y))


def _mujoco(player: Player) -> tuple[Any, Any] | None:
    """Return MuJoCo's model and data of an environment, None where it has none."""
    inner = getattr(player.env, "unwrapped_environment", player.env)
    inner = getattr(inner, "physics", inner)  # dm_control's
    model, data = getattr(inner, "model", None), getattr(inner, "data", None)
    return (model, data) if hasattr(data, "xfrc_applied") else None


class _LiveServer(PlayServer):
    """Serves the page and its events."""

    live: Live

    def __init__(self, port: int) -> None:
        super().__init__([PAGE], port, _LiveHandler)


class _LiveHandler(FileHandler):
    server: _LiveServer
    timeout = _PATIENCE

    def do_GET(self) -> None:  # noqa: N802  # as http.server calls it
        """Answer with a file, or with events for as long as the page is open."""
        if urlsplit(self.path).path != "/events":
            super().do_GET()
        elif not self.refused():
            with self.server.live.viewer() as admitted:
                if not admitted:
                    self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, "too many pages are open")
                    return
                self._stream()

    def _stream(self) -> None:
        self.close_connection = True
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        number = 0
        with suppress(OSError):  # a page may leave at any time
            while True:
                event, number = self.server.live.newest(number)
                self.wfile.write(event)

    def do_POST(self) -> None:  # noqa: N802
        """Take what the page asks for."""
        if self.refused():
            return
        if self.path != "/control":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != self.headers["Host"]:
            self.send_error(HTTPStatus.FORBIDDEN, "only the page itself controls the task")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _LONGEST_WISH:
            self.close_connection = True
            self.send_error(HTTPStatus.BAD_REQUEST, f"send at most {_LONGEST_WISH} bytes")
            return
        try:
            wish = parse_json(self.rfile.read(int(length)))
            if not isinstance(wish, dict):
                raise InputError("send a JSON object")
            self.server.live.ask(wish)
        except ValueError as error:
            self.send_error(HTTPStatus.BAD_REQUEST, explain=str(error))
            return
        self.send_response(HTTPStatus.NO_CONTENT)
        self.end_headers()
