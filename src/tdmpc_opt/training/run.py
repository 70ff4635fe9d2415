"""A run on disk: its folder, what identifies it, its exact state, and its learning curves."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from tdmpc_opt.agents.expert import is_expert_folder
from tdmpc_opt.checkpoints.checkpoint import from_model
from tdmpc_opt.checkpoints.load import read_checkpoint, resolve, share_names
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.checkpoints.torch_files import StateFolder
from tdmpc_opt.configs.common import cost_fields, recorded
from tdmpc_opt.configs.training import REMOVED, REMOVED_COST, TERMS, FromTeacher, TrainConfig
from tdmpc_opt.data.episodes import LISTING, EpisodeDataset
from tdmpc_opt.data.sampler import joint_tasks
from tdmpc_opt.errors import (
    CheckpointError,
    DataError,
    InputError,
    MissingDependencyError,
    RunError,
)
from tdmpc_opt.files import (
    CURVES,
    MODEL_FILE,
    STORED_PRESETS,
    file_identity,
    parse_json,
    remove_unfinished,
    repairable,
    require_same,
    sha256,
    written,
)
from tdmpc_opt.machine import ResultFile
from tdmpc_opt.progress import Progress
from tdmpc_opt.training.batches import Draws
from tdmpc_opt.training.losses import ModelLosses
from tdmpc_opt.training.step import Learner
from tdmpc_opt.training.teachers import teacher_identity

_UNFIT = (
    *(AttributeError, AssertionError, ArithmeticError, LookupError),
    *(RuntimeError, TypeError, ValueError),
)
"""What torch raises on states of another shape or kind."""


class Run:
    """The folder of one training run.

    Args:
        config: What to train; an existing run must have been started with the same.
        datasets: What it trains on, as the config names them; all but those of `on_policy` must
            not have changed either.
        writes: False for a rank that only reads what the first one writes.

    Raises:
        RunError: The folder holds another run, or cannot be written.
    """

    def __init__(
        self, config: TrainConfig, datasets: Sequence[EpisodeDataset], *, writes: bool = True
    ) -> None:
        self._writes = writes
        self.folder = config.output
        self.model_path = config.output / MODEL_FILE
        self._states = StateFolder(config.output, config.keep)
        self.identity = _identity(config, datasets)
        self._presets = _presets_of(config)
        path = config.output / "config.json"
        if (config.output / LISTING).exists():
            raise RunError(f"{config.output} has a dataset; name another folder for the run")
        try:
            if path.exists():
                stored_record(path, TrainConfig, self.identity)
            if not writes:
                return
            remove_unfinished(config.output)
            remove_unfinished(self._states.path)
        except OSError as error:
            raise RunError(f"cannot write the run folder {config.output}: {error}") from error
        ResultFile(path, "run", self.identity, RunError).write()

    def save(self, learner: Learner, draws: Draws) -> None:
        """Write the weights that other commands read, then the exact state.

        In this order a state is never newer than the weights: a run killed between the
        two repeats some updates. A rank that does not write does nothing.

        Raises:
            CheckpointError: A file cannot be written; the ones before it are still whole.
            RunError: A weight is NaN or infinite; nothing is written.
        """
        require_finite_weights(learner)
        if not self._writes:
            return
        extra = {"updates": str(learner.update), "run": json.dumps(self.identity)}
        extra |= self._presets
        write_native(self.model_path, from_model(learner.model, extra))
        self._states.save(learner.update, state_of(learner, draws))

    def restore(self, learner: Learner, draws: Draws, progress: Progress) -> None:
        """Go on where `save` was called last; a run without a state starts anew.

        Args:
            learner: Set to the content of the state.
            draws: Set to draw on from there.
            progress: Warned of a damaged state that the one before it stands in for.

        Raises:
            CheckpointError: All states are damaged, or the newest that can be read is not one
                of such a run.
        """
        state = self._states.newest(progress.warn)
        if state is None:
            return
        try:
            put_back(state, learner, draws)
        except (DataError, *_UNFIT) as error:
            raise CheckpointError(
                f"{self._states.path} holds a state that does not fit this run "
                f"({type(error).__name__}); delete it to start the run anew"
            ) from error


def require_finite_weights(learner: Learner) -> None:
    """Make sure that no weight is NaN or infinite.

    Raises:
        RunError: One is; no further batch can be learnt from.
    """
    if not all(bool(value.isfinite().all()) for value in learner.model.parameters()):
        raise RunError(
            f"a weight became NaN or infinite before update {learner.update + 1}; the "
            f"checkpoint in {learner.config.output} is from before that: lower --lr"
        )


def _stateful(learner: Learner, draws: Draws) -> dict[str, Any]:
    """Return what has a state of its own, by the name in a file of states."""
    parts = {
        "model": learner.model,
        "model_optimizer": learner.model_optimizer,
        "policy_optimizer": learner.policy_optimizer,
        "sampler": draws,
    }
    return parts if learner.projection is None else {**parts, "projection": learner.projection}


def state_of(learner: Learner, draws: Draws) -> dict[str, Any]:
    """Return the exact state of a run; its tensors are those that training changes."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "update": learner.update,
        "skipped": learner.skipped,
        "scale": learner.scale.value,
        "generator": learner.generator.get_state(),
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": cuda,
        **{name: part.state_dict() for name, part in _stateful(learner, draws).items()},
    }


