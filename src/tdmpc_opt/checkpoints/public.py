"""The public TD-MPC2 layouts, read as data: three namings of one architecture.

- A (functorch): the tensors of the Q ensemble have running numbers, `_Qs.params.0`.
- B (tensordict): they are named by layer, `_Qs.params.0.weight`, `_Qs.params.0.ln.weight`.
- C (sequential): the Qs as in A; in the other networks layers and their LayerNorms are numbered
  in order, `_encoder.state.1.weight`, where A and B have `.ln.` in the name of a LayerNorm.

Source: TD-MPC2's repository (MIT), releases of 2023 to 2025, and its issue 23 on renamed keys.
"""

import contextlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdmpc_opt.checkpoints.checkpoint import Checkpoint, Layout, validate
from tdmpc_opt.checkpoints.torch_files import (
    MappedFile,
    TorchFileError,
    is_zipped,
    load_outline,
    load_whole,
)
from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.schema import MT30, MT80, UNNAMED, ModelConfig, Task, TaskTable

_NETS = {
    "_encoder.state.": "encoder",
    "_dynamics.": "dynamics",
    "_reward.": "reward_head",
    "_termination.": "termination_head",
    "_pi.": "policy_head",
    "_Qs.params.": "q_ensemble",
    "_target_Qs.params.": "target_q_ensemble",
    "_target_Qs_params.": "target_q_ensemble",
}
_WRAPPERS = ("module.", "_orig_mod.", "model.")
"""Prefixes of DistributedDataParallel, of torch.compile, and of a module that has the model."""
_WRAPPED_PART = re.compile(r"(?<=\.)(?:module|_orig_mod)\.")
"""The same within a key, where one network was wrapped alone."""
_NESTED = ("model", "state_dict")
"""Keys under which a file has its state dict, one within the other in some."""
_FOREIGN = {
    "_Qs.online.": "a checkpoint of Newt, whose agents are conditioned on language and have "
    "another architecture; name a checkpoint of TD-MPC2",
    "_Q1.": "a checkpoint of TD-MPC, the predecessor of TD-MPC2, which has another "
    "architecture; name a checkpoint of TD-MPC2",
}
"""What files are that cannot be read here, by the start of a key that only they have."""
_IGNORED_STARTS = ("_detach_Qs_params.", "_prev_mean", "scale.")
"""Copies of the Qs; and what an agent has beside its model: the last plan and a value scale."""
_IGNORED_ENDS = ("__batch_size", "__device", "log_std_min", "log_std_dif")
_EMBEDDING, _MASKS = "_task_emb.weight", "_action_masks"
_KINDS = ("weight", "bias")


def read_public(path: Path, *, check_values: bool = True) -> Checkpoint:
    """Read a `torch.save` file of public layout A, B or C, as the module describes them.

    Sizes are read off the shapes. Files of 30 or 80 tasks with the widths of MT30 or MT80 get
    those task tables, others unnamed tasks. Quantised entries come out as float32. Without
    `check_values` only `build` looks for NaN and infinity, in what it uses.

    Raises:
        CheckpointError: A file that is damaged, would run code, has a pixel encoder, or lacks
            the tensors of a TD-MPC2 world model; the message names the first fault.
    """
    try:
        content, mapped = _open(path)
    except TorchFileError as error:
        raise CheckpointError(f"{path} {error}") from error
    try:
        checkpoint = _convert(_entries(content), path.stat().st_size, mapped)
        validate(checkpoint, values=check_values)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return checkpoint


def _open(path: Path) -> tuple[Any, MappedFile | None]:
    """Return the content; with a mapped file, its tensors are outlines to be found there."""
    if is_zipped(path):
        with contextlib.suppress(TorchFileError):  # quantised tensors have no outline
            return load_outline(path), MappedFile(path)
    return load_whole(path), None


def _stored(key: str, value: Any, size_bytes: int, mapped: MappedFile | None) -> Tensor:
    """Return an entry; refuse what is not a tensor that is stored completely in the file."""
    if not isinstance(value, Tensor):
        raise CheckpointError(f"entry {key!r} is not a tensor")
    # A stride of zero or the meta device turns a few bytes into terabytes.
    there = value.layout is torch.strided and value.device.type == ("meta" if mapped else "cpu")
    if not there or value.numel() * value.element_size() > size_bytes:
        raise CheckpointError(f"tensor {key!r} is larger than the file or not stored in it")
    try:
        return mapped.tensor(value) if mapped else value
    except TorchFileError as error:
        raise CheckpointError(f"tensor {key!r} is not stored in it ({error})") from error


