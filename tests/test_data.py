import errno
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from tdmpc_opt.data import shards
from tdmpc_opt.data.episodes import Episode, EpisodeDataset
from tdmpc_opt.data.reports import summarize, write_dataset_card
from tdmpc_opt.errors import DataError
from tdmpc_opt.report.charts import plot_returns
from tdmpc_opt.schema import MT30, Task, TaskTable

TASKS = TaskTable((Task("wide", 4, 3, episode_length=8), Task("thin", 2, 1, episode_length=8)))


def _episode(task: str, seed: int) -> Episode:
    rng = np.random.default_rng(seed)
    sizes = TASKS[task]
    action = rng.uniform(-1, 1, (9, sizes.action_dim)).astype(np.float32)
    reward = rng.uniform(0, 1, 9).astype(np.float32)
    action[0], reward[0] = np.nan, np.nan
    obs = rng.normal(size=(9, sizes.obs_dim)).astype(np.float32)
    return Episode(task, seed, obs, action, reward)


def _labelled(task: str, seed: int) -> Episode:
    """An episode whose rows 3 and 4 nobody labelled."""
    episode = _episode(task, seed)
    label = np.random.default_rng(seed + 50).uniform(-1, 1, episode.action.shape)
    label[[0, 3, 4]] = np.nan
    return replace(episode, label=label.astype(np.float32))


def _episodes(task: str, count: int = 3) -> list[Episode]:
    return [_episode(task, seed) for seed in range(count)]


@pytest.fixture
def dataset(tmp_path: Path) -> EpisodeDataset:
    dataset = EpisodeDataset.create(tmp_path / "data", TASKS)
    dataset.append_shard("wide-0", _episodes("wide"), {"policy": "random", "noise": 0.0})
    dataset.append_shard("thin-0", _episodes("thin", 2), {"policy": "zoo:a", "sha256": "f00"})
    return dataset


def test_episodes_come_back_bit_for_bit(dataset):
    opened = EpisodeDataset.open(dataset.path)
    assert opened.tasks == TASKS
    assert (len(opened), opened.length, opened.task_names) == (5, 9, ("wide", "thin"))
    assert opened.shards == dataset.shards
    assert opened.shards[1].source == {"policy": "zoo:a", "sha256": "f00"}
    for shard, task in zip(opened.shards, ("wide", "thin"), strict=True):
        for found, written in zip(
            opened.episodes(shard), _episodes(task, shard.episodes), strict=True
        ):
            assert (found.task, found.seed) == (task, written.seed)
            np.testing.assert_array_equal(found.obs, written.obs)
            np.testing.assert_array_equal(found.action, written.action)
            np.testing.assert_array_equal(found.reward, written.reward)


def test_labels_come_back_bit_for_bit_beside_shards_without(dataset):
    written = [_labelled("thin", seed) for seed in range(2)]
    dataset.append_shard("thin-1", written, {})
    opened = EpisodeDataset.open(dataset.path)
    assert [shard.labelled for shard in opened.shards] == [False, False, True]
    for found, episode in zip(opened.episodes(opened.shards[2]), written, strict=True):
        np.testing.assert_array_equal(found.label, episode.label)
        np.testing.assert_array_equal(found.action, episode.action)
    assert all(episode.label is None for episode in opened.episodes(opened.shards[1]))
    assert opened.arrays(opened.shards[1]).label is None
    opened.check()
    loaded = TensorDict.load_memmap(dataset.path / "thin-1")["label"]
    assert (loaded.shape, loaded.dtype) == ((2, 9, 3), torch.float32)


def test_a_dataset_from_before_there_were_labels_opens(dataset):
    listing = dataset.path / "dataset.json"
    record = json.loads(listing.read_text())
    for shard in record["shards"]:
        del shard["labelled"]
    listing.write_text(json.dumps(record))
    opened = EpisodeDataset.open(dataset.path)
    assert opened.shards == dataset.shards
    opened.check()
    opened.append_shard("thin-1", [_labelled("thin", 0)], {})
    assert [s.labelled for s in EpisodeDataset.open(dataset.path).shards][1:] == [False, True]


