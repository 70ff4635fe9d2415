"""How the parser reads a command: its options in groups, its help, its errors as one line."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

import tdmpc_opt
from tdmpc_opt.cli.output import Terminal
from tdmpc_opt.configs.common import knobs
from tdmpc_opt.configs.training import Schedule
from tdmpc_opt.errors import InputError


@dataclass(frozen=True)
class Command:
    """A command: its name, what runs it, and how its help presents the options."""

    name: str
    """One word, or two for a command of a family such as `data info`."""
    run: Callable[[Any, Terminal], None]
    """Takes the configuration that the options make, and where to print."""
    example: str
    """Words that follow the name in the example of its help."""
    essentials: tuple[str, ...] | None = None
    """Fields that the help shows first, beside the required ones; None shows all together."""
    by_ranks: bool = False
    """Whether the processes that torchrun starts can run it together."""
    resumes: bool = False
    """Whether the same command continues an interrupted one."""

    @property
    def config(self) -> type:
        """The class of the configuration."""
        config: type = get_type_hints(self.run)["config"]
        return config

    @property
    def summary(self) -> str:
        """The first line of its description."""
        return (inspect.getdoc(self.config) or "").partition("\n")[0]


class UsageError(Exception):
    """Words that make no configuration; the message is one line and names the option."""


def parse(command: Command, words: Sequence[str]) -> Any:
    """Return the configuration that the words after a command's name make.

    Raises:
        UsageError: Values that the configuration refuses.
        SystemExit: Words that the parser refuses, which it has explained; or help was shown.
    """
    registry = ConstructorRegistry()
    registry.struct_rule(_Layout(command))
    registry.primitive_rule(_schedule)
    registry.primitive_rule(_choice)
    description = with_options(str(inspect.getdoc(command.config)), command.config)
    example = f"Example: tdmpc-opt {command.name} {command.example}"
    return tyro.cli(
        command.config,
        args=words,
        prog=f"tdmpc-opt {command.name}",
        description=f"{description}\n\n{example}",
        registry=registry,
        config=(tyro.conf.DisallowNone,),
    )


def overview(groups: Mapping[str, Sequence[Command]]) -> str:
    """Return the list of commands, a line for each, by group."""
    lines = [
        "usage: tdmpc-opt COMMAND [OPTIONS]",
        "       tdmpc-opt COMMAND --help    options of a command, with an example",
        "       tdmpc-opt --version",
        "",
        str(tdmpc_opt.__doc__),
    ]
    for title, commands in groups.items():
        lines += ["", title, *(f"  {each.name:14}{each.summary}" for each in commands)]
    return "\n".join(lines)


class _Advanced:
    """Stands for the options of a command that few need."""


class _Layout:
    """The parser's own rule for dataclasses, with the options of a command in groups."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._inside = False
        self._advanced: tuple[StructFieldSpec, ...] = ()

    def __call__(self, info: StructTypeInfo) -> StructConstructorSpec | None:
        if info.type is _Advanced:
            return StructConstructorSpec(instantiate=dict, fields=self._advanced)
        if self._inside or not is_dataclass(info.type):
            return None
        self._inside = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            self._inside = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        found = tuple(self._shown(field, info.type) for field in spec.fields)
        if info.type is self._command.config:
            found = self._grouped(found)
        return StructConstructorSpec(instantiate=self._refusing(spec.instantiate), fields=found)

    def _refusing(self, instantiate: Callable[..., Any]) -> Callable[..., Any]:
        """Return a constructor whose refusals pass the parser, which would frame them."""

        def make(advanced: Mapping[str, Any] | None = None, **values: Any) -> Any:
            try:
                return instantiate(**values, **(advanced or {}))
            except InputError as error:
                message = with_options(str(error), self._command.config)
                raise UsageError(message) from error

        return make

    def _shown(self, field: StructFieldSpec, config: type) -> StructFieldSpec:
        text = field.helptext() if callable(field.helptext) else field.helptext
        shown = with_options(" ".join((text or "").split()), self._command.config)
        shown = re.sub(r"(?<=\d),(?=\d)", "", shown)  # the parser breaks lines after commas
        return replace(field, type=_named(field, config), helptext=shown)

    def _grouped(self, found: tuple[StructFieldSpec, ...]) -> tuple[StructFieldSpec, ...]:
        essentials = self._command.essentials
        if essentials is None:
            return found
        first = dict.fromkeys([*_required(self._command.config), *essentials])
        by_name = {each.name: each for each in found}
        rest = [each for each in found if each.name not in first]
        own = [each for each in rest if is_dataclass(each.type)]  # it has a group already
        self._advanced = tuple(each for each in rest if each not in own)
        group = StructFieldSpec(
            name="advanced",
            type=Annotated[_Advanced, tyro.conf.OmitArgPrefixes],  # type: ignore[arg-type]
            default=tyro.MISSING,
        )
        return (*(by_name[name] for name in first), *own, group)


def with_options(text: str, config: type) -> str:
    """Return a text with options in place of the fields that it names in backticks."""
    options = {
        field.name: f"{prefix}{field.name}"
        for prefix, part in _parts(config)
        for field in fields(part)
    }

    def option(match: re.Match[str]) -> str:
        name = match[1]
        return f"--{options[name].replace('_', '-')}" if name in options else match[0]

    return re.sub(r"`(\w+)`", option, text)


def _parts(config: type) -> Iterator[tuple[str, type]]:
    """Yield the configurations within a configuration with the prefix of their options."""
    for field in fields(config):
        if isinstance(field.type, type) and is_dataclass(field.type):
            yield f"{field.name}.", field.type
    yield "", config


def _required(config: type) -> list[str]:
    """Return the names of the fields without a default."""
    return [
        field.name
        for field in fields(config)
        if field.init and field.default is MISSING and field.default_factory is MISSING
    ]


_NAMES = {
    "sources": "FILE",
    "results": "RESULT",
    "checkpoints": "CHECKPOINT",
    "teachers": "TEACHER",
    "data": "DATASET",
}
"""What the help calls positional arguments whose field has another name."""
_KINDS = {Path: "PATH", int: "INT", float: "FLOAT"}


def _named(field: StructFieldSpec, config: type) -> Any:
    """Return the type of a field with the word that stands for its value in the help."""
    kind: Any = field.type
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    positional = knobs(config)[field.name].positional
    parts = [part for part in get_args(kind) if part is not NoneType] or [kind]
    single, many = parts[0], "tuple[" in str(kind)
    if positional or single is str:
        word = _NAMES.get(field.name, field.name.upper())
    elif get_origin(single) is Literal:
        word = field.name.upper() if many else "{" + ",".join(get_args(single)) + "}"
    elif single in _KINDS:
        word = _KINDS[single]
    else:
        return field.type
    required = field.name in _required(config)
    if many:
        word = f"[{word} ...]" if positional and not required else f"{word} [{word} ...]"
    hint = "(required)" if required else None
    if not required and field.default in (None, ()):  # its text states what is done
        hint = ""
    arg = tyro.conf.arg(metavar=word, help_behavior_hint=hint)
    return Annotated[kind, tyro.conf.Positional, arg] if positional else Annotated[kind, arg]


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


def _choice(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Take the words of an optional choice: the parser's own rule offers None among them."""
    literal, *other = get_args(info.type) or (None,)
    if get_origin(literal) is not Literal or other != [NoneType]:
        return None
    words = get_args(literal)
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(words) + "}",
        instance_from_str=lambda given: given[0],
        is_instance=lambda value: value is None or value in words,
        str_from_instance=lambda value: [str(value)],
        choices=words,
    )