def _convert(entries: dict[str, Any], size_bytes: int, mapped: MappedFile | None) -> Checkpoint:
    """Rename and size up the entries of a state dict."""
    _refuse_foreign(entries)
    stored = {
        key: _stored(key, value, size_bytes, mapped)
        for key, value in entries.items()
        if not key.startswith(_IGNORED_STARTS)
        and not key.endswith(_IGNORED_ENDS)
        and (key != _MASKS or isinstance(value, Tensor))
    }
    masks = stored.pop(_MASKS, None)
    tensors = _native_names({key: _plain(tensor) for key, tensor in stored.items()})
    config = _config(tensors)
    quantised = sum(tensor.is_quantized for tensor in stored.values())
    extra = {"quantised": f"{quantised} of {len(stored)} tensors"} if quantised else {}
    layout, tasks = _layout([*entries]), _tasks(config, masks)
    return Checkpoint(config, tasks, tensors, layout, extra, mapped=mapped)


def _entries(content: Any) -> dict[str, Any]:
    """Return the state dict, bare or under `_NESTED`, without prefixes of wrappers."""
    while isinstance(content, dict):
        nested = [content[key] for key in _NESTED if isinstance(content.get(key), dict)]
        if not nested:
            break
        content = nested[0]
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CheckpointError("contains no state dict of a TD-MPC2 world model")
    entries: dict[str, Any] = {}
    for key, value in content.items():
        name = key
        while name.startswith(_WRAPPERS):
            name = name.split(".", 1)[1]
        name = _WRAPPED_PART.sub("", name)
        if name in entries:
            raise CheckpointError(f"contains {name!r} twice, with and without a prefix")
        entries[name] = value
    return entries


def _refuse_foreign(entries: Mapping[str, Any]) -> None:
    """Refuse by name what belongs to other programs, and pixel encoders."""
    for start, what in _FOREIGN.items():
        if any(key.startswith(start) for key in entries):
            raise CheckpointError(f"is {what}")
    if not any(key.startswith((*_NETS, "_encoder.")) for key in entries):
        has = ", ".join(f"{key!r:.60}" for key in list(entries)[:3]) or "nothing"
        raise CheckpointError(
            f"contains no state dict of a TD-MPC2 world model: its entries are {has}"
            f"{', ...' * (len(entries) > 3)}; name the checkpoint of the agent"
        )
    for key, value in entries.items():
        convolution = isinstance(value, Tensor) and value.ndim == 4
        if key.startswith("_encoder.rgb") or (key.startswith("_encoder.") and convolution):
            raise CheckpointError(
                f"pixel encoder {key!r} is not supported; only agents that observe states are"
            )


def _layout(keys: Sequence[str]) -> Layout:
    """Return the layout, by keys that only one of them has."""
    if not any(key.startswith("_encoder.") and ".ln." in key for key in keys):
        return "public C (sequential)"
    functorch = any(key.startswith("_Qs.params.") and key[-1].isdigit() for key in keys)
    return "public A (functorch)" if functorch else "public B (tensordict)"


def _plain(tensor: Tensor) -> Tensor:
    """Return an ordinary contiguous tensor, quantised ones as float32."""
    plain = tensor.detach()
    try:
        return (plain.dequantize() if plain.is_quantized else plain).contiguous()
    except RuntimeError as error:  # a scale or zero point out of range
        raise CheckpointError("a quantised tensor is damaged") from error


