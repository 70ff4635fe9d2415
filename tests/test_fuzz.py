"""Hostile files of every kind end in one clear line: benchmarks/fuzz.py on a small scale."""

import io
import json
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib")

import fuzz
from fuzzing import programs, readers, seeds, watch, worker

from tdmpc_opt import cli, runtime, zoo
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.errors import CheckpointError, ResultError, RunError, TdmpcOptError
from tdmpc_opt.evaluation.ablation import ablation
from tdmpc_opt.json_text import parse_json
from tdmpc_opt.report.read import read_result_files
from tdmpc_opt.report.sections import sections
from tdmpc_opt.task_table import TaskTable
from tdmpc_opt.torch_files import TorchFileError, load_outline, load_whole

ROOT = Path(__file__).parents[1]
QUICK = [name for name in seeds.MAKERS if name != "ONNX"]  # whose export takes its time
Cases = Callable[[str], readers.Case]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def cases(folder) -> Cases:
    """Makes the cases of a kind of file, once."""
    made: dict[str, readers.Case] = {}

    def of(name: str) -> readers.Case:
        if name not in made:
            place = folder / name
            (place / "seeds").mkdir(parents=True)
            reader = readers.readers(place)[name]
            valid = seeds.MAKERS[name](place / "seeds")
            made[name] = readers.Case(reader, valid, place / "cases")
        return made[name]

    return of


@pytest.fixture(autouse=True)
def _prepared(monkeypatch, unchecked):
    monkeypatch.setattr("tdmpc_opt.provenance.versions", dict)
    monkeypatch.setattr("tdmpc_opt.provenance.machine", dict)
    monkeypatch.setattr("tdmpc_opt.evaluation.score.RESAMPLES", 20)
    monkeypatch.setattr("tdmpc_opt.evaluation.ablation.RESAMPLES", 20)


@pytest.mark.parametrize("name", QUICK)
def test_valid_files_are_read(name, cases):
    case = cases(name)
    for number in range(len(case.seeds)):
        found = [readers.judge(case.reader.read, case.path(number), way) for way in range(8)]
        assert {verdict.fault for verdict in found} == {None}
        assert not all(verdict.refused for verdict in found)


@pytest.mark.parametrize("name", QUICK)
def test_changed_files_are_read_or_refused_in_one_line(name, cases, folder):
    case = cases(name)
    guard = watch.Watch(folder)

    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(number=st.integers(0, 2**40))
    def check(number: int) -> None:
        with guard:
            outcome = case.run(worker.case_of(7, name, number), number)
        assert outcome.fault is None

    check()


def test_the_watch_sees_what_it_is_for(tmp_path):
    """Each payload, unpickled freely, is noticed: else no run would count for anything."""
    import pickle

    noticed = 0
    for number in range(60):
        payload = programs.hostile(random.Random(number))
        try:
            with watch.Watch(tmp_path):
                pickle.loads(payload)
        except watch.CodeRunError:
            noticed += 1
        except Exception:  # most pieces are no whole pickles
            continue
    assert noticed > 10
    assert not Path(programs.CANARY).exists()
    with pytest.raises(watch.CodeRunError), watch.Watch(tmp_path):
        (tmp_path.parent / "elsewhere").write_text("x")


