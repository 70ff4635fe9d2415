"""The training loop on Lightning Fabric, with exact resume."""

import copy
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from tdmpc_opt.agents.agent import Agent, best_device
from tdmpc_opt.agents.executor import choose_threads
from tdmpc_opt.agents.policies import agent_policy, rollout, threads
from tdmpc_opt.checkpoints.checkpoint import build
from tdmpc_opt.checkpoints.load import read_checkpoint, require_names
from tdmpc_opt.configs import TrainConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.data.sampler import Batch, joint_tasks
from tdmpc_opt.errors import NonFiniteError, RunError
from tdmpc_opt.evaluation.score import normalized_score
from tdmpc_opt.files import alone, refuse_overwrite
from tdmpc_opt.model.world_model import WorldModel, with_termination_head
from tdmpc_opt.progress import Progress, Silent, expected
from tdmpc_opt.schema import model_config
from tdmpc_opt.training.batches import Draws, FaultKeeper
from tdmpc_opt.training.distillation import open_teachers
from tdmpc_opt.training.objective import moved
from tdmpc_opt.training.ranks import Ranks, join
from tdmpc_opt.training.run import MODEL, MetricsWriter, Run, put_back, state_of
from tdmpc_opt.training.step import Learner, build_learner, train_step
from tdmpc_opt.training.terms import Distillation

EVAL_EPISODES = 2
"""Episodes per task of an evaluation during training."""
_MOST_UNREAD = 50
"""Updates after which the host waits for a GPU, to learn whether their losses were finite."""
_ESTIMATED_UPDATES = 20
"""From so many updates on, two are tried to estimate the time of all."""
PERIODIC_SEED = 900_000
"""First environment seed of evaluations while training; no reported score uses it."""


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
    datasets, progress = open_data(config), progress or Silent()
    _refuse_own_tasks(config, datasets)
    # The projection of the latent term is not used where a schedule sets all weights to 0.
    projected = config.teacher is not None and "latent" in config.terms.at(0)
    device = best_device(config.device)
    fabric, ranks = join(device, some_unused=projected)
    progress = progress if ranks.is_first else _Discarded()
    chosen = choose_threads(config.threads)
    with threads(chosen.count, config.matmul):
        return _run(config, datasets, progress, fabric, ranks, f"threads: {chosen}")


def seconds_per_update(config: TrainConfig) -> float:
    """Measure an update of a run that has not begun, without its on-policy data.

    Raises:
        As `train`, except for its output.
    """
    datasets = [EpisodeDataset.open(folder) for folder in config.folders]
    # Filling a cache is no part of an update: teachers compute here, which takes longer.
    alone = replace(config, on_policy=None, on_policy_share=None, teacher_cache=None)
    fabric, ranks = join(best_device(config.device), some_unused=False)
    with threads(choose_threads(config.threads).count, config.matmul):
        model = _initial_model(alone, datasets)
        draws, found = Draws(alone, datasets, model.tasks, ranks), None
        if config.teacher is not None:
            found = open_teachers(alone, model, datasets, fabric.device, ranks, Silent())
        projection = None if found is None else found.projection
        learner = build_learner(fabric, model, alone, projection, ranks)
        return _seconds_per_update(fabric, learner, draws, alone, found)


def open_data(config: TrainConfig) -> list[EpisodeDataset]:
    """Open the datasets of a run, the one that may grow last.

    Raises:
        DataError: One is missing or damaged.
    """
    growing = () if config.on_policy is None else (config.on_policy,)
    return [EpisodeDataset.open(folder) for folder in (*config.folders, *growing)]


@contextmanager
def _opened_run(
    config: TrainConfig, datasets: Sequence[EpisodeDataset], ranks: Ranks
) -> Iterator[Run]:
    """Open the folder, out of which the first rank keeps other processes for all.

    Raises:
        RunError: Another process trains in it, it holds another run, or cannot be written.
    """
    with ExitStack() as held:
        with ranks.first_alone():
            if ranks.is_first:
                held.enter_context(alone(config.output / MODEL))
            run = Run(config, datasets, writes=ranks.is_first)
        yield run


