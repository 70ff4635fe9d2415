"""What imports and exports share: their report, their progress, and the room on the disk."""

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from tdmpc_opt.errors import DataError
from tdmpc_opt.progress import Progress

MEGABYTE = 1_000_000


@dataclass
class ImportReport:
    """What came of an import."""

    lines: list[str] = field(default_factory=list)
    """What each source held."""
    left_out: list[str] = field(default_factory=list)
    """What was skipped, and why."""
    episodes: int = 0
    """Episodes added by this call."""

    def leave_out(self, error: DataError, *, skip_bad: bool) -> None:
        """Note a fault and go on.

        Raises:
            DataError: The fault itself, unless it may be skipped.
        """
        if not skip_bad:
            raise error
        self.left_out.append(str(error))


class Throughput:
    """Reports megabytes done and per second, over all files of a piece of work.

    Args:
        progress: Where the reports go.
        total_bytes: All there is to do.
    """

    def __init__(self, progress: Progress, total_bytes: int) -> None:
        self._progress, self._total = progress, total_bytes
        self._done = self._moved = 0
        self._start = time.monotonic()

    def add(self, count: int, text: str, *, moved: bool = True) -> None:
        """Count bytes as done; those that need no work do not count as speed."""
        self._done += count
        self._moved += count if moved else 0
        rate = self._moved / max(time.monotonic() - self._start, 1e-9) / MEGABYTE
        total = max(self._total // MEGABYTE, 1)
        left = self._done < self._total
        done = min(self._done // MEGABYTE, total - left)
        self._progress.update(done, total, f"MB, {rate:.0f} MB/s, {text}")


def refuse_full_disk(folder: Path, needed: int) -> None:
    """Make sure that so many bytes fit.

    Raises:
        DataError: They do not.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder} needs {needed / MEGABYTE:,.0f} MB more, {free / MEGABYTE:,.0f} MB are "
            "free; free some space, and the same command goes on from here"
        )
