"""A world model's weights outside a network, their check, and building the network."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from tdmpc_opt.checkpoints.torch_files import MappedFile
from tdmpc_opt.errors import CheckpointError, counted
from tdmpc_opt.model.layers import Dense
from tdmpc_opt.model.quantized import QuantizedDense, QuantizedWeight
from tdmpc_opt.model.world_model import NETWORKS, WorldModel
from tdmpc_opt.schema import UNNAMED, ModelConfig, Task, TaskTable

Layout = Literal[
    "native", "public A (functorch)", "public B (tensordict)", "public C (sequential)"
]

TARGET_PREFIX = "target_q_ensemble."
"""Start of the names of the target Qs, which only training needs."""

POLICY_PREFIXES = ("task_embedding.", "encoder.", "policy_head.")
"""Starts of the names of what acts without planning."""

_ONLINE_PREFIX = "q_ensemble."
_BLOCK = 1 << 22
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Checkpoint:
    """Weights under this project's names, with what is needed to build their network."""

    config: ModelConfig
    tasks: TaskTable
    """Tasks in the order of the embedding's rows."""
    tensors: dict[str, Tensor]
    """Weights by native name, on the CPU, in the number format of the file."""
    layout: Layout = "native"
    """Layout of the file they came from."""
    extra: dict[str, str] = field(default_factory=dict)
    """Further facts such as the source file or planner presets."""
    quantized: dict[str, QuantizedWeight] = field(default_factory=dict)
    """Weights by native name that the file stores in integers."""
    mapped: MappedFile | None = field(default=None, repr=False, compare=False)
    """The file whose memory the weights are views of, where they are."""

    def forget(self) -> None:
        """Release the memory of the weights read from a mapped file so far."""
        if self.mapped is not None:
            self.mapped.forget()

    @property
    def has_targets(self) -> bool:
        """True where the target Qs are stored."""
        return any(name.startswith(TARGET_PREFIX) for name in self.tensors)

    @property
    def has_world_model(self) -> bool:
        """False where only encoder and policy are stored."""
        names = {*self.tensors, *self.quantized}
        return not all(name.startswith(POLICY_PREFIXES) for name in names)

    @property
    def parameters(self) -> int:
        """Number of weights, target Qs not counted."""
        plain = sum(tensor.numel() for tensor in self.without_targets().values())
        return plain + sum(weight.parameters for weight in self.quantized.values())

    @property
    def size_bytes(self) -> int:
        """Bytes of all weights."""
        plain = sum(tensor.nbytes for tensor in self.tensors.values())
        return plain + sum(weight.size_bytes for weight in self.quantized.values())

    def without_targets(self) -> dict[str, Tensor]:
        """Return the weights that acting needs: all but the target Qs."""
        return {
            name: tensor
            for name, tensor in self.tensors.items()
            if not name.startswith(TARGET_PREFIX)
        }


