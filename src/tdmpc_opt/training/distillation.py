"""Distillation of large agents into a small one: which teacher is used for what.

Source: TD-MPC-Opt, arXiv:2507.01823, section 3.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tdmpc_opt.agents.expert import ExpertNetwork, is_expert_folder
from tdmpc_opt.checkpoints.checkpoint import Checkpoint
from tdmpc_opt.checkpoints.load import read_checkpoint, require_names, share_names
from tdmpc_opt.configs.training import DistillWeights, TrainConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.data.sampler import Batch, SliceSampler
from tdmpc_opt.errors import InputError, NonFiniteError, UnknownTaskError
from tdmpc_opt.files import REGULARIZED
from tdmpc_opt.model import two_hot
from tdmpc_opt.model.layers import Dense
from tdmpc_opt.model.world_model import WorldModel, bin_centres
from tdmpc_opt.progress import Progress
from tdmpc_opt.schema import TaskTable
from tdmpc_opt.training.batches import on_device
from tdmpc_opt.training.losses import Supervision
from tdmpc_opt.training.teachers import (
    OUTPUTS,
    POLICY_TERMS,
    ExpertTeacher,
    Member,
    Panel,
    Teacher,
    WorldModelTeacher,
    load_experts,
)

TWO_HOT_TERMS = frozenset({"reward_kl", "value_kl"})
"""Terms that compare distributions over bins, which must then be the same bins."""
_CHECKED_SLICES = 64
_BROKEN = 10.0
"""Factor by which rewards and values may be off before a teacher is refused."""
_UNLIKELY = 2.0
"""Factor above which they are warned of; a teacher that always foresees nothing is at 1."""
_LEAST_REWARD = 0.1
"""Scale of rewards that counts at least: data may have none but zeros."""


@dataclass(frozen=True, slots=True)
class Distillation:
    """How a student learns from its teachers."""

    teachers: Teacher
    """Their outputs for a batch, without gradients."""
    weights: DistillWeights
    projection: Dense | None
    """Trained with the student and thrown away: from its latents to the teacher's."""

    def supervision(self, batch: Batch, update: int) -> Supervision:
        """Return the teachers' outputs for a batch on their device; none at weights of 0.

        Args:
            batch: Slices.
            update: Updates done.
        """
        weights = self.weights.at(update)
        targets = self.teachers(batch) if any(weights.values()) else None
        return Supervision(targets, weights)


def open_teachers(
    config: TrainConfig,
    student: WorldModel,
    datasets: Sequence[EpisodeDataset],
    device: torch.device,
    progress: Progress,
) -> Distillation | None:
    """Load the teachers of a run, checked against its data; None where nothing uses one.

    Raises:
        CheckpointError: A checkpoint or expert that cannot be read.
        UnknownTaskError: No teacher has a task of the student.
        InputError: Teachers without an output that a term needs, that are not used, or
            whose rewards or values are far from the data's.
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
    _check_teachers(found.teachers, on_device(batch, device), student, progress)
    return found


def _finite_batch(sampler: SliceSampler, may_skip: int) -> Batch:
    """Draw a batch without NaN; of those with, training may skip as many."""
    for _ in range(may_skip):
        try:
            return sampler.sample()
        except NonFiniteError:
            continue  # training meets it too, and names it
    return sampler.sample()


def _check_teachers(
    teachers: Teacher, batch: Batch, student: WorldModel, progress: Progress
) -> None:
    """Compare what the teachers foresee with the data, before hours of training on it.

    Rewards are compared with those of the data, by root mean squares. A value may be as large
    as the data's largest reward in every step to come.
    """
    found, bins = teachers(batch), bin_centres(student.config).to(batch.obs.device)
    rewards = found.reward
    if found.reward_logits is not None:
        rewards = two_hot.decode(found.reward_logits, bins).unsqueeze(-1)
    if rewards is not None:
        real = batch.reward[: len(rewards)]
        scale = max(_rms(real), _LEAST_REWARD)
        _judge("rewards", _rms(rewards - real) / scale, "differ from the data's by", progress)
    if found.value_logits is not None:
        values = two_hot.decode(found.value_logits, bins)
        discounts = torch.from_numpy(student.tasks.discounts()).to(bins.device)[batch.task]
        largest = max(float(batch.reward.abs().max()), _LEAST_REWARD) / (1 - discounts)
        _judge("values", _rms(values / largest), "are above what the data allows by", progress)


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


class _Source(NamedTuple):
    """A teacher that is read but not built yet."""

    name: str
    known: frozenset[str]
    """Those of the student's tasks that it has."""
    content: Checkpoint | Mapping[str, ExpertNetwork]


