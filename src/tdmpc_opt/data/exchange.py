"""Datasets of other programs in and out; the content of a source decides what reads it."""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmpc_opt.configs.data import DataExportConfig, DataImportConfig
from tdmpc_opt.data.episodes import Episode, EpisodeDataset
from tdmpc_opt.data.official import export_official, import_official
from tdmpc_opt.data.reports import ImportReport
from tdmpc_opt.errors import DataError, InputError, counted
from tdmpc_opt.files import alone, refuse_overwrite
from tdmpc_opt.progress import Progress, Silent
from tdmpc_opt.schema import MT30, Task, TaskTable
from tdmpc_opt.tasks import choose_tasks


def import_data(config: DataImportConfig, progress: Progress | None = None) -> ImportReport:
    """Add official shard files, Minari and LeRobot datasets to a dataset on disk.

    Args:
        config: Sources, tasks and output.
        progress: Receives megabytes of shard files, episodes of other datasets.

    Returns:
        The content of each source, and what was left out.

    Raises:
        DataError: An invalid source or episode, unless those are to be skipped; only invalid
            ones; a source with other episodes than when it was imported before; or a full disk.
        UnknownTaskError: A task to import that is not in the files' table.
        InputError: A task for a Minari or LeRobot dataset that does not fit it, or several.
        MissingDependencyError: Gymnasium is missing, or the library that reads the source.
        RunError: Another process imports into the same folder.
    """
    refuse_overwrite(config)
    progress, report = progress or Silent(), ImportReport()
    skip_bad = config.on_bad == "skip"
    folders = [path for path in config.sources if path.is_dir()]
    files = [path for path in config.sources if not path.is_dir()]
    with alone(config.output / "import"):
        if files:
            import_official(
                files, config.output, config.tasks, report, progress, skip_bad=skip_bad
            )
        for folder in folders:
            try:
                source = _open(folder)
            except DataError as error:
                report.leave_out(error, skip_bad=skip_bad)
            else:
                _import(source, config, report, progress)
    if not report.lines:
        raise DataError(f"nothing to import: {'; '.join(report.left_out)}")
    return report


def export_data(config: DataExportConfig, progress: Progress | None = None) -> list[str]:
    """Write a dataset in another program's layout.

    Args:
        config: Dataset, format and output.
        progress: Receives megabytes of shard files, tasks of other datasets.

    Returns:
        The files or folders of the export.

    Raises:
        DataError: A dataset that is missing or damaged, a full disk, or a folder that cannot be
            written.
        InputError: A LeRobot dataset of a task whose steps per second are not known.
        MissingDependencyError: The library that writes the format is missing.
    """
    refuse_overwrite(config)
    progress, dataset = progress or Silent(), EpisodeDataset.open(config.data)
    if not len(dataset):
        raise DataError(f"{config.data} holds no episodes to export")
    with alone(config.output / "export"):
        if config.format == "official":
            paths = export_official(dataset, config.output, progress)
        elif config.format == "lerobot":
            from tdmpc_opt.data.lerobot import export_lerobot

            paths = export_lerobot(dataset, config.output, config.fps, progress)
        else:
            from tdmpc_opt.data.minari import export_minari

            paths = export_minari(dataset, config.output, progress)
    return [str(path) for path in paths]


def write_folders(
    folders: Mapping[str, Path],
    needed: str,
    write: Callable[[str, Path], None],
    progress: Progress,
) -> list[Path]:
    """Write a dataset for each task, which appears whole or not at all.

    Args:
        folders: Folder of each task's dataset; those that are there already are kept.
        needed: File that every such dataset has.
        write: Takes a task and the folder to make for it.
        progress: Receives the number of tasks.

    Returns:
        The folders.

    Raises:
        DataError: A full disk, or a folder that cannot be written.
    """
    for number, (name, folder) in enumerate(folders.items()):
        temporary = folder.with_name(f".{folder.name}.tmp")
        if not (folder / needed).is_file():
            shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
            try:
                write(name, temporary)
                temporary.rename(folder)
            except OSError as error:
                raise DataError(f"cannot export to {folder}: {error}") from error
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        progress.update(number + 1, len(folders), name)
    return [*folders.values()]


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """An episode as other programs store it: row t has obs_t, action_t and reward_t."""

    number: int
    """Its number in the source."""
    task: str
    """Key of its task in the source."""
    obs: NDArray[Any]
    """Observations, one more than steps."""
    action: NDArray[Any]
    """Actions, in the source's bounds."""
    reward: NDArray[Any]
    """Rewards."""
    ends: NDArray[np.bool_]
    """Whether a state ended the episode, at each step."""
    label: NDArray[Any] | None = None
    """Actions to imitate, in the source's bounds."""
    seed: int | None = None
    """Environment seed, where it is known."""
    fault: str = ""
    """What is wrong with the episode, if its reader found something."""


