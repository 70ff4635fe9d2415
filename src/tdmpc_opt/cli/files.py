"""Commands that look at checkpoints or rewrite them."""

import json
from pathlib import Path

from rich.table import Table
from rich.text import Text

from tdmpc_opt import configs
from tdmpc_opt.cli.command import Command
from tdmpc_opt.cli.output import console, table_of
from tdmpc_opt.errors import CheckpointError, printable
from tdmpc_opt.files import FORMAT, check_schema, parse_json, sha256
from tdmpc_opt.runtime.contract import CONTRACT, Contracts, by_contract, contracts_of
from tdmpc_opt.runtime.onnx_file import SCHEMA
from tdmpc_opt.schema import TaskTable


def _tasks(config: configs.TasksConfig) -> None:
    from tdmpc_opt.schema import MT30
    from tdmpc_opt.tasks import choose_tasks

    table = table_of("Tasks", "task", "id", "observation", "action", "steps", "from")
    for task in choose_tasks(config.tasks or "mt30").tasks:
        origin = task.env or ("custom" if task.custom else "dm_control suite")
        index = "-" if task.env else str(MT30.index(task.name))
        sizes = (str(task.obs_dim), str(task.action_dim), str(task.episode_length))
        table.add_row(task.name, index, *sizes, origin)
    console().print(table)


def _zoo(config: configs.ZooConfig) -> None:
    from tdmpc_opt import zoo

    table = table_of("Bundled checkpoints", "name", "parameters", "bytes", "tasks")
    for entry in zoo.entries():
        table.add_row(
            entry.name,
            f"{entry.parameters:,}",
            f"{entry.size_bytes:,}",
            ", ".join(entry.tasks) if len(entry.tasks) < 10 else str(len(entry.tasks)),
        )
    console().print(table)


def _inspect(config: configs.InspectConfig) -> None:
    from tdmpc_opt.runtime.onnx_file import is_onnx

    path = Path(config.checkpoint)
    if is_onnx(path):
        _inspect_onnx(path, config.tasks)
    elif (exported := _exported(path)) is not None:
        _inspect_exported(path, *exported, config.tasks)
    else:
        _inspect_checkpoint(config.checkpoint, config.tasks)


def _facts(path: Path, layout: str, size_bytes: int, digest: str) -> Table:
    """Return a table that begins with what every file has."""
    facts = table_of(path.name, "fact", "value")
    facts.columns[1].justify = "left"
    facts.add_row("layout", layout)
    facts.add_row("bytes", f"{size_bytes:,}")
    facts.add_row("sha256", digest)
    return facts


def _inspect_checkpoint(path_or_name: str, tasks: str | None) -> None:
    from tdmpc_opt.checkpoints.load import describe

    summary = describe(path_or_name, tasks)
    terminal = console()
    facts = _facts(summary.path, summary.layout, summary.size_bytes, summary.sha256)
    facts.add_row("parameters (no target Qs)", f"{summary.parameters:,}")
    for name, value in vars(summary.config).items():
        facts.add_row(name, str(value))
    for name, text in summary.extra.items():
        facts.add_row(Text(printable(name, 100)), Text(printable(text, 10_000)))
    facts.add_row("tasks", Text(", ".join(summary.tasks)))
    terminal.print(facts)
    parts = table_of("Parts", "part", "parameters", "bytes", "dtype")
    for part, count in summary.part_parameters.items():
        size = f"{summary.part_bytes[part]:,}"
        parts.add_row(part, f"{count:,}", size, summary.dtypes[part])
    terminal.print(parts)
    _print_contracts(summary.contracts)


def _inspect_onnx(path: Path, tasks: str | None) -> None:
    from tdmpc_opt.runtime.onnx_file import open_onnx
    from tdmpc_opt.tasks import with_own_contracts

    file = open_onnx(path, threads=1, providers=None)
    facts = _facts(path, "ONNX, exported", path.stat().st_size, sha256(path))
    facts.add_row("weights", file.number_format)
    facts.add_row("acts by", "its policy" if file.plan is None else "planning")
    for name, value in vars(file.plan).items() if file.plan else ():
        facts.add_row(name, Text(printable(str(value), 100)))
    facts.add_row("tasks", Text(", ".join(file.tasks.names)))
    console().print(facts)
    _print_contracts(with_own_contracts(file.contracts, file.tasks, tasks))


_EXECUTORCH = b"ET"
"""What ExecuTorch's files have after four bytes."""
_METADATA_STARTS = json.dumps({"format": FORMAT})[:-1].encode()
_METADATA_FILE = "metadata.json"
"""File of a folder of C source that states what the policy is."""


def _exported(path: Path) -> tuple[str, bytes] | None:
    """Return what an ExecuTorch file or a folder of C source is, and the metadata in it.

    Neither needs the library that made it: ExecuTorch stores the metadata as a plain string.
    """
    if path.is_dir():
        facts = path / _METADATA_FILE
        return ("C source, exported", facts.read_bytes()) if facts.is_file() else None
    if not path.is_file():
        return None
    with path.open("rb") as file:
        if file.read(6)[4:] != _EXECUTORCH:
            return None
    content = path.read_bytes()
    start = content.find(_METADATA_STARTS)
    length = int.from_bytes(content[max(start - 4, 0) : max(start, 0)], "little")
    return "ExecuTorch, exported", content[start : start + length] if start >= 0 else b"{}"


def _inspect_exported(path: Path, layout: str, text: bytes, tasks: str | None) -> None:
    from tdmpc_opt.tasks import with_own_contracts

    foreign = "a file of another program; write one with tdmpc-opt export"
    try:
        metadata = parse_json(text)
        check_schema(path, metadata, SCHEMA, foreign)
        table = TaskTable.from_json(parse_json(metadata["tasks"]))
        contracts = contracts_of(table, metadata.get(CONTRACT))
        stated = {name: str(metadata[name]) for name in ("number_format", "source", "version")}
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from error
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    digest = "of each file:" if path.is_dir() else sha256(path)
    facts = _facts(path, layout, sum(file.stat().st_size for file in files), digest)
    for file in files if path.is_dir() else ():
        facts.add_row(Text(printable(file.name, 100)), sha256(file))
    facts.add_row("weights", Text(printable(stated["number_format"], 100)))
    facts.add_row("made from", Text(printable(stated["source"], 100)))
    facts.add_row("by version", Text(printable(stated["version"], 100)))
    facts.add_row("tasks", Text(", ".join(table.names)))
    console().print(facts)
    _print_contracts(with_own_contracts(contracts, table, tasks))


def _print_contracts(contracts: Contracts) -> None:
    """Print what the numbers of tasks are, in their order."""
    for found, names in by_contract(contracts).items():
        title = f"{', '.join(names)}: {found.rate}"
        table = table_of(printable(title, 300), "numbers", "names", "unit", "range")
        table.columns[1].justify = "left"
        for row in found.rows():
            table.add_row(*(Text(printable(cell, 2000)) for cell in row))
        console().print(table)


def _convert(config: configs.ConvertConfig) -> None:
    from tdmpc_opt.checkpoints.load import convert
    from tdmpc_opt.export.model_folder import save_folder

    summary = convert(config) if config.is_file else save_folder(config)
    console().print(
        f"wrote {summary.path}: {summary.parameters:,} parameters, {summary.size_bytes:,} bytes"
    )


COMMANDS = (
    Command("tasks", _tasks, "--tasks walker-walk,cup-catch"),
    Command("zoo", _zoo, ""),
    Command("inspect", _inspect, "student.safetensors"),
    Command("convert", _convert, "teacher.pt --output teacher.safetensors"),
)
