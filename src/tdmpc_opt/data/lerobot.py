"""LeRobot datasets of version 3 in and out: Parquet files, without LeRobot's library.

The observation after an episode's last action has no place in them. An export stores it in a
column of `meta/episodes` that LeRobot ignores; where it is missing, the last observation counts
twice, as in LeRobot's replay buffer, so that no action and no reward is lost.

Source: LeRobotDataset v3.0, as LeRobot 0.4.4 writes and reads it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tdmpc_opt.contract import contract
from tdmpc_opt.data.episodes import Episode, EpisodeDataset, Shard
from tdmpc_opt.data.exchange import Part, Recording, Source, own_task, write_folders
from tdmpc_opt.errors import DataError, InputError
from tdmpc_opt.files import parse_json, write_json
from tdmpc_opt.progress import Progress
from tdmpc_opt.schema import Task, TaskTable

_INFO, _TASKS, _EPISODES = "meta/info.json", "meta/tasks.parquet", "meta/episodes"
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_CHUNK = 1000
"""Files of a folder."""
_FILE_BYTES = 100_000_000
_STATE, _ACTION, _REWARD = "observation.state", "action", "next.reward"
_OBSERVATION = (_STATE, "observation.environment_state")
_DONE, _TRUNCATED = "next.done", "next.truncated"
_EPISODE, _FRAME, _TASK = "episode_index", "frame_index", "task_index"
_INDICES = (_EPISODE, _FRAME, _TASK)
_LABEL, _LAST, _SEED = "tdmpc_opt.label", "tdmpc_opt/last_observation", "tdmpc_opt/seed"
_OWN_TASK = b"tdmpc_opt/task"
"""Key in the metadata of an export's `meta/episodes`."""
_DAMAGED = (OSError, pa.ArrowException, AttributeError, LookupError, TypeError, ValueError)


def open_lerobot(folder: Path) -> Source:
    """Open a LeRobot dataset; its files are read once, to know the actions and any damage.

    An observation is `observation.state`, then `observation.environment_state`. Each text of
    its tasks becomes a task, unless this project wrote the dataset. The bounds of the actions
    are -1 and 1 if all lie between them, else the least and the most of the data.

    Args:
        folder: Folder of the dataset.

    Raises:
        DataError: A dataset that is damaged or of another version, that has no state
            observations or no actions, or that lacks rows of an episode.
    """
    try:
        return _source(folder)
    except DataError:
        raise
    except _DAMAGED as error:
        raise DataError(f"{folder} is no LeRobot dataset, or damaged: {error}") from error


def _source(folder: Path) -> Source:
    info = parse_json((folder / _INFO).read_bytes())
    version, fps, features = str(info["codebase_version"]), info["fps"], info["features"]
    if not version.startswith("v3."):
        raise DataError(
            f"{folder} has LeRobot's format {version}, only v3 is read; convert it with "
            "LeRobot's convert_dataset_v21_to_v30"
        )
    if type(fps) not in (int, float) or not 0 < fps < np.inf:
        raise ValueError(f"fps is {fps!r:.20}")
    sizes = {key: _width(feature) for key, feature in features.items()}
    wanted = (*_OBSERVATION, _ACTION, _REWARD, _DONE, _TRUNCATED, _LABEL, *_INDICES)
    widths = {key: sizes[key] for key in wanted if sizes.get(key)}
    unread = [
        f"{key} ({feature['dtype']})"
        for key, feature in features.items()
        if key not in (*widths, "timestamp", "index")
    ]
    obs_dim = sum(widths.get(key, 0) for key in _OBSERVATION)
    if not obs_dim or _ACTION not in widths:
        raise DataError(
            f"{folder} has no rows of numbers as {_STATE}, or none as {_ACTION}, only "
            f"{', '.join(unread)}; agents here take numbers and no images"
        )
    episodes, task = _listed(folder, obs_dim)
    rows, texts = _Rows(widths, episodes), _texts(folder)
    parts, used, low, high = _parts(folder, rows)
    if (low >= -1).all() and (high <= 1).all():
        low, high = -np.ones_like(low), np.ones_like(high)
    needed = (obs_dim, len(low), max(facts["length"] for facts in episodes.values()))
    if task is not None and (
        (task.obs_dim, task.action_dim) != needed[:2] or task.episode_length < needed[2]
    ):
        raise ValueError(f"its numbers are not those of {task.name}")
    notes = [f"not read: {', '.join(unread)}"] if unread else []
    if _REWARD not in widths:
        notes.append(
            f"it has no {_REWARD}, so rewards are 0; imitate it (--weights.behaviour), and act "
            "by the policy"
        )
    names = _names(texts)
    return Source(
        folder=folder,
        kind="lerobot",
        name=folder.resolve().name,
        identity=json.dumps(texts),
        tasks={str(i): task or own_task(names[i], needed, ours=False) for i in sorted(used)},
        texts={str(i): texts[i] for i in used},
        fps=fps,
        low=low,
        high=high,
        parts=parts,
        is_space=False,
        is_cut_stated=_TRUNCATED in widths,
        notes=tuple(notes),
    )