Part = tuple[range, Callable[[], Iterator[Recording]]]
"""Some episodes by their places in the source, and what reads them."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A dataset of another program."""

    folder: Path
    """Its folder."""
    kind: str
    """Name of its format."""
    name: str
    """Its own name."""
    identity: str
    """Part of the digest that recognises it; the other part is its first episode."""
    tasks: Mapping[str, Task]
    """The tasks that it gives itself."""
    low: NDArray[np.float64]
    """Lower bound of each action."""
    high: NDArray[np.float64]
    """Upper bound of each action."""
    parts: Sequence[Part]
    """Its episodes; what is read at once becomes a shard for each task."""
    is_space: bool = True
    """Whether the bounds are those of the environment, not of the data."""
    is_cut_stated: bool = True
    """Whether ends exclude time limits; else an end in the task's last step is one."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Tasks in words, for an export."""
    fps: int | float | None = None
    """Steps per second, for an export."""
    notes: tuple[str, ...] = ()
    """What to report about the import."""

    @property
    def is_plain(self) -> bool:
        """Whether its actions are in [-1, 1] already."""
        return bool((self.low == -1).all() and (self.high == 1).all())


def own_task(name: str, sizes: tuple[int, int, int], *, ours: bool, env: str = "") -> Task:
    """Return the task that a dataset gives itself.

    Args:
        name: What the dataset calls it.
        sizes: Observations, actions and most steps.
        ours: Whether this project wrote the dataset; a task of MT30 is known by its name then.
        env: `MODULE:ID` of its environment, if it names one.
    """
    if ours and name in MT30.names:
        known = MT30[name]
        if sizes == (known.obs_dim, known.action_dim, known.episode_length):
            return known
    plain = re.sub(r"[^\w.+-]", "-", name, flags=re.ASCII)
    return Task(plain, *sizes, custom=True, env=env)


def _open(folder: Path) -> Source:
    if (folder / "meta" / "info.json").is_file():
        from tdmpc_opt.data.lerobot import open_lerobot

        return open_lerobot(folder)
    for data in (folder, folder / "data"):
        if (data / "metadata.json").is_file():
            from tdmpc_opt.data.minari import open_minari

            return open_minari(folder, data)
    raise DataError(
        f"{folder} is no Minari dataset (no metadata.json) and no LeRobot dataset (no "
        "meta/info.json); name shard files one by one"
    )


def _import(
    source: Source, config: DataImportConfig, report: ImportReport, progress: Progress
) -> None:
    """Add the episodes of a dataset, as of the task that is named or of its own tasks."""
    if config.tasks is not None:
        source = _named(source, config.tasks)
    found = tuple(dict.fromkeys(source.tasks.values()))
    _refuse_taken_names(source, found)
    table = MT30 if set(found) <= set(MT30.tasks) else TaskTable(found)
    longest = max(task.episode_length for task in found)
    dataset = EpisodeDataset.open_or_create(config.output, table, longest + 1)
    total = source.parts[-1][0].stop
    record = {
        "policy": {"name": f"{source.kind} {source.name}", "sha256": None},
        "episodes": total,
        "action_low": source.low.tolist(),
        "action_high": source.high.tolist(),
        **({} if source.fps is None else {"fps": source.fps}),
    }
    stems = {task.name: f"{task.name}-{source.kind}-{_fingerprint(source)}" for task in found}
    _refuse_changed(dataset, source, stems, record)
    report.lines.append(f"{source.folder}: {counted(total, 'episode')} of {', '.join(stems)}")
    report.lines += [f"{source.folder}: {note}" for note in source.notes]
    if not source.is_plain:
        bounds = [np.round(bound, 4).tolist() for bound in (source.low, source.high)]
        report.lines.append(
            f"{source.folder}: actions scaled to [-1, 1] from {bounds[0]} to {bounds[1]}"
        )
    for places, read in source.parts:
        names = {name: f"{stem}-{places.start:07d}" for name, stem in stems.items()}
        fit: dict[str, list[Episode]] = {
            task: [] for task, shard in names.items() if not dataset.has_shard(shard)
        }
        for recording in read() if fit else ():
            task = source.tasks[recording.task]
            if task.name not in fit:
                continue
            fault = recording.fault or _fault(source, task, recording)
            if fault:
                error = DataError(f"{source.folder}, episode {recording.number}: {fault}")
                report.leave_out(error, skip_bad=config.on_bad == "skip")
            else:
                fit[task.name].append(_episode(source, task, recording))
        for name, episodes in fit.items():
            if episodes:
                dataset.append_shard(names[name], episodes, record | _text(source, name))
                report.episodes += len(episodes)
        progress.update(places.stop, total, ", ".join(stems))


def _text(source: Source, name: str) -> dict[str, str]:
    """Return a task in words for the record of its shard, if they are one text."""
    texts = [text for key, text in source.texts.items() if source.tasks[key].name == name]
    return {"text": texts[0]} if len(texts) == 1 else {}


