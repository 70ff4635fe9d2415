"""What the benchmarks share: timing in turns, and result files."""

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tdmpc_opt import machine
from tdmpc_opt.checkpoints.load import resolve
from tdmpc_opt.files import sha256

Times = dict[str, list[tuple[float, float]]]
"""Seconds of wall and of processor time of each turn, by contender."""


def race(contenders: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 1) -> Times:
    """Time the contenders in turns, so that other load on the machine affects all of them."""
    times: Times = {name: [] for name in contenders}
    for contender in contenders.values():
        for _ in range(warm):
            contender()
    for _ in range(rounds):
        for name, contender in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            contender()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return times


def records(times: Times, units: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Summarize the times of each contender; speedups are relative to the first one.

    Args:
        times: What `race` measured.
        units: Units of work in a turn of each contender, such as updates.
    """
    plain = np.array(next(iter(times.values()))) / units[next(iter(times))]
    found = {}
    for name, turns in times.items():
        own = np.array(turns) / units[name]
        ratio = plain / own
        found[name] = {
            "per_second": float(1 / np.median(own[:, 0])),
            "ms": float(1000 * np.median(own[:, 0])),
            "cpu_ms": float(1000 * np.median(own[:, 1])),
            "cpu_ms_min": float(1000 * own[:, 1].min()),
            "speedup": float(np.median(ratio[:, 0])),
            "speedup_cpu": float(np.median(ratio[:, 1])),
            "turns": len(turns),
        }
    return found


def report(
    kind: str, unit: str, found: dict[str, dict[str, float]], config: Any, facts: dict[str, Any]
) -> None:
    """Save what `records` returned, counted in `unit` per second, and print it as a table."""
    save(kind, config, {"unit": unit, "contenders": found, **facts})
    table = Table("contender", f"{unit}/s", "ms", "CPU ms", "speedup", "by CPU", title=kind)
    for name, r in found.items():
        shown = [f"{r[key]:.4g}" if key in r else "-" for key in ("per_second", "ms", "cpu_ms")]
        shown += [f"{r[key]:.2f}x" if key in r else "-" for key in ("speedup", "speedup_cpu")]
        table.add_row(name, *shown)
    Console().print(table)


def save(
    kind: str, config: Any, facts: dict[str, Any], leave_out: Sequence[str] = ("output",)
) -> None:
    """Write a result file, the configuration and the machine included.

    Args:
        kind: What was measured.
        config: Dataclass with the field `output`, the path of the file.
        facts: The results.
        leave_out: Fields of the configuration that contain paths of this machine.
    """
    settings = {key: value for key, value in asdict(config).items() if key not in leave_out}
    if "checkpoint" in settings:
        path = resolve(settings["checkpoint"])
        settings["checkpoint"] = {"name": path.name, "sha256": sha256(path)}
    content = {
        "kind": kind,
        "schema": 1,
        **facts,
        "config": settings,
        "versions": machine.versions(),
        "machine": machine.facts(),
    }
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(json.dumps(content, indent=1) + "\n")
    Console().print(f"wrote {config.output}")


def cycle(items: Sequence[Any]) -> Callable[[], Any]:
    """Return a function that returns the items in turn, without end."""
    return itertools.cycle(items).__next__
