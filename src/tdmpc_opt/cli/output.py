"""How commands print: tables, and the progress of long work."""

import sys
import time

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

from tdmpc_opt import machine

SECONDS_BETWEEN_LINES = 15.0
SECONDS_TO_ESTIMATE = 2.0
"""Time after which the first line with an estimate may follow the one before."""


def console() -> Console:
    """Return standard output, of a fixed width where it is no terminal.

    It shows text as it is, without markup. Of several processes that torchrun started the first
    prints for all.
    """
    width = None if sys.stdout.isatty() else 120
    return Console(width=width, quiet=machine.rank() > 0, markup=False, highlight=False)


def table_of(title: str, *columns: str) -> Table:
    """Return an empty table whose first column is of text and whose others are of numbers."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


class Lines:
    """A line for each report, for work of several processes that report on their own."""

    def update(self, done: int, total: int, text: str) -> None:
        """Write the report."""
        sys.stderr.write(f"{done:,} of {total:,}  {text}\n")

    def warn(self, text: str) -> None:
        """Write the warning."""
        sys.stderr.write(f"tdmpc-opt: warning: {text}\n")


class ConsoleProgress:
    """A bar with the time left in a terminal; a line now and then in a log file.

    Of several processes that torchrun started the first shows it for all.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._silent = machine.rank() > 0
        self._console = Console(stderr=True, quiet=self._silent)
        self._bar: Bar | None = None
        self._stage: tuple[int, int, float] | None = (
            None  # total, units done at its start, time
        )
        self._last_line = 0.0
        self._estimated = False

    def __enter__(self) -> "ConsoleProgress":
        """Start the bar."""
        if self._console.is_terminal and not self._silent:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            self._bar.start()
            self._bar.add_task(self._title, total=None, note="")
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        if self._bar:
            self._bar.stop()

    def update(self, done: int, total: int, text: str) -> None:
        """Show the report."""
        if self._silent:
            return
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, note=text)
            return
        now = time.monotonic()
        if self._stage is None or self._stage[0] != total or done < self._stage[1]:
            self._stage, self._estimated = (total, done, now), False
        _, already, start = self._stage
        soon = done > already and not self._estimated
        wait = SECONDS_TO_ESTIMATE if soon else SECONDS_BETWEEN_LINES
        if done < total and now - self._last_line < wait:
            return
        self._last_line, self._estimated = now, done > already
        rate = (done - already) / max(now - start, 1e-9)
        eta = f", {(total - done) / rate / 60:.1f} min left" if rate and done < total else ""
        sys.stderr.write(f"{self._title}: {done}/{total}{eta}  {text}\n")
        sys.stderr.flush()

    def warn(self, text: str) -> None:
        """Show the fault on a separate line, above the bar if there is one."""
        self._console.print(f"tdmpc-opt: warning: {text}", highlight=False, soft_wrap=True)
