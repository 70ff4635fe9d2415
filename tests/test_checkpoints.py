import errno
import json
import os
import resource
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tdmpc_opt import files, zoo
from tdmpc_opt.checkpoints import native
from tdmpc_opt.checkpoints.checkpoint import Checkpoint, build, expected_shapes, from_model
from tdmpc_opt.checkpoints.load import read_checkpoint, resolve
from tdmpc_opt.checkpoints.native import read_native, write_native
from tdmpc_opt.checkpoints.summary import convert, describe
from tdmpc_opt.configs.deploy import ConvertConfig
from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.files import sha256
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.schema import ModelConfig, Task, TaskTable

TASKS = TaskTable((Task("one", 5, 3), Task("two", 4, 2, custom=True)))
CONFIG = ModelConfig(
    obs_dim=5,
    action_dim=3,
    num_tasks=2,
    enc_dim=16,
    mlp_dim=16,
    latent_dim=16,
    num_enc_layers=2,
    num_q=2,
    task_dim=4,
    num_bins=11,
    bin_limit=5.0,
)


@pytest.fixture
def checkpoint() -> Checkpoint:
    model = WorldModel(CONFIG, TASKS, torch.Generator().manual_seed(1))
    return from_model(model, {"source": "a test"})


@pytest.fixture
def file(tmp_path, checkpoint) -> Path:
    write_native(tmp_path / "model.safetensors", checkpoint)
    return tmp_path / "model.safetensors"


def rewrite(path: Path, tensors=None, **changes: str) -> Path:
    """Write the file anew with other metadata or tensors, past all of our checks."""
    header = json.loads(
        path.read_bytes()[8 : 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]]
    )
    metadata = header["__metadata__"] | changes
    save_file(load_file(path) if tensors is None else tensors, path, metadata)
    return path


def test_expected_shapes_are_those_of_the_model():
    for config in (CONFIG, replace(CONFIG, num_enc_layers=4, num_q=5)):
        state = WorldModel(config, TASKS).state_dict()
        assert {name: tuple(t.shape) for name, t in state.items()} == expected_shapes(config)


def test_native_files_come_back_equal(file, checkpoint):
    got = read_checkpoint(file)
    assert (got.config, got.tasks) == (CONFIG, TASKS)
    assert (got.layout, got.extra) == ("native", {"source": "a test"})
    assert got.tensors.keys() == checkpoint.tensors.keys()
    for name, tensor in checkpoint.tensors.items():
        assert torch.equal(got.tensors[name], tensor), name


def test_built_model_equals_the_saved_one_and_owns_its_weights(checkpoint):
    model, other = build(checkpoint), build(checkpoint)
    assert not model.training
    assert model.config == CONFIG
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, checkpoint.tensors[name]), name
    with torch.no_grad():
        model.encoder[0].weight.zero_()
    assert other.encoder[0].weight.any()
    assert checkpoint.tensors["encoder.0.weight"].any()


def test_built_model_trains_all_but_its_target_qs_and_computes(checkpoint):
    model = build(checkpoint)
    fresh = WorldModel(CONFIG, TASKS)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {name for name, p in fresh.named_parameters() if p.requires_grad}
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    z = model.encode(torch.randn(3, 5), torch.tensor([0, 1, 1]))
    assert model.q_values(z, torch.zeros(3, 3), torch.tensor([0, 1, 1])).isfinite().all()


def test_embedding_rows_longer_than_one_are_rescaled_at_load(checkpoint):
    checkpoint.tensors["task_embedding.weight"][1] = 3.0
    weight = build(checkpoint).task_embedding.weight.detach()
    assert float(weight[1].norm()) == pytest.approx(1)
    assert torch.equal(weight[0], checkpoint.tensors["task_embedding.weight"][0])


