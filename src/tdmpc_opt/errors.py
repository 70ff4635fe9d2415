"""Errors a user can act on: each message names the fault and the remedy."""

_LONGEST = 1500
"""Characters of a message; text from a file may be of any length."""


class TdmpcOptError(Exception):
    """Base of every error that the command line prints as one line."""

    def __str__(self) -> str:
        """Return one printable line, even where text of a foreign file is part of it."""
        return printable(super().__str__(), _LONGEST)


def printable(text: str, longest: int) -> str:
    """Return a text without control characters of terminals, cut to a length."""
    plain = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    return plain if len(plain) <= longest else f"{plain[: longest - 4]} ..."


def counted(number: int, thing: str) -> str:
    """Return a number with its noun, such as `1 task` and `2,000 tasks`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


class UnknownTaskError(TdmpcOptError, ValueError):
    """A task name or id that is not in the task table."""


class CheckpointError(TdmpcOptError, ValueError):
    """A checkpoint that is missing, damaged, foreign or unsafe to read."""


class DataError(TdmpcOptError, ValueError):
    """A dataset that is missing, damaged, of another task set, or contains NaN."""


class NonFiniteError(TdmpcOptError, ArithmeticError):
    """NaN or infinity in data, a loss or a gradient."""


class ResultError(TdmpcOptError, ValueError):
    """A result file that is damaged or belongs to another configuration."""


class RunError(TdmpcOptError, RuntimeError):
    """A training run that cannot start or continue as requested."""


class MissingDependencyError(TdmpcOptError, ImportError):
    """A library of an extra that is missing, or whose version does not fit."""


class InputError(TdmpcOptError, ValueError):
    """An argument, observation or option with a value that cannot be used."""


class ObservationError(InputError):
    """An observation that is missing, of a wrong shape, not finite, or too large."""


class BusyError(TdmpcOptError, RuntimeError):
    """A planner that was called while another thread's call had not returned."""
