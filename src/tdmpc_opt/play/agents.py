"""Agents as the page takes them: ONNX files, and a list of what is in them."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tdmpc_opt.configs.deploy import ExportFormat
from tdmpc_opt.errors import InputError
from tdmpc_opt.files import is_onnx, sha256
from tdmpc_opt.runtime.onnx_file import OnnxFile, open_onnx
from tdmpc_opt.schema import MT30

LIST = "agents.json"
FOLDER = "agents"
SCHEMA = 1

PRESET = "realtime"
"""Budget of the planner that the page gets."""

_FILES: tuple[tuple[str, ExportFormat], ...] = (
    ("policy", "fp32"),
    ("policy", "int8"),
    ("planner", "fp16"),
)


def write_agents(
    sources: Sequence[str], site: Path, started: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Put agents into a site's folder and list them in its `agents.json`.

    Args:
        sources: Checkpoint files of any known layout, zoo names, or exported ONNX files.
        site: Folder that is served; what it lists already stays.
        started: Called with each agent's name when its export begins.

    Returns:
        The new entries of the list.

    Raises:
        CheckpointError: A file that is missing, damaged, foreign or unsafe.
        InputError: An agent that knows no task of MT30.
        MissingDependencyError, ModuleNotFoundError: A library that is needed is not here.
    """
    listed = read_list(site)
    added: list[dict[str, Any]] = []
    for source in sources:
        name = _free_name(Path(source).stem, [entry["name"] for entry in listed + added])
        started(name)
        added.append(_entry(source, name, site))
    content = {"schema": SCHEMA, "agents": added + listed}
    (site / LIST).write_text(json.dumps(content, indent=1) + "\n")
    return added


def read_list(site: Path) -> list[dict[str, Any]]:
    """Return the entries of a site's list of agents; none where it has no list."""
    if not (site / LIST).exists():
        return []
    entries: list[dict[str, Any]] = json.loads((site / LIST).read_text())["agents"]
    return entries


def _entry(source: str, name: str, site: Path) -> dict[str, Any]:
    """Put an agent's files into the site, and return its entry of the list."""
    folder = site / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if is_onnx(Path(source)):
        paths = [folder / f"{name}.onnx"]
        shutil.copyfile(source, paths[0])
    else:
        paths = _exported(source, name, folder)
    files = [open_onnx(path, 1, None) for path in paths]
    tasks = files[0].tasks.names
    if not set(tasks) & set(MT30.names):
        raise InputError(
            f"{source} knows no task of MT30; for an environment of your own, name it: --tasks "
            "MODULE:ID"
        )
    listed = [_file(file, path) for file, path in zip(files, paths, strict=True)]
    return {"name": name, "tasks": tasks, "files": listed}


def _exported(checkpoint: str, name: str, folder: Path) -> list[Path]:
    """Export the policy as fp32 and int8, and a planner where there is a world model.

    The planner is stored in fp16, which halves the page, and computes in fp32.
    """
    from tdmpc_opt.checkpoints.checkpoint import build
    from tdmpc_opt.checkpoints.load import read_checkpoint, resolve
    from tdmpc_opt.checkpoints.summary import stored_contracts
    from tdmpc_opt.configs.deploy import ExportConfig
    from tdmpc_opt.export.targets import Facts, make_artifact
    from tdmpc_opt.planning.presets import find_preset

    read = read_checkpoint(checkpoint)
    model = build(read, policy_will_do=True)
    paths = []
    for mode, form in _FILES:
        plans = mode == "planner"
        if plans and not model.can_plan:
            continue
        path = folder / f"{name}.{mode}.{form}.onnx"
        config = ExportConfig(
            checkpoint=checkpoint, output=path, policy_only=not plans, format=form
        )
        facts = Facts(
            source=Path(checkpoint),
            sha256=sha256(resolve(checkpoint)),
            config=read.config,
            tasks=read.tasks,
            contracts=stored_contracts(read),
            number_format=form,
            preset=PRESET if plans else None,
            budget=find_preset(PRESET, read.extra).budget if plans else None,
            score=None,
        )
        path.write_bytes(make_artifact(config, model, facts).files({})[""])
        paths.append(path)
    return paths


def _file(file: OnnxFile, path: Path) -> dict[str, Any]:
    plan = {} if file.plan is None else {"plan": asdict(file.plan)}
    return {
        "mode": "policy" if file.plan is None else "planner",
        # That of the computation: what is stored in fp16 is widened when it is loaded.
        "precision": "int8" if file.number_format == "int8" else "fp32",
        "file": f"{FOLDER}/{path.name}",
        "bytes": path.stat().st_size,
        **plan,
    }


def _free_name(stem: str, taken: Sequence[str]) -> str:
    name, count = stem, 2
    while name in taken:
        name, count = f"{stem}-{count}", count + 1
    return name
