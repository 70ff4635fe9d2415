"""What long work reports while it runs."""

import warnings
from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Takes reports of long work."""

    def update(self, done: int, total: int, text: str) -> None:
        """Report `done` of `total` units, with what there is to say about the last ones."""

    def warn(self, text: str) -> None:
        """Tell of a fault that the work goes on in spite of."""


class Silent:
    """Shows nothing."""

    def update(self, done: int, total: int, text: str) -> None:
        """Ignore the report."""

    def warn(self, text: str) -> None:
        """Leave the fault to whoever called: a warning of Python's own."""
        warnings.warn(text, RuntimeWarning, stacklevel=2)


class Stage:
    """One of several stages of a piece of work: puts its name before each report.

    Args:
        progress: Where the reports go.
        name: What the stage is called.
    """

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._name = name

    def update(self, done: int, total: int, text: str) -> None:
        """Pass the report on."""
        self._progress.update(done, total, f"{self._name}: {text}" if text else self._name)

    def warn(self, text: str) -> None:
        """Pass the fault on."""
        self._progress.warn(f"{self._name}: {text}")
