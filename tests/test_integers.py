"""Weights in integers: rounding, storing, computing, and every reader of their files."""

import copy
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tdmpc_opt import cli, runtime
from tdmpc_opt.agents.agent import Agent, load_agent
from tdmpc_opt.checkpoints.checkpoint import Checkpoint, build
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.compression.calibration import Observations, Reference, read_observations
from tdmpc_opt.compression.distillation import distilled
from tdmpc_opt.compression.extract import compact_embedding, one_task, policy_only
from tdmpc_opt.compression.quantize import quantize
from tdmpc_opt.compression.rounding import (
    _refitted,
    group_of,
    layers,
    recipe,
    round_by_inputs,
    round_layer,
    round_to_nearest,
    to_integers,
    weight_bytes,
)
from tdmpc_opt.compression.sensitivity import SensitivityRow, most_accurate, smallest
from tdmpc_opt.configs.deploy import QuantizeConfig, SensitivityConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.errors import CheckpointError, DataError, InputError
from tdmpc_opt.model.layers import Dense
from tdmpc_opt.model.quantized import QuantizedDense, quantized_weight
from tdmpc_opt.progress import Silent

KINDS = ("int8", "int4")
LIMITS = {"int8": (-127, 127), "int4": (-8, 7)}
STORED = {"int8": "I8", "int4": "U8"}


@pytest.fixture
def matrix() -> torch.Tensor:
    return torch.randn(12, 70, generator=torch.Generator().manual_seed(0)).double() * 0.1


@pytest.fixture
def inputs() -> torch.Tensor:
    """Inputs that hang together, as a network's do."""
    source = torch.Generator().manual_seed(1)
    mixing = torch.randn(8, 70, generator=source).double()
    few = torch.randn(500, 8, generator=source).double() @ mixing
    return few + 0.1 * torch.randn(500, 70, generator=source).double()


@pytest.fixture
def agent_file(checkpoint_file, dataset_dir, tmp_path):
    """Makes a file of the tiny agent in a format, calibrated on real observations."""

    def make(kind: str, **options) -> Path:
        path = tmp_path / f"{kind}.safetensors"
        given = {"data": dataset_dir} if kind in KINDS else {}
        quantize(
            QuantizeConfig(
                checkpoint=str(checkpoint_file), output=path, format=kind, **(given | options)
            )
        )
        return path

    return make


def _dense(checkpoint: Checkpoint) -> Checkpoint:
    """The same agent with its integers written out as floats."""
    floats = {name: weight.dense() for name, weight in checkpoint.quantized.items()}
    tensors = {name: tensor.float() for name, tensor in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors | floats, quantized={})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("columns", "group"), [(6, 6), (7, 7), (70, 64), (129, 32)])
