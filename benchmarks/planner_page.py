"""Fill the tables of docs/planner.md from committed result files.

A table is between `<!-- begin NAME -->` and `<!-- end NAME -->`. Without its files it says so:

    python benchmarks/planner_page.py
"""

import json
from collections.abc import Callable
from typing import Any

from marked import RESULTS, ROOT, against, filled, read, score, table_of
from rich.console import Console

PAGE = ROOT / "docs" / "planner.md"
REUSED = (
    ("mt30-1m", "share-realtime", "realtime-every-2"),
    ("released-1m", "fp16-realtime", "realtime-every-2"),
)


def main() -> None:
    """Rewrite the page in place."""
    PAGE.write_text(filled(PAGE, TABLES))
    Console().print(f"wrote {PAGE.name}")


def _score(content: dict[str, Any]) -> str:
    return score(content["score"]["mean"], content["score"]["ci95"])


def _presets() -> list[str]:
    """Latency of each preset, and its score where an evaluation of it is there."""
    bench = read("bench-presets.json")
    rows = [
        (
            "preset",
            "ms per action (p50)",
            "Hz",
            "times faster",
            "score",
            "from the policy",
            "file",
        )
    ]
    for record in bench["candidates"]:
        times = record["batches"]["1"]
        found = _measured(record["preset"])
        numbers = (f"{times['p50_ms']:.3g}", f"{times['hz']:,.0f}", f"{times['speedup']:.1f}")
        rows.append((f"`{record['preset']}`", *numbers, *found))
    return table_of(*rows)


def _measured(preset: str) -> tuple[str, str, str]:
    """Return the score by a preset, its difference from the policy, and a link to its file."""
    how = preset if preset == "policy" else f"planner-{preset}"
    path = RESULTS / f"mt30-1m-{how}.json"
    if not path.exists():
        return "not measured", "-", "-"
    content = json.loads(path.read_text())
    known = _score(content) if content["complete"] else "unfinished"
    difference = against(RESULTS / "mt30-1m-policy.json", path)
    return known, difference, f"[json](../results/{path.name})"


def _engines() -> list[str]:
    found = read("bench-planner-latency.json")["engines"]
    rows = [("engine", "ms per plan (p50)", "p95", "times faster", "difference")]
    for name, r in found.items():
        numbers = (f"{r['ms_p50']:.1f}", f"{r['ms_p95']:.1f}", f"{r['speedup']:.2f}")
        rows.append((name, *numbers, f"{r['agreement']:.0e}"))
    return table_of(*rows)


def _reuse() -> list[str]:
    """Score by how many of a plan's actions are carried out, each pair over one start."""
    rows = [("student", "actions of a plan", "score", "paired difference")]
    for name, *files in REUSED:
        first, *_ = paths = [RESULTS / f"{name}-{file}.json" for file in files]
        for actions, path in enumerate(paths, 1):
            shown = f"[{_score(read(path.name))}](../results/{path.name})"
            rows.append((name, str(actions), shown, against(first, path)))
    return table_of(*rows)


def _costs() -> list[str]:
    found = read("bench-planner-cost.json")
    samples = list(dict.fromkeys(row["samples"] for row in found["budgets"]))
    table = {(row["samples"], row["iterations"]): row["ms"] for row in found["budgets"]}
    rounds = list(dict.fromkeys(row["iterations"] for row in found["budgets"]))
    rows = [("samples", *(f"iterations: {count}" for count in rounds))]
    rows += [(str(s), *(f"{table[s, count]:.1f} ms" for count in rounds)) for s in samples]
    sizes = [("parameters", "full budget", "64 samples, 1 iteration")]
    sizes += [
        (
            f"{row['parameters']:,}",
            f"{row['full']['ms']:.0f} ms",
            f"{row['small']['ms']:.1f} ms",
        )
        for row in found["sizes"]
    ]
    return [*table_of(*rows), "", *table_of(*sizes), "", "![plots](planner-cost.png)"]


def _search() -> list[str]:
    found = read("tuning-released-1m.json")
    rows = [("budget", "share of the full budget's time", "score on the tuning episodes")]
    for trial in found["trials"]:
        if trial["on_front"]:
            b = trial["budget"]
            sampled = b["samples"] - b["policy_samples"]
            shape = f"{b['iterations']} x ({sampled} + {b['policy_samples']} of the policy)"
            how = "its mean" if b["mean_action"] else "an elite"
            budget = f"{shape}, horizon {b['horizon']}, acts by {how}"
            rows.append((budget, f"{100 * trial['share']:.1f}%", _score(trial)))
    return table_of(*rows)


TABLES: dict[str, Callable[[], list[str]]] = {
    "presets": _presets,
    "engines": _engines,
    "costs": _costs,
    "reuse": _reuse,
    "search": _search,
}

if __name__ == "__main__":
    main()
