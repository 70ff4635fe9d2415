"""Reading this project's safetensors without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.files import parse_json
from tdmpc_opt.runtime.contract import CONTRACT, Contracts, contracts_of
from tdmpc_opt.schema import TaskTable

FORMAT = "tdmpc-opt"
"""Mark of this project's files in their metadata."""
SCHEMA = 2
"""Newest schema, that of files with quantised weights; files without them have schema 1. A
reader for each released one stays."""
MODEL_FILE = "model.safetensors"
"""The weights in a model folder and in the folder of a training run."""
_DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
_READ = ("encoder.", "policy_head.", "task_embedding.")
_LENGTH = 8  # bytes of a safetensors file that hold the length of its header


INT4_ZERO = 8
"""Stored code of a weight of 0: codes of 4 bits are stored without a sign."""


def int4_halves(codes: Any) -> tuple[Any, Any]:
    """Return the codes of the first and of the second half of each row, which share bytes.

    Args:
        codes: Bytes [..., stored] of a weight of 4 bits, of numpy or torch; the low bits are
            the first half.
    """
    return codes & 15, codes >> 4


@dataclass(frozen=True, eq=False)
class Integers:
    """A weight in integers, as the file holds it and `model.quantized` describes."""

    codes: NDArray[np.integer[Any]]
    """One code per weight, or two of 4 bits."""
    scale: NDArray[np.float16]
    """Value of one step, [out, groups]."""
    columns: int
    """Number of inputs."""
    group: int
    """Neighbouring inputs that share a scale."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return len(self.codes), self.columns

    def dense(self) -> NDArray[np.float32]:
        """Return the weight in float32, [out, in]."""
        if self.codes.dtype == np.int8:
            values = self.codes.astype(np.float32)
        else:
            halves = np.concatenate(int4_halves(self.codes), axis=1)
            values = halves[:, : self.columns].astype(np.float32)
            values -= INT4_ZERO
        for index, start in enumerate(range(0, self.columns, self.group)):
            values[:, start : start + self.group] *= self.scale[:, index : index + 1]
        return values


@dataclass(frozen=True, eq=False)
class Weights:
    """What a policy's file holds."""

    tensors: dict[str, NDArray[np.float32] | Integers]
    """Encoder, policy and task embedding by name; other networks are not read."""
    tasks: TaskTable
    """Tasks in the order of the embedding's rows."""
    latent_dim: int
    """Width of the latent state."""
    simnorm_dim: int
    """Length of one of its simplices."""
    contracts: Contracts
    """What is known of the tasks' numbers."""

    def full(self, name: str) -> NDArray[np.float32] | None:
        """Return a tensor in float32, None where there is none."""
        tensor = self.tensors.get(name)
        return tensor.dense() if isinstance(tensor, Integers) else tensor


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
        metadata = parse_json(content[_LENGTH : _LENGTH + length]).get("__metadata__") or {}
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no ONNX or safetensors file, or damaged: {error}"
        ) from error
    check_schema(path, metadata)
    try:
        config = parse_json(metadata["config"])
        tasks = TaskTable.from_json(parse_json(metadata["tasks"]))
        entries = {name: entry for name, entry in stored if name.startswith(_READ)}
        listed = dict(parse_json(metadata.get("quantized", "{}")))
        tensors: dict[str, NDArray[np.float32] | Integers] = {
            name: _integers(name, layout, entries)
            for name, layout in listed.items()
            if name.startswith(_READ)
        }
        tensors |= {name: _array(entry) for name, entry in entries.items()}
        contracts = contracts_of(tasks, metadata.get(CONTRACT))
        widths = config["latent_dim"], config["simnorm_dim"]
        weights = Weights(tensors, tasks, *widths, contracts)
        check_weights(weights)
        return weights
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from error