def test_a_missing_or_truncated_label_file_is_named(dataset):
    dataset.append_shard("thin-1", [_labelled("thin", 0)], {})
    file = dataset.path / "thin-1" / "label.memmap"
    os.truncate(file, 100)
    with pytest.raises(DataError, match=r"thin-1/label\.memmap holds 100 bytes where 108 were"):
        EpisodeDataset.open(dataset.path)
    file.unlink()
    with pytest.raises(DataError, match=r"cannot read .*label\.memmap: No such file"):
        EpisodeDataset.open(dataset.path)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_labels_that_are_no_action_and_not_missing_are_refused(dataset, value):
    episode = _labelled("wide", 0)
    episode.label[6, 1] = value
    with pytest.raises(
        DataError, match=r"episode 1 \(wide\): label holds infinity, or NaN in a"
    ):
        dataset.append_shard("new", [_labelled("wide", 1), episode], {})
    with pytest.raises(DataError, match="episode 1: some episodes have labels, some have none"):
        dataset.append_shard("new", [_labelled("wide", 1), _episode("wide", 0)], {})
    assert not (dataset.path / "new").exists()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((1, 5, 0), np.inf, "episode 1 .*label holds infinity"),
        ((0, 2, 1), np.nan, "episode 0 .*label holds .*NaN in a part"),
        ((1, 8, 2), 0.5, "episode 1 .*label is not zero in its padding"),
    ],
)
def test_check_finds_damaged_labels(dataset, place, value, message):
    two = Task("two", 2, 2, episode_length=8)
    tasks = TaskTable((two, *TASKS.tasks))
    dataset = EpisodeDataset.create(dataset.path / "more", tasks)
    episodes = [replace(_labelled("wide", seed), task="two") for seed in range(2)]
    episodes = [
        replace(e, obs=e.obs[:, :2], action=e.action[:, :2], label=e.label[:, :2])
        for e in episodes
    ]
    dataset.append_shard("two-0", episodes, {})
    dataset.check()
    values = np.memmap(dataset.path / "two-0/label.memmap", "<f4", "r+", shape=(2, 9, 3))
    values[place] = value
    values.flush()
    with pytest.raises(DataError, match=f"shard two-0, {message}"):
        dataset.check()


def test_a_dataset_is_of_mt30_unless_told(tmp_path):
    dataset = EpisodeDataset.create(tmp_path)
    assert EpisodeDataset.open(tmp_path).tasks == MT30
    assert (dataset.length, dataset.tasks.obs_dim, dataset.tasks.action_dim) == (501, 24, 6)


def test_tensordict_opens_a_shard_in_the_official_convention(dataset):
    shard = TensorDict.load_memmap(dataset.path / "thin-0")
    assert shard.batch_size == torch.Size([2, 9])
    assert {name: value.dtype for name, value in shard.items()} == {
        "obs": torch.float32,
        "action": torch.float32,
        "reward": torch.float32,
        "task": torch.int32,
    }
    written = _episode("thin", 1)
    assert torch.equal(shard["obs"][1, :, :2], torch.from_numpy(written.obs))
    assert (shard["obs"][..., 2:] == 0).all()
    assert (shard["action"][:, 1:, 1:] == 0).all()
    assert shard["action"][:, 0].isnan().all()
    assert shard["reward"][:, 0].isnan().all()
    assert (shard["task"] == 1).all()


def test_returns_skip_the_filler_row(dataset):
    returns = dataset.returns()
    assert list(returns) == ["wide", "thin"]
    expected = [episode.reward[1:].sum(dtype=np.float64) for episode in _episodes("wide")]
    assert returns["wide"] == pytest.approx(expected)
    assert _episode("wide", 1).total_reward == pytest.approx(expected[1])


def test_the_summary_counts_each_task(dataset):
    dataset.append_shard("wide-1", _episodes("wide", 1), {})
    wide, thin = summarize(dataset)
    assert (wide.task, wide.shards, wide.episodes, wide.transitions) == ("wide", 2, 4, 32)
    assert (wide.labelled, thin.labelled) == (0, 0)
    dataset.append_shard("thin-1", [_labelled("thin", 3)], {})
    assert summarize(dataset)[1].labelled == 6
    returns = dataset.returns()["thin"][:2]
    assert (thin.return_min, thin.return_max) == (min(returns), max(returns))
    assert thin.return_mean == pytest.approx(np.mean(returns))


