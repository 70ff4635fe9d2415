import csv
import gc
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from tdmpc_opt.checkpoints.checkpoint import from_model  # noqa: E402
from tdmpc_opt.checkpoints.native import write_native  # noqa: E402
from tdmpc_opt.cli import main  # noqa: E402
from tdmpc_opt.configs.data import DataExportConfig, DataImportConfig  # noqa: E402
from tdmpc_opt.configs.training import LossWeights, TrainConfig  # noqa: E402
from tdmpc_opt.data.episodes import Episode, EpisodeDataset  # noqa: E402
from tdmpc_opt.data.exchange import export_data, import_data  # noqa: E402
from tdmpc_opt.errors import DataError, InputError  # noqa: E402
from tdmpc_opt.schema import MT30, Task, TaskTable  # noqa: E402
from tdmpc_opt.training.loop import train  # noqa: E402

GOLDEN = Path(__file__).parent / "golden" / "lerobot"
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
ARM = Task("arm-reach", 5, 2, episode_length=6, custom=True, env="my_arm:Reach-v0")
POINT = "own_envs:Point-v0"


def _episode(task: Task, seed: int, steps: int, *, labelled: bool, ended: bool) -> Episode:
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (steps + 1, task.action_dim)).astype(np.float32)
    reward = rng.normal(size=steps + 1).astype(np.float32)
    action[0], reward[0] = np.nan, np.nan
    obs = rng.normal(size=(steps + 1, task.obs_dim)).astype(np.float32)
    label = -action if labelled else None
    return Episode(task.name, seed, obs, action, reward, label, ended)


def _added(path: Path, task: Task = ARM, *, labelled: bool = True) -> EpisodeDataset:
    dataset = EpisodeDataset.create(path, TaskTable((task,)))
    for seed, steps, ended in ((1, 6, True), (2, 3, True), (3, 6, False), (4, 4, False)):
        episode = _episode(task, seed, steps, labelled=labelled and seed < 3, ended=ended)
        dataset.append_shard(f"shard-{seed}", [episode], {})
    return dataset


def _exported(dataset: EpisodeDataset, output: Path, fps: int | None = 10) -> Path:
    config = DataExportConfig(data=dataset.path, output=output, format="lerobot", fps=fps)
    (path,) = export_data(config)
    return Path(path)


def _imported(folder: Path, output: Path, **options: Any) -> EpisodeDataset:
    import_data(DataImportConfig(sources=(folder,), output=output, **options))
    return EpisodeDataset.open(output)


def _episodes(dataset: EpisodeDataset) -> list[Episode]:
    dataset.check()
    return [episode for shard in dataset.shards for episode in dataset.episodes(shard)]


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A copy of the dataset that LeRobot's own library wrote: golden/make_lerobot.py."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "golden"))