@lru_cache(maxsize=8)
def expected_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of each tensor of a world model, target Qs included."""
    tasks = TaskTable((Task(UNNAMED, config.obs_dim, config.action_dim),))
    state = WorldModel.outline(config, tasks).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def validate(checkpoint: Checkpoint, *, values: bool = True) -> None:
    """Check names, shapes, number formats and, with `values`, all weights for NaN and infinity.

    Target Qs may be absent as a whole, and so may all but encoder and policy.

    Raises:
        CheckpointError: The task table does not fit the widths, or a tensor is missing,
            unknown, misshapen, not of floating point, or contains NaN or infinity; the message
            names it.
    """
    _validate_tasks(checkpoint.config, checkpoint.tasks)
    tensors, quantized = checkpoint.tensors, checkpoint.quantized
    if checkpoint.config.num_enc_layers > len(tensors):
        # A forged layer count would make the table of expected shapes itself too large.
        raise CheckpointError(
            f"{checkpoint.config.num_enc_layers} encoder layers but {len(tensors)} tensors"
        )
    expected = expected_shapes(checkpoint.config)
    if not checkpoint.has_targets:
        expected = {k: v for k, v in expected.items() if not k.startswith(TARGET_PREFIX)}
    if not checkpoint.has_world_model:
        expected = {k: v for k, v in expected.items() if k.startswith(POLICY_PREFIXES)}
    _validate_weights(tensors, quantized, expected)
    for name, tensor in tensors.items() if values else ():
        for block in _blocks(tensor):
            _refuse_nan(name, block)
        checkpoint.forget()


def _validate_tasks(config: ModelConfig, tasks: TaskTable) -> None:
    """Check that the task table has the rows and the padded widths of the network."""
    got = (len(tasks), tasks.obs_dim, tasks.action_dim) if len(tasks) else (0, 0, 0)
    expected = (config.num_tasks, config.obs_dim, config.action_dim)
    if got != expected:
        raise CheckpointError(
            f"the task table has {counted(got[0], 'task')} padded to {got[1]} observations and "
            f"{got[2]} actions, the network {expected[0]}, {expected[1]} and {expected[2]}"
        )


def _validate_weights(
    tensors: Mapping[str, Tensor],
    quantized: Mapping[str, QuantizedWeight],
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    names = {*tensors, *quantized}
    for name in (*expected, *sorted(names)):
        if name not in names:
            raise CheckpointError(f"tensor {name!r} is missing")
        if name not in expected:
            raise CheckpointError(f"tensor {name!r} is unknown to this world model")
    for name, weight in quantized.items():
        _validate_quantized(name, weight, expected[name])
    for name, tensor in tensors.items():
        shape, found = expected[name], tuple(tensor.shape)
        if found != shape:
            raise CheckpointError(f"tensor {name!r} is {[*found]}, expected {[*shape]}")
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(f"tensor {name!r} is {tensor.dtype}, not of floating point")


def _blocks(tensor: Tensor) -> Iterable[Tensor]:
    """Cut a tensor into flat blocks, to limit the memory of what is computed from it."""
    return tensor.reshape(-1).split(_BLOCK)


def _refuse_nan(name: str, block: Tensor) -> None:
    if not bool(torch.isfinite(block).all()):
        raise CheckpointError(f"tensor {name!r} contains NaN or infinity; the file is damaged")


def _validate_quantized(name: str, weight: QuantizedWeight, shape: tuple[int, ...]) -> None:
    *lead, columns = shape
    if not (name.endswith(".weight") and name.count(".") == 2):
        raise CheckpointError(f"tensor {name!r} is no weight of a layer, yet quantised")
    stored = columns if weight.format == "int8" else -(-columns // 2)
    expected = (shape, (*lead, stored), (*lead, -(-columns // weight.group)))
    found = (weight.shape, tuple(weight.codes.shape), tuple(weight.scale.shape))
    if found != expected:
        raise CheckpointError(
            f"quantised tensor {name!r} is {list(found[0])} with codes {list(found[1])} and "
            f"scales {list(found[2])}, expected {[list(shape) for shape in expected]}"
        )
    _refuse_nan(name, weight.scale)


def build(
    checkpoint: Checkpoint,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    parts: Collection[str] = NETWORKS,
    policy_will_do: bool = False,
) -> WorldModel:
    """Return a world model with these weights, in evaluation mode.

    The model owns copies: building twice gives independent models. Target Qs that the file
    lacks start as copies of the Qs. A mapped file is read in blocks, one at a time in memory
    beside the model, and only the networks in `parts` are read.

    Args:
        checkpoint: Weights, of whatever number format.
        device: Where to put the model.
        dtype: Number format to compute in; half precision is slower than float32 on most CPUs.
        parts: Networks to fill beside embedding and encoder; the others are left empty.
        policy_will_do: Accept a file that can act but not learn: one with encoder and
            policy alone, whose model cannot plan, or quantised weights, which stay as small in
            memory as in the file.

    Raises:
        CheckpointError: Weights that `validate` refuses, or such a file without that option.
    """
    validate(checkpoint, values=False)
    if checkpoint.quantized and not policy_will_do:
        raise CheckpointError(
            "the file contains quantised weights, which cannot teach or be trained; name the "
            "file it was made from"
        )
    if not (checkpoint.has_world_model or policy_will_do):
        raise CheckpointError(
            "the file contains encoder and policy alone, without a world model; it can act by "
            "its policy, not plan, teach or be trained: name the file it was taken from"
        )
    if not checkpoint.has_world_model:
        parts = {"policy_head"}
    if checkpoint.quantized:
        parts = {*parts} - {"target_q_ensemble"}  # only learning needs it
    model = WorldModel.outline(checkpoint.config, checkpoint.tasks)
    model.keep_only(parts)
    integers = _install(model, checkpoint.quantized, device)
    floats = _copies(checkpoint, {*model.state_dict()} - {*integers}, device, dtype)
    model.load_state_dict(floats | integers, assign=True)
    model.renormalize_task_embedding()
    # Embedding and buffers; the networks are there already.
    return model.to(device=device, dtype=dtype).eval()


def _install(
    model: WorldModel, weights: Mapping[str, QuantizedWeight], device: torch.device | str
) -> dict[str, Tensor]:
    """Replace the layers of quantised weights, and return their new entries of the state."""
    state: dict[str, Tensor] = {}
    for name, weight in weights.items():
        layer = name.removesuffix(".weight")
        dense = model.get_submodule(layer)
        assert isinstance(dense, Dense)
        model.set_submodule(layer, QuantizedDense(dense, weight))
        for kind in ("codes", "scale"):
            state[f"{layer}.{kind}"] = getattr(weight, kind).to(device=device, copy=True)
    return state


def _copies(
    checkpoint: Checkpoint,
    names: Collection[str],
    device: torch.device | str,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Return copies of weights, by name, in the number format that the model computes in."""
    copies: dict[str, Tensor] = {}
    for name in sorted(names):
        stored = name
        if name.startswith(TARGET_PREFIX) and not checkpoint.has_targets:
            stored = _ONLINE_PREFIX + name.removeprefix(TARGET_PREFIX)
        tensor = checkpoint.tensors[stored]
        # The rows of the embedding are normalised before they are rounded.
        kind = torch.float32 if name.startswith("task_embedding.") else dtype
        copies[name] = torch.empty(tensor.shape, dtype=kind, device=device)
        for block, target in zip(_blocks(tensor), _blocks(copies[name]), strict=True):
            _refuse_nan(stored, block)
            target.copy_(block)
            checkpoint.forget()
    return copies


def from_model(model: WorldModel, extra: Mapping[str, str] | None = None) -> Checkpoint:
    """Return a copy of the model's weights on the CPU, as they are, with facts beside them."""
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in model.state_dict().items()
    }
    return Checkpoint(model.config, model.tasks, tensors, extra=dict(extra or {}))
