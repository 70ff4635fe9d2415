"""Everything that can drive a task: agents, experts and random actions, behind one protocol."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from tdmpc_opt.agents.agent import Agent, best_device, load_agent
from tdmpc_opt.agents.expert_policy import ExpertNetwork, expert_path
from tdmpc_opt.checkpoints.hub import is_model_folder
from tdmpc_opt.checkpoints.load import read_checkpoint, resolve, sha256
from tdmpc_opt.configs import Device, Mode
from tdmpc_opt.errors import CheckpointError, InputError, UnknownTaskError
from tdmpc_opt.files import parse_json
from tdmpc_opt.planning.planner import ChooseEngine, eager_engine
from tdmpc_opt.planning.presets import Preset, find_preset
from tdmpc_opt.planning.simulator import SimulatorBudget, SimulatorPlanner
from tdmpc_opt.runtime.agent import Agent as DeviceAgent
from tdmpc_opt.runtime.agent import load as load_for_device
from tdmpc_opt.runtime.onnx_file import is_onnx
from tdmpc_opt.schema import MT30, UNNAMED, PlannerBudget, Task, TaskTable
from tdmpc_opt.tasks.choice import choose_tasks

if TYPE_CHECKING:
    from tdmpc_opt.tasks.batched import BatchedTask

Array = NDArray[np.float32]
_WORDS = ("random", "plan")  # sources that are no file

Stream = tuple[int, ...]
"""Numbers that together seed one episode's randomness, such as (seed, task id, episode)."""


@runtime_checkable
class Policy(Protocol):
    """Drives batches of episodes of one task at a time.

    It remembers the episodes between `start` and the last `act`: one object serves one thread.
    """

    def start(self, task: str, streams: Sequence[Stream]) -> None:
        """Begin one episode per stream; a row's randomness comes from its stream alone."""

    def act(self, obs: Array) -> Array:
        """Map observations [B, obs] of the task to actions [B, action] in [-1, 1]."""


@runtime_checkable
class SimulatorPolicy(Policy, Protocol):
    """A policy that looks at the state of the simulator, not at observations alone."""

    def watch(self, envs: Sequence[Any]) -> None:
        """Take the environments of the episodes that have begun, one per stream."""


