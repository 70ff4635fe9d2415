"""The training loop on Lightning Fabric, with exact resume; it skips batches with NaN."""

import copy
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from tdmpc_opt.agents.compute import best_device, threads
from tdmpc_opt.checkpoints.checkpoint import build
from tdmpc_opt.checkpoints.load import read_checkpoint, require_names
from tdmpc_opt.configs.training import TrainConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.data.sampler import Batch, SliceSampler, joint_tasks
from tdmpc_opt.errors import NonFiniteError, RunError
from tdmpc_opt.files import MODEL_FILE, alone, refuse_overwrite
from tdmpc_opt.machine import choose_threads
from tdmpc_opt.model.world_model import WorldModel, with_termination_head
from tdmpc_opt.progress import Progress, Silent, expected
from tdmpc_opt.schema import model_config
from tdmpc_opt.training.batches import Draws, slices_of
from tdmpc_opt.training.distillation import Distillation, open_teachers
from tdmpc_opt.training.losses import model_losses, td_target
from tdmpc_opt.training.ranks import Ranks, join
from tdmpc_opt.training.run import (
    MetricsWriter,
    Run,
    put_back,
    require_finite_weights,
    state_of,
)
from tdmpc_opt.training.step import Learner, build_learner, train_step

EVAL_EPISODES = 2
"""Episodes per task of an evaluation during training."""
PERIODIC_SEED = 900_000
"""First environment seed of evaluations while training; no reported score uses it. The
search of planner budgets uses the same (`TUNING_SEED` in `configs/measure.py`), which is
harmless: the scores here are only shown, and the weights do not depend on them."""
_ESTIMATED_UPDATES = 20
"""From so many updates on, two are tried to estimate the time of all."""
_MOST_UNREAD = 50
"""Updates after which the host waits for a GPU, to learn whether their losses were finite."""


class _Discarded(Silent):
    """Progress that another one reports too."""

    def warn(self, text: str) -> None:
        pass


def train(config: TrainConfig, progress: Progress | None = None) -> Path:
    """Train a world model; the same call goes on with an interrupted run.

    Args:
        config: What to train, on which data, and with which teachers if any.
        progress: Takes losses and speed.

    Returns:
        The checkpoint that was written.

    Raises:
        DataError: The dataset is missing, damaged, foreign or holds NaN.
        RunError: The folder holds another run, another process trains in it, or too many
            batches brought NaN or infinity.
        CheckpointError: A checkpoint or expert that cannot be read or written.
        UnknownTaskError: No teacher has a task of the student.
        InputError: Teachers without an output that a term needs, that are not used, or
            whose rewards or values are far from the data's.
    """
    refuse_overwrite(config)
    growing = () if config.on_policy is None else (config.on_policy,)
    datasets = [EpisodeDataset.open(folder) for folder in (*config.folders, *growing)]
    # Import no module because a dataset says so, which driving the user's own tasks would.
    own = [task.name for task in joint_tasks(datasets).tasks if task.env]
    if config.eval_every and own:
        raise RunError(
            f"--eval-every cannot drive tasks of your own ({', '.join(own)}); leave it out "
            "and score the checkpoint with tdmpc-opt evaluate --tasks"
        )
    # The projection of the latent term is not used where a schedule sets all weights to 0.
    projected = config.teacher is not None and "latent" in config.terms.at(0)
    fabric, ranks = join(best_device(config.device), some_unused=projected)
    progress = (progress or Silent()) if ranks.is_first else _Discarded()
    chosen = choose_threads(config.threads)
    with threads(chosen.count, config.matmul):
        model, draws, distillation = _prepare(config, datasets, fabric.device, ranks, progress)
        with _opened_run(config, datasets, ranks) as run:
            ranks.require_same(run.identity, "run")
            learner = build_learner(fabric, model, config, distillation, ranks)
            run.restore(learner, draws, progress)
            ranks.require_same(learner.update, "checkpoint")
            note, left = f"threads: {chosen}", config.updates - learner.update
            if left >= _ESTIMATED_UPDATES:
                state = copy.deepcopy(state_of(learner, draws))
                note += expected(left * _seconds_per_update(learner, draws))
                put_back(state, learner, draws)
            progress.update(learner.update, config.updates, note)
            _loop(learner, draws, run, progress)
    return run.model_path


