import errno
import json
import os
import shutil
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.serialization import get_safe_globals

from tdmpc_opt.cli import main
from tdmpc_opt.configs.data import DataExportConfig, DataImportConfig
from tdmpc_opt.data import official, shards
from tdmpc_opt.data.episodes import Episode, EpisodeDataset
from tdmpc_opt.data.exchange import export_data, import_data
from tdmpc_opt.data.reports import verify
from tdmpc_opt.data.sampler import SliceSampler
from tdmpc_opt.errors import DataError
from tdmpc_opt.progress import Silent
from tdmpc_opt.schema import MT30, MT80, Task, TaskTable

TASKS = (2, 7, 12)  # walker-run, pendulum-swingup, cup-catch
ROWS = 9


def _official(
    episodes: int = 12,
    table: TaskTable = MT30,
    *,
    half: bool = False,
    task: torch.dtype = torch.int32,
    seed: int = 0,
) -> TensorDict:
    """Episodes of three tasks in turns, whose observation and reward tell episode and step."""
    ids = torch.tensor(TASKS)[(torch.arange(episodes) + seed) % len(TASKS)]
    step = torch.arange(ROWS) + 20.0 * torch.arange(episodes)[:, None] + 500 * seed
    obs_width = torch.tensor([t.obs_dim for t in table.tasks])[ids]
    action_width = torch.tensor([t.action_dim for t in table.tasks])[ids]
    obs = step[..., None] * (torch.arange(table.obs_dim) < obs_width[:, None, None])
    action = (step[..., None] - 1) / 1024
    action = action * (torch.arange(table.action_dim) < action_width[:, None, None])
    reward = step - 1
    action[:, 0], reward[:, 0] = torch.nan, torch.nan
    kind = torch.float16 if half else torch.float32
    return TensorDict(
        {
            "obs": obs.to(kind),
            "action": action.to(kind),
            "reward": reward.to(kind),
            "task": ids[:, None].expand(-1, ROWS).contiguous().to(task),
        },
        batch_size=[episodes, ROWS],
    )


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "chunk_0.pt"
    torch.save(_official(), path)
    return path


@pytest.fixture
def bring(tmp_path):
    """Imports files into `tmp_path / "data"`."""

    def bring(*sources: Path, **options) -> list[str]:
        config = DataImportConfig(sources=sources, output=tmp_path / "data", **options)
        return import_data(config).left_out

    return bring


