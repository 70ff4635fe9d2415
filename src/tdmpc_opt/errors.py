"""Errors a user can act on: each message says what is wrong and what to do."""

_LONGEST = 1500
"""Characters of a message; what a file says of itself may be of any length."""


class TdmpcOptError(Exception):
    """Base of every error that the command line prints as one line."""

    def __str__(self) -> str:
        """Return one line, whatever of a foreign file was put into it."""
        return printable(super().__str__(), _LONGEST)


def printable(text: str, longest: int) -> str:
    """Return a text without what moves a terminal's cursor or colours it, cut to a length."""
    plain = text if text.isprintable() else "".join(map(_visible, text))
    return plain if len(plain) <= longest else f"{plain[: longest - 4]} ..."


def _visible(letter: str) -> str:
    return letter if letter.isprintable() else ascii(letter)[1:-1]


class UnknownTaskError(TdmpcOptError, ValueError):
    """A task name or id that the task table does not hold."""


class CheckpointError(TdmpcOptError, ValueError):
    """A checkpoint that is missing, damaged, foreign or unsafe to read."""


class DataError(TdmpcOptError, ValueError):
    """A dataset that is missing, damaged, of another task set, or holds NaN."""


class NonFiniteError(TdmpcOptError, ArithmeticError):
    """NaN or infinity in data, a loss or a gradient."""


class ResultError(TdmpcOptError, ValueError):
    """A result file that is damaged or belongs to another configuration."""


class RunError(TdmpcOptError, RuntimeError):
    """A training run that cannot start or go on as asked."""


class MissingDependencyError(TdmpcOptError, ImportError):
    """A library of an extra that is missing, or whose version does not fit."""


class InputError(TdmpcOptError, ValueError):
    """An argument, observation or option with a value that cannot be used."""


class ObservationError(InputError):
    """An observation that is missing, of a wrong shape, not finite, or too large."""


class BusyError(TdmpcOptError, RuntimeError):
    """A planner that was called while another thread's call had not returned."""
