"""Distillation of large agents into a small one.

Source: TD-MPC-Opt, arXiv:2507.01823, section 3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tdmpc_opt.agents.policies import ExpertNetwork
from tdmpc_opt.agents.sources import is_expert_folder
from tdmpc_opt.checkpoints.checkpoint import Checkpoint
from tdmpc_opt.checkpoints.load import read_checkpoint, require_names, share_names
from tdmpc_opt.configs import TrainConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.data.sampler import Batch, SliceSampler
from tdmpc_opt.errors import InputError, NonFiniteError, UnknownTaskError
from tdmpc_opt.model import two_hot
from tdmpc_opt.model.layers import Dense
from tdmpc_opt.model.world_model import WorldModel, bin_centres
from tdmpc_opt.progress import Progress, Stage
from tdmpc_opt.schema import TaskTable
from tdmpc_opt.training.ranks import Ranks
from tdmpc_opt.training.teacher_cache import TeacherCache
from tdmpc_opt.training.teachers import (
    POLICY_TERMS,
    TWO_HOT_TERMS,
    ExpertTeacher,
    Member,
    Panel,
    Question,
    Teacher,
    WorldModelTeacher,
    load_experts,
)
from tdmpc_opt.training.terms import Distillation

_CHECKED_SLICES = 64
_BROKEN = 10.0
"""Factor by which rewards and values may be off before a teacher is refused."""
_UNLIKELY = 2.0
"""Factor above which they are warned of; a teacher that always foresees nothing is at 1."""
_LEAST_REWARD = 0.1
"""Scale of rewards that counts at least: data may have none but zeros."""


def open_teachers(
    config: TrainConfig,
    student: WorldModel,
    datasets: Sequence[EpisodeDataset],
    device: torch.device,
    ranks: Ranks,
    progress: Progress,
) -> Distillation | None:
    """Load the teachers of a run, checked against its data; None where no term has a weight.

    Raises:
        CheckpointError: A checkpoint or expert that cannot be read.
        UnknownTaskError: No teacher has a task of the student.
        InputError: Teachers without an output that a term needs, that are not used, or
            whose rewards or values are far from the data's.
        RunError: The teacher cache cannot be written.
    """
    found = open_distillation(config, student, device)
    if found is None:
        return None
    sampler = SliceSampler(
        datasets,
        student.tasks,
        horizon=config.horizon,
        batch_size=_CHECKED_SLICES,
        seed=config.seed,
    )
    batch = _finite_batch(sampler, config.max_skipped)
    check_teachers(found, batch, student, device, progress)
    if config.teacher_cache is None:
        return found
    cache = TeacherCache(config, datasets, student.tasks)
    cache.fill(found.teachers, device, Stage(progress, "teachers"), ranks)
    return replace(found, teachers=cache)


def check_teachers(
    distillation: Distillation,
    batch: Batch,
    student: WorldModel,
    device: torch.device,
    progress: Progress,
) -> None:
    """Compare what the teachers foresee with the data, before hours of training on it.

    Rewards are compared with those of the data, by root mean squares. A value may be as large
    as the data's largest reward in every step to come. Terms that ask for neither are not
    checked.

    Args:
        distillation: The teachers and their outputs that are used.
        batch: Slices of the data.
        student: Has the tasks and the bins.
        device: Where the teachers compute.
        progress: Warned of what is unlikely.

    Raises:
        InputError: Rewards or values that are not finite, or off by more than a factor of ten.
    """
    fields = (batch.obs, batch.action, batch.label, batch.reward, batch.task)
    found = distillation.teachers(Batch(*(part.to(device) for part in fields)))
    bins = bin_centres(student.config).to(device)
    rewards = found.reward
    if found.reward_logits is not None:
        rewards = two_hot.decode(found.reward_logits, bins).unsqueeze(-1)
    if rewards is not None:
        real = batch.reward[: len(rewards)].to(device)
        scale = max(_rms(real), _LEAST_REWARD)
        _judge("rewards", _rms(rewards - real) / scale, "differ from the data's by", progress)
    if found.value_logits is not None:
        values = two_hot.decode(found.value_logits, bins)
        discounts = torch.from_numpy(student.tasks.discounts()).to(device)[
            batch.task.to(device)
        ]
        largest = max(float(batch.reward.abs().max()), _LEAST_REWARD) / (1 - discounts)
        _judge("values", _rms(values / largest), "are above what the data allows by", progress)


def _finite_batch(sampler: SliceSampler, may_skip: int) -> Batch:
    """Draw a batch without NaN; of those with, training may skip as many."""
    for _ in range(may_skip):
        try:
            return sampler.sample()
        except NonFiniteError:
            continue  # training meets it too, and names it
    return sampler.sample()


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _judge(what: str, factor: float, how: str, progress: Progress) -> None:
    text = f"the teacher's {what} {how} a factor of {factor:,.3g}"
    if not factor <= _BROKEN:  # which NaN is not either
        raise InputError(
            f"{text}: it is damaged, or of other tasks or rewards than this data; look at it "
            "with tdmpc-opt inspect and evaluate, or give its term the weight 0"
        )
    if factor > _UNLIKELY:
        progress.warn(f"{text}; check that it was trained on these tasks and rewards")


def open_distillation(
    config: TrainConfig, student: WorldModel, device: torch.device
) -> Distillation | None:
    """Load the teachers that the terms with a weight need; None where there is no such term.

    Raises:
        CheckpointError: A checkpoint or expert that cannot be read.
        UnknownTaskError: No teacher has a task of the student.
        InputError: Teachers without an output that a term needs, or that are not used.
    """
    if not config.terms.at(0):
        return None
    opener = _Opener(config, student, device)
    members = opener.members()
    return Distillation(
        teachers=Panel(members),
        weights=config.terms,
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
    """Those of the student's tasks that it has."""
    content: Checkpoint | Mapping[str, ExpertNetwork]