@dataclass(frozen=True, kw_only=True)
class PolicySource:
    """What to load a policy from; small, so that worker processes can take it."""

    source: str
    """Checkpoint file, model folder, zoo name or hub id, an exported ONNX file, a folder of
    experts, `random`, or `plan`: planning in the simulator."""
    mode: Mode = "policy"
    preset: str | PlannerBudget | None = None
    noise: bool = False
    """Sample from the policy, or keep the planner's exploration noise on."""
    device: Device = "cpu"
    replan_every: int | None = None
    """Actions executed of each plan; None leaves it to the preset."""
    choose_engine: ChooseEngine = eager_engine
    """Chooses what computes an agent's plans."""

    def chosen(self) -> Preset:
        """Return how an agent acts: its mode, and what a plan of it may spend.

        Raises:
            InputError: An unknown preset, or more actions of a plan than it has.
            CheckpointError: The checkpoint cannot be read.
        """
        named = isinstance(self.preset, str)
        preset = find_preset(self.preset, read_checkpoint(self._file()).extra if named else {})
        if self.replan_every is not None:
            budget = replace(preset.budget, replan_every=self.replan_every)
            preset = replace(preset, budget=budget)
        return replace(preset, mode="policy") if self.mode == "policy" else preset

    def engine_name(self) -> str:
        """Return the name of what computes an agent's plans.

        Raises:
            CheckpointError: The checkpoint cannot be read.
        """
        config = read_checkpoint(self._file()).config
        return self.choose_engine(config, best_device(self.device), torch.float32).name

    @property
    def is_agent(self) -> bool:
        """True for a checkpoint, whose mode and budget can be chosen."""
        return self._is_file and not is_onnx(Path(self.source))

    @property
    def _is_file(self) -> bool:
        """True for a checkpoint or an exported file, which say for which tasks they are."""
        return self.source not in _WORDS and not is_expert_folder(self.source)

    def load(self, tasks: TaskTable = MT30) -> Policy:
        """Load the policy.

        Args:
            tasks: Those it may be asked to drive, which only random actions need to know.

        Raises:
            CheckpointError: A file or folder that is missing, damaged or foreign.
        """
        if self.source in _WORDS:
            return RandomPolicy(tasks) if self.source == "random" else PlanPolicy(tasks)
        if is_expert_folder(self.source):
            return ExpertPolicy(Path(self.source))
        if is_onnx(Path(self.source)):
            return DevicePolicy(load_for_device(self.source))
        chosen = self.chosen()
        agent = load_agent(
            self.source,
            self.device,
            chosen.budget,
            chosen.mode,
            choose_engine=self.choose_engine,
        )
        return AgentPolicy(agent, deterministic=not self.noise)

    def identity(self, tasks: TaskTable) -> dict[str, str | None]:
        """Name the source by file name and SHA-256 of its content, with no path."""
        if self.source in _WORDS:
            return {"name": self.source, "sha256": None}
        if self._is_file:
            path = resolve(self.source)
            return {"name": path.name, "sha256": sha256(path)}
        path = Path(self.source)
        digest = hashlib.sha256()
        for name in tasks.names:
            digest.update(sha256(_existing_expert(path, name)).encode())
        return {"name": path.resolve().name, "sha256": digest.hexdigest()}

    def training(self) -> dict[str, Any] | None:
        """Return the config of the run that made a checkpoint of this project, else None.

        Raises:
            CheckpointError: The checkpoint cannot be read.
        """
        if not self.is_agent:
            return None
        extra = read_checkpoint(self._file()).extra
        if "run" not in extra:
            return None
        try:
            return dict(parse_json(extra["run"])) | {"updates": int(extra["updates"])}
        except (LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.source} does not tell how it was trained ({error!r})"
            ) from error

    def tasks(self, chosen: str | None) -> TaskTable:
        """Return the tasks to drive.

        Args:
            chosen: What `choose_tasks` takes; None means all this source was made for.

        Raises:
            UnknownTaskError: A task that is not known here or this source was not made for.
            InputError: An environment of the user's that no agent here can act in.
        """
        if chosen is not None and not self._is_file:
            tasks = choose_tasks(chosen)
            if self.source not in _WORDS:
                _require_expert_of_each(Path(self.source), tasks)
            return tasks
        known = self._known_tasks()
        if known.names == (UNNAMED,):
            if chosen is None:
                raise UnknownTaskError(
                    f"{self.source} is a single-task checkpoint that does not say which task; "
                    "name it with --tasks"
                )
            return choose_tasks(chosen)
        if chosen is None:
            self._refuse_unnamed(known)
            # Of an MT80 agent, those with a simulator here.
            here = [name for name in known.names if name in MT30.names]
            if not here:
                raise UnknownTaskError(
                    f"{self.source} was made for {', '.join(known.names)}, which no simulator "
                    "here has; name the environment of that id: --tasks MODULE:ID"
                )
            return MT30.subset(here)
        tasks = choose_tasks(chosen)
        for task in tasks.tasks:
            self._require_known(known, task)
        return tasks

    def _refuse_unnamed(self, known: TaskTable) -> None:
        """Import no module because a file says so: of own tasks the user gives the name."""
        own = [task for task in known.tasks if task.env]
        if own:
            raise UnknownTaskError(
                f"{self.source} was made for your own {', '.join(task.name for task in own)}; "
                f"name what may be imported: --tasks {known.selection}"
            )

    def _require_known(self, known: TaskTable, task: Task) -> None:
        found = known[task.name]
        if task.env and (found.obs_dim, found.action_dim) != (task.obs_dim, task.action_dim):
            raise UnknownTaskError(
                f"{self.source} knows a {task.name} of {found.obs_dim} observations and "
                f"{found.action_dim} actions; {task.env} has {task.obs_dim} and "
                f"{task.action_dim}"
            )

    def require_labels(self, tasks: TaskTable) -> None:
        """Make sure that the source can say what to imitate in these tasks.

        Raises:
            InputError: It has nothing to imitate, or cannot plan as it is asked to.
            UnknownTaskError: A task that it was not made for.
            CheckpointError: There is no such source.
        """
        if self.source == "random":
            raise InputError("random actions are nothing to imitate; label with a policy")
        self.tasks(tasks.selection)
        if self.mode == "planner" and not self.is_agent:
            what = "an exported file, whose mode is fixed"
            if Path(self.source).is_dir():
                what = "a folder of experts, which cannot plan"
            raise InputError(
                f"{self.source} is {what}; leave out the planner as label mode, or label with "
                "a checkpoint"
            )

    def _known_tasks(self) -> TaskTable:
        if self.source in _WORDS:
            return MT30
        path = Path(self.source)
        if self.is_agent:
            return self._checkpoint_tasks()
        if is_onnx(path):
            return load_for_device(path).tasks
        _require_experts(path)
        names = [name for name in MT30.names if expert_path(path, name).is_file()]
        if not names:
            raise UnknownTaskError(
                f"{path} holds experts of tasks of your own alone; name them with --tasks"
            )
        return MT30.subset(names)

    def _checkpoint_tasks(self) -> TaskTable:
        return read_checkpoint(self._file()).tasks

    def _file(self) -> Path:
        try:
            return resolve(self.source)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; a folder of experts or the word random would do as well"
            ) from None


def _require_expert_of_each(folder: Path, tasks: TaskTable) -> None:
    _require_experts(folder)
    for task in tasks.tasks:
        _existing_expert(folder, task.name)


def is_expert_folder(source: str) -> bool:
    """Tell whether a source is a folder that holds no model, and so experts if anything."""
    return Path(source).is_dir() and not is_model_folder(Path(source))


def _require_experts(folder: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}: holds no expert; make some with tdmpc-opt experts")


