"""Draw docs/figures/rooms.svg: the rooms of the package in the order in which they may import.

python tools/rooms_figure.py
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIGURE = ROOT / "docs" / "figures" / "rooms.svg"
_ROW, _LEFT, _BOX, _WIDTH = 26, 40, 190, 860

PURPOSES = {
    "cli": "arguments (tyro), printed output (rich), errors as one line",
    "pipeline": "from a teacher to a scored student in one call; the demo",
    "play": "the browser page and its server",
    "report": "tables, plots and HTML from result files; films, which run agents",
    "server": "the policy server",
    "export": "files for devices: graphs, number formats, metadata, comparison with torch",
    "compression": "rounding, calibration, sensitivity, distillation; one task or policy alone",
    "training": "losses, distillation terms, teachers, update, run, DAgger",
    "experts": "policies for single tasks: SAC, imitation of plans in the simulator",
    "evaluation": "scores, comparisons, latency, search of planner budgets, result files",
    "agents": "Agent (model with planner or policy), sources of policies, collecting, workers",
    "planning": "MPPI, presets, planning in the simulator",
    "data": "datasets on disk, sampler, import and export (official, Minari, LeRobot)",
    "checkpoints": "weights on disk: this project's files and every public layout",
    "model": "the networks of TD-MPC2, two-hot encoding",
    "tasks": "the 30 tasks, own tasks, batches of states, rendering",
    "runtime": "the agent on a device: numpy and ONNX Runtime, without torch",
    "zoo": "bundled checkpoints",
    "configs": "the options of every command, as frozen dataclasses",
    "contract": "names, units, bounds of a task's numbers; checks of observations, task ids",
    "schema": "tasks, model sizes, planner budgets, limits of numbers, for torch and runtime",
    "machine": "versions, commit, cores, processes, and files that state them",
    "progress": "progress of long work",
    "files": "atomic writes, locks, hashes, JSON; names and schema of file formats",
    "errors": "errors that a user can correct",
}
"""What a room contains."""


def rooms() -> list[list[str]]:
    """Return the rooms that exist, from top to bottom; those of one row are independent.

    The order is that of the import contract in pyproject.toml.
    """
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(each["layers"] for each in settings["contracts"] if "layers" in each)
    rows = [re.findall(r"\w+", layer) for layer in layers]
    rows = [[name for name in row if _exists(name)] for row in rows]
    return [row for row in rows if row]


def drawing() -> str:
    """Return the picture as SVG."""
    rows = rooms()
    height = _ROW * len(rows) + 20
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        "<title>The rooms of tdmpc_opt; each may import those below it</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<path d="M20 10 V{height - 14} m-5 -8 l5 8 l5 -8" fill="none" stroke="#555555"/>',
    ]
    for number, row in enumerate(rows):
        y = 10 + _ROW * number
        name = " | ".join(row)
        text = "; ".join(PURPOSES[room] for room in row)
        lines += [
            f'<rect x="{_LEFT}" y="{y}" width="{_BOX}" height="{_ROW - 4}" rx="4" '
            'fill="#e8eef7" stroke="#4a6fa5"/>',
            f'<text x="{_LEFT + 8}" y="{y + 16}" font-weight="bold">{name}</text>',
            f'<text x="{_LEFT + _BOX + 12}" y="{y + 16}">{text}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


def _exists(room: str) -> bool:
    package = ROOT / "src" / "tdmpc_opt"
    return (package / room / "__init__.py").exists() or (package / f"{room}.py").exists()


if __name__ == "__main__":
    FIGURE.write_text(drawing())
