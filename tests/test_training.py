import csv
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tdmpc_opt import files
from tdmpc_opt.agents.collect import collect
from tdmpc_opt.checkpoints.checkpoint import from_model
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.checkpoints.torch_files import StateFolder
from tdmpc_opt.configs.data import CollectConfig
from tdmpc_opt.configs.training import DistillWeights, LossWeights, Schedule, TrainConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.errors import (
    CheckpointError,
    DataError,
    InputError,
    MissingDependencyError,
    RunError,
    UnknownTaskError,
)
from tdmpc_opt.planning import presets
from tdmpc_opt.progress import Silent
from tdmpc_opt.schema import MT30
from tdmpc_opt.training import loop, step
from tdmpc_opt.training.loop import train


@pytest.fixture
def config(dataset_dir, tmp_path) -> TrainConfig:
    return TrainConfig(
        data=dataset_dir,
        output=tmp_path / "run",
        size="0.3",
        updates=6,
        batch_size=8,
        device="cpu",
        log_every=1,
        save_every=2,
    )


@pytest.fixture
def distillation(config, checkpoint_file) -> TrainConfig:
    return TrainConfig(**{**vars(config), "teacher": str(checkpoint_file)})


class At(Silent):
    """Does something once, when so many updates are done."""

    def __init__(self, update: int, action) -> None:
        self._update, self._action = update, action

    def update(self, done: int, total: int, text: str) -> None:
        if done == self._update:
            self._action()


def _interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def _die() -> None:
    raise RuntimeError("as if killed")


def _state(folder: Path) -> dict:
    state = StateFolder(folder).newest(pytest.fail)
    assert state is not None
    return state


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.pop("updates_per_second")
    return rows