def seconds_per_update(config: TrainConfig) -> float:
    """Measure an update of a run that has not begun, without its on-policy data.

    Raises:
        As `train`, except for its output.
    """
    datasets = [EpisodeDataset.open(folder) for folder in config.folders]
    bare = replace(config, on_policy=None, on_policy_share=None)
    fabric, ranks = join(best_device(config.device))
    with threads(choose_threads(config.threads).count, config.matmul):
        # The run itself reports what `_prepare` finds.
        model, draws, found = _prepare(bare, datasets, fabric.device, ranks, _Discarded())
        return _seconds_per_update(build_learner(fabric, model, bare, found, ranks), draws)


def _prepare(
    config: TrainConfig,
    datasets: Sequence[EpisodeDataset],
    device: torch.device,
    ranks: Ranks,
    progress: Progress,
) -> tuple[WorldModel, Draws, Distillation | None]:
    """Return what a run begins with, on every rank the same model."""
    torch.manual_seed(config.seed)
    model = _initial_model(config, datasets)
    draws = Draws(config, datasets, model.tasks, ranks)
    return model, draws, open_teachers(config, model, datasets, device, progress)


def compare_teachers(config: TrainConfig, progress: Progress) -> None:
    """Compare what the teachers of a run foresee with its data, as `train` does before it.

    Raises:
        As `train`, except for its output.
    """
    fabric, ranks = join(best_device(config.device))
    datasets = [EpisodeDataset.open(folder) for folder in config.folders]
    _prepare(config, datasets, fabric.device, ranks, progress)


def _initial_model(config: TrainConfig, datasets: Sequence[EpisodeDataset]) -> WorldModel:
    """Return the model to train; it predicts terminations where the data have some."""
    episodic, own = any(dataset.episodic for dataset in datasets), config.output / MODEL_FILE
    if episodic and own.exists():  # rounds may have added the first to a run without
        episodic = read_checkpoint(own, check_values=False).config.episodic
    generator = torch.Generator().manual_seed(config.seed)
    if config.start:
        start = read_checkpoint(config.start, check_values=False, tasks=config.tasks)
        require_names(config.start, start.tasks)
        return with_termination_head(build(start), generator) if episodic else build(start)
    tasks = joint_tasks(datasets)
    sizes = replace(model_config(config.size, tasks), episodic=episodic)
    return WorldModel(sizes, tasks, generator)


@contextmanager
def _opened_run(
    config: TrainConfig, datasets: Sequence[EpisodeDataset], ranks: Ranks
) -> Iterator[Run]:
    """Open the folder, out of which the first rank keeps other processes for all."""
    with ExitStack() as held:
        with ranks.first_alone():
            if ranks.is_first:
                held.enter_context(alone(config.output / MODEL_FILE))
            run = Run(config, datasets, writes=ranks.is_first)
        yield run


def _seconds_per_update(learner: Learner, draws: Draws) -> float:
    """Time an update, after one that does not count; 0 where training can only fail."""
    seconds = list[float]()
    for _ in range(learner.config.max_skipped + 2):
        start = time.perf_counter()
        try:
            batch, labelled = draws.sample(learner.fabric.device)
            terms = train_step(learner, batch, labelled)
        except NonFiniteError:  # the training meets it as well, and reports it
            continue
        float(terms["loss"])  # waits for the device
        seconds.append(time.perf_counter() - start)
        if len(seconds) == 2:
            break
    return seconds[-1] if seconds else 0.0


