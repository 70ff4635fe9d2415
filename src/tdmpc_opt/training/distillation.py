"""Distillation of large agents into a small one.

Source: TD-MPC-Opt, arXiv:2507.01823, section 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tdmpc_opt.checkpoints.checkpoint import Checkpoint
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.configs import DistillConfig
from tdmpc_opt.errors import InputError, UnknownTaskError
from tdmpc_opt.expert_policy import ExpertNetwork
from tdmpc_opt.policies import is_expert_folder
from tdmpc_opt.progress import Progress, Silent, Stage
from tdmpc_opt.task_table import TaskTable
from tdmpc_opt.training.expert_teacher import ExpertTeacher, load_experts
from tdmpc_opt.training.loop import open_data, run_training
from tdmpc_opt.training.ranks import Ranks
from tdmpc_opt.training.teacher_cache import TeacherCache
from tdmpc_opt.training.teachers import (
    POLICY_TERMS,
    TWO_HOT_TERMS,
    Member,
    Panel,
    Question,
    Teacher,
    WorldModelTeacher,
)
from tdmpc_opt.training.terms import Distillation
from tdmpc_opt.world_model.layers import Dense
from tdmpc_opt.world_model.model import WorldModel

_DTYPES = {"32-true": torch.float32, "bf16-true": torch.bfloat16}


def distill(config: DistillConfig, progress: Progress | None = None) -> Path:
    """Train a student with frozen teachers; the same call goes on with an interrupted run.

    Returns:
        The student's checkpoint.

    Raises:
        DataError: The dataset is missing, damaged, foreign or holds NaN.
        RunError: The folder holds another run, or a loss became NaN.
        CheckpointError: A checkpoint or expert that cannot be read or written.
        UnknownTaskError: No teacher knows a task of the student.
        InputError: Teachers that cannot answer for a term with a weight, or are never asked.
    """

    def open_teachers(
        student: WorldModel, device: torch.device, ranks: Ranks
    ) -> Distillation | None:
        found = open_distillation(config, student, device)
        if found is None or config.teacher_cache is None:
            return found
        cache = TeacherCache(config, datasets, student.tasks)
        cache.fill(found.teachers, device, Stage(shown, "teachers"), ranks)
        return replace(found, teachers=cache)

    datasets, shown = open_data(config), progress or Silent()
    return run_training(config, datasets, shown, open_teachers)


def open_distillation(
    config: DistillConfig, student: WorldModel, device: torch.device
) -> Distillation | None:
    """Load the teachers that the terms with a weight need; None where there is no such term.

    Raises:
        CheckpointError: A checkpoint or expert that cannot be read.
        UnknownTaskError: No teacher knows a task of the student.
        InputError: Teachers that cannot answer for a term with a weight, or are never asked.
    """
    if not config.terms.at(0):
        return None
    opener = _Opener(config, student, device)
    members = opener.members()
    return Distillation(
        teachers=Panel(members),
        weights=config.terms,
        temperature=config.temperature,
        projection=_projection(members, student, config.seed) if opener.latent else None,
    )


def _projection(members: list[Member], student: WorldModel, seed: int) -> Dense:
    """Return a linear layer from the student's latents to the simplices of its teacher's."""
    teacher = members[-1].teacher
    assert isinstance(teacher, WorldModelTeacher)
    projection = Dense(
        student.config.latent_dim,
        teacher.config.latent_dim,
        activation="none",
        simnorm_dim=teacher.config.simnorm_dim,
    )
    projection.initialize(torch.Generator().manual_seed(seed))
    return projection


@dataclass(frozen=True)
class _Source:
    """A teacher that is read but not built yet."""

    name: str
    known: frozenset[str]
    """Those of the student's tasks that it knows."""
    content: Checkpoint | Mapping[str, ExpertNetwork]


