"""Which layers of an agent are stored in how many bits."""

import math
from collections.abc import Mapping
from typing import Literal

from tdmpc_opt.checkpoints.checkpoint import Checkpoint

LayerFormat = Literal["fp16", "int8", "int4"]
Recipe = Mapping[str, LayerFormat]
"""Format of each layer's weight, by the name of the layer, such as `dynamics.1`."""

PARTS = ("encoder", "policy_head", "dynamics", "reward_head", "q_ensemble")
"""Networks in the order in which they are quantised: each after those that feed it."""
_SCALE_BYTES = 2
_POLICY_GROUP, _MODEL_GROUP = 128, 64
"""Inputs per scale of 4 bits: with 64 instead of 128, planned values were closer to the
original's, actions were not."""


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

    What is small and was measured to matter has more bits (docs/quantisation.md): in agents of
    several tasks the encoder's first layer, which cost most of the action error; with 4 bits
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
    """Return how many inputs of a layer share a scale."""
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
