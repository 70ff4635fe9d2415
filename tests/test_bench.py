"""Timing policies in turns, each in a process of its own."""

import json
from pathlib import Path

import pytest

from tdmpc_opt.checkpoints.checkpoint import POLICY_PREFIXES
from tdmpc_opt.cli import main
from tdmpc_opt.configs.deploy import QuantizeConfig
from tdmpc_opt.configs.measure import BenchConfig
from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.evaluation.bench import _speedup, candidates

QUICK = {"rounds": 2, "seconds": 0.01, "batch": (1, 3)}


@pytest.fixture(scope="module")
def policy_file(checkpoint_file, tmp_path_factory) -> Path:
    from tdmpc_opt.compression.quantize import quantize

    path = tmp_path_factory.mktemp("policy") / "policy.safetensors"
    quantize(QuantizeConfig(checkpoint=str(checkpoint_file), output=path, policy_only=True))
    return path


def _names(*sources: Path, **settings: object) -> list[str]:
    config = BenchConfig(sources=tuple(str(source) for source in sources), **settings)
    return [candidate.name.partition(" ")[2] for candidate in candidates(config)]


def test_every_way_to_run_a_source_is_timed_once(checkpoint_file, policy_file, tmp_path):
    onnx = tmp_path / "agent.onnx"
    onnx.write_bytes(b"what is in it, the runtime will see")
    assert _names(checkpoint_file) == ["full"]
    assert _names(policy_file, preset=("full", "policy")) == ["runtime"]
    assert _names(onnx) == ["runtime"]
    found = _names(
        checkpoint_file,
        policy_file,
        preset=("full", "policy"),
        engine=("eager", "auto"),
    )
    assert found == ["full eager", "full", "policy", "runtime"]
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(policy_file.read_bytes())
    (candidate,) = candidates(BenchConfig(sources=(str(folder),)))
    assert candidate.name == "student runtime"
    with pytest.raises(CheckpointError, match="no bundled checkpoint is called 'nothing'"):
        _names(Path("nothing"))
    with pytest.raises(CheckpointError, match=r"x\.onnx is neither a file nor a model folder"):
        _names(Path("x.onnx"))


def test_the_torch_free_runtime_is_told_by_the_checkpoints_own_names():
    from tdmpc_opt.evaluation import bench as module

    assert {prefix.rstrip(".") for prefix in POLICY_PREFIXES} == module._POLICY_PARTS


def test_the_speedup_is_of_turns_side_by_side():
    slowing = [{"ms": turn} for turn in ([4.0, 4.0], [40.0], [8.0])]
    own = [{"ms": turn} for turn in ([2.0], [20.0, 20.0, 90.0], [2.0])]
    assert _speedup(own, slowing, "ms") == 2.0
    assert _speedup(own, None, "ms") is None


def test_policies_are_timed_against_the_first(checkpoint_file, policy_file, tmp_path, capsys):
    output = tmp_path / "bench.json"
    arguments = [str(checkpoint_file), str(policy_file), "--preset", "policy"]
    arguments += ["--rounds", "2", "--seconds", "0.01", "--batch", "1", "3"]
    assert main(["bench", *arguments, "--output", str(output)]) == 0
    assert "by CPU" in capsys.readouterr().out
    content = json.loads(output.read_text())
    assert (content["kind"], content["reference"]) == ("bench", "tiny.safetensors policy")
    assert content["config"]["observations"].startswith("first steps of real episodes")
    assert content["config"]["task"] == "pendulum-swingup"
    by_torch, by_numpy = content["candidates"]
    assert by_torch["batches"]["1"]["speedup"] == 1
    for record in (by_torch, by_numpy):
        assert record["mode"] == "policy"
        assert record["file"]["size_bytes"] > 0
        for times in record["batches"].values():
            assert 0 < times["p50_ms"] <= times["p95_ms"] <= times["p99_ms"]
            assert times["timed"] >= 2
    peaks = [record["batches"]["3"]["peak_rss_bytes"] for record in (by_torch, by_numpy)]
    assert peaks[1] < peaks[0] / 2, "its process must not have loaded torch"


def test_what_cannot_be_timed_is_refused_in_one_line(
    checkpoint_file, policy_file, tmp_path, capsys
):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    assert main(["bench", str(broken)]) == 1
    error = capsys.readouterr().err
    assert "tdmpc-opt: broken.onnx runtime: " in error
    assert "Traceback" not in error
    assert main(["bench", str(policy_file), "--task", "walker-run"]) == 1
    assert "does not know walker-run; it knows pendulum-swingup" in capsys.readouterr().err
    assert main(["bench", str(checkpoint_file), "--preset", "tiny"]) == 1
    assert "unknown planner preset 'tiny'" in capsys.readouterr().err
