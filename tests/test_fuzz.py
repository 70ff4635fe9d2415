"""Damaged and hostile files of every kind are read, or refused in one clear line.

Files of `tests/corpus` are changed at random (`fuzzing.changed`) and read as the commands would
read them. A longer campaign of the same tests, in parallel:

    make fuzz
"""

import contextlib
import faulthandler
import io
import json
import pickle
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import (
    CALLS,
    MEMORY_BOUND,
    CodeRunError,
    changed,
    entries_of,
    guarded,
    hostile_pickle,
)
from hypothesis import given
from hypothesis import strategies as st
from lightning_fabric import Fabric

pytest.importorskip("matplotlib")

from tdmpc_opt import runtime
from tdmpc_opt.agents.agent import load_agent
from tdmpc_opt.agents.expert import ExpertNetwork
from tdmpc_opt.agents.sources import CheckpointSource
from tdmpc_opt.checkpoints.checkpoint import build
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.summary import describe
from tdmpc_opt.cli import files
from tdmpc_opt.cli.output import Terminal
from tdmpc_opt.configs.data import DataExportConfig, DataImportConfig
from tdmpc_opt.configs.deploy import InspectConfig
from tdmpc_opt.configs.training import LossWeights, TrainConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.data.exchange import export_data, import_data
from tdmpc_opt.data.reports import summarize, verify
from tdmpc_opt.data.sampler import SliceSampler
from tdmpc_opt.errors import TdmpcOptError
from tdmpc_opt.experts import train as experts
from tdmpc_opt.experts.state import read_progress
from tdmpc_opt.export.model_folder import card
from tdmpc_opt.progress import Silent
from tdmpc_opt.report.page import sections
from tdmpc_opt.report.read import read_result_files
from tdmpc_opt.schema import MT30
from tdmpc_opt.training import run as runs
from tdmpc_opt.training.batches import Draws
from tdmpc_opt.training.dagger import _RoundsFile
from tdmpc_opt.training.step import build_learner

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the guard reads /proc"),
    pytest.mark.usefixtures("unchecked"),
]
CORPUS = Path(__file__).parent / "corpus"
TASKS = MT30.subset(["pendulum-swingup", "cartpole-balance"])
RUN = {"size": "0.3", "updates": 4, "lr": 0.001, "data": [None, "x"]}
HANG_SECONDS = 20


def _is_json(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content), dict)
    except (ValueError, RecursionError):
        return False


def _has_header(content: bytes) -> bool:
    return _is_json(content[8 : 8 + int.from_bytes(content[:8], "little")])