def test_open_or_create_refuses_a_dataset_of_other_tasks(dataset, tmp_path):
    assert len(EpisodeDataset.open_or_create(dataset.path, TASKS)) == 5
    assert len(EpisodeDataset.open_or_create(tmp_path / "new", TASKS)) == 0
    with pytest.raises(DataError, match="cannot be added"):
        EpisodeDataset.open_or_create(dataset.path)
    with pytest.raises(DataError, match="already holds a dataset"):
        EpisodeDataset.create(dataset.path, TASKS)


def test_tasks_of_two_lengths_share_a_dataset(dataset, tmp_path):
    mixed = TaskTable((*TASKS.tasks, Task("long", 2, 1, episode_length=20)))
    other = EpisodeDataset.create(tmp_path / "mixed", mixed)
    other.append_shard("wide-0", _episodes("wide"), {})
    opened = EpisodeDataset.open(other.path)
    assert (opened.length, opened.shards[0].rows) == (21, (9, 9, 9))
    found = list(opened.episodes(opened.shards[0]))
    for episode, written in zip(found, _episodes("wide"), strict=True):
        assert np.array_equal(episode.obs, written.obs)
    files = [(d.path / "wide-0/obs.memmap").read_bytes() for d in (dataset, other)]
    assert files[0] == files[1]


def _ended(task: str, seed: int, rows: int, terminated: bool) -> Episode:
    """The first rows of an episode, its third step nobody labelled."""
    whole = _labelled(task, seed)
    fields = (whole.obs, whole.action, whole.reward, whole.label)
    return Episode(task, seed, *(field[:rows] for field in fields), terminated=terminated)


ENDED = ((4, True), (6, False), (9, True), (9, False))


def test_episodes_of_any_length_come_back_with_how_they_ended(dataset):
    written = [_ended("thin", 7 + i, *how) for i, how in enumerate(ENDED)]
    dataset.append_shard("thin-1", written, {})
    dataset.append_shard("thin-2", written[:2], {})
    dataset.check()
    opened = EpisodeDataset.open(dataset.path)
    assert (opened.episodic, opened.shards[0].rows) == (True, ())
    for shard, count in zip(opened.shards[2:], (4, 2), strict=True):
        found = list(opened.episodes(shard))
        assert [(len(e.obs), e.terminated) for e in found] == [*ENDED[:count]]
        for episode, expected in zip(found, written, strict=False):
            for field in ("obs", "action", "reward", "label"):
                values = getattr(episode, field), getattr(expected, field)
                assert np.array_equal(*values, equal_nan=True)
    short = opened.arrays(opened.shards[3])
    assert short.obs.shape == (2, 6, 4)
    assert opened.returns()["thin"][2:6] == pytest.approx([e.total_reward for e in written])
    thin = summarize(opened)[1]
    assert (thin.episodes, thin.transitions) == (8, 2 * 8 + 3 + 5 + 8 + 8 + 3 + 5)
    labels = sum(int(np.isfinite(e.label[:, 0]).sum()) for e in [*written, *written[:2]])
    assert thin.labelled == labels


def test_listings_without_ends_are_as_before_there_were_any(dataset):
    plain = json.loads((dataset.path / "dataset.json").read_text())
    assert plain["schema"] == 1
    assert all({"rows", "terminated"}.isdisjoint(shard) for shard in plain["shards"])
    dataset.append_shard("thin-1", [_ended("thin", 7, 4, True)], {})
    record = json.loads((dataset.path / "dataset.json").read_text())
    assert record["schema"] == 2  # a reader of 1 would take the padding for steps
    assert record["shards"][:2] == plain["shards"]
    assert (record["shards"][2]["rows"], record["shards"][2]["terminated"]) == ([4], [True])


def test_open_says_that_there_is_no_dataset(tmp_path):
    with pytest.raises(DataError, match=r"no dataset at .*tdmpc-opt collect --output"):
        EpisodeDataset.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:100], r"cannot read .*dataset\.json"),
        (lambda text: "[]", "describes no dataset"),
        (lambda text: text.replace("tdmpc-opt-data", "other"), "describes no dataset"),
        (lambda text: text.replace('"schema": 1', '"schema": 3'), "schema 3.*newer tdmpc-opt"),
        (lambda text: text.replace('"length"', '"size"'), r"damaged \(KeyError\('length'"),
        (lambda text: text.replace('"name": "wide-0"', '"name": "../x"'), "damaged"),
        (lambda text: text.replace('"episodes": 2', '"episodes": 1'), "damaged"),
    ],
)
def test_a_damaged_listing_is_refused_by_name(dataset, change, message):
    listing = dataset.path / "dataset.json"
    listing.write_text(change(listing.read_text()))
    with pytest.raises(DataError, match=message):
        EpisodeDataset.open(dataset.path)


