"""Minari datasets in and out, by Minari's own library.

Minari holds T + 1 observations beside T actions and rewards: what is done in step t stands in
row t there, and in row t + 1 here.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from minari import __version__ as minari_version
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from tdmpc_opt.data.episodes import Episode, EpisodeDataset
from tdmpc_opt.data.transfer import ImportReport
from tdmpc_opt.errors import DataError
from tdmpc_opt.json_text import parse_json
from tdmpc_opt.progress import Progress
from tdmpc_opt.task_table import MT30, Task, TaskTable

_NAMESPACE = "tdmpc-opt"
_METADATA = "metadata.json"
_SHARD = 500
"""Episodes that are read and added at once."""


def is_minari(path: Path) -> bool:
    """Tell whether a folder is a Minari dataset, or the data folder of one."""
    return (path / _METADATA).is_file() or (path / "data" / _METADATA).is_file()


def export_minari(dataset: EpisodeDataset, output: Path, progress: Progress) -> list[Path]:
    """Write each task's episodes as the Minari dataset `tdmpc-opt/TASK-v0` below `output`.

    With MINARI_DATASETS_PATH set to `output`, `minari.load_dataset` finds them. Labels go into
    the infos of each step.

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
        terminations=np.zeros(steps, bool),
        truncations=last,
        **infos,
    )


def import_minari(
    folder: Path, output: Path, report: ImportReport, progress: Progress, *, skip_bad: bool
) -> None:
    """Add the episodes of a Minari dataset to the dataset at `output`.

    A dataset called after a task of MT30, of that task's widths, is taken for that task; any
    other becomes a task of its own, called after the dataset. All episodes must have the same
    number of steps.

    Raises:
        DataError: A folder that is damaged, holds other things than vectors, or would have to
            run code to tell what it holds; episodes of another length or with NaN, where they
            may not be skipped; a full disk.
    """
    data = folder if (folder / _METADATA).is_file() else folder / "data"
    storage, name = _open(data)
    total = int(storage.total_episodes)
    task, length = _task(storage, name)
    tasks = MT30 if task in MT30.tasks else TaskTable((task,))
    dataset = EpisodeDataset.open_or_create(output, tasks, length)
    report.lines.append(f"{folder}: {total:,} episodes of {task.name}")
    for start in range(0, total, _SHARD):
        shard = f"{task.name}-minari-{start:07d}"
        if not dataset.has_shard(shard):
            index = range(start, min(start + _SHARD, total))
            episodes = list(_fit(storage, task, length, index, report, skip_bad=skip_bad))
            if episodes:
                source = {"policy": {"name": f"minari {name}", "sha256": None}}
                dataset.append_shard(shard, episodes, source)
            report.episodes += len(episodes)
        progress.update(min(start + _SHARD, total), total, task.name)


def _open(data: Path) -> tuple[MinariStorage, str]:
    """Open the data, and return what the dataset is called."""
    try:
        metadata = parse_json((data / _METADATA).read_bytes())
        if not {"observation_space", "action_space"} <= set(metadata):
            # Minari would build the environment that the file names, and so run its code.
            raise DataError(f"{data} does not store its spaces; have Minari write it anew")
        return MinariStorage.read(data), str(metadata.get("dataset_id", data.parent.name))
    except (OSError, KeyError, TypeError, ValueError, AssertionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{data} is no Minari dataset, or damaged: {error}") from error


def _task(storage: MinariStorage, dataset_id: str) -> tuple[Task, int]:
    """Return the task and the rows of an episode."""
    widths = [
        space.shape[0]
        for space in (storage.observation_space, storage.action_space)
        if isinstance(space, spaces.Box) and space.shape is not None and len(space.shape) == 1
    ]
    if len(widths) != 2 or not storage.total_episodes:
        raise DataError(f"{dataset_id} does not hold episodes of vectors alone")
    steps = len(next(iter(storage.get_episodes([0])))["rewards"])
    name = re.sub(r"[^\w.+-]", "-", re.sub(r"-v\d+$", "", dataset_id.rpartition("/")[2]))
    if name in MT30.names:
        known = MT30[name]
        if (known.obs_dim, known.action_dim, known.episode_length) == (*widths, steps):
            return known, steps + 1
    return Task(name, widths[0], widths[1], episode_length=steps, custom=True), steps + 1


def _fit(
    storage: MinariStorage,
    task: Task,
    length: int,
    index: Sequence[int],
    report: ImportReport,
    *,
    skip_bad: bool,
) -> Iterator[Episode]:
    """Yield the episodes of the common length whose numbers are finite."""
    metadata = storage.get_episode_metadata(index)
    for facts, found in zip(metadata, storage.get_episodes(index), strict=True):
        episode = _episode(task, facts, found)
        fault = None
        if len(episode.reward) != length or len(episode.obs) != length:
            fault = f"{len(episode.reward) - 1} steps, not the {length - 1} of the first"
        elif not all(np.isfinite(part).all() for part in (episode.obs, *_done(episode))):
            fault = "holds NaN or infinity"
        if fault is None:
            yield episode
        else:
            error = DataError(f"{task.name}, episode {found['id']}: {fault}")
            report.leave_out(error, skip_bad=skip_bad)


def _done(episode: Episode) -> tuple[Any, Any]:
    return episode.action[1:], episode.reward[1:]


def _episode(task: Task, facts: dict[str, Any], found: dict[str, Any]) -> Episode:
    """Move what was done in step t into row t + 1."""
    label = (found["infos"] or {}).get("label")
    return Episode(
        task=task.name,
        seed=facts.get("seed"),
        obs=np.asarray(found["observations"], np.float32),
        action=_after(found["actions"]),
        reward=_after(found["rewards"]),
        label=None if label is None else _after(label),
    )


def _after(values: Any) -> Any:
    done = np.asarray(values, np.float32)
    return np.concatenate([np.full_like(done[:1], np.nan), done])
