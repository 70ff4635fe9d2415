"""Rounding weights to floating-point formats."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tdmpc_opt.errors import CheckpointError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Floating-point formats by the names that commands take."""


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