def open_distillation(
    config: TrainConfig, student: WorldModel, device: torch.device
) -> Distillation | None:
    """Load the teachers that the terms with a weight need; None without either.

    Raises:
        CheckpointError: A checkpoint or expert that cannot be read.
        UnknownTaskError: No teacher has a task of the student.
        InputError: Teachers without an output that a term needs, or that are not used.
    """
    terms = frozenset(config.terms.at(0))
    if config.teacher is None or not terms:
        return None
    members, expert_tasks = list[Member](), frozenset[str]()

    def add(source: _Source, terms: Set[str], tasks: Set[str]) -> None:
        answers = torch.tensor([name in tasks for name in student.tasks.names]).to(device)
        members.append(Member(_built(source, terms, config, student, device), answers))

    if config.policy_teacher is not None:
        first = _policy_teacher(config.policy_teacher, config, student.tasks)
        expert_tasks = first.known
        add(first, terms & POLICY_TERMS, expert_tasks)
    for source, tasks in _shares(config, student.tasks):
        left = tasks - expert_tasks
        used = terms if left else terms - POLICY_TERMS
        if used:
            add(source, used, tasks if used - POLICY_TERMS else left)
    projection = None
    if "latent" in terms:
        teacher = members[-1].teacher
        assert isinstance(teacher, WorldModelTeacher), "experts have no latents"
        projection = Dense(
            student.config.latent_dim,
            teacher.config.latent_dim,
            activation="none",
            simnorm_dim=teacher.config.simnorm_dim,
        )
        projection.initialize(torch.Generator().manual_seed(config.seed))
    return Distillation(Panel(members), config.terms, projection)


def _policy_teacher(name: str, config: TrainConfig, tasks: TaskTable) -> _Source:
    if not config.terms.at(0).keys() & POLICY_TERMS:
        raise InputError(
            f"the policy teacher {name} is not used: give --terms.policy-mse or "
            "--terms.policy-kl a weight, or leave it out"
        )
    source = _read(name, config.tasks, tasks)
    if not source.known:
        raise UnknownTaskError(
            f"the policy teacher {name} has none of {', '.join(tasks.names)}"
        )
    return source


def _shares(config: TrainConfig, tasks: TaskTable) -> list[tuple[_Source, frozenset[str]]]:
    """Share the tasks out: each goes to the first teacher that has it."""
    assert config.teacher is not None, "the caller has asked"
    names = (config.teacher, *config.more_teachers)
    missing = frozenset(tasks.names)
    shares = []
    files = [name for name in names if not is_expert_folder(name)]
    named = dict(zip(files, share_names(files, config.tasks), strict=True))
    for name in names:
        source = _read(name, named.get(name), tasks)
        shares.append((source, missing & source.known))
        missing -= source.known
    if missing:
        raise UnknownTaskError(
            f"no teacher has {', '.join(sorted(missing))}; named were {', '.join(names)}: add "
            "one that does with --more-teachers, or leave these tasks out of the data"
        )
    idle = [source.name for source, own in shares if not own]
    if idle:
        raise InputError(
            f"{', '.join(idle)} is not used: the teachers before it have all tasks of the "
            "student; leave it out"
        )
    if "latent" in config.terms.at(0) and len(shares) > 1:
        raise InputError(
            "the latent term takes one teacher that has every task, since the latents of two "
            "have nothing in common; leave out --more-teachers or the weight"
        )
    return shares


def _read(name: str, names: str | None, tasks: TaskTable) -> _Source:
    if is_expert_folder(name):
        experts = load_experts(Path(name), tasks)
        return _Source(name, frozenset(experts), experts)
    # Of the values those that are used are checked, when it is built.
    checkpoint = read_checkpoint(name, check_values=False, tasks=names)
    require_names(name, checkpoint.tasks)
    known = [task for task in tasks.names if task in checkpoint.tasks.names]
    for own, theirs in ((tasks[task], checkpoint.tasks[task]) for task in known):
        if (theirs.obs_dim, theirs.action_dim) != (own.obs_dim, own.action_dim):
            raise InputError(
                f"{own.name} has {own.obs_dim} observations and {own.action_dim} actions in "
                f"the data, {theirs.obs_dim} and {theirs.action_dim} in {name}: it is another "
                "task"
            )
    return _Source(name, frozenset(known), checkpoint)


def _built(
    source: _Source,
    terms: Set[str],
    config: TrainConfig,
    student: WorldModel,
    device: torch.device,
) -> Teacher:
    content = source.content
    if not isinstance(content, Checkpoint):
        unknown = sorted(term for term in terms if OUTPUTS[term] != {"policy_location"})
        if unknown:
            raise InputError(
                f"{source.name} is a folder of experts, which have mean actions alone and "
                f"nothing for {', '.join(unknown)}: name a checkpoint, or set the weight to 0"
            )
        return ExpertTeacher(content, student.tasks, device)
    if REGULARIZED in content.extra and {"reward_mse", "reward_kl"} & terms:
        raise InputError(
            f"{source.name} has regularised rewards, which are not the environment's: name the "
            f"file it was made from ({content.extra.get('source', 'unknown')}), or set the "
            "weights of the reward terms to 0"
        )
    ours, theirs = student.config, content.config
    wrong = sorted(terms & TWO_HOT_TERMS)
    if wrong and (ours.num_bins, ours.bin_limit) != (theirs.num_bins, theirs.bin_limit):
        raise InputError(
            f"{', '.join(wrong)} compares bin by bin, but {source.name} has {theirs.num_bins} "
            f"bins up to {theirs.bin_limit} and the student {ours.num_bins} up to "
            f"{ours.bin_limit}; use --terms.reward-mse"
        )
    first_only = config.reward_steps == "first"
    return WorldModelTeacher(
        content, student.tasks, terms, device, first_reward_only=first_only
    )
