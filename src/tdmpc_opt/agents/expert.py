"""Experts: policies of single tasks as small networks, and the folders that hold them."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tdmpc_opt.checkpoints.load import is_model_folder
from tdmpc_opt.errors import CheckpointError, InputError, UnknownTaskError
from tdmpc_opt.files import Identity, parse_json, replace_when_done, sha256, sort_metadata
from tdmpc_opt.schema import check_action, check_observation

KIND = "expert"
SCHEMA = "1"


@dataclass(frozen=True, eq=False)
class ExpertNetwork:
    """A deterministic policy of one task: ReLU layers, then tanh of the last one."""

    task: str
    """Task name such as `walker-walk`."""
    algorithm: str
    steps: int
    """Agent steps it was trained for."""
    returns: tuple[float, ...]
    """Returns of the episodes that measured it; empty where none did."""
    weights: tuple[NDArray[np.floating], ...]
    """One matrix per layer, [out, in]; rounded to fp16 and kept in fp32."""
    biases: tuple[NDArray[np.floating], ...]
    """One vector per layer, [out]; rounded like the weights."""

    def __post_init__(self) -> None:
        """Round to what a file stores: a policy acts the same before and after saving."""
        for name in ("weights", "biases"):
            rounded = (
                np.asarray(x, np.float16).astype(np.float32) for x in getattr(self, name)
            )
            object.__setattr__(self, name, tuple(rounded))

    @property
    def obs_dim(self) -> int:
        """Width of the unpadded observation."""
        return int(self.weights[0].shape[1])

    @property
    def action_dim(self) -> int:
        """Number of actuators."""
        return int(self.weights[-1].shape[0])

    def mean(self, obs: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the actions [batch, action] in [-1, 1] of unpadded observations [batch, obs].

        Returns:
            Actions in [-1, 1], [batch, action].

        Raises:
            InputError: Observations of another shape, with NaN, infinity or numbers above
                `LARGEST_OBSERVATION`.
            NonFiniteError: The network overflowed.
        """
        if obs.ndim != 2 or obs.shape[1] != self.obs_dim:
            raise InputError(
                f"the expert of {self.task} takes observations of shape "
                f"[batch, {self.obs_dim}], got {list(obs.shape)}"
            )
        check_observation(float(np.abs(obs).max(initial=0)))
        x = obs.astype(np.float32)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = np.maximum(x @ weight.T + bias, 0)
        action: NDArray[np.float32] = np.tanh(x @ self.weights[-1].T + self.biases[-1])
        check_action(float(np.abs(action).max(initial=0)))
        return action

    def save(self, path: Path) -> None:
        """Write the policy as fp16 safetensors; a reader never sees half a file.

        Raises:
            OSError: A folder that cannot be made or written, or a full disk.
            CheckpointError: `load` would refuse it, since a weight is not finite in fp16.
        """
        tensors: dict[str, NDArray[np.float16]] = {}
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            # safetensors ignores strides: transposed arrays would be scrambled when read.
            tensors[f"layers.{index}.weight"] = weight.astype(np.float16, order="C")
            tensors[f"layers.{index}.bias"] = bias.astype(np.float16)
        metadata = {
            "kind": KIND,
            "schema": SCHEMA,
            "task": self.task,
            "algorithm": self.algorithm,
            "steps": str(self.steps),
            "returns": json.dumps(self.returns),
        }
        with replace_when_done(path) as temporary:
            save_file(tensors, temporary, metadata)
            sort_metadata(temporary)
            ExpertNetwork.load(temporary)

    @classmethod
    def load(cls, path: Path) -> "ExpertNetwork":
        """Read a policy that `save` wrote.

        Raises:
            CheckpointError: The file is missing, damaged, or not an expert of this schema.
        """
        if not path.is_file():
            raise CheckpointError(
                f"no expert policy at {path}; train it with: tdmpc-opt experts"
            )
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                names = file.keys() if metadata.get("kind") == KIND else ()
                tensors = {name: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError, TypeError) as error:  # numpy has no bfloat16
            raise CheckpointError(f"cannot read expert policy {path}: {error}") from error
        if metadata.get("kind") != KIND or metadata.get("schema") != SCHEMA:
            found = f"kind {metadata.get('kind')!r}, schema {metadata.get('schema')!r}"
            raise CheckpointError(f"{path} is not an expert policy of schema {SCHEMA}: {found}")
        try:
            layers = [f"layers.{index}" for index in range(len(tensors) // 2)]
            network = cls(
                task=metadata["task"],
                algorithm=metadata["algorithm"],
                steps=int(metadata["steps"]),
                returns=tuple(float(value) for value in parse_json(metadata["returns"])),
                weights=tuple(tensors[f"{name}.weight"] for name in layers),
                biases=tuple(tensors[f"{name}.bias"] for name in layers),
            )
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is a damaged expert policy: {error!r}") from error
        if not _fits_together(network):
            raise CheckpointError(
                f"{path} is a damaged expert policy: its layers do not fit each other or hold "
                "numbers that are not finite"
            )
        return network

    @classmethod
    def of_task(cls, folder: Path, task: str) -> "ExpertNetwork":
        """Read the policy that a folder of experts has of a task.

        Raises:
            CheckpointError: As `load`, or the file was trained on another task.
        """
        path = expert_path(folder, task)
        network = cls.load(path)
        if network.task != task:
            raise CheckpointError(
                f"{path} is an expert of {network.task}; give it that name again, or train one "
                f"of {task}"
            )
        return network


def expert_path(folder: Path, task: str) -> Path:
    """Return where a folder of experts keeps the policy of a task."""
    return folder / f"{task}.safetensors"


def known_experts(folder: Path, names: Iterable[str]) -> list[str]:
    """Return those of the names of tasks that a folder has an expert of."""
    return [name for name in names if expert_path(folder, name).is_file()]


def experts_identity(folder: Path, names: Iterable[str]) -> Identity:
    """Return a folder's name and a hash over its experts of these tasks.

    Raises:
        CheckpointError, UnknownTaskError: As `existing_expert`.
    """
    digest = hashlib.sha256()
    for name in names:
        digest.update(sha256(existing_expert(folder, name)).encode())
    return {"name": folder.resolve().name, "sha256": digest.hexdigest()}


def is_expert_folder(source: str) -> bool:
    """Return whether a source is a folder without a model, which can only be one of experts."""
    return Path(source).is_dir() and not is_model_folder(Path(source))


def holds_experts(folder: Path) -> bool:
    """Return whether one file of a folder at least is an expert."""
    for path in folder.glob("*.safetensors"):
        try:
            ExpertNetwork.load(path)
        except CheckpointError:
            continue
        return True
    return False


def existing_expert(folder: Path, task: str) -> Path:
    """Return the file of a task's expert.

    Raises:
        CheckpointError: The folder has no expert of any task.
        UnknownTaskError: It has none of this task.
    """
    path = expert_path(folder, task)
    if path.is_file():
        return path
    if not holds_experts(folder):
        raise CheckpointError(
            f"{folder} holds neither a model nor experts; name a checkpoint, or make experts "
            "with tdmpc-opt experts"
        )
    raise UnknownTaskError(
        f"{folder} holds no expert for {task}; train it with "
        f"tdmpc-opt experts --tasks {task} --output {folder}"
    )


def _fits_together(network: ExpertNetwork) -> bool:
    if not network.weights or any(weight.ndim != 2 for weight in network.weights):
        return False
    outputs = [weight.shape[0] for weight in network.weights]
    inputs = [weight.shape[1] for weight in network.weights]
    shapes = outputs[:-1] == inputs[1:] and all(
        bias.shape == (width,) for bias, width in zip(network.biases, outputs, strict=True)
    )
    return shapes and all(np.isfinite(x).all() for x in (*network.weights, *network.biases))
