"""Rewards that hold plans near the policy."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tdmpc_opt import cli
from tdmpc_opt.checkpoints.checkpoint import build
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.compression.extract import policy_only
from tdmpc_opt.configs.deploy import RegularizeConfig
from tdmpc_opt.configs.training import TrainConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.errors import CheckpointError, DataError, InputError
from tdmpc_opt.files import REGULARIZED, sha256
from tdmpc_opt.planning import presets
from tdmpc_opt.training import regularize as regularize_module
from tdmpc_opt.training.loop import train
from tdmpc_opt.training.regularize import regularize


def _config(checkpoint, data, output, **values):
    defaults = {"updates": 300, "device": "cpu"}
    return RegularizeConfig(
        checkpoint=str(checkpoint), data=(data,), output=output, **defaults | values
    )


@pytest.fixture(scope="module")
def regularized(checkpoint_file, dataset_dir, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("regularized") / "model.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regularize_module, "_LR", 1e-2)  # few updates have to do
        patch.setattr(regularize_module, "_COMPARED", 16)
        report = regularize(_config(checkpoint_file, dataset_dir, output))
    assert report.output == output
    assert report.after < 0.15 < 0.4 < report.before
    return output


@pytest.fixture(autouse=True)
def few_plans(monkeypatch):
    monkeypatch.setattr(regularize_module, "_COMPARED", 2)


def test_only_the_reward_head_changes(regularized, checkpoint_file):
    before, after = read_checkpoint(checkpoint_file), read_checkpoint(regularized)
    assert after.tasks == before.tasks
    assert {*after.tensors} == {*before.tensors}
    for name, tensor in before.tensors.items():
        assert torch.equal(tensor, after.tensors[name]) != name.startswith("reward_head."), name
    assert after.extra["source_sha256"] == sha256(checkpoint_file)
    assert '"penalty": 100.0' in after.extra[REGULARIZED]


def test_an_action_loses_reward_with_its_distance_from_the_policy(
    regularized, checkpoint_file, dataset_dir
):
    dataset = EpisodeDataset.open(dataset_dir)
    model, original = (build(read_checkpoint(path)) for path in (regularized, checkpoint_file))
    for shard in dataset.shards:
        obs = torch.from_numpy(dataset.arrays(shard).obs[0, ::10].copy())
        obs = torch.nn.functional.pad(obs, (0, model.config.obs_dim - obs.shape[-1]))
        task = torch.full((len(obs),), model.tasks.index(shard.task))
        with torch.no_grad():
            z = model.encode(obs, task)
            policy = model.policy(z, task).mean
            given = original.decode(original.reward(z, policy, task))
            # Towards the farther edge, so that no action is cut off.
            away = -policy.sign() * model.mask(task)
            lost = {
                distance: given - model.decode(model.reward(z, policy + distance * away, task))
                for distance in (0.0, 0.1, 1.0)
            }
        assert lost[0.0].abs().mean() < 3  # of few updates on few states
        assert 5 < lost[0.1].mean() < 15  # 100 * 0.1
        assert 80 < lost[1.0].mean() < 120


def test_number_formats_stay(checkpoint_file, dataset_dir, tmp_path):
    whole = read_checkpoint(checkpoint_file)
    halves = {name: tensor.half() for name, tensor in whole.tensors.items()}
    source, output = tmp_path / "half.safetensors", tmp_path / "out.safetensors"
    write_native(source, replace(whole, tensors=halves))
    regularize(_config(source, dataset_dir, output, updates=1))
    found = read_checkpoint(output).tensors
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}


def test_presets_chosen_for_the_former_rewards_go(checkpoint_file, dataset_dir, tmp_path):
    source, output = tmp_path / "held.safetensors", tmp_path / "out.safetensors"
    checkpoint = read_checkpoint(checkpoint_file)
    held = checkpoint.extra | presets.storable(presets.HELD)
    write_native(source, replace(checkpoint, extra=held))
    assert presets.stored(read_checkpoint(source).extra) == presets.HELD
    regularize(_config(source, dataset_dir, output, updates=1))
    assert presets.stored(read_checkpoint(output).extra) == {}


def test_it_teaches_no_rewards(regularized, dataset_dir, tmp_path):
    config = TrainConfig(
        data=dataset_dir,
        output=tmp_path / "run",
        teacher=str(regularized),
        updates=1,
        batch_size=4,
        device="cpu",
    )
    with pytest.raises(InputError, match=r"name the file it was made from \(tiny.safetensors"):
        train(config)
    # Its policy can be learned.
    words = ["--terms.reward-mse", "0", "--terms.policy-mse", "1", "--updates", "1"]
    words += ["--data", str(dataset_dir), "--output", str(tmp_path / "policy")]
    words += ["--teacher", str(regularized), "--batch-size", "4", "--device", "cpu"]
    assert cli.main(["train", *words]) == 0


def test_the_command_states_what_changed(checkpoint_file, dataset_dir, tmp_path, capsys):
    output = tmp_path / "out.safetensors"
    words = [str(checkpoint_file), "--data", str(dataset_dir), "--output", str(output)]
    assert cli.main(["regularize", *words, "--updates", "2"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "from the policy, before" in shown
    words[-1] = str(checkpoint_file)
    assert cli.main(["regularize", *words, "--updates", "2"]) != 0  # it would be overwritten
    assert "--output" in capsys.readouterr().err


def test_what_cannot_be_regularised_is_refused(checkpoint_file, dataset_dir, tmp_path):
    output = tmp_path / "out.safetensors"
    with pytest.raises(DataError, match="nowhere"):
        regularize(_config(checkpoint_file, tmp_path / "nowhere", output))
    acting = tmp_path / "policy.safetensors"
    write_native(acting, policy_only(read_checkpoint(checkpoint_file)))
    with pytest.raises(CheckpointError, match="without a world model"):
        regularize(_config(acting, dataset_dir, output))
    with pytest.raises(InputError, match="at least 1"):
        _config(checkpoint_file, dataset_dir, output, updates=0)
    with pytest.raises(DataError):  # tasks that the agent lacks
        regularize(_config("mt30-1m", _other_tasks(tmp_path), output))
    assert not output.exists()


def _other_tasks(folder: Path) -> Path:
    words = ["--policy", "random", "--tasks", "own_envs:Point-v0", "--episodes", "1"]
    assert cli.main(["collect", *words, "--workers", "1", "--output", str(folder / "own")]) == 0
    return folder / "own"
