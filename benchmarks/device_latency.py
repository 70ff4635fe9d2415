"""Latency of one action on a device: C, ONNX Runtime, numpy, torch and the server, on one core.

The engines take turns in one process; speedups are relative to a planner and a policy of plain
modules with the published budget (plain.py). Of ONNX Runtime the session alone is timed as
well: the difference to `act` is what Python adds. The server is a process of its own.
Writes results/bench-device-latency.json:

    taskset -c 0 python benchmarks/device_latency.py
"""

import ctypes
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from plain import PlainModel, PlainPlanner
from timing import cycle, race, records, report
from websockets.sync.client import connect

from tdmpc_opt import load_agent, make_env
from tdmpc_opt.compression.quantize import quantize
from tdmpc_opt.configs.deploy import ExportConfig, QuantizeConfig
from tdmpc_opt.export.export import export
from tdmpc_opt.planning.mppi import draw_noise
from tdmpc_opt.planning.presets import PRESETS, PUBLISHED
from tdmpc_opt.runtime import load
from tdmpc_opt.server.server import pack, unpack

Array = NDArray[np.float32]
FLAGS = {
    "-O2": ("-O2",),
    "-O3, vector units": (
        *("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"),
        *("-fno-signed-zeros", "-fassociative-math", "-freciprocal-math"),
    ),
}
"""Compiler options of a plain build, and those of the exported CMake file on this processor."""
_LOOP = """
#include "{name}.h"
int loop(int count, int rows, const float *obs, float *action)
{{
    int status = 0;
    for (int i = 0; i < count; ++i) {{
        status |= {name}_act(0, obs + (i % rows) * {width}, action);
    }}
    return status;
}}
"""


@dataclass(frozen=True)
class Config:
    """What to time."""

    checkpoint: str = "mt30-1m"
    """Checkpoint file or zoo name."""
    task: str = "walker-walk"
    """Task whose policy acts."""
    preset: str = "realtime"
    """Budget of the planner."""
    rounds: int = 20
    """Turns of each engine, after one that is not counted."""
    turn_ms: float = 200.0
    """Approximate duration of a turn."""
    requests: int = 5000
    """Round trips to the server."""
    output: Path = Path("results/bench-device-latency.json")
    """Result file."""


def main(config: Config) -> None:
    """Time the engines, write the result file and print it as a table."""
    torch.set_num_threads(1)
    rows = _observations(config.task)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planners, policies = _torch_loops(config, rows)
        for kind in ("fp32", "int8"):
            policies |= _c_loops(config, kind, folder, rows)
            policies |= _onnx_loops(config, kind, folder, rows)
        policies["numpy fp32, act"] = _numpy_loop(config, folder, rows)
        planners[f"planner {config.preset}, act"] = _planner_loop(config, folder, rows)
        loops = policies | planners
        tried = records(
            race({n: _times(f, 5) for n, f in loops.items()}, 3), dict.fromkeys(loops, 5)
        )
        turns = {n: max(1, int(config.turn_ms / r["ms"])) for n, r in tried.items()}
        times = race({n: _times(loop, turns[n]) for n, loop in loops.items()}, config.rounds)
        found = records({n: times[n] for n in policies}, turns)
        found |= records({n: times[n] for n in planners}, turns)
        server = _round_trips(folder / "policy-fp32.onnx", config, rows)
    facts = {
        "actions_a_turn": turns,
        "server": server,
        "c_flags": {k: [*v] for k, v in FLAGS.items()},
    }
    report("device-latency", "actions", found, config, facts)
    print(server)  # noqa: T201


def _times(loop: Callable[[int], Any], count: int) -> Callable[[], Any]:
    return lambda: loop(count)


def _c_loops(
    config: Config, kind: Any, folder: Path, rows: Array
) -> dict[str, Callable[[int], Any]]:
    """Export and compile the policy; return what runs so many actions, by compiler options."""
    source = folder / f"c-{kind}"
    common = {"checkpoint": config.checkpoint, "task": config.task, "policy_only": True}
    export(ExportConfig(**common, target="c", format=kind, output=source))
    name = next(source.glob("*.h")).stem
    (source / "loop.c").write_text(_LOOP.format(name=name, width=rows.shape[1]))
    action = np.zeros(32, np.float32)
    found: dict[str, Callable[[int], Any]] = {}
    for index, (title, flags) in enumerate(FLAGS.items()):
        library = source / f"loop{index}.so"
        command = ["cc", "-std=c99", *flags, "-shared", "-fPIC", "-o", library]
        command += [source / "loop.c", source / f"{name}.c", "-lm"]
        subprocess.run(command, check=True)
        loop = ctypes.CDLL(str(library)).loop
        loop.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

        def run(count: int, loop: Any = loop) -> None:
            if loop(count, len(rows), rows.ctypes.data, action.ctypes.data):
                raise SystemExit("the C policy refuses an observation")

        found[f"C {kind}, {title}"] = run
    return found


