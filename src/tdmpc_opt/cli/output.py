"""How commands print."""

import sys

from rich.console import Console
from rich.table import Table

from tdmpc_opt import launch


def console() -> Console:
    """Return standard output, of a fixed width where it is no terminal.

    Of several processes that torchrun started the first prints for all.
    """
    return Console(width=None if sys.stdout.isatty() else 120, quiet=launch.rank() > 0)


def table_of(title: str, *columns: str) -> Table:
    """Return an empty table whose first column is of text and whose others are of numbers."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table
