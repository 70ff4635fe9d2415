"""What the benchmarks share: contenders that take turns, and the record of it."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tdmpc_opt import provenance
from tdmpc_opt.checkpoints.load import resolve, sha256

Times = dict[str, list[tuple[float, float]]]
"""Seconds of wall and of processor time of each turn, by contender."""


def race(contenders: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 1) -> Times:
    """Let all take turns, so that what else the machine does hits all of them alike."""
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
    """Sum up; the first contender is the plain one that ratios are against.

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
    """Write the result file that the config names, and print it as a table.

    Args:
        kind: What was measured.
        unit: What is counted per second.
        found: What `records` returned.
        config: Dataclass of the run, with a field `output`.
        facts: What else a reader should know.
    """
    save(kind, config, {"unit": unit, "contenders": found, **facts})
    table = Table(title=kind, title_justify="left")
    columns = (f"{unit}/s", "ms", "CPU ms", "speedup", "by CPU")
    table.add_column("contender")
    for column in columns:
        table.add_column(column, justify="right")
    for name, r in found.items():
        shown = [f"{r[key]:.4g}" if key in r else "-" for key in ("per_second", "ms", "cpu_ms")]
        shown += [f"{r[key]:.2f}x" if key in r else "-" for key in ("speedup", "speedup_cpu")]
        table.add_row(name, *shown)
    Console().print(table)


def save(
    kind: str, config: Any, facts: dict[str, Any], leave_out: Sequence[str] = ("output",)
) -> None:
    """Write a result file where the config says, with the config and the machine in it.

    Args:
        kind: What was measured.
        config: Dataclass of the run, with a field `output`.
        facts: What was found.
        leave_out: Fields of the config that say only where things are.
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
        "versions": provenance.versions(),
        "machine": provenance.machine(),
    }
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(json.dumps(content, indent=1) + "\n")
    Console().print(f"wrote {config.output}")


def cycle(items: Sequence[Any]) -> Callable[[], Any]:
    """Return what gives the items one after the other, again and again."""
    count = 0

    def give() -> Any:
        nonlocal count
        count += 1
        return items[(count - 1) % len(items)]

    return give
