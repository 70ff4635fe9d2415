"""A control loop at a fixed rate, for a robot or, to try it, the simulator.

    python examples/robot_loop.py walk.onnx walker-walk
    your-driver | python examples/robot_loop.py walk.onnx walker-walk --source stdin

The source `stdin` reads an observation a line and writes an action a line to stdout: connect it
to the program that talks to the robot. The rate is that of the file's contract, unless `--rate`
names another; Ctrl-C or SIGTERM ends the loop. Where an observation is invalid or late, or an
action is late, the last action is sent again (`--on-invalid hold`), or zeros (`--on-invalid
zero`).
`--log loop.mcap` (`pip install "tdmpc-opt[log]"`) writes a file that Foxglove and Rerun open.
The runtime needs neither torch nor the simulator.
"""

import argparse
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np

from tdmpc_opt.contract import OnInvalid
from tdmpc_opt.errors import InputError, MissingDependencyError, TdmpcOptError
from tdmpc_opt.runtime import Agent, load

END = object()
"""What a source returns in place of an observation when it has ended."""


class Simulator:
    """One episode of the simulator."""

    def __init__(self, task: str) -> None:
        from tdmpc_opt import make_env  # needs the extra envs

        self._env, self.total, self._done = make_env(task, 0), 0.0, False
        self._obs = self._env.reset()[0]

    def read(self, seconds: float) -> object:
        """Return the newest observation, or `END`."""
        return END if self._done else self._obs

    def write(self, action: np.ndarray) -> None:
        """Send an action, in [-1, 1]."""
        self._obs, reward, terminated, truncated, _ = self._env.step(action)
        self.total += float(reward)
        self._done = terminated or truncated


class Lines:
    """A program that writes observations to our stdin and reads actions from our stdout."""

    def __init__(self) -> None:
        self._unfinished, self._ended = b"", False

    def read(self, seconds: float) -> object:
        """Return the newest observation since the last call, or `END`.

        Older ones are dropped. An observation that does not come within the time is None; one
        with a word that is no number is returned as words, which the agent refuses.
        """
        newest, stop = None, time.perf_counter() + seconds
        while not self._ended:
            left = max(0.0, stop - time.perf_counter()) if newest is None else 0.0
            if not select.select([sys.stdin], [], [], left)[0]:
                break
            data = os.read(sys.stdin.fileno(), 1 << 16)
            self._ended = not data
            *lines, self._unfinished = (self._unfinished + data).split(b"\n")
            newest = lines[-1] if lines else newest
        if newest is None:
            return END if self._ended else None
        try:
            return np.array(newest.split(), np.float32)
        except ValueError:
            return newest.split()

    def write(self, action: np.ndarray) -> None:
        """Send an action, in [-1, 1]."""
        line = " ".join(f"{number:.9g}" for number in action) + "\n"
        os.write(sys.stdout.fileno(), line.encode())