def test_a_truncated_or_missing_shard_file_is_named_and_left_alone(dataset):
    file = dataset.path / "wide-0" / "obs.memmap"
    os.truncate(file, 100)
    with pytest.raises(DataError, match=r"wide-0/obs\.memmap holds 100 bytes where 432 were"):
        EpisodeDataset.open(dataset.path)
    with pytest.raises(DataError, match=r"obs\.memmap"):
        dataset.arrays(dataset.shards[0])
    assert file.stat().st_size == 100
    file.unlink()
    with pytest.raises(DataError, match=r"cannot read .*obs\.memmap: No such file"):
        EpisodeDataset.open(dataset.path)


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b", "a b", "dataset.json"])
def test_a_shard_name_must_be_a_plain_folder_name(dataset, name):
    with pytest.raises(DataError, match="cannot name a shard"):
        dataset.append_shard(name, _episodes("wide"), {})


def test_a_shard_cannot_be_added_twice(dataset):
    assert dataset.has_shard("wide-0")
    with pytest.raises(DataError, match="already has a shard wide-0"):
        dataset.append_shard("wide-0", _episodes("wide"), {})


def test_two_handles_on_one_dataset_lose_no_shard(dataset):
    other = EpisodeDataset.open(dataset.path)
    dataset.append_shard("wide-1", _episodes("wide"), {})
    other.append_shard("wide-2", _episodes("wide"), {})
    names = [shard.name for shard in EpisodeDataset.open(dataset.path).shards]
    assert names == ["wide-0", "thin-0", "wide-1", "wide-2"]


def _spoiled(field: str, row: int) -> Episode:
    episode = _episode("thin", 0)
    getattr(episode, field)[row] = np.inf
    return episode


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        ([], "would be empty"),
        ([_episode("wide", 0), _episode("thin", 0)], "is of thin, the first is of wide"),
        ([_spoiled("obs", 0)], r"shard new, episode 0 \(thin\): obs holds NaN"),
        ([_spoiled("action", 3)], "action holds NaN"),
        ([_spoiled("reward", 8)], "reward holds NaN"),
    ],
)
def test_episodes_that_do_not_fit_are_refused(dataset, episodes, message):
    with pytest.raises(DataError, match=message):
        dataset.append_shard("new", episodes, {})
    assert not (dataset.path / "new").exists()


def test_episodes_of_another_length_width_or_task_are_refused(dataset):
    thin = _episode("thin", 0)
    fields = (thin.obs, thin.action, thin.reward)
    for rows in (np.zeros(1, int), np.arange(12) % 9):
        with pytest.raises(DataError, match=rf"{len(rows)} observations; .* 2 to 9"):
            dataset.append_shard("new", [Episode("thin", 0, *(f[rows] for f in fields))], {})
    padded = Episode("thin", 0, thin.obs, np.zeros((9, 3), np.float32), thin.reward)
    with pytest.raises(DataError, match=r"action has shape \[9, 3\], expected \[9, 1\]"):
        dataset.append_shard("new", [padded], {})
    with pytest.raises(DataError, match="unknown task 'other'"):
        dataset.append_shard(
            "new", [Episode("other", 0, thin.obs, thin.action, thin.reward)], {}
        )


def test_a_source_that_is_no_json_is_refused_and_nothing_listed(dataset):
    with pytest.raises(DataError, match=r"cannot write .*dataset\.json"):
        dataset.append_shard("new", _episodes("wide"), {"policy": object()})
    assert len(EpisodeDataset.open(dataset.path).shards) == 2
    dataset.append_shard("new", _episodes("wide"), {"policy": "random"})
    assert len(EpisodeDataset.open(dataset.path).shards) == 3


