"""Everything that can drive a task, behind one type, and the loop that drives episodes."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tdmpc_opt.agents.agent import Agent
from tdmpc_opt.configs import MatmulPrecision
from tdmpc_opt.data.episodes import Episode
from tdmpc_opt.errors import CheckpointError, InputError, UnknownTaskError
from tdmpc_opt.files import parse_json, replace_when_done, sort_metadata
from tdmpc_opt.planning.simulator import SimulatorBudget, SimulatorPlanner
from tdmpc_opt.runtime.agent import Agent as DeviceAgent
from tdmpc_opt.runtime.contract import check_action, check_observation
from tdmpc_opt.schema import MT30, UNNAMED, Task, TaskTable
from tdmpc_opt.tasks.environment import make_env

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
        tensors, metadata = _read(path)
        if metadata.get("kind") != KIND or metadata.get("schema") != SCHEMA:
            found = f"kind {metadata.get('kind')!r}, schema {metadata.get('schema')!r}"
            raise CheckpointError(f"{path} is not an expert policy of schema {SCHEMA}: {found}")
        try:
            network = cls(
                task=metadata["task"],
                algorithm=metadata["algorithm"],
                steps=int(metadata["steps"]),
                returns=tuple(float(value) for value in parse_json(metadata["returns"])),
                weights=_layers(tensors, "weight"),
                biases=_layers(tensors, "bias"),
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


def existing_expert(folder: Path, task: str) -> Path:
    """Return the file of a task's expert.

    Raises:
        CheckpointError: The folder has no expert of any task.
        UnknownTaskError: It has none of this task.
    """
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}: holds no expert; make some with tdmpc-opt experts")
    path = expert_path(folder, task)
    if not path.is_file():
        raise UnknownTaskError(
            f"{folder} holds no expert for {task}; train it with "
            f"tdmpc-opt experts --tasks {task} --output {folder}"
        )
    return path


def _read(path: Path) -> tuple[dict[str, NDArray[np.floating]], dict[str, str]]:
    if not path.is_file():
        raise CheckpointError(f"no expert policy at {path}; train it with: tdmpc-opt experts")
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError, TypeError) as error:  # numpy has no bfloat16
        raise CheckpointError(f"cannot read expert policy {path}: {error}") from error


def _layers(
    tensors: dict[str, NDArray[np.floating]], part: str
) -> tuple[NDArray[np.floating], ...]:
    return tuple(tensors[f"layers.{index}.{part}"] for index in range(len(tensors) // 2))


def _fits_together(network: ExpertNetwork) -> bool:
    if not network.weights or any(weight.ndim != 2 for weight in network.weights):
        return False
    outputs = [weight.shape[0] for weight in network.weights]
    inputs = [weight.shape[1] for weight in network.weights]
    shapes = outputs[:-1] == inputs[1:] and all(
        bias.shape == (width,) for bias, width in zip(network.biases, outputs, strict=True)
    )
    return shapes and all(np.isfinite(x).all() for x in (*network.weights, *network.biases))


Array = NDArray[np.float32]

Stream = tuple[int, ...]
"""Numbers that together seed one episode's randomness, such as (seed, task id, episode)."""

Act = Callable[[Array], Array]
"""Maps observations [B, obs] of the task to actions [B, action] in [-1, 1]."""

Policy = Callable[[str, Sequence[Stream], Sequence[Any]], Act]
"""Begins one episode of a task for each stream, and returns what acts in them, step by step.

The third argument are the environments of the episodes, for planning in the simulator. The
randomness of a row comes from its stream alone. Another beginning ends the episodes.
"""


def torch_generator(stream: Stream) -> torch.Generator:
    """Return a CPU generator seeded by all numbers of a stream."""
    seed = np.random.SeedSequence(stream).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed) >> 1)


def agent_policy(agent: Agent, *, deterministic: bool = True) -> Policy:
    """Return an agent as a policy."""

    def begin(task: str, streams: Sequence[Stream], _: Sequence[Any]) -> Act:
        name = None if agent.tasks.names == (UNNAMED,) else agent.tasks[task].name
        generators = [torch_generator(stream) for stream in streams]
        agent.reset()
        return lambda obs: agent.act(
            obs, name, deterministic=deterministic, generator=generators
        )

    return begin


def device_policy(agent: DeviceAgent) -> Policy:
    """Return an exported file as a policy, which acts as on the device."""

    def begin(task: str, streams: Sequence[Stream], _: Sequence[Any]) -> Act:
        name = None if agent.tasks.names == (UNNAMED,) else task
        generators = [np.random.default_rng(stream) for stream in streams]
        agent.reset()
        return lambda obs: agent.act(obs, name, generator=generators)

    return begin


