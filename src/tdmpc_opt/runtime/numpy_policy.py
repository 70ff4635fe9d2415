"""The policy of a safetensors checkpoint in numpy: reading its file, and its forward pass."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from tdmpc_opt.contract import Contracts, contracts_of
from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.files import CHECKPOINT_SCHEMA, CONTRACT, FOREIGN, check_schema, parse_json
from tdmpc_opt.schema import INT4_ZERO, TaskTable, int4_halves

_DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
_READ = ("encoder.", "policy_head.", "task_embedding.")
_LENGTH = 8  # bytes of a safetensors file for the length of its header


@dataclass(frozen=True, eq=False)
class Integers:
    """A weight in integers, as the file stores it and `model.quantized` describes."""

    codes: NDArray[np.integer[Any]]
    """One code per weight, or two of 4 bits."""
    scale: NDArray[np.float16]
    """Value of one step, [out, groups]."""
    columns: int
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
    """What a policy's file contains."""

    tensors: dict[str, NDArray[np.float32] | Integers]
    """Encoder, policy and task embedding by name; other networks are not read."""
    tasks: TaskTable
    """Tasks in the order of the embedding's rows."""
    latent_dim: int
    simnorm_dim: int
    """Length of one of its simplices."""
    contracts: Contracts

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
            f"{path} is no ONNX or safetensors file, or damaged ({error}); such files are "
            "written by tdmpc-opt export and convert"
        ) from error
    check_schema(path, metadata, CHECKPOINT_SCHEMA, FOREIGN)
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
        _check_weights(weights)
        return weights
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from error


def _check_weights(weights: Weights) -> None:
    """Check that each layer is there, fits the one before it, and has finite numbers."""
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
            raise ValueError(f"{name} contains NaN or infinity")


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


Array = NDArray[np.float32]
_EPS = np.float32(1e-5)  # of torch's LayerNorm
_SAFE = 40.0  # up to here the square of an exponential is finite in fp32


class NumpyPolicy:
    """The mean action of the policy prior in one task.

    The embedding's share of each first layer is part of its bias, and padding is left out, so
    that an action costs what the task's own network costs. Weights are float32 whatever the
    file stores: numpy multiplies integers slower than floats, and converting them takes longer
    than the product. A call writes to new arrays alone, so that threads may share a policy.

    Args:
        weights: The agent.
        task: Task id.

    Source:
        TD-MPC2, arXiv:2310.16828, section 3.
    """

    def __init__(self, weights: Weights, task: int) -> None:
        own = weights.tasks.tasks[task]
        table = weights.full("task_embedding.weight")
        embedding = np.zeros(0, np.float32) if table is None else _unit(table[task])
        self._encoder = _layers("encoder", weights, own.obs_dim, embedding)
        self._head = _layers("policy_head", weights, weights.latent_dim, embedding)
        self._group = weights.simnorm_dim
        self._head[-1].keep_outputs(own.action_dim)

    def __call__(self, obs: Array) -> Array:
        """Map observations [obs] or [B, obs] of the task to mean actions in [-1, 1]."""
        x = obs
        for layer in self._encoder[:-1]:
            x = layer.mish(layer.normed(x))
        x = self._encoder[-1].normed(x)
        # LayerNorm bounds the inputs, so their exponentials do not overflow.
        groups = np.exp(x).reshape(-1, self._group)
        groups /= np.add.reduce(groups, 1, keepdims=True)
        x = groups.reshape(x.shape)
        for layer in self._head[:-1]:
            x = layer.mish(layer.normed(x))
        action: Array = np.tanh(self._head[-1].product(x))
        return action


class _Layer:
    """Linear layer, and LayerNorm where it has one."""

    def __init__(self, weight: Array, bias: Array, norm: tuple[Array, Array] | None) -> None:
        self._norm = norm
        self._bounded = False
        # Centred over the outputs, the product has mean 0 and LayerNorm need not subtract it.
        if norm is not None:
            largest = np.max(np.abs(norm[0]) * math.sqrt(len(bias)) + np.abs(norm[1]))
            self._bounded = float(largest) < _SAFE
            weight, bias = weight - weight.mean(0), bias - bias.mean()
        self._weight, self._bias = np.ascontiguousarray(weight.T), bias
        self._share = np.float32(1 / len(bias))

    def keep_outputs(self, count: int) -> None:
        """Drop the outputs after the first ones."""
        self._weight = np.ascontiguousarray(self._weight[:, :count])
        self._bias = self._bias[:count]

    def product(self, x: Array) -> Array:
        """Return the linear part."""
        y: Array = x @ self._weight
        y += self._bias
        return y

    def normed(self, x: Array) -> Array:
        """Return the linear part through LayerNorm."""
        assert self._norm is not None, "the last layer of the policy alone has none"
        scale, shift = self._norm
        y = self.product(x)
        if y.ndim == 1:  # of one row, a call into numpy costs more than the arithmetic
            y *= 1 / math.sqrt(y.dot(y) * self._share + _EPS)
        else:
            power = np.einsum("...i,...i->...", y, y) * self._share
            y *= (1 / np.sqrt(power + _EPS))[..., None]
        y *= scale
        y += shift
        return y

    def mish(self, y: Array) -> Array:
        """Apply Mish to what `normed` returned, in its place."""
        # With e = exp(y) and n = e (e + 2): y n / (n + 2); beyond 20 that is y in fp32.
        e = np.exp(y if self._bounded else np.minimum(y, np.float32(20)))
        n = e + np.float32(2)
        n *= e
        y *= n
        n += np.float32(2)
        y /= n
        return y


def _layers(part: str, weights: Weights, columns: int, embedding: Array) -> list[_Layer]:
    """Return the layers of a network, with the task's share in the first one's bias."""
    layers: list[_Layer] = []
    while (weight := weights.full(name := f"{part}.{len(layers)}.weight")) is not None:
        name = name.removesuffix("weight")
        bias, scale, shift = (
            weights.full(name + kind) for kind in ("bias", "norm.weight", "norm.bias")
        )
        assert bias is not None, "read_weights checks that it is there"
        if not layers:
            of_task = weight[:, weight.shape[1] - len(embedding) :]
            bias = bias + of_task @ embedding
            weight = weight[:, :columns]
        norm = None if scale is None or shift is None else (scale, shift)
        layers.append(_Layer(weight, bias, norm))
    return layers


def _unit(row: Array) -> Array:
    norm = np.linalg.norm(row)
    return row / (norm + np.float32(1e-7)) if norm > 1 else row
