import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tdmpc_opt.collection import experts
from tdmpc_opt.configs import ExpertsConfig
from tdmpc_opt.errors import CheckpointError, InputError, MissingDependencyError, RunError
from tdmpc_opt.expert_policy import ExpertNetwork, expert_path

METADATA = {
    "kind": "expert",
    "schema": "1",
    "task": "pendulum-swingup",
    "algorithm": "sac",
    "steps": "7",
    "returns": "[]",
}


def _network(seed: int = 0, returns: tuple[float, ...] = (1.5, 2.0)) -> ExpertNetwork:
    rng = np.random.default_rng(seed)
    widths = [(8, 3), (8, 8), (1, 8)]
    return ExpertNetwork(
        task="pendulum-swingup",
        algorithm="sac",
        steps=7,
        returns=returns,
        weights=tuple(rng.normal(size=width) for width in widths),
        biases=tuple(rng.normal(size=width[0]) for width in widths),
    )


def _config(output: Path, **changes: object) -> ExpertsConfig:
    config = ExpertsConfig(
        tasks="pendulum-swingup", steps=1500, output=output, hidden=16, episodes=1, workers=1
    )
    return replace(config, **changes)


def test_saved_expert_acts_the_same_after_loading(tmp_path: Path) -> None:
    network, path = _network(), expert_path(tmp_path, "pendulum-swingup")
    network.save(path)
    loaded = ExpertNetwork.load(path)
    obs = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded.mean(obs), network.mean(obs))
    assert (loaded.task, loaded.algorithm, loaded.steps) == ("pendulum-swingup", "sac", 7)
    assert loaded.returns == (1.5, 2.0)
    assert [file.name for file in tmp_path.iterdir()] == ["pendulum-swingup.safetensors"]


def test_transposed_weights_are_stored_as_they_are_meant(tmp_path: Path) -> None:
    network, path = _network(), tmp_path / "expert.safetensors"
    turned = tuple(np.asfortranarray(weight) for weight in network.weights)
    replace(network, weights=turned).save(path)
    for stored, meant in zip(ExpertNetwork.load(path).weights, network.weights, strict=True):
        np.testing.assert_array_equal(stored, meant)


def test_expert_file_holds_fp16_and_computes_in_fp32(tmp_path: Path) -> None:
    network, path = _network(), tmp_path / "expert.safetensors"
    network.save(path)
    assert {tensor.dtype for tensor in load_file(path).values()} == {np.dtype(np.float16)}
    assert network.weights[0].dtype == np.float32
    assert network.mean(np.zeros((2, 3), np.float32)).dtype == np.float32


def test_expert_mean_is_the_squashed_mlp() -> None:
    network = _network()
    obs = np.random.default_rng(2).normal(size=(4, 3))
    (w0, w1, w2), (b0, b1, b2) = network.weights, network.biases
    hidden = np.maximum(np.maximum(obs @ w0.T + b0, 0) @ w1.T + b1, 0)
    np.testing.assert_allclose(
        network.mean(obs), np.tanh(hidden @ w2.T + b2), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(InputError, match=r"shape \[batch, 3\], got \[4, 5\]"):
        network.mean(np.zeros((4, 5)))


def test_missing_or_damaged_experts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "expert.safetensors"
    with pytest.raises(CheckpointError, match="no expert policy at"):
        ExpertNetwork.load(path)
    _network().save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="cannot read expert policy") as caught:
        ExpertNetwork.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "is not an expert policy of schema 1: kind None"),
        (METADATA | {"kind": "world_model"}, "kind 'world_model'"),
        (METADATA | {"schema": "9"}, "schema '9'"),
        (METADATA | {"steps": "many"}, "damaged"),
        (METADATA | {"returns": "[1,"}, "damaged"),
    ],
)
def test_foreign_metadata_is_refused(
    tmp_path: Path, metadata: dict[str, str], message: str
) -> None:
    path = tmp_path / "expert.safetensors"
    _network().save(path)
    save_file(load_file(path), path, metadata)
    with pytest.raises(CheckpointError, match=message):
        ExpertNetwork.load(path)


@pytest.mark.parametrize("fault", ["width", "nan", "missing"])
def test_layers_that_do_not_fit_are_refused(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "expert.safetensors"
    _network().save(path)
    tensors = load_file(path)
    if fault == "width":
        tensors["layers.1.weight"] = np.zeros((8, 9), np.float16)
    elif fault == "nan":
        tensors["layers.1.bias"] = np.full(8, np.nan, np.float16)
    else:
        del tensors["layers.1.bias"]
    save_file(tensors, path, METADATA)
    with pytest.raises(CheckpointError, match="damaged"):
        ExpertNetwork.load(path)


def test_missing_sbx_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install tdmpc-opt\[experts\]"):
        experts.train_experts(_config(tmp_path))


def _pretend_finished(config: ExpertsConfig) -> None:
    task = "pendulum-swingup"
    _network().save(expert_path(config.output, task))
    record = {"kind": "expert", "config": experts._identity(config, task)}
    (config.output / f"{task}.json").write_text(json.dumps(record))


@pytest.fixture
def _sbx_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts.importlib.util, "find_spec", lambda name: object())


@pytest.mark.usefixtures("_sbx_present")
def test_finished_tasks_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _pretend_finished(_config(tmp_path))
    experts.train_experts(_config(tmp_path, workers=3, save_every=9))
    assert "pendulum-swingup: already finished, skipped" in capsys.readouterr().out


@pytest.mark.usefixtures("_sbx_present")
def test_results_of_another_config_are_refused(tmp_path: Path) -> None:
    _pretend_finished(_config(tmp_path))
    with pytest.raises(RunError, match="belongs to another config") as caught:
        experts.train_experts(_config(tmp_path, steps=99))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_sbx_present")
@pytest.mark.parametrize("name", ["pendulum-swingup.json", "state/pendulum-swingup.npz"])
def test_damaged_results_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"{half")
    with pytest.raises(RunError, match="is damaged"):
        experts.train_experts(_config(tmp_path))


@pytest.mark.usefixtures("_sbx_present")
def test_counts_below_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 1"):
        experts.train_experts(_config(tmp_path, save_every=0))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["sac", "tqc", "crossq"])
def test_killed_training_goes_on_from_its_saved_state(tmp_path: Path, algorithm: str) -> None:
    pytest.importorskip("sbx", reason="sbx-rl is not installed")
    config = _config(tmp_path, steps=2500, save_every=1500, algorithm=algorithm)
    context = multiprocessing.get_context("spawn")
    state = tmp_path / "state" / "pendulum-swingup.npz"
    first = context.Process(target=experts.train_experts, args=(config,))
    first.start()
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    first.kill()
    first.join()
    assert state.exists()
    assert not (tmp_path / "pendulum-swingup.json").exists()
    saved_step = experts.read_progress(state).step

    second = context.Process(target=experts.train_experts, args=(config,))
    second.start()
    second.join(180)
    assert second.exitcode == 0
    record = json.loads((tmp_path / "pendulum-swingup.json").read_text())
    assert saved_step == 1500
    assert [step for step, _ in record["learning_curve"]] == [500, 1000, 1500, 2000, 2500]
    assert record["config"]["algorithm"] == algorithm
    assert not state.exists()
    policy = ExpertNetwork.load(expert_path(tmp_path, "pendulum-swingup"))
    early = ExpertNetwork.load(expert_path(tmp_path, "pendulum-swingup.early"))
    assert (early.steps, policy.steps) == (500, 2500)
    assert list(policy.returns) == record["returns"]
    assert policy.mean(np.zeros((2, 3), np.float32)).shape == (2, 1)
