"""This machine: versions, commit, processor and processes, and files that name them."""

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import tdmpc_opt
from tdmpc_opt.errors import ResultError, TdmpcOptError
from tdmpc_opt.files import write_json

_LIBRARIES = (
    *("numpy", "torch", "mujoco", "dm_control", "gymnasium", "sbx-rl", "jax"),
    *("onnxruntime", "openvino"),
)


def versions() -> dict[str, str]:
    """Return the versions of this package, its commit, Python and the libraries in use."""
    found = {"tdmpc_opt": tdmpc_opt.__version__, "python": platform.python_version()}
    commit = _commit()
    if commit:
        found["commit"] = commit
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def facts() -> dict[str, str | int]:
    """Return facts of this machine: processor, architecture, cores, system."""
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": os.cpu_count() or 1,
        "system": platform.system(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _commit() -> str | None:
    """Return the commit of the checkout this package runs from; None when installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        head, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "src"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("-changed" if changed else "")


def world_size() -> int:
    """Return how many processes train together; 1 for one that torchrun did not start."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return _number("RANK", 0)


def local_world_size() -> int:
    """Return how many of them run on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def nodes() -> int:
    """Return on how many machines they run."""
    return _number("GROUP_WORLD_SIZE", 1)


def restarts() -> int:
    """Return how often torchrun has started the processes of this machine again."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def _number(name: str, otherwise: int) -> int:
    # Other launchers set some of these names too; this one is torchrun's own.
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return otherwise
    return int(os.environ.get(name, otherwise))


class ResultFile:
    """A JSON file that states what was measured, how, where and by which version.

    Args:
        path: File to write; None writes none.
        kind: What it contains, such as `evaluation`.
        config: Configuration of the measurement, seeds and hashes of inputs included.
        error: Class of the error where it cannot be written.
    """

    def __init__(
        self,
        path: Path | None,
        kind: str,
        config: Mapping[str, Any],
        error: type[TdmpcOptError] = ResultError,
    ) -> None:
        self.path = path
        self._kind, self._config, self._error = kind, config, error
        self._versions = versions()

    def content(self, **measured: Any) -> dict[str, Any]:
        """Return the whole file as JSON-ready data, `measured` by name."""
        return {
            "kind": self._kind,
            "schema": 1,
            **measured,
            "config": self._config,
            "versions": self._versions,
            "machine": facts(),
        }

    def write(self, **measured: Any) -> dict[str, Any]:
        """Write the file, whole or not at all, and return its content.

        Raises:
            TdmpcOptError: Of the class `error`; the file cannot be written.
        """
        content = self.content(**measured)
        if self.path is not None:
            write_json(self.path, content, self._error)
        return content
