"""Progress of long work."""

import warnings
from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Takes reports of long work."""

    def update(self, done: int, total: int, text: str) -> None:
        """Report `done` of `total` units, with a text about the newest ones."""

    def warn(self, text: str) -> None:
        """Report a fault after which the work continues."""


class Silent:
    """Shows no progress."""

    def update(self, done: int, total: int, text: str) -> None:
        """Ignore the report."""

    def warn(self, text: str) -> None:
        """Pass the fault to the caller, as a Python warning."""
        warnings.warn(text, RuntimeWarning, stacklevel=2)


def expected(seconds: float) -> str:
    """Return how long work takes as the end of a report."""
    minutes = seconds / 60
    return f", about {minutes:.0f} min" if minutes >= 1 else ", less than a minute"


class Stage:
    """One of several stages of the work; its name starts each report.

    Args:
        progress: Where the reports go.
        name: Name of the stage.
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