def _inspect(path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        files._inspect(InspectConfig(checkpoint=str(path)), Terminal("inspect"))
    assert "\x1b" not in shown.getvalue(), "the file wrote to the terminal"


def _public(path: Path, way: int) -> None:
    if way % 8 == 0:
        _inspect(path)
    else:
        load_agent(path, mode="policy" if way % 2 else "planner")


def _native(path: Path, way: int) -> None:
    if way % 8 == 0:
        _inspect(path)
    elif way % 8 == 1:
        card("m", describe(path.parent), "mit", [])
    elif way % 8 == 2:
        CheckpointSource(source=str(path)).training()
    elif way % 8 > 5:
        load_agent(path, preset="quick" if way % 2 else None)
    else:
        _on_device(path, way)


def _on_device(path: Path, way: int) -> None:
    agent = runtime.load(path)
    obs = np.zeros((2, agent.tasks.tasks[0].obs_dim), np.float32)
    # Weights may be finite and their products not: bad actions, which no reader can know.
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        agent.act(obs, 0)


def _onnx(path: Path, way: int) -> None:
    _inspect(path) if way == 0 else _on_device(path, way)


def _official(path: Path, way: int) -> None:
    output = path.parent / "imported"
    shutil.rmtree(output, ignore_errors=True)
    bad = "skip" if way % 2 else "refuse"
    import_data(DataImportConfig(sources=(path,), output=output, on_bad=bad))


def _dataset(listing: Path, way: int) -> None:
    path = listing.parent
    if way % 4 == 0:
        verify(path, Silent())
        return
    opened = EpisodeDataset.open(path)
    if way % 4 == 1:
        opened.check()
        summarize(opened)
        for shard in opened.shards:
            list(opened.episodes(shard))
    elif way % 4 == 2:
        export_data(DataExportConfig(data=path, output=path / "out"))
    else:
        SliceSampler([opened], TASKS, horizon=2, batch_size=4, seed=way).sample()


def _result(path: Path, way: int) -> None:
    sections(read_result_files([path]))


def _record(path: Path, way: int) -> None:
    if path.name == "config.json":
        runs.stored_record(path, TrainConfig, RUN)
    elif path.name == "rounds.json":
        _RoundsFile(path, RUN)
    else:
        experts._recorded(path)


def _expert(path: Path, way: int) -> None:
    network = ExpertNetwork.load(path)
    network.mean(np.zeros((1, network.obs_dim), np.float32))


def _expert_state(path: Path, way: int) -> None:
    read_progress(path)


Read = Callable[[Path, int], None]
READERS: dict[str, tuple[str, Read]] = {
    "public-checkpoints": ("model.pt", _public),
    "safetensors": ("model.safetensors", _native),
    "quantised-safetensors": ("model.safetensors", _native),
    "onnx": ("agent.onnx", _onnx),
    "official-shards": ("model.pt", _official),
    "datasets": ("dataset.json", _dataset),
    "result-files": ("*.json", _result),
    "run-records": ("*.json", _record),
    "expert-policies": ("expert.safetensors", _expert),
    "expert-states": ("state.npz", _expert_state),
}
"""For each folder of the corpus: the file that is opened in each example, and what opens it.

The number a reader is given chooses between the commands that read such a file.
"""


def only_read(patch: pytest.MonkeyPatch) -> None:
    """Leave out what takes time and reads nothing of the file, such as asking git."""
    patch.setattr("tdmpc_opt.machine.versions", dict)
    patch.setattr("tdmpc_opt.machine.facts", dict)
    patch.setattr("tdmpc_opt.evaluation.score.RESAMPLES", 20)
    patch.setattr("tdmpc_opt.evaluation.compare.RESAMPLES", 20)


@pytest.fixture(autouse=True)
def _only_read(monkeypatch):
    only_read(monkeypatch)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Iterator[Path]:
    """A copy of the corpus, which is the working directory as well."""
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(CORPUS, folder, dirs_exist_ok=True)
    with contextlib.chdir(folder):
        yield folder


def _refusal(read: Read, path: Path, way: int, folder: Path) -> str | None:
    """Return the message with which a file was refused; other exceptions pass."""
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    try:
        with guarded(folder):
            read(path, way)
    except TdmpcOptError as error:
        return str(error)
    finally:
        faulthandler.cancel_dump_traceback_later()
    return None


def _check_changed(data: st.DataObject, example: Path, main: Path, read: Read) -> None:
    """Change one file of an example, read it, and put the valid one back."""
    names = sorted(path for path in example.rglob("*") if path.is_file())
    chosen = data.draw(st.just(main) | st.sampled_from(names))
    content = changed(data.draw, chosen.name, chosen.read_bytes())
    way = data.draw(st.integers(0, 15))
    valid = example.with_name(f"valid-{example.name}")
    shutil.copytree(example, valid)
    chosen.unlink()  # not overwritten: an earlier example may still map it
    chosen.write_bytes(content)
    try:
        message = _refusal(read, main, way, example)
    finally:
        shutil.rmtree(example)
        valid.rename(example)
    if message is not None:
        assert message.isprintable()
        assert 10 < len(message) < 3000


def check_changed_file(kind: str, work: Path, data: st.DataObject) -> None:
    """Check one change of one example of a kind, in a copy of the corpus."""
    pattern, read = READERS[kind]
    names = sorted(path.name for path in (CORPUS / kind).iterdir())
    example = work / kind / data.draw(st.sampled_from(names))
    (main,) = example.glob(pattern)
    _check_changed(data, example, main, read)


@pytest.mark.parametrize("kind", READERS)
def test_valid_files_are_read(kind, work):
    pattern, read = READERS[kind]
    for example in sorted((work / kind).iterdir()):
        (main,) = example.glob(pattern)
        refused = [_refusal(read, main, way, example) for way in range(8)]
        assert None in refused, refused


@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
def test_changed_files_are_read_or_refused_in_one_line(kind, work, data):
    check_changed_file(kind, work, data)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> tuple[Path, Read]:
    """The state of a run of a few weights, and what resumes from it."""
    folder = tmp_path_factory.mktemp("resumed")
    shutil.copytree(CORPUS / "datasets" / "0", folder / "data")
    data = EpisodeDataset.open(folder / "data")
    checkpoint = read_checkpoint(CORPUS / "safetensors" / "0" / "model.safetensors")
    config = TrainConfig(
        data=folder / "data",
        output=folder / "run",
        device="cpu",
        updates=4,
        horizon=2,
        batch_size=4,
        behaviour_batch=4,
        weights=LossWeights(behaviour=1.0),
    )
    learner = build_learner(Fabric(accelerator="cpu", devices=1), build(checkpoint), config)
    for optimizer, part in (
        (learner.model_optimizer, learner.model.dynamics),
        (learner.policy_optimizer, learner.model.policy_head),
    ):
        torch.stack([weight.sum() for weight in part.parameters()]).sum().backward()
        optimizer.step()
    run, draws, learner.update = runs.Run(config, [data]), Draws(config, [data], TASKS), 4
    run.save(learner, draws)
    (state,) = (run.folder / "states").glob("*.pt")
    return state, lambda path, way: run.restore(learner, draws, Silent())


@given(data=st.data())
def test_changed_training_states_are_resumed_or_refused_in_one_line(resumed, data):
    state, read = resumed
    _check_changed(data, state.parent, state, read)


def test_a_training_state_is_resumed(resumed):
    state, read = resumed
    assert _refusal(read, state, 0, state.parent) is None


@pytest.mark.parametrize("call", CALLS)
def test_the_guard_reports_code_that_runs(call, tmp_path, monkeypatch):
    """Unpickled freely, each of the calls is reported: else no example would prove anything."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CodeRunError), guarded(tmp_path):
        pickle.loads(hostile_pickle(call))


def test_the_guard_reports_writing_elsewhere_and_memory(tmp_path):
    with pytest.raises(CodeRunError), guarded(tmp_path / "here"):
        (tmp_path / "elsewhere").write_text("x")
    with pytest.raises(MemoryError, match="peak"), guarded(tmp_path):
        np.ones(MEMORY_BOUND // 4, np.float64)
    with pytest.raises(MemoryError), guarded(tmp_path):
        np.ones(1 << 30, np.float64)


@pytest.mark.parametrize(
    ("kind", "passes"),
    [
        ("safetensors", _has_header),
        ("result-files", _is_json),
        ("public-checkpoints", lambda content: bool(entries_of(content))),
    ],
)
def test_many_changes_pass_the_first_check_of_a_reader(kind, passes):
    """Changes that damage the outer format alone would never reach most of a reader."""
    path = next((CORPUS / kind / "0").iterdir())
    passed = []

    @given(data=st.data())
    def count(data: st.DataObject) -> None:
        passed.append(passes(changed(data.draw, path.name, path.read_bytes())))

    count()
    assert sum(passed) >= len(passed) / 3
