"""Which versions of onnxruntime run the files that `tdmpc-opt export` writes by default.

Exports the policy (fp32, fp16, int8) and a planner. Then `tdmpc_opt.runtime` runs each file in
a new environment for every version, and the actions are compared with those of the installed
version. Needs a package index. Writes results/onnxruntime-versions.json:

    python benchmarks/onnxruntime_versions.py
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from timing import save

from tdmpc_opt.configs.deploy import ExportConfig, ExportFormat
from tdmpc_opt.export.export import export
from tdmpc_opt.schema import MT30

SOURCE = Path(__file__).parents[1] / "src"
BEFORE_NUMPY_2 = ("1.15", "1.16", "1.17", "1.18")
"""Releases that were built for numpy 1."""
FORMATS: tuple[ExportFormat, ...] = ("fp32", "fp16", "int8")
_RUN = """
import json, sys
import numpy as np, onnxruntime
from tdmpc_opt.runtime import load
task, rows, paths = json.loads(sys.stdin.read())
found = {}
for name, path in paths.items():
    try:
        agent = load(path)
        noise = np.random.default_rng(0) if agent.plan else None
        found[name] = [agent.act(np.array(row), task, generator=noise).tolist() for row in rows]
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
print(json.dumps([onnxruntime.__version__, np.__version__, found]))
"""


@dataclass(frozen=True)
class Config:
    """What to try."""

    checkpoint: str = "mt30-1m"
    """Checkpoint file or zoo name."""
    task: str = "walker-walk"
    """Task whose files are exported."""
    preset: str = "realtime"
    """Budget of the planner."""
    releases: tuple[str, ...] = (
        *("1.15.1", "1.16.3", "1.17.3", "1.18.1", "1.19.2", "1.20.1", "1.21.1", "1.22.1"),
        *("1.23.2", "1.24.4", "1.25.1", "1.26.0", "1.27.0", "1.28.0", "1.29.0", "1.30.0"),
        *("1.31.1", "1.32.0"),
    )
    """Versions of onnxruntime."""
    rows: int = 10
    """Observations that each file acts on."""
    output: Path = Path("results/onnxruntime-versions.json")
    """Result file."""


def main(config: Config) -> None:
    """Try every version, write the result file and print its figures."""
    rows = np.random.default_rng(0).normal(size=(config.rows, MT30[config.task].obs_dim))
    with tempfile.TemporaryDirectory() as name:
        files = _exported(config, Path(name))
        asked = json.dumps([config.task, rows.tolist(), files])
        wanted = _answer(sys.executable, asked)[2]
        found = []
        for release in config.releases:
            with tempfile.TemporaryDirectory() as folder:
                found.append(_tried(release, Path(folder), asked, wanted))
            Console().print_json(data=found[-1])
    save("onnxruntime-versions", config, {"python": sys.version.split()[0], "releases": found})


def _exported(config: Config, folder: Path) -> dict[str, str]:
    """Return the paths of the exported files by name."""
    common = {"checkpoint": config.checkpoint, "task": config.task}
    found = {}
    for kind in FORMATS:
        path = folder / f"policy-{kind}.onnx"
        export(ExportConfig(**common, policy_only=True, format=kind, output=path))
        found[f"policy, {kind}"] = str(path)
    path = folder / "planner.onnx"
    export(ExportConfig(**common, preset=config.preset, output=path))
    return found | {f"planner {config.preset}, fp32": str(path)}


def _answer(python: str | Path, asked: str) -> list[Any]:
    """Return the versions and the actions of an interpreter, or why there are none."""
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    run = subprocess.run(
        [python, "-c", _RUN],
        input=asked,
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    answer: list[Any] = json.loads(run.stdout)
    return answer


def _tried(release: str, folder: Path, asked: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Install a version and return what became of each file."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    old = release.startswith(BEFORE_NUMPY_2)
    libraries = [f"onnxruntime=={release}", "safetensors", "numpy<2" if old else "numpy>=2"]
    install = [python, "-m", "pip", "install", "--quiet", *libraries]
    subprocess.run(install, check=True)
    version, numpy, found = _answer(python, asked)
    files = {}
    for name, actions in found.items():
        if isinstance(actions, str):
            files[name] = {"error": actions}
        else:
            difference = np.abs(np.array(actions) - np.array(wanted[name])).max()
            files[name] = {"largest_difference": float(difference)}
    return {"onnxruntime": version, "numpy": numpy, "files": files}


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