def _loop(learner: Learner, draws: Draws, run: Run, progress: Progress) -> None:
    """Update to the end; a row of the curves, a score or a state where it is due."""
    config, ranks = learner.config, learner.ranks
    faults = FaultKeeper(learner, draws.slices, progress)
    window, note = _Window(learner.update), ""

    curves: AbstractContextManager[MetricsWriter | None] = nullcontext()
    if ranks.is_first:
        curves = closing(MetricsWriter(run.folder, learner.update, wandb=config.wandb))
    with curves as metrics, _interrupt_between_updates() as interrupted:
        while learner.update < config.updates:
            batch = None
            try:
                batch, labelled = draws.sample(learner.fabric.device)
                terms = train_step(learner, batch, labelled)
            except NonFiniteError as error:
                faults.skip(error, batch)
                continue
            faults.read_later(terms)
            window.add(terms)
            # Once: a signal from here on waits for the next update.
            stop = ranks.any(bool(interrupted))
            last = learner.update == config.updates or stop
            saved, scored = (
                last or _due(learner, config.save_every),
                _due(learner, config.eval_every),
            )
            if saved:
                faults.read()
            if last or scored or _due(learner, config.log_every):
                row = window.row(learner.update, ranks)
                if scored:
                    row["score"] = _score(learner.model, ranks)
                window = _Window(learner.update)  # its speed is that of the updates alone
                if metrics is not None:
                    metrics.write(row)
                note = f"loss {row['loss']:.3f}, {row['updates_per_second']:.1f} updates/s"
            progress.update(learner.update, config.updates, note)
            if saved:
                run.save(learner, draws)
            if stop:
                raise KeyboardInterrupt


def _due(learner: Learner, every: int) -> bool:
    return every > 0 and learner.update % every == 0


class FaultKeeper:
    """Counts the batches that were skipped, over resumes too.

    Args:
        learner: Has the count, and the networks that find the slice at fault.
        sampler: Has the origin of each slice.
        progress: Warned of each.
    """

    def __init__(self, learner: Learner, sampler: SliceSampler, progress: Progress) -> None:
        self._learner, self._sampler, self._progress = learner, sampler, progress
        self._unread: list[tuple[int, Tensor]] = []

    def skip(self, error: NonFiniteError, batch: Batch | None) -> None:
        """Warn of a batch, or stop the run.

        Args:
            error: What was found.
            batch: Where it was found while training; None if the data itself holds it.

        Raises:
            RunError: More batches than allowed were skipped.
        """
        learner, most = self._learner, self._learner.config.max_skipped
        fault = f"update {learner.update + 1}: {error}"
        if batch is not None:
            require_finite_weights(learner)
            fault += f" {self._blame(batch)}"
        if learner.skipped == most:
            raise RunError(
                f"{fault}; stopped, for {learner.skipped} batches were skipped before; the "
                f"checkpoint in {learner.config.output} is whole: repair the data or lower "
                "--lr, or allow more with --max-skipped"
            ) from error
        learner.skipped += 1
        self._progress.warn(f"{fault}; batch skipped ({learner.skipped} of at most {most})")

    def read_later(self, terms: dict[str, Tensor]) -> None:
        """Take from the terms of the newest update whether its losses were finite.

        Raises:
            RunError: As `read`.
        """
        if "finite" in terms:
            self._unread.append((self._learner.update, terms.pop("finite")))
        if len(self._unread) == _MOST_UNREAD:
            self.read()

    def read(self) -> None:
        """Wait for the device, and report the updates that it left out.

        Raises:
            RunError: More batches than allowed were skipped.
        """
        unread, self._unread = self._unread, []
        flags = torch.stack([finite for _, finite in unread]).tolist() if unread else []
        for (number, _), finite in zip(unread, flags, strict=True):
            if not finite:  # of an older batch the sampler does not know the slices any more
                what = f"the loss or a gradient of update {number} was NaN or infinite"
                self.skip(NonFiniteError(what), None)

    def _blame(self, batch: Batch) -> str:
        ranks = self._learner.ranks
        columns = self._find(batch, range(batch.task.numel()))
        found = ranks.gather([self._sampler.origin(column) for column in columns])
        origins = [origin for of_rank in found for origin in of_rank]
        if not origins:
            return "though no slice of the batch is at fault alone"
        more = f" and {len(origins) - 3} more" if len(origins) > 3 else ""
        all_at_fault = len(origins) == batch.task.numel() * ranks.count
        every = ", every slice of the batch" if all_at_fault else ""
        return f"by {'; '.join(origins[:3])}{more}{every}"

    def _find(self, batch: Batch, columns: Sequence[int]) -> Sequence[int]:
        """Halve the batch until each slice at fault is alone."""
        if self._is_finite(slices_of(batch, slice(columns[0], columns[-1] + 1))):
            return []
        if len(columns) == 1:
            return columns
        middle = len(columns) // 2
        return [*self._find(batch, columns[:middle]), *self._find(batch, columns[middle:])]

    @torch.no_grad()
    def _is_finite(self, batch: Batch) -> bool:
        config, model = self._learner.config, self._learner.model.eval()
        # Its own noise: finding a fault must not change what the run draws next.
        generator = torch.Generator().manual_seed(config.seed)
        next_z = model.encode(batch.obs[1:], batch.task)
        target = td_target(model, next_z, batch, generator)
        losses, _ = model_losses(model, batch, next_z, target, config.weights)
        return bool(losses.total(config.weights).isfinite())