def _run(
    config: TrainConfig,
    datasets: Sequence[EpisodeDataset],
    progress: Progress,
    fabric: Fabric,
    ranks: Ranks,
    note: str,
) -> Path:
    torch.manual_seed(config.seed)
    model = _initial_model(config, datasets)
    draws = Draws(config, datasets, model.tasks, ranks)
    distillation = None
    if config.teacher is not None:
        distillation = open_teachers(config, model, datasets, fabric.device, ranks, progress)
    with _opened_run(config, datasets, ranks) as run:
        ranks.require_same(run.identity, "run")
        projection = distillation.projection if distillation else None
        learner = build_learner(fabric, model, config, projection, ranks)
        run.restore(learner, draws, progress)
        ranks.require_same(learner.update, "checkpoint")
        left = config.updates - learner.update
        if left >= _ESTIMATED_UPDATES:
            state = copy.deepcopy(state_of(learner, draws))
            note += expected(
                left * _seconds_per_update(fabric, learner, draws, config, distillation)
            )
            put_back(state, learner, draws)
        progress.update(learner.update, config.updates, note)
        with _curves(run, learner, config) as metrics:
            _loop(fabric, learner, draws, run, metrics, config, (distillation, progress))
    return run.model_path


def _seconds_per_update(
    fabric: Fabric,
    learner: Learner,
    draws: Draws,
    config: TrainConfig,
    distillation: Distillation | None,
) -> float:
    """Time an update, after one that does not count; 0 where training can only fail."""
    seconds = list[float]()
    for _ in range(config.max_skipped + 2):
        start = time.perf_counter()
        try:
            drawn, more = _sample(draws, learner.ranks)
            batch = _to_device(fabric, drawn)
            terms = _learn(fabric, learner, batch, more, config, distillation)
        except NonFiniteError:  # the training meets it as well, and reports it
            continue
        float(terms["loss"])  # waits for the device
        seconds.append(time.perf_counter() - start)
        if len(seconds) == 2:
            break
    return seconds[-1] if seconds else 0.0


