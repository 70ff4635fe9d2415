"""Where policies come from: one class a kind, small enough to send to worker processes."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from tdmpc_opt.agents.agent import Agent
from tdmpc_opt.agents.compute import best_device
from tdmpc_opt.agents.expert import (
    ExpertNetwork,
    existing_expert,
    experts_identity,
    holds_experts,
    is_expert_folder,
    known_experts,
)
from tdmpc_opt.agents.rollout import Act, Array, Policy, Stream, agent_policy
from tdmpc_opt.checkpoints.checkpoint import Checkpoint, build
from tdmpc_opt.checkpoints.load import read_checkpoint, require_names, resolve
from tdmpc_opt.configs.common import Device, Mode
from tdmpc_opt.errors import CheckpointError, InputError, UnknownTaskError
from tdmpc_opt.files import Identity, file_identity, is_onnx, parse_json
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.planning.planner import ChooseEngine, eager_engine
from tdmpc_opt.planning.presets import Preset, find_preset
from tdmpc_opt.planning.simulator import SimulatorBudget, SimulatorPlanner
from tdmpc_opt.runtime.agent import load as load_for_device
from tdmpc_opt.schema import MT30, UNNAMED, PlannerBudget, Task, TaskTable
from tdmpc_opt.tasks import choose_tasks

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class PolicySource(ABC):
    """Describes a policy; worker processes receive it and load the policy themselves."""

    in_simulator: ClassVar[bool] = False
    """Whether it acts by the environments' own states instead of observations."""
    source: str
    """The text given to `open_source`."""
    mode: Mode = "policy"
    """How a checkpoint acts; the other kinds act in one way."""

    @abstractmethod
    def load(self, tasks: TaskTable = MT30) -> Policy:
        """Load the policy; sources without a file need the tasks that it may drive.

        Raises:
            CheckpointError: A file or folder that is missing, damaged or foreign.
        """

    @abstractmethod
    def tasks(self, chosen: str | None) -> TaskTable:
        """Return the tasks to drive, chosen as in `choose_tasks`; None means all it has.

        Raises:
            UnknownTaskError: A task that is not known here or this source was not made for.
            InputError: An environment of the user's that no agent here can act in.
        """

    @abstractmethod
    def identity(self, tasks: TaskTable) -> Identity:
        """Name the source by its content, as far as these tasks depend on it."""

    def acts_by(self) -> Mode:
        """Return how it acts where nothing is to choose: a checkpoint alone acts in two ways.

        Raises:
            CheckpointError: A file that is missing or cannot be read.
        """
        return "planner" if self.in_simulator else "policy"

    def require_labels(self, tasks: TaskTable) -> None:
        """Check that the source has actions to imitate in these tasks.

        Raises:
            InputError: It has no actions to imitate.
            UnknownTaskError: A task that it was not made for.
            CheckpointError: There is no such source.
        """
        self.tasks(tasks.selection)


def open_source(
    text: str,
    *,
    mode: Mode = "policy",
    names: str | None = None,
    preset: str | PlannerBudget | None = None,
    noise: bool = False,
    device: Device = "cpu",
    replan_every: int | None = None,
    choose_engine: ChooseEngine = eager_engine,
) -> PolicySource:
    """Return the source that a text names; nothing is read yet.

    Args:
        text: `random`; `plan`, which plans in the simulator; a folder of experts; an exported
            ONNX file; `MODULE:FACTORY`, a policy of the user's; a file that assigns policies to
            tasks (`write_assignment`); or a checkpoint: file, model folder, zoo name or hub
            id.
        mode: As all options below, for checkpoints alone: policy or planner.
        names: Names of the tasks of a checkpoint that does not name them.
        preset: What a plan may spend.
        noise: Sample from the policy, or keep the planner's exploration noise on.
        device: Where the networks compute.
        replan_every: Actions executed of each plan; None leaves it to the preset.
        choose_engine: Chooses what computes an agent's plans.
    """
    if text == "random":
        return RandomSource(source=text, mode=mode)
    if text == "plan":
        return SimulatorSource(source=text, mode=mode)
    from tdmpc_opt.agents.own import AssignedSource, FactorySource  # the first opens others

    if text.endswith(".json") and Path(text).is_file():
        return AssignedSource(
            source=text, mode=mode, device=device, choose_engine=choose_engine
        )
    if _FACTORY.fullmatch(text) and not Path(text).exists():
        return FactorySource(source=text, mode=mode)
    if is_expert_folder(text):
        return ExpertSource(source=text, mode=mode)
    if is_onnx(Path(text)):
        return ExportedSource(source=text, mode=mode)
    return CheckpointSource(
        source=text,
        mode=mode,
        names=names,
        preset=preset,
        noise=noise,
        device=device,
        replan_every=replan_every,
        choose_engine=choose_engine,
    )


