"""Messages that no client should send: the server has to answer each and serve the next.

Several connections send cut, changed, random and deeply nested messages, maps whose values are
of any kind and arrays that lie about themselves. Some break off, or send more than the limit.
The server is a process of its own. Every answer has to be one line or actions in [-1, 1]; at
the end a good message has to be answered as at the beginning, within the memory of a few
messages. Writes results/hostile-messages.json:

    python benchmarks/hostile_messages.py
"""

import asyncio
import random
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import tyro
from rich.console import Console
from timing import save
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tdmpc_opt.server.server import pack, unpack

TASK = "walker-walk"
GOOD = {"observation": np.linspace(-1, 1, 24, dtype=np.float32), "task": TASK}
AT_ONCE = 32
"""Messages that a client sends before it reads their answers."""
LIMIT = 1 << 20
"""Bytes of the longest message that the server takes."""
KINDS = {"values": 500, "changed": 200, "cut": 100, "random": 100, "text": 50, "good": 45}
KINDS |= {"deep": 3, "broken off": 1, "too long": 1}
"""How often each kind is sent, of 1000 messages."""
_WORDS = (*("", "hold", "error", TASK, "walker" * 99, "<f4", "<f8", "|b1", "|O", "V9", "f4,f"),)
_WORDS += ("(2)f", "<,4", "a", "M8", "g", "f0", "observation", "task")
_LEAVES = (None, True, 0, 1, -1, 2**63, -(2**63), 1.5, float("nan"), float("inf"), 1e300)
_LEAVES += (b"", b"abc", bytes(96), bytes(192), *_WORDS)
_SHAPES = ([24], [1, 24], [0], [], [-1], [2**60], [2**63], [1] * 70)


@dataclass(frozen=True)
class Config:
    """What to send."""

    checkpoint: str = "mt30-1m"
    """What is served: a file or a zoo name."""
    messages: int = 1_000_000
    """Messages, over all connections."""
    clients: int = 4
    """Connections at a time."""
    seed: int = 0
    """Seed of the messages."""
    output: Path = Path("results/hostile-messages.json")
    """Result file."""


def hostile(source: random.Random) -> tuple[str, bytes | str]:
    """Return the kind of a random message, and the message."""
    (kind,) = source.choices([*KINDS], [*KINDS.values()])
    if kind == "values":
        return kind, msgpack.packb(_message(source))
    if kind == "random":
        return kind, source.randbytes(source.randrange(200))
    if kind == "text":
        return kind, source.choice(_WORDS)
    if kind == "deep":
        return kind, b"\x81\xabobservation" + b"\x91" * source.choice((500, 1000, 100_000))
    if kind == "too long":
        return kind, bytes(LIMIT + 1)
    data = bytearray(pack(GOOD))
    if kind == "cut":
        del data[source.randrange(len(data)) :]
    for _ in range(3 if kind == "changed" else 0):
        data[source.randrange(len(data))] = source.randrange(256)
    return kind, bytes(data)


def _message(source: random.Random) -> Any:
    """Return a map with the keys of the protocol, most with values of no use."""
    message = {
        "observation": _either(source, GOOD["observation"].tolist()),
        "task": _either(source, TASK),
    }
    for key in ("reset", "deadline_ms", "on_invalid", "other"):
        if source.random() < 0.2:
            message[key] = _value(source)
    return message


def _either(source: random.Random, good: Any) -> Any:
    return good if source.random() < 0.5 else _value(source)


def _value(source: random.Random, depth: int = 0) -> Any:
    """Return a value of any kind, in which others may be nested."""
    kind = source.randrange(10 if depth < 4 else 5)
    if kind < 5:
        return source.choice(_LEAVES)
    if kind == 5:
        depths = range(source.choice((3, 70, 480)))
        return reduce(lambda inner, _: [inner], depths, source.choice(_LEAVES))
    inner = [_value(source, depth + 1) for _ in range(source.randrange(1, 4))]
    if kind == 6:
        return inner
    if kind == 7:
        return {source.choice(_WORDS): value for value in inner}
    fields = {b"data": inner[0], b"dtype": source.choice(_WORDS)}
    if kind == 8:
        return fields | {b"__npgeneric__": True}
    data = source.choice((bytes(96), bytes(192), inner[-1]))
    shape = source.choice((*_SHAPES, inner[0]))
    dtype = source.choice(("<f4", "<f8", fields[b"dtype"]))
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


