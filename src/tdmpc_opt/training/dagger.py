"""On-policy correction: the student acts, the teacher labels, the training continues.

Source: DAgger, arXiv:1011.0686, with the student alone acting in every round.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from tdmpc_opt.agents.collect import collect
from tdmpc_opt.agents.sources import CheckpointSource, identify, open_source
from tdmpc_opt.agents.timing import seconds_of
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.torch_files import StateFolder
from tdmpc_opt.configs.common import cost_fields, recorded
from tdmpc_opt.configs.data import CollectConfig
from tdmpc_opt.configs.training import DaggerConfig, FromTeacher, TrainConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.data.sampler import SliceSampler
from tdmpc_opt.errors import RunError
from tdmpc_opt.files import alone, refuse_overwrite, repairable, sha256, written
from tdmpc_opt.machine import ResultFile, choose_processes
from tdmpc_opt.progress import Progress, Silent, Stage, expected
from tdmpc_opt.schema import TaskTable
from tdmpc_opt.training.loop import seconds_per_update, train
from tdmpc_opt.training.run import names_in_use, stored_record

FIRST_SEED = 1_000_000
"""Collection seed of the first round, far above those that other datasets begin with."""
PLANNER_SEED = 2_000_000
"""The same of the episodes driven by planning."""
_PLANNER_PRESET = "realtime"
"""Planner budget of these episodes."""
_UNUSED = vars(FromTeacher())
"""Options of a run whose teacher only labels."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round brought."""

    round: int
    """Number of the round, from 1."""
    updates: int
    """Gradient updates so far."""
    episodes: int
    """On-policy episodes so far, over all tasks."""
    returns: dict[str, float]
    """Mean return by task of the student that drove: the one before this round's updates."""


def dagger(config: DaggerConfig, progress: Progress | None = None) -> list[Round]:
    """Correct a student in rounds of driving, labelling and training.

    It is one training run, whose on-policy dataset grows each time so many updates are done.
    The same call goes on with an interrupted run, to the same result, and may ask for more
    rounds. The output folder holds that run, the dataset that grows, the student after each
    round, and `rounds.json`.

    Returns:
        What each round brought, as `rounds.json` states too.

    Raises:
        RunError: The folder holds another run, or a loss became NaN; or another process works
            in the folder.
        CheckpointError: Student or teacher cannot be read, or a checkpoint not be written.
        UnknownTaskError: The teacher does not have a task of the student.
        DataError: A dataset that is missing, damaged, foreign or holds NaN, or a full disk.
        InputError: A labeller without actions to imitate.
    """
    refuse_overwrite(config)
    progress = progress or Silent()
    tasks, path = _refuse_early(config), config.output / "rounds.json"
    with alone(path):
        file = _RoundsFile(path, _identity(config, tasks))
        done = len(file.rounds)
        note = _expected(config, tasks, config.rounds - done) if done < config.rounds else ""
        progress.update(done, config.rounds, f"rounds{note}")
        for number in range(done + 1, config.rounds + 1):
            file.add(_round(config, tasks, number, progress))
    return file.rounds


def _round(config: DaggerConfig, tasks: TaskTable, number: int, progress: Progress) -> Round:
    """Drive, label and train; each part skips what an interrupted call has done."""
    stage = f"round {number} of {config.rounds}"
    returns = _drive(config, tasks, number, Stage(progress, f"{stage}, collect (tasks)"))
    updates = number * config.updates
    model = train(_training(config, updates), Stage(progress, f"{stage}, train (updates)"))
    with written(_student(config, number), RunError) as temporary:
        shutil.copyfile(model, temporary)
    episodes = number * (config.episodes + config.planner_episodes) * len(tasks)
    return Round(number, updates, episodes, returns)


def _drive(
    config: DaggerConfig, tasks: TaskTable, number: int, progress: Progress
) -> dict[str, float]:
    """Let the student drive, by policy and by planning; return the policy's mean returns."""
    drive = CollectConfig(
        policy=config.start if number == 1 else str(_student(config, number - 1)),
        tasks=tasks.selection,
        label=config.label or config.teacher,
        episodes=config.episodes,
        noise=config.noise,
        seed=FIRST_SEED + (number - 1) * config.episodes,
        output=config.on_policy,
        device="cpu" if config.ray else config.device,
        workers=config.workers,
        ray=config.ray,
    )
    dataset = collect(drive, progress)
    if config.planner_episodes:
        plan = replace(
            drive,
            mode="planner",
            preset=_PLANNER_PRESET,
            episodes=config.planner_episodes,
            seed=PLANNER_SEED + (number - 1) * config.planner_episodes,
        )
        dataset = collect(plan, progress)
    returns: dict[str, list[float]] = {name: [] for name in tasks.names}
    for shard in dataset.shards:
        if shard.source["seed"] == drive.seed:
            returns[shard.task] += [episode.total_reward for episode in dataset.episodes(shard)]
    return {name: sum(found) / len(found) for name, found in returns.items()}


