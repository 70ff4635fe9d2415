"""Rounding: the format of each layer of an agent, of a matrix, and of the whole agent.

Layers are rounded in the order in which they feed each other, each by its inputs from the
layers that are rounded already.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float16, Float64
from torch import Tensor

from tdmpc_opt.checkpoints.checkpoint import Checkpoint, build
from tdmpc_opt.compression.calibration import Observations, inputs_of, try_actions
from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.model.layers import Dense, for_heads
from tdmpc_opt.model.quantized import IntFormat, QuantizedWeight, quantized_weight
from tdmpc_opt.model.world_model import WorldModel

LayerFormat = Literal["fp16", "int8", "int4"]
Recipe = Mapping[str, LayerFormat]
"""Format of each layer's weight, by the name of the layer, such as `dynamics.1`."""

PARTS = (
    *("encoder", "policy_head", "dynamics", "reward_head", "termination_head", "q_ensemble"),
)
"""Networks in the order in which they are quantised: each after those that feed it."""
_SCALE_BYTES = 2
_POLICY_GROUP, _MODEL_GROUP = 128, 64
"""Inputs per scale of 4 bits: 64 instead of 128 brought planned values, but not actions,
closer to the original's."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Floating-point formats by the names that commands take."""
LIMITS = {"int8": (-127, 127), "int4": (-8, 7)}
"""Least and largest code of each format."""
_SHRINKS = torch.linspace(0.5, 1.0, 26, dtype=torch.float64)
_BLOCK = 64
"""Columns whose rounding is passed on to all later columns at once."""
_DAMPING = 0.01
"""Share of the mean variance that is added to each input's: for a stable inverse."""
_SEQUENCE_ROWS = 4096
"""Observations from which action sequences are tried to calibrate a world model."""
_RIDGE = 0.01
"""Pull of the original weights, as a share of the inputs' mean variance: it decides
in directions in which the observations hardly vary."""


