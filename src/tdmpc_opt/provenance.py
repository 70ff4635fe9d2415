"""Where a result comes from: versions, machine, commit, and the hash of what was run."""

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import tdmpc_opt
from tdmpc_opt.errors import CheckpointError

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


def difference(key: str, found: object, asked: object) -> str:
    """Return in words what sets apart a stored value of a configuration from the one asked for.

    Args:
        key: Name of the value.
        found: What was stored.
        asked: What is asked for; a file is a mapping with `name` and `sha256`.
    """
    if isinstance(found, dict) and isinstance(asked, dict) and "sha256" in found:
        if found.get("name") != asked.get("name"):
            return f"its {key} is {found.get('name')}, asked is {asked.get('name')}"
        return f"its {key} is {found.get('name')} as it was before it changed"
    return f"its {key} is {found}, asked is {asked}"


def machine() -> dict[str, str | int]:
    """Return what this machine is: processor, architecture, cores, system."""
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
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", "src")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("-changed" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def sha256(path: Path) -> str:
    """Return the SHA-256 of the file, in hexadecimal.

    Raises:
        CheckpointError: A file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
