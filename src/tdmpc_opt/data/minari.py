"""Minari datasets in and out, by Minari's own library."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from minari import __version__ as minari_version
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from tdmpc_opt.contract import UNBOUNDED
from tdmpc_opt.data.episodes import Episode, EpisodeDataset
from tdmpc_opt.data.exchange import Recording, Source, own_task, write_folders
from tdmpc_opt.errors import DataError
from tdmpc_opt.files import parse_json
from tdmpc_opt.progress import Progress

_NAMESPACE = "tdmpc-opt"
_METADATA = "metadata.json"
_SHARD = 500
"""Episodes that are read and added at once."""
_DAMAGE = (OSError, LookupError, TypeError, ValueError, AttributeError, AssertionError)
"""What Minari's storage raises on files that are cut, changed or foreign."""


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
    folders = {name: output / _NAMESPACE / f"{name}-v0" for name in dataset.task_names}
    return write_folders(folders, f"data/{_METADATA}", partial(_write, dataset), progress)


def _write(dataset: EpisodeDataset, name: str, folder: Path) -> None:
    task = dataset.tasks[name]
    (folder / "data").mkdir(parents=True)
    storage = MinariStorage.new(
        (folder / "data").resolve(),  # the library joins a relative path to itself
        observation_space=spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32),
        action_space=spaces.Box(-1, 1, (task.action_dim,), np.float32),
    )
    for shard in dataset.shards:
        if shard.task == name:
            storage.update_episodes(_buffer(episode) for episode in dataset.episodes(shard))
    storage.update_metadata(
        {
            "dataset_id": f"{_NAMESPACE}/{name}-v0",
            "minari_version": minari_version,
            "description": f"Episodes of {name}, by tdmpc-opt",
        }
    )


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


def open_minari(folder: Path, data: Path) -> Source:
    """Open a Minari dataset.

    Its task is that of an export of this project; else the environment that the dataset names,
    by its id; else the dataset itself, by its whole id. An environment that was built with
    arguments or wrappers is not described by its id.

    Args:
        folder: Folder of the dataset.
        data: Folder in it, or the same, with the metadata.

    Raises:
        DataError: A dataset that is damaged, has other spaces than vectors, has no finite
            bounds of its actions, or stores no spaces, so that reading them would run its code.
    """
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
        action = storage.action_space
        obs_dim, action_dim = _width(storage.observation_space), _width(action)
        total = int(storage.total_episodes)
        if not (obs_dim and action_dim and total):
            raise DataError(f"{folder} does not hold episodes of vectors alone")
        sizes = (obs_dim, action_dim, int(limit or _longest(storage)))
    except _DAMAGE as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{data} is no Minari dataset, or damaged: {error}") from error
    low, high = (np.asarray(bound, np.float64) for bound in (action.low, action.high))
    if not ((np.abs([low, high]) < UNBOUNDED) & (low < high)).all():
        raise DataError(
            f"the action space of {folder} has no finite bounds, low below high, from which "
            "actions could be scaled to [-1, 1]; have Minari write it with the bounds of the "
            "environment"
        )
    namespace, _, short = name.rpartition("/")
    if namespace == _NAMESPACE:
        task = own_task(re.sub(r"-v\d+$", "", short), sizes, ours=True)
    else:
        task = own_task(env or name, sizes, ours=False, env=env)
    places = [range(start, min(start + _SHARD, total)) for start in range(0, total, _SHARD)]
    return Source(
        folder=folder,
        kind="minari",
        name=name,
        identity=name,
        tasks={"": task},
        low=low,
        high=high,
        parts=[(some, partial(_recordings, folder, storage, some)) for some in places],
    )


def _longest(storage: MinariStorage) -> int:
    every = range(int(storage.total_episodes))
    return max(int(facts["total_steps"]) for facts in storage.get_episode_metadata(every))


def _width(space: spaces.Space[Any]) -> int:
    """Return the width of a space of vectors, 0 for any other."""
    shape = space.shape if isinstance(space, spaces.Box) else None
    return shape[0] if shape is not None and len(shape) == 1 else 0


def _recordings(folder: Path, storage: MinariStorage, places: range) -> Iterator[Recording]:
    try:
        metadata = storage.get_episode_metadata(places)
        for facts, found in zip(metadata, storage.get_episodes(places), strict=True):
            cut = np.flatnonzero(found["truncations"][:-1])
            yield Recording(
                number=found["id"],
                task="",
                obs=found["observations"],
                action=found["actions"],
                reward=found["rewards"],
                ends=found["terminations"],
                label=(found["infos"] or {}).get("label"),
                seed=facts.get("seed"),
                fault=f"goes on after its end in step {cut[0] + 1}" if len(cut) else "",
            )
    except _DAMAGE as error:
        raise DataError(f"{folder} is damaged: {error}; get it anew") from error
