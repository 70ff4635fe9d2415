"""The public layouts, in files made here; `golden/public_small.pt` is of the public code."""

import io
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from public_layouts import layout_a, layout_b, layout_c
from torch.nn import Parameter

from tdmpc_opt.checkpoints.checkpoint import build, expected_shapes
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.cli import main
from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.schema import MT30, MT80, ModelConfig

CONFIG = ModelConfig(
    obs_dim=5,
    action_dim=3,
    num_tasks=2,
    enc_dim=16,
    mlp_dim=24,
    latent_dim=16,
    num_enc_layers=3,
    num_q=4,
    task_dim=6,
    num_bins=11,
)
SINGLE = ModelConfig(
    obs_dim=7,
    action_dim=2,
    num_tasks=1,
    enc_dim=16,
    mlp_dim=24,
    latent_dim=16,
    num_enc_layers=2,
    num_q=2,
    task_dim=0,
    num_bins=11,
)


def random_tensors(config: ModelConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.randn(shape, generator=generator)
        for name, shape in expected_shapes(config).items()
    }


def save(path: Path, entries: dict[str, object], *, bare: bool = False, **options) -> Path:
    torch.save(entries if bare else {"model": entries}, path, **options)
    return path


def assert_same(got: dict[str, torch.Tensor], native: dict[str, torch.Tensor]) -> None:
    assert got.keys() == native.keys()
    for name, tensor in native.items():
        assert torch.equal(got[name], tensor), name


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
@pytest.mark.parametrize(
    ("rounded", "quantised"), [(0, None), (61, "61 of 61"), (20, "20 of 61")]
)
def test_files_like_the_released_students_load(public_file, tmp_path, rounded, quantised):
    """The release has one in fp16, one rounded throughout with scale 1, and one in part."""
    entries = torch.load(public_file, weights_only=True)["model"]
    for key in list(entries)[:rounded]:
        entries[key] = torch.quantize_per_tensor(entries[key].float(), 1.0, 0, torch.qint8)
    checkpoint = read_checkpoint(save(tmp_path / "r.pt", entries))
    assert checkpoint.layout == "public A (functorch)"
    assert checkpoint.tasks == MT30
    assert checkpoint.parameters == 1_426_427
    assert checkpoint.extra.get("quantised") == (quantised and f"{quantised} tensors")
    model = build(checkpoint)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.task_embedding.weight.norm(dim=-1).max() <= 1 + 1e-6


def test_all_layouts_give_the_same_tensors(tmp_path):
    native, single = random_tensors(CONFIG), random_tensors(SINGLE)
    a = read_checkpoint(save(tmp_path / "a.pt", layout_a(native)))
    b = read_checkpoint(save(tmp_path / "b.pt", layout_b(native, [3, 2])))
    c = read_checkpoint(save(tmp_path / "c.pt", layout_c(single)))
    assert [x.layout[:8] for x in (a, b, c)] == ["public A", "public B", "public C"]
    for checkpoint, tensors in ((a, native), (b, native), (c, single)):
        assert_same(checkpoint.tensors, tensors)
    assert a.config == b.config == CONFIG
    assert c.config == SINGLE
    assert [task.action_dim for task in a.tasks.tasks] == [3, 3]
    assert [task.action_dim for task in b.tasks.tasks] == [3, 2]
    assert a.tasks.names == ("task-0", "task-1")


@pytest.mark.parametrize("layout", [layout_a, layout_c, lambda n: layout_b(n, None)])
def test_single_task_files_act_without_a_task(tmp_path, layout):
    checkpoint = read_checkpoint(save(tmp_path / "s.pt", layout(random_tensors(SINGLE))))
    assert checkpoint.tasks.names == ("task",)
    assert (checkpoint.tasks.obs_dim, checkpoint.tasks.action_dim) == (7, 2)
    z = build(checkpoint).encode(torch.randn(3, 7), None)
    assert z.shape == (3, 16)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("bare", [False, True])
