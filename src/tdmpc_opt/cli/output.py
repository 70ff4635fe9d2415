"""What a command prints: its results, and the progress of long work."""

import sys
import time
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from tdmpc_opt import machine
from tdmpc_opt.errors import printable

SECONDS_BETWEEN_LINES = 15.0
SECONDS_TO_ESTIMATE = 2.0
"""Time after which the first line with an estimate may follow the one before."""
_WIDTH = 120  # of tables in a file
_LONGEST_CELL = 10_000  # characters; text of a foreign file may be of any length


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, text: int = 1
) -> Table:
    """Return a table whose first `text` columns are of text and whose others are of numbers."""
    made = Table(title=printable(title, 300), title_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index < text else "right")
    for row in rows:
        made.add_row(*(Text(printable(str(cell), _LONGEST_CELL)) for cell in row))
    return made


class Lines:
    """A line for each report, for work of several processes that report on their own."""

    def update(self, done: int, total: int, text: str) -> None:
        """Write the report."""
        sys.stderr.write(f"{done:,} of {total:,}  {text}\n")

    def warn(self, text: str) -> None:
        """Write the warning."""
        sys.stderr.write(f"tdmpc-opt: warning: {text}\n")


class Terminal:
    """Results on standard output; on standard error a bar with the time left, or a log.

    Text is shown as it is, without markup. Of several processes that torchrun started the first
    prints for all.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._quiet = machine.rank() > 0
        width = None if sys.stdout.isatty() else _WIDTH
        self._results = Console(width=width, quiet=self._quiet, markup=False, highlight=False)
        self._console = Console(stderr=True, quiet=self._quiet, markup=False, highlight=False)
        self._bar: Bar | None = None
        self._total, self._done = -1, 0
        self._start, self._start_time = 0, 0.0  # of a stage
        self._last_line = 0.0
        self._estimated = False

    def print(self, *parts: str | Table) -> None:
        """End the bar, and show tables and lines of text."""
        self.close()
        for part in parts:
            self._results.print(part, soft_wrap=isinstance(part, str))

    def close(self) -> None:
        """End the bar."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def update(self, done: int, total: int, text: str) -> None:
        """Show the report."""
        if self._quiet:
            return
        another = total != self._total or done < self._done  # a stage of its own speed
        self._total, self._done = total, done
        if self._console.is_terminal:
            self._bar = self._bar or self._started()
            if another:
                self._bar.reset(self._bar.task_ids[0], total=total)
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, note=text)
            return
        now = time.monotonic()
        if another:
            self._start, self._start_time, self._estimated = done, now, False
        passed = done - self._start
        wait = SECONDS_BETWEEN_LINES
        if passed and not self._estimated:
            wait = SECONDS_TO_ESTIMATE
        if done < total and now - self._last_line < wait:
            return
        self._last_line, self._estimated = now, passed > 0
        left = (total - done) * (now - self._start_time) / 60 / passed if passed else 0.0
        eta = f", {left:.1f} min left" if left else ""
        sys.stderr.write(f"{self._title}: {done}/{total}{eta}  {text}\n")
        sys.stderr.flush()

    def _started(self) -> Bar:
        bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}"),
            console=self._console,
        )
        bar.start()
        bar.add_task(self._title, total=None, note="")
        return bar

    def warn(self, text: str) -> None:
        """Show the fault on a separate line, above the bar if there is one."""
        self._console.print(f"tdmpc-opt: warning: {text}", soft_wrap=True)
