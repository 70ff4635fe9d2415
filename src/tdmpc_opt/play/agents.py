"""Agents as the page takes them: ONNX files, and a list of what is in them."""

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tdmpc_opt.errors import InputError, MissingDependencyError
from tdmpc_opt.task_table import MT30

LIST = "agents.json"
FOLDER = "agents"
SCHEMA = 1

_NEEDED = {"torch": "train", "onnx": "export", "onnxscript": "export", "onnxruntime": "export"}


def write_agents(
    checkpoints: Sequence[str], site: Path, started: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Export checkpoints into a site's folder and list them in its `agents.json`.

    Args:
        checkpoints: Files of any known layout, or zoo names.
        site: Folder that is served; what it lists already stays.
        started: Called with each agent's name when its export begins.

    Returns:
        The new entries of the list.

    Raises:
        CheckpointError: A file that is missing, damaged, foreign or unsafe.
        InputError: An agent that knows no task of MT30.
        MissingDependencyError: A library that exporting needs is not here.
    """
    for package, extra in _NEEDED.items():
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(
                f"to play with a checkpoint you need {package}: "
                f'pip install "tdmpc-opt[{extra}]"'
            )
    listed = read_list(site)
    added: list[dict[str, Any]] = []
    for checkpoint in checkpoints:
        name = _free_name(Path(checkpoint).stem, [entry["name"] for entry in listed + added])
        started(name)
        added.append(_export(checkpoint, name, site))
    content = {"schema": SCHEMA, "agents": added + listed}
    (site / LIST).write_text(json.dumps(content, indent=1) + "\n")
    return added


def read_list(site: Path) -> list[dict[str, Any]]:
    """Return the entries of a site's list of agents; none where it has no list."""
    if not (site / LIST).exists():
        return []
    entries: list[dict[str, Any]] = json.loads((site / LIST).read_text())["agents"]
    return entries


def _export(checkpoint: str, name: str, site: Path) -> dict[str, Any]:
    from tdmpc_opt.checkpoints.checkpoint import build
    from tdmpc_opt.checkpoints.load import read_checkpoint
    from tdmpc_opt.play.policy_graph import policy_graph

    read = read_checkpoint(checkpoint)
    tasks = read.tasks.names
    if not set(tasks) & set(MT30.names):
        raise InputError(
            f"{checkpoint} knows no task of MT30, and the page has no other; "
            "see: tdmpc-opt tasks"
        )
    model = build(read, policy_will_do=True)
    folder = site / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for precision in ("fp32", "int8"):
        path = folder / f"{name}.policy.{precision}.onnx"
        graph = policy_graph(model, quantize=precision == "int8")
        path.write_bytes(graph.SerializeToString())
        files.append(
            {
                "mode": "policy",
                "precision": precision,
                "file": f"{FOLDER}/{path.name}",
                "bytes": path.stat().st_size,
            }
        )
    return {"name": name, "parameters": read.parameters, "tasks": tasks, "files": files}


def _free_name(stem: str, taken: Sequence[str]) -> str:
    name, count = stem, 2
    while name in taken:
        name, count = f"{stem}-{count}", count + 1
    return name