def _width(feature: Mapping[str, Any]) -> int:
    """Return the numbers of a feature that is a row of them, 0 for any other."""
    is_row = len(feature["shape"]) == 1 and re.match("bool|u?int|float", feature["dtype"])
    return int(feature["shape"][0]) if is_row else 0


def _listed(folder: Path, obs_dim: int) -> tuple[dict[int, dict[str, Any]], Task | None]:
    """Return facts of each episode, and the task that an export of this project names."""
    episodes, task = {}, None
    for path in sorted(folder.glob(f"{_EPISODES}/*/*.parquet")):
        file = pq.ParquetFile(path)
        names = {_EPISODE, "length", _LAST, _SEED} & {*file.schema_arrow.names}
        for facts in file.read(columns=sorted(names)).to_pylist():
            if facts.get(_LAST) is not None:
                facts[_LAST] = np.array(facts[_LAST], np.float32).reshape(1, obs_dim)
            episodes[int(facts[_EPISODE])] = facts
        text = (file.schema_arrow.metadata or {}).get(_OWN_TASK)
        if text is not None:
            (task,) = TaskTable.from_json(parse_json(text)).tasks
    if not episodes:
        raise ValueError(f"{_EPISODES} lists no episode")
    return episodes, task


def _texts(folder: Path) -> dict[int, str]:
    """Return the words of each task, by its index."""
    columns = pq.ParquetFile(folder / _TASKS).read().to_pydict()
    index = columns.pop(_TASK)
    (words,) = columns.values()  # its name differs between versions of LeRobot
    return dict(zip(index, map(str, words), strict=True))


def _names(texts: Mapping[int, str]) -> dict[int, str]:
    """Return a name for each task, made of its words."""
    names: dict[int, str] = {}
    for index, text in texts.items():
        name = re.sub(r"[^\w.+-]+", "-", text, flags=re.ASCII)[:60].strip("-._+") or "task"
        names[index] = f"{name}-{index}" if name in names.values() else name
    return names


def _parts(
    folder: Path, rows: "_Rows"
) -> tuple[list[Part], set[int], NDArray[np.float64], NDArray[np.float64]]:
    """Return the files, the indices of their tasks, and least and most of each action."""
    parts: list[Part] = []
    used: set[int] = set()
    missing = {*rows.episodes}
    low, high = np.full((2, rows.widths[_ACTION]), np.nan)
    for path in sorted(folder.glob("data/*/*.parquet")):
        columns = rows.read(path)
        start = parts[-1][0].stop if parts else 0
        places = range(start, start + len(_edges(columns)) - 1)
        if places:
            parts.append((places, partial(rows.recordings, path)))
        used.update(columns[_TASK][:, 0].tolist())
        missing.difference_update(columns[_EPISODE][:, 0].tolist())
        action = columns[_ACTION].astype(np.float64)
        action[~np.isfinite(action)] = np.nan
        low = np.fmin(low, np.fmin.reduce(action, initial=np.nan))
        high = np.fmax(high, np.fmax.reduce(action, initial=np.nan))
    if missing or np.isnan(low).any():
        what = f"rows of episode {min(missing)}" if missing else "finite actions"
        raise ValueError(f"data has no {what}")
    return parts, used, low, high


