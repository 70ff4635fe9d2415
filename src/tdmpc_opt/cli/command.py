"""What the parser needs to know of a command, and which of its options name files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructTypeInfo,
)

from tdmpc_opt import zoo
from tdmpc_opt.configs import Schedule
from tdmpc_opt.configs.common import knobs
from tdmpc_opt.files import refuse_overwrite

WRITTEN = ("output", "figures", "plot", "card", "sheet", "teacher_cache")
"""Options that name a file or folder to write. `store` may be the checkpoint that was read, for
it only gains presets."""
READ = (
    *("checkpoint", "checkpoints", "sources", "results", "result"),
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


def rules() -> ConstructorRegistry:
    """Return how the parser reads configurations, which do not know the parser."""
    registry = ConstructorRegistry()
    registry.struct_rule(_MarkedFields())
    registry.primitive_rule(_schedule)
    return registry


class _MarkedFields:
    """The parser's own rule for dataclasses, with the fields marked as positional made so."""

    def __init__(self) -> None:
        self._inside = False

    def __call__(self, info: StructTypeInfo) -> StructConstructorSpec | None:
        if self._inside or not is_dataclass(info.type):
            return None
        self._inside = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            self._inside = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        marks = knobs(info.type)
        return replace(
            spec,
            fields=tuple(
                replace(field, type=_shown(field.type, positional=marks[field.name].positional))
                for field in spec.fields
            ),
        )


def _shown(kind: Any, *, positional: bool) -> Any:
    if kind == Path | tuple[Path, ...]:
        return Annotated[kind, tyro.conf.arg(metavar="PATH [PATH ...]")]
    return Annotated[kind, tyro.conf.Positional] if positional else kind


def _schedule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Schedule] | None:
    if info.type is not Schedule:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="WEIGHT",
        instance_from_str=lambda words: Schedule.parse(words[0]),
        is_instance=lambda value: isinstance(value, Schedule),
        str_from_instance=lambda value: [str(value)],
    )


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
