"""Reading this project's safetensors without torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.task_table import TaskTable

FORMAT = "tdmpc-opt"
SCHEMA = 1
_DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
_LENGTH = 8  # bytes of a safetensors file that hold the length of its header


@dataclass(frozen=True, eq=False)
class Weights:
    """What a policy's file holds."""

    tensors: dict[str, NDArray[np.float32]]
    """Encoder, policy and task embedding by name; other networks are not read."""
    tasks: TaskTable
    """Tasks in the order of the embedding's rows."""
    latent_dim: int
    """Width of the latent state."""
    simnorm_dim: int
    """Length of one of its simplices."""


def read_weights(path: Path) -> Weights:
    """Read encoder and policy of a checkpoint.

    Raises:
        CheckpointError: A file that is missing, damaged, foreign or of a newer schema.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    try:
        stored = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
        length = int.from_bytes(content[:_LENGTH], "little")
        metadata = json.loads(content[_LENGTH : _LENGTH + length]).get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no ONNX or safetensors file, or damaged: {error}"
        ) from error
    _check_schema(path, metadata)
    try:
        config = json.loads(metadata["config"])
        tasks = TaskTable.from_json(json.loads(metadata["tasks"]))
        tensors = {
            name: _array(entry)
            for name, entry in stored
            if name.startswith(("encoder.", "policy_head.", "task_embedding."))
        }
        return Weights(tensors, tasks, config["latent_dim"], config["simnorm_dim"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from error


def _check_schema(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file of another program; convert the original checkpoint "
            "with tdmpc-opt convert"
        )
    schema = metadata.get("schema", "")
    if not schema.isdigit():
        raise CheckpointError(f"{path} is damaged: its schema number is {schema[:20]!r}")
    if int(schema) > SCHEMA:
        raise CheckpointError(
            f"{path} was written by a newer version (its schema is {schema}, the newest known "
            f"here {SCHEMA}); upgrade tdmpc-opt"
        )


def _array(entry: dict[str, Any]) -> NDArray[np.float32]:
    kind, data = entry["dtype"], entry["data"]
    if kind == "BF16":  # the upper half of an fp32; numpy has no such type
        wide = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
        values = wide.view(np.float32)
    else:
        values = np.frombuffer(data, _DTYPES[kind]).astype(np.float32)
    array: NDArray[np.float32] = values.reshape(entry["shape"])
    return array