def _edges(columns: Mapping[str, NDArray[Any]]) -> list[int]:
    """Return where episodes begin in some rows, and where the last one ends."""
    number = columns[_EPISODE][:, 0]
    starts = np.flatnonzero(np.diff(number, prepend=number[:1] - 1))
    return [*starts.tolist(), len(number)]


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """The rows of a dataset, in the terms of its metadata."""

    widths: Mapping[str, int]
    """Width of each column to read."""
    episodes: Mapping[int, Mapping[str, Any]]
    """Facts of each episode, by its number."""

    def read(self, path: Path) -> dict[str, NDArray[Any]]:
        """Return the columns of a file, [rows, width] each."""
        try:
            table = pq.ParquetFile(path).read(columns=list(self.widths))
            return {key: _numbers(table[key], key, width) for key, width in self.widths.items()}
        except _DAMAGED as error:
            raise DataError(f"cannot read {path}: {error}; copy the dataset again") from error

    def recordings(self, path: Path) -> Iterator[Recording]:
        """Yield the episodes of a file."""
        columns = self.read(path)
        for start, stop in pairwise(_edges(columns)):
            yield self._recording({key: rows[start:stop] for key, rows in columns.items()})

    def _recording(self, columns: Mapping[str, NDArray[Any]]) -> Recording:
        steps, number, task = len(columns[_TASK]), columns[_EPISODE][0, 0], columns[_TASK][0, 0]
        facts, fault, none = self.episodes.get(number, {}), "", np.zeros((steps, 1))
        ends, cut = (columns.get(key, none)[:, 0] != 0 for key in (_DONE, _TRUNCATED))
        if facts.get("length") != steps:
            fault = f"has {steps} rows, {_EPISODES} states {facts.get('length')}"
        elif (columns[_FRAME][:, 0] != np.arange(steps)).any():
            fault = f"its {_FRAME} does not count from 0 to {steps - 1}"
        elif (columns[_TASK] != task).any():
            fault = f"its {_TASK} changes"
        elif cut[:-1].any():
            fault = f"goes on after its end in step {int(cut.argmax()) + 1}"
        obs = np.concatenate([columns[key] for key in _OBSERVATION if key in columns], axis=1)
        return Recording(
            number=int(number),
            task=str(task),
            obs=np.concatenate([obs, facts.get(_LAST, obs[-1:])]),
            action=columns[_ACTION],
            reward=columns.get(_REWARD, none)[:, 0],
            ends=ends & ~cut,
            label=columns.get(_LABEL),
            seed=facts.get(_SEED),
            fault=fault,
        )


def _numbers(column: pa.ChunkedArray, key: str, width: int) -> NDArray[Any]:
    """Return a column as numbers, [rows, width], or refuse it."""
    flat, lengths = column.combine_chunks(), [1]
    if pa.types.is_nested(flat.type):
        lengths, flat = flat.value_lengths().unique().to_pylist(), flat.flatten()
    values = flat.to_numpy(zero_copy_only=False)
    kinds = "iu" if key in _INDICES else "biuf"
    if lengths not in ([width], []) or flat.null_count or values.dtype.kind not in kinds:
        raise ValueError(f"not every row of {key} is {width} numbers")
    return values.reshape(-1, width)


