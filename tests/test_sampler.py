import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmpc_opt.data.episodes import Episode, EpisodeDataset
from tdmpc_opt.data.sampler import SliceSampler, joint_tasks
from tdmpc_opt.data.shards import ReadAhead
from tdmpc_opt.errors import DataError, NonFiniteError
from tdmpc_opt.schema import Task, TaskTable

STEPS = 8
WIDE, THIN = Task("wide", 4, 3, episode_length=STEPS), Task("thin", 2, 1, episode_length=STEPS)
TASKS = TaskTable((WIDE, THIN))


def _counting(task: Task, number: int, steps: int = STEPS) -> Episode:
    """Episode `number`, whose every value tells its step: action and reward t lead to t + 1."""
    step = np.arange(steps + 1, dtype=np.float32)
    obs = np.repeat((100 * number + step)[:, None], task.obs_dim, axis=1)
    done = 100 * number + step - 1
    done[0] = np.nan
    action = np.repeat(done[:, None], task.action_dim, axis=1)
    return Episode(task.name, number, obs, action / 2000, done)


def _with_labels(episode: Episode) -> Episode:
    """Labels that are minus the action, but for the step 5, which nobody labelled."""
    label = -episode.action
    label[6] = np.nan  # row t holds what belongs to step t - 1
    return replace(episode, label=label)


@pytest.fixture
def dataset(tmp_path: Path) -> EpisodeDataset:
    """Seven episodes in three shards of unequal length."""
    dataset = EpisodeDataset.create(tmp_path / "data", TASKS)
    dataset.append_shard("a", [_counting(WIDE, number) for number in (0, 1, 2)], {})
    dataset.append_shard("b", [_counting(THIN, number) for number in (3, 4)], {})
    dataset.append_shard("c", [_counting(WIDE, number) for number in (5, 6)], {})
    return dataset


def _sampler(dataset: EpisodeDataset, tasks: TaskTable = TASKS, **change: int) -> SliceSampler:
    sizes = {"horizon": 3, "batch_size": 64, "seed": 0, **change}
    return SliceSampler([dataset], tasks, **sizes)


def test_a_slice_pairs_each_action_and_reward_with_the_step_it_was_taken_in(dataset):
    batch = _sampler(dataset).sample()
    assert batch.obs.shape == (4, 64, 4)
    assert batch.action.shape == (3, 64, 3)
    assert batch.reward.shape == (3, 64, 1)
    assert (batch.obs.dtype, batch.task.dtype) == (torch.float32, torch.int64)
    step = batch.obs[..., 0]  # (horizon + 1, batch)
    assert torch.equal(step, step[0] + torch.arange(4.0)[:, None])
    assert torch.equal(batch.reward[..., 0], step[:-1])
    assert torch.allclose(batch.action[..., 0], step[:-1] / 2000)
    assert (step[0] % 100).max() <= STEPS - 3


def test_narrow_tasks_are_padded_with_zeros_and_labelled(dataset):
    batch = _sampler(dataset).sample()
    number = batch.obs[0, :, 0] // 100
    thin = (number == 3) | (number == 4)
    assert torch.equal(batch.task == 1, thin)
    assert (batch.obs[:, thin, 2:] == 0).all()
    assert (batch.action[:, thin, 1:] == 0).all()
    assert torch.equal(batch.obs[:, ~thin, 3], batch.obs[:, ~thin, 0])


