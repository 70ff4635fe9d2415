import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

minari = pytest.importorskip("minari")

import h5py  # noqa: E402
from gymnasium import spaces  # noqa: E402
from minari.data_collector import EpisodeBuffer  # noqa: E402
from minari.dataset.minari_storage import MinariStorage  # noqa: E402

from tdmpc_opt.agents.sources import open_source  # noqa: E402
from tdmpc_opt.checkpoints.checkpoint import from_model  # noqa: E402
from tdmpc_opt.checkpoints.native import write_native  # noqa: E402
from tdmpc_opt.configs.data import DataExportConfig, DataImportConfig  # noqa: E402
from tdmpc_opt.data.episodes import Episode, EpisodeDataset  # noqa: E402
from tdmpc_opt.data.exchange import export_data, import_data  # noqa: E402
from tdmpc_opt.errors import DataError, InputError, UnknownTaskError  # noqa: E402
from tdmpc_opt.schema import MT30, Task, TaskTable  # noqa: E402

OWN = Task("arm-reach", 5, 2, episode_length=6)


def _episode(task: Task, seed: int) -> Episode:
    rng = np.random.default_rng(seed)
    steps = task.episode_length
    action = rng.uniform(-1, 1, (steps + 1, task.action_dim)).astype(np.float32)
    reward = rng.uniform(0, 1, steps + 1).astype(np.float32)
    action[0], reward[0] = np.nan, np.nan
    obs = rng.normal(size=(steps + 1, task.obs_dim)).astype(np.float32)
    return Episode(task.name, seed, obs, action, reward)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """The Minari folder of three episodes of a task of our own."""
    dataset = EpisodeDataset.create(tmp_path / "data", TaskTable((OWN,)))
    episodes = [_episode(OWN, seed) for seed in range(3)]
    dataset.append_shard("a", [replace(e, label=-e.action) for e in episodes], {})
    config = DataExportConfig(data=dataset.path, output=tmp_path / "out", format="minari")
    (path,) = export_data(config)
    return Path(path)


def test_minari_reads_an_export_with_each_action_beside_its_observation(exported, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(exported.parents[1]))
    found = minari.load_dataset("tdmpc-opt/arm-reach-v0")
    assert (found.total_episodes, found.total_steps) == (3, 18)
    for number, episode in enumerate(found.iterate_episodes()):
        written = _episode(OWN, number)
        np.testing.assert_array_equal(episode.observations, written.obs)
        np.testing.assert_array_equal(episode.actions, written.action[1:])
        np.testing.assert_array_equal(episode.rewards, written.reward[1:])
        assert episode.truncations.tolist() == [False] * 5 + [True]


def test_episodes_that_go_out_and_in_are_identical(exported, tmp_path):
    config = DataImportConfig(sources=(exported,), output=tmp_path / "back")
    assert import_data(config).episodes == 3
    assert import_data(config).episodes == 0
    dataset = EpisodeDataset.open(tmp_path / "back")
    (task,) = dataset.tasks.tasks
    assert (task.name, task.obs_dim, task.action_dim, dataset.length) == ("arm-reach", 5, 2, 7)
    for number, episode in enumerate(dataset.episodes(dataset.shards[0])):
        written = _episode(OWN, number)
        assert episode.seed == number
        np.testing.assert_array_equal(episode.obs, written.obs)
        np.testing.assert_array_equal(episode.action, written.action)
        np.testing.assert_array_equal(episode.reward, written.reward)
        np.testing.assert_array_equal(episode.label, -written.action)


def test_tasks_of_two_widths_go_out_to_a_relative_folder_and_in(tmp_path, monkeypatch):
    dataset = EpisodeDataset.create(tmp_path / "data", MT30)
    for task in (MT30["cup-catch"], MT30["pendulum-swingup"]):
        dataset.append_shard(task.name, [_episode(task, 0)], {})
    monkeypatch.chdir(tmp_path)
    config = DataExportConfig(data=Path("data"), output=Path("out"), format="minari")
    sources = tuple(map(Path, export_data(config)))
    assert import_data(DataImportConfig(sources=sources, output=Path("back"))).episodes == 2
    assert EpisodeDataset.open(Path("back")).returns() == dataset.returns()


def test_a_task_of_mt30_is_known_by_name_and_widths(dataset_dir, tmp_path):
    out = tmp_path / "out"
    paths = export_data(DataExportConfig(data=dataset_dir, output=out, format="minari"))
    import_data(DataImportConfig(sources=tuple(map(Path, paths)), output=tmp_path / "back"))
    before, after = EpisodeDataset.open(dataset_dir), EpisodeDataset.open(tmp_path / "back")
    assert after.tasks == MT30
    assert after.returns() == before.returns()