def check_weights(weights: Weights) -> None:
    """Check that each layer is there, fits the one before it, and holds finite numbers.

    Raises:
        ValueError: The message names the first fault.
    """
    tasks, latent, group = weights.tasks, weights.latent_dim, weights.simnorm_dim
    if type(latent) is not int or type(group) is not int or group < 1 or latent % group:
        raise ValueError(f"a latent of {latent!r:.20} in groups of {group!r:.20}")
    embedding = weights.tensors.get("task_embedding.weight")
    task_dim = 0 if embedding is None else embedding.shape[-1]
    expected: dict[str, tuple[int, ...]] = {}
    if embedding is not None:
        expected["task_embedding.weight"] = (len(tasks), task_dim)
    elif len(tasks) != 1:
        raise ValueError(f"{len(tasks)} tasks without an embedding")
    expected |= _expected("encoder", weights, tasks.obs_dim + task_dim, latent)
    expected |= _expected("policy_head", weights, latent + task_dim, 2 * tasks.action_dim)
    found = {name: tensor.shape for name, tensor in weights.tensors.items()}
    wrong = sorted(
        name for name in {*found, *expected} if found.get(name) != expected.get(name)
    )
    if wrong:
        name = wrong[0]
        raise ValueError(f"{name} is {found.get(name)}, expected {expected.get(name)}")
    for name, tensor in weights.tensors.items():
        values = tensor.scale if isinstance(tensor, Integers) else tensor
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds NaN or infinity")


def _expected(
    part: str, weights: Weights, inputs: int, outputs: int
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network's tensors, of as many layers as the file has."""
    shapes: dict[str, tuple[int, ...]] = {}
    count = sum(name.startswith(part) and name.count(".") == 2 for name in weights.tensors) // 2
    for index in range(max(count, 1)):
        name, last = f"{part}.{index}", index == max(count, 1) - 1
        weight = weights.tensors.get(f"{name}.weight")
        rows = outputs if last or weight is None else weight.shape[0]
        shapes |= {f"{name}.weight": (rows, inputs), f"{name}.bias": (rows,)}
        if part == "encoder" or not last:
            shapes |= {f"{name}.norm.weight": (rows,), f"{name}.norm.bias": (rows,)}
        inputs = rows
    return shapes


def check_schema(path: Path, metadata: Mapping[str, str]) -> None:
    """Refuse foreign files and those of a schema that this version does not support.

    Raises:
        CheckpointError: Such a file; the message says how to get one that can be read.
    """
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file of another program: it lacks the config and task "
            f"table of {FORMAT}; convert the original checkpoint with `tdmpc-opt convert`"
        )
    schema = metadata.get("schema", "")
    if not (schema.isascii() and schema.isdigit() and len(schema) < 10 and int(schema)):
        raise CheckpointError(f"{path} is damaged: its schema number is {schema[:20]!r}")
    if int(schema) > SCHEMA:
        raise CheckpointError(
            f"{path} was written by a newer version (its schema is {schema}, the newest known "
            f"here {SCHEMA}); upgrade {FORMAT}"
        )


def _integers(name: str, layout: list[Any], entries: dict[str, dict[str, Any]]) -> Integers:
    """Take a weight's codes and scales out of the entries of a file."""
    kind, columns, group = layout
    codes, scale = entries.pop(name), entries.pop(name.removesuffix("weight") + "scale")
    if min(columns, group) < 1:
        raise ValueError(f"{name} has {columns} columns in groups of {group}")
    dtype, mark, stored = {
        "int8": (np.int8, "I8", columns),
        "int4": (np.uint8, "U8", -(-columns // 2)),
    }[kind]
    if (codes["dtype"], scale["dtype"]) != (mark, "F16"):
        raise ValueError(f"{name} is not stored in {kind}")
    rows = len(codes["data"]) // stored
    return Integers(
        np.frombuffer(codes["data"], dtype).reshape(rows, stored),
        np.frombuffer(scale["data"], np.float16).reshape(rows, -(-columns // group)),
        columns,
        group,
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