@pytest.fixture
def point(tmp_path: Path, monkeypatch) -> Path:
    """A LeRobot dataset with the sizes of an environment of the user's."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    task = Task("point", 2, 1, episode_length=6, custom=True)
    folder = _exported(_added(tmp_path / "point", task, labelled=False), tmp_path / "foreign")
    for file in (folder / EPISODES, folder / DATA):  # without what is ours
        table = pq.ParquetFile(file).read().replace_schema_metadata()
        ours = [name for name in table.column_names if name.startswith("tdmpc_opt")]
        pq.write_table(table.drop_columns(ours), file)
    return folder


def _edit_info(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text())
    edit(info)
    path.write_text(json.dumps(info))


def _edit(path: Path, name: str, edit: Callable[[list[Any]], object]) -> None:
    """Change a column of a Parquet file."""
    table = pq.ParquetFile(path).read()
    values = table[name].to_pylist()
    edit(values)
    pq.write_table(
        table.set_column(table.column_names.index(name), name, pa.array(values)), path
    )


def test_a_dataset_of_lerobots_own_library_is_imported(golden, tmp_path):
    config = DataImportConfig(sources=(golden,), output=tmp_path / "data")
    report = import_data(config)
    assert report.episodes == 3
    assert "actions scaled to [-1, 1] from" in report.lines[1]
    assert import_data(config).episodes == 0
    dataset = EpisodeDataset.open(tmp_path / "data")
    assert dataset.tasks.tasks == tuple(
        Task(name, 4, 2, episode_length=12, custom=True)
        for name in ("Lift-the-cube", "Push-it")
    )
    rng, found = np.random.default_rng(0), _episodes(dataset)
    states = [rng.normal(size=(steps, 3)).astype(np.float32) for steps in (8, 12, 10)]
    every = np.concatenate(states)
    top = 3 * np.tanh(every[:, 0])
    for number, (episode, state) in enumerate(zip(found, states, strict=True)):
        np.testing.assert_array_equal(episode.obs[:-1, :3], state)
        np.testing.assert_array_equal(episode.obs[-1], episode.obs[-2])  # nothing is stored
        assert (episode.obs[:, 3] == number).all()
        raw = 3 * np.tanh(state[:, 0])
        expected = 2 * (raw - top.min()) / (top.max() - top.min()) - 1
        np.testing.assert_allclose(episode.action[1:, 0], expected, atol=1e-6)
        np.testing.assert_array_equal(episode.action[1:, 1], np.where(state[:, 1] > 0, 1, -1))
        np.testing.assert_array_equal(episode.reward[1:], np.arange(len(state)))
    # It has no next.truncated: the end of the longest episode counts as time.
    assert [episode.terminated for episode in found] == [True, False, True]


def test_every_number_goes_out_and_in(tmp_path):
    before = _added(tmp_path / "before")
    after = _imported(_exported(before, tmp_path / "out"), tmp_path / "after")
    assert (after.tasks, after.length) == (before.tasks, before.length)
    for old, new in zip(_episodes(before), _episodes(after), strict=True):
        assert (new.task, new.seed, new.terminated) == (old.task, old.seed, old.terminated)
        for name in ("obs", "action", "reward"):
            np.testing.assert_array_equal(getattr(new, name), getattr(old, name))
        # Where there was no label, the actions are imitated, as before.
        np.testing.assert_array_equal(new.label, old.action if old.label is None else old.label)


def test_every_number_comes_in_and_goes_out(golden, tmp_path):
    dataset = _imported(golden, tmp_path / "data")
    config = DataExportConfig(data=dataset.path, output=tmp_path / "out", format="lerobot")
    lift, push = map(Path, export_data(config))
    before = pq.ParquetFile(golden / DATA).read()
    after = [pq.ParquetFile(folder / DATA).read() for folder in (lift, push)]
    state = np.concatenate(
        [np.array(table["observation.state"].to_pylist()) for table in after]
    )
    np.testing.assert_array_equal(state[:, :3], before["observation.state"].to_pylist())
    np.testing.assert_array_equal(state[:, 3], before["observation.environment_state"])
    for name in ("next.reward", "next.done", "timestamp", "frame_index"):
        old, new = before[name].to_pylist(), pa.concat_tables(after)[name].to_pylist()
        assert old == new, name
    texts = pq.ParquetFile(lift / "meta/tasks.parquet").read()["task"].to_pylist()
    assert texts == ["Lift the cube."]
    assert json.loads((lift / "meta/info.json").read_text())["fps"] == 10


def test_an_export_is_laid_out_as_lerobots_own(tmp_path):
    folder = _exported(_added(tmp_path / "data"), tmp_path / "out")
    ours, theirs = (json.loads((f / "meta/info.json").read_text()) for f in (folder, GOLDEN))
    assert ours.keys() == theirs.keys()
    same = ("codebase_version", "chunks_size", "data_path", "video_path", "fps")
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    counts = ("total_episodes", "total_frames", "total_tasks", "splits")
    assert [ours[key] for key in counts] == [4, 19, 1, {"train": "0:4"}]
    shared = ours["features"].keys() & theirs["features"].keys() - {
        "observation.state",
        "action",
    }
    assert len(shared) == 7
    assert all(ours["features"][key] == theirs["features"][key] for key in shared)
    schemas = [pq.read_schema(f / DATA) for f in (folder, GOLDEN)]
    assert all(schemas[0].field(key).equals(schemas[1].field(key)) for key in shared)
    assert str(schemas[0].field("action").type) == str(schemas[1].field("action").type)
    columns = [{*pq.read_schema(f / EPISODES).names} for f in (folder, GOLDEN)]
    plain = [
        {name for name in names if "/" not in name or "_index" in name} for names in columns
    ]
    assert plain[0] == {name for name in plain[1] if not name.startswith("stats/")}
    assert {"stats/action/q99", "stats/observation.state/std"} <= columns[0] & columns[1]
    table = pq.ParquetFile(folder / DATA).read()
    assert table["index"].to_pylist() == [*range(19)]
    assert table["frame_index"].to_pylist() == [*range(6), *range(3), *range(6), *range(4)]


def test_statistics_are_those_of_all_rows(tmp_path):
    folder = _exported(_added(tmp_path / "data"), tmp_path / "out")
    action = np.array(pq.ParquetFile(folder / DATA).read()["action"].to_pylist())
    stats = json.loads((folder / "meta/stats.json").read_text())["action"]
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(stats[name], getattr(action, name)(axis=0), atol=1e-12)
    assert stats["count"] == [19]
    order = np.array(
        [stats[name] for name in ("min", "q01", "q10", "q50", "q90", "q99", "max")]
    )
    assert (np.diff(order, axis=0) >= 0).all()


def test_pandas_finds_the_tasks_where_lerobot_expects_them(tmp_path):
    pandas = pytest.importorskip("pandas")
    folder = _exported(_added(tmp_path / "data"), tmp_path / "out")
    table = pandas.read_parquet(folder / "meta" / "tasks.parquet")
    assert table.loc["arm-reach"].task_index == 0
    assert table.iloc[0].name == "arm-reach"


def test_tasks_of_mt30_keep_their_names_and_rates(dataset_dir, tmp_path):
    out = tmp_path / "out"
    config = DataExportConfig(data=dataset_dir, output=out, format="lerobot")
    paths = tuple(map(Path, export_data(config)))
    assert export_data(config) == [*map(str, paths)]
    rates = {p.name: json.loads((p / "meta/info.json").read_text())["fps"] for p in paths}
    assert rates == {"pendulum-swingup": 25, "cartpole-balance": 50}
    import_data(DataImportConfig(sources=paths, output=tmp_path / "back"))
    before, after = EpisodeDataset.open(dataset_dir), EpisodeDataset.open(tmp_path / "back")
    assert after.tasks == MT30
    assert after.returns() == before.returns()


def test_an_environment_that_is_named_gives_the_bounds_of_the_actions(point, tmp_path):
    raw = pq.ParquetFile(point / DATA).read()["action"].to_numpy()
    dataset = _imported(point, tmp_path / "data", tasks=POINT)
    assert dataset.tasks[dataset.task_names[0]].env == POINT
    scaled = np.concatenate([episode.action[1:, 0] for episode in _episodes(dataset)])
    np.testing.assert_allclose(scaled, (raw - -3) / (1 - -3) * 2 - 1, atol=1e-6)


def test_actions_outside_the_environments_bounds_are_refused(point, tmp_path):
    def push(values: list[float]) -> None:
        values[7] = 1.5

    _edit(point / DATA, "action", push)
    with pytest.raises(
        DataError, match=r"episode 1: has actions outside .*\[-3.0\] to \[1.0\]"
    ):
        _imported(point, tmp_path / "data", tasks=POINT)
    dataset = _imported(point, tmp_path / "skipped", tasks=POINT, on_bad="skip")
    assert len(dataset) == 3


def test_an_action_that_never_changes_becomes_zero(point, tmp_path):
    _edit(point / DATA, "action", lambda values: values.__setitem__(slice(None), [4.0] * 19))
    dataset = _imported(point, tmp_path / "data")
    assert all((episode.action[1:] == 0).all() for episode in _episodes(dataset))


def test_datasets_whose_actions_have_two_scales_are_not_mixed(point, tmp_path):
    _edit(point / DATA, "action", lambda values: values.__setitem__(0, 4.0))
    other = Path(shutil.copytree(point, tmp_path / "other"))
    _edit(other / DATA, "action", lambda values: values.__setitem__(0, 5.0))
    _imported(point, tmp_path / "data")
    with pytest.raises(DataError, match="name the environment of both with --tasks"):
        _imported(other, tmp_path / "data")


def test_without_rewards_they_are_zero_and_the_report_says_what_to_do(point, tmp_path):
    _edit_info(point, lambda info: info["features"].pop("next.reward"))
    config = DataImportConfig(sources=(point,), output=tmp_path / "data")
    assert any("rewards are 0; imitate it" in line for line in import_data(config).lines)
    dataset = EpisodeDataset.open(tmp_path / "data")
    assert all((episode.reward[1:] == 0).all() for episode in _episodes(dataset))


def test_videos_are_named_as_not_read(point, tmp_path):
    video = {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    _edit_info(point, lambda info: info["features"].update({"observation.images.top": video}))
    config = DataImportConfig(sources=(point,), output=tmp_path / "data")
    assert any(
        "not read: observation.images.top (video)" in s for s in import_data(config).lines
    )


def test_a_dataset_of_images_alone_is_refused(point, tmp_path):
    def blind(info: dict[str, Any]) -> None:
        info["features"]["observation.image"] = {"dtype": "image", "shape": [48, 64, 3]}
        del info["features"]["observation.state"]

    _edit_info(point, blind)
    with pytest.raises(DataError, match=r"only observation.image \(image\); agents here take"):
        _imported(point, tmp_path / "data")


def test_texts_that_make_one_name_stay_two_tasks(golden, tmp_path):
    table = pa.table({"task_index": [0, 1], "task": ["Push it!", "Push it?"]})
    pq.write_table(table, golden / "meta" / "tasks.parquet")
    assert _imported(golden, tmp_path / "data").task_names == ("Push-it", "Push-it-1")


def test_several_tasks_are_one_where_the_user_names_it(golden, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    (tmp_path / "wide_envs.py").write_text(
        "import gymnasium, numpy as np\n"
        "from gymnasium.spaces import Box\n"
        "from own_envs import Point\n"
        "class Wide(Point):\n"
        "    def _obs(self):\n"
        "        return np.zeros(4)\n"
        "    def __init__(self):\n"
        "        super().__init__(None, Box(-9.0, 9.0, (4,)), Box(-4.0, 4.0, (2,)))\n"
        "gymnasium.register(id='Wide-v0', entry_point=Wide, max_episode_steps=12)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    dataset = _imported(golden, tmp_path / "data", tasks="wide_envs:Wide-v0")
    assert (dataset.task_names, len(dataset)) == (("Wide-v0",), 3)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _set(place: int, value: object) -> Callable[[list[Any]], None]:
    return lambda values: values.__setitem__(place, value)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no info": (
        lambda f: (f / "meta/info.json").unlink(),
        "no Minari dataset .* and no LeRobot dataset",
    ),
    "bad info": (lambda f: (f / "meta/info.json").write_text("{"), "or damaged"),
    "version": (
        lambda f: _edit_info(f, lambda info: info.update(codebase_version="v2.1")),
        "format v2.1, only v3 is read",
    ),
    "no version": (
        lambda f: _edit_info(f, lambda info: info.pop("codebase_version")),
        "damaged",
    ),
    "fps": (lambda f: _edit_info(f, lambda info: info.update(fps=0)), "fps is 0"),
    "no tasks": (lambda f: (f / "meta/tasks.parquet").unlink(), "damaged.*tasks.parquet"),
    "no episodes": (lambda f: shutil.rmtree(f / "meta/episodes"), "lists no episode"),
    "cut episodes": (lambda f: _cut(f / EPISODES), "damaged"),
    "cut data": (lambda f: _cut(f / DATA), "cannot read .*file-000.parquet"),
    "no data": (lambda f: shutil.rmtree(f / "data"), "data has no rows of episode 0"),
    "no column": (
        lambda f: pq.write_table(pq.ParquetFile(f / DATA).read().drop(["action"]), f / DATA),
        "cannot read .*action",
    ),
    "words": (lambda f: _edit(f / DATA, "action", _words), "not every row of action is 1 num"),
    "width": (
        lambda f: _edit(f / DATA, "observation.state", _set(0, [1.0])),
        "not every row of observation.state is 2 numbers",
    ),
    "gap": (lambda f: _edit(f / DATA, "action", _set(3, None)), "not every row of action"),
    "one more episode": (
        lambda f: _edit(f / EPISODES, "episode_index", _set(3, 9)),
        "no rows of episode 9",
    ),
    "unknown task": (lambda f: _edit(f / DATA, "task_index", _set(0, 7)), "damaged: 7"),
}


def _words(values: list[Any]) -> None:
    values[:] = ["a"] * len(values)


@pytest.mark.parametrize("name", BROKEN)
def test_a_source_that_is_damaged_or_foreign_is_named_and_may_be_skipped(name, point, tmp_path):
    damage, message = BROKEN[name]
    damage(point)
    with pytest.raises(DataError, match=message):
        _imported(point, tmp_path / "data")
    good = _exported(_added(tmp_path / "good"), tmp_path / "out")
    config = DataImportConfig(sources=(point, good), output=tmp_path / "both", on_bad="skip")
    report = import_data(config)
    assert (report.episodes, len(report.left_out)) == (4, 1)


@pytest.mark.parametrize(
    ("file", "column", "place", "value", "message"),
    [
        (DATA, "observation.state", 2, [np.nan, 0.0], "episode 0: holds NaN"),
        (DATA, "next.reward", 7, np.inf, "episode 1: holds NaN or infinity"),
        (DATA, "action", 7, np.nan, "episode 1: holds NaN or infinity"),
        (DATA, "frame_index", 7, 5, "episode 1: its frame_index does not count"),
        (DATA, "next.done", 6, True, "episode 1: goes on after its end in step 1"),
        (DATA, "next.truncated", 7, True, "episode 1: goes on after its end in step 2"),
        (EPISODES, "length", 1, 4, "episode 1: has 3 rows, meta/episodes states 4"),
    ],
)
def test_an_episode_with_a_fault_is_named_and_may_be_skipped(
    file, column, place, value, message, point, tmp_path
):
    _edit(point / file, column, _set(place, value))
    with pytest.raises(DataError, match=message):
        _imported(point, tmp_path / "data")
    assert len(_imported(point, tmp_path / "skipped", on_bad="skip")) == 3


def test_a_last_observation_of_another_width_is_refused(tmp_path):
    folder = _exported(_added(tmp_path / "data"), tmp_path / "out")
    _edit(folder / EPISODES, "tdmpc_opt/last_observation", _set(0, [1.0]))
    with pytest.raises(DataError, match="damaged: cannot reshape"):
        _imported(folder, tmp_path / "back")


def test_a_task_of_other_sizes_than_the_data_is_refused(tmp_path):
    folder = _exported(_added(tmp_path / "data"), tmp_path / "out")
    task = TaskTable((replace(ARM, obs_dim=4),)).to_json()
    table = pq.ParquetFile(folder / EPISODES).read()
    pq.write_table(
        table.replace_schema_metadata({"tdmpc_opt/task": json.dumps(task)}), folder / EPISODES
    )
    with pytest.raises(DataError, match="its numbers are not those of arm-reach"):
        _imported(folder, tmp_path / "back")


def test_steps_per_second_are_asked_for_where_they_are_not_known(tmp_path, capsys):
    dataset = _added(tmp_path / "data")
    with pytest.raises(InputError, match="steps per second of arm-reach are not known"):
        _exported(dataset, tmp_path / "out", fps=None)
    words = ["data", "export", str(dataset.path), "--output", str(tmp_path / "out")]
    assert main([*words, "--format", "lerobot"]) == 1
    assert "choose them with --fps" in capsys.readouterr().err
    assert main([*words, "--format", "lerobot", "--fps", "20"]) == 0
    with pytest.raises(SystemExit):
        main([*words, "--format", "official", "--fps", "20"])
    assert "--fps is at least 1, and needs --format lerobot" in capsys.readouterr().err


def test_an_export_that_was_killed_is_written_anew(tmp_path):
    dataset = _added(tmp_path / "data")
    killed = tmp_path / "out" / ".arm-reach.tmp" / "data"
    killed.mkdir(parents=True)
    (killed / "half").touch()
    assert len(_imported(_exported(dataset, tmp_path / "out"), tmp_path / "back")) == 4
    assert not killed.exists()


def test_an_export_fills_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tdmpc_opt.data.lerobot._FILE_BYTES", 1000)
    folder = _exported(_added(tmp_path / "data"), tmp_path / "out")
    files = sorted(path.name for path in folder.glob("data/*/*"))
    assert files == ["file-000.parquet", "file-001.parquet"]
    index = pq.ParquetFile(folder / EPISODES).read()["data/file_index"].to_pylist()
    assert index == [0, 0, 0, 1]
    after = _episodes(_imported(folder, tmp_path / "back"))
    assert [episode.seed for episode in after] == [1, 2, 3, 4]


def _recorded_by_minari(folder: Path, monkeypatch) -> Path:
    """Record episodes of Gymnasium's pendulum with Minari's own library."""
    minari = pytest.importorskip("minari")
    pytest.importorskip("jax")  # which Minari needs to record, though not to read
    gymnasium = pytest.importorskip("gymnasium")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it advises on metadata, and leaves temporary folders
        env = minari.DataCollector(gymnasium.make("Pendulum-v1"))
        for seed in range(2):
            obs, _ = env.reset(seed=seed)
            truncated = False
            while not truncated:
                torque = np.clip(-2 * obs[1:2] - obs[2:] / 4, -2, 2)
                obs, _, _, truncated, _ = env.step(torque.astype(np.float32))
        env.create_dataset("pendulum/damped-v0")
        env.close()
        del env
        gc.collect()
    return folder / "pendulum" / "damped-v0"


@pytest.mark.parametrize("kind", ["minari", "lerobot"])
def test_a_student_learns_from_data_of_another_program(
    kind, golden, tmp_path, monkeypatch, make_model, unchecked
):
    source = golden if kind == "lerobot" else _recorded_by_minari(tmp_path / "own", monkeypatch)
    dataset = _imported(source, tmp_path / "data")
    start = tmp_path / "start.safetensors"
    write_native(start, from_model(make_model(dataset.tasks, episodic=dataset.episodic)))
    config = TrainConfig(
        data=dataset.path,
        output=tmp_path / "run",
        start=str(start),
        updates=80,
        batch_size=16,
        lr=3e-3,
        weights=LossWeights(behaviour=20.0),
        device="cpu",
        log_every=10,
    )
    train(config)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        losses = [float(row["behaviour"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[0] / 3