def put_back(state: Mapping[str, Any], learner: Learner, draws: Draws) -> None:
    """Set learner and draws to a state of `state_of`."""
    learner.update = state["update"]
    learner.skipped = state["skipped"]
    for name, part in _stateful(learner, draws).items():
        part.load_state_dict(state[name])
    learner.scale.value = state["scale"].to(learner.scale.value.device)
    learner.generator.set_state(state["generator"])
    torch.set_rng_state(state["torch_rng"])
    if state["cuda_rng"] and torch.cuda.is_available():
        # What the first rank drew with, on its first GPU, for this rank's own.
        torch.cuda.set_rng_state(state["cuda_rng"][0], learner.scale.value.device)


def _identity(config: TrainConfig, datasets: Sequence[EpisodeDataset]) -> dict[str, Any]:
    """Describe the run by values alone: files by name and hash, so that no path matters."""
    values = recorded(config)
    fixed = [
        {
            "name": dataset.path.resolve().name,
            "episodes": len(dataset),
            "sha256": sha256(dataset.path / "dataset.json"),
        }
        for dataset in datasets[: len(config.folders)]
    ]
    values["data"] = fixed[0] if len(fixed) == 1 else fixed
    values["on_policy"] = config.on_policy and config.on_policy.resolve().name
    values["output"] = config.output.resolve().name
    start = resolve(config.start) if config.start else None
    values["start"] = start and file_identity(start)
    files = [name for name in config.agents if not is_expert_folder(name)]
    if config.tasks is not None and names_in_use(files, config.tasks) is None:
        raise InputError(
            "--tasks names the tasks of checkpoints that do not name them, and all of these "
            "do; leave it out"
        )
    if config.teacher is None:  # as records without a teacher always were
        for option in fields(FromTeacher):
            values.pop(option.name, None)
    else:
        tasks, policy = joint_tasks(datasets), config.policy_teacher
        more = [teacher_identity(name, tasks) for name in config.more_teachers]
        values["teacher"] = teacher_identity(config.teacher, tasks)
        values["more_teachers"] = more or None
        values["policy_teacher"] = policy and teacher_identity(policy, tasks)
        values["terms"] = {
            name: str(getattr(config.terms, name)) for name in config.terms.at(0)
        }
    return values


def _presets_of(config: TrainConfig) -> dict[str, str]:
    """Return the entry with the presets of the checkpoint that training starts from, if any.

    They stay: without its regularised presets a student that imitates plans far worse.
    """
    if not config.start:
        return {}
    extra = read_checkpoint(config.start, check_values=False, tasks=config.tasks).extra
    return {name: text for name, text in extra.items() if name == STORED_PRESETS}


def names_in_use(checkpoints: Sequence[str], names: str | None) -> str | None:
    """Return the names of tasks, or None where every one of the checkpoints has its own.

    Raises:
        CheckpointError: A checkpoint that cannot be read.
    """
    return names if any(share_names(checkpoints, names)) else None


def stored_record(path: Path, kind: type, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Read the record of a run of this kind of configuration.

    Raises:
        RunError: It cannot be read, or belongs to another run than the requested one.
    """
    with repairable(path, RunError):
        content = dict(parse_json(path.read_bytes()))
        found = dict(content["config"])
    cost = {*cost_fields(kind), *REMOVED_COST}
    require_same(path.parent, found, asked, RunError, cost=cost, removed=REMOVED)
    return content


COLUMNS = (
    "update",
    "loss",
    *(field.name for field in fields(ModelLosses)),
    "policy",
    "grad_norm",
    "policy_grad_norm",
    "q_scale",
    *(f"distill_{name}" for name in TERMS),
    *(f"weight_{name}" for name in TERMS),
    "updates_per_second",
    "score",
)
"""A column without a value in a run, or in a row, is empty."""


class MetricsWriter:
    """Appends rows to the curves of a run.

    Args:
        folder: Run folder.
        update: Updates that are done; later rows of an interrupted run are dropped.
        wandb: Log to Weights & Biases as well.

    Raises:
        RunError: The curves cannot be read or written.
        MissingDependencyError: wandb is requested and missing.
    """

    def __init__(self, folder: Path, update: int, *, wandb: bool = False) -> None:
        self._path = folder / CURVES
        rows: list[dict[str, str]] = []
        try:
            if self._path.exists():
                with self._path.open(newline="") as file:
                    # A crash may have cut off the last row; its missing fields read as None.
                    found = [row for row in csv.DictReader(file) if None not in row.values()]
                rows = [row for row in found if int(row["update"]) <= update]
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"cannot go on with {self._path}: {error}; delete it") from error
        with written(self._path, RunError) as temp, temp.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        self._board = TensorBoardLogger(
            folder, name="tensorboard", version="", purge_step=update
        )
        self._wandb: Any = None
        if wandb:
            try:
                import wandb as library
            except ModuleNotFoundError as error:
                raise MissingDependencyError(
                    "--wandb needs the package: pip install wandb"
                ) from error
            self._wandb = library.init(
                project="tdmpc-opt", name=folder.name, resume="allow", id=folder.name
            )

    def write(self, row: Mapping[str, int | float]) -> None:
        """Add one row; columns it lacks stay empty.

        Raises:
            RunError: The disk is full, or the folder went away.
        """
        try:
            with self._path.open("a", newline="") as file:
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error.strerror}") from error
        values = {name: value for name, value in row.items() if name != "update"}
        self._board.log_metrics(values, step=int(row["update"]))
        if self._wandb is not None:
            self._wandb.log(values, step=int(row["update"]))

    def close(self) -> None:
        """Flush the curves."""
        self._board.finalize("success")
        if self._wandb is not None:
            self._wandb.finish()
