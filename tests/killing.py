"""A distillation that kills its own process inside the writing of a checkpoint."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tdmpc_opt import files
from tdmpc_opt.checkpoints import native, torch_files
from tdmpc_opt.configs.training import TrainConfig
from tdmpc_opt.training import loop

POINTS = (
    *("before write", "in write", "after write"),
    *("before sync", "after sync", "before rename", "after rename"),
)
WRITERS = ("weights", "state")


@dataclass(frozen=True)
class FaultPoint:
    """A place in the writing of a checkpoint: one of `POINTS`, one of `WRITERS`."""

    point: str
    writer: str
    after: int
    """Checkpoints that are written whole before."""


def train(config: TrainConfig, fault: FaultPoint | None) -> None:
    """Distil in this process, and with a fault point die at it."""
    torch.set_num_threads(1)
    if fault is not None:
        _Killer(fault).install()
    loop.train(config)


class _Killer:
    """Wraps what writes, syncs and renames, and kills the process at its fault point."""

    def __init__(self, fault: FaultPoint) -> None:
        self._fault = fault
        self._seen = 0
        self._armed = False

    def install(self) -> None:
        native.save_file = self._write(native.save_file, "weights")
        torch_files.torch.save = self._write(torch.save, "state")
        files.os.fsync = self._around(os.fsync, "sync")
        Path.replace = self._around(Path.replace, "rename")

    def _write(self, write: Callable, writer: str) -> Callable:
        def wrapped(content, path, *arguments, **options):
            self._armed = writer == self._fault.writer and self._seen >= self._fault.after
            self._seen += writer == self._fault.writer
            self._kill_at("before write")
            result = write(content, path, *arguments, **options)
            if self._armed and self._fault.point == "in write":
                os.truncate(path, Path(path).stat().st_size // 2)
            self._kill_at("in write")
            self._kill_at("after write")
            return result

        return wrapped

    def _around(self, act: Callable, name: str) -> Callable:
        def wrapped(*arguments):
            self._kill_at(f"before {name}")
            result = act(*arguments)
            self._kill_at(f"after {name}")
            return result

        return wrapped

    def _kill_at(self, point: str) -> None:
        if self._armed and point == self._fault.point:
            os.kill(os.getpid(), signal.SIGKILL)