def test_stored_codes_come_back_times_their_scales(kind, columns, group):
    group = columns if kind == "int8" else group
    low, high = (-127, 128) if kind == "int8" else (-8, 8)
    source = torch.Generator().manual_seed(0)
    codes = torch.randint(low, high, (2, 3, columns), generator=source).to(torch.int8)
    groups = -(-columns // group)
    scale = torch.rand(2, 3, groups, generator=source).half()
    weight = quantized_weight(codes, scale, kind, group)
    wanted = codes * scale.float().repeat_interleave(group, dim=-1)[..., :columns]
    assert torch.equal(weight.dense(), wanted)
    assert weight.format == kind
    assert weight.shape == (2, 3, columns)
    per_row = columns if kind == "int8" else (columns + 1) // 2
    assert weight.size_bytes == 6 * (per_row + 2 * groups)


def test_rounding_to_nearest_stays_within_half_a_step(matrix):
    matrix[3] *= 1e-4  # scales of so small weights have few bits of their own
    matrix[4] *= 127 * 2.0**-24 / matrix[4].abs().max()  # the least scale of fp16
    matrix[5] = 0.0
    rounded = round_to_nearest(matrix, "int8", 70)
    error = (rounded.dense() - matrix).abs()
    assert (error <= rounded.scale.double() / 2 * (1 + 1e-9)).all()
    largest = matrix.abs().amax(1, keepdim=True)
    below = (rounded.scale.view(torch.int16) - 1).view(torch.float16)
    assert (127 * rounded.scale.double() >= largest).all()
    assert ((127 * below.double() < largest) | (largest == 0)).all()
    assert rounded.scale.min() > 0
    assert rounded.codes.abs().amax(1)[[0, 4, 5]].tolist() == [127, 127, 0]
    assert error.max() > 0


def test_four_bits_clip_only_where_that_lowers_the_error(matrix):
    matrix[0, 3] = 2.0  # an outlier that would make all steps coarse
    rounded = round_to_nearest(matrix, "int4", 32)
    steps = matrix.abs().unflatten(1, (-1, 35)).amax(-1).amax(1, keepdim=True) / 7
    plain = (matrix / steps).round().clamp(-8, 7) * steps
    error = (rounded.dense() - matrix).square().sum(1)
    assert (error < (plain - matrix).square().sum(1)).all()
    assert rounded.scale.shape == (12, 3)


@pytest.mark.parametrize(("kind", "group"), [("int8", 70), ("int4", 32)])
def test_rounding_by_inputs_disturbs_the_products_less(matrix, inputs, kind, group):
    covariance = inputs.T @ inputs / len(inputs)
    errors = [
        ((rounded.dense() - matrix) @ inputs.T).square().mean()
        for rounded in (
            round_to_nearest(matrix, kind, group),
            round_by_inputs(matrix, covariance, kind, group),
        )
    ]
    assert errors[1] < 0.25 * errors[0]


@pytest.mark.parametrize(("kind", "group"), [("int8", 70), ("int4", 32)])
def test_rounding_by_inputs_solves_for_the_columns_left(matrix, inputs, kind, group):
    """Against the normal equations of the later columns, solved anew for each one."""
    covariance = inputs.T @ inputs / len(inputs)
    rounded = round_by_inputs(matrix, covariance, kind, group)
    h = covariance + 0.01 * covariance.diagonal().mean() * torch.eye(70).double()
    steps = rounded.scale.double().repeat_interleave(group, dim=1)
    error, codes = torch.zeros(12, 0).double(), []
    for column in range(70):
        solved = torch.linalg.solve(h[column:, column:], h[column:, :column] @ error.T).T
        wanted = matrix[:, column] - solved[:, 0]
        step = steps[:, column]
        codes.append((wanted / step).round().clamp(*LIMITS[kind]))
        error = torch.cat([error, (codes[-1] * step - matrix[:, column])[:, None]], dim=1)
    assert torch.equal(rounded.dense().double(), torch.stack(codes, dim=1) * steps[:, :70])
    if kind == "int8":
        largest = (matrix.abs().amax(1, keepdim=True) / 127).float()
        torch.testing.assert_close(rounded.scale.float(), largest, rtol=1e-3, atol=0)


def test_four_bit_scales_are_the_best_of_those_tried(matrix):
    """Against each scale from a half to the whole of the one that spans the group."""
    rounded = round_to_nearest(matrix, "int4", 35)
    error = (rounded.dense() - matrix).square().unflatten(1, (2, 35)).sum(2)
    groups = matrix.unflatten(1, (2, 35))
    tried = []
    for share in np.arange(0.5, 1.01, 0.02):
        step = (share * groups.abs().amax(2, keepdim=True) / 7).half().double()
        tried.append(((groups / step).round().clamp(-8, 7) * step - groups).square().sum(2))
    assert (error <= torch.stack(tried).amin(0) * 1.01).all()


def test_four_bit_scales_are_the_best_for_the_inputs_that_vary(matrix):
    """Inputs that are independent: the error of each weight counts by its input's variance."""
    variance = 10 ** torch.linspace(-3, 3, 70, dtype=torch.float64)
    rounded = round_by_inputs(matrix, variance.diag(), "int4", 70)
    error = ((rounded.dense() - matrix).square() * variance).sum(1)
    tried = []
    for share in np.arange(0.5, 1.01, 0.02):
        step = (share * matrix.abs().amax(1, keepdim=True) / 7).half().double()
        codes = (matrix / step).round().clamp(-8, 7)
        tried.append(((codes * step - matrix).square() * variance).sum(1))
    assert (error <= torch.stack(tried).amin(0) * 1.05).all()


def test_a_refitted_weight_does_not_depend_on_the_unit_of_its_inputs(matrix, inputs):
    x = inputs.double()
    y = x + 0.1 * x.roll(1, dims=1)
    weight, _ = _refitted(matrix, x, y)
    assert (weight - matrix).abs().max() > 0.01
    for unit in (1e-3, 1e3):
        again, _ = _refitted(matrix, unit * x, unit * y)
        torch.testing.assert_close(again, weight)


@pytest.mark.parametrize(
    ("layer", "columns", "kind", "expected"),
    [
        ("dynamics.0", 129, "fp16", 774),
        ("dynamics.0", 129, "int8", 3 * (129 + 2)),
        ("dynamics.0", 129, "int4", 3 * (65 + 3 * 2)),
        ("policy_head.0", 129, "int4", 3 * (65 + 2 * 2)),
        ("encoder.1", 7, "int4", 3 * (4 + 2)),
    ],
)
def test_the_bytes_of_a_layer_are_known_before_it_is_rounded(layer, columns, kind, expected):
    assert group_of(layer, "int4", 512) == (64 if layer.startswith("dynamics") else 128)
    assert weight_bytes(layer, (3, columns), kind) == expected
    if kind != "fp16":
        group = group_of(layer, kind, columns)
        rounded = round_to_nearest(torch.ones(3, columns).double(), kind, group)
        assert rounded.size_bytes == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_fitted_to_inputs_that_changed(kind):
    """The rounded layer sees twice the inputs and another mean, as after rounded layers."""
    source = torch.Generator().manual_seed(0)
    original = Dense(12, 5, activation="none")
    original.initialize(source)
    x = torch.randn(2000, 12, generator=source) + 3
    y, working = 2 * x - 1, copy.deepcopy(original)
    with torch.no_grad():
        round_layer("dynamics.0", (original, working), (x, y), kind)
        wanted = original.product(x)
        error = (working.product(y) - wanted).std() / wanted.std()
        assert error < {"int8": 0.02, "int4": 0.2}[kind]
        torch.testing.assert_close(
            working.product(y).mean(0), wanted.mean(0), atol=5e-3, rtol=0
        )


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_that_never_vary_leave_each_weight_to_itself(kind):
    """Their covariance is 0, so that the bias alone can make the products the same."""
    original = Dense(12, 5, activation="none")
    original.initialize(torch.Generator().manual_seed(0))
    working = copy.deepcopy(original)
    x, y = torch.full((50, 12), 0.5), torch.full((50, 12), 2.0)
    with torch.no_grad():
        rounded = round_layer("dynamics.0", (original, working), (x, y), kind)
        alone = round_to_nearest(original.weight.double(), kind, 12)
        assert torch.equal(rounded.codes, alone.codes)
        assert torch.equal(rounded.scale, alone.scale)
        torch.testing.assert_close(working.product(y), original.product(x), atol=5e-3, rtol=0)


def test_independent_inputs_leave_each_weight_to_itself(matrix):
    alike = round_by_inputs(matrix, torch.eye(70).double(), "int8", 70)
    assert torch.equal(alike.codes, round_to_nearest(matrix, "int8", 70).codes)


def test_a_weight_too_large_for_its_scale_is_refused(matrix):
    with pytest.raises(CheckpointError, match="does not fit into fp16; use bf16"):
        round_to_nearest(matrix * 1e9, "int8", 70)


def test_a_narrow_embedding_is_the_same_agent(checkpoint_file):
    whole = read_checkpoint(checkpoint_file)
    narrow = compact_embedding(whole)
    assert (whole.config.task_dim, narrow.config.task_dim) == (4, 2)
    assert narrow.parameters < whole.parameters
    obs, task = torch.randn(6, whole.config.obs_dim), torch.tensor([0, 1] * 3)
    a, b = build(whole, dtype=torch.float64), build(narrow, dtype=torch.float64)
    za, zb = a.encode(obs.double(), task), b.encode(obs.double(), task)
    action = torch.rand(6, whole.config.action_dim).double()
    torch.testing.assert_close(za, zb, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        a.q_values(za, action, task), b.q_values(zb, action, task), atol=1e-5, rtol=1e-5
    )
    assert compact_embedding(narrow) is narrow


@pytest.mark.parametrize("kind", KINDS)
def test_files_hold_integers_and_no_targets(agent_file, kind):
    path = agent_file(kind)
    with safe_open(path, framework="numpy") as file:
        kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        assert file.metadata()["schema"] == "2"
    assert kinds["q_ensemble.1.weight"] == STORED[kind]
    assert kinds["dynamics.0.weight"] == "I8"
    assert kinds["encoder.0.weight"] == "F16"
    assert not any(key.startswith("target_") for key in kinds)
    checkpoint = read_checkpoint(path)
    formats = {name: weight.format for name, weight in checkpoint.quantized.items()}
    wanted = recipe(kind, checkpoint_of_names(checkpoint))
    assert formats == {f"{k}.weight": v for k, v in wanted.items() if v != "fp16"}


def test_agents_of_one_task_have_their_first_layer_in_integers(checkpoint_file):
    single = one_task(read_checkpoint(checkpoint_file), "pendulum-swingup")
    assert set(recipe("int8", single).values()) == {"int8"}
    assert _other_than("int4", single) == dict.fromkeys(
        ("encoder.0", "policy_head.2", "dynamics.0"), "int8"
    )


def test_agents_of_several_tasks_keep_what_errs_most_in_more_bits(checkpoint_file):
    several = read_checkpoint(checkpoint_file)
    assert _other_than("int8", several) == {"encoder.0": "fp16"}
    assert _other_than("int4", several) == {"encoder.0": "fp16"} | dict.fromkeys(
        ("encoder.1", "policy_head.2", "dynamics.0"), "int8"
    )
    assert _other_than("int4", policy_only(several)) == {"encoder.0": "fp16"} | dict.fromkeys(
        ("encoder.1", "policy_head.2"), "int8"
    )


def _other_than(kind: str, checkpoint: Checkpoint) -> dict[str, str]:
    """The layers of a file that are not in its format."""
    formats = recipe(kind, checkpoint)
    assert list(formats) == list(layers(checkpoint))
    return {layer: found for layer, found in formats.items() if found != kind}


def checkpoint_of_names(checkpoint: Checkpoint) -> Checkpoint:
    return _dense(checkpoint)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_model_is_as_small_as_its_file(agent_file, kind):
    path = agent_file(kind)
    model = build(read_checkpoint(path), policy_will_do=True)
    quantised = [m for m in model.modules() if isinstance(m, QuantizedDense)]
    assert len(quantised) == 13
    assert not any(
        name == "weight" for m in quantised for name, _ in m.named_parameters(recurse=False)
    )
    full = build(_dense(read_checkpoint(path)))
    held = sum(t.nbytes for m in quantised for t in (m.codes, m.scale))
    floats = sum(p.nbytes for p in full.parameters() if p.ndim > 1)
    assert held < (0.4 if kind == "int8" else 0.3) * floats


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_model_computes_what_its_numbers_say(agent_file, kind):
    stored = read_checkpoint(agent_file(kind))
    models = [
        build(c, policy_will_do=True, dtype=torch.float64) for c in (stored, _dense(stored))
    ]
    c = stored.config
    obs, task = torch.randn(6, c.obs_dim).double(), torch.tensor([0, 1] * 3)
    action = torch.rand(6, c.action_dim).double()
    z = models[1].encode(obs, task)
    for name, arguments in {
        "encode": (obs, task),
        "next": (z, action, task),
        "reward": (z, action, task),
        "q_values": (z, action, task),
    }.items():
        a, b = (getattr(model, name)(*arguments) for model in models)
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_agents_plan_and_act_from_integer_files(agent_file, kind, small_budget):
    path = agent_file(kind)
    agent = load_agent(path, preset=small_budget)
    full = Agent(build(_dense(read_checkpoint(path))), budget=small_budget)
    obs = np.linspace(-1, 1, 5, dtype=np.float32)
    actions = [
        a.act(obs, "cartpole-balance", generator=torch.Generator().manual_seed(2))
        for a in (agent, full)
    ]
    np.testing.assert_allclose(*actions, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_on_real_observations_beats_plain_rounding(
    checkpoint_file, dataset_dir, kind
):
    whole = read_checkpoint(checkpoint_file)
    checkpoint = compact_embedding(replace(whole, tensors=whole.without_targets()))
    used, held_out = read_observations(dataset_dir, checkpoint.tasks)
    reference = Reference(build(checkpoint), held_out)
    formats = dict.fromkeys(layers(checkpoint), kind)
    plain, calibrated = (
        build(to_integers(checkpoint, formats, observations), policy_will_do=True)
        for observations in (None, used)
    )
    assert reference.errors(calibrated).action < reference.errors(plain).action
    errors = reference.errors(calibrated).value, reference.errors(plain).value
    assert 0 < errors[0] < errors[1] < 2


def test_int8_has_one_scale_for_each_row_of_every_layer(checkpoint_file):
    checkpoint = read_checkpoint(checkpoint_file)
    formats = dict.fromkeys(layers(checkpoint), "int8")
    rounded = to_integers(checkpoint, formats, None).quantized
    assert any(len(weight.shape) == 3 for weight in rounded.values())  # the ensemble of Qs
    for name, weight in rounded.items():
        assert weight.scale.shape == (*weight.shape[:-1], 1), name


def test_the_original_has_no_error_and_another_agent_much(make_model, dataset_dir):
    models = [make_model(EpisodeDataset.open(dataset_dir).tasks, seed=seed) for seed in (0, 1)]
    _, held_out = read_observations(dataset_dir, models[0].tasks)
    reference = Reference(models[0], held_out)
    assert reference.errors(models[0]).action == 0
    assert reference.errors(models[0]).value == pytest.approx(0, abs=1e-6)
    assert reference.errors(models[1]).action > 0.1
    assert reference.errors(models[1]).value > 0.05


def test_held_out_observations_are_others_and_padded_alike(dataset_dir, checkpoint_file):
    tasks = read_checkpoint(checkpoint_file).tasks
    used, held_out = read_observations(dataset_dir, tasks)
    assert used.obs.shape[1] == held_out.obs.shape[1] == tasks.obs_dim
    assert sorted(set(used.task.tolist())) == sorted(set(held_out.task.tolist())) == [0, 1]
    seen = {tuple(row) for row in used.obs.tolist()}
    assert not seen & {tuple(row) for row in held_out.obs.tolist()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", [None, "cartpole-balance"])
def test_the_runtime_acts_as_torch_does(agent_file, dataset_dir, kind, task):
    path = agent_file(kind, policy_only=True, task=task)
    agent, reference = runtime.load(path), load_agent(path, mode="policy", dtype=torch.float64)
    dataset = EpisodeDataset.open(dataset_dir)
    shard = next(s for s in dataset.shards if s.task == "cartpole-balance")
    obs = next(dataset.episodes(shard)).obs
    found = agent.act(obs, task or "cartpole-balance")
    np.testing.assert_allclose(found, reference.act(obs, task or "cartpole-balance"), atol=1e-4)


def test_policy_only_and_task_combine_with_integers(agent_file):
    sizes = [
        agent_file("int8", **options).stat().st_size
        for options in (
            {},
            {"policy_only": True},
            {"policy_only": True, "task": "cartpole-balance"},
        )
    ]
    assert sizes == sorted(sizes, reverse=True)
    stored = read_checkpoint(agent_file("int4", policy_only=True, task="cartpole-balance"))
    assert stored.tasks.names == ("cartpole-balance",)
    assert not stored.has_world_model
    assert stored.quantized["encoder.0.weight"].format == "int8"
    assert stored.quantized["policy_head.1.weight"].format == "int4"


def test_the_policy_can_be_taken_out_of_integers(agent_file):
    path = agent_file("int8")
    policy = policy_only(read_checkpoint(path))
    write_native(path, policy)
    assert not read_checkpoint(path).has_world_model
    assert set(policy.quantized) == {
        "encoder.1.weight",
        *(f"policy_head.{index}.weight" for index in range(3)),
    }


def test_what_is_quantised_is_neither_quantised_again_nor_trained(agent_file, tmp_path):
    path = agent_file("int8")
    config = QuantizeConfig(checkpoint=str(path), output=tmp_path / "twice.safetensors")
    for kind in ("fp16", "int4"):
        with pytest.raises(CheckpointError, match="quantised weights already; name the file"):
            quantize(replace(config, format=kind))
    with pytest.raises(CheckpointError, match="cannot be taken out of quantised weights"):
        one_task(read_checkpoint(path), "pendulum-swingup")
    with pytest.raises(CheckpointError, match="cannot teach or be trained"):
        build(read_checkpoint(path))


def _rewritten(path: Path, drop=(), tensors=None, **metadata: str) -> Path:
    with safe_open(path, framework="pt") as file:
        facts = file.metadata() | metadata
    content = load_file(path) | (tensors or {})
    save_file({k: v for k, v in content.items() if k not in drop}, path, facts)
    return path


def _damage() -> list[tuple[dict, str]]:
    one = "encoder.1.weight"
    return [
        ({"schema": "3"}, "newer version"),
        ({"quantized": "[]"}, "'quantized' is not a dict|damaged"),
        ({"quantized": json.dumps({one: ["int3", 16, 16]})}, "metadata has .* for|damaged"),
        ({"quantized": json.dumps({one: ["int8", 0, 16]})}, "metadata has .* for|damaged"),
        ({"quantized": json.dumps({one: ["int4", 32, 16]})}, "expected|damaged"),
        ({"drop": ("encoder.1.scale",)}, "lacks its codes or scales|damaged"),
        ({"tensors": {"encoder.1.scale": torch.zeros(16, 1)}}, "float32|damaged"),
    ]


@pytest.mark.parametrize(("changes", "message"), _damage())
def test_damaged_integer_files_are_refused_in_one_line_by_both_readers(
    agent_file, changes, message
):
    path = _rewritten(agent_file("int8", policy_only=True), **changes)
    for read in (read_checkpoint, runtime.load):
        with pytest.raises(CheckpointError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_misshapen_integers_are_refused(agent_file):
    scale = {"encoder.1.scale": torch.zeros(16, 2).half()}
    path = _rewritten(agent_file("int8"), tensors=scale)
    with pytest.raises(CheckpointError, match=r"'encoder.1.weight' is .* expected"):
        read_checkpoint(path)
    path = agent_file("int8")
    with safe_open(path, framework="pt") as file:
        listed = json.loads(file.metadata()["quantized"])
    listed["q_ensemble.0.norm.weight"] = ["int8", 16, 16]
    stored = {
        "q_ensemble.0.norm.weight": torch.zeros(2, 16, dtype=torch.int8),
        "q_ensemble.0.norm.scale": torch.zeros(2, 1).half(),
    }
    _rewritten(path, tensors=stored, quantized=json.dumps(listed))
    with pytest.raises(CheckpointError, match="is no weight of a layer"):
        read_checkpoint(path)


def test_a_cut_off_integer_file_is_refused(agent_file):
    path = agent_file("int4", policy_only=True)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    for read in (read_checkpoint, runtime.load):
        with pytest.raises(CheckpointError, match="damaged"):
            read(path)


ROWS = [
    SensitivityRow(layer, kind, 100, size, error * scale, value)
    for layer, scale, value in (
        ("encoder.0", 9.0, 0.0),
        ("dynamics.1", 0.0, 0.3),
        ("x.2", 1.0, 0.01),
    )
    for kind, size, error in (("fp16", 200, 0.0), ("int8", 100, 0.01), ("int4", 50, 0.1))
]


def _all_mixes():
    names = list(dict.fromkeys(row.layer for row in ROWS))
    return itertools.product(*[[row for row in ROWS if row.layer == name] for name in names])


@pytest.mark.parametrize("budget", [150, 151, 300, 399, 600])
def test_the_most_accurate_mix_is_that_of_trying_them_all(budget):
    def error(mix):
        return sum(row.action_error**2 + row.value_error for row in mix)

    fitting = [mix for mix in _all_mixes() if sum(row.size_bytes for row in mix) <= budget]
    found = most_accurate(ROWS, budget)
    chosen = [row for row in ROWS if found[row.layer] == row.format]
    assert sum(row.size_bytes for row in chosen) <= budget
    assert error(chosen) == pytest.approx(min(map(error, fitting)))


@pytest.mark.parametrize("limit", [0.02, 0.11, 0.2, 1.0])
def test_the_smallest_mix_is_that_of_trying_them_all(limit):
    def fits(mix):
        return (
            sum(row.action_error**2 for row in mix) <= limit**2
            and sum(row.value_error for row in mix) <= 0.5
        )

    least = min(sum(row.size_bytes for row in mix) for mix in _all_mixes() if fits(mix))
    found = smallest(ROWS, limit, 0.5)
    assert sum(row.size_bytes for row in ROWS if found[row.layer] == row.format) == least


def test_errors_that_nothing_stays_below_are_refused():
    with pytest.raises(InputError, match="allow more, or take fp16"):
        smallest(ROWS, 0.5, 0.1)


def test_a_mixed_file_keeps_its_budgets(agent_file, dataset_dir, checkpoint_file):
    small, large = (agent_file(kind).stat().st_size for kind in ("int4", "int8"))
    budget = (small + large) // 2
    path = agent_file("mixed", data=dataset_dir, budget_bytes=budget)
    assert path.stat().st_size <= budget
    formats = {weight.format for weight in read_checkpoint(path).quantized.values()}
    assert formats == {"int8", "int4"}
    report = quantize(
        QuantizeConfig(
            checkpoint=str(checkpoint_file),
            output=path,
            format="mixed",
            data=dataset_dir,
            max_action_error=0.02,
        )
    )
    assert 0 < report.errors.action <= 0.02
    assert report.errors.value <= 0.02


@pytest.mark.parametrize("whole", [True, False])
def test_distilling_brings_a_rounded_agent_closer_to_the_original(
    dataset_dir, checkpoint_file, whole
):
    read = read_checkpoint(checkpoint_file)
    checkpoint = compact_embedding(replace(read, tensors=read.without_targets()))
    checkpoint = checkpoint if whole else policy_only(checkpoint)
    used, held_out = read_observations(dataset_dir, checkpoint.tasks)
    teacher = build(checkpoint, policy_will_do=True)
    small = to_integers(checkpoint, dict.fromkeys(layers(checkpoint), "int4"), None)
    trained = distilled(small, teacher, used, 60, Silent())
    reference = Reference(build(checkpoint, policy_will_do=True), held_out)
    before, after = (build(each, policy_will_do=True) for each in (small, trained))
    assert reference.errors(after).action < 0.8 * reference.errors(before).action
    if whole:
        assert reference.errors(after).value < reference.errors(before).value
    for name, weight in small.quantized.items():
        same = trained.quantized[name]
        assert (same.format, same.shape, same.group) == (
            weight.format,
            weight.shape,
            weight.group,
        )


def test_what_distilling_does_not_bring_closer_is_dropped(
    agent_file, dataset_dir, checkpoint_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("tdmpc_opt.compression.distillation._LR", 10.0)
    output = tmp_path / "distilled.safetensors"
    words = ["quantize", str(checkpoint_file), "--format", "int4", "--output", str(output)]
    words += ["--data", str(dataset_dir), "--distill-updates", "3"]
    assert cli.main(words) == 0
    assert "reduce the error and was dropped" in capsys.readouterr().out.replace("\n", " ")
    plain, kept = (read_checkpoint(path) for path in (agent_file("int4"), output))
    for name, weight in plain.quantized.items():
        assert torch.equal(kept.quantized[name].codes, weight.codes)


@pytest.mark.parametrize("kind", KINDS)
def test_no_update_of_the_distillation_changes_no_number(
    agent_file, dataset_dir, checkpoint_file, kind
):
    small = read_checkpoint(agent_file(kind))
    used, _ = read_observations(dataset_dir, small.tasks)
    teacher = build(compact_embedding(read_checkpoint(checkpoint_file)))
    same = distilled(small, teacher, used, 0, Silent())
    for name, weight in small.quantized.items():
        assert torch.equal(same.quantized[name].codes, weight.codes)
        assert torch.equal(same.quantized[name].scale, weight.scale)
    for name, tensor in small.tensors.items():
        assert torch.equal(same.tensors[name], tensor)


def test_a_budget_below_what_is_no_weight_is_refused(agent_file, dataset_dir):
    with pytest.raises(InputError, match="bytes at least, and the budget leaves 0 for them"):
        agent_file("mixed", data=dataset_dir, budget_bytes=1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "mixed"}, "needs --data"),
        ({"format": "mixed", "data": Path("d")}, "either --budget-bytes or"),
        ({"format": "int8", "budget_bytes": 5}, "--budget-bytes is for format mixed, not int8"),
        ({"format": "fp16", "data": Path("d")}, "fp16 needs no data"),
        ({"format": "int4", "distill_updates": 5}, "--distill-updates needs --data"),
        ({"format": "int4", "data": Path("d"), "distill_updates": -1}, "at least 0"),
        ({"format": "mixed", "data": Path("d"), "budget_bytes": 0}, "must be above 0"),
        (
            {"format": "mixed", "data": Path("d"), "budget_bytes": 9, "max_action_error": 1.0},
            "either",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        QuantizeConfig(checkpoint="x", output=Path("y"), **options)


def test_data_of_other_tasks_is_refused(make_model, dataset_dir, tmp_path):
    from tdmpc_opt.checkpoints.checkpoint import from_model
    from tdmpc_opt.schema import MT30

    path = tmp_path / "walker.safetensors"
    write_native(path, from_model(make_model(MT30.subset(["walker-walk"]))))
    small = tmp_path / "small.safetensors"
    config = QuantizeConfig(checkpoint=str(path), output=small, format="int8", data=dataset_dir)
    with pytest.raises(DataError, match=r"no observations of this agent's tasks .walker-walk"):
        quantize(config)


def test_sensitivity_measures_every_layer_in_every_format(
    checkpoint_file, dataset_dir, tmp_path, capsys
):
    output, plot = tmp_path / "s.json", tmp_path / "s.png"
    words = ["sensitivity", str(checkpoint_file), "--data", str(dataset_dir)]
    assert cli.main([*words, "--output", str(output), "--plot", str(plot)]) == 0
    assert "q_ensemble.2" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")
    content = json.loads(output.read_text())
    assert content["kind"] == "sensitivity"
    found = {(row["layer"], row["format"]): row for row in content["rows"]}
    assert len(found) == 14 * 3
    for layer in ("encoder.1", "policy_head.0"):
        assert found[layer, "int4"]["action_error"] > found[layer, "int8"]["action_error"] > 0
    for layer in ("dynamics.1", "reward_head.0", "q_ensemble.2"):
        assert found[layer, "int4"]["value_error"] > found[layer, "int8"]["value_error"] > 0
        assert found[layer, "int4"]["action_error"] == 0
    assert content["config"]["checkpoint"]["name"] == checkpoint_file.name
    assert content["machine"]["cores"]


@pytest.mark.slow
def test_sensitivity_scores_the_policy_where_asked(checkpoint_file, dataset_dir, tmp_path):
    from tdmpc_opt.compression.sensitivity import sensitivity

    content = sensitivity(
        SensitivityConfig(
            checkpoint=str(checkpoint_file),
            data=dataset_dir,
            output=tmp_path / "s.json",
            policy_only=True,
            episodes=1,
            workers=1,
        )
    )
    assert all(0 <= row["score"] <= 100 for row in content["rows"])


def test_inspect_and_evaluate_take_integer_files(agent_file, tmp_path, capsys):
    path = agent_file("int4")
    assert cli.main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "float16, int4" in shown
    assert "float16, int8" in shown
    words = ["--tasks", "pendulum-swingup", "--episodes", "1", "--workers", "1"]
    result = tmp_path / "score.json"
    words += ["--mode", "policy", "--output", str(result)]
    assert cli.main(["evaluate", str(path), *words]) == 0
    assert json.loads(result.read_text())["complete"]


def test_the_command_says_what_it_cost(checkpoint_file, dataset_dir, tmp_path, capsys):
    words = ["quantize", str(checkpoint_file), "--format", "int8", "--output"]
    assert cli.main([*words, str(tmp_path / "a"), "--data", str(dataset_dir)]) == 0
    shown = capsys.readouterr().out.replace("\n", " ")
    assert "rms off" in shown
    assert "planned values correlate " in shown
    assert cli.main([*words, str(tmp_path / "b")]) == 0
    assert "--data DIR would round it better" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("public", [True, False])
def test_the_student_meets_the_sizes_from_either_layout(public_file, tmp_path, public):
    source = public_file if public else "mt30-1m"
    path = tmp_path / "small.safetensors"
    for options, limits in (
        ({}, {"int8": 1_470_000, "int4": 800_000}),
        ({"policy_only": True}, {"int8": 325_000}),
        ({"policy_only": True, "task": "walker-walk"}, {"int8": 255_000, "int4": 140_000}),
    ):
        for kind, limit in limits.items():
            quantize(
                QuantizeConfig(checkpoint=str(source), output=path, format=kind, **options)
            )
            assert path.stat().st_size < limit, (options, kind)


def test_observations_are_taken_evenly():
    rows = Observations(torch.arange(10.0).unsqueeze(1), torch.arange(10))
    assert rows.spread(4).task.tolist() == [0, 3, 6, 9]
    assert len(rows.spread(50)) == 10


def test_one_task_policies_can_be_rounded(checkpoint_file, dataset_dir):
    part = one_task(policy_only(read_checkpoint(checkpoint_file)), "pendulum-swingup")
    used, _ = read_observations(dataset_dir, part.tasks)
    assert set(used.task.tolist()) == {0}
    model = build(to_integers(part, recipe("int8", part), used), policy_will_do=True)
    assert not model.can_plan