def refuse_unused(source: PolicySource, mode: Mode | None, **options: object) -> None:
    """Refuse options of how an agent acts which the source would not follow.

    Args:
        source: What acts.
        mode: The mode that the user asked for; None is any.
        options: Options of checkpoints by their names, None or False where not given.

    Raises:
        InputError: The source is no checkpoint, and an option is given or it acts otherwise.
        CheckpointError: A file that is missing or cannot be read.
    """
    if isinstance(source, CheckpointSource):
        return
    for name, value in options.items():
        if value:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} is for checkpoints; {source.source} acts in one way")
    if mode is not None and mode != (acts := source.acts_by()):
        raise InputError(f"{source.source} acts by the mode `{acts}` alone; leave --mode out")


def batchable(sources: Sequence[PolicySource], task: Task) -> bool:
    """Return whether `rollout` can step the physics of their episodes as one batch."""
    return not task.env and not any(source.in_simulator for source in sources)


def identify(text: str, tasks: TaskTable) -> Identity:
    """Name the source of a text by its content; of experts those of the tasks that it has.

    Raises:
        CheckpointError: A file that is missing or cannot be read.
    """
    source = open_source(text)
    if isinstance(source, ExpertSource):
        tasks = tasks.subset(known_experts(Path(text), tasks.names))
    return source.identity(tasks)


class SimulatorSource(PolicySource):
    """Planning with the simulator's own dynamics."""

    in_simulator = True

    def load(self, tasks: TaskTable = MT30) -> Policy:
        """Return the planner for these tasks."""

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

    def tasks(self, chosen: str | None) -> TaskTable:
        """Return the chosen tasks, or MT30."""
        return choose_tasks(chosen or "mt30")

    def identity(self, tasks: TaskTable) -> Identity:
        """Return the word; there is no content to hash."""
        return {"name": self.source, "sha256": None}


class RandomSource(SimulatorSource):
    """Uniform actions."""

    in_simulator = False

    def load(self, tasks: TaskTable = MT30) -> Policy:
        """Return random actions for these tasks."""

        def begin(task: str, streams: Sequence[Stream], _: Sequence[Any]) -> Act:
            width = tasks[task].action_dim
            generators = [np.random.default_rng(stream) for stream in streams]
            return lambda _: np.array(
                [source.uniform(-1, 1, width) for source in generators], np.float32
            )

        return begin

    def require_labels(self, tasks: TaskTable) -> None:
        """Refuse.

        Raises:
            InputError: Always.
        """
        raise InputError("random actions are nothing to imitate; label with a policy")


