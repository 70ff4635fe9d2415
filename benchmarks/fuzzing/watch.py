"""Notices what reading a file must never do: run code, write elsewhere, take much memory."""

import os
import resource
import sys
from pathlib import Path
from typing import Any

from fuzzing.mutations import CANARY_MODULE
from fuzzing.programs import CANARY

MEMORY_BOUND = 256 << 20
"""Bytes by which reading one small file may raise the process's peak memory."""

_RUNS = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty"),
    *("subprocess.Popen", "pty.spawn", "ctypes.dlopen", "socket.connect", "socket.bind"),
    "pickle.find_class",
)
_CHANGES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.chmod",
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class CodeRunError(BaseException):
    """Something ran, or was written, because of a file. No reader may catch it."""


class Watch:
    """Raises as soon as what a file asks for is about to be done.

    Python tells audit hooks before it runs programs, unpickles classes, or opens files. A hook
    cannot be removed again, so there is one, and it is armed while a file is read.

    Args:
        folder: The one place that a reader may write to.
    """

    _active: "Watch | None" = None
    _installed = False

    def __init__(self, folder: Path) -> None:
        self._allowed = str(folder.resolve())
        if not Watch._installed:
            sys.addaudithook(_heard)
            Watch._installed = True
        Path(CANARY).unlink(missing_ok=True)

    def __enter__(self) -> "Watch":
        """Arm it."""
        Watch._active = self
        return self

    def __exit__(self, *_: object) -> None:
        """Disarm it, and look for traces.

        Raises:
            CodeRunError: The canary is there.
        """
        Watch._active = None
        if CANARY_MODULE in sys.modules or os.path.lexists(CANARY):
            raise CodeRunError("the canary was touched")

    def judge(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Raise for an event that reading does not need.

        Raises:
            CodeRunError: It is one.
        """
        if event in _RUNS or (event == "import" and arguments[0] == CANARY_MODULE):
            raise CodeRunError(f"{event} {arguments!r:.200}")
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            self._require_inside(event, arguments[0])
        elif event in _CHANGES:
            self._require_inside(event, arguments[0], arguments[1:])
        elif event == "exec" and CANARY in repr(getattr(arguments[0], "co_consts", "")):
            raise CodeRunError("exec of a text from the file")

    def _require_inside(self, event: str, path: object, more: tuple[Any, ...] = ()) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        handle = more[-1] if more and isinstance(more[-1], int) else -1
        folder = Path(f"/proc/self/fd/{handle}").resolve() if handle >= 0 else Path.cwd()
        text = os.path.normpath(folder / os.fsdecode(path))
        if not text.startswith(self._allowed) and text != "/dev/null":
            raise CodeRunError(f"{event} of {text}")


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if Watch._active is not None:
        Watch._active.judge(event, arguments)


def peak_memory() -> int:
    """Return the most memory in bytes that this process has ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