class _Discarded:
    """Progress of a non-zero rank; discarded."""

    def update(self, done: int, total: int, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass


@contextmanager
def _curves(run: Run, learner: Learner, config: TrainConfig) -> Iterator[MetricsWriter | None]:
    """Open the curves; None on ranks that do not write them."""
    if not learner.ranks.is_first:
        yield None
        return
    metrics = MetricsWriter(run.folder, learner.update, wandb=config.wandb)
    try:
        yield metrics
    finally:
        metrics.close()


def _refuse_own_tasks(config: TrainConfig, datasets: Sequence[EpisodeDataset]) -> None:
    """Import no module because a dataset says so, which driving the user's own tasks would."""
    own = [task.name for task in joint_tasks(datasets).tasks if task.env]
    if config.eval_every and own:
        raise RunError(
            f"--eval-every cannot drive tasks of your own ({', '.join(own)}); leave it out "
            "and score the checkpoint with tdmpc-opt evaluate --tasks"
        )


def _initial_model(config: TrainConfig, datasets: Sequence[EpisodeDataset]) -> WorldModel:
    """Return the model to train; it predicts terminations where the data have some."""
    episodic, own = any(dataset.episodic for dataset in datasets), config.output / MODEL
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


def _loop(
    fabric: Fabric,
    learner: Learner,
    draws: Draws,
    run: Run,
    metrics: MetricsWriter | None,
    config: TrainConfig,
    rest: tuple[Distillation | None, Progress],
) -> None:
    distillation, progress = rest
    ranks, window = learner.ranks, _Window(learner.update)
    faults = FaultKeeper(learner, draws.slices, config, progress)
    note, unread = "", list[tuple[int, Tensor]]()
    with _interrupt_between_updates() as interrupted:
        while learner.update < config.updates:
            batch = None
            try:
                drawn, more = _sample(draws, ranks)
                batch = _to_device(fabric, drawn)
                terms = _learn(fabric, learner, batch, more, config, distillation)
            except NonFiniteError as error:
                faults.skip(error, batch)
                continue
            if not learner.waits:
                unread.append((learner.update, terms.pop("finite")))
            window.add(terms)
            stop = ranks.any(
                bool(interrupted)
            )  # once: a signal from here on waits for the next update
            last = learner.update == config.updates or stop
            scored = _is_due(learner.update, config.eval_every)
            if (
                _is_due(learner.update, config.save_every)
                or last
                or len(unread) == _MOST_UNREAD
            ):
                _read(unread, faults)
            if _is_due(learner.update, config.log_every) or scored or last:
                row = window.close(learner.update, ranks)
                if scored:
                    row["score"] = _score(learner.model, EVAL_EPISODES, ranks)
                if metrics is not None:
                    metrics.write(row)
                note = f"loss {row['loss']:.3f}, {row['updates_per_second']:.1f} updates/s"
            progress.update(learner.update, config.updates, note)
            if _is_due(learner.update, config.save_every) or last:
                run.save(learner, draws)
            if stop:
                raise KeyboardInterrupt


def _learn(
    fabric: Fabric,
    learner: Learner,
    batch: Batch,
    more: Batch | None,
    config: TrainConfig,
    distillation: Distillation | None,
) -> dict[str, Tensor]:
    """Do one update with a batch on the device, and further slices on the CPU."""
    labelled = more and _to_device(fabric, more)
    supervision = distillation.supervision(batch, learner.update) if distillation else None
    return train_step(fabric, learner, batch, config, supervision, labelled)


def _read(unread: list[tuple[int, Tensor]], faults: FaultKeeper) -> None:
    """Wait for the device, and report the updates that it left out."""
    flags = torch.stack([finite for _, finite in unread]).tolist() if unread else []
    for (number, _), finite in zip(unread, flags, strict=True):
        if not finite:  # of an older batch the sampler does not know the slices any more
            what = f"the loss or a gradient of update {number} was NaN or infinite"
            faults.skip(NonFiniteError(what), None)
    unread.clear()


def _is_due(update: int, every: int) -> bool:
    return every > 0 and update % every == 0


def _sample(draws: Draws, ranks: Ranks) -> tuple[Batch, Batch | None]:
    """Draw this rank's slices of the next batch; if any rank's hold NaN, all skip the batch."""
    drawn, fault = None, None
    try:
        drawn = draws.sample()
    except NonFiniteError as error:
        fault = error
    ranks.raise_together(fault)
    assert drawn is not None, "a rank without a batch has raised"
    return drawn


def _to_device(fabric: Fabric, batch: Batch) -> Batch:
    names = ["obs", "action", "label", "reward", "task"]  # the rows' numbers stay on the CPU
    names += ["terminated"] if batch.terminated is not None else []
    return replace(
        batch, **{name: moved(getattr(batch, name), fabric.device) for name in names}
    )


class _Window:
    """Means of the loss terms since the last row of the curves."""

    def __init__(self, update: int) -> None:
        self._sums: dict[str, Tensor] = {}
        self._start(update)

    def _start(self, update: int) -> None:
        self._sums = {}
        self._first = update
        self._time = time.perf_counter()

    def add(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():  # a term may be missing while its weight is 0
            self._sums[name] = self._sums.get(name, 0) + value

    def close(self, update: int, ranks: Ranks) -> dict[str, int | float]:
        """Return the row, of the whole batch, and begin the next."""
        count = update - self._first
        if ranks.count > 1 and self._sums:
            summed = torch.stack(
                [total.detach().cpu().double() for total in self._sums.values()]
            )
            self._sums = dict(zip(self._sums, ranks.mean(summed), strict=True))
        means = {name: float(total) / count for name, total in self._sums.items()}
        seconds = time.perf_counter() - self._time
        self._start(update)
        return {"update": update, **means, "updates_per_second": count / seconds}


def _score(model: WorldModel, episodes: int, ranks: Ranks) -> float:
    """Return the normalised score of the policy alone, on seeds no dataset holds.

    Ranks share the tasks.
    """
    policy = agent_policy(Agent(model.eval(), mode="policy"))
    names = model.tasks.names
    own: dict[str, list[float]] = {}
    for index in range(ranks.rank, len(names), ranks.count):
        name = names[index]
        seeds = range(PERIODIC_SEED, PERIODIC_SEED + episodes)
        streams = [(PERIODIC_SEED, index, k) for k in range(episodes)]
        found = rollout(policy, name, seeds, streams)
        own[name] = [episode.total_reward for episode in found]
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
    except ValueError:  # not the main thread: whoever owns that one handles signals
        previous.clear()
    try:
        yield marks
    finally:
        restore()
