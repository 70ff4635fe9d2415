"""Commands that look at checkpoints or rewrite them."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

from tdmpc_opt.cli.command import Command
from tdmpc_opt.cli.output import Terminal, table
from tdmpc_opt.configs.deploy import ConvertConfig, InspectConfig, TasksConfig, ZooConfig
from tdmpc_opt.contract import Contracts, by_contract, contracts_of
from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.files import CONTRACT, FORMAT, check_schema, is_onnx, parse_json, sha256
from tdmpc_opt.runtime.onnx_file import SCHEMA, open_onnx
from tdmpc_opt.schema import TaskTable


def _tasks(config: TasksConfig, terminal: Terminal) -> None:
    from tdmpc_opt.schema import MT30
    from tdmpc_opt.tasks import choose_tasks

    rows = [
        (
            *(task.name, "-" if task.env else MT30.index(task.name)),
            *(task.obs_dim, task.action_dim, task.episode_length),
            task.env or ("custom" if task.custom else "dm_control suite"),
        )
        for task in choose_tasks(config.tasks or "mt30").tasks
    ]
    columns = ("task", "id", "observation", "action", "steps", "from")
    terminal.print(table("Tasks", columns, rows))


def _zoo(config: ZooConfig, terminal: Terminal) -> None:
    from tdmpc_opt import zoo

    rows = [
        (
            *(entry.name, f"{entry.parameters:,}", f"{entry.size_bytes:,}"),
            ", ".join(entry.tasks) if len(entry.tasks) < 10 else len(entry.tasks),
        )
        for entry in zoo.entries()
    ]
    columns = ("name", "parameters", "bytes", "tasks")
    terminal.print(table("Bundled checkpoints", columns, rows))


def _inspect(config: InspectConfig, terminal: Terminal) -> None:
    from tdmpc_opt.runtime.agent import agent_file

    path = Path(config.checkpoint)
    if is_onnx(path):
        _inspect_onnx(path, config.tasks, terminal)
    elif (exported := _exported(path)) is not None:
        _inspect_exported(path, *exported, config.tasks, terminal)
    else:
        try:
            _inspect_checkpoint(config.checkpoint, config.tasks, terminal)
        except ModuleNotFoundError as error:
            file = agent_file(path)
            if error.name != "torch" or file.suffix != ".safetensors":
                raise
            _inspect_policy(file, config.tasks, terminal)


def _print_facts(terminal: Terminal, path: Path, facts: Mapping[str, object]) -> None:
    terminal.print(table(path.name, ("fact", "value"), facts.items(), text=2))


def _inspect_checkpoint(path_or_name: str, tasks: str | None, terminal: Terminal) -> None:
    from tdmpc_opt.checkpoints.summary import describe

    summary = describe(path_or_name, tasks)
    facts = {
        "layout": summary.layout,
        "bytes": f"{summary.size_bytes:,}",
        "sha256": summary.sha256,
        "parameters (no target Qs)": f"{summary.parameters:,}",
    }
    facts |= vars(summary.config) | summary.extra | {"tasks": ", ".join(summary.tasks)}
    _print_facts(terminal, summary.path, facts)
    rows = [
        (part, f"{count:,}", f"{summary.part_bytes[part]:,}", summary.dtypes[part])
        for part, count in summary.part_parameters.items()
    ]
    terminal.print(table("Parts", ("part", "parameters", "bytes", "dtype"), rows))
    _print_contracts(terminal, summary.contracts)


def _inspect_onnx(path: Path, tasks: str | None, terminal: Terminal) -> None:
    from tdmpc_opt.tasks import with_own_contracts

    file = open_onnx(path, threads=1, providers=None)
    facts = {
        "layout": "ONNX, exported",
        "bytes": f"{path.stat().st_size:,}",
        "sha256": sha256(path),
        "weights": file.number_format,
        "acts by": "its policy" if file.plan is None else "planning",
        **(vars(file.plan) if file.plan else {}),
        "tasks": ", ".join(file.tasks.names),
    }
    _print_facts(terminal, path, facts)
    _print_contracts(terminal, with_own_contracts(file.contracts, file.tasks, tasks))


def _inspect_policy(path: Path, tasks: str | None, terminal: Terminal) -> None:
    """Show what a device reads of a checkpoint, where torch is not installed."""
    from tdmpc_opt.runtime.numpy_policy import read_weights
    from tdmpc_opt.tasks import with_own_contracts

    weights = read_weights(path)
    count = sum(prod(tensor.shape) for tensor in weights.tensors.values())
    facts = {
        "layout": "native; the policy alone is shown, for more install torch",
        "bytes": f"{path.stat().st_size:,}",
        "sha256": sha256(path),
        "parameters of the policy": f"{count:,}",
        "latent_dim": weights.latent_dim,
        "tasks": ", ".join(weights.tasks.names),
    }
    _print_facts(terminal, path, facts)
    _print_contracts(terminal, with_own_contracts(weights.contracts, weights.tasks, tasks))


_EXECUTORCH = b"ET"
"""What ExecuTorch's files have after four bytes."""
_METADATA_STARTS = json.dumps({"format": FORMAT})[:-1].encode()
_METADATA_FILE = "metadata.json"
"""File of a folder of C source that states what the policy is."""


