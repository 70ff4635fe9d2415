"""Storing an agent, or the part of it that a device needs, in fewer bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tdmpc_opt.checkpoints.convert import with_origin
from tdmpc_opt.checkpoints.load import read_checkpoint, resolve
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.compression.extract import one_task, policy_only
from tdmpc_opt.configs import QuantizeConfig
from tdmpc_opt.errors import CheckpointError

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """What quantizing one file did to it."""

    source: Path
    """File that was read."""
    output: Path
    """File that was written."""
    format: str
    """Number format of the written weights."""
    source_bytes: int
    """Length of the file that was read."""
    output_bytes: int
    """Length of the file that was written."""
    parameters: int
    """Weights written; target Qs are left out."""
    max_error: float
    """Largest absolute change of a weight by rounding."""


def quantize(config: QuantizeConfig) -> QuantizeReport:
    """Write a smaller copy without target Qs, which acting does not need.

    Raises:
        UnknownTaskError: A task that the agent does not know.
        CheckpointError: A source that cannot be read, a weight too large for the format, or a
            file that cannot be written.
    """
    source = resolve(config.checkpoint)
    checkpoint = read_checkpoint(source)
    source_bytes = source.stat().st_size  # before writing: the output may be the same file
    part = replace(with_origin(checkpoint, source), tensors=checkpoint.without_targets())
    if config.policy_only:
        part = policy_only(part)
    if config.task is not None:
        part = one_task(part, config.task)
    full = part.tensors
    rounded = round_weights(full, _DTYPES[config.format])
    small = replace(part, tensors=rounded)
    write_native(config.output, small)
    return QuantizeReport(
        source=source,
        output=config.output,
        format=config.format,
        source_bytes=source_bytes,
        output_bytes=config.output.stat().st_size,
        parameters=small.parameters,
        max_error=_max_error(full, rounded),
    )


def round_weights(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights rounded to a number format.

    Raises:
        CheckpointError: A weight that overflows the format to infinity; the message names it.
    """
    rounded: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        rounded[name] = tensor.to(dtype)
        if not bool(torch.isfinite(rounded[name]).all()):
            largest = float(tensor.abs().max())
            raise CheckpointError(
                f"tensor {name!r} holds {largest:.3g}, more than {dtype} can "
                f"({torch.finfo(dtype).max:.3g}); use bf16 or keep the file as it is"
            )
    return rounded


def _max_error(full: Mapping[str, Tensor], rounded: Mapping[str, Tensor]) -> float:
    """Return the largest distance between a weight and its rounded value."""
    return max(
        float((full[name].double() - tensor.double()).abs().max())
        for name, tensor in rounded.items()
    )
