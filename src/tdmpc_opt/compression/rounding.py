"""Rounding weights: to floats of fewer bits, or to integers by what their inputs look like."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float16, Float64, Int8
from torch import Tensor

from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.model.quantized import IntFormat

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Floating-point formats by the names that commands take."""
LIMITS = {"int8": (-127, 127), "int4": (-8, 7)}
"""Least and largest code of each format."""
_SHRINKS = torch.linspace(0.5, 1.0, 26, dtype=torch.float64)
_BLOCK = 64
"""Columns whose rounding is passed on to all later columns at once."""
_DAMPING = 0.01
"""Share of the mean variance that is added to each input's: it keeps the inverse sound."""


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


class Rounded(NamedTuple):
    """Codes of a matrix and their scales, one per output and group of inputs."""

    codes: Int8[Tensor, "out in_dim"]
    scale: Float16[Tensor, "out groups"]

    def values(self, group: int) -> Float64[Tensor, "out in_dim"]:
        """Return codes times scales, which `group` neighbouring inputs share."""
        spread = self.scale.double().repeat_interleave(group, dim=1)
        return self.codes * spread[:, : self.codes.shape[1]]


def round_to_nearest(
    weight: Float64[Tensor, "out in_dim"], kind: IntFormat, group: int
) -> Rounded:
    """Round each weight by itself; `group` neighbouring inputs share a scale.

    The scale of 8 bits spans the largest weight; that of 4 bits may clip it, where that makes
    the squared error of the group smaller.

    Raises:
        CheckpointError: Weights too large for a scale in fp16.
    """
    importance = torch.ones(weight.shape[1], dtype=torch.float64)
    parts, scales = [], []
    for part, share in zip(weight.split(group, 1), importance.split(group), strict=True):
        scales.append(_scale(part, share, kind))
        parts.append(_codes(part, scales[-1], kind))
    return Rounded(torch.cat(parts, dim=1).to(torch.int8), torch.stack(scales, dim=1))


def round_by_inputs(
    weight: Float64[Tensor, "out in_dim"],
    covariance: Float64[Tensor, "in_dim in_dim"],
    kind: IntFormat,
    group: int,
) -> Rounded:
    """Round a matrix so that its products change least on inputs of this covariance.

    Column by column; what rounding one adds to the products is made up for by the columns that
    are still to come.

    Raises:
        CheckpointError: Weights too large for a scale in fp16.

    Source:
        GPTQ, arXiv:2210.17323, algorithm 1.
    """
    left = weight.clone()
    columns = weight.shape[1]
    block = math.gcd(group, _BLOCK) if group < columns else _BLOCK
    damping = _DAMPING * covariance.diagonal().mean() + torch.finfo(torch.float32).tiny
    damped = covariance + damping * torch.eye(columns, dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True)
    importance = factor.diagonal() ** -2
    codes, scales = torch.zeros_like(left), []
    for start in range(0, columns, block):
        end = min(start + block, columns)
        if start % group == 0:
            span = slice(start, start + group)
            scales.append(_scale(left[:, span], importance[span], kind))
        errors = torch.zeros_like(left[:, start:end])
        for column in range(start, end):
            rounded = _codes(left[:, column : column + 1], scales[-1], kind)[:, 0]
            codes[:, column] = rounded
            error = (left[:, column] - rounded * scales[-1].double()) / factor[column, column]
            left[:, column:end] -= torch.outer(error, factor[column, column:end])
            errors[:, column - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    return Rounded(codes.to(torch.int8), torch.stack(scales, dim=1))


def _codes(
    weight: Float64[Tensor, "out part"], scale: Float16[Tensor, " out"], kind: IntFormat
) -> Float64[Tensor, "out part"]:
    low, high = LIMITS[kind]
    return (weight / scale.double().unsqueeze(1)).round().clamp(low, high)


def _scale(
    weight: Float64[Tensor, "out part"], importance: Float64[Tensor, " part"], kind: IntFormat
) -> Float16[Tensor, " out"]:
    """Return a step for each row: the one that spans it, or for 4 bits the best below that."""
    spanning = weight.abs().amax(dim=1) / LIMITS[kind][1]
    if kind == "int8":
        return _half_above(spanning)
    best = scale = _half_above(spanning)
    least = torch.full_like(spanning, torch.inf)
    for shrink in _SHRINKS:
        scale = _half_above(spanning * shrink)
        error = _codes(weight, scale, kind) * scale.double().unsqueeze(1) - weight
        loss = (error**2 * importance).sum(dim=1)
        best = torch.where(loss < least, scale, best)
        least = torch.minimum(loss, least)
    return best


def _half_above(scale: Float64[Tensor, " out"]) -> Float16[Tensor, " out"]:
    """Return the next fp16 that is not below, so that the largest weight is not cut off."""
    half = scale.half()
    half = torch.where(
        half.double() < scale, (half.view(torch.int16) + 1).view(half.dtype), half
    )
    if not bool(torch.isfinite(half).all()):
        raise CheckpointError(
            f"a scale of {float(scale.max()):.3g} does not fit into fp16; use bf16 or keep the "
            "file as it is"
        )
    return half.clamp(min=torch.finfo(torch.float16).smallest_normal * 2.0**-10)
