"""Turning an agent's layers to integers, each making up for those before it."""

import copy
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tdmpc_opt.checkpoints.checkpoint import Checkpoint, build
from tdmpc_opt.compression.calibration import Observations, Sequences, inputs_of, try_actions
from tdmpc_opt.compression.recipe import PARTS, LayerFormat, Recipe, group_of
from tdmpc_opt.compression.rounding import round_by_inputs, round_to_nearest, round_weights
from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.model.layers import Dense
from tdmpc_opt.model.quantized import QuantizedWeight, quantized_weight
from tdmpc_opt.model.world_model import WorldModel

SEQUENCE_ROWS = 4096
"""Observations from which action sequences are tried to calibrate a world model."""
_RIDGE = 0.01
"""Pull of the original weights, as a share of the inputs' mean variance: it decides where the
calibration says little."""


def to_integers(
    checkpoint: Checkpoint, formats: Recipe, observations: Observations | None
) -> Checkpoint:
    """Return the agent with its layers in these formats and all else in fp16.

    With observations a layer is rounded by what its inputs look like, and made to give what the
    original layer gives on the original's inputs, so that errors do not add up; its bias takes
    up what is left of the mean. Without, each weight is rounded by itself.

    Args:
        checkpoint: An agent without target Qs, of whatever floating-point format.
        formats: Format of every layer.
        observations: Real observations of its tasks.

    Raises:
        CheckpointError: A weight too large for fp16.
    """
    original = build(as_float(checkpoint), policy_will_do=True)
    working = copy.deepcopy(original)
    tried = None
    with torch.no_grad():
        for name, parameter in working.named_parameters():
            if name.removesuffix(".weight") not in formats:
                parameter.copy_(parameter.half())
        if observations is not None and original.can_plan:
            tried = try_actions(original, observations.spread(SEQUENCE_ROWS))
        quantized: dict[str, QuantizedWeight] = {}
        for part in (part for part in PARTS if f"{part}.0" in formats):
            quantized |= _round_part(part, (original, working), formats, observations, tried)
    tensors = {
        name: tensor
        for name, tensor in working.state_dict().items()
        if name in checkpoint.tensors and name not in quantized
    }
    halves = round_weights(tensors, torch.float16)
    return replace(checkpoint, tensors=halves, quantized=quantized)


def refuse_quantized(checkpoint: Checkpoint, source: Path) -> None:
    """Refuse to round what is rounded already.

    Raises:
        CheckpointError: A file with quantised weights.
    """
    if checkpoint.quantized or "quantised" in checkpoint.extra:
        raise CheckpointError(
            f"{source} holds quantised weights already; name the file it was made from"
        )


def as_float(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint in float32."""
    tensors = {name: tensor.float() for name, tensor in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors)


def _round_part(
    part: str,
    models: tuple[WorldModel, WorldModel],
    formats: Recipe,
    observations: Observations | None,
    tried: Sequences | None,
) -> dict[str, QuantizedWeight]:
    """Round a network of the second model, layer by layer, and return its integer weights."""
    found: dict[str, QuantizedWeight] = {}
    seen: tuple[Tensor, Tensor] | None = None
    if observations is not None:
        x, y = (inputs_of(part, model, observations, tried) for model in models)
        seen = (x, y)
    for index, pair in enumerate(zip(*(getattr(model, part) for model in models), strict=True)):
        name, kind = f"{part}.{index}", formats[f"{part}.{index}"]
        weight = round_layer(name, pair, seen, kind)
        if weight is not None:
            found[f"{name}.weight"] = weight
        if seen is not None:
            seen = (through(pair[0], seen[0]), through(pair[1], seen[1]))
    return found


def through(dense: Dense, x: Float[Tensor, "*rows in_dim"]) -> Float[Tensor, "*out out_dim"]:
    """Apply a layer; what all heads of an ensemble see alike is given to each."""
    heads = dense.weight.shape[0] if dense.weight.ndim == 3 else None
    return dense(x if heads is None or x.ndim == 3 else x.expand(heads, -1, -1))


def round_layer(
    name: str,
    pair: tuple[Dense, Dense],
    seen: tuple[Tensor, Tensor] | None,
    kind: LayerFormat,
) -> QuantizedWeight | None:
    """Give the second layer of a pair the first one's weight in another format.

    Args:
        name: Name of the layer.
        pair: The original layer, and the one that is changed.
        seen: What each of them sees, [rows, in] or, of an ensemble, [heads, rows, in]; None
            rounds each weight by itself.
        kind: Format of the weight.

    Returns:
        The integer weight; None for fp16.
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
    codes, scales = [], []
    for head in range(count):
        weight, shift = weights[head], torch.zeros_like(biases[head])
        if seen is None:
            rounded = round_to_nearest(weight, kind, group)
        else:
            x, y = (_of_head(inputs, head) for inputs in seen)
            target, covariance = _made_up(weight, x, y)
            rounded = round_by_inputs(target, covariance, kind, group)
            shift = weight @ x.mean(0) - rounded.values(group) @ y.mean(0)
        codes.append(rounded.codes)
        scales.append(rounded.scale)
        working.weight.view(count, *weight.shape)[head] = rounded.values(group)
        working.bias.view(count, -1)[head] = (biases[head] + shift).half()
    scale = torch.stack(scales).reshape(*shape[:-1], -1)
    return quantized_weight(torch.stack(codes).reshape(shape), scale, kind, group)


def _of_head(inputs: Tensor, head: int) -> Float64[Tensor, "rows in_dim"]:
    return (inputs[head] if inputs.ndim == 3 else inputs).double()


def _made_up(
    weight: Float64[Tensor, "out in_dim"],
    x: Float64[Tensor, "rows in_dim"],
    y: Float64[Tensor, "rows in_dim"],
) -> tuple[Float64[Tensor, "out in_dim"], Float64[Tensor, "in_dim in_dim"]]:
    """Return the weight that does to y what the given one does to x, and y's covariance.

    A ridge regression towards the given weight; the mean is left to the bias.
    """
    x, y = x - x.mean(0), y - y.mean(0)
    covariance = y.T @ y / len(y)
    ridge = _RIDGE * covariance.diagonal().mean() + torch.finfo(torch.float32).tiny
    left = covariance + ridge * torch.eye(len(covariance), dtype=torch.float64)
    right = (y.T @ x / len(y)) @ weight.T + ridge * weight.T
    return torch.linalg.solve(left, right).T.contiguous(), covariance