class ExpertSource(PolicySource):
    """A folder with one expert a task."""

    def load(self, tasks: TaskTable = MT30) -> Policy:
        """Return the experts, each read when its task begins."""
        folder = Path(self.source)

        def begin(task: str, _: Sequence[Stream], __: Sequence[Any]) -> Act:
            existing_expert(folder, task)
            return ExpertNetwork.of_task(folder, task).mean

        return begin

    def tasks(self, chosen: str | None) -> TaskTable:
        """Return the chosen tasks, or those of MT30 that have an expert."""
        folder = Path(self.source)
        names = known_experts(folder, MT30.names)
        if chosen is None and names:
            return MT30.subset(names)
        if chosen is None and holds_experts(folder):
            raise UnknownTaskError(
                f"{folder} holds experts of tasks of your own alone; name them with --tasks"
            )
        tasks = choose_tasks(chosen or "mt30")
        for task in tasks.tasks:
            existing_expert(folder, task.name)
        return tasks

    def identity(self, tasks: TaskTable) -> Identity:
        """Return the folder's name and a hash over the experts of these tasks."""
        return experts_identity(Path(self.source), tasks.names)


class _FileSource(PolicySource):
    """One file with a network, made for certain tasks."""

    @abstractmethod
    def known_tasks(self) -> TaskTable:
        """Return the tasks that the file was made for."""

    def tasks(self, chosen: str | None) -> TaskTable:
        """Return the chosen tasks, or those the file was made for and a simulator here has."""
        known = self.known_tasks()
        if chosen is None:
            return self._all(known)
        tasks = choose_tasks(chosen)
        if known.names == (UNNAMED,):
            return tasks
        for task in tasks.tasks:
            if task.env and task.name not in known.names:
                raise UnknownTaskError(f"{self.source} was not made for {task.name}")
            try:
                found = known[task.name]
            except UnknownTaskError as error:
                raise UnknownTaskError(f"{self.source}: {error}") from None
            sizes = (found.obs_dim, found.action_dim), (task.obs_dim, task.action_dim)
            if task.env and sizes[0] != sizes[1]:
                raise UnknownTaskError(
                    f"{self.source} knows a {task.name} of {found.obs_dim} observations and "
                    f"{found.action_dim} actions; {task.env} has {task.obs_dim} and "
                    f"{task.action_dim}"
                )
        return tasks

    def _all(self, known: TaskTable) -> TaskTable:
        require_names(self.source, known)
        # Import no module that only a file names: the user has to name own tasks.
        own = [task.name for task in known.tasks if task.env]
        if own:
            raise UnknownTaskError(
                f"{self.source} was made for your own {', '.join(own)}; "
                f"name what may be imported: --tasks {known.selection}"
            )
        # Of an MT80 agent, those with a simulator here.
        here = [name for name in known.names if name in MT30.names]
        if not here:
            raise UnknownTaskError(
                f"{self.source} was made for {', '.join(known.names)}, which no simulator "
                "here has; name the environment of that id: --tasks MODULE:ID"
            )
        return MT30.subset(here)

    def identity(self, tasks: TaskTable) -> Identity:
        """Return the file's name and hash."""
        return file_identity(resolve(self.source))


class ExportedSource(_FileSource):
    """An exported ONNX file, which acts as on the device."""

    def acts_by(self) -> Mode:
        """Return the mode that was exported."""
        return "policy" if load_for_device(self.source).plan is None else "planner"

    def load(self, tasks: TaskTable = MT30) -> Policy:
        """Load the file for ONNX Runtime."""
        agent = load_for_device(self.source)

        def begin(task: str, streams: Sequence[Stream], _: Sequence[Any]) -> Act:
            name = None if agent.tasks.names == (UNNAMED,) else task
            generators = [np.random.default_rng(stream) for stream in streams]
            agent.reset()
            return lambda obs: agent.act(obs, name, generator=generators)

        return begin

    def known_tasks(self) -> TaskTable:
        """Return the tasks that the file names."""
        return load_for_device(self.source).tasks