def _exported(path: Path) -> tuple[str, bytes] | None:
    """Return what an ExecuTorch file or a folder of C source is, and the metadata in it.

    Neither needs the library that made it: ExecuTorch stores the metadata as a plain string.
    """
    folder = path.is_dir()
    file = path / _METADATA_FILE if folder else path
    if not file.is_file():
        return None
    try:
        with file.open("rb") as stream:
            head = stream.read(6)
            if not folder and head[4:] != _EXECUTORCH:
                return None
            content = head + stream.read()
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error
    if folder:
        return "C source, exported", content
    start = content.find(_METADATA_STARTS)
    length = int.from_bytes(content[max(start - 4, 0) : max(start, 0)], "little")
    return "ExecuTorch, exported", content[start : start + length] if start >= 0 else b"{}"


def _inspect_exported(
    path: Path, layout: str, text: bytes, tasks: str | None, terminal: Terminal
) -> None:
    from tdmpc_opt.tasks import with_own_contracts

    foreign = "a file of another program; write one with tdmpc-opt export"
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    try:
        metadata = parse_json(text)
        check_schema(path, metadata, SCHEMA, foreign)
        known = TaskTable.from_json(parse_json(metadata["tasks"]))
        contracts = contracts_of(known, metadata.get(CONTRACT))
        facts = {
            "layout": layout,
            "bytes": f"{sum(file.stat().st_size for file in files):,}",
            **{f"sha256 of {file.name}": sha256(file) for file in files},
            "weights": metadata["number_format"],
            "made from": metadata["source"],
            "by version": metadata["version"],
            "tasks": ", ".join(known.names),
        }
    except CheckpointError:
        raise  # it is a ValueError, which is caught below
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from error
    _print_facts(terminal, path, facts)
    _print_contracts(terminal, with_own_contracts(contracts, known, tasks))


def _print_contracts(terminal: Terminal, contracts: Contracts) -> None:
    """Print what the numbers of tasks are, in their order."""
    for found, names in by_contract(contracts).items():
        title = f"{', '.join(names)}: {found.rate}"
        terminal.print(
            table(title, ("numbers", "names", "unit", "range"), found.rows(), text=2)
        )


def _convert(config: ConvertConfig, terminal: Terminal) -> None:
    from tdmpc_opt.checkpoints.summary import convert
    from tdmpc_opt.export.model_folder import save_folder

    made = convert(config) if config.is_file else save_folder(config)
    terminal.print(
        f"wrote {made.path}: {made.parameters:,} parameters, {made.size_bytes:,} bytes"
    )


COMMANDS = (
    Command("tasks", _tasks, "--tasks walker-walk,cup-catch"),
    Command("zoo", _zoo, ""),
    Command("inspect", _inspect, "student.safetensors"),
    Command("convert", _convert, "teacher.pt --output teacher.safetensors"),
)
