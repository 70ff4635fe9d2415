"""Minari datasets in and out, by Minari's own library.

A Minari episode has T + 1 observations, T actions and T rewards: action and reward of step t
are in row t there, and in row t + 1 here.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from minari import __version__ as minari_version
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from numpy.typing import NDArray

from tdmpc_opt.data.episodes import Episode, EpisodeDataset
from tdmpc_opt.data.reports import ImportReport
from tdmpc_opt.errors import DataError, InputError
from tdmpc_opt.files import parse_json
from tdmpc_opt.progress import Progress
from tdmpc_opt.schema import MT30, Task, TaskTable
from tdmpc_opt.tasks import choose_tasks

_NAMESPACE = "tdmpc-opt"
_METADATA = "metadata.json"
_SHARD = 500
"""Episodes that are read and added at once."""


def is_minari(path: Path) -> bool:
    """Return whether a folder is a Minari dataset, or the data folder of one."""
    return (path / _METADATA).is_file() or (path / "data" / _METADATA).is_file()


def export_minari(dataset: EpisodeDataset, output: Path, progress: Progress) -> list[Path]:
    """Write each task's episodes as the Minari dataset `tdmpc-opt/TASK-v0` below `output`.

    With MINARI_DATASETS_PATH set to `output`, `minari.load_dataset` finds them. Labels go into
    the infos of each step.

    Args:
        dataset: What to write.
        output: Folder for the datasets, made if it is not there.
        progress: Receives the number of tasks.

    Returns:
        Folder of each dataset; those that were there already are kept.

    Raises:
        DataError: A shard that is missing or truncated, a full disk, or a folder that cannot be
            written.
    """
    paths = []
    for number, name in enumerate(dataset.task_names):
        folder = output / _NAMESPACE / f"{name}-v0"
        paths.append(folder)
        if not _is_complete(folder / "data"):
            try:
                _write_minari(dataset, name, folder)
            except OSError as error:
                raise DataError(f"cannot export to {folder}: {error}") from error
        progress.update(number + 1, len(dataset.task_names), name)
    return paths


def _write_minari(dataset: EpisodeDataset, name: str, folder: Path) -> None:
    task = dataset.tasks[name]
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    for path in data.iterdir():  # of a run that was killed
        path.unlink()
    storage = MinariStorage.new(
        data,
        observation_space=spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32),
        action_space=spaces.Box(-1, 1, (task.action_dim,), np.float32),
    )
    for shard in dataset.shards:
        if shard.task == name:
            storage.update_episodes(_buffer(episode) for episode in dataset.episodes(shard))
    storage.update_metadata(  # last: what lacks it was not written to its end
        {
            "dataset_id": f"{_NAMESPACE}/{name}-v0",
            "minari_version": minari_version,
            "description": f"Episodes of {name}, by tdmpc-opt",
        }
    )


def _is_complete(data: Path) -> bool:
    try:
        return "dataset_id" in parse_json((data / _METADATA).read_bytes())
    except (OSError, ValueError):
        return False


def _buffer(episode: Episode) -> EpisodeBuffer:
    steps = len(episode.reward) - 1
    last = np.arange(steps) == steps - 1
    infos = {} if episode.label is None else {"infos": {"label": episode.label[1:]}}
    return EpisodeBuffer(
        seed=episode.seed,
        observations=episode.obs,
        actions=episode.action[1:],
        rewards=episode.reward[1:],
        terminations=last & episode.terminated,
        truncations=last & (not episode.terminated),
        **infos,
    )


@dataclass(frozen=True)
class _Source:
    """The metadata of a Minari dataset."""

    folder: Path
    name: str
    """Its id, or the name of its folder."""
    storage: MinariStorage
    env: str
    """Id of the registered environment it was recorded in; empty where it names none, or one
    that was built with arguments or wrappers, which the id alone does not describe."""
    obs_dim: int
    """Width of an observation."""
    steps: int
    """Most steps of an episode: the environment's limit, else those of the longest."""
    low: NDArray[np.float64]
    """Lower bound of each action."""
    high: NDArray[np.float64]
    """Upper bound of each action."""