@dataclass(frozen=True, kw_only=True)
class CheckpointSource(_FileSource):
    """A checkpoint, whose mode and budget can be chosen."""

    names: str | None = None
    """Names of the tasks of a checkpoint that does not name them, joined by commas."""
    preset: str | PlannerBudget | None = None
    """Planner budget, or the name of a preset; None is `full`."""
    noise: bool = False
    """Whether the policy is sampled, or the planner keeps its exploration noise."""
    device: Device = "cpu"
    replan_every: int | None = None
    """Actions executed of each plan; None leaves it to the preset."""
    choose_engine: ChooseEngine = eager_engine
    """Chooses what computes the agent's plans."""

    def load(self, tasks: TaskTable = MT30) -> Policy:
        """Load the agent; the file is read once in a process."""
        model = _model(*self._file(), self.names, self.device)
        chosen = self.chosen()
        engine = self.choose_engine(model.config, best_device(self.device), model.dtype)
        agent = Agent(model, mode=chosen.mode, budget=chosen.budget, engine=engine)
        return agent_policy(agent, deterministic=not self.noise)

    def known_tasks(self) -> TaskTable:
        """Return the tasks that the file, or `names`, names."""
        return self._checkpoint().tasks

    def tasks(self, chosen: str | None) -> TaskTable:
        """Return the chosen tasks; of a file without names, those in the order given."""
        nameless = self.names is not None and self._tasks_of_file().unnamed
        return (
            self.known_tasks() if nameless and chosen == self.names else super().tasks(chosen)
        )

    def identity(self, tasks: TaskTable) -> Identity:
        """Return the file's name and hash; of tasks named by the user, their order counts."""
        found, own = super().identity(tasks), self._tasks_of_file()
        if self.names is not None and own.unnamed and len(own) > 1:
            named = f"{found['sha256']} {','.join(self.known_tasks().names)}"
            found["sha256"] = hashlib.sha256(named.encode()).hexdigest()
        return found

    def chosen(self) -> Preset:
        """Return how the agent acts: its mode, and what a plan of it may spend.

        Raises:
            InputError: An unknown preset, or more actions of a plan than it has.
            CheckpointError: The checkpoint cannot be read.
        """
        preset = find_preset(self.preset, self._checkpoint().extra)
        budget = preset.budget
        if self.replan_every is not None:
            budget = replace(budget, replan_every=self.replan_every)
        return Preset("policy" if self.mode == "policy" else preset.mode, budget)

    def plans(self) -> bool:
        """Return whether the file has what a plan needs, and not the policy alone.

        Raises:
            CheckpointError: The checkpoint cannot be read.
        """
        return self._checkpoint().has_world_model

    def engine_name(self) -> str:
        """Return the name of what computes the agent's plans.

        Raises:
            CheckpointError: The checkpoint cannot be read.
        """
        config = self._checkpoint().config
        return self.choose_engine(config, best_device(self.device), torch.float32).name

    def training(self) -> dict[str, Any] | None:
        """Return the config of the run that made a checkpoint of this project, else None."""
        extra = self._checkpoint().extra
        if "run" not in extra:
            return None
        try:
            return dict(parse_json(extra["run"])) | {"updates": int(extra["updates"])}
        except (LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.source} does not state how it was trained ({error!r})"
            ) from error

    def _tasks_of_file(self) -> TaskTable:
        return _checkpoint(*self._file(), None).tasks

    def _checkpoint(self) -> Checkpoint:
        return _checkpoint(*self._file(), self.names)

    def _file(self) -> tuple[Path, tuple[int, int]]:
        """Return the file and what changes when its content does: its time and size."""
        try:
            path = resolve(self.source)
            status = path.stat()
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; a folder of experts or the word random would do as well"
            ) from None
        return path, (status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _checkpoint(path: Path, version: tuple[int, int], names: str | None) -> Checkpoint:
    """Read a checkpoint's metadata; its weights are mapped and not read."""
    return read_checkpoint(path, check_values=False, tasks=names)


@lru_cache(maxsize=2)  # a policy and its labeller
def _model(
    path: Path, version: tuple[int, int], names: str | None, device: Device
) -> WorldModel:
    """Read the weights; agents share them, for acting does not change them."""
    checkpoint = _checkpoint(path, version, names)
    return build(checkpoint, device=best_device(device), policy_will_do=True)
