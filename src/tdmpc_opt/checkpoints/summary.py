"""What a checkpoint file holds, for `tdmpc-opt inspect`."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from tdmpc_opt.checkpoints.checkpoint import Checkpoint, Layout
from tdmpc_opt.checkpoints.load import read_checkpoint, resolve, sha256
from tdmpc_opt.runtime.contract import CONTRACT, Contracts
from tdmpc_opt.schema import ModelConfig
from tdmpc_opt.tasks import with_own_contracts


@dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """Facts of one checkpoint file."""

    path: Path
    """File that was read."""
    layout: Layout
    """Naming of the tensors in it."""
    size_bytes: int
    """Length of the file."""
    sha256: str
    """SHA-256 of the file, in hexadecimal."""
    config: ModelConfig
    """Widths of the network."""
    tasks: tuple[str, ...]
    """Task names in id order."""
    dtypes: dict[str, str]
    """Number formats of each part, `float16` or, where mixed, `float16, float32`."""
    part_parameters: dict[str, int]
    """Weights of each part, target Qs included where they are stored."""
    part_bytes: dict[str, int]
    """Bytes of each part's tensors."""
    parameters: int
    """Weights in all, target Qs not counted."""
    extra: dict[str, str]
    """Further facts that the file keeps, such as its source."""
    contracts: Contracts
    """What is known of the numbers of the tasks."""


def describe(path_or_name: str | Path, tasks: str | None = None) -> CheckpointSummary:
    """Return what a checkpoint file or zoo name holds.

    Args:
        path_or_name: The file.
        tasks: Names joined by commas: of the tasks of a file that does not name them, and
            environments whose numbers are to be described.

    Raises:
        CheckpointError: A file that cannot be read as a checkpoint.
        UnknownTaskError, InputError: As `read_checkpoint`.
    """
    path = resolve(path_or_name)
    checkpoint = read_checkpoint(path, tasks=tasks)
    return CheckpointSummary(
        path=path,
        layout=checkpoint.layout,
        size_bytes=path.stat().st_size,
        sha256=sha256(path),
        config=checkpoint.config,
        tasks=checkpoint.tasks.names,
        dtypes=_dtypes(checkpoint),
        part_parameters=_part_parameters(checkpoint),
        part_bytes=_part_bytes(checkpoint),
        parameters=checkpoint.parameters,
        extra={name: text for name, text in checkpoint.extra.items() if name != CONTRACT},
        contracts=with_own_contracts(checkpoint.contracts, checkpoint.tasks, tasks),
    )


def _dtypes(checkpoint: Checkpoint) -> dict[str, str]:
    names: dict[str, set[str]] = defaultdict(set)
    for key, tensor in checkpoint.tensors.items():
        names[_part(key)].add(str(tensor.dtype).removeprefix("torch."))
    for key, weight in checkpoint.quantized.items():
        names[_part(key)].add(weight.format)
    return {part: ", ".join(sorted(found)) for part, found in names.items()}


def _part_parameters(checkpoint: Checkpoint) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for key, tensor in checkpoint.tensors.items():
        counts[_part(key)] += tensor.numel()
    for key, weight in checkpoint.quantized.items():
        counts[_part(key)] += weight.parameters
    return dict(counts)


def _part_bytes(checkpoint: Checkpoint) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for key, tensor in checkpoint.tensors.items():
        counts[_part(key)] += tensor.nbytes
    for key, weight in checkpoint.quantized.items():
        counts[_part(key)] += weight.size_bytes
    return dict(counts)


def _part(name: str) -> str:
    return name.split(".", 1)[0]