def test_an_import_keeps_actions_and_rewards_with_the_steps_they_led_to(shard, bring, tmp_path):
    assert bring(shard) == []
    dataset = EpisodeDataset.open(tmp_path / "data")
    assert (dataset.tasks, dataset.length, len(dataset)) == (MT30, ROWS, 12)
    assert dataset.task_names == ("walker-run", "pendulum-swingup", "cup-catch")
    sampler = SliceSampler([dataset], MT30, horizon=3, batch_size=200, seed=0)
    batch = sampler.sample()
    step = batch.obs[..., 0]
    assert torch.equal(step, step[0] + torch.arange(4.0)[:, None])
    assert torch.equal(batch.reward[..., 0], step[:-1])
    assert torch.equal(batch.action[..., 0], step[:-1] / 1024)
    assert torch.equal(batch.task, torch.tensor(TASKS)[(step[0] // 20).long() % 3])
    thin = batch.task == 7
    assert thin.any()
    assert (batch.obs[:, thin, 3:] == 0).all()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("task", [torch.int32, torch.int64])
def test_a_shard_that_goes_in_and_out_is_identical(tmp_path, bring, half, task):
    paths = [tmp_path / "chunk_0.pt", tmp_path / "chunk_1.pt"]
    written = [_official(half=half, task=task, seed=seed) for seed in (0, 1)]
    for path, content in zip(paths, written, strict=True):
        torch.save(content, path)
    bring(*paths)
    dataset = EpisodeDataset.open(tmp_path / "data")
    assert all(shard.half == half for shard in dataset.shards)
    out = tmp_path / "out"
    exported = export_data(DataExportConfig(data=dataset.path, output=out))
    assert [Path(path).name for path in exported] == ["chunk_0.pt", "chunk_1.pt"]
    for path, content in zip(exported, written, strict=True):
        found = torch.load(path, weights_only=False)  # as TD-MPC2's own loader does
        assert found.batch_size == content.batch_size
        assert set(found.keys()) == set(content.keys())
        for name, values in content.items():
            assert found[name].dtype == values.dtype
            same = found[name].contiguous().view(torch.uint8) == values.view(torch.uint8)
            assert same.all(), name
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
    assert sorted(p.name for p in out.iterdir()) == ["chunk_0.pt", "chunk_1.pt"]
    assert bring(*map(Path, exported)) == []  # recognised by content: nothing comes twice
    assert len(EpisodeDataset.open(dataset.path)) == 24


def test_collected_episodes_are_exported_and_come_back(dataset_dir, tmp_path, bring):
    exported = export_data(DataExportConfig(data=dataset_dir, output=tmp_path / "out"))
    assert [Path(p).name for p in exported] == ["pendulum-swingup.pt", "cartpole-balance.pt"]
    bring(*map(Path, exported))
    before, after = EpisodeDataset.open(dataset_dir), EpisodeDataset.open(tmp_path / "data")
    assert after.returns() == before.returns()


@pytest.mark.parametrize(("steps", "terminated"), [(8, True), (5, False)])
def test_episodes_that_end_early_are_not_exported(tmp_path, steps, terminated):
    table = TaskTable((Task("one", 3, 2, episode_length=8),))
    data = EpisodeDataset.create(tmp_path / "data", table)
    rows = np.ones((steps + 1, 3), np.float32)
    data.append_shard("a", [Episode("one", 0, rows, rows[:, :2], rows[:, 0])], {})
    episode = Episode("one", 0, rows, rows[:, :2], rows[:, 0], terminated=terminated)
    data.append_shard("b", [episode], {})
    with pytest.raises(DataError, match=r"ended early.*--format minari"):
        export_data(DataExportConfig(data=data.path, output=tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*.pt"))


def test_mt80_is_told_by_its_widths_and_needs_a_folder_of_its_own(tmp_path, shard, bring):
    wide = tmp_path / "wide.pt"
    torch.save(_official(table=MT80), wide)
    with pytest.raises(DataError, match="import them into separate folders"):
        bring(shard, wide)
    bring(wide)
    assert EpisodeDataset.open(tmp_path / "data").tasks == MT80
    shutil.rmtree(tmp_path / "data")
    bring(shard)
    with pytest.raises(DataError, match="more tasks cannot be added"):
        bring(wide)


def test_chosen_tasks_alone_are_imported_and_others_may_follow(shard, bring, tmp_path):
    bring(shard, tasks="cup-catch")
    assert EpisodeDataset.open(tmp_path / "data").task_names == ("cup-catch",)
    bring(shard)
    assert len(EpisodeDataset.open(tmp_path / "data")) == 12


def _as_old_tensordict(monkeypatch, content: TensorDict) -> object:
    """What tensordict of 2023 pickled: its class at another place, its state as it was."""
    module = types.ModuleType("tensordict.tensordict")
    name = "TensorDict"
    kind = type(name, (), {"__module__": module.__name__, "__qualname__": name})
    setattr(module, name, kind)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    old = kind()
    old.__dict__ = {
        "_tensordict": dict(content.items()),
        "_batch_size": content.batch_size,
        "_device": torch.device("cpu"),
        "_is_shared": False,
        "_locked_tensordicts": [],
        "_lock_id": set(),
    }
    return old


def test_the_layout_of_an_old_tensordict_is_read(tmp_path, shard, bring, monkeypatch):
    old = tmp_path / "old.pt"
    torch.save(_as_old_tensordict(monkeypatch, _official(seed=1)), old)
    bring(shard, old)
    assert len(EpisodeDataset.open(tmp_path / "data")) == 24


def test_a_task_that_is_stored_once_an_episode_is_read(tmp_path, bring):
    path = tmp_path / "wide.pt"
    content = dict(_official().items())
    content["task"] = content["task"][:, :1].contiguous().expand(-1, ROWS)
    torch.save(content, path)
    bring(path)
    assert len(EpisodeDataset.open(tmp_path / "data")) == 12


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_shard_is_refused_or_skipped_and_the_good_one_stays(
    tmp_path, shard, bring, part
):
    cut, content = tmp_path / "cut.pt", shard.read_bytes()
    cut.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(DataError, match=r"cut\.pt is (truncated|no file by torch\.save)"):
        bring(shard, cut)
    assert not (tmp_path / "data").exists()
    (left,) = bring(shard, cut, on_bad="skip")
    assert "cut.pt" in left
    assert len(EpisodeDataset.open(tmp_path / "data")) == 12


def _changed(change) -> dict:
    content = {name: values.clone() for name, values in _official().items()}
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("reward"), "has no reward"),
        (lambda c: c.update(obs=c["obs"][..., :9]), "has 9 and 6"),
        (lambda c: c.update(reward=c["reward"][:, :4]), r"reward is \[12, 4\]"),
        (lambda c: c.update(obs=c["obs"].double()), "has no obs of numbers"),
        (lambda c: c.update(task=c["task"].float()), "task holds torch.float32"),
        (lambda c: c.update(obs=c["obs"].permute(1, 0, 2)), r"is \[12, 9, 6\], not episodes"),
        (lambda c: c.update(reward=c["reward"].T.contiguous().T), "in another order"),
        (lambda c: c.update(terminated=c["reward"].clone()), "episodes may terminate"),
        (lambda c: c["task"][3].fill_(30), "task ids up to 30"),
        (lambda c: c["task"][3].fill_(-1), "task ids"),
        (lambda c: c["task"][3, 4:].fill_(0), "changes within an episode"),
    ],
)
def test_a_foreign_shard_is_named_with_its_fault(tmp_path, shard, bring, change, message):
    foreign = tmp_path / "foreign.pt"
    torch.save(_changed(change), foreign)
    with pytest.raises(DataError, match=rf"foreign\.pt.*{message}"):
        bring(foreign)
    (left,) = bring(foreign, shard, on_bad="skip")
    assert "foreign.pt" in left
    assert len(EpisodeDataset.open(tmp_path / "data")) == 12


def test_other_files_are_refused_by_name(tmp_path, bring):
    text = tmp_path / "page.pt"
    text.write_text("<html>")
    weights = tmp_path / "weights.pt"
    torch.save({"model": {"a": torch.zeros(3)}}, weights)
    for path, message in [
        (tmp_path / "none.pt", "no file"),
        (text, "no file by torch.save"),
        (weights, "has no obs"),
    ]:
        with pytest.raises(DataError, match=message):
            bring(path)
    with pytest.raises(DataError, match=r"nothing to import: .*page\.pt"):
        bring(text, on_bad="skip")


class _Malicious:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_shard_that_runs_code_is_refused_and_runs_none(tmp_path, bring):
    path, marker = tmp_path / "evil.pt", tmp_path / "marker"
    torch.save({**_official().to_dict(), "evil": _Malicious(marker)}, path)
    allowed = get_safe_globals()
    with pytest.raises(DataError, match="would run code"):
        bring(path)
    assert not marker.exists()
    assert set(get_safe_globals()) == set(
        allowed
    )  # what other libraries allow themselves is back


def test_a_shard_whose_entries_were_moved_is_refused(tmp_path, shard, bring):
    moved = tmp_path / "moved.pt"
    with zipfile.ZipFile(shard) as source, zipfile.ZipFile(moved, "w") as target:
        for entry in reversed(source.infolist()):
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(DataError, match=r"moved\.pt was packed anew"):
        bring(moved)


def test_bad_episodes_are_named_or_left_out(tmp_path, bring):
    def spoil(content: dict) -> None:
        content["obs"][4, 3, 0] = torch.inf
        content["reward"][7, 8] = torch.nan
        content["action"][10, 2, 5] = 1.0  # of a task with one action
        content["action"][1, 2, 0] = 3.0

    path = tmp_path / "bad.pt"
    torch.save(_changed(spoil), path)
    with pytest.raises(DataError, match=r"bad\.pt: pendulum-swingup, episode 4: obs holds NaN"):
        bring(path)
    left = bring(path, on_bad="skip")
    assert len(left) == 4
    assert any("episode 1: action is not in [-1, 1]" in line for line in left)
    assert any("episode 10: action is not zero in its padding" in line for line in left)
    assert any("episode 7: reward holds NaN" in line for line in left)
    dataset = EpisodeDataset.open(tmp_path / "data")
    dataset.check()
    assert len(dataset) == 8


def test_rewards_that_are_a_step_too_early_are_refused(tmp_path, bring):
    def shift(content: dict) -> None:
        content["reward"] = content["reward"].roll(-1, dims=1)  # NaN comes last

    path = tmp_path / "shifted.pt"
    torch.save(_changed(shift), path)
    with pytest.raises(DataError, match="reward holds NaN"):
        bring(path)


def test_an_interrupted_import_goes_on(shard, bring, tmp_path, monkeypatch):
    write, calls = official.EpisodeDataset.append_blocks, []

    def append(self, entry, *rest):
        calls.append(entry.task)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(self, entry, *rest)

    monkeypatch.setattr(EpisodeDataset, "append_blocks", append)
    with pytest.raises(KeyboardInterrupt):
        bring(shard)
    assert len(EpisodeDataset.open(tmp_path / "data")) == 4
    bring(shard)
    assert calls == ["walker-run", "pendulum-swingup", "pendulum-swingup", "cup-catch"]
    assert verify(tmp_path / "data", Silent()).faults == ()


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    shard, bring, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="needs 0 MB more, 0 MB are free"):
        bring(shard)
    assert len(EpisodeDataset.open(tmp_path / "data")) == 0


def test_a_disk_that_fills_up_leaves_whole_shards_alone(shard, bring, tmp_path, monkeypatch):
    fill, calls = shards._fill, []

    def full(*arguments):
        calls.append(1)
        if len(calls) == 2:
            fill(*arguments)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fill(*arguments)

    monkeypatch.setattr(shards, "_fill", full)
    with pytest.raises(DataError, match="the disk is full"):
        bring(shard, on_bad="skip")
    folder = tmp_path / "data"
    assert len(EpisodeDataset.open(folder)) == 4
    assert not list(folder.glob(".*.tmp"))


def test_verify_names_what_changed_or_is_gone(shard, bring, tmp_path):
    bring(shard)
    folder = tmp_path / "data"
    found = verify(folder, Silent())
    assert (found.shards, found.faults, found.unsummed) == (3, (), ())
    first, second, _ = sorted(path for path in folder.iterdir() if path.is_dir())
    with (first / "obs.memmap").open("r+b") as file:
        file.seek(40)
        file.write(b"\x01")
    (second / "position.npy").unlink()
    faults = verify(folder, Silent()).faults
    assert len(faults) == 2
    assert any(f"{first.name}: obs.memmap is not what was written" in f for f in faults)
    assert f"{second.name}: cannot read position.npy: No such file or directory" in faults


def test_verify_names_a_shard_whose_folder_cannot_be(shard, bring, tmp_path):
    bring(shard)
    folder = tmp_path / "data"
    text = (folder / "dataset.json").read_text()
    first = min(path.name for path in folder.iterdir() if path.is_dir())
    (folder / "dataset.json").write_text(text.replace(first, "0" * 300))
    (fault,) = verify(folder, Silent()).faults
    assert "File name too long" in fault


def test_verify_looks_at_the_values_where_no_checksums_were_stored(shard, bring, tmp_path):
    bring(shard)
    listing = tmp_path / "data" / "dataset.json"
    record = json.loads(listing.read_text())
    for entry in record["shards"]:
        del entry["sha256"]
    listing.write_text(json.dumps(record))
    found = verify(tmp_path / "data", Silent())
    assert (len(found.unsummed), found.faults) == (3, ())
    name = record["shards"][0]["name"]
    values = np.memmap(tmp_path / "data" / name / "reward.memmap", "<f4", "r+")
    values[3] = np.inf
    values.flush()
    assert verify(tmp_path / "data", Silent()).faults == (
        f"{name}: episode 0: reward holds NaN or infinity",
    )


def test_the_commands_tell_what_came_of_them(shard, tmp_path, capsys):
    half, cut, data = tmp_path / "half.pt", tmp_path / "cut.pt", str(tmp_path / "data")
    torch.save(_official(half=True), half)
    cut.write_bytes(shard.read_bytes()[:5000])
    sources = [str(shard), str(half), str(cut)]
    assert main(["data", "import", *sources, "--output", data]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cut.pt is truncated or damaged" in error
    assert main(["data", "import", *sources, "--output", data, "--on-bad", "skip"]) == 0
    lines = capsys.readouterr().out.replace("\n", " ")
    assert "12 episodes in fp32" in lines
    assert "12 episodes in fp16" in lines
    assert "left out:" in lines
    assert "added 24 episodes" in lines
    assert main(["data", "verify", data]) == 0
    assert "6 shards, 0.000 GB: as they were written" in capsys.readouterr().out
    assert main(["data", "export", data, "--output", str(tmp_path / "out")]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["chunk_0.pt", "half.pt"]
    next((tmp_path / "data").glob("cup-*/task.memmap")).write_bytes(b"")
    assert main(["data", "verify", data]) == 1
    assert "1 of 6 shards are damaged: cup-catch" in capsys.readouterr().err
