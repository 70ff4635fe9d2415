"""Fill the tables of docs/planner.md from committed result files.

A table is between `<!-- begin NAME -->` and `<!-- end NAME -->`. Without its files it says so:

    python benchmarks/planner_page.py
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "planner.md"
RESULTS = ROOT / "results"
PRESETS = ("full", "balanced", "realtime", "policy")


def main() -> None:
    """Rewrite the page in place."""
    text = PAGE.read_text()
    for name, table in TABLES.items():
        try:
            body = "\n".join(table())
        except FileNotFoundError as error:
            body = f"Not measured yet: `results/{Path(str(error.filename)).name}` is missing."
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        text, count = re.subn(pattern, f"{begin}\n{body}\n{end}", text, flags=re.DOTALL)
        assert count == 1, f"{PAGE} has no place for the table {name}"
    PAGE.write_text(text)
    Console().print(f"wrote {PAGE.name}")


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return content


def _rows(*rows: tuple[str, ...]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _score(content: dict[str, Any]) -> str:
    score = content["score"]
    interval = score["ci95"]
    return f"{score['mean']:.2f}" + (
        f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""
    )


def _presets() -> list[str]:
    """Latency of each preset, and its score where an evaluation of it is there."""
    bench = _read("bench-presets.json")
    rows = [("preset", "ms per action (p50)", "Hz", "times faster", "score", "file")]
    for record in bench["candidates"]:
        times = record["batches"]["1"]
        path = RESULTS / f"released-1m-preset-{record['preset']}.json"
        score = _score(json.loads(path.read_text())) if path.exists() else "not measured"
        link = f"[json](../results/{path.name})" if path.exists() else "-"
        numbers = (f"{times['p50_ms']:.3g}", f"{times['hz']:,.0f}", f"{times['speedup']:.1f}")
        rows.append((f"`{record['preset']}`", *numbers, score, link))
    return _rows(*rows)


def _engines() -> list[str]:
    found = _read("bench-planner-latency.json")["engines"]
    rows = [("engine", "ms per plan (p50)", "p95", "times faster", "difference")]
    for name, r in found.items():
        numbers = (f"{r['ms_p50']:.1f}", f"{r['ms_p95']:.1f}", f"{r['speedup']:.2f}")
        rows.append((name, *numbers, f"{r['agreement']:.0e}"))
    return _rows(*rows)


def _costs() -> list[str]:
    found = _read("bench-planner-cost.json")
    samples = list(dict.fromkeys(row["samples"] for row in found["budgets"]))
    table = {(row["samples"], row["iterations"]): row["ms"] for row in found["budgets"]}
    rounds = list(dict.fromkeys(row["iterations"] for row in found["budgets"]))
    rows = [("samples", *(f"{count} iterations" for count in rounds))]
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
    return [*_rows(*rows), "", *_rows(*sizes), "", "![plots](planner-cost.png)"]


def _search() -> list[str]:
    found = _read("tuning-released-1m.json")
    rows = [("budget", "share of the full budget's time", "score on the tuning episodes")]
    for trial in found["trials"]:
        if trial["on_front"]:
            b = trial["budget"]
            sampled = b["samples"] - b["policy_samples"]
            shape = f"{b['iterations']} x ({sampled} + {b['policy_samples']} of the policy)"
            how = "its mean" if b["mean_action"] else "an elite"
            budget = f"{shape}, horizon {b['horizon']}, acts by {how}"
            rows.append((budget, f"{100 * trial['share']:.1f}%", _score(trial)))
    return _rows(*rows)


TABLES: dict[str, Callable[[], list[str]]] = {
    "presets": _presets,
    "engines": _engines,
    "costs": _costs,
    "search": _search,
}

if __name__ == "__main__":
    main()