def _onnx_loops(
    config: Config, kind: Any, folder: Path, rows: Array
) -> dict[str, Callable[[int], Any]]:
    """Return loops over `act` of an exported policy, and over its session alone."""
    path = folder / f"policy-{kind}.onnx"
    common = {"checkpoint": config.checkpoint, "task": config.task, "policy_only": True}
    export(ExportConfig(**common, format=kind, output=path))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )
    agent, draw, names = load(path), cycle(list(rows)), ["action"]
    return {
        f"ONNX Runtime {kind}, session alone": _loop(
            lambda: session.run(names, {"obs": draw()[None]})
        ),
        f"ONNX Runtime {kind}, act": _loop(lambda: agent.act(draw())),
    }


def _numpy_loop(config: Config, folder: Path, rows: Array) -> Callable[[int], Any]:
    """Return a loop over the policy in numpy."""
    path, draw = folder / "policy.safetensors", cycle(list(rows))
    common = {"checkpoint": config.checkpoint, "task": config.task}
    quantize(QuantizeConfig(**common, policy_only=True, format="fp32", output=path))
    agent = load(path)
    return _loop(lambda: agent.act(draw()))


def _planner_loop(config: Config, folder: Path, rows: Array) -> Callable[[int], Any]:
    """Return a loop over the exported planner."""
    path, draw = folder / "planner.onnx", cycle(list(rows))
    common = {"checkpoint": config.checkpoint, "task": config.task}
    export(ExportConfig(**common, preset=config.preset, output=path))
    agent = load(path)
    return _loop(lambda: agent.act(draw()))


def _torch_loops(
    config: Config, rows: Array
) -> tuple[dict[str, Callable[[int], Any]], dict[str, Callable[[int], Any]]]:
    """Return loops over planners and over policies in torch, those of plain modules first."""
    policy = load_agent(config.checkpoint, mode="policy")
    planner = load_agent(config.checkpoint, preset=config.preset, engine="eager")
    model, budget = policy.world_model, PRESETS[PUBLISHED].budget
    plain, search = PlainModel(model).eval(), PlainPlanner(model, budget)
    task = torch.tensor([model.tasks.index(config.task)])
    padded = np.pad(rows, ((0, 0), (0, model.config.obs_dim - rows.shape[1])))
    draw, draw_padded = cycle(list(rows)), cycle(list(torch.from_numpy(padded)[:, None]))
    shape, source = (budget.horizon, 1, model.config.action_dim), torch.Generator()
    mean, nothing = torch.zeros(shape), torch.zeros(shape[1:])

    @torch.inference_mode()
    def act(plans: bool) -> None:
        nonlocal mean
        z = plain.encoder(plain.join(draw_padded(), task))
        if plans:
            noise = draw_noise(model, budget, [source])
            mean, _ = search.plan(z, task, mean, noise)
        else:
            plain.policy(z, task, nothing)

    return {
        f"plain modules, planner {PUBLISHED}": _loop(lambda: act(plans=True)),
        f"torch fp32, planner {config.preset}, act": _loop(
            lambda: planner.act(draw(), config.task)
        ),
    }, {
        "plain modules, policy": _loop(lambda: act(plans=False)),
        "torch fp32, act": _loop(lambda: policy.act(draw(), config.task)),
    }


def _loop(act: Callable[[], Any]) -> Callable[[int], None]:
    def run(count: int) -> None:
        for _ in range(count):
            act()

    return run


@contextmanager
def _served(path: Path) -> Iterator[str]:
    """Serve a file from a process of its own and yield the address."""
    command = [sys.executable, "-m", "tdmpc_opt", "serve", str(path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split()[2].rstrip(";")
        finally:
            server.terminate()


def _round_trips(path: Path, config: Config, rows: Array) -> dict[str, float]:
    """Return the milliseconds of requests to the server, from observation to action."""
    times, draw = [], cycle(list(rows))
    with _served(path) as address, connect(address) as client:
        client.recv()
        for _ in range(config.requests + 100):
            start = time.perf_counter()
            client.send(pack({"observation": draw(), "task": config.task}))
            unpack(client.recv())
            times.append(1000 * (time.perf_counter() - start))
    counted = times[100:]
    shares = {"ms_p50": 0.5, "ms_p90": 0.9, "ms_p99": 0.99, "ms_max": 1.0}
    return {name: float(np.quantile(counted, share)) for name, share in shares.items()}


def _observations(task: str) -> Array:
    """Return the first observations of an episode of random actions."""
    env = make_env(task, 0)
    env.action_space.seed(0)
    found = [env.reset()[0]]
    while len(found) < 50:
        found.append(env.step(env.action_space.sample())[0])
    return np.ascontiguousarray(found, np.float32)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