def _named(source: Source, text: str) -> Source:
    """Return a source as one of the task that the user names, once it is known to fit."""
    found = choose_tasks(text).tasks
    if len(found) != 1:
        raise InputError(
            f"the episodes of {source.folder} are of one task; --tasks names {len(found)}"
        )
    task, own = found[0], next(iter(source.tasks.values()))
    has = (own.obs_dim, own.action_dim, own.episode_length)
    wanted = (task.obs_dim, task.action_dim, task.episode_length)
    if has[:2] != wanted[:2] or has[2] > wanted[2]:
        raise InputError(
            f"{source.folder} has {has[0]} observations, {has[1]} actions and {has[2]} steps, "
            f"{text} has {wanted[0]}, {wanted[1]} and {wanted[2]}; name its own task"
        )
    low, high = _bounds(task)
    if source.is_space and not (
        np.allclose(low, source.low) and np.allclose(high, source.high)
    ):
        raise InputError(
            f"the actions of {source.folder} lie in {source.low.tolist()} to "
            f"{source.high.tolist()}, those of {text} in {low.tolist()} to {high.tolist()}; "
            "name the environment that it was recorded in"
        )
    return replace(source, tasks=dict.fromkeys(source.tasks, task), low=low, high=high)


def _bounds(task: Task) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not task.env:
        return -np.ones(task.action_dim), np.ones(task.action_dim)
    from tdmpc_opt.tasks.own import OwnEnv

    env = OwnEnv(task)
    env.close()
    return env.bounds


def _refuse_taken_names(source: Source, tasks: Sequence[Task]) -> None:
    for task in tasks:
        if task.name in MT30.names and task not in MT30.tasks:
            raise DataError(
                f"{source.folder} has a task {task.name} like MT30; if its episodes are of it, "
                f"import them with --tasks {task.name}, else rename it"
            )


def _fingerprint(source: Source) -> str:
    """Digest a source's identity and first episode, which differ between datasets of a task."""
    digest = hashlib.sha256(source.identity.encode())
    first = next(source.parts[0][1]())
    for values in (first.obs, first.action, first.reward):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:12]


def _refuse_changed(
    dataset: EpisodeDataset, source: Source, stems: Mapping[str, str], record: dict[str, Any]
) -> None:
    """Refuse a source that has changed, and one whose actions have another scale."""
    for shard in dataset.shards:
        known = {**record, **shard.source}
        again = shard.name.startswith(f"{stems.get(shard.task)}-")
        if again and known["episodes"] != record["episodes"]:
            raise DataError(
                f"{source.folder} has {counted(record['episodes'], 'episode')}, "
                f"{known['episodes']:,} when {dataset.path} took it in; import it into another "
                "folder"
            )
        same_robot = len(known["action_low"]) == len(record["action_low"])
        bounds = ("action_low", "action_high")
        if same_robot and any(known[bound] != record[bound] for bound in bounds):
            raise DataError(
                f"the actions of {source.folder} lie in {record['action_low']} to "
                f"{record['action_high']}, those that {dataset.path} holds in "
                f"{known['action_low']} to {known['action_high']}, so that the same number "
                "would mean two actions; name the environment of both with --tasks MODULE:ID, "
                "or another folder"
            )


def _fault(source: Source, task: Task, recording: Recording) -> str:
    """Return why an episode cannot be imported; empty if it can."""
    steps, most = len(recording.reward), task.episode_length
    actions = np.asarray(recording.action, np.float64)
    numbers = (recording.obs, actions, recording.reward)
    slack = 1e-4 * (source.high - source.low)
    if not 1 <= steps <= most or len(recording.obs) != steps + 1:
        return f"{steps} steps, not 1 to {most}"
    if recording.ends[:-1].any():
        return f"goes on after its end in step {int(np.argmax(recording.ends)) + 1}"
    with np.errstate(over="ignore"):
        if not all(np.isfinite(np.asarray(part, np.float32)).all() for part in numbers):
            return "holds NaN or infinity"
    if (actions < source.low - slack).any() or (actions > source.high + slack).any():
        return (
            f"has actions outside the action space, {source.low.tolist()} to "
            f"{source.high.tolist()}"
        )
    return ""


def _episode(source: Source, task: Task, recording: Recording) -> Episode:
    """Scale the actions, and move what was done in step t into row t + 1."""
    label, steps = recording.label, len(recording.reward)
    timed_out = not source.is_cut_stated and steps == task.episode_length
    return Episode(
        task=task.name,
        seed=recording.seed,
        obs=np.asarray(recording.obs, np.float32),
        action=_after(_scaled(source, recording.action)),
        reward=_after(recording.reward),
        label=None if label is None else _after(_scaled(source, label)),
        terminated=bool(recording.ends[-1]) and not timed_out,
    )


def _scaled(source: Source, actions: NDArray[Any]) -> NDArray[Any]:
    """Scale actions from the source's bounds to [-1, 1]; one that never changes becomes 0."""
    if source.is_plain:
        return actions  # bit for bit
    low, high = source.low, source.high
    moves = high > low
    share = (np.asarray(actions, np.float64) - low) / np.where(moves, high - low, 1)
    return np.clip(np.where(moves, 2 * share - 1, 0), -1, 1)  # beyond is rounding: see _fault


def _after(values: NDArray[Any]) -> NDArray[np.float32]:
    done = np.asarray(values, np.float32)
    return np.concatenate([np.full_like(done[:1], np.nan), done])
