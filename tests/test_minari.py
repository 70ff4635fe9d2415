import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

minari = pytest.importorskip("minari")

from tdmpc_opt.collection.exchange import export_data, import_data  # noqa: E402
from tdmpc_opt.configs import DataExportConfig, DataImportConfig  # noqa: E402
from tdmpc_opt.data.episodes import Episode, EpisodeDataset  # noqa: E402
from tdmpc_opt.errors import DataError, InputError  # noqa: E402
from tdmpc_opt.task_table import MT30, Task, TaskTable  # noqa: E402

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


def test_a_task_of_mt30_is_known_by_name_and_widths(dataset_dir, tmp_path):
    out = tmp_path / "out"
    paths = export_data(DataExportConfig(data=dataset_dir, output=out, format="minari"))
    import_data(DataImportConfig(sources=tuple(map(Path, paths)), output=tmp_path / "back"))
    before, after = EpisodeDataset.open(dataset_dir), EpisodeDataset.open(tmp_path / "back")
    assert after.tasks == MT30
    assert after.returns() == before.returns()


def test_an_export_that_was_killed_is_written_anew(exported, tmp_path):
    metadata = exported / "data" / "metadata.json"
    record = json.loads(metadata.read_text())
    del record["dataset_id"]  # which is written last
    metadata.write_text(json.dumps(record))
    (exported / "data" / "main_data.hdf5").write_bytes(b"half")
    config = DataExportConfig(
        data=tmp_path / "data", output=exported.parents[1], format="minari"
    )
    export_data(config)
    back = DataImportConfig(sources=(exported,), output=tmp_path / "back")
    assert import_data(back).episodes == 3


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
    with pytest.raises(InputError, match="holds one task"):
        import_data(DataImportConfig(sources=(exported,), output=output, tasks="cup-catch"))
    (exported / "data" / "metadata.json").write_text("{")
    with pytest.raises(DataError, match="no Minari dataset, or damaged"):
        import_data(DataImportConfig(sources=(exported,), output=output))
