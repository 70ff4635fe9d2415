import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tdmpc_opt.checkpoints.checkpoint import Checkpoint, build, from_model
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.compression.quantize import quantize
from tdmpc_opt.configs.deploy import QuantizeConfig
from tdmpc_opt.errors import CheckpointError, InputError
from tdmpc_opt.files import sha256
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.schema import ModelConfig, Task, TaskTable

TASKS = TaskTable((Task("one", 5, 3), Task("two", 4, 2)))
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
)
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture
def checkpoint() -> Checkpoint:
    return from_model(WorldModel(CONFIG, TASKS, torch.Generator().manual_seed(1)))


@pytest.fixture
def source(tmp_path, checkpoint) -> Path:
    write_native(tmp_path / "full.safetensors", checkpoint)
    return tmp_path / "full.safetensors"


def test_quantizing_twice_gives_the_same_file(source, tmp_path):
    digests = set()
    for _ in range(8):  # safetensors draws the order of the metadata anew each time
        output = tmp_path / "small.safetensors"
        quantize(QuantizeConfig(checkpoint=str(source), output=output))
        digests.add(sha256(output))
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_the_file_holds_half_precision_without_targets(tmp_path, source, checkpoint, name):
    output = tmp_path / "new" / "small.safetensors"
    report = quantize(QuantizeConfig(checkpoint=str(source), output=output, format=name))
    small = read_checkpoint(output)
    assert {tensor.dtype for tensor in small.tensors.values()} == {DTYPES[name]}
    assert not small.has_targets
    assert small.tensors.keys() == checkpoint.without_targets().keys()
    (header,) = struct.unpack("<Q", output.read_bytes()[:8])
    assert (
        report.output_bytes == output.stat().st_size == 8 + header + 2 * checkpoint.parameters
    )
    assert report.source_bytes == source.stat().st_size
    assert report.parameters == checkpoint.parameters
    assert small.extra["source"] == "full.safetensors"


@pytest.mark.parametrize(("name", "bits"), [("fp16", 11), ("bf16", 8)])
def test_rounding_error_is_that_of_the_format(tmp_path, source, checkpoint, name, bits):
    output = tmp_path / "small.safetensors"
    report = quantize(QuantizeConfig(checkpoint=str(source), output=output, format=name))
    small = read_checkpoint(output).tensors
    errors = {
        key: (checkpoint.tensors[key] - tensor.float()).abs() for key, tensor in small.items()
    }
    assert report.max_error == max(float(error.max()) for error in errors.values())
    assert report.max_error > 0
    for key, error in errors.items():  # half a unit in the last place, or of the subnormals
        assert (error <= checkpoint.tensors[key].abs() * 2.0**-bits + 2.0**-25).all(), key


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_half_precision_files_compute_in_float32_close_to_the_original(
    tmp_path, source, checkpoint, name
):
    output = tmp_path / "small.safetensors"
    quantize(QuantizeConfig(checkpoint=str(source), output=output, format=name))
    model, full = build(read_checkpoint(output)), build(checkpoint)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    obs, task = torch.randn(8, 5), torch.tensor([0, 1] * 4)
    got, expected = model.encode(obs, task), full.encode(obs, task)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=2e-2, rtol=2e-2)
    assert not torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_can_be_built_in_the_format_of_the_file(checkpoint, dtype):
    model = build(checkpoint, dtype=dtype)
    assert model.dtype == dtype
    obs = torch.randn(8, 5, dtype=dtype)
    assert model.policy(model.encode(obs, torch.zeros(8).long()), torch.zeros(8).long())


def test_weights_that_overflow_fp16_are_refused_by_name(tmp_path, source, checkpoint):
    tensors = dict(checkpoint.tensors)
    tensors["encoder.1.bias"] = tensors["encoder.1.bias"] + 1e5
    write_native(source, replace(checkpoint, tensors=tensors))
    config = QuantizeConfig(checkpoint=str(source), output=tmp_path / "small.safetensors")
    with pytest.raises(CheckpointError, match=r"'encoder.1.bias' contains 1e\+05.*use bf16"):
        quantize(config)
    assert not config.output.exists()
    quantize(replace(config, format="bf16"))


def test_a_file_is_not_replaced_by_its_own_half_precision_copy(source):
    before = source.read_bytes()
    with pytest.raises(InputError, match="would overwrite"):
        quantize(QuantizeConfig(checkpoint=str(source), output=source))
    assert source.read_bytes() == before


def test_a_public_fp16_file_shrinks_without_further_rounding(public_file, tmp_path):
    output = tmp_path / "small.safetensors"
    report = quantize(QuantizeConfig(checkpoint=str(public_file), output=output))
    assert report.parameters == 1_426_427
    assert report.max_error == 0
    assert report.output_bytes < 0.73 * report.source_bytes