def test_wrapper_prefixes_and_bare_state_dicts_load(tmp_path, prefix, bare):
    native = random_tensors(CONFIG)
    entries = {prefix + key: value for key, value in layout_b(native, [3, 2]).items()}
    assert_same(read_checkpoint(save(tmp_path / "d.pt", entries, bare=bare)).tensors, native)


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod", "_orig_mod.module"])
def test_networks_that_were_wrapped_one_by_one_load(tmp_path, wrapper):
    native = random_tensors(CONFIG)
    entries = {
        re.sub(r"^(_encoder|_pi|_dynamics)\.", rf"\1.{wrapper}.", key): value
        for key, value in layout_b(native, [3, 2]).items()
    }
    assert_same(read_checkpoint(save(tmp_path / "n.pt", entries)).tensors, native)


def test_the_state_dict_of_a_whole_agent_loads(tmp_path):
    native = random_tensors(CONFIG)
    model = {f"model.{key}": value for key, value in layout_b(native, [3, 2]).items()}
    own = {
        "_prev_mean": torch.zeros(3, 3),
        "scale.value": torch.ones(1),
        "scale._percentiles": torch.tensor([5.0, 95.0]),
    }
    assert_same(
        read_checkpoint(save(tmp_path / "a.pt", model | own, bare=True)).tensors, native
    )


def test_a_pickle_protocol_that_cannot_be_read_is_named(tmp_path):
    path = save(tmp_path / "p.pt", layout_a(random_tensors(CONFIG)), pickle_protocol=4)
    with pytest.raises(CheckpointError, match="with a pickle protocol above 2"):
        read_checkpoint(path)


def test_files_of_the_old_torch_format_load(tmp_path):
    native = random_tensors(CONFIG)
    path = save(tmp_path / "old", layout_a(native), _use_new_zipfile_serialization=False)
    assert_same(read_checkpoint(path).tensors, native)


def _as_parameters(entries):
    return {k: Parameter(v) if _is_weight(v) else v for k, v in entries.items()}


def _column_major(entries):
    return {
        k: v.t().contiguous().t() if _is_weight(v) and v.ndim == 2 else v
        for k, v in entries.items()
    }


def _without_batch_sizes(entries):
    return {k: v for k, v in entries.items() if not k.endswith(("__batch_size", "__device"))}


