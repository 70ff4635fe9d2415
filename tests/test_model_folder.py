import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmpc_opt import cli, files, load_agent
from tdmpc_opt.agents.sources import CheckpointSource, open_source
from tdmpc_opt.checkpoints.load import read_checkpoint, resolve
from tdmpc_opt.configs.deploy import ConvertConfig
from tdmpc_opt.errors import CheckpointError, InputError, ResultError
from tdmpc_opt.export.model_folder import save_folder
from tdmpc_opt.files import sha256

ROOT = Path(__file__).parents[1]


@pytest.fixture
def result(checkpoint_file, tmp_path):
    """A result of the tiny agent."""
    content = json.loads((ROOT / "results" / "demo-teacher.json").read_text())
    content["config"]["checkpoint"] = {"name": "tiny", "sha256": sha256(checkpoint_file)}
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(content))
    return path


def _save(checkpoint: Path, folder: Path, *results: Path) -> Path:
    config = ConvertConfig(
        checkpoint=str(checkpoint), output=folder, results=results, license="mit"
    )
    save_folder(config)
    return folder


@pytest.mark.parametrize("calls", [0, 2, 4, 6])
def test_a_full_disk_leaves_a_folder_as_it_was(checkpoint_file, tmp_path, monkeypatch, calls):
    """The disk is full after so many files and folders have reached it."""
    old = _save(checkpoint_file, tmp_path / "old")
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    for folder in (old, tmp_path / "new"):
        done = []

        def full(handle: int, done: list[int] = done) -> None:
            done.append(handle)
            if len(done) > calls:
                raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", full)
            with pytest.raises(CheckpointError, match=r"cannot write .*: No space left"):
                save_folder(
                    ConvertConfig(checkpoint="demo-teacher", output=folder, license="mit")
                )
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_a_folder_acts_as_the_file_it_was_made_from(checkpoint_file, tmp_path):
    folder = _save(checkpoint_file, tmp_path / "tiny-0.3")
    assert {path.name for path in folder.iterdir()} == {
        *("model.safetensors", "config.json", "README.md")
    }
    obs = np.ones(3, np.float32)
    actions = [
        load_agent(path, mode="policy").act(obs, "pendulum-swingup")
        for path in (checkpoint_file, folder, str(folder))
    ]
    assert np.array_equal(actions[0], actions[1])
    assert np.array_equal(actions[0], actions[2])
    before, after = read_checkpoint(checkpoint_file).tensors, read_checkpoint(folder).tensors
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert isinstance(open_source(str(folder)), CheckpointSource)
    described = json.loads((folder / "config.json").read_text())
    assert [task["name"] for task in described["tasks"]] == list(
        read_checkpoint(folder).tasks.names
    )


def test_the_hub_reads_the_card(checkpoint_file, tmp_path, result):
    from huggingface_hub import ModelCard

    folder = _save(checkpoint_file, tmp_path / "tiny", result)
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "mit"
    assert card.data.library_name == "tdmpc-opt"
    assert card.data.model_name == "tiny"
    found = card.data.eval_results[0]
    assert found.metric_type == "normalized_score"
    assert found.metric_value == pytest.approx(71.80)
    assert "64.59 to 78.94" in card.text
    assert 'load_agent("tiny"' in card.text


def test_the_card_of_a_trained_student_tells_its_run(dataset_dir, tmp_path):
    data, run = str(dataset_dir), str(tmp_path / "run")
    small = ("--size", "0.3", "--updates", "1", "--batch-size", "4", "--device", "cpu")
    assert cli.main(["train", "--data", data, "--output", run, *small]) == 0
    assert cli.main(["convert", run, "--output", str(tmp_path / "shared")]) == 0
    text = (tmp_path / "shared" / "README.md").read_text()
    assert "Trained for 1 update by" in text
    assert '"batch_size": 4' in text
    assert "license: unknown" in text


def test_a_training_run_is_not_replaced_by_another_model(checkpoint_file, tmp_path):
    (tmp_path / "metrics.csv").touch()
    with pytest.raises(CheckpointError, match="has a training run, whose model this would"):
        _save(checkpoint_file, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_results_of_another_checkpoint_are_refused(checkpoint_file, tmp_path, result):
    with pytest.raises(ResultError, match="another checkpoint"):
        _save(checkpoint_file, tmp_path / "x", ROOT / "results" / "demo-teacher.json")
    content = json.loads(result.read_text()) | {"complete": False}
    result.write_text(json.dumps(content))
    with pytest.raises(ResultError, match="not complete"):
        _save(checkpoint_file, tmp_path / "x", result)
    assert not (tmp_path / "x").exists()


def test_a_card_needs_a_folder():
    with pytest.raises(InputError, match="model folder"):
        ConvertConfig(checkpoint="x", output=Path("x.safetensors"), license="mit")


def _in_offline_process(code: str, cache: Path) -> subprocess.CompletedProcess:
    variables = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_hub_id_is_answered_from_the_local_cache(checkpoint_file, tmp_path):
    repository, commit = tmp_path / "models--someone--tiny", "0" * 40
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    shutil.copyfile(checkpoint_file, snapshot / "model.safetensors")
    code = "import tdmpc_opt; print(*tdmpc_opt.load_agent('someone/tiny').tasks.names)"
    run = _in_offline_process(code, tmp_path)
    assert run.stdout.split() == ["pendulum-swingup", "cartpole-balance"], run.stderr


def test_a_hub_id_that_is_not_cached_is_refused_offline(tmp_path):
    code = "from tdmpc_opt.cli import main; raise SystemExit(main(['inspect', 'a/b']))"
    run = _in_offline_process(code, tmp_path)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "a/b is neither a file nor a folder here" in run.stderr
    assert "not in the local cache" in run.stderr


def test_retries_of_the_hub_are_not_printed(monkeypatch, caplog):
    hub = pytest.importorskip("huggingface_hub")

    def fails(*_: object, **__: object) -> str:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise hub.errors.LocalEntryNotFoundError("no such host")

    monkeypatch.setattr(hub, "hf_hub_download", fails)
    level = logging.getLogger("huggingface_hub").level
    with pytest.raises(CheckpointError, match="the hub cannot be reached"):
        resolve("someone/tiny")
    assert not caplog.records
    assert logging.getLogger("huggingface_hub").level == level


def test_without_its_library_a_hub_id_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"tdmpc-opt\[hub\]"):
        resolve("someone/tiny")


@pytest.mark.parametrize(
    "name", ["runs/student.pt", "/no/where", "a/b/c", "../no-such-model", "a b/c"]
)
def test_what_cannot_be_a_hub_id_is_a_missing_file(name):
    with pytest.raises(CheckpointError, match="neither a file nor a bundled checkpoint"):
        resolve(name)