def _existing_expert(folder: Path, task: str) -> Path:
    path = expert_path(folder, task)
    if not path.is_file():
        raise UnknownTaskError(
            f"{folder} holds no expert for {task}; train it with "
            f"tdmpc-opt experts --tasks {task} --output {folder}"
        )
    return path


def torch_generator(stream: Stream) -> torch.Generator:
    """Return a CPU generator seeded by all numbers of a stream."""
    seed = np.random.SeedSequence(stream).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed) >> 1)


class AgentPolicy:
    """An agent that drives whole episodes."""

    def __init__(self, agent: Agent, *, deterministic: bool = True) -> None:
        self.agent = agent
        self._deterministic = deterministic
        self._task: str | None = None
        self._generators: list[torch.Generator] = []

    def start(self, task: str, streams: Sequence[Stream]) -> None:
        """Begin one episode per stream."""
        unnamed = self.agent.tasks.names == (UNNAMED,)
        self._task = None if unnamed else self.agent.tasks[task].name
        self._generators = [torch_generator(stream) for stream in streams]
        self.agent.reset()

    def act(self, obs: Array) -> Array:
        """Map observations [B, obs] to actions [B, action]."""
        return self.agent.act(
            obs,
            self._task,
            deterministic=self._deterministic,
            generator=self._generators,
        )


class DevicePolicy:
    """An exported file that drives whole episodes, as the device would run it."""

    def __init__(self, agent: DeviceAgent) -> None:
        self._agent = agent
        self._task: str | None = None
        self._generators: list[np.random.Generator] = []

    def start(self, task: str, streams: Sequence[Stream]) -> None:
        """Begin one episode per stream."""
        self._task = None if self._agent.tasks.names == (UNNAMED,) else task
        self._generators = [np.random.default_rng(stream) for stream in streams]
        self._agent.reset()

    def act(self, obs: Array) -> Array:
        """Map observations [B, obs] to actions [B, action]."""
        return self._agent.act(obs, self._task, generator=self._generators)


class RandomPolicy:
    """Uniform actions."""

    def __init__(self, tasks: TaskTable = MT30) -> None:
        self._tasks = tasks
        self._width = 0
        self._generators: list[np.random.Generator] = []

    def start(self, task: str, streams: Sequence[Stream]) -> None:
        """Begin one episode per stream."""
        self._width = self._tasks[task].action_dim
        self._generators = [np.random.default_rng(stream) for stream in streams]

    def act(self, obs: Array) -> Array:
        """Draw actions [B, action] uniformly from [-1, 1]."""
        rows = [source.uniform(-1, 1, self._width) for source in self._generators]
        return np.array(rows, dtype=np.float32)


class ExpertPolicy:
    """The single-task experts of a folder, each on its own task."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._network: ExpertNetwork | None = None

    def start(self, task: str, streams: Sequence[Stream]) -> None:
        """Load the task's expert."""
        _existing_expert(self._folder, task)
        self._network = ExpertNetwork.of_task(self._folder, task)

    def act(self, obs: Array) -> Array:
        """Map observations [B, obs] to the expert's mean actions [B, action]."""
        assert self._network is not None, "start an episode first"
        return self._network.mean(obs)


class PlanPolicy:
    """Planning with the simulator's own dynamics.

    Args:
        tasks: Those it may be asked to drive.
    """

    def __init__(self, tasks: TaskTable = MT30) -> None:
        self._tasks = tasks
        self._simulator: BatchedTask | None = None
        self._planner: SimulatorPlanner | None = None
        self._envs: Sequence[Any] = ()

    def start(self, task: str, streams: Sequence[Stream]) -> None:
        """Begin one episode per stream."""
        from tdmpc_opt.tasks.environment import batched_task  # needs the simulator

        self._simulator = batched_task(self._tasks[task])
        generators = [np.random.default_rng(stream) for stream in streams]
        self._planner = SimulatorPlanner(self._simulator, SimulatorBudget(), generators)

    def watch(self, envs: Sequence[Any]) -> None:
        """Take the environments of the episodes that have begun, one per stream."""
        self._envs = envs

    def act(self, obs: Array) -> Array:
        """Return the first actions [B, action] of plans from the states of the environments."""
        assert self._simulator is not None, "start an episode first"
        assert self._planner is not None
        states, constants = zip(*map(self._simulator.current, self._envs), strict=True)
        return self._planner.plan(np.stack(states), np.stack(constants)).astype(np.float32)


class ActionNoise:
    """Gaussian noise on actions; each episode's comes from a stream of its own."""

    def __init__(self, std: float, streams: Sequence[Stream]) -> None:
        self._std = std
        self._generators = [np.random.default_rng((*stream, 1)) for stream in streams]

    def add(self, action: Array) -> Array:
        """Return actions [B, action] with the noise of one step, clipped to [-1, 1]."""
        noise = [source.standard_normal(action.shape[1]) for source in self._generators]
        return np.clip(action + self._std * np.array(noise), -1, 1).astype(np.float32)