def check(answer: bytes | str) -> str:
    """Return the kind of an answer.

    Raises:
        AssertionError: It is neither one line nor actions in [-1, 1].
    """
    if isinstance(answer, str):
        assert answer.isprintable(), answer
        assert len(answer) < 2000, answer
        return "one line"
    actions = unpack(answer)["actions"]
    assert np.abs(actions).max() <= 1, actions
    return "actions"


async def _client(address: str, config: Config, number: int, found: Counter[str]) -> None:
    """Send one connection's share of the messages and count them and their answers."""
    source = random.Random(f"{config.seed} {number}")
    left = config.messages // config.clients
    while left:
        async with connect(address, max_queue=None, compression=None) as socket:
            await socket.recv()
            ended = False
            while left and not ended:
                sent = [hostile(source) for _ in range(min(left, AT_ONCE))]
                ends = [
                    i for i, each in enumerate(sent) if each[0] in ("broken off", "too long")
                ]
                sent = sent[: ends[0] + 1] if ends else sent
                left -= len(sent)
                ended = await _exchange(socket, sent, found)


async def _exchange(socket: Any, sent: list[tuple[str, Any]], found: Counter[str]) -> bool:
    """Send messages and read their answers; return whether the last ended the connection."""
    found.update(kind for kind, _ in sent)
    last, data = sent[-1]
    if last in ("broken off", "too long"):
        sent = sent[:-1]
    for _, message in sent:
        await socket.send(message)
    if last == "broken off":
        socket.transport.abort()
        return True
    for _ in sent:
        found[check(await asyncio.wait_for(socket.recv(), 60))] += 1
    if last != "too long":
        return False
    await socket.send(data)
    try:
        await asyncio.wait_for(socket.recv(), 60)
    except ConnectionClosed:
        return True
    raise AssertionError("a message beyond the limit was answered")


async def _good(address: str) -> bytes:
    """Return the actions that a good message is answered with."""
    async with connect(address) as socket:
        await socket.recv()
        await socket.send(pack(GOOD))
        actions: bytes = unpack(await socket.recv())["actions"].tobytes()
        return actions


async def _send_all(address: str, config: Config) -> Counter[str]:
    found: Counter[str] = Counter()
    clients = (_client(address, config, number, found) for number in range(config.clients))
    await asyncio.gather(*clients)
    return found


def main(config: Config) -> None:
    """Send the messages, check the server, and write the result file."""
    command = [sys.executable, "-W", "error", "-m", "tdmpc_opt", "serve", config.checkpoint]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "--port", "0"], text=True, **pipes) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[2].rstrip(";")
            wanted = asyncio.run(_good(address))
            memory, start = {"before_mb": _megabytes(server.pid)}, time.perf_counter()
            found = asyncio.run(_send_all(address, config))
            seconds = time.perf_counter() - start
            assert asyncio.run(_good(address)) == wanted
            memory["after_mb"] = _megabytes(server.pid)
        finally:
            server.terminate()
            errors = server.communicate(timeout=60)[1]
    assert (server.returncode, errors) == (0, "")
    sent = {kind: found.pop(kind, 0) for kind in KINDS}
    facts = {"messages": sum(sent.values()), "sent": sent, "answers": dict(found)}
    facts |= {"server_memory": memory, "seconds": seconds}
    save("hostile-messages", config, facts)
    Console().print_json(data=facts)


def _megabytes(process: int) -> float:
    """Return the memory of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    (kilobytes,) = re.findall(r"VmRSS:\s+(\d+) kB", status)
    return int(kilobytes) / 1024


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