class Log:
    """Steps of the loop as JSON messages of an MCAP file."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        try:
            from mcap.writer import Writer
        except ModuleNotFoundError:
            raise MissingDependencyError(
                'the log needs mcap: pip install "tdmpc-opt[log]"'
            ) from None
        if path.suffix != ".mcap":
            raise InputError(f"a log is an MCAP file; name it {path.stem}.mcap, not {path}")
        self._writer = Writer(stack.enter_context(path.open("wb")))
        self._writer.start()
        stack.callback(self._writer.finish)
        numbers = {"type": "array", "items": {"type": "number"}}
        fields = {"observation": numbers, "action": numbers, "ms": {"type": "number"}}
        fields |= {"missed": {"type": "boolean"}}
        form = json.dumps({"type": "object", "properties": fields}).encode()
        schema = self._writer.register_schema("tdmpc_opt.Step", "jsonschema", form)
        self._channel = self._writer.register_channel("/step", "json", schema)

    def step(self, obs: object, action: np.ndarray, ms: float, missed: bool) -> None:
        """Write one step; numbers that JSON lacks, and what is no number, become null."""
        values = np.array(obs, np.float64) if isinstance(obs, np.ndarray) else np.empty(0)
        numbers = [float(x) if np.isfinite(x) else None for x in values.ravel()]
        data = {"observation": numbers, "action": action.tolist(), "ms": ms, "missed": missed}
        now = time.time_ns()
        self._writer.add_message(self._channel, now, json.dumps(data).encode(), now)


def control(
    agent: Agent,
    task: str,
    source: Simulator | Lines,
    period: float,
    log: Log | None,
    on_invalid: OnInvalid = "hold",
) -> Iterator[tuple[float, bool]]:
    """Act until the source ends; yield the milliseconds of each step and whether it was missed.

    Args:
        agent: Of `tdmpc_opt.runtime`.
        task: Its task.
        source: Where observations come from and actions go to.
        period: Seconds of a step. The observation has to be there after a quarter of them, and
            the action half of them later.
        log: Where steps are written.
        on_invalid: What is sent for an invalid or late observation and a late action.
    """
    action = zeros = np.zeros(agent.tasks[task].action_dim, np.float32)
    agent.reset()
    options = {"deadline_ms": 400 * period, "on_invalid": on_invalid}
    with ThreadPoolExecutor(1) as worker:
        late, tick = None, time.perf_counter()
        while (obs := source.read(period / 4)) is not END:
            start, missed = time.perf_counter(), True
            if late is None or late.done():  # else the worker still computes an old action
                invalid = agent.invalid
                late = worker.submit(agent.act, obs, task, **options)
                if wait([late], timeout=period / 2).done:
                    found, missed = late.result(), agent.invalid > invalid
                    action = action if missed else found
            sent = zeros if missed and on_invalid == "zero" else action
            ms = 1000 * (time.perf_counter() - start)
            source.write(sent)
            if log:
                log.step(obs, sent, ms, missed)
            yield ms, missed
            # A long stop is not caught up.
            tick = max(tick + period, time.perf_counter() - period)
            time.sleep(max(0.0, tick - time.perf_counter()))


def rate_of(agent: Agent, task: str, given: float | None) -> float:
    """Return the actions a second: those that were asked for, or the contract's."""
    contract = agent.contract(task)
    rate = given if given is not None or contract is None else contract.rate_hz
    if rate is None:
        raise InputError(f"the file does not state the rate of {task}; name it with --rate")
    if not 0.01 <= rate <= 10_000:
        raise InputError(f"--rate must be in 0.01..10000 actions a second, got {rate:g}")
    return rate


def main() -> None:
    """Run the loop and print what became of the deadlines."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", help="what tdmpc_opt.runtime.load takes")
    parser.add_argument("task")
    parser.add_argument("--source", choices=("simulator", "stdin"), default="simulator")
    parser.add_argument("--rate", type=float, help="actions a second; else the contract's")
    parser.add_argument("--on-invalid", choices=("hold", "zero"), default="hold")
    parser.add_argument("--log", help="MCAP file to write")
    given = parser.parse_args()
    steps = []
    interrupted = True
    try:
        with ExitStack() as stack, suppress(KeyboardInterrupt):
            agent = load(given.file)
            period = 1 / rate_of(agent, given.task, given.rate)
            source = Simulator(given.task) if given.source == "simulator" else Lines()
            log = Log(Path(given.log), stack) if given.log else None
            steps.extend(control(agent, given.task, source, period, log, given.on_invalid))
            interrupted = False
        if not steps:
            ended = "loop was interrupted" if interrupted else "source ended"
            raise InputError(f"the {ended} before its first step")
    except (OSError, TdmpcOptError) as error:
        sys.exit(f"robot_loop.py: {error}")
    median, slow = np.quantile([ms for ms, _ in steps], [0.5, 0.99])
    missed = sum(missed for _, missed in steps)
    result = f"return {source.total:.1f}; " if isinstance(source, Simulator) else ""
    sys.stderr.write(
        f"{result}an action took {median:.2f} ms, 99 of 100 at most {slow:.2f} ms; {missed} of "
        f"{len(steps)} actions were late or had no valid observation ({given.on_invalid})\n"
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