def layers(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Return the shape of each layer's weight, by the name of the layer, part by part."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part in PARTS:
        index = 0
        while f"{part}.{index}.weight" in checkpoint.tensors:
            shapes[f"{part}.{index}"] = tuple(
                checkpoint.tensors[f"{part}.{index}.weight"].shape
            )
            index += 1
    return shapes


def recipe(kind: Literal["int8", "int4"], checkpoint: Checkpoint) -> dict[str, LayerFormat]:
    """Return the format of each layer of an int8 or int4 file.

    Small layers with a large measured error have more bits (docs/quantisation.md): in agents of
    several tasks the encoder's first layer, which caused most of the action error; with 4 bits
    also the encoder's last, the policy's last and the first of the dynamics.
    """
    names = list(layers(checkpoint))
    chosen: dict[str, LayerFormat] = dict.fromkeys(names, kind)
    several = checkpoint.config.num_tasks > 1
    chosen["encoder.0"] = "fp16" if several else "int8"
    if kind == "int4":
        last = {name.partition(".")[0]: name for name in names}
        chosen[last["policy_head"]] = "int8"
        if several:
            chosen[last["encoder"]] = "int8"
        if "dynamics.0" in chosen:
            chosen["dynamics.0"] = "int8"
    return chosen


def group_of(layer: str, kind: LayerFormat, columns: int) -> int:
    """Return how many neighbouring inputs of a layer share a scale."""
    if kind != "int4":
        return columns
    of_policy = layer.startswith(("encoder.", "policy_head."))
    return min(columns, _POLICY_GROUP if of_policy else _MODEL_GROUP)


def weight_bytes(layer: str, shape: tuple[int, ...], kind: LayerFormat) -> int:
    """Return the bytes of a layer's weight with its scales."""
    *lead, columns = shape
    rows = math.prod(lead)
    if kind == "fp16":
        return 2 * rows * columns
    stored = columns if kind == "int8" else -(-columns // 2)
    return rows * (stored + _SCALE_BYTES * -(-columns // group_of(layer, kind, columns)))


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
                f"tensor {name!r} contains {largest:.3g}, more than {dtype} can "
                f"({torch.finfo(dtype).max:.3g}); use bf16 or keep the file as it is"
            )
    return rounded


def round_to_nearest(
    weight: Float64[Tensor, "out in_dim"], kind: IntFormat, group: int
) -> QuantizedWeight:
    """Round each weight by itself; `group` neighbouring inputs share a scale.

    The scale of 8 bits spans the largest weight; that of 4 bits may clip it, where that makes
    the squared error of the group smaller.

    Raises:
        CheckpointError: Weights too large for a scale in fp16.
    """
    parts, scales = [], []
    for part in weight.split(group, 1):
        scales.append(_scale(part, torch.ones_like(part[0]), kind))
        parts.append(_codes(part, scales[-1], kind))
    codes = torch.cat(parts, dim=1).to(torch.int8)
    return quantized_weight(codes, torch.stack(scales, dim=1), kind, group)


def round_by_inputs(
    weight: Float64[Tensor, "out in_dim"],
    covariance: Float64[Tensor, "in_dim in_dim"],
    kind: IntFormat,
    group: int,
) -> QuantizedWeight:
    """Round a matrix so that its products change least on inputs of this centred covariance.

    Column by column; the columns that follow compensate the error of each.

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
    scale = torch.stack(scales, dim=1)
    return quantized_weight(codes.to(torch.int8), scale, kind, group)


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
    best = _half_above(spanning)
    if kind == "int8":
        return best
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


def to_integers(
    checkpoint: Checkpoint, formats: Recipe, observations: Observations | None
) -> Checkpoint:
    """Return the agent with its layers in these formats and all else in fp16.

    With observations a layer is rounded by the covariance of its inputs, and fitted to the
    original layer's products with the original's inputs, so that errors do not add up; its
    bias takes up the rest of the mean. Without, each weight is rounded by itself.

    Raises:
        CheckpointError: A weight too large for fp16.
    """
    original = build(checkpoint, policy_will_do=True)
    working = copy.deepcopy(original)
    quantized: dict[str, QuantizedWeight] = {}
    with torch.no_grad():
        for name, parameter in working.named_parameters():
            if name.removesuffix(".weight") not in formats:
                parameter.copy_(parameter.half())
        for name, pair, seen in layers_at_work(original, working, observations):
            weight = round_layer(name, pair, seen, formats[name])
            if weight is not None:
                quantized[f"{name}.weight"] = weight
    tensors = {
        name: tensor
        for name, tensor in working.state_dict().items()
        if name in checkpoint.tensors and name not in quantized
    }
    halves = round_weights(tensors, torch.float16)
    return replace(checkpoint, tensors=halves, quantized=quantized)


def refuse_quantized(checkpoint: Checkpoint, source: Path) -> None:
    """Refuse to round an agent a second time.

    Raises:
        CheckpointError: A file with quantised weights.
    """
    if checkpoint.quantized or "quantised" in checkpoint.extra:
        raise CheckpointError(
            f"{source} contains quantised weights already; name the file it was made from"
        )


@torch.no_grad()
def layers_at_work(
    original: WorldModel, working: WorldModel, observations: Observations | None
) -> Iterator[tuple[str, tuple[Dense, Dense], tuple[Tensor, Tensor] | None]]:
    """Yield the layers of two models, each after those that feed it.

    Yields:
        The name of a layer, the layer in both models, and its inputs in each of them, [rows,
        in] or, of an ensemble, [heads, rows, in]; None in their place without observations.
    """
    tried = None
    if observations is not None and original.can_plan:
        tried = try_actions(original, observations.spread(_SEQUENCE_ROWS))
    for part in PARTS:
        networks = getattr(original, part), getattr(working, part)
        seen: tuple[Tensor, Tensor] | None = None
        if observations is not None and len(networks[0]):
            x, y = (inputs_of(part, m, observations, tried) for m in (original, working))
            seen = (x, y)
        for index, pair in enumerate(zip(*networks, strict=True)):
            yield f"{part}.{index}", pair, seen
            if seen is not None:
                x, y = (dense(for_heads(z, dense)) for dense, z in zip(pair, seen, strict=True))
                seen = (x, y)


def round_layer(
    name: str,
    pair: tuple[Dense, Dense],
    seen: tuple[Tensor, Tensor] | None,
    kind: LayerFormat,
) -> QuantizedWeight | None:
    """Set the second layer's weight to the first one's in another format.

    Args:
        name: Name of the layer.
        pair: The original layer, and the one that is changed.
        seen: Inputs of both, from `layers_at_work`; None rounds each weight by itself.
        kind: Format of the weight.

    Returns:
        The integer weight; None for fp16.

    Raises:
        CheckpointError: A weight too large for fp16.
    """
    original, working = pair
    if kind == "fp16":
        stored = f"{name}.weight"
        working.weight.copy_(round_weights({stored: original.weight}, torch.float16)[stored])
        return None
    shape = original.weight.shape
    group = group_of(name, kind, shape[-1])
    count = original.weight.shape[0] if original.weight.ndim == 3 else 1
    weights = original.weight.double().reshape(count, *original.weight.shape[-2:])
    biases = original.bias.double().reshape(count, -1)
    parts: list[QuantizedWeight] = []
    for head, weight in enumerate(weights):
        if seen is None:
            rounded = round_to_nearest(weight, kind, group)
            shift = torch.zeros_like(biases[head])
        else:
            x, y = ((z[head] if z.ndim == 3 else z).double() for z in seen)
            target, covariance = _refitted(weight, x, y)
            rounded = round_by_inputs(target, covariance, kind, group)
            shift = weight @ x.mean(0) - rounded.dense().double() @ y.mean(0)
        parts.append(rounded)
        working.weight.view(count, *weight.shape)[head] = rounded.dense()
        working.bias.view(count, -1)[head] = (biases[head] + shift).half()
    codes = torch.stack([part.codes for part in parts]).reshape(*shape[:-1], -1)
    scale = torch.stack([part.scale for part in parts]).reshape(*shape[:-1], -1)
    return QuantizedWeight(codes, scale, shape[-1], group)


def _refitted(
    weight: Float64[Tensor, "out in_dim"],
    x: Float64[Tensor, "rows in_dim"],
    y: Float64[Tensor, "rows in_dim"],
) -> tuple[Float64[Tensor, "out in_dim"], Float64[Tensor, "in_dim in_dim"]]:
    """Return the weight whose products with y are those of the given one with x.

    A ridge regression towards the given weight; the mean is left to the bias. The second
    result is the covariance of y.
    """
    y = y - y.mean(0)  # so that the mean of x has no part in the products
    covariance = y.T @ y / len(y)
    ridge = _RIDGE * covariance.diagonal().mean() + torch.finfo(torch.float32).tiny
    left = covariance + ridge * torch.eye(len(covariance), dtype=torch.float64)
    right = (y.T @ x / len(y)) @ weight.T + ridge * weight.T
    return torch.linalg.solve(left, right).T.contiguous(), covariance