def test_an_export_that_was_killed_is_written_anew(exported, tmp_path):
    killed = exported.with_name(f".{exported.name}.tmp")
    exported.rename(killed)
    (killed / "data" / "main_data.hdf5").write_bytes(b"half")
    config = DataExportConfig(
        data=tmp_path / "data", output=exported.parents[1], format="minari"
    )
    export_data(config)
    assert not killed.exists()
    back = DataImportConfig(sources=(exported,), output=tmp_path / "back")
    assert import_data(back).episodes == 3


def test_a_folder_of_something_else_is_not_written_over(exported, tmp_path):
    (exported / "data" / "metadata.json").unlink()
    config = DataExportConfig(
        data=tmp_path / "data", output=exported.parents[1], format="minari"
    )
    with pytest.raises(DataError, match=r"cannot export to .*not empty"):
        export_data(config)


def test_a_file_that_would_have_its_environment_built_is_refused(exported, tmp_path):
    metadata = exported / "data" / "metadata.json"
    record = json.loads(metadata.read_text())
    del record["observation_space"]
    record["env_spec"] = json.dumps({"id": "evil-v0", "entry_point": "os:abort"})
    metadata.write_text(json.dumps(record))
    with pytest.raises(DataError, match="does not store its spaces"):
        import_data(DataImportConfig(sources=(exported,), output=tmp_path / "back"))


def test_what_is_no_minari_dataset_is_refused(exported, tmp_path):
    output = tmp_path / "back"
    with pytest.raises(DataError, match="is no Minari dataset"):
        import_data(DataImportConfig(sources=(tmp_path,), output=output))
    with pytest.raises(InputError, match="has 5 observations, 2 actions and 6 steps, cup-c"):
        import_data(DataImportConfig(sources=(exported,), output=output, tasks="cup-catch"))
    two = "cup-catch,cup-spin"
    with pytest.raises(InputError, match="are of one task; --tasks names 2"):
        import_data(DataImportConfig(sources=(exported,), output=output, tasks=two))
    (exported / "data" / "metadata.json").write_text("{")
    with pytest.raises(DataError, match="no Minari dataset, or damaged"):
        import_data(DataImportConfig(sources=(exported,), output=output))


def _foreign(
    folder: Path,
    name: str,
    env: dict[str, object] | None = None,
    *,
    bounds: tuple[float, float] = (0, 10),
    steps: int = 4,
    ending: bool = False,
    episodes: int = 2,
) -> Path:
    """Write a dataset as Minari's users do, whose actions count 0, 1, 2 .. in each episode."""
    data = folder / name / "data"
    data.mkdir(parents=True)
    storage = MinariStorage.new(
        data,
        observation_space=spaces.Box(-np.inf, np.inf, (2,), np.float64),
        action_space=spaces.Box(*bounds, (1,), np.float64),
        env_spec=None,
    )
    last = np.arange(steps) == steps - 1
    buffers = [
        EpisodeBuffer(
            observations=np.full((steps + 1, 2), float(number)),
            actions=np.arange(steps, dtype=np.float64)[:, None],
            rewards=np.ones(steps),
            terminations=last & ending,
            truncations=last & (not ending),
        )
        for number in range(episodes)
    ]
    storage.update_episodes(buffers)
    facts = {"dataset_id": name, "minari_version": minari.__version__}
    if env is not None:
        facts["env_spec"] = json.dumps(env)
    storage.update_metadata(facts)
    return folder / name


def _imported(*folders: Path, output: Path, tasks: str | None = None) -> EpisodeDataset:
    import_data(DataImportConfig(sources=folders, output=output, tasks=tasks))
    return EpisodeDataset.open(output)


def test_actions_are_scaled_from_the_action_space_of_the_source(tmp_path):
    dataset = _imported(_foreign(tmp_path, "own/arm-v0"), output=tmp_path / "data")
    (shard,) = dataset.shards
    for episode in dataset.episodes(shard):
        np.testing.assert_allclose(episode.action[1:, 0], [-1, -0.8, -0.6, -0.4], atol=1e-6)
    assert (shard.source["action_low"], shard.source["action_high"]) == ([0], [10])


@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0, np.inf), (3, 3), (-3e38, 3e38)])
def test_actions_without_finite_bounds_are_refused(tmp_path, bounds):
    source = _foreign(tmp_path, "own/arm-v0", bounds=bounds)
    with pytest.raises(DataError, match="no finite bounds"):
        _imported(source, output=tmp_path / "data")


def test_actions_outside_the_action_space_are_refused(tmp_path):
    source = _foreign(tmp_path, "own/arm-v0", bounds=(0, 2))
    with pytest.raises(DataError, match="episode 0: has actions outside"):
        _imported(source, output=tmp_path / "data")


def test_two_robots_whose_datasets_end_in_the_same_words_stay_apart(tmp_path):
    first = _foreign(tmp_path, "mujoco/halfcheetah/expert-v0")
    second = _foreign(tmp_path, "mujoco/walker2d/expert-v0")
    dataset = _imported(first, output=tmp_path / "first")
    assert dataset.tasks.names == ("mujoco-halfcheetah-expert-v0",)
    with pytest.raises(DataError, match="mujoco-walker2d-expert-v0"):
        _imported(second, output=tmp_path / "first")