def import_minari(
    folder: Path,
    output: Path,
    tasks: str | None,
    report: ImportReport,
    progress: Progress,
    *,
    skip_bad: bool,
) -> None:
    """Add the episodes of a Minari dataset to the dataset at `output`.

    Actions and labels are scaled from the dataset's action space to [-1, 1]. The task is the
    one that is named; else that of an export of this project; else the environment that the
    dataset names, by its id; else the dataset itself, by its whole id.

    Args:
        folder: Folder of the Minari dataset.
        output: Folder of the dataset to add to.
        tasks: The one task that the episodes are of, as `choose_tasks` takes it.
        report: Receives what was imported and what was left out.
        progress: Receives the number of episodes.
        skip_bad: Leave out and report invalid episodes instead of stopping.

    Raises:
        DataError: A folder that is damaged, has other spaces than vectors, has no finite
            bounds of its actions, or stores no spaces, so that reading them would run its code;
            episodes that are too long or go on after their end, with NaN or with actions out of
            bounds, where they may not be skipped; a full disk; a source with other episodes
            than when it was imported before.
        InputError: More than one task is named, or one that does not fit.
        UnknownTaskError: A task is named that does not exist.
    """
    source = _open(folder)
    task = _named_task(source, tasks) if tasks is not None else _own_task(source)
    total = int(source.storage.total_episodes)
    table = MT30 if task in MT30.tasks else TaskTable((task,))
    dataset = EpisodeDataset.open_or_create(output, table, task.episode_length + 1)
    stem = f"{task.name}-minari-{_fingerprint(source)}"
    _refuse_changed(dataset, source, stem, total)
    report.lines.append(f"{folder}: {total:,} episodes of {task.name}")
    record = {
        "policy": {"name": f"minari {source.name}", "sha256": None},
        "episodes": total,
        "action_low": source.low.tolist(),
        "action_high": source.high.tolist(),
    }
    for start in range(0, total, _SHARD):
        shard = f"{stem}-{start:07d}"
        if not dataset.has_shard(shard):
            index = range(start, min(start + _SHARD, total))
            episodes = list(_fit(source, task, index, report, skip_bad=skip_bad))
            if episodes:
                dataset.append_shard(shard, episodes, record)
            report.episodes += len(episodes)
        progress.update(min(start + _SHARD, total), total, task.name)


def _open(folder: Path) -> _Source:
    data = folder if (folder / _METADATA).is_file() else folder / "data"
    try:
        metadata = parse_json((data / _METADATA).read_bytes())
        if not {"observation_space", "action_space"} <= set(metadata):
            # Minari would build the environment that the file names, and so run its code.
            raise DataError(f"{data} does not store its spaces; have Minari write it anew")
        storage = MinariStorage.read(data)
        name = str(metadata.get("dataset_id", data.parent.name))
        spec = parse_json(metadata.get("env_spec") or "{}")
        env, limit = str(spec.get("id", "")), spec.get("max_episode_steps")
        if spec.get("kwargs") or spec.get("additional_wrappers"):
            env = ""
        widths = [_width(space) for space in (storage.observation_space, storage.action_space)]
        if 0 in widths or not storage.total_episodes:
            raise DataError(f"{folder} does not hold episodes of vectors alone")
        steps = int(limit or _longest(storage))
    except (
        OSError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        AssertionError,
    ) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{data} is no Minari dataset, or damaged: {error}") from error
    low, high = (
        np.asarray(bound, np.float64)
        for bound in (storage.action_space.low, storage.action_space.high)
    )
    if not (np.isfinite(low) & np.isfinite(high) & (low < high)).all():
        raise DataError(
            f"the action space of {folder} has no finite bounds, low below high, from which "
            "actions could be scaled to [-1, 1]; have Minari write it with the bounds of the "
            "environment"
        )
    return _Source(folder, name, storage, env, widths[0], steps, low, high)


def _longest(storage: MinariStorage) -> int:
    every = range(int(storage.total_episodes))
    return max(int(facts["total_steps"]) for facts in storage.get_episode_metadata(every))


def _width(space: spaces.Space[Any]) -> int:
    """Return the width of a space of vectors, 0 for any other."""
    shape = space.shape if isinstance(space, spaces.Box) else None
    return shape[0] if shape is not None and len(shape) == 1 else 0


def _own_task(source: _Source) -> Task:
    """Return the task that a dataset gives itself."""
    width, count = source.obs_dim, len(source.low)
    namespace, _, short = source.name.rpartition("/")
    ours = re.sub(r"-v\d+$", "", short) if namespace == _NAMESPACE else ""
    if ours in MT30.names:
        known = MT30[ours]
        sizes = (known.obs_dim, known.action_dim, known.episode_length)
        if sizes == (width, count, source.steps):
            return known
    name = re.sub(r"[^\w.+-]", "-", ours or source.env or source.name, flags=re.ASCII)
    if name in MT30.names:
        raise DataError(
            f"{source.folder} is called {name} like a task of MT30; if its episodes are of it, "
            f"import them with --tasks {name}, else rename the dataset"
        )
    return Task(name, width, count, source.steps, custom=True, env="" if ours else source.env)


