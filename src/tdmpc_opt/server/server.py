"""Serve the agent of one file over the openpi WebSocket protocol.

The server sends the agent's facts first. Then a message `{"observation": [obs], "task": name}`
is answered with `{"actions": [action]}`, or [k, action] where a plan serves for k actions. An
error is answered with one line of text, which openpi's client raises. NumPy arrays are maps of
their bytes.

Source: the wire format of openpi-client 0.1.2.
"""

import asyncio
import json
import logging
import re
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from tdmpc_opt.contract import check_on_invalid, numbers, shown, task_id
from tdmpc_opt.errors import InputError, ObservationError, TdmpcOptError
from tdmpc_opt.runtime import Agent, load

_KEPT = 10_000
"""Newest latencies that the statistics are of."""
_KNOWN = {"observation", "task", "reset", "deadline_ms", "on_invalid"}

_log = logging.getLogger("tdmpc_opt.server")
# Whoever sends garbage instead of a handshake must not fill the log.
_log.addFilter(lambda record: record.msg != "opening handshake failed")


class PolicyServer:
    """Acts for several clients, each with a plan that belongs to its connection.

    Args:
        path: What `tdmpc_opt.runtime.load` takes.
        threads: Threads of one action.
        max_clients: Connections at a time; further ones are answered with status 503.
        max_bytes: Longest message.
        ping_seconds: Time between pings; a client that answers none for as long is dropped.

    Raises:
        CheckpointError, InputError, MissingDependencyError: As `tdmpc_opt.runtime.load`.
    """

    def __init__(
        self,
        path: Path,
        threads: int = 1,
        max_clients: int = 8,
        max_bytes: int = 1 << 20,
        ping_seconds: float = 20.0,
    ) -> None:
        if min(max_clients, max_bytes) < 1:
            raise InputError("`max_clients` and the length of a message must be at least 1")
        self._agent = load(path, threads)
        self._max_clients, self._max_bytes = max_clients, max_bytes
        self._ping_seconds = ping_seconds
        self._latencies: deque[float] = deque(maxlen=_KEPT)
        self._answers = self._errors = 0
        self.clients = 0
        """Connections at the moment."""

    @property
    def facts(self) -> dict[str, Any]:
        """What a client is sent first: the tasks and how the agent acts."""
        plan, agent = self._agent.plan, self._agent
        tasks = [
            asdict(task) | {"contract": None if found is None else asdict(found)}
            for task in agent.tasks.tasks
            for found in [agent.contract(task.name)]
        ]
        return {
            "server": "tdmpc-opt",
            "kind": "policy" if plan is None else "planner",
            "preset": None if plan is None else plan.preset,
            "actions_per_answer": 1 if plan is None else plan.replan_every,
            "tasks": tasks,
        }

    @property
    def statistics(self) -> dict[str, Any]:
        """Counts since the start, and milliseconds of the newest answers."""
        times = np.array(self._latencies) if self._latencies else np.zeros(1)
        return {
            "clients": self.clients,
            "answers": self._answers,
            "errors": self._errors,
            "ms_p50": float(np.quantile(times, 0.5)),
            "ms_p99": float(np.quantile(times, 0.99)),
            "ms_max": float(times.max()),
        }

    async def run(
        self, host: str, port: int, started: Callable[[str, int], None] | None = None
    ) -> None:
        """Serve until SIGINT or SIGTERM, or until the task is cancelled.

        Args:
            host: Address to listen at.
            port: Its port; 0 takes any free one.
            started: Called with the address and the port once clients can connect.

        Raises:
            InputError: An address or a port that cannot be listened at.
        """
        stop = asyncio.get_running_loop().create_future()
        async with await self._listen(host, port) as server:
            where = next(iter(server.sockets)).getsockname()
            _stop_by_signals(stop)
            if started is not None:
                started(where[0], where[1])
            await stop

    async def _listen(self, host: str, port: int) -> Server:
        try:
            return await serve(
                self._converse,
                host,
                port,
                process_request=self._by_http,
                origins=[None],  # browsers send theirs: no web page reaches a robot
                compression=None,
                max_size=self._max_bytes,
                max_queue=4,
                ping_interval=self._ping_seconds,
                ping_timeout=self._ping_seconds,
                close_timeout=2,
                logger=_log,
            )
        except (OSError, OverflowError) as error:
            raise InputError(
                f"cannot listen at {host}, port {port}: {error}; choose others with --host and "
                "--port"
            ) from error

    def _by_http(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer what is no WebSocket, and refuse clients beyond the limit."""
        if request.path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if request.path == "/statistics":
            return connection.respond(HTTPStatus.OK, json.dumps(self.statistics) + "\n")
        if self.clients >= self._max_clients:
            text = f"{self.clients} clients are connected, no more are served\n"
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, text)
        return None

    async def _converse(self, connection: ServerConnection) -> None:
        if self.clients >= self._max_clients:  # several may have passed the check at once
            await connection.close(1013, "too many clients")
            return
        self.clients += 1
        try:
            # A plan and the last action belong to one connection.
            conversation = _Conversation(self._agent.for_another_loop())
            await connection.send(pack(self.facts))
            async for message in connection:
                await connection.send(await self._answer(conversation, message))
        except ConnectionClosed:
            pass  # a client may leave at any time
        finally:
            self.clients -= 1

    async def _answer(self, conversation: "_Conversation", message: str | bytes) -> str | bytes:
        start = time.perf_counter()
        try:
            actions, valid = await asyncio.to_thread(conversation.act, message)
        except TdmpcOptError as error:
            self._errors += 1
            return str(error)
        took = 1000 * (time.perf_counter() - start)
        self._latencies.append(took)
        self._answers += 1
        timing = {"infer_ms": took}
        return pack({"actions": actions, "valid": valid, "server_timing": timing})


class _Conversation:
    """Acts for one connection."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._task: int | None = None

    def act(self, message: str | bytes) -> tuple[NDArray[Any], bool]:
        """Return actions, [action] or [k, action], and whether the observation was valid."""
        if isinstance(message, str):
            raise InputError("send msgpack as a binary message, not text")
        asked = unpack(message)
        if not isinstance(asked, dict) or not asked.keys() <= _KNOWN:
            raise InputError(
                'send a map with "observation" and, if wanted, "task", "reset", "deadline_ms" '
                'and "on_invalid"'
            )
        task = task_id(self._agent.tasks, asked.get("task"))
        reset, on_invalid = asked.get("reset", False), asked.get("on_invalid", "error")
        if type(reset) is not bool:
            raise InputError("reset is true or false")
        check_on_invalid(on_invalid)
        if reset or task != self._task:
            self._agent.reset()
            self._task = task
        try:
            obs = numbers(asked.get("observation"))
            if obs.ndim == 2:
                raise ObservationError(f"an observation is [obs], got shape {list(obs.shape)}")
        except ObservationError:
            if on_invalid == "error":
                raise
            obs = None
        before = self._agent.invalid
        # The actions of one plan do not look at observations: they can be sent together.
        plan = self._agent.plan
        count = 1 if plan is None else plan.replan_every
        options = {"deadline_ms": asked.get("deadline_ms"), "on_invalid": on_invalid}
        actions = [self._agent.act(obs, task, **options) for _ in range(count)]
        valid = self._agent.invalid == before
        return actions[0] if count == 1 else np.stack(actions), valid


def _stop_by_signals(stop: "asyncio.Future[None]") -> None:
    """Let SIGINT and SIGTERM end the server, where this thread may handle signals."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        if not stop.done():
            stop.set_result(None)

    for which in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(which, end)
        except (NotImplementedError, RuntimeError, ValueError):
            return  # Windows, or not the main thread: Ctrl-C or cancelling ends it


_DTYPE = re.compile(r"[<>=|]?([fiu][1248]|b1)")
"""Floats, integers and booleans. numpy reads much more: structures, and even expressions."""


def pack(message: Any) -> bytes:
    """Return a message as bytes."""
    packed: bytes = msgpack.packb(message, default=_encoded)
    return packed


def unpack(data: bytes) -> Any:
    """Return the message that bytes contain.

    Raises:
        InputError: Bytes that are no message, or contain an array that is none.
    """
    try:
        return msgpack.unpackb(data, object_hook=_decoded)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"not a message of the openpi protocol: {reason[:200]}") from error


def _encoded(array: NDArray[Any]) -> dict[bytes, Any]:
    data = {b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}
    return {b"__ndarray__": True, **data}


def _decoded(fields: dict[Any, Any]) -> Any:
    if b"__npgeneric__" in fields:
        return fields.get(b"data")  # a plain number again
    if b"__ndarray__" not in fields:
        return fields
    data, name, shape = (fields.get(key) for key in (b"data", b"dtype", b"shape"))
    if not (isinstance(name, str) and _DTYPE.fullmatch(name)):
        raise ValueError(f"an array of dtype {shown(name)}; send floats, integers or booleans")
    if not (isinstance(data, bytes) and isinstance(shape, list)):
        raise ValueError("an array without data or shape")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("an array whose shape is not a list of sizes")
    values: NDArray[Any] = np.frombuffer(data, name).reshape(shape)
    return values
