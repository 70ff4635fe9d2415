"""Which layers of an agent are stored in how many bits."""

from collections.abc import Iterable, Mapping
from typing import Literal

from tdmpc_opt.checkpoints.checkpoint import Checkpoint
from tdmpc_opt.world_model.quantized import INT4_GROUP

LayerFormat = Literal["fp16", "int8", "int4"]
Recipe = Mapping[str, LayerFormat]
"""Format of each layer's weight, by the name of the layer, such as `dynamics.1`."""

PARTS = ("encoder", "policy_head", "dynamics", "reward_head", "q_ensemble")
"""Networks in the order in which they are quantised: each after those that feed it."""
_SCALE_BYTES = 2


def layers(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Return the shape of each layer's weight, by the name of the layer, part by part."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part in PARTS:
        index = 0
        while f"{part}.{index}.weight" in checkpoint.tensors:
            shapes[f"{part}.{index}"] = tuple(checkpoint.tensors[f"{part}.{index}.weight"].shape)
            index += 1
    return shapes


def recipe(kind: Literal["int8", "int4"], names: Iterable[str]) -> dict[str, LayerFormat]:
    """Return the format of each layer of an int8 or int4 file.

    The encoder's first layer stays fp16: it is small, and most of the action error was its own.
    The layers that put out actions, rewards and values have 8 bits at least
    (docs/quantisation.md has the measurements).
    """
    names = list(names)
    last = {name.split(".")[0]: name for name in names}
    chosen: dict[str, LayerFormat] = dict.fromkeys(names, kind)
    for part in ("policy_head", "reward_head", "q_ensemble"):
        if part in last:
            chosen[last[part]] = "int8"
    chosen["encoder.0"] = "fp16"
    return chosen


def weight_bytes(shape: tuple[int, ...], kind: LayerFormat) -> int:
    """Return the bytes of a weight with its scales."""
    *lead, columns = shape
    rows = 1
    for size in lead:
        rows *= size
    if kind == "fp16":
        return 2 * rows * columns
    if kind == "int8":
        return rows * (columns + _SCALE_BYTES)
    return rows * (-(-columns // 2) + _SCALE_BYTES * -(-columns // INT4_GROUP))