def _is_weight(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


@pytest.mark.parametrize(
    "change", [OrderedDict, _as_parameters, _column_major, _without_batch_sizes]
)
def test_how_a_state_dict_is_stored_changes_no_value(tmp_path, change):
    native = random_tensors(CONFIG)
    path = save(tmp_path / "o.pt", change(layout_b(native, [3, 2])))
    assert_same(read_checkpoint(path).tensors, native)


def test_what_a_training_run_stores_beside_the_model_is_left_out(tmp_path):
    native = random_tensors(CONFIG)
    optimizer = {"state": {}, "param_groups": [{"lr": 3e-4, "params": [0, 1]}]}
    more = {"optim": optimizer, "scale": {"value": torch.ones(1)}, "step": 1000}
    path = save(tmp_path / "r.pt", {"model": layout_b(native, [3, 2]), **more}, bare=True)
    assert_same(read_checkpoint(path).tensors, native)


def test_tensors_saved_on_a_gpu_load_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
    path = save(tmp_path / "gpu.pt", layout_a(random_tensors(SINGLE)))
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(path, weights_only=True, map_location="cuda:0")
    assert read_checkpoint(path).tensors["encoder.0.weight"].device.type == "cpu"


def test_quantised_entries_come_out_as_their_float_values(tmp_path):
    native = random_tensors(SINGLE)
    entries = layout_a(native)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that quantised dtypes are going away
        entries["_pi.0.weight"] = torch.quantize_per_tensor(
            entries["_pi.0.weight"], 0.05, 3, torch.qint8
        )
        entries["_pi.2.weight"] = entries["_pi.2.weight"].half()
        path = save(tmp_path / "q.pt", entries)
    tensors = read_checkpoint(path).tensors
    assert tensors["policy_head.0.weight"].dtype == torch.float32
    assert tensors["policy_head.2.weight"].dtype == torch.float16
    error = tensors["policy_head.0.weight"] - native["policy_head.0.weight"].clamp(-6.55, 6.2)
    assert 0 < error.abs().max() <= 0.0251


def test_files_without_target_qs_start_them_as_copies(tmp_path):
    entries = {k: v for k, v in layout_a(random_tensors(SINGLE)).items() if "target" not in k}
    checkpoint = read_checkpoint(save(tmp_path / "t.pt", entries))
    model = build(checkpoint)
    assert not checkpoint.has_targets
    ours, target = model.q_ensemble[0].weight, model.target_q_ensemble[0].weight
    assert torch.equal(ours, target)
    assert ours.data_ptr() != target.data_ptr()


@pytest.mark.parametrize("table", [MT30, MT80])
def test_known_task_sets_are_recognised_by_their_sizes(tmp_path, table):
    config = ModelConfig(
        obs_dim=table.obs_dim,
        action_dim=6,
        num_tasks=len(table),
        enc_dim=16,
        mlp_dim=16,
        latent_dim=16,
        num_enc_layers=2,
        num_q=2,
        task_dim=4,
        num_bins=11,
    )
    native = random_tensors(config)
    widths = [task.action_dim for task in table.tasks]
    assert read_checkpoint(save(tmp_path / "k.pt", layout_a(native))).tasks == table
    assert read_checkpoint(save(tmp_path / "m.pt", layout_b(native, widths))).tasks == table
    foreign = layout_b(native, widths[::-1])
    names = read_checkpoint(save(tmp_path / "f.pt", foreign)).tasks.names
    assert names[0] == "task-0"


@pytest.mark.parametrize("key", ["_encoder.rgb.2.weight", "_encoder.state.9.weight"])
def test_pixel_encoders_are_refused_by_name(tmp_path, key):
    entries = layout_a(random_tensors(SINGLE)) | {key: torch.zeros(4, 3, 7, 7)}
    with pytest.raises(CheckpointError, match=r"pixel encoder .* is not supported"):
        read_checkpoint(save(tmp_path / "p.pt", entries))


def _without(key):
    return lambda entries: {k: v for k, v in entries.items() if k != key}


def _with(key, value):
    return lambda entries: entries | {key: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("_pi.1.weight"), "policy_head, module 1: a bias without its weight"),
        (_without("_pi.1.bias"), r"'policy_head.1.bias' is missing"),
        (_without("_Qs.params.0"), "q_ensemble, module 0: a bias without its weight"),
        (_without("_dynamics.2.ln.bias"), r"'dynamics.2.norm.bias' is missing"),
        (_without("_encoder.state.0.weight"), "encoder, module 0"),
        (_with("_reward.1.weight", torch.zeros(24, 9)), r"reward_head.1.weight.* \[24, 9\]"),
        (_with("_pi.2.bias", torch.zeros(1000)), r"policy_head.2.bias.* \[1000\]"),
        (_with("_pi.0.bias", torch.full((24,), torch.nan)), "NaN or infinity"),
        (_with("_pi.0.bias", torch.zeros(24, dtype=torch.int32)), "floating point"),
        (_with("_pi.0.bias", torch.zeros(1).expand(10**9)), "larger than the file"),
        (_with("_pi.0.bias", [0.0] * 24), "not a tensor"),
        (_with("_novel.weight", torch.zeros(2)), r"'_novel.weight' is unknown"),
        (_with("_target_Qs_params.0.weight", torch.zeros(2, 24, 18)), "two entries"),
        (_with("module._pi.0.bias", torch.zeros(24)), "twice"),
        (_with("_Qs.params.x", torch.zeros(2)), "unknown"),
        (lambda entries: {}, "no state dict of a TD-MPC2 world model: its entries are nothing"),
        (lambda entries: {1: 2}, "no state dict"),
        (
            lambda entries: {"agent": entries, "step": 3},
            "no state dict of a TD-MPC2 world model: its entries are 'agent', 'step'; name",
        ),
        (
            lambda entries: {f"net.{k}": v for k, v in entries.items()},
            r"its entries are 'net\._.*', \.\.\.; name the checkpoint",
        ),
    ],
)
def test_damaged_state_dicts_are_refused_naming_the_fault(tmp_path, change, message):
    entries = change(layout_a(random_tensors(SINGLE)))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(save(tmp_path / "d.pt", entries, bare=True))


