"""What a process computes on: its device, its cores, and the threads of torch."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tdmpc_opt import machine
from tdmpc_opt.configs import MatmulPrecision
from tdmpc_opt.errors import InputError

_SECONDS_OF_LOAD = 0.25
_STAT = Path("/proc/stat")


def best_device(name: str = "auto") -> torch.device:
    """Return the named device; `auto` chooses CUDA, then Apple's MPS, then the CPU.

    Raises:
        InputError: A device that this machine does not offer.
    """
    usable = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    usable.append("cpu")
    try:
        device = torch.device(usable[0] if name == "auto" else name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}; take auto, cpu, cuda or mps") from None
    if device.type not in usable:
        raise InputError(f"device {name!r} is not available on this machine")
    return device


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


@contextmanager
def threads(count: int, matmul: MatmulPrecision = "highest") -> Iterator[None]:
    """Let torch compute on so many threads, and with this precision of matrix products.

    On one thread, sums round equally on every machine.
    """
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(count)
    torch.set_float32_matmul_precision(matmul)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


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

    The number asked for, else one for each core that is given and not busy with other work now.
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
    given, ranks = cores(), machine.local_world_size()
    if ranks > 1:
        return Cores(max(1, given // ranks), f"{given} cores given to {ranks} processes")
    busy = _busy_cores()
    free = min(given, round(len(_allowed()) - busy))
    return Cores(max(1, free), f"{given} cores given, {busy:.1f} busy with other work")


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