def test_the_driver_counts_goes_on_and_retries(tmp_path, monkeypatch):
    output = tmp_path / "fuzz.json"
    monkeypatch.setenv("TDMPC_OPT_HOME", str(tmp_path))
    monkeypatch.setattr(fuzz, "AT_LEAST", 40)
    config = fuzz.Config(cases=40, only="run records", seconds=20, output=output)
    with pytest.raises(SystemExit) as done:
        fuzz.main(config)
    assert done.value.code == 0
    state = fuzz.State(tmp_path / "fuzz", 0)
    assert state.tallies["run records"].cases == 40
    state.tallies["run records"].faults = [{"fault": "crash", "case": 3, "message": "once"}]
    state.save()
    with pytest.raises(SystemExit):
        fuzz.main(config)
    result = json.loads(output.read_text())
    assert result["per_reader"]["run records"] | {"seconds": 0} == {
        "cases": 40,
        "passed_first_check": state.tallies["run records"].passed,
        "read": state.tallies["run records"].read,
        "too_large": 0,
        "faults": 0,
        "mended": 1,
        "seconds": 0,
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", list(seeds.MAKERS))
def test_some_thousand_changed_files_a_kind(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TDMPC_OPT_HOME", str(tmp_path))
    monkeypatch.setattr(fuzz, "AT_LEAST", 500 if name == "ONNX" else 2000)
    config = fuzz.Config(cases=1, only=name, seed=99, output=tmp_path / "fuzz.json")
    with pytest.raises(SystemExit):
        fuzz.main(config)
    tally = fuzz.State(tmp_path / "fuzz", 99).tallies[name]
    assert tally.faults == []
    assert 2 * tally.passed >= tally.cases


# What the fuzzing found, one by one.


def test_messages_are_one_line_whatever_a_file_says():
    text = str(TdmpcOptError("task a\nb\x1b[2J\ud800 is unknown" + "x" * 9000))
    assert text.startswith("task a\\nb\\x1b[2J\\ud800 is unknown")
    assert text.isprintable()
    assert len(text) == 1500


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "{", b"\xff", "1" * 9999])
def test_deep_or_broken_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs_dim": "3"}, "obs_dim = '3'"),
        ({"obs_dim": True}, "obs_dim = True"),
        ({"obs_dim": 0}, "not in 1"),
        ({"obs_dim": 1 << 62}, "not in 1"),
        ({"episode_length": -1}, "not in 1"),
        ({"name": ["a"]}, r"name = \['a'\]"),
        ({"name": "a\nb"}, r"called 'a\\nb'"),
        ({"env": "\x1b[2J"}, "called"),
    ],
)
def test_task_tables_hold_tasks(change, message):
    record = {"name": "a", "obs_dim": 3, "action_dim": 1}
    with pytest.raises((TypeError, ValueError), match=message):
        TaskTable.from_json([record | change])


def _changed(path: Path, change: Callable[[dict[str, str]], None]) -> Path:
    """Write the demo's teacher with other metadata."""
    content = zoo.path("demo-teacher").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return path


@pytest.mark.parametrize(
    "field", [("latent_dim", 7), ("latent_dim", None), ("simnorm_dim", 0), ("latent_dim", 256)]
)
def test_the_device_refuses_weights_that_do_not_fit(tmp_path, field):
    def change(header):
        metadata = header["__metadata__"]
        metadata["config"] = json.dumps(json.loads(metadata["config"]) | {field[0]: field[1]})

    with pytest.raises(CheckpointError, match="is damaged"):
        runtime.load(_changed(tmp_path / "x.safetensors", change))


@pytest.mark.parametrize(
    "name", ["encoder.0.norm.bias", "policy_head.2.bias", "encoder.1.weight"]
)
def test_the_device_refuses_a_file_that_lacks_a_tensor(tmp_path, name):
    def change(header):
        header["q_" + name] = header.pop(name)

    with pytest.raises(CheckpointError, match=r"is damaged: .*, expected"):
        runtime.load(_changed(tmp_path / "x.safetensors", change))


def test_inspecting_shows_what_a_file_says_as_it_is(tmp_path, capsys):
    def change(header):
        extra = {"note": "[/b] [red]x\x1b[2J", "[/i]": "y"}
        header["__metadata__"]["extra"] = json.dumps(extra)

    assert cli.main(["inspect", str(_changed(tmp_path / "x.safetensors", change))]) == 0
    shown = capsys.readouterr().out
    assert "[/b] [red]x\\x1b[2J" in shown
    assert "\x1b" not in shown


def test_networks_that_a_file_lacks_cannot_be_told_of_any_width(tmp_path):
    def change(header):
        metadata = header["__metadata__"]
        metadata["config"] = json.dumps(json.loads(metadata["config"]) | {"num_bins": 2**62})

    with pytest.raises(CheckpointError, match="its config cannot be built"):
        read_checkpoint(_changed(tmp_path / "x.safetensors", change))


