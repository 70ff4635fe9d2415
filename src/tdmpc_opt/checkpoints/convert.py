"""Rewriting a public checkpoint as this project's safetensors file."""

from dataclasses import replace
from pathlib import Path

from tdmpc_opt.checkpoints.checkpoint import Checkpoint
from tdmpc_opt.checkpoints.load import read_checkpoint, resolve, sha256
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.checkpoints.summary import CheckpointSummary, describe
from tdmpc_opt.configs import ConvertConfig


def convert(config: ConvertConfig) -> CheckpointSummary:
    """Write the same weights, bit for bit, as safetensors, and return what the file holds.

    Raises:
        CheckpointError: A source that cannot be read, or a file that cannot be written.
    """
    source = resolve(config.checkpoint)
    write_native(
        config.output, with_origin(read_checkpoint(source, tasks=config.tasks), source)
    )
    return describe(config.output)


def with_origin(checkpoint: Checkpoint, source: Path) -> Checkpoint:
    """Return the checkpoint with the name, hash and layout of the file it came from."""
    origin = {
        "source": source.name,
        "source_sha256": sha256(source),
        "source_layout": checkpoint.layout,
    }
    return replace(checkpoint, extra=checkpoint.extra | origin)