def test_building_does_not_load_the_compiler(file):
    code = f"""
import sys
from tdmpc_opt.checkpoints.checkpoint import build
from tdmpc_opt.checkpoints.load import read_checkpoint
build(read_checkpoint({str(file)!r}))
print("torch._dynamo" in sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["False"]


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("encoder.0.bias", None, r"'encoder.0.bias' is missing"),
        ("target_q_ensemble.1.bias", None, r"'target_q_ensemble.1.bias' is missing"),
        ("odd", torch.zeros(2), r"'odd' is unknown"),
        ("encoder.0.bias", torch.zeros(17), r"'encoder.0.bias' is \[17\], expected \[16\]"),
        ("encoder.0.bias", torch.zeros(16, dtype=torch.int64), "floating point"),
        (
            "encoder.0.bias",
            torch.full((16,), torch.inf),
            "'encoder.0.bias' contains NaN or",
        ),
    ],
)
def test_the_first_wrong_tensor_is_named(file, checkpoint, name, tensor, message):
    tensors = {k: v for k, v in checkpoint.tensors.items() if k != name}
    if tensor is not None:
        tensors[name] = tensor
    wrong = replace(checkpoint, tensors=tensors)
    with pytest.raises(CheckpointError, match=message):
        build(wrong)
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match=message):
        write_native(file, wrong)
    assert file.read_bytes() == before
    with pytest.raises(CheckpointError, match=message):
        read_native(rewrite(file, tensors))


def _metadata(**changes: object) -> str:
    base = {k: v for k, v in CONFIG.__dict__.items() if changes.get(k, v) is not None}
    return json.dumps(base | {k: v for k, v in changes.items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "3"}, r"written by a newer version.*upgrade tdmpc-opt"),
        ({"schema": "x"}, "schema number"),
        ({"format": "other"}, "safetensors file of another program"),
        ({"config": "{"}, "no readable 'config'"),
        ({"config": "[" * 100_000}, "no readable 'config'"),
        ({"config": "[]"}, "'config' is not a dict"),
        ({"config": _metadata(enc_dim="16")}, "enc_dim = '16'"),
        ({"config": _metadata(num_q=True)}, "num_q = True"),
        ({"config": _metadata(num_q=None)}, "lacks the field 'num_q'"),
        ({"config": _metadata(novel=1)}, "unknown field 'novel'"),
        ({"config": _metadata(latent_dim=15)}, "multiple of simnorm_dim"),
        ({"config": _metadata(simnorm_dim=0)}, "cannot be used"),
        ({"config": _metadata(bin_limit=float("nan"))}, "cannot be used"),
        ({"config": _metadata(num_enc_layers=10**12)}, "cannot be used"),
        ({"config": _metadata(num_enc_layers=10**4)}, "encoder layers"),
        ({"config": _metadata(mlp_dim=10**12)}, "cannot be used"),
        ({"config": _metadata(mlp_dim=10**4)}, "expected"),
        ({"tasks": "[]"}, "the task table has 0 tasks"),
        ({"tasks": "[1]"}, "not a task"),
        ({"tasks": json.dumps(TASKS.to_json()[:1])}, "the task table has 1 task padded"),
        ({"tasks": '[{"name": "a", "obs_dim": "b"}]'}, "obs_dim = 'b'"),
        ({"extra": "3"}, "'extra' is not a dict"),
    ],
)
def test_wrong_metadata_is_refused_in_one_line(file, changes, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(rewrite(file, **changes))
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("part", [0.0001, 0.001, 0.05, 0.5, 0.9, 0.9999])
def test_truncated_native_files_are_refused(file, part):
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CheckpointError, match=r"truncated or damaged|cut off|empty"):
        read_checkpoint(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a text file"),
        (b"<!DOCTYPE html>", "is a text file"),
        (b'{"model": {"x": 1}}', "is a text file"),
        (b"\x00\x01\x02\x03" * 9, "not a checkpoint of any known format"),
    ],
)
def test_files_that_are_no_checkpoint_are_told_apart(tmp_path, content, message):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "x.pt")


def test_headers_of_any_length_are_read(file):
    """A length whose first byte is 0x80 looks like a pickle."""
    lengths = set()
    for padding in range(0, 256, 8):
        rewrite(file, extra=json.dumps({"padding": "x" * padding}))
        lengths.add(file.read_bytes()[0])
        assert read_checkpoint(file).config == CONFIG
    assert 0x80 in lengths


def test_the_content_decides_the_format_not_the_suffix(file):
    moved = file.rename(file.with_name("native.pt"))
    assert read_checkpoint(moved).layout == "native"


def test_folders_and_unknown_names_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="neither a file nor a bundled checkpoint"):
        read_checkpoint(tmp_path / "none.pt")


def test_zoo_names_resolve_to_their_files(file, monkeypatch):
    monkeypatch.setattr(zoo, "_FOLDER", file.parent)
    assert zoo.names() == ("model",)
    assert zoo.path("model") == file
    assert read_checkpoint("model").config == CONFIG
    with pytest.raises(CheckpointError, match=r"did you mean model.*bundled: model"):
        resolve("modle")
    with pytest.raises(CheckpointError, match="bundled: model"):
        zoo.path("../model")


def test_bundled_checkpoints_load():
    for name in zoo.names():
        build(read_checkpoint(name))


def test_a_full_disk_leaves_the_old_file_and_nothing_else(file, checkpoint, monkeypatch):
    def fails(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = file.read_bytes()
    for owner, name in ((Path, "replace"), (files.os, "fsync"), (native, "save_file")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fails)
            with pytest.raises(
                CheckpointError, match=r"cannot write .*: No space left"
            ) as caught:
                write_native(file, checkpoint)
        assert "\n" not in str(caught.value)
        assert file.read_bytes() == before
        assert list(file.parent.iterdir()) == [file]


def test_a_write_that_the_system_cuts_short_leaves_the_old_file(file, checkpoint):
    before = file.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(CheckpointError, match="cannot write") as caught:
            write_native(file, checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_writing_below_a_file_is_refused(file, checkpoint):
    with pytest.raises(CheckpointError, match="cannot write"):
        write_native(file / "below.safetensors", checkpoint)


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupted():
        with files.replace_when_done(tmp_path / "new" / "x") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list((tmp_path / "new").iterdir()) == []


def test_tensors_that_share_memory_can_be_written(tmp_path, checkpoint):
    tensors = dict(checkpoint.tensors)
    for name in [name for name in tensors if name.startswith("q_ensemble")]:
        tensors[f"target_{name}"] = tensors[name]
    write_native(tmp_path / "s.safetensors", replace(checkpoint, tensors=tensors))
    got = read_native(tmp_path / "s.safetensors").tensors
    assert torch.equal(got["target_q_ensemble.2.weight"], tensors["q_ensemble.2.weight"])


def test_converting_keeps_every_bit_and_names_its_source(public_file, tmp_path):
    source = public_file
    summary = convert(ConvertConfig(checkpoint=str(source), output=tmp_path / "c.safetensors"))
    assert summary.layout == "native"
    assert summary.extra["source_layout"] == "public A (functorch)"
    assert summary.extra["source_sha256"] == sha256(source)
    before, after = read_checkpoint(source), read_checkpoint(summary.path)
    assert all(torch.equal(after.tensors[k], v) for k, v in before.tensors.items())
    assert (after.config, after.tasks) == (before.config, before.tasks)


def test_the_summary_counts_parts_and_formats(file, checkpoint):
    tensors = dict(checkpoint.tensors)
    tensors["encoder.0.bias"] = tensors["encoder.0.bias"].half()
    write_native(file, replace(checkpoint, tensors=tensors))
    summary = describe(file)
    assert summary.size_bytes == file.stat().st_size
    assert summary.tasks == ("one", "two")
    assert summary.dtypes["encoder"] == "float16, float32"
    assert summary.part_parameters["task_embedding"] == 8
    parts = sum(summary.part_parameters.values())
    assert summary.parameters == parts - summary.part_parameters["target_q_ensemble"]