def _native_names(entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under this project's names."""
    tensors: dict[str, Tensor] = {}
    nets: dict[str, dict[str, dict[str, Tensor]]] = defaultdict(lambda: defaultdict(dict))
    for key, tensor in entries.items():
        if key == _EMBEDDING:
            tensors["task_embedding.weight"] = tensor
            continue
        net, module, kind = _place(key)
        if kind in nets[net][module]:
            raise CheckpointError(f"contains two entries for {key!r}")
        nets[net][module][kind] = tensor
    for net, modules in nets.items():
        tensors |= _pair(net, modules)
    return tensors


def _place(key: str) -> tuple[str, str, str]:
    """Return the network of a key, the module in it, and the kind (weight, bias).

    Numbers in the name of a module have five digits, which puts modules in order: 00000,
    00000.ln, 00001, ..., 00010.
    """
    for prefix, net in _NETS.items():
        if not key.startswith(prefix):
            continue
        *parts, kind = key.removeprefix(prefix).split(".")
        if not parts and net.endswith("q_ensemble") and kind.isdecimal() and len(kind) < 6:
            layer, slot = divmod(int(kind), 4)  # functorch numbers the tensors of all layers
            return net, f"{layer:05}.ln" if slot > 1 else f"{layer:05}", _KINDS[slot % 2]
        if parts and kind in _KINDS:
            names = (part.zfill(5) if part.isdecimal() else part for part in parts)
            return net, ".".join(names), kind
        break
    raise CheckpointError(f"entry {key!r} is unknown to this world model")


def _pair(net: str, modules: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Name the modules by order and rank: a matrix opens a layer, a vector is its LayerNorm.

    Fixed positions would not do: `_dynamics.1` is a linear layer in layout A, the LayerNorm of
    the output in layout C.
    """
    axes = 1 if net.endswith("q_ensemble") else 0
    tensors: dict[str, Tensor] = {}
    layer = -1
    for module in sorted(modules):
        where = f"{net}, module " + re.sub(r"\b0+(?=[0-9])", "", module)
        weight = modules[module].get("weight")
        if weight is None:
            raise CheckpointError(f"{where}: a bias without its weight")
        if weight.ndim == 2 + axes:
            layer += 1
            stem = f"{net}.{layer}"
        elif weight.ndim == 1 + axes and layer >= 0:
            stem = f"{net}.{layer}.norm"
        else:
            raise CheckpointError(f"{where}: weight {list(weight.shape)} fits no layer")
        if f"{stem}.weight" in tensors:
            raise CheckpointError(f"{where}: a second LayerNorm in a row; a layer is missing")
        tensors |= {f"{stem}.{kind}": tensor for kind, tensor in modules[module].items()}
    return tensors


def _config(tensors: Mapping[str, Tensor]) -> ModelConfig:
    """Read the widths off the shapes; `validate` checks that all the others agree."""
    encoder_layers = sum(
        key.startswith("encoder.") and key.endswith(".weight") and ".norm." not in key
        for key in tensors
    )
    enc_dim, obs_and_task = _shape(tensors, "encoder.0.weight")
    latent_dim, _ = _shape(tensors, f"encoder.{encoder_layers - 1}.weight")
    mlp_dim, _ = _shape(tensors, "dynamics.0.weight")
    twice_actions, _ = _shape(tensors, "policy_head.2.weight")
    num_bins, _ = _shape(tensors, "reward_head.2.weight")
    num_q, *_ = _shape(tensors, "q_ensemble.0.weight")
    num_tasks, task_dim = 1, 0
    if "task_embedding.weight" in tensors:
        num_tasks, task_dim = _shape(tensors, "task_embedding.weight")
    try:
        return ModelConfig(
            obs_dim=obs_and_task - task_dim,
            action_dim=twice_actions // 2,
            num_tasks=num_tasks,
            enc_dim=enc_dim,
            mlp_dim=mlp_dim,
            latent_dim=latent_dim,
            num_enc_layers=encoder_layers,
            num_q=num_q,
            task_dim=task_dim,
            num_bins=num_bins,
            episodic="termination_head.0.weight" in tensors,
        )
    except ValueError as error:
        raise CheckpointError(f"shapes that make no world model here: {error}") from error


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(f"tensor {name!r} is missing")
    shape = tuple(tensors[name].shape)
    if len(shape) != (3 if name.startswith("q_ensemble") else 2):
        raise CheckpointError(f"tensor {name!r} is {list(shape)}, expected a matrix")
    return shape


def _tasks(config: ModelConfig, masks: Tensor | None) -> TaskTable:
    """Return MT30 or MT80 where the sizes are theirs, else tasks without names."""
    if not config.task_dim:
        return TaskTable((Task(UNNAMED, config.obs_dim, config.action_dim),))
    widths = [config.action_dim] * config.num_tasks
    if masks is not None:
        if tuple(masks.shape) != (config.num_tasks, config.action_dim):
            raise CheckpointError(
                f"entry {_MASKS!r} is {list(masks.shape)}, not tasks x actions"
            )
        widths = [int(width) for width in masks.float().sum(dim=1)]
    for table in (MT30, MT80):
        size = (len(table), table.obs_dim, table.action_dim)
        own = masks is None or widths == [task.action_dim for task in table.tasks]
        if size == (config.num_tasks, config.obs_dim, config.action_dim) and own:
            return table
    return TaskTable(
        tuple(Task(f"task-{i}", config.obs_dim, width) for i, width in enumerate(widths))
    )