class _Window:
    """Means of the loss terms since the last row of the curves."""

    def __init__(self, update: int) -> None:
        self._sums: dict[str, Tensor] = {}
        self._first = update
        self._time = time.perf_counter()

    def add(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():  # a term may be missing while its weight is 0
            self._sums[name] = self._sums.get(name, 0) + value

    def row(self, update: int, ranks: Ranks) -> dict[str, int | float]:
        """Return the row of the updates to this one, of the whole batch."""
        count, sums = update - self._first, self._sums
        if ranks.count > 1 and sums:
            summed = torch.stack([total.detach().cpu().double() for total in sums.values()])
            sums = dict(zip(sums, ranks.mean(summed), strict=True))
        means = {name: float(total) / count for name, total in sums.items()}
        speed = count / (time.perf_counter() - self._time)
        return {"update": update, **means, "updates_per_second": speed}


def _score(model: WorldModel, ranks: Ranks) -> float:
    """Return the normalised score of the policy alone, on seeds no dataset holds.

    Ranks share the tasks.
    """
    # Here, since a run without scores needs no simulator and no planner.
    from tdmpc_opt.agents.agent import Agent
    from tdmpc_opt.agents.rollout import agent_policy, rollout
    from tdmpc_opt.evaluation.score import normalized_score

    policy = agent_policy(Agent(model.eval(), mode="policy"))
    names = model.tasks.names
    own: dict[str, list[float]] = {}
    for index in range(ranks.rank, len(names), ranks.count):
        seeds = range(PERIODIC_SEED, PERIODIC_SEED + EVAL_EPISODES)
        streams = [(PERIODIC_SEED, index, k) for k in range(EVAL_EPISODES)]
        found = rollout(policy, names[index], seeds, streams)
        own[names[index]] = [episode.total_reward for episode in found]
    returns = {name: row for of_rank in ranks.gather(own) for name, row in of_rank.items()}
    return normalized_score({name: returns[name] for name in names}).mean


@contextmanager
def _interrupt_between_updates() -> Iterator[list[int]]:
    """Turn the first Ctrl-C or SIGTERM into a mark that the loop heeds; the next one acts."""
    marks: list[int] = []
    previous: dict[int, Any] = {}

    def mark(number: int, frame: FrameType | None) -> None:
        marks.append(number)
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, mark)
    except ValueError:
        pass  # not the main thread: whoever owns that one handles signals
    try:
        yield marks
    finally:
        restore()
