"""Faults that changed files once caused, each refused in one line since."""

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import entries_of, hostile_pickle, pickled_int, zipped

from tdmpc_opt import cli, runtime, zoo
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.torch_files import TorchFileError, load_outline, load_whole
from tdmpc_opt.errors import CheckpointError, ResultError, RunError, TdmpcOptError
from tdmpc_opt.evaluation.compare import ablation
from tdmpc_opt.experts.state import read_progress
from tdmpc_opt.files import parse_json
from tdmpc_opt.report.page import sections
from tdmpc_opt.report.read import read_result_files
from tdmpc_opt.schema import TaskTable

pytestmark = pytest.mark.usefixtures("unchecked")
CORPUS = Path(__file__).parent / "corpus"


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
        ({"obs_dim": 0}, "each must be in 1"),
        ({"obs_dim": 1 << 62}, "each must be in 1"),
        ({"episode_length": -1}, "each must be in 1"),
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

    with pytest.raises(CheckpointError, match="its config or tasks cannot be used"):
        read_checkpoint(_changed(tmp_path / "x.safetensors", change))


def _torch_file(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """Write a small file by torch whose pickle is changed."""
    file = io.BytesIO()
    torch.save({"a": torch.ones(2)}, file)
    return _repacked(path, file.getvalue(), change)


def _repacked(path: Path, content: bytes, change: Callable[[bytes], bytes]) -> Path:
    entries = [
        (name, change(data) if name.endswith("data.pkl") else data)
        for name, data in entries_of(content).items()
    ]
    path.write_bytes(zipped(entries))
    return path


def test_pickles_cannot_fill_memory_with_an_array_of_bytes(tmp_path):
    """torch's own list allows `bytearray`: here eight billion zeros out of 40 bytes."""
    bomb = hostile_pickle(b"c__builtin__\nbytearray\n(" + pickled_int(1 << 33) + b"tR")
    with pytest.raises(TorchFileError, match="was refused"):
        load_whole(_torch_file(tmp_path / "a.pt", lambda _: bomb))
    (tmp_path / "old.pt").write_bytes(bomb)
    with pytest.raises(TorchFileError, match="was refused"):
        load_whole(tmp_path / "old.pt")
    assert load_whole(_torch_file(tmp_path / "b.pt", bytes))["a"].tolist() == [1, 1]


def test_archives_with_an_entry_twice_or_a_program_are_refused(tmp_path):
    entries = list(entries_of(_torch_file(tmp_path / "a.pt", bytes).read_bytes()).items())
    for more in ((entries[0][0].upper(), b"x"), ("archive/constants.pkl", b"\x80\x02N.")):
        (tmp_path / "b.pt").write_bytes(zipped([*entries, more]))
        with warnings.catch_warnings(), pytest.raises(TorchFileError, match="twice"):
            load_whole(tmp_path / "b.pt")


def test_archives_of_other_byte_orders_are_refused_before_torch_reads_them(tmp_path):
    """torch 2.13 dies of a segmentation fault on the outline of one."""
    entries = entries_of(_torch_file(tmp_path / "a.pt", bytes).read_bytes())
    for order in (b"big", b"", b"middle"):
        swapped = entries | {name: order for name in entries if name.endswith("byteorder")}
        (tmp_path / "b.pt").write_bytes(zipped(list(swapped.items())))
        for load in (load_whole, load_outline):
            with pytest.raises(TorchFileError, match="big-endian"):
                load(tmp_path / "b.pt")


def test_results_without_a_seed_cannot_be_compared(tmp_path):
    content = json.loads((CORPUS / "result-files" / "0" / "result.json").read_text())
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
    content = (CORPUS / "public-checkpoints" / "3" / "model.pt").read_bytes()
    point = pickled_int(1 << 40)

    def change(program: bytes) -> bytes:
        at = program.index(b"G\x3f\xb9\x99\x99")  # the scale; the zero point follows it
        assert program[at + 9 : at + 11] == b"K\x00"
        return program[: at + 9] + point + program[at + 11 :]

    with pytest.raises(CheckpointError, match="quantised tensor is damaged"):
        read_checkpoint(_repacked(tmp_path / "a.pt", content, change))


def test_states_of_experts_that_claim_more_than_they_hold_are_refused(tmp_path):
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