def _same(a: object, b: object) -> bool:
    """Whether two nests of tensors and plain values are equal to the bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


def _same_weights(a: Path, b: Path) -> bool:
    return _same(read_checkpoint(a).tensors, read_checkpoint(b).tensors)


def _no_leftovers(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def test_a_run_leaves_weights_curves_and_what_it_was(config):
    path = train(config)
    assert path == config.output / "model.safetensors"
    checkpoint = read_checkpoint(path)
    assert checkpoint.tasks.names == ("pendulum-swingup", "cartpole-balance")
    assert (checkpoint.config.obs_dim, checkpoint.config.action_dim) == (5, 1)
    assert checkpoint.extra["updates"] == "6"
    rows = _rows(config.output)
    assert [row["update"] for row in rows] == [str(update) for update in range(1, 7)]
    assert all(np.isfinite(float(row["loss"])) for row in rows)
    assert all(not row["distill_reward_mse"] and not row["weight_reward_mse"] for row in rows)
    record = json.loads((config.output / "config.json").read_text())
    assert record["kind"] == "run"
    assert record["config"]["lr"] == config.lr
    assert record["config"]["weights"] == asdict(LossWeights())
    assert record["config"]["data"]["episodes"] == 4
    assert {"torch", "tdmpc_opt"} <= record["versions"].keys()
    assert list((config.output / "tensorboard").glob("events.out.*"))
    assert _no_leftovers(config.output)


def test_no_path_of_this_machine_is_written(distillation, checkpoint_file):
    started = replace(distillation, start=str(checkpoint_file), updates=1)
    path = train(started)
    texts = [
        (distillation.output / "config.json").read_text(),
        json.dumps(read_checkpoint(path).extra),
    ]
    for text in texts:
        assert str(Path.home()) not in text
        for place in (checkpoint_file.parent, distillation.data.parent, path.parents[1]):
            assert str(place) not in text
        assert "tiny.safetensors" in text


@pytest.fixture
def imitation(config) -> TrainConfig:
    """More labels than slices, and a learning rate that falls to zero."""
    weights = LossWeights(behaviour=1.0)
    return replace(config, weights=weights, behaviour_batch=4, lr_zero_at=8)


@pytest.mark.parametrize("kind", ["config", "imitation", "distillation"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(kind, request, tmp_path):
    config = request.getfixturevalue(kind)
    run = train
    whole = run(config)
    parts = replace(config, output=tmp_path / "parts" / "run")
    run(replace(parts, updates=3))
    assert _state(parts.output)["update"] == 3
    torch.manual_seed(99)  # what happened in between must not matter
    torch.rand(7)
    resumed = run(parts)
    assert _same_weights(whole, resumed)
    assert _same(_state(config.output), _state(parts.output))
    assert _rows(config.output) == _rows(parts.output)


def test_a_finished_run_is_left_as_it_is(config):
    path = train(config)
    before = path.read_bytes(), _rows(config.output), path.stat().st_mtime_ns
    train(config)
    assert (path.read_bytes(), _rows(config.output), path.stat().st_mtime_ns) == before


def test_the_seed_decides_the_weights(config, tmp_path):
    short = replace(config, updates=2)
    first = train(short)
    again = train(replace(short, output=tmp_path / "again"))
    other = train(replace(short, output=tmp_path / "other", seed=1))
    assert _same_weights(first, again)
    assert not _same_weights(first, other)


@pytest.mark.usefixtures("unchecked")
def test_how_often_is_logged_saved_and_scored_does_not_change_the_weights(config, tmp_path):
    config = replace(config, updates=4)
    other = replace(
        config,
        output=tmp_path / "other",
        log_every=2,
        save_every=5,
        eval_every=3,
    )
    assert _same_weights(train(config), train(other))
    scores = {row["update"]: row["score"] for row in _rows(other.output)}
    assert scores.keys() == {"2", "3", "4"}
    assert scores["2"] == scores["4"] == ""
    assert 0 <= float(scores["3"]) <= 100


@pytest.mark.usefixtures("unchecked")
def test_the_speed_is_that_of_the_updates_without_their_evaluation(config, monkeypatch):
    seconds = iter(range(10_000))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(seconds)))
    score = loop._score

    def slow(*arguments):
        for _ in range(1000):
            next(seconds)
        return score(*arguments)

    monkeypatch.setattr(loop, "_score", slow)
    train(replace(config, updates=3, eval_every=2, log_every=1))
    with (config.output / "metrics.csv").open(newline="") as curves:
        assert all(float(row["updates_per_second"]) > 0.01 for row in csv.DictReader(curves))


def test_a_row_is_the_mean_since_the_last_one(config, tmp_path):
    train(config)
    train(replace(config, output=tmp_path / "rare", log_every=3))
    each = [float(row["loss"]) for row in _rows(config.output)]
    rare = [float(row["loss"]) for row in _rows(tmp_path / "rare")]
    assert rare == pytest.approx([np.mean(each[:3]), np.mean(each[3:])], rel=1e-5)


def test_an_interrupt_saves_and_the_same_call_goes_on(config, tmp_path):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    sparse = replace(config, save_every=100)
    with pytest.raises(KeyboardInterrupt):
        train(sparse, At(3, _interrupt))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    done = _state(config.output)["update"]
    assert 3 <= done <= 4
    assert read_checkpoint(config.output / "model.safetensors").extra["updates"] == str(done)
    assert _no_leftovers(config.output)
    resumed = train(sparse)
    whole = train(replace(sparse, output=tmp_path / "whole" / "run"))
    assert _same_weights(whole, resumed)
    assert _rows(config.output) == _rows(tmp_path / "whole" / "run")


def test_a_crash_loses_the_updates_since_the_last_checkpoint_alone(config, tmp_path):
    with pytest.raises(RuntimeError, match="as if killed"):
        train(config, At(5, _die))
    assert _state(config.output)["update"] == 4
    assert len(_rows(config.output)) == 5
    resumed = train(config)
    whole = train(replace(config, output=tmp_path / "whole" / "run"))
    assert _same_weights(whole, resumed)
    assert _rows(config.output) == _rows(tmp_path / "whole" / "run")


def test_updates_multiply_with_the_precision_that_was_asked_for(config):
    class Precision(Silent):
        def __init__(self) -> None:
            self.seen: set[str] = set()

        def update(self, done, total, text):
            self.seen.add(torch.get_float32_matmul_precision())

    progress = Precision()
    train(replace(config, matmul="medium"), progress)
    assert progress.seen == {"medium"}
    assert torch.get_float32_matmul_precision() == "highest"


def _start(config: TrainConfig) -> subprocess.Popen:
    arguments = ["train", "--data", config.data, "--output", config.output, "--size", "0.3"]
    arguments += ["--updates", config.updates, "--batch-size", 8, "--device", "cpu"]
    arguments += ["--log-every", 1, "--save-every", 2]
    code = "import sys; from tdmpc_opt.cli import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_gets_a_signal_can_go_on(config, number):
    long = replace(config, updates=100_000)
    process = _start(long)
    for _ in range(600):
        if StateFolder(long.output).files() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert errors.splitlines()[-1].startswith("tdmpc-opt: interrupted")
        assert "Traceback" not in errors
    done = _state(long.output)["update"]
    assert done >= 2
    train(replace(config, updates=done + 2))
    assert _state(long.output)["update"] == done + 2
    assert [int(row["update"]) for row in _rows(long.output)] == list(range(1, done + 3))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"lr": 1e-4}, "lr"),
        ({"seed": 3}, "seed"),
        ({"batch_size": 9}, "batch_size"),
        ({"size": "1"}, "size"),
        ({"matmul": "medium"}, "matmul"),
        ({"weights": LossWeights(entropy=0.4)}, "weights"),
    ],
)
def test_a_folder_of_another_run_is_refused_and_kept(config, changes, key):
    path = train(replace(config, updates=1))
    before = path.read_bytes(), (config.output / "config.json").read_bytes()
    with pytest.raises(RunError, match=rf"existing run has {key}[.=]"):
        train(replace(config, **changes))
    assert (path.read_bytes(), (config.output / "config.json").read_bytes()) == before


def test_training_and_distilling_do_not_share_a_folder(config, distillation):
    train(replace(config, updates=1))
    with pytest.raises(RunError, match="existing run has teacher=None"):
        train(distillation)


def test_a_run_and_a_dataset_do_not_share_a_folder(config, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(config.data, data)
    with pytest.raises(RunError, match="has a dataset; name another folder for the run"):
        train(replace(config, output=data, updates=1))
    assert not (data / "config.json").exists()
    train(replace(config, updates=1))
    with pytest.raises(DataError, match="has a training run; name another folder"):
        _collect(config.output)
    assert not (config.output / "dataset.json").exists()


def test_a_dataset_that_changed_is_refused(config, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(config.data, data)
    short = replace(config, data=data, updates=1)
    train(short)
    _collect(data)
    with pytest.raises(RunError, match="data data has changed since; choose"):
        train(short)


def _collect(data: Path, **changes: object) -> Path:
    config = CollectConfig(
        policy="random",
        tasks="pendulum-swingup",
        episodes=1,
        seed=50,
        output=data,
        device="cpu",
        workers=1,
    )
    collect(replace(config, **changes))
    return data


def test_several_datasets_are_trained_on_and_none_may_change(config, tmp_path):
    more = _collect(tmp_path / "more", tasks="cup-catch")
    both = replace(config, data=(config.data, more), updates=1)
    path = train(both)
    names = {"pendulum-swingup", "cartpole-balance", "cup-catch"}
    assert set(read_checkpoint(path).tasks.names) == names
    record = json.loads((config.output / "config.json").read_text())
    assert [data["name"] for data in record["config"]["data"]] == ["random", "more"]
    _collect(more)
    with pytest.raises(RunError, match=r"data .* has changed since|existing run has data"):
        train(both)


def test_on_policy_data_may_grow_between_calls(config, tmp_path):
    data = _collect(tmp_path / "data")
    growing = replace(config, on_policy=data)
    train(replace(growing, updates=3))
    _collect(data, seed=51)
    grown = train(growing)
    assert _state(config.output)["update"] == 6
    fixed = train(replace(growing, output=tmp_path / "fixed"))
    assert not _same_weights(grown, fixed)  # the first three updates saw less
    other = _collect(tmp_path / "other")
    with pytest.raises(RunError, match="existing run has on_policy="):
        train(replace(growing, on_policy=other))


def test_on_policy_data_gives_its_share_of_each_batch(config, tmp_path):
    """With a share of 1 not a row of the other data is read, be it as bad as can be."""
    bad = _with_nan(config.data, tmp_path / "bad")
    data = _collect(tmp_path / "data")
    alone = replace(config, data=bad, on_policy=data, on_policy_share=1.0)
    train(alone)
    with pytest.raises(RunError, match="reward holds NaN"):
        train(replace(alone, max_skipped=0, on_policy_share=0.5, output=tmp_path / "half"))


@pytest.mark.parametrize(
    "changes",
    [
        {"on_policy_share": 0.5},
        {"on_policy": Path("data"), "on_policy_share": 1.5},
        {"data": ()},
    ],
)
def test_data_that_cannot_be_mixed_as_asked_is_refused(config, changes):
    with pytest.raises(InputError, match=r"on_policy_share` is from|name at least one dataset"):
        replace(config, **changes)


def test_a_run_of_before_there_were_several_datasets_goes_on(config):
    train(replace(config, updates=1))
    path = config.output / "config.json"
    record = json.loads(path.read_text())
    for key in ("on_policy", "on_policy_share"):
        del record["config"][key]
    assert record["config"]["data"]["episodes"] == 4
    path.write_text(json.dumps(record))
    train(config)
    assert _state(config.output)["update"] == 6


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": "run"}', "3"])
def test_a_damaged_record_of_a_run_is_refused(config, content):
    config.output.mkdir()
    (config.output / "config.json").write_text(content)
    with pytest.raises(RunError, match="is damaged"):
        train(config)


def _truncate(path: Path, part: float) -> None:
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_damaged_state_is_refused_and_says_what_to_do(config, part):
    train(replace(config, updates=1))
    (state,) = StateFolder(config.output).files()
    _truncate(state, part)
    with pytest.raises(
        CheckpointError, match=r"1.pt is truncated or damaged; delete it"
    ) as caught:
        train(config)
    assert "\n" not in str(caught.value)
    state.unlink()
    train(config)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_the_state_before_stands_in_for_a_damaged_newest(config, tmp_path, part):
    train(replace(config, updates=5))
    newest, before = StateFolder(config.output).files()
    assert (newest.stem, before.stem) == ("000000005", "000000004")
    _truncate(newest, part)
    with pytest.warns(
        RuntimeWarning, match=r"5.pt is truncated or damaged.*continues from 000000004.pt"
    ):
        resumed = train(config)
    whole = train(replace(config, output=tmp_path / "whole" / "run"))
    assert _same_weights(whole, resumed)
    assert _rows(config.output) == _rows(tmp_path / "whole" / "run")


def test_the_last_states_are_kept_and_no_more(config):
    for keep in (1, 2, 3):
        run = replace(config, output=config.output / str(keep), keep=keep)
        train(run)
        updates = [int(path.stem) for path in StateFolder(run.output).files()]
        assert updates == [6, 4, 2][:keep]
    assert StateFolder(run.output).files()[0].read_bytes() != b""


def _with_nan(dataset: Path, copy: Path) -> Path:
    """Copy a dataset with NaN in every episode, past all checks."""
    shutil.copytree(dataset, copy)
    for path in copy.rglob("reward.memmap"):
        values = np.memmap(path, dtype="<f4", mode="r+")
        values[100:400] = np.nan
        values.flush()
    return copy


def test_nan_in_the_data_is_skipped_up_to_a_limit_and_the_checkpoint_kept(config, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(config.data, data)
    path = train(replace(config, data=data, updates=2))
    before = path.read_bytes(), _state(config.output)
    shutil.rmtree(data)
    _with_nan(config.data, data)
    nan = r"update 3: .*shard .* episode .* reward holds NaN"
    with (
        pytest.warns(RuntimeWarning, match=f"{nan}.*skipped .1 of at most 1") as warned,
        pytest.raises(RunError, match=f"{nan}.* 1 batches were skipped before") as caught,
    ):
        train(replace(config, data=data, max_skipped=1))
    assert len(warned) == 1
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before[0]
    assert _same(_state(config.output), before[1])


def _with_extremes(dataset: Path, copy: Path) -> Path:
    """Copy a dataset with an observation in its first episode that no network can take."""
    shutil.copytree(dataset, copy)
    path = next(iter(sorted(copy.rglob("obs.memmap"))))
    values = np.memmap(path, dtype="<f4", mode="r+")
    values[: 200 * values.size // 1000] = 3e38
    values.flush()
    return copy


def test_a_batch_whose_loss_is_infinite_is_named_skipped_and_forgotten(config, tmp_path):
    data = _with_extremes(config.data, tmp_path / "data")
    wild = replace(config, data=data, batch_size=2, updates=4, max_skipped=100)
    with pytest.warns(RuntimeWarning) as warned:
        path = train(wild)
    told = [str(warning.message) for warning in warned]
    named = [text for text in told if "the loss is NaN or infinite by " in text]
    assert named == told
    assert all("episode 0 (" in text and "batch skipped" in text for text in told)
    assert _state(config.output)["skipped"] == len(told) > 0
    assert len(_rows(config.output)) == 4
    assert all(bool(t.isfinite().all()) for t in read_checkpoint(path).tensors.values())


def test_skipped_batches_do_not_keep_a_run_from_going_on_to_the_bit(config, tmp_path):
    data = _with_extremes(config.data, tmp_path / "data")
    wild = replace(config, data=data, batch_size=2, updates=6, max_skipped=100)
    with pytest.warns(RuntimeWarning):
        whole = train(replace(wild, output=tmp_path / "whole" / "run"))
    with warnings.catch_warnings(record=True, action="always"):
        train(replace(wild, updates=3))
        resumed = train(wild)
    assert _same_weights(whole, resumed)
    skipped = [_state(folder.parent)["skipped"] for folder in (whole, resumed)]
    assert skipped[0] == skipped[1] > 0


@pytest.mark.parametrize("log_every", [1, 50])
def test_weights_that_explode_stop_the_run_and_keep_the_checkpoint(config, log_every):
    wild = replace(config, lr=1e18, save_every=1, log_every=log_every, updates=40)
    with (
        warnings.catch_warnings(record=True, action="always"),
        pytest.raises(RunError, match="lower --lr") as caught,
    ):
        train(wild)
    assert "\n" not in str(caught.value)
    path = config.output / "model.safetensors"
    if path.exists():
        tensors = read_checkpoint(path).tensors
        assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
        state = _state(config.output)
        assert all(bool(tensor.isfinite().all()) for tensor in state["model"].values())


def test_a_full_disk_keeps_the_checkpoint_before(config, monkeypatch):
    path = train(replace(config, updates=2))
    (state,) = StateFolder(config.output).files()
    before = path.read_bytes(), state.read_bytes()

    def fails(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill() -> None:
        monkeypatch.setattr(files.os, "fsync", fails)

    with pytest.raises(CheckpointError, match=r"cannot write .*No space left") as caught:
        train(config, At(3, fill))
    assert "\n" not in str(caught.value)
    assert (path.read_bytes(), state.read_bytes()) == before
    assert _no_leftovers(config.output)
    monkeypatch.undo()
    train(config)


@pytest.mark.parametrize("cut_off", ["weights", "state"])
def test_a_write_that_the_system_cuts_short_keeps_the_state_before(config, cut_off):
    path = train(replace(config, updates=2))
    (state,) = StateFolder(config.output).files()
    before, size = state.read_bytes(), path.stat().st_size
    assert state.stat().st_size > size + 200_000
    limit = size + (100_000 if cut_off == "state" else -100_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def cut() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    try:
        with pytest.raises(CheckpointError, match="cannot write") as caught:
            train(config, At(3, cut))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert state.read_bytes() == before
    assert _no_leftovers(config.output)
    train(config)


def test_a_run_folder_below_a_file_is_refused(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write to"):
        train(replace(config, output=tmp_path / "file" / "run"))


def test_missing_or_empty_data_is_refused_and_leaves_nothing(config, tmp_path):
    with pytest.raises(DataError, match="no dataset at"):
        train(replace(config, data=tmp_path / "none"))
    EpisodeDataset.create(tmp_path / "empty")
    with pytest.raises(DataError, match="holds no episodes"):
        train(replace(config, data=tmp_path / "empty"))
    with pytest.raises(DataError, match="does not fit into the 500 steps"):
        train(replace(config, horizon=501))
    assert not config.output.exists()


def test_a_teacher_must_know_every_task_of_the_data(distillation, make_model, tmp_path):
    teacher = tmp_path / "teacher.safetensors"
    write_native(teacher, from_model(make_model(MT30.subset(["pendulum-swingup"]))))
    with pytest.raises(UnknownTaskError, match="no teacher has cartpole-balance"):
        train(replace(distillation, teacher=str(teacher)))
    with pytest.raises(CheckpointError, match="neither a file nor a bundled checkpoint"):
        train(replace(distillation, teacher="none"))
    assert not distillation.output.exists()


def test_distilling_with_weight_zero_is_training_to_the_bit(config, distillation, tmp_path):
    plain = train(config)
    zero, some = (
        train(
            replace(
                distillation,
                output=tmp_path / str(weight),
                terms=DistillWeights(reward_mse=Schedule(weight)),
            )
        )
        for weight in (0.0, 0.4)
    )
    assert _same_weights(plain, zero)
    assert not _same_weights(plain, some)
    assert all(float(row["distill_reward_mse"]) > 0 for row in _rows(tmp_path / "0.4"))


def test_distilling_leaves_the_teacher_file_alone(distillation, checkpoint_file):
    before = checkpoint_file.read_bytes()
    train(replace(distillation, updates=1))
    assert checkpoint_file.read_bytes() == before


def test_a_run_can_start_from_a_checkpoint(config, checkpoint_file, monkeypatch):
    monkeypatch.setattr(step, "TAU", 1e-9)
    started = replace(config, start=str(checkpoint_file), lr=1e-12, updates=2)
    after = read_checkpoint(train(started))
    before = read_checkpoint(checkpoint_file)
    assert (after.config, after.tasks) == (before.config, before.tasks)
    for name, tensor in before.tensors.items():
        torch.testing.assert_close(after.tensors[name], tensor, atol=1e-6, rtol=0)


def test_the_presets_of_the_start_stay(config, checkpoint_file, tmp_path):
    start, checkpoint = tmp_path / "held.safetensors", read_checkpoint(checkpoint_file)
    held = presets.storable(presets.HELD)
    write_native(start, replace(checkpoint, extra=checkpoint.extra | held))
    trained = read_checkpoint(train(replace(config, start=str(start), updates=1)))
    assert presets.stored(trained.extra) == presets.HELD


def test_a_start_that_does_not_know_the_data_is_refused(config, make_model, tmp_path):
    start = tmp_path / "start.safetensors"
    write_native(start, from_model(make_model(MT30.subset(["pendulum-swingup"]))))
    with pytest.raises(DataError, match="cartpole-balance, which the model does not know"):
        train(replace(config, start=str(start)))


@pytest.mark.parametrize(
    "changes", [{"updates": 0}, {"batch_size": 0}, {"horizon": 0}, {"log_every": 0}]
)
def test_counts_that_cannot_be_run_are_refused(config, changes):
    with pytest.raises(InputError, match="must be at least 1"):
        replace(config, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lr_zero_at": 5}, "`lr_zero_at` is 5"),
        ({"behaviour_batch": 4}, "needs a weight of `behaviour`"),
        ({"behaviour_batch": -1}, "at least 0"),
        ({"td_lambda": 1.1}, "from 0 to 1"),
    ],
)
def test_what_would_change_nothing_is_refused(config, changes, said):
    with pytest.raises(InputError, match=said):
        replace(config, **changes)


def test_a_state_without_the_draws_of_labels_is_refused(config, imitation):
    train(replace(imitation, updates=2))
    folder = StateFolder(imitation.output)
    state = _state(imitation.output)
    state["sampler"] = {"generator": state["sampler"]["generator"]}
    folder.save(state.pop("update"), state)
    with pytest.raises(CheckpointError, match="does not fit this run"):
        train(imitation)


def test_wandb_without_its_package_says_so(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependencyError, match="pip install wandb"):
        train(replace(config, wandb=True))


def test_damaged_curves_do_not_stop_a_run_without_a_word(config):
    train(replace(config, updates=2))
    path = config.output / "metrics.csv"
    path.write_text(path.read_text() + "3,0.")  # a row that a crash cut off
    train(config)
    assert [row["update"] for row in _rows(config.output)] == [str(u) for u in range(1, 7)]
    path.write_text("something else\n1\n")
    with pytest.raises(RunError, match="cannot go on with"):
        train(replace(config, updates=7))
