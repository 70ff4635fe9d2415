"""This machine: versions, commit, cores and processes, and files that state them."""

import math
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import tdmpc_opt
from tdmpc_opt.errors import ResultError, TdmpcOptError, counted
from tdmpc_opt.files import write_json

_LIBRARIES = (
    *("numpy", "torch", "mujoco", "dm_control", "gymnasium", "sbx-rl", "jax"),
    *("onnxruntime", "openvino"),
)
_SECONDS_OF_LOAD = 0.25
_STAT = Path("/proc/stat")


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


def cores() -> int:
    """Return the number of CPU cores that this process is given.

    Those of its affinity (taskset, cpusets), or fewer where its control group has a quota of
    time (`docker --cpus`), rounded down.
    """
    return max(1, int(min(len(_allowed()), _quota())))


@dataclass(frozen=True)
class Cores:
    """How many threads or processes to use, and why."""

    count: int
    """Number of threads or processes; 0 where a Ray cluster decides."""
    reason: str
    """Why that many, for the user."""

    def __str__(self) -> str:
        """Return the number and its reason."""
        return f"{self.count} ({self.reason})"


def choose_threads(asked: int = 0) -> Cores:
    """Return how many threads one process computes on.

    The number asked for, else that of OMP_NUM_THREADS, else one for each free core.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    if asked or not told.isdecimal() or not int(told):
        return choose_processes(asked)
    return Cores(int(told), "as OMP_NUM_THREADS says")


def choose_processes(asked: int = 0, ray: str | None = None) -> Cores:
    """Return how many processes of one thread run at once; 0 where a Ray cluster decides.

    The number asked for, else one for each core that is allotted to this process and idle now.
    Work of low priority does not count as busy. Processes that torchrun started on this machine
    share what is given.

    Args:
        asked: Number that the user chose; 0 chooses by the rules above.
        ray: Address of a Ray cluster, whose processes are not counted here.
    """
    if ray:
        return Cores(asked, "of Ray")
    if asked:
        return Cores(asked, "as asked")
    given, ranks = cores(), local_world_size()
    if ranks > 1:
        return Cores(
            max(1, given // ranks), f"{counted(given, 'core')} given to {ranks} processes"
        )
    busy = _busy_cores()
    free = min(given, round(len(_allowed()) - busy))
    return Cores(
        max(1, free), f"{counted(given, 'core')} given, {busy:.1f} busy with other work"
    )


def _allowed() -> set[int]:
    """Return the numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Return the cores that the control groups of this process allow; infinity without limit.

    Args:
        root: Where the control groups are mounted, of version 2, or 1 with `cpu` below.
        own: File that names the groups of this process.
    """
    if not own.is_file():
        return math.inf
    least = math.inf
    for line in own.read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        group = base / name.lstrip("/")
        # A limit of any group above applies too.
        for folder in (group, *group.parents):
            if folder.is_relative_to(base):
                least = min(least, _limit(folder))
    return least


def _limit(group: Path) -> float:
    """Return the cores that one control group allows."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
    except OSError:  # no such file in this group: no limit
        return math.inf
    return math.inf if quota.strip() in ("max", "-1") else int(quota) / int(period)


def _busy_cores() -> float:
    """Return how many of the allowed cores other work keeps busy; 0 where it is not known."""
    if not _STAT.is_file():
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    before = _ticks()
    time.sleep(_SECONDS_OF_LOAD)
    after = _ticks()
    busy = 0.0
    for core in _allowed() & before.keys() & after.keys():
        used, passed = (new - old for new, old in zip(after[core], before[core], strict=True))
        busy += used / max(passed, 1)
    return busy


def _ticks() -> dict[int, tuple[int, int]]:
    """Return of each core the time at work of normal priority, and all time, since the boot."""
    found = {}
    for line in _STAT.read_text().splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu") and name[3:].isdecimal():
            user, nice, system, idle, waiting, *rest = map(int, numbers[:8])
            used = user + system + sum(rest)
            found[int(name[3:])] = (used, used + nice + idle + waiting)
    return found


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
