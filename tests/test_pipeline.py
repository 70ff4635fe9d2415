import csv
import json

import pytest

from tdmpc_opt.cli import main

TASK = ("--tasks", "pendulum-swingup", "--workers", "1")
TRAIN = ("--size", "0.3", "--batch-size", "16", "--device", "cpu", "--log-every", "10")


def _run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.mark.usefixtures("unchecked")
def test_collect_train_distill_quantize_evaluate_and_compare(tmp_path, capsys):
    data, teacher, student = tmp_path / "data", tmp_path / "teacher", tmp_path / "student"
    _run("collect", "--policy", "random", *TASK, "--episodes", 3, "--output", data)
    _run("train", "--data", data, "--output", teacher, *TRAIN, "--updates", 30)
    _run(
        *("collect", "--policy", teacher / "model.safetensors", "--noise", 0.3),
        *(*TASK, "--episodes", 1, "--output", data),
    )
    _run(
        *("train", "--data", data, "--output", student, *TRAIN, "--updates", 30),
        *("--teacher", teacher / "model.safetensors", "--terms.reward-mse", 0.4),
    )
    small = tmp_path / "small.safetensors"
    _run("quantize", student / "model.safetensors", "--output", small)
    results = {
        "student": ("evaluate", small, "--mode", "policy"),
        "random": ("evaluate", "random"),
    }
    for name, command in results.items():
        output = tmp_path / f"{name}.json"
        _run(*command, *TASK, "--episodes", 2, "--device", "cpu", "--output", output)
        assert json.loads(output.read_text())["complete"]
    _run("compare", tmp_path / "random.json", tmp_path / "student.json")
    _run("data", "info", data)

    shown = capsys.readouterr().out
    assert "now contains 4 episodes" in shown
    assert "paired difference" in shown
    with (student / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["update"] for row in rows] == ["10", "20", "30"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert float(rows[-1]["distill_reward_mse"]) > 0
    assert small.stat().st_size < (student / "model.safetensors").stat().st_size / 2
    assert (data / "returns.png").is_file()
    assert not list(tmp_path.rglob("*.tmp"))