class _Malicious:
    """Creates a file when it is unpickled without restriction."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_runs_code_is_refused_and_runs_none(tmp_path, zipped):
    marker = tmp_path / "marker"
    entries = layout_a(random_tensors(SINGLE)) | {"evil": _Malicious(marker)}
    path = save(tmp_path / "evil.pt", entries, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="would run code"):
        read_checkpoint(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the attack is real where code is allowed
    assert marker.exists()


def test_a_bare_pickle_is_refused_and_runs_no_code(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(_Malicious(marker)))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not marker.exists()


def test_a_zip_bomb_is_refused(tmp_path):
    path, buffer = tmp_path / "bomb.pt", io.BytesIO()
    torch.save({"x": torch.zeros(1000)}, buffer)
    with (
        zipfile.ZipFile(buffer) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(CheckpointError, match="packed zip"):
        read_checkpoint(path)


def test_a_zip_file_of_another_program_is_not_called_damaged(tmp_path):
    path = tmp_path / "arrays.npz"
    np.savez(path, a=np.zeros(3))
    with pytest.raises(CheckpointError, match="is a zip file of another program"):
        read_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.0005, 0.1, 0.5, 0.9, 0.999])
def test_truncated_public_files_are_refused(tmp_path, zipped, part):
    entries = layout_a(random_tensors(SINGLE))
    path = save(tmp_path / "cut.pt", entries, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CheckpointError, match=r"truncated or damaged|cut off"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "holders", [["state_dict"], ["model", "state_dict"], ["state_dict"] * 2]
)
def test_state_dicts_within_other_dictionaries_load(tmp_path, holders):
    native = random_tensors(CONFIG)
    content = {f"model.{key}": value for key, value in layout_b(native, [3, 2]).items()}
    for holder in holders:
        content = {holder: content, "epoch": 3}
    assert_same(read_checkpoint(save(tmp_path / "w.pt", content, bare=True)).tensors, native)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("_Qs.online.params.0.weight", (2, 8, 8), "is a checkpoint of Newt, whose agents are"),
        ("_Q1.0.weight", (8, 8), "is a checkpoint of TD-MPC, the predecessor of TD-MPC2"),
    ],
)
def test_files_of_other_programs_are_refused_by_name(tmp_path, key, shape, message):
    entries = layout_b(random_tensors(CONFIG), [3, 2]) | {key: torch.zeros(shape)}
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(save(tmp_path / "n.pt", entries))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bins", [0, 1])
def test_agents_without_bins_are_refused_before_anything_is_written(tmp_path, bins, capsys):
    """`convert` wrote what its own reader refused, and `quantize` exited 0."""
    source = replace(CONFIG)
    object.__setattr__(source, "num_bins", bins)
    path = save(tmp_path / "bins.pt", layout_b(random_tensors(source), [3, 2]))
    for command in (["convert"], ["quantize", "--policy-only"]):
        output = tmp_path / f"{command[0]}.safetensors"
        assert main([*command, str(path), "--output", str(output)]) == 1
        assert "decoded from at least 2 bins" in capsys.readouterr().err
        assert not output.exists()
