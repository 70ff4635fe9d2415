"""Tables of pages, made of committed result files.

A table's place in a page is between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tdmpc_opt.evaluation.compare import compare

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
Tables = Mapping[str, Callable[[], list[str]]]


def filled(page: Path, tables: Tables) -> str:
    """Return the page's text with its tables made anew.

    Where a table's file is missing, the page says which.
    """
    text = page.read_text()
    for name, table in tables.items():
        try:
            body = "\n".join(table())
        except FileNotFoundError as error:
            body = f"Not measured yet: `results/{Path(str(error.filename)).name}` is missing."
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        place = f"{begin}\n{body}\n{end}"
        # A function: the text may hold backslashes, which a plain replacement would read.
        text, count = re.subn(pattern, lambda _, new=place: new, text, flags=re.DOTALL)
        assert count == 1, f"{page} has no place for the table {name}"
    return text


def against(first: Path, result: Path) -> str:
    """Return the paired difference of a result file from another; a dash from itself."""
    return "-" if first == result else str(compare(first, result).difference)


def read(name: str) -> dict[str, Any]:
    """Return the content of a result file."""
    content: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return content


def table_of(*found: tuple[str, ...]) -> list[str]:
    """Return a Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in found]
    return [lines[0], "|" + "---|" * len(found[0]), *lines[1:]]


def score(mean: float, interval: list[float] | None) -> str:
    """Return a score as pages show it."""
    shown = f"{mean:.2f}"
    return f"{shown} [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else shown