def test_the_system_reads_the_slices_of_the_next_batch_ahead(tmp_path, monkeypatch):
    dataset = EpisodeDataset.create(tmp_path, TASKS)
    dataset.append_shard("a", [_counting(WIDE, number) for number in range(3)], {})
    announced = []
    monkeypatch.setattr(ReadAhead, "begin", lambda _, *rows: announced.append(rows))
    sampler = _sampler(dataset, batch_size=5)
    sampler.sample()
    expected = list(announced)
    first = sampler.sample().obs[0, :, 0].long()
    starts = (9 * (first // 100) + first % 100).tolist()  # nine rows an episode
    assert expected == [(row, 4) for row in starts for _ in ("obs", "action", "reward")]


def test_every_slice_of_every_episode_is_as_likely(dataset):
    sampler = _sampler(dataset, batch_size=1000)
    firsts = torch.cat([sampler.sample().obs[0, :, 0] for _ in range(42)]).numpy()
    found, counts = np.unique(firsts, return_counts=True)
    expected = {100 * number + start for number in range(7) for start in range(6)}
    assert set(found.tolist()) == expected
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 74.7  # 99.9th percentile at 41 degrees of freedom


def test_labels_belong_to_their_steps_and_default_to_the_action(dataset):
    dataset.append_shard("d", [_with_labels(_counting(THIN, number)) for number in (7, 8)], {})
    batch = _sampler(dataset, batch_size=400).sample()
    step, number = batch.obs[:-1, :, 0] % 100, batch.obs[0, :, 0] // 100
    labelled = number >= 7
    assert 0 < labelled.sum() < 400
    assert torch.equal(batch.label[:, ~labelled], batch.action[:, ~labelled])
    unknown = labelled & (step == 5)
    assert unknown.any()
    assert torch.equal(batch.label[..., 0].isnan(), unknown)
    known = labelled & (step != 5)
    assert torch.equal(batch.label[known][:, 0], -batch.action[known][:, 0])
    assert (batch.label[:, labelled][..., 1:] == 0).all()
    assert batch.action.isfinite().all()


def test_infinite_labels_are_refused(dataset):
    dataset.append_shard("d", [_with_labels(_counting(THIN, 7))], {})
    values = np.memmap(dataset.path / "d/label.memmap", "<f4", "r+", shape=(1, 9, 3))
    values[0, 4, 0] = np.inf
    values.flush()
    with pytest.raises(NonFiniteError, match=r"shard d, episode 0 \(thin\), .* label holds"):
        _sampler(dataset, batch_size=256).sample()


@pytest.fixture
def long(tmp_path: Path) -> EpisodeDataset:
    """Two episodes of 16 steps, in a dataset of their own."""
    task = Task("thin", 2, 1, episode_length=2 * STEPS)
    dataset = EpisodeDataset.create(tmp_path / "long", TaskTable((task,)))
    dataset.append_shard("a", [_counting(THIN, number, 2 * STEPS) for number in (8, 9)], {})
    return dataset


def _together(*datasets: EpisodeDataset, **change) -> SliceSampler:
    sizes = {"horizon": 3, "batch_size": 1000, "seed": 0, **change}
    return SliceSampler(datasets, TASKS, **sizes)


def test_slices_of_several_datasets_are_as_likely_however_long_the_episodes(dataset, long):
    sampler = _together(dataset, long)
    firsts = torch.cat([sampler.sample().obs[0, :, 0] for _ in range(70)]).numpy()
    found, counts = np.unique(firsts, return_counts=True)
    expected = {100 * number + start for number in range(7) for start in range(6)}
    expected |= {100 * number + start for number in (8, 9) for start in range(14)}
    assert set(found.tolist()) == expected
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 111.1  # 99.9th percentile at 69 degrees of freedom


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_last_dataset_gives_its_share_of_each_batch(dataset, long, share):
    sampler = _together(dataset, long, batch_size=40, last_share=share)
    numbers = torch.stack([sampler.sample().obs[0, :, 0] // 100 for _ in range(50)])
    count = round(40 * share)
    assert (numbers[:, : 40 - count] < 8).all()
    assert (numbers[:, 40 - count :] >= 8).all()
    if 0 < share < 1:
        assert set(numbers.unique().tolist()) == {*range(7), 8, 9}


def test_a_last_dataset_of_one_episode_gives_its_share(dataset, tmp_path):
    one = EpisodeDataset.create(tmp_path / "one", TASKS)
    one.append_shard("a", [_counting(THIN, 8, STEPS)], {})
    batch = _together(dataset, one, batch_size=40, last_share=0.5).sample()
    assert ((batch.obs[0, :, 0] // 100) == 8).sum() == 20


@pytest.mark.parametrize("short_is_last", [True, False])
def test_a_side_of_short_episodes_leaves_the_batch_to_the_other(tmp_path, long, short_is_last):
    short = EpisodeDataset.create(tmp_path / "short", TASKS)
    short.append_shard("a", [_counting(THIN, number, 2) for number in (0, 1)], {})
    both = (long, short) if short_is_last else (short, long)
    batch = _together(*both, batch_size=40, last_share=0.5).sample()
    assert set((batch.obs[0, :, 0] // 100).tolist()) == {8, 9}


def test_the_order_in_which_shards_were_added_does_not_matter(dataset, tmp_path):
    other = EpisodeDataset.create(tmp_path / "other", TASKS)
    for name in ("c", "a", "b"):
        shard = next(shard for shard in dataset.shards if shard.name == name)
        other.append_shard(name, list(dataset.episodes(shard)), {})
    assert torch.equal(_sampler(dataset).sample().obs, _sampler(other).sample().obs)


def test_the_tasks_of_several_datasets_follow_the_first_table(dataset, long, tmp_path):
    more = TaskTable((Task("new", 3, 3, episode_length=STEPS), THIN))
    third = EpisodeDataset.create(tmp_path / "third", more)
    assert joint_tasks([third, EpisodeDataset.create(tmp_path / "fourth", TASKS)]) == more
    third.append_shard("a", [_counting(more["new"], 0)], {})
    assert joint_tasks([dataset, long]) == TASKS
    assert joint_tasks([long, dataset]).names == ("thin", "wide")
    assert joint_tasks([dataset, third]).names == ("wide", "thin", "new")


def test_the_longest_horizon_takes_whole_episodes(dataset):
    batch = _sampler(dataset, horizon=STEPS).sample()
    assert (batch.obs[0, :, 0] % 100 == 0).all()
    assert (batch.obs[-1, :, 0] % 100 == STEPS).all()
    with pytest.raises(DataError, match="9 steps does not fit into the 8 steps"):
        _sampler(dataset, horizon=STEPS + 1)


def test_ids_and_widths_are_those_of_the_models_table(dataset):
    more = TaskTable((THIN, Task("other", 6, 5, episode_length=STEPS), WIDE))
    batch = _sampler(dataset, more).sample()
    assert (batch.obs.shape[2], batch.action.shape[2]) == (6, 5)
    assert set(batch.task.tolist()) == {0, 2}
    assert (batch.obs[..., 4:] == 0).all()


def test_a_model_of_narrow_tasks_reads_a_wide_dataset(tmp_path):
    dataset = EpisodeDataset.create(tmp_path, TASKS)
    dataset.append_shard("b", [_counting(THIN, 3)], {})
    batch = _sampler(dataset, TaskTable((THIN,))).sample()
    assert (batch.obs.shape[2], batch.action.shape[2]) == (2, 1)
    assert torch.equal(batch.obs[..., 0], batch.obs[..., 1])


def test_data_of_foreign_tasks_is_refused(dataset, tmp_path):
    with pytest.raises(DataError, match=r"holds wide, which the model does not know.*thin"):
        _sampler(dataset, TaskTable((THIN,)))
    with pytest.raises(DataError, match="wide has 4 observations and 3 actions"):
        _sampler(dataset, TaskTable((Task("wide", 5, 3), THIN)))
    with pytest.raises(DataError, match="holds no episodes"):
        _sampler(EpisodeDataset.create(tmp_path / "empty", TASKS))


@pytest.mark.parametrize(("field", "shape"), [("obs", (2, 9, 4)), ("reward", (2, 9))])
def test_nan_is_named_with_its_task_shard_and_episode(dataset, field, shape):
    values = np.memmap(dataset.path / f"b/{field}.memmap", "<f4", "r+", shape=shape)
    values[1, 4] = np.nan
    values.flush()
    sampler = _sampler(dataset, batch_size=256)
    place = r"shard b, episode 1 \(thin\), from step \d"
    with pytest.raises(NonFiniteError, match=f"{place}: {field} holds NaN"):
        sampler.sample()


def test_a_resumed_sampler_draws_what_the_first_would_have(dataset):
    first = _sampler(dataset)
    first.sample()
    state = json.loads(json.dumps(first.state_dict()))
    expected = [first.sample() for _ in range(3)]
    second = _sampler(dataset, seed=99)
    second.load_state_dict(state)
    for batch in expected:
        again = second.sample()
        for field in ("obs", "action", "label", "reward", "task"):
            assert torch.equal(getattr(again, field), getattr(batch, field))
    with pytest.raises(DataError, match="saved state is damaged"):
        second.load_state_dict({"generator": "{}"})


def test_the_state_passes_a_safe_torch_load(dataset, tmp_path):
    sampler = _sampler(dataset)
    torch.save(sampler.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == sampler.state_dict()


def test_seeds_decide_the_draws(dataset):
    same = _sampler(dataset).sample().obs, _sampler(dataset).sample().obs
    assert torch.equal(*same)
    assert not torch.equal(same[0], _sampler(dataset, seed=1).sample().obs)


@pytest.mark.parametrize("share", [None, 0.5])
def test_tasks_can_be_made_as_likely_however_much_there_is_of_each(dataset, long, share):
    sampler = _together(dataset, long, sampling="task", last_share=share)
    batches = [sampler.sample() for _ in range(30)]
    number = torch.cat([batch.obs[0, :, 0] // 100 for batch in batches])
    task = torch.cat([batch.task for batch in batches])
    mine = number < 8 if share else torch.ones_like(number, dtype=torch.bool)
    assert (task[mine] == 0).float().mean() == pytest.approx(0.5, abs=0.02)
    if share:
        assert mine.float().mean() == 0.5
    wide = torch.bincount(number[task == 0].long())
    assert wide[wide > 0] / wide.sum() == pytest.approx([0.2] * 5, abs=0.02)


def test_a_task_of_a_single_slice_is_as_likely_as_the_others(tmp_path):
    dataset = EpisodeDataset.create(tmp_path, TASKS)
    dataset.append_shard("a", [_counting(WIDE, 0)], {})
    dataset.append_shard("b", [_counting(THIN, 1, 3)], {})
    batch = _sampler(dataset, batch_size=2000, sampling="task").sample()
    assert (batch.task == 1).float().mean() == pytest.approx(0.5, abs=0.05)


def test_high_returns_are_preferred_within_a_task_that_keeps_its_share(dataset):
    sampler = _sampler(dataset, batch_size=1000, sampling="return")
    number = torch.cat([sampler.sample().obs[0, :, 0] // 100 for _ in range(40)]).long()
    share = (torch.bincount(number, minlength=7) / len(number)).numpy()
    assert share[[3, 4]].sum() == pytest.approx(2 / 7, abs=0.01)
    gain = np.array([0, 1, 2, 5, 6]) / 6  # a return grows with the number of its episode
    weight = np.exp(gain / 0.1)
    assert share[[0, 1, 2, 5, 6]] == pytest.approx(5 / 7 * weight / weight.sum(), abs=0.01)
    assert share[4] == pytest.approx(2 / 7 / (1 + np.exp(-10)), abs=0.01)


def test_returns_do_not_weigh_what_the_student_drove(dataset, long):
    """Its returns say nothing of the labels, which are its teacher's."""
    sampler = _together(dataset, long, batch_size=1000, sampling="return", last_share=0.5)
    number = torch.cat([sampler.sample().obs[0, :, 0] // 100 for _ in range(40)]).long()
    mine, own = number[number >= 8], number[number < 8]
    assert len(mine) == len(own)
    drawn = torch.bincount(mine)[8:]
    assert len(drawn) > 1
    assert drawn / drawn.sum() == pytest.approx([1 / len(drawn)] * len(drawn), abs=0.02)
    assert torch.bincount(own).max() > 0.4 * len(own)


def test_equal_returns_are_equally_likely(tmp_path):
    dataset = EpisodeDataset.create(tmp_path, TASKS)
    episodes = [replace(_counting(WIDE, n), reward=_counting(WIDE, 0).reward) for n in (0, 1)]
    dataset.append_shard("a", episodes, {})
    sampler = _sampler(dataset, batch_size=1000, sampling="return")
    number = torch.cat([sampler.sample().obs[0, :, 0] // 100 for _ in range(10)])
    assert number.mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("sampling", ["uniform", "task", "return"])
def test_ranks_share_a_batch_out_without_overlap(dataset, sampling):
    whole = _sampler(dataset, batch_size=12, sampling=sampling)
    parts = [
        _sampler(dataset, batch_size=12, sampling=sampling, rank=rank, world_size=3)
        for rank in range(3)
    ]
    for _ in range(4):
        expected = whole.sample()
        found = [part.sample() for part in parts]
        for field in ("obs", "action", "label", "reward", "task"):
            axis = 0 if field == "task" else 1
            together = torch.stack([getattr(part, field) for part in found], axis + 1)
            assert torch.equal(together.flatten(axis, axis + 1), getattr(expected, field))
    assert parts[0].state_dict() == whole.state_dict()
    with pytest.raises(DataError, match="cannot be shared out evenly over 5 ranks"):
        _sampler(dataset, batch_size=12, world_size=5)


@pytest.mark.parametrize("sampling", ["task", "return"])
def test_a_weighted_sampler_resumes_to_the_slice(dataset, sampling):
    first, second = (_sampler(dataset, sampling=sampling) for _ in range(2))
    first.sample()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.sample().obs, second.sample().obs)


@pytest.fixture
def ended(dataset) -> EpisodeDataset:
    """Ten more, of 5, 1 and 8 steps each; a state ended every second one."""
    for name, task, first in (("d", WIDE, 10), ("e", THIN, 13)):
        episodes = [
            replace(_counting(task, first + i, steps), terminated=i % 2 == 0)
            for i, steps in enumerate((5, 1, 8, 5, 8)[: 3 + 2 * (task is THIN)])
        ]
        dataset.append_shard(name, episodes, {})
    return dataset


STARTS = {10: 3, 12: 6, 13: 3, 15: 6, 16: 3, 17: 6} | dict.fromkeys(range(7), 6)
LAST = {10: 5, 12: 8, 13: 5, 15: 8, 17: 8}
"""The step after which each episode that a state ended is over."""


@pytest.mark.parametrize("sampling", ["uniform", "task", "return"])
def test_slices_never_cross_an_end_and_know_which_is_one(ended, sampling):
    sampler = _sampler(ended, batch_size=1000, sampling=sampling)
    seen, ends = set(), 0
    for _ in range(20):
        batch = sampler.sample()
        step = batch.obs[..., 0]
        assert torch.equal(step, step[0] + torch.arange(4.0)[:, None])
        seen |= set(step[0].int().tolist())
        number = (step[0] // 100).int().tolist()
        last = torch.tensor([LAST.get(n, -1) for n in number])
        expected = (step[1:] % 100 == last).float()
        assert torch.equal(batch.terminated, expected.unsqueeze(-1))
        ends += int(expected.sum())
    assert ends > 20
    possible = {100 * n + start for n, starts in STARTS.items() for start in range(starts)}
    assert seen == possible if sampling != "return" else seen < possible


def test_data_that_no_state_ended_has_no_ends(dataset):
    assert _sampler(dataset).sample().terminated is None
    dataset.append_shard("d", [_counting(WIDE, 10, 5)], {})  # cut off, not ended
    assert _sampler(dataset).sample().terminated is None


def test_faults_in_short_episodes_are_named_with_their_place(ended):
    values = np.memmap(ended.path / "e/obs.memmap", "<f4", "r+", shape=(5, 9, 4))
    values[3, 5] = np.nan
    values.flush()
    place = r"shard e, episode 3 \(thin\), from step 2"
    with pytest.raises(NonFiniteError, match=f"{place}: obs holds NaN"):
        _sampler(ended, batch_size=256).sample()


def test_episodes_that_are_all_too_short_are_refused(tmp_path):
    dataset = EpisodeDataset.create(tmp_path, TASKS)
    dataset.append_shard("a", [_counting(WIDE, 0)], {})
    dataset.append_shard("b", [_counting(THIN, 1, 2)], {})
    with pytest.raises(DataError, match="into the 2 steps of the longest episode of thin"):
        _sampler(dataset)


def test_half_precision_is_widened_without_loss(tmp_path):
    from tdmpc_opt.data.episodes import Shard

    dataset = EpisodeDataset.create(tmp_path, TaskTable((THIN,)))
    episode = _counting(THIN, 1)
    values = {"obs": episode.obs, "action": episode.action, "reward": episode.reward}
    dataset.append_blocks(
        Shard("a", "thin", 1, (), {}, half=True),
        lambda field: iter([values[field].astype("<f2")[None]]),
    )
    batch = SliceSampler(
        [dataset], TaskTable((THIN,)), horizon=3, batch_size=9, seed=0
    ).sample()
    assert batch.obs.dtype == torch.float32
    assert torch.equal(batch.reward[..., 0], batch.obs[:-1, :, 0])
    assert (dataset.path / "a" / "obs.memmap").stat().st_size == 9 * 2 * 2
