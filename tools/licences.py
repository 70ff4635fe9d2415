"""Write docs/licences.md: the licence that each pinned library states in its metadata."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
_HEAD = """# Licences of the libraries

The licence that each version in `constraints.txt` states in its metadata; `make licences`
rewrites this page. None of these libraries is part of this package: they are installed as
dependencies, most of them only by an extra. The page that `tdmpc-opt play` serves contains
JavaScript libraries; their licences are in `licences.txt` next to it.

| library | version | licence |
|---|---|---|
"""


def normal(name: str) -> str:
    """Return the one form of all spellings of a library's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    """Return the pinned version of each library by its normal name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {normal(name): version for name, version in pairs}


def main() -> None:
    """Ask pip-licenses about what is installed here, and write the page."""
    command = [Path(sys.executable).with_name("pip-licenses"), "--from=mixed", "--with-system"]
    command.append("--format=json")
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {normal(row["Name"]): row for row in json.loads(output)}
    missing = [name for name in pinned() if name not in found]
    assert not missing, f"not installed, so that their licences are unknown: {missing}"
    rows = [
        f"| {found[name]['Name']} | {version} | {_short(name, found[name]['License'])} |"
        for name, version in sorted(pinned().items())
    ]
    PAGE.write_text(_HEAD + "\n".join(rows) + "\n")


_STATED = {"atheris": "Apache-2.0", "emx-onnx-cgen": "Apache-2.0", "torchao": "BSD-3-Clause"}
"""For libraries whose metadata states none, or a text: the licence file in their package."""


def _short(name: str, licence: str) -> str:
    """Return one line; some libraries put the whole text into the field."""
    line = " ".join(_STATED.get(name, licence).split())
    return line if len(line) < 90 else f"{line[:80]} ..."


if __name__ == "__main__":
    main()