def export_lerobot(
    dataset: EpisodeDataset, output: Path, fps: int | None, progress: Progress
) -> list[Path]:
    """Write each task's episodes as the LeRobot dataset TASK below `output`.

    Args:
        dataset: What to write.
        output: Folder for the datasets, made if it is not there.
        fps: Steps per second; None takes those of the task or of the import.
        progress: Receives the number of tasks.

    Returns:
        Folder of each dataset; those that were there already are kept.

    Raises:
        DataError: A shard that is missing or truncated, a full disk, or a folder that cannot be
            written.
        InputError: Steps per second that are not known.
    """
    rates = {name: fps or _rate(dataset, name) for name in dataset.task_names}

    def write(name: str, folder: Path) -> None:
        _write(dataset, name, rates[name], folder)

    return write_folders({name: output / name for name in rates}, _INFO, write, progress)


def _rate(dataset: EpisodeDataset, name: str) -> int | float:
    """Return a task's steps per second."""
    known = contract(dataset.tasks[name])
    rates = {known.rate_hz if known else None}
    rates |= {shard.source.get("fps") for shard in dataset.shards if shard.task == name}
    found = sorted(float(rate) for rate in rates if isinstance(rate, int | float))
    if len(found) != 1:
        text = " and ".join(f"{rate:g}" for rate in found) or "not known"
        raise InputError(f"the steps per second of {name} are {text}; choose them with `fps`")
    return int(found[0]) if found[0].is_integer() else found[0]


