import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmpc_opt.data.episodes import Episode, EpisodeDataset
from tdmpc_opt.data.sampler import SliceSampler
from tdmpc_opt.errors import DataError
from tdmpc_opt.task_table import Task, TaskTable

STEPS = 8
WIDE, THIN = Task("wide", 4, 3, episode_length=STEPS), Task("thin", 2, 1, episode_length=STEPS)
TASKS = TaskTable((WIDE, THIN))


def _counting(task: Task, number: int) -> Episode:
    """Episode `number`, whose every value tells its step: action and reward t lead to t + 1."""
    step = np.arange(STEPS + 1, dtype=np.float32)
    obs = np.repeat((100 * number + step)[:, None], task.obs_dim, axis=1)
    done = 100 * number + step - 1
    done[0] = np.nan
    action = np.repeat(done[:, None], task.action_dim, axis=1)
    return Episode(task.name, number, obs, action / 1000, done)


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
    return SliceSampler(dataset, tasks, **sizes)


def test_a_slice_pairs_each_action_and_reward_with_the_step_it_was_taken_in(dataset):
    batch = _sampler(dataset).sample()
    assert batch.obs.shape == (4, 64, 4)
    assert batch.action.shape == (3, 64, 3)
    assert batch.reward.shape == (3, 64, 1)
    assert (batch.obs.dtype, batch.task.dtype) == (torch.float32, torch.int64)
    step = batch.obs[..., 0]  # (horizon + 1, batch)
    assert torch.equal(step, step[0] + torch.arange(4.0)[:, None])
    assert torch.equal(batch.reward[..., 0], step[:-1])
    assert torch.allclose(batch.action[..., 0], step[:-1] / 1000)
    assert (step[0] % 100).max() <= STEPS - 3


def test_narrow_tasks_are_padded_with_zeros_and_labelled(dataset):
    batch = _sampler(dataset).sample()
    number = batch.obs[0, :, 0] // 100
    thin = (number == 3) | (number == 4)
    assert torch.equal(batch.task == 1, thin)
    assert (batch.obs[:, thin, 2:] == 0).all()
    assert (batch.action[:, thin, 1:] == 0).all()
    assert torch.equal(batch.obs[:, ~thin, 3], batch.obs[:, ~thin, 0])


def test_every_slice_of_every_episode_is_as_likely(dataset):
    sampler = _sampler(dataset, batch_size=1000)
    firsts = torch.cat([sampler.sample().obs[0, :, 0] for _ in range(42)]).numpy()
    found, counts = np.unique(firsts, return_counts=True)
    expected = {100 * number + start for number in range(7) for start in range(6)}
    assert set(found.tolist()) == expected
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 74.7  # 99.9th percentile at 41 degrees of freedom


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
    with pytest.raises(DataError, match=rf"shard b, episode 1 \(thin\): {field} holds NaN"):
        _sampler(dataset, batch_size=256).sample()


def test_a_resumed_sampler_draws_what_the_first_would_have(dataset):
    first = _sampler(dataset)
    first.sample()
    state = json.loads(json.dumps(first.state_dict()))
    expected = [first.sample() for _ in range(3)]
    second = _sampler(dataset, seed=99)
    second.load_state_dict(state)
    for batch in expected:
        again = second.sample()
        for field in ("obs", "action", "reward", "task"):
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
