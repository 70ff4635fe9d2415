"""A policy server in a thread of the test's process."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tdmpc_opt.server.server import PolicyServer


@contextmanager
def served(path: Path, **options: Any) -> Iterator[tuple[PolicyServer, str]]:
    """Serve a file from a thread and yield the server and its address without a scheme."""
    server, ready, loop = PolicyServer(path, **options), threading.Event(), []
    address = []

    def started(host: str, port: int) -> None:
        address.append(f"{host}:{port}")
        loop.append((asyncio.get_running_loop(), asyncio.current_task()))
        ready.set()

    def serve() -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(server.run("127.0.0.1", 0, started))

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(10)
    try:
        yield server, address[0]
    finally:
        running, task = loop[0]
        running.call_soon_threadsafe(task.cancel)
        thread.join(10)
        assert not thread.is_alive()