def _torch_file(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """Write a small file by torch whose pickle is changed."""
    file = io.BytesIO()
    torch.save({"a": torch.ones(2)}, file)
    return _repacked(path, file.getvalue(), change)


def _repacked(path: Path, content: bytes, change: Callable[[bytes], bytes]) -> Path:
    from fuzzing.archives import _entries, _Entry, pack

    entries = [
        _Entry(e.name, change(e.data) if e.name.endswith("data.pkl") else e.data)
        for e in _entries(content)
    ]
    path.write_bytes(pack(entries))
    return path


def test_pickles_cannot_fill_memory_with_an_array_of_bytes(tmp_path):
    """torch's own list allows `bytearray`: here eight billion zeros out of 40 bytes."""
    bomb = b"\x80\x02c__builtin__\nbytearray\n(" + programs.integer(1 << 33) + b"tR."
    with pytest.raises(TorchFileError, match="was refused"):
        load_whole(_torch_file(tmp_path / "a.pt", lambda _: bomb))
    (tmp_path / "old.pt").write_bytes(bomb)
    with pytest.raises(TorchFileError, match="was refused"):
        load_whole(tmp_path / "old.pt")
    assert load_whole(_torch_file(tmp_path / "b.pt", bytes))["a"].tolist() == [1, 1]


def test_archives_with_an_entry_twice_or_a_program_are_refused(tmp_path):
    from fuzzing.archives import _entries, _Entry, pack

    entries = list(_entries(_torch_file(tmp_path / "a.pt", bytes).read_bytes()))
    for more in (
        _Entry(entries[0].name.upper(), b"x"),
        _Entry("archive/constants.pkl", b"\x80\x02N."),
    ):
        (tmp_path / "b.pt").write_bytes(pack([*entries, more]))
        with warnings.catch_warnings(), pytest.raises(TorchFileError, match="twice"):
            load_whole(tmp_path / "b.pt")


def test_archives_of_other_byte_orders_are_refused_before_torch_reads_them(tmp_path):
    """torch 2.13 dies of a segmentation fault on the outline of one."""
    from fuzzing.archives import _entries, _Entry, pack

    entries = _entries(_torch_file(tmp_path / "a.pt", bytes).read_bytes())
    for order in (b"big", b"", b"middle"):
        swapped = [
            _Entry(e.name, order if e.name.endswith("byteorder") else e.data) for e in entries
        ]
        (tmp_path / "b.pt").write_bytes(pack(swapped))
        for load in (load_whole, load_outline):
            with pytest.raises(TorchFileError, match="big-endian"):
                load(tmp_path / "b.pt")


def test_results_without_a_seed_cannot_be_compared(tmp_path):
    content = json.loads(seeds.results(tmp_path)[0]["result.json"])
    del content["training"]["seed"]
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(ResultError, match="cannot be compared"):
        ablation([tmp_path / "r.json"])


def test_curves_without_a_point_and_kinds_that_are_no_names(tmp_path):
    content = {"kind": "expert", "learning_curve": [], "config": {"task": "walker-run"}}
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(ResultError, match="r: cannot be shown"):
        sections(read_result_files([tmp_path / "r.json"]))
    (tmp_path / "r.json").write_text(json.dumps({"kind": {}}))
    assert not read_result_files([tmp_path / "r.json"]).sources


def test_quantised_tensors_out_of_range_are_refused(tmp_path):
    content = seeds.public(tmp_path)[3]["model.pt"]
    point = programs.integer(1 << 40)

    def change(program: bytes) -> bytes:
        at = program.index(b"G\x3f\xb9\x99\x99")  # the scale; the zero point follows it
        assert program[at + 9 : at + 11] == b"K\x00"
        return program[: at + 9] + point + program[at + 11 :]

    with pytest.raises(CheckpointError, match="quantised tensor is damaged"):
        read_checkpoint(_repacked(tmp_path / "a.pt", content, change))


def test_states_of_experts_that_claim_more_than_they_hold_are_refused(tmp_path):
    from tdmpc_opt.collection.expert_state import read_progress

    path = tmp_path / "state.npz"
    for change in (
        lambda file: np.savez_compressed(file, progress=np.zeros(9, np.uint8)),
        lambda file: np.savez(file, progress=np.array([{}], dtype=object)),
    ):
        with path.open("wb") as file:
            change(file)
        with pytest.raises(RunError, match="is damaged"):
            read_progress(path)
    with path.open("wb") as file:
        np.savez(file, progress=np.zeros(9, np.uint8))
    path.write_bytes(
        path.read_bytes().replace(b"'shape': (9,)", b"'shape': (9" + b"9" * 9 + b",)")
    )
    with pytest.raises(RunError, match="is damaged"):
        read_progress(path)


# The page tells what the result file holds.


def test_the_page_on_security_shows_the_counts_of_the_result_file():
    result = json.loads((ROOT / "results" / "fuzz.json").read_text())
    page = (ROOT / "docs" / "security.md").read_text()
    assert page == fuzz.with_table(page, result)
    assert page.count("\n| ") == 1 + len(result["per_reader"]) == 1 + len(seeds.MAKERS)
    assert result["crashes"] == result["hangs"] == result["code_runs"] == 0
    assert 2 * result["passed_first_check"] >= result["cases"]


def test_the_worker_says_what_it_did(tmp_path):
    command = [sys.executable, "-m", "fuzzing.worker", "expert policies", "3", "0", "20", "30"]
    paths = f"{ROOT / 'src'}:{ROOT / 'benchmarks'}"
    done = subprocess.run(
        [*command, str(tmp_path)],
        env={"PYTHONPATH": paths, "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["next"] == last["cases"] == 30