def test_a_full_disk_is_reported_and_leaves_the_dataset_as_it_was(dataset, monkeypatch):
    before = sorted(path.name for path in dataset.path.iterdir())

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_fill", full)
        with pytest.raises(DataError, match="wide-1: the disk is full; free some space"):
            dataset.append_shard("wide-1", _episodes("wide"), {})
    assert sorted(path.name for path in dataset.path.iterdir()) == before
    assert len(EpisodeDataset.open(dataset.path).shards) == 2
    dataset.append_shard("wide-1", _episodes("wide"), {})


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12, with threads
@pytest.mark.parametrize(
    ("owner", "function"), [(shards, "to_disk"), (EpisodeDataset, "_write_listing")]
)
def test_a_killed_append_leaves_a_dataset_that_opens_and_goes_on(
    dataset, owner, function, monkeypatch
):
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(owner, function, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        try:
            dataset.append_shard("wide-1", _episodes("wide"), {})
        finally:
            os._exit(0)  # never back into pytest
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    left = {path.name for path in dataset.path.iterdir()}
    assert left & {".wide-1.tmp", "wide-1"}
    opened = EpisodeDataset.open(dataset.path)
    assert len(opened) == 5
    opened.append_shard("wide-2", _episodes("wide"), {})
    assert not list(dataset.path.glob(".*.tmp"))
    opened.append_shard("wide-1", _episodes("wide", 1), {})
    assert len(EpisodeDataset.open(dataset.path)) == 9


@pytest.mark.parametrize(
    ("field", "place", "message"),
    [
        ("obs", (1, 0, 0), "shard wide-0, episode 1 .*obs holds NaN"),
        ("action", (2, 1, 0), "shard wide-0, episode 2 .*action holds NaN"),
        ("reward", (0, 8), "shard wide-0, episode 0 .*reward holds NaN"),
    ],
)
def test_check_names_the_first_bad_value(dataset, field, place, message):
    dataset.check()
    shape = dataset.shape_of(dataset.shards[0]).fields()[field][0]
    values = np.memmap(dataset.path / f"wide-0/{field}.memmap", "<f4", "r+", shape=shape)
    values[place] = np.nan
    values.flush()
    with pytest.raises(DataError, match=message):
        EpisodeDataset.open(dataset.path).check()


def test_check_finds_padding_that_is_not_zero(dataset):
    values = np.memmap(dataset.path / "thin-0/obs.memmap", "<f4", "r+", shape=(2, 9, 4))
    values[1, 4, 2] = 1.0
    values.flush()
    with pytest.raises(DataError, match=r"thin-0, episode 1 .*obs is not zero in its padding"):
        dataset.check()


def test_opened_arrays_cannot_be_written(dataset):
    with pytest.raises(ValueError, match="read-only"):
        dataset.arrays(dataset.shards[0]).obs[0] = 0


def test_the_listing_is_plain_json_with_a_schema(dataset):
    record = json.loads((dataset.path / "dataset.json").read_text())
    assert (record["format"], record["schema"], record["length"]) == ("tdmpc-opt-data", 1, 9)
    assert record["shards"][0]["episodes"] == 3
    assert TaskTable.from_json(record["tasks"]) == TASKS


def test_the_plot_of_returns_is_a_png(dataset, tmp_path):
    file = tmp_path / "plots" / "returns.png"
    plot_returns(dataset.returns(), file)
    data = file.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert width > height > 100
    assert [path.name for path in file.parent.iterdir()] == ["returns.png"]


def test_the_card_tells_sources_counts_and_returns(tmp_path, dataset_dir):
    dataset = EpisodeDataset.open(dataset_dir)
    path = tmp_path / "docs" / "card.md"
    write_dataset_card(dataset, tmp_path / "plots" / "returns.png", path)
    text = path.read_text()
    assert "4 episodes of 2 tasks, 2,000 transitions, 0 of them with a label" in text
    earned = [value for values in dataset.returns().values() for value in values]
    assert f"| random | 0 | - | 2 | 4 | {np.mean(earned):.1f} |" in text
    swings = dataset.returns()["pendulum-swingup"]
    assert (
        f"| pendulum-swingup | 2 | 1,000 | 0 | {np.mean(swings):.1f} | {min(swings):.1f} "
        f"| {max(swings):.1f} |"
    ) in text
    assert "(../plots/returns.png)" in text
    assert str(tmp_path) not in text