class _Opener:
    """Decides which teacher is asked for what, and builds them accordingly."""

    def __init__(
        self, config: DistillConfig, student: WorldModel, device: torch.device
    ) -> None:
        self._config, self._student, self._device = config, student, device
        self._terms = frozenset(config.terms.at(0))
        self.latent = "latent" in self._terms

    def members(self) -> list[Member]:
        """Return the teachers in the order in which they are heard."""
        members, expert_tasks = [], frozenset[str]()
        if self._config.policy_teacher is not None:
            first = self._policy_source(self._config.policy_teacher)
            expert_tasks = first.known
            members.append(self._member(first, self._terms & POLICY_TERMS, first.known))
        for source, tasks in self._shares():
            left = tasks - expert_tasks
            terms = self._terms if left else self._terms - POLICY_TERMS
            if terms:
                heard = tasks if terms - POLICY_TERMS else left
                members.append(self._member(source, terms, heard))
        return members

    def _policy_source(self, name: str) -> _Source:
        if not self._terms & POLICY_TERMS:
            raise InputError(
                f"the policy teacher {name} is never asked: give --terms.policy-mse or "
                "--terms.policy-kl a weight, or leave it out"
            )
        source = self._read(name)
        if not source.known:
            tasks = ", ".join(self._student.tasks.names)
            raise UnknownTaskError(f"the policy teacher {name} knows none of {tasks}")
        return source

    def _shares(self) -> list[tuple[_Source, frozenset[str]]]:
        """Share the tasks out: each goes to the first teacher that knows it."""
        names = (self._config.teacher, *self._config.more_teachers)
        missing = frozenset(self._student.tasks.names)
        shares = []
        for name in names:
            source = self._read(name)
            shares.append((source, missing & source.known))
            missing -= source.known
        if missing:
            raise UnknownTaskError(
                f"no teacher knows {', '.join(sorted(missing))}; asked were "
                f"{', '.join(names)}: add one that does with --more-teachers, or leave these "
                "tasks out of the data"
            )
        idle = [source.name for source, tasks in shares if not tasks]
        if idle:
            raise InputError(
                f"{', '.join(idle)} is never asked: the teachers before it know all tasks of "
                "the student; leave it out"
            )
        if self.latent and len(shares) > 1:
            raise InputError(
                "the latent term takes one teacher that knows every task, since the latents of "
                "two have nothing in common; leave out --more-teachers or the weight"
            )
        return shares

    def _read(self, name: str) -> _Source:
        tasks = self._student.tasks
        if is_expert_folder(name):
            experts = load_experts(Path(name), tasks)
            return _Source(name, frozenset(experts), experts)
        checkpoint = read_checkpoint(
            name, check_values=False
        )  # those it reads, when it is built
        known = [task for task in tasks.names if task in checkpoint.tasks.names]
        _require_same_sizes(name, checkpoint.tasks.subset(known), tasks)
        return _Source(name, frozenset(known), checkpoint)

    def _member(self, source: _Source, terms: frozenset[str], tasks: frozenset[str]) -> Member:
        answers = torch.tensor([name in tasks for name in self._student.tasks.names])
        return Member(self._build(source, terms), answers.to(self._device))

    def _build(self, source: _Source, terms: frozenset[str]) -> Teacher:
        tasks, content = self._student.tasks, source.content
        if isinstance(content, Checkpoint):
            self._require_same_bins(source.name, content, terms)
            # A cache keeps every row's reward, which may be the first of some slice.
            first_only = self._config.reward_steps == "first"
            question = Question(terms, first_only and self._config.teacher_cache is None)
            dtype = _DTYPES[self._config.teacher_precision]
            return WorldModelTeacher(content, tasks, question, self._device, dtype)
        unknown = sorted(terms - {"policy_mse"})
        if unknown:
            raise InputError(
                f"{source.name} is a folder of experts, which know mean actions alone and "
                f"nothing for {', '.join(unknown)}: name a checkpoint, or set the weight to 0"
            )
        return ExpertTeacher(content, tasks, self._device)

    def _require_same_bins(
        self, name: str, checkpoint: Checkpoint, terms: frozenset[str]
    ) -> None:
        ours, theirs = (
            (config.num_bins, config.bin_limit)
            for config in (self._student.config, checkpoint.config)
        )
        wrong = sorted(terms & TWO_HOT_TERMS)
        if wrong and ours != theirs:
            raise InputError(
                f"{', '.join(wrong)} compares bin by bin, but {name} has {theirs[0]} bins up "
                f"to {theirs[1]} and the student {ours[0]} up to {ours[1]}; use "
                "--terms.reward-mse"
            )


def _require_same_sizes(name: str, theirs: TaskTable, ours: TaskTable) -> None:
    for task in theirs.tasks:
        own = ours[task.name]
        if (task.obs_dim, task.action_dim) != (own.obs_dim, own.action_dim):
            raise InputError(
                f"{task.name} has {own.obs_dim} observations and {own.action_dim} actions in "
                f"the data, {task.obs_dim} and {task.action_dim} in {name}: it is another task"
            )