def random_policy(tasks: TaskTable = MT30) -> Policy:
    """Return uniform actions for these tasks."""

    def begin(task: str, streams: Sequence[Stream], _: Sequence[Any]) -> Act:
        width = tasks[task].action_dim
        generators = [np.random.default_rng(stream) for stream in streams]
        return lambda _: np.array(
            [source.uniform(-1, 1, width) for source in generators], np.float32
        )

    return begin


def expert_policy(folder: Path) -> Policy:
    """Return the single-task experts of a folder, each on its own task."""

    def begin(task: str, _: Sequence[Stream], __: Sequence[Any]) -> Act:
        existing_expert(folder, task)
        return ExpertNetwork.of_task(folder, task).mean

    return begin


def simulator_policy(tasks: TaskTable = MT30) -> Policy:
    """Return planning with the simulator's own dynamics, for these tasks."""

    def begin(task: str, streams: Sequence[Stream], envs: Sequence[Any]) -> Act:
        from tdmpc_opt.tasks.batched_suite import batched_task  # needs the simulator

        simulator = batched_task(tasks[task])
        generators = [np.random.default_rng(stream) for stream in streams]
        planner = SimulatorPlanner(simulator, SimulatorBudget(), generators)

        def act(_: Array) -> Array:
            states, constants = zip(*map(simulator.current, envs), strict=True)
            return planner.plan(np.stack(states), np.stack(constants)).astype(np.float32)

        return act

    return begin


def _noisy(action: Array, std: float, generators: Sequence[np.random.Generator]) -> Array:
    noise = [source.standard_normal(action.shape[1]) for source in generators]
    return np.clip(action + std * np.array(noise), -1, 1).astype(np.float32)


def rollout(
    policy: Policy,
    task: Task | str,
    seeds: Sequence[int],
    streams: Sequence[Stream],
    *,
    noise: float = 0.0,
    labeller: Policy | None = None,
) -> list[Episode]:
    """Run one whole episode per seed, all in step with each other.

    The policy acts for all of them until the last has ended, so that the rows of its batch, and
    with them its rounding and its random numbers, do not depend on when others end.

    Args:
        policy: The acting policy.
        task: A task, or the name of one of MT30.
        seeds: Environment seeds; an episode is the first after building with its seed.
        streams: Seeds of the policy's own randomness, one per episode.
        noise: Standard deviation of Gaussian noise on its actions.
        labeller: Its actions are recorded as labels: another policy, or the acting one itself
            for its actions without the noise. None labels with NaN.

    Returns:
        Finished episodes in the order of the seeds.

    Raises:
        UnknownTaskError: A task that the simulator or a policy does not have.
        InputError: An environment of the user's whose results do not fit its spaces.
    """
    task = MT30[task] if isinstance(task, str) else task
    envs = [make_env(task, seed) for seed in seeds]
    act = policy(task.name, streams, envs)
    label_of = None
    if labeller is not None and labeller is not policy:
        label_of = labeller(task.name, [(*stream, 2) for stream in streams], envs)
    disturbances = [np.random.default_rng((*stream, 1)) for stream in streams]
    obs = np.stack([env.reset()[0] for env in envs])
    nothing = np.full((len(envs), task.action_dim), np.nan, np.float32)
    observations, actions, labels = [obs], [nothing], [nothing]
    rewards = [nothing[:, 0]]
    rows, terminated = np.zeros(len(envs), int), np.zeros(len(envs), bool)
    while not rows.all():
        clean = act(obs)
        action = _noisy(clean, noise, disturbances) if noise else clean
        label = clean if labeller is policy else nothing
        if label_of is not None:
            label = label_of(obs)
        obs, reward = obs.copy(), np.zeros(len(envs), np.float32)
        for index in np.flatnonzero(rows == 0):
            obs[index], reward[index], ended, cut, _ = envs[index].step(action[index])
            if ended or cut:
                rows[index], terminated[index] = len(observations) + 1, ended
        observations.append(obs)
        actions.append(action)
        labels.append(label)
        rewards.append(reward)
    for env in envs:
        env.close()
    parts = (observations, actions, rewards, labels)
    columns = (np.stack(part, axis=1) for part in parts)
    return [
        Episode(task.name, seed, o[:n], a[:n], r[:n], label[:n], bool(ended))
        for seed, n, ended, o, a, r, label in zip(
            seeds, rows, terminated, *columns, strict=True
        )
    ]


@contextmanager
def threads(count: int, matmul: MatmulPrecision = "highest") -> Iterator[None]:
    """Let torch compute on so many threads, and with this precision of matrix products.

    On one thread, sums round equally on every machine.
    """
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(count)
    torch.set_float32_matmul_precision(matmul)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
