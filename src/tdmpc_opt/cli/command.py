"""What the parser needs to know of a command, and which of its options name files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tdmpc_opt import zoo
from tdmpc_opt.files import refuse_overwrite

WRITTEN = ("output", "figures", "plot", "card", "sheet", "teacher_cache")
"""Options that name a file or folder to write. `store` may be the checkpoint that was read, for
it only gains presets."""
READ = (
    *("checkpoint", "checkpoints", "sources", "results", "first", "second", "result"),
    *("data", "on_policy", "policy", "label", "against", "start"),
    *("teacher", "more_teachers", "policy_teacher"),
)
"""Options that name a file or folder to read. `warm_up` may be the folder of experts that is
added to."""


@dataclass(frozen=True)
class Command:
    """A command: its name, the options it takes, and what runs it."""

    name: str
    config: type
    run: Callable[[Any], None]
    by_ranks: bool = False
    """Whether the processes that torchrun starts can do it together."""


def check_paths(config: Any) -> None:
    """Refuse a config whose outputs are among its inputs.

    Raises:
        InputError: The message names both.
    """
    names = {field.name for field in fields(config)}
    outputs = {
        f"--{name.replace('_', '-')}": getattr(config, name)
        for name in WRITTEN
        if name in names and getattr(config, name) is not None
    }
    inputs = [path for name in READ if name in names for path in _paths(getattr(config, name))]
    refuse_overwrite(outputs, inputs)


def _paths(value: object) -> Iterator[Path]:
    """Yield what an option names: files, folders, or bundled checkpoints."""
    bundled = {entry.name for entry in zoo.entries()}
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, str | Path):
            yield zoo.path(item) if item in bundled else Path(item)