def _write(dataset: EpisodeDataset, name: str, fps: int | float, folder: Path) -> None:
    task = dataset.tasks[name]
    shards = [shard for shard in dataset.shards if shard.task == name]
    texts = list(dict.fromkeys(map(_text, shards)))
    features = _features(task, labelled=any(shard.labelled for shard in shards))
    schema = pa.schema({key: _type(**feature) for key, feature in features.items()})
    rows_of_file = _FILE_BYTES // (4 * (task.obs_dim + 2 * task.action_dim + 10))
    records: list[dict[str, Any]] = []
    for file, placed in groupby(
        _placed(dataset, shards), lambda one: one.start // rows_of_file
    ):
        place = {"chunk_index": file // _CHUNK, "file_index": file % _CHUNK}
        path = folder / "data" / _FILE.format(**place)
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(path, schema) as writer:
            for one in placed:
                columns = _columns(one, fps, texts.index(one.text))
                arrays = [_arrow(columns[field.name], field.type) for field in schema]
                writer.write_table(pa.table(arrays, schema=schema))
                records.append(_record(one, place, columns))
    info = {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": len(records),
        "total_frames": records[-1]["dataset_to_index"],
        "total_tasks": len(texts),
        "chunks_size": _CHUNK,
        "data_files_size_in_mb": _FILE_BYTES // 1_000_000,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{len(records)}"},
        "data_path": f"data/{_FILE}",
        "video_path": None,
        "features": features,
    }
    path = folder / _EPISODES / _FILE.format(chunk_index=0, file_index=0)
    path.parent.mkdir(parents=True)
    facts = {_OWN_TASK: json.dumps(TaskTable((task,)).to_json())}
    pq.write_table(pa.Table.from_pylist(records).replace_schema_metadata(facts), path)
    pq.write_table(_task_table(texts), folder / _TASKS)
    write_json(folder / "meta" / "stats.json", _joined(records), DataError)
    write_json(folder / _INFO, info, DataError)


@dataclass(frozen=True, slots=True, eq=False)
class _Placed:
    """An episode and its place in an export."""

    number: int
    start: int
    steps: int
    text: str
    episode: Episode


def _placed(dataset: EpisodeDataset, shards: Sequence[Shard]) -> Iterator[_Placed]:
    number = start = 0
    for shard in shards:
        for episode in dataset.episodes(shard):
            steps = len(episode.reward) - 1
            yield _Placed(number, start, steps, _text(shard), episode)
            number, start = number + 1, start + steps


def _text(shard: Shard) -> str:
    """Return a task in the words of the LeRobot dataset it came from, else its name."""
    return str(shard.source.get("text", shard.task))


def _features(task: Task, *, labelled: bool) -> dict[str, dict[str, Any]]:
    kinds = {
        _STATE: ("float32", task.obs_dim),
        _ACTION: ("float32", task.action_dim),
        _REWARD: ("float32", 1),
        **dict.fromkeys((_DONE, _TRUNCATED), ("bool", 1)),
        **({_LABEL: ("float32", task.action_dim)} if labelled else {}),
        "timestamp": ("float32", 1),
        **dict.fromkeys((*_INDICES, "index"), ("int64", 1)),
    }
    return {
        key: {"dtype": dtype, "shape": [width], "names": None}
        for key, (dtype, width) in kinds.items()
    }


def _type(dtype: str, shape: Sequence[int], names: None) -> pa.DataType:
    kind = pa.type_for_alias(dtype)
    return kind if shape == [1] else pa.list_(kind, shape[0])


def _columns(one: _Placed, fps: int | float, task: int) -> dict[str, NDArray[Any]]:
    """Return the rows of an episode; one without labels imitates its actions."""
    episode, frame = one.episode, np.arange(one.steps)
    last = frame == one.steps - 1
    return {
        _STATE: episode.obs[:-1],
        _ACTION: episode.action[1:],
        _REWARD: episode.reward[1:],
        _DONE: last,
        _TRUNCATED: last & (not episode.terminated),
        _LABEL: (episode.action if episode.label is None else episode.label)[1:],
        "timestamp": (frame / fps).astype(np.float32),
        _FRAME: frame,
        _EPISODE: np.full_like(frame, one.number),
        "index": one.start + frame,
        _TASK: np.full_like(frame, task),
    }


def _arrow(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    flat = pa.array(values.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=kind) if kind.num_fields else flat


def _record(
    one: _Placed, place: Mapping[str, int], columns: Mapping[str, NDArray[Any]]
) -> dict[str, Any]:
    """Return an episode's row of `meta/episodes`, with LeRobot's statistics."""
    record = {
        _EPISODE: one.number,
        "tasks": [one.text],
        "length": one.steps,
        **{f"data/{key}": value for key, value in place.items()},
        "dataset_from_index": one.start,
        "dataset_to_index": one.start + one.steps,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
        _LAST: one.episode.obs[-1],
        _SEED: one.episode.seed,
    }
    for key in (_STATE, _ACTION, _REWARD):
        values = columns[key].reshape(one.steps, -1).astype(np.float64)
        stats = {
            **{f"q{q:02}": np.percentile(values, q, axis=0) for q in (1, 10, 50, 90, 99)},
            **{"min": values.min(axis=0), "max": values.max(axis=0)},
            **{"mean": values.mean(axis=0), "std": values.std(axis=0)},
            "count": np.array([one.steps]),
        }
        record |= {f"stats/{key}/{name}": value for name, value in stats.items()}
    return record


def _joined(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Return the statistics of all episodes; a quantile is the outermost of theirs."""
    joined = {}
    for key in (_STATE, _ACTION, _REWARD):
        names = [name for name in records[0] if name.startswith(f"stats/{key}/")]
        every = {
            name.rpartition("/")[2]: np.stack([record[name] for record in records])
            for name in names
        }
        share = every["count"] / every["count"].sum()
        mean = (share * every["mean"]).sum(axis=0)
        variance = (share * (every["std"] ** 2 + (every["mean"] - mean) ** 2)).sum(axis=0)
        found = {
            **{name: every[name].min(axis=0) for name in ("min", "q01", "q10", "q50")},
            **{name: every[name].max(axis=0) for name in ("max", "q90", "q99")},
            **{"mean": mean, "std": np.sqrt(variance), "count": every["count"].sum(axis=0)},
        }
        joined[key] = {name: value.tolist() for name, value in found.items()}
    return joined


def _task_table(texts: Sequence[str]) -> pa.Table:
    """Return the table of tasks, in which pandas finds the index that LeRobot expects."""
    column = {"metadata": None, "pandas_type": "unicode", "numpy_type": "object"}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [{"name": "task", "field_name": "task", **column}],
    }
    table = pa.table({_TASK: pa.array(range(len(texts)), pa.int64()), "task": list(texts)})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})
