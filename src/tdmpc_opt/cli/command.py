"""What the parser needs to know of a command."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command: its name, the options it takes, and what runs it."""

    name: str
    config: type
    run: Callable[[Any], None]
    by_ranks: bool = False
    """Whether the processes that torchrun starts can do it together."""
