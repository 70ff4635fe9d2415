"""Policies of a user's own code, and several policies as one, each on its own tasks."""

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tdmpc_opt.agents.rollout import Act, Array, Policy, Stream
from tdmpc_opt.agents.sources import PolicySource, open_source
from tdmpc_opt.configs.common import Device, Mode
from tdmpc_opt.errors import CheckpointError, InputError, UnknownTaskError
from tdmpc_opt.files import Identity, parse_json, write_json
from tdmpc_opt.planning.planner import ChooseEngine, eager_engine
from tdmpc_opt.schema import MT30, TaskTable
from tdmpc_opt.tasks import choose_tasks
from tdmpc_opt.tasks.own import import_named, user_code

_ROUNDING = 1e-4
"""How far actions may lie outside [-1, 1]; they are clipped."""


class FactorySource(PolicySource):
    """A policy of the user's: what the function of `MODULE:FACTORY` returns."""

    def load(self, tasks: TaskTable = MT30) -> Policy:
        """Call the function."""
        module, _, name = self.source.partition(":")
        found = getattr(import_named(self.source, module, InputError), name, None)
        if not callable(found):
            raise InputError(f"{module} has no function {name}; {self.source} names one")
        with user_code(self.source, "its call", "the function"):
            policy = found()
        if not callable(getattr(policy, "act", None)):
            raise InputError(
                f"{self.source} returned {type(policy).__name__} without a method act; return "
                "an object with act(obs [B, obs]) -> [B, action]"
            )
        return _checked(self.source, policy, tasks)

    def tasks(self, chosen: str | None) -> TaskTable:
        """Return the chosen tasks; the policy itself names none."""
        if chosen is None:
            raise InputError(f"{self.source} does not name its tasks; name them with --tasks")
        return choose_tasks(chosen)

    def identity(self, tasks: TaskTable) -> Identity:
        """Return the text, and a hash of the module's file where it has one."""
        self.load(tasks)
        found = importlib.util.find_spec(self.source.partition(":")[0])
        path = Path(found.origin) if found is not None and found.origin else None
        content = path.read_bytes() if path is not None and path.is_file() else b""
        digest = hashlib.sha256(self.source.encode() + b"\0" + content)
        return {"name": self.source, "sha256": digest.hexdigest()}


def _checked(text: str, policy: Any, tasks: TaskTable) -> Policy:
    """Return a policy of the user's, with the name of its source, whose actions are checked."""

    def begin(task: str, streams: Sequence[Stream], _: Sequence[Any]) -> Act:
        known = tasks[task].action_dim if task in tasks.names else None
        if hasattr(policy, "start"):
            with user_code(text, "start()", "the policy"):
                policy.start(task, streams)

        def act(obs: Array) -> Array:
            with user_code(text, "act()", "the policy"):
                action = np.asarray(policy.act(obs.copy()), np.float32)  # it may write
            width = action.shape[-1] if known is None and action.ndim else known
            if action.shape != (len(obs), width):
                raise InputError(
                    f"{text} returned actions of shape {list(action.shape)} for observations "
                    f"of shape {list(obs.shape)}; return [{len(obs)}, {width or 'action'}]"
                )
            if not (np.abs(action) <= 1 + _ROUNDING).all():
                raise InputError(
                    f"{text} returned actions that are NaN or outside [-1, 1]; scale them by "
                    "the bounds of the environment"
                )
            return np.clip(action, -1, 1)

        return act

    return begin


@dataclass(frozen=True)
class Assigned:
    """The policy of one task."""

    source: str
    mode: Mode = "policy"
    preset: str | None = None
    names: str | None = None


def write_assignment(path: Path, policies: Mapping[str, Assigned]) -> None:
    """Write which policy drives or labels which task, named as in `choose_tasks`.

    `open_source` reads the JSON file.

    Raises:
        CheckpointError: The file cannot be written.
    """
    tasks = {task: asdict(policy) for task, policy in policies.items()}
    write_json(path, {"kind": "policies", "schema": 1, "tasks": tasks}, CheckpointError)


@dataclass(frozen=True, kw_only=True)
class AssignedSource(PolicySource):
    """A file that assigns a policy to each of its tasks."""

    device: Device = "cpu"
    choose_engine: ChooseEngine = eager_engine

    def load(self, tasks: TaskTable = MT30) -> Policy:
        """Return a policy that loads each task's when an episode of it begins."""

        def begin(task: str, streams: Sequence[Stream], envs: Sequence[Any]) -> Act:
            known = tasks[task]
            policy = self.of(known.env or task).load(TaskTable((known,)))
            return policy(task, streams, envs)

        return begin

    def tasks(self, chosen: str | None) -> TaskTable:
        """Return the chosen tasks, or all of the file."""
        tasks = choose_tasks(chosen or ",".join(self._policies))
        for task in tasks.tasks:
            self.of(task.env or task.name)
        return tasks

    def identity(self, tasks: TaskTable) -> Identity:
        """Return the file's name and a hash over the policies of these tasks."""
        digest = hashlib.sha256()
        for task in tasks.tasks:
            key = task.env or task.name
            policy, identity = self._policies[key], self.of(key).identity(TaskTable((task,)))
            stated = [task.name, identity["sha256"], policy.mode, policy.preset]
            digest.update(json.dumps(stated).encode())
        return {"name": Path(self.source).name, "sha256": digest.hexdigest()}

    def require_labels(self, tasks: TaskTable) -> None:
        """Make sure that the policy of each task has actions to imitate."""
        for task in tasks.tasks:
            self.of(task.env or task.name).require_labels(TaskTable((task,)))

    def of(self, task: str) -> PolicySource:
        """Return the source of one task's policy.

        Raises:
            UnknownTaskError: The file has none for the task.
        """
        policy = self._policies.get(task)
        if policy is None:
            raise UnknownTaskError(
                f"{self.source} has no policy for {task}; it has some for "
                f"{', '.join(self._policies)}"
            )
        return open_source(
            policy.source,
            mode=policy.mode,
            names=policy.names,
            preset=policy.preset,
            device=self.device,
            choose_engine=self.choose_engine,
        )

    @cached_property
    def _policies(self) -> dict[str, Assigned]:
        try:
            content = parse_json(Path(self.source).read_bytes())
            return {task: Assigned(**policy) for task, policy in content["tasks"].items()}
        except (OSError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.source} does not assign policies to tasks ({error!r}); name a "
                "checkpoint, a folder of experts or another policy"
            ) from error