def test_two_datasets_of_one_environment_become_two_shards_of_its_task(tmp_path):
    env = {"id": "Walker2d-v5", "max_episode_steps": 4, "kwargs": {}}
    expert = _foreign(tmp_path, "mujoco/walker2d/expert-v0", env)
    medium = _foreign(tmp_path, "mujoco/walker2d/medium-v0", env)
    dataset = _imported(expert, medium, output=tmp_path / "data")
    assert dataset.tasks.names == ("Walker2d-v5",)
    assert dataset.tasks["Walker2d-v5"].env == "Walker2d-v5"
    assert (len(dataset.shards), len(dataset)) == (2, 4)


def test_an_environment_built_with_arguments_is_not_taken_for_the_registered_one(tmp_path):
    env = {"id": "Maze-v3", "max_episode_steps": 4, "kwargs": {"continuing_task": True}}
    source = _foreign(tmp_path, "D4RL/maze/umaze-v2", env)
    dataset = _imported(source, output=tmp_path / "data")
    assert dataset.tasks.tasks == (
        Task("D4RL-maze-umaze-v2", 2, 1, episode_length=4, custom=True),
    )


def test_the_limit_of_the_environment_decides_how_long_an_episode_is(tmp_path):
    env = {"id": "Walker2d-v5", "max_episode_steps": 9}
    dataset = _imported(_foreign(tmp_path, "a/b-v0", env), output=tmp_path / "data")
    assert (dataset.length, dataset.shards[0].rows, dataset.episodic) == (10, (5, 5), False)
    env["max_episode_steps"] = 3
    with pytest.raises(DataError, match="episode 0: 4 steps, not 1 to 3"):
        _imported(_foreign(tmp_path, "a/c-v0", env), output=tmp_path / "other")


def test_terminations_go_in_and_out(tmp_path):
    source = _foreign(tmp_path, "a/b-v0", ending=True)
    first = _imported(source, output=tmp_path / "data")
    assert [e.terminated for e in first.episodes(first.shards[0])] == [True, True]
    config = DataExportConfig(data=first.path, output=tmp_path / "out", format="minari")
    (folder,) = export_data(config)
    again = _imported(Path(folder), output=tmp_path / "again")
    assert again.shards[0].terminated == (True, True)


@pytest.mark.parametrize("field", ["terminations", "truncations"])
def test_an_episode_that_goes_on_after_its_end_is_refused(field, tmp_path):
    source = _foreign(tmp_path, "a/b-v0")
    with h5py.File(source / "data" / "main_data.hdf5", "r+") as file:
        file["episode_1"][field][1] = True
    with pytest.raises(DataError, match="episode 1: goes on after its end in step 2"):
        _imported(source, output=tmp_path / "data")


@pytest.mark.parametrize("lost", ["episode_0", "episode_1/rewards"])
def test_a_damaged_source_is_refused_in_one_line(lost, tmp_path):
    env = {"id": "Walker2d-v5", "max_episode_steps": 9}
    source = _foreign(tmp_path, "a/b-v0", env)
    with h5py.File(source / "data" / "main_data.hdf5", "r+") as file:
        del file[lost]
    with pytest.raises(DataError, match=r"b-v0 is damaged: .*; get it anew") as caught:
        _imported(source, output=tmp_path / "data")
    assert "\n" not in str(caught.value)


def test_a_source_that_grew_is_not_mixed_with_what_was_imported_of_it(tmp_path):
    _imported(_foreign(tmp_path / "before", "a/b-v0"), output=tmp_path / "data")
    longer = _foreign(tmp_path / "after", "a/b-v0", episodes=3)
    with pytest.raises(DataError, match="has 3 episodes, 2 when"):
        _imported(longer, output=tmp_path / "data")


def test_the_user_may_name_the_task_which_evaluation_then_reaches(
    tmp_path, monkeypatch, make_model
):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    point = "own_envs:Point-v0"
    source = _foreign(tmp_path, "x/Target-v0", bounds=(-3, 1), steps=8)
    with pytest.raises(DataError, match="outside"):
        _imported(source, output=tmp_path / "data", tasks=point)
    source = _foreign(tmp_path, "x/Other-v0", bounds=(-3, 2), steps=8)
    with pytest.raises(InputError, match=r"lie in \[-3.0\] to \[2.0\], those of own_envs"):
        _imported(source, output=tmp_path / "data", tasks=point)
    source = _foreign(tmp_path, "Point-v0", bounds=(-3, 10))
    tasks = _imported(source, output=tmp_path / "unnamed").tasks
    assert tasks.names == ("Point-v0",)
    path = tmp_path / "model.safetensors"
    write_native(path, from_model(make_model(tasks, task_dim=0)))
    assert open_source(str(path)).tasks(point).names == ("Point-v0",)
    with pytest.raises(UnknownTaskError, match="--tasks MODULE:ID"):
        open_source(str(path)).tasks(None)