def _student(config: DaggerConfig, number: int) -> Path:
    """Return where the student after a round is kept, which drives in the next."""
    return config.output / "students" / f"round-{number}.safetensors"


def _expected(config: DaggerConfig, tasks: TaskTable, rounds: int) -> str:
    """Return how long rounds take, as the end of a report; empty where Ray decides."""
    if config.ray:
        return ""
    label = open_source(config.label or config.teacher, names=config.tasks)
    workers, seconds = choose_processes(config.workers).count, 0.0
    drives: dict[Literal["policy", "planner"], int] = {
        "policy": config.episodes,
        "planner": config.planner_episodes,
    }
    for mode, episodes in drives.items():
        if episodes:
            driver = open_source(
                config.start, mode=mode, names=config.tasks, preset=_PLANNER_PRESET
            )
            count = dict.fromkeys(tasks.tasks, episodes)
            seconds += seconds_of([driver, label], count, workers, batched=True)
    seconds += config.updates * seconds_per_update(_training(config, config.updates))
    return expected(rounds * seconds)


def _training(config: DaggerConfig, updates: int) -> TrainConfig:
    """Return the one run of all rounds, which goes on with the data there are by now."""
    values = {f.name: getattr(config, f.name) for f in fields(TrainConfig)}
    files = [name for name in config.agents if _is_checkpoint(name)]
    values |= {"updates": updates, "tasks": names_in_use(files, config.tasks)}
    if not _is_distilled(config):
        values |= _UNUSED
    return TrainConfig(**values)


def _is_checkpoint(name: str) -> bool:
    return isinstance(open_source(name), CheckpointSource)


def _is_distilled(config: DaggerConfig) -> bool:
    """Return whether the teacher is a checkpoint, of which more than its actions is used."""
    return _is_checkpoint(config.teacher)


def _refuse_early(config: DaggerConfig) -> TaskTable:
    """Check that student, teacher and data fit each other, and return the tasks to drive."""
    known = read_checkpoint(config.start, tasks=config.tasks).tasks
    tasks = open_source(config.start, names=config.tasks).tasks(config.tasks)
    open_source(config.label or config.teacher, names=config.tasks).require_labels(tasks)
    if config.planner_episodes:
        CheckpointSource(source=config.start, mode="planner", preset=_PLANNER_PRESET).chosen()
    if _is_distilled(config) and not config.more_teachers:
        teacher = read_checkpoint(config.teacher, tasks=config.tasks).tasks
        for name in known.names:
            teacher.index(name)
    SliceSampler(
        [EpisodeDataset.open(folder) for folder in config.folders],
        known,
        horizon=config.horizon,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    return tasks


def _identity(config: DaggerConfig, tasks: TaskTable) -> dict[str, Any]:
    """Describe the run by values alone: files by name and hash, so that no path matters."""
    cost = cost_fields(DaggerConfig)
    values = {name: value for name, value in recorded(config).items() if name not in cost}
    values["data"] = [
        {"name": folder.resolve().name, "sha256": sha256(folder / "dataset.json")}
        for folder in config.folders
    ]
    for name in ("start", "teacher", "label", "policy_teacher"):
        values[name] = values[name] and identify(values[name], tasks)
    values["more_teachers"] = [identify(name, tasks) for name in config.more_teachers]
    values["tasks"] = list(tasks.names)
    values["sampling"] = config.sampling  # as records of rounds always did
    return values


class _RoundsFile(ResultFile):
    """The rounds that are done, and the run they belong to; an existing file is continued."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        super().__init__(path, "dagger", identity, RunError)
        self.rounds: list[Round] = []
        if path.exists():
            content = stored_record(path, DaggerConfig, identity)
            with repairable(path, RunError):
                for row in content["rounds"]:
                    # Older versions could score the student after each round.
                    known = {name: v for name, v in dict(row).items() if name != "score"}
                    self.rounds.append(Round(**known))
            if self.rounds and not StateFolder(path.parent).files():
                raise RunError(
                    f"{path.parent} has lost its states, without which its rounds cannot go "
                    "on; choose another --output, and --start from the last student there"
                )
        self.write(rounds=self._rows())  # before any work: the folder belongs to this run alone

    def add(self, done: Round) -> None:
        """Add a finished round."""
        self.rounds.append(done)
        self.write(rounds=self._rows())

    def _rows(self) -> list[dict[str, Any]]:
        return [asdict(row) for row in self.rounds]
