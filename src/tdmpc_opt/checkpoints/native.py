"""This project's checkpoint file: safetensors of weights, plain or quantised, with metadata.

The metadata are the config, the task table, further facts, the contract of the tasks' numbers
and the formats of quantised weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tdmpc_opt.checkpoints.checkpoint import Checkpoint, validate
from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.files import (
    CHECKPOINT_SCHEMA,
    CONTRACT,
    FOREIGN,
    FORMAT,
    check_schema,
    parse_json,
    replace_when_done,
    sort_metadata,
)
from tdmpc_opt.model.quantized import QuantizedWeight
from tdmpc_opt.schema import ModelConfig, TaskTable, from_record


def write_native(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that readers find the old file or the complete new one.

    The new file, in a folder that is made if need be, is read back and checked before it takes
    the place of the old one.

    Raises:
        CheckpointError: Weights that do not fit their config, or a file that cannot be written
            or would not be readable.
    """
    validate(checkpoint)
    quantized = checkpoint.quantized
    metadata = {
        "format": FORMAT,
        "schema": str(CHECKPOINT_SCHEMA if quantized else 1),
        "config": _dense(checkpoint.config.to_json()),
        "tasks": _dense(checkpoint.tasks.to_json()),
        "extra": _dense({k: v for k, v in checkpoint.extra.items() if k != CONTRACT}),
    }
    if CONTRACT in checkpoint.extra:  # within the other facts each of its quotes has 4 bytes
        metadata[CONTRACT] = checkpoint.extra[CONTRACT]
    tensors, layout = dict(checkpoint.tensors), {}
    for name, weight in quantized.items():
        layout[name] = [weight.format, weight.columns, weight.group]
        tensors |= {name: weight.codes, _scale_name(name): weight.scale}
    if quantized:
        metadata["quantized"] = _dense(layout)
    try:
        with replace_when_done(path) as temporary:
            save_file(_storable(tensors), temporary, metadata)
            sort_metadata(temporary)
            read_native(temporary, check_values=False)  # the values were checked above
    except (OSError, SafetensorError) as error:
        # safetensors wraps the system's own error, such as a full disk, in its type.
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"cannot write {path}: {reason}") from error


def _dense(content: Any) -> str:
    """Return JSON without spaces: the file of one task's policy is 140 kB."""
    return json.dumps(content, separators=(",", ":"))


def _scale_name(weight: str) -> str:
    """Return the entry of the scales of a quantised weight."""
    return weight.removesuffix("weight") + "scale"


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors of which no two share memory, as safetensors demands."""
    seen: set[int] = set()
    storable: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        address = whole.untyped_storage().data_ptr()
        storable[name] = whole.clone() if address in seen else whole
        seen.add(address)
    return storable


def read_native(path: Path, *, check_values: bool = True) -> Checkpoint:
    """Read a checkpoint that `write_native` wrote.

    Without `check_values` only `build` looks for NaN and infinity.

    Raises:
        CheckpointError: A file that is unreadable, damaged, foreign, of a newer schema, or
            whose weights do not fit its config.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            check_schema(path, metadata, CHECKPOINT_SCHEMA, FOREIGN)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from error
    try:
        listed = _json(metadata, "quantized", dict) if "quantized" in metadata else {}
        quantized = {name: _quantized(name, entry, tensors) for name, entry in listed.items()}
        own = {key: metadata[key] for key in (CONTRACT,) if key in metadata}
        extra = _json(metadata, "extra", dict) | own
        checkpoint = Checkpoint(
            from_record(ModelConfig, _json(metadata, "config", dict)),
            TaskTable.from_json(_json(metadata, "tasks", list)),
            tensors,
            extra={str(key): str(value) for key, value in extra.items()},
            quantized=quantized,
        )
        validate(checkpoint, values=check_values)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its config or tasks cannot be used: {error}") from error
    return checkpoint


def _quantized(name: str, entry: Any, tensors: dict[str, Tensor]) -> QuantizedWeight:
    """Take a weight's codes and scales out of the tensors of a file."""
    match entry:
        case [("int8" | "int4") as kind, int(columns), int(group)] if min(columns, group) > 0:
            pass
        case _:
            raise CheckpointError(f"its metadata has {str(entry)[:40]} for {name!r}")
    found = tensors.pop(name, None), tensors.pop(_scale_name(name), None)
    if found[0] is None or found[1] is None:
        raise CheckpointError(f"quantised tensor {name!r} lacks its codes or scales")
    dtypes = (torch.int8 if kind == "int8" else torch.uint8, torch.float16)
    if (found[0].dtype, found[1].dtype) != dtypes:
        raise CheckpointError(
            f"quantised tensor {name!r} is of {found[0].dtype} and {found[1].dtype}, expected "
            f"{dtypes[0]} and {dtypes[1]}"
        )
    return QuantizedWeight(found[0], found[1], columns, group)


def _json(metadata: Mapping[str, str], key: str, kind: type) -> Any:
    """Return one JSON value of the metadata, of the kind it must have."""
    try:
        value = parse_json(metadata[key])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"its metadata has no readable {key!r}") from error
    if not isinstance(value, kind):
        raise CheckpointError(f"its metadata entry {key!r} is not a {kind.__name__}")
    return value