def _named_task(source: _Source, text: str) -> Task:
    """Return the task that the user names for a dataset, once it is known to fit."""
    found = choose_tasks(text).tasks
    if len(found) != 1:
        raise InputError(f"a Minari dataset holds one task; --tasks names {len(found)}")
    task = found[0]
    low, high = _bounds(task)
    has = (source.obs_dim, len(source.low), source.steps)
    wanted = (task.obs_dim, task.action_dim, task.episode_length)
    if has[:2] != wanted[:2] or has[2] > wanted[2]:
        raise InputError(
            f"{source.folder} has {has[0]} observations, {has[1]} actions and {has[2]} steps, "
            f"{text} has {wanted[0]}, {wanted[1]} and {wanted[2]}; name its own task"
        )
    if not (np.allclose(low, source.low) and np.allclose(high, source.high)):
        raise InputError(
            f"the actions of {source.folder} lie in {source.low.tolist()} to "
            f"{source.high.tolist()}, those of {text} in {low.tolist()} to {high.tolist()}; "
            "name the environment that it was recorded in"
        )
    return task


def _bounds(task: Task) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not task.env:
        return -np.ones(task.action_dim), np.ones(task.action_dim)
    from tdmpc_opt.tasks.own import OwnEnv

    env = OwnEnv(task)
    env.close()
    return env.bounds


def _fingerprint(source: _Source) -> str:
    """Digest the dataset's id and first episode, which differ between datasets of one task."""
    digest = hashlib.sha256(source.name.encode())
    first = next(iter(source.storage.get_episodes([0])))
    for field in ("observations", "actions", "rewards"):
        digest.update(np.ascontiguousarray(first[field]).tobytes())
    return digest.hexdigest()[:12]


def _refuse_changed(dataset: EpisodeDataset, source: _Source, stem: str, total: int) -> None:
    for shard in dataset.shards:
        if shard.name.startswith(f"{stem}-") and shard.source["episodes"] != total:
            raise DataError(
                f"{source.folder} has {total:,} episodes, {shard.source['episodes']:,} when "
                f"{dataset.path} took it in; import it into another folder"
            )


def _fit(
    source: _Source, task: Task, index: Sequence[int], report: ImportReport, *, skip_bad: bool
) -> Iterator[Episode]:
    """Yield the valid episodes."""
    metadata = source.storage.get_episode_metadata(index)
    for facts, found in zip(metadata, source.storage.get_episodes(index), strict=True):
        fault = _fault(source, found)
        if fault is None:
            yield _episode(source, task, facts, found)
        else:
            error = DataError(f"{task.name}, episode {found['id']}: {fault}")
            report.leave_out(error, skip_bad=skip_bad)


def _fault(source: _Source, found: dict[str, Any]) -> str | None:
    """Return why an episode cannot be imported, or None."""
    steps, actions = len(found["rewards"]), np.asarray(found["actions"], np.float64)
    numbers = (found["observations"], actions, found["rewards"])
    slack = 1e-4 * (source.high - source.low)
    fault = None
    if not 1 <= steps <= source.steps or len(found["observations"]) != steps + 1:
        fault = f"{steps} steps, not 1 to {source.steps}"
    elif np.any(found["terminations"][:-1]):
        fault = f"goes on after its end in step {int(np.argmax(found['terminations'])) + 1}"
    elif not all(np.isfinite(np.asarray(part, np.float32)).all() for part in numbers):
        fault = "holds NaN or infinity"
    elif (actions < source.low - slack).any() or (actions > source.high + slack).any():
        fault = "has actions outside the dataset's action space"
    return fault


def _episode(
    source: _Source, task: Task, facts: dict[str, Any], found: dict[str, Any]
) -> Episode:
    """Move what was done in step t into row t + 1."""
    label = (found["infos"] or {}).get("label")
    return Episode(
        task=task.name,
        seed=facts.get("seed"),
        obs=np.asarray(found["observations"], np.float32),
        action=_after(_scaled(source, found["actions"])),
        reward=_after(found["rewards"]),
        label=None if label is None else _after(_scaled(source, label)),
        terminated=bool(found["terminations"][-1]),
    )


def _scaled(source: _Source, actions: Any) -> Any:
    """Scale actions from the dataset's bounds to [-1, 1]."""
    low, high = source.low, source.high
    if (low == -1).all() and (high == 1).all():
        return actions  # bit for bit
    return np.clip(2 * (np.asarray(actions, np.float64) - low) / (high - low) - 1, -1, 1)


def _after(values: Any) -> Any:
    done = np.asarray(values, np.float32)
    return np.concatenate([np.full_like(done[:1], np.nan), done])