class _Opener:
    """Decides which teacher is used for what, and builds them accordingly."""

    def __init__(self, config: TrainConfig, student: WorldModel, device: torch.device) -> None:
        self._config, self._student, self._device = config, student, device
        self._terms = frozenset(config.terms.at(0))
        self.latent = "latent" in self._terms

    def members(self) -> list[Member]:
        """Return the teachers in the order of preference."""
        members, expert_tasks = [], frozenset[str]()
        if self._config.policy_teacher is not None:
            first = self._policy_source(self._config.policy_teacher)
            expert_tasks = first.known
            members.append(self._member(first, self._terms & POLICY_TERMS, first.known))
        for source, tasks in self._shares():
            left = tasks - expert_tasks
            terms = self._terms if left else self._terms - POLICY_TERMS
            if terms:
                used = tasks if terms - POLICY_TERMS else left
                members.append(self._member(source, terms, used))
        return members

    def _policy_source(self, name: str) -> _Source:
        if not self._terms & POLICY_TERMS:
            raise InputError(
                f"the policy teacher {name} is not used: give --terms.policy-mse or "
                "--terms.policy-kl a weight, or leave it out"
            )
        source = self._read(name, self._config.tasks)
        if not source.known:
            tasks = ", ".join(self._student.tasks.names)
            raise UnknownTaskError(f"the policy teacher {name} has none of {tasks}")
        return source

    def _shares(self) -> list[tuple[_Source, frozenset[str]]]:
        """Share the tasks out: each goes to the first teacher that has it."""
        names = (self._config.teacher or "", *self._config.more_teachers)
        missing = frozenset(self._student.tasks.names)
        shares = []
        files = [name for name in names if not is_expert_folder(name)]
        named = dict(zip(files, share_names(files, self._config.tasks), strict=True))
        for name in names:
            source = self._read(name, named.get(name))
            shares.append((source, missing & source.known))
            missing -= source.known
        if missing:
            raise UnknownTaskError(
                f"no teacher has {', '.join(sorted(missing))}; named were "
                f"{', '.join(names)}: add one that does with --more-teachers, or leave these "
                "tasks out of the data"
            )
        idle = [source.name for source, tasks in shares if not tasks]
        if idle:
            raise InputError(
                f"{', '.join(idle)} is not used: the teachers before it have all tasks of "
                "the student; leave it out"
            )
        if self.latent and len(shares) > 1:
            raise InputError(
                "the latent term takes one teacher that has every task, since the latents of "
                "two have nothing in common; leave out --more-teachers or the weight"
            )
        return shares

    def _read(self, name: str, names: str | None) -> _Source:
        tasks = self._student.tasks
        if is_expert_folder(name):
            experts = load_experts(Path(name), tasks)
            return _Source(name, frozenset(experts), experts)
        # Of the values those that are used are checked, when it is built.
        checkpoint = read_checkpoint(name, check_values=False, tasks=names)
        require_names(name, checkpoint.tasks)
        known = [task for task in tasks.names if task in checkpoint.tasks.names]
        _require_same_sizes(name, checkpoint.tasks.subset(known), tasks)
        return _Source(name, frozenset(known), checkpoint)

    def _member(self, source: _Source, terms: frozenset[str], tasks: frozenset[str]) -> Member:
        mask = torch.tensor([name in tasks for name in self._student.tasks.names])
        return Member(self._build(source, terms), mask.to(self._device))

    def _build(self, source: _Source, terms: frozenset[str]) -> Teacher:
        tasks, content = self._student.tasks, source.content
        if isinstance(content, Checkpoint):
            self._require_same_bins(source.name, content, terms)
            # A cache keeps every row's reward, which may be the first of some slice.
            first_only = self._config.reward_steps == "first"
            question = Question(terms, first_only and self._config.teacher_cache is None)
            return WorldModelTeacher(content, tasks, question, self._device)
        unknown = sorted(terms - {"policy_mse"})
        if unknown:
            raise InputError(
                f"{source.name} is a folder of experts, which have mean actions alone and "
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
