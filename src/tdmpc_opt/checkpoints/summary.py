"""What a checkpoint contains, and the same weights in this project's format."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from tdmpc_opt.checkpoints.checkpoint import Checkpoint, Layout
from tdmpc_opt.checkpoints.load import read_checkpoint, resolve, with_origin
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.configs.deploy import ConvertConfig
from tdmpc_opt.contract import Contracts, contracts_of
from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.files import CONTRACT, refuse_overwrite, sha256
from tdmpc_opt.schema import ModelConfig
from tdmpc_opt.tasks import with_own_contracts


@dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """Facts of one checkpoint file, for `tdmpc-opt inspect`."""

    path: Path
    layout: Layout
    size_bytes: int
    sha256: str
    config: ModelConfig
    tasks: tuple[str, ...]
    """Names in the order of their ids."""
    dtypes: dict[str, str]
    """Number formats of each part, `float16` or, where mixed, `float16, float32`."""
    part_parameters: dict[str, int]
    """Weights of each part, target Qs included where they are stored."""
    part_bytes: dict[str, int]
    """Bytes of each part's tensors."""
    parameters: int
    """Weights in all, target Qs not counted."""
    extra: dict[str, str]
    """Further facts that the file has, such as its source."""
    contracts: Contracts


def describe(path_or_name: str | Path, tasks: str | None = None) -> CheckpointSummary:
    """Return the contents of a checkpoint in numbers.

    `tasks` are names joined by commas: of the tasks of a file that does not name them, and
    environments whose numbers are to be described.

    Raises:
        CheckpointError, UnknownTaskError, InputError: As `read_checkpoint`.
    """
    path = resolve(path_or_name)
    checkpoint = read_checkpoint(path, tasks=tasks)
    facts = [
        (name, str(tensor.dtype).removeprefix("torch."), tensor.numel(), tensor.nbytes)
        for name, tensor in checkpoint.tensors.items()
    ]
    facts += [
        (name, weight.format, weight.parameters, weight.size_bytes)
        for name, weight in checkpoint.quantized.items()
    ]
    dtypes: dict[str, set[str]] = defaultdict(set)
    parameters: dict[str, int] = defaultdict(int)
    size: dict[str, int] = defaultdict(int)
    for name, dtype, count, nbytes in facts:
        part = name.split(".", 1)[0]
        dtypes[part].add(dtype)
        parameters[part] += count
        size[part] += nbytes
    return CheckpointSummary(
        path=path,
        layout=checkpoint.layout,
        size_bytes=path.stat().st_size,
        sha256=sha256(path),
        config=checkpoint.config,
        tasks=checkpoint.tasks.names,
        dtypes={part: ", ".join(sorted(found)) for part, found in dtypes.items()},
        part_parameters=dict(parameters),
        part_bytes=dict(size),
        parameters=checkpoint.parameters,
        extra={name: text for name, text in checkpoint.extra.items() if name != CONTRACT},
        contracts=with_own_contracts(stored_contracts(checkpoint), checkpoint.tasks, tasks),
    )


def stored_contracts(checkpoint: Checkpoint) -> Contracts:
    """Return the names and units of the numbers of a checkpoint's tasks.

    Raises:
        CheckpointError: The file's own record of them is damaged.
    """
    try:
        return contracts_of(checkpoint.tasks, checkpoint.extra.get(CONTRACT))
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"its contract is damaged: {error!r}") from error


def convert(config: ConvertConfig) -> CheckpointSummary:
    """Write the same weights, bit for bit, as safetensors, and describe the new file.

    Raises:
        CheckpointError: A source that cannot be read, or a file that cannot be written.
        UnknownTaskError: Task names that do not match those of the source.
        InputError: Names of tasks of other sizes.
    """
    refuse_overwrite(config)
    source = resolve(config.checkpoint)
    checkpoint = read_checkpoint(source, tasks=config.tasks)
    write_native(config.output, with_origin(checkpoint, source))
    return describe(config.output)
