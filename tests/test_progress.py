import re
import subprocess
import sys

import pytest

from tdmpc_opt.cli import output
from tdmpc_opt.cli.output import Terminal
from tdmpc_opt.configs.data import CollectConfig, ExpertsConfig
from tdmpc_opt.configs.deploy import ExportConfig, QuantizeConfig, SensitivityConfig
from tdmpc_opt.configs.measure import BenchConfig, EvaluateConfig, TuneConfig
from tdmpc_opt.configs.training import DaggerConfig, TrainConfig
from tdmpc_opt.progress import Stage


class _FirstReportError(Exception):
    """Ends a command at its first report."""


class _Ending:
    def update(self, done: int, total: int, text: str) -> None:
        raise _FirstReportError(f"{done} of {total} {text}")

    def warn(self, text: str) -> None:
        """A warning is no report of progress."""


def _commands(checkpoint, data, output):
    from tdmpc_opt.agents.collect import collect
    from tdmpc_opt.compression.quantize import quantize
    from tdmpc_opt.compression.sensitivity import sensitivity
    from tdmpc_opt.evaluation.bench import bench
    from tdmpc_opt.evaluation.evaluate import evaluate
    from tdmpc_opt.evaluation.tune import tune
    from tdmpc_opt.experts.train import train_experts
    from tdmpc_opt.export.export import export
    from tdmpc_opt.training.dagger import dagger
    from tdmpc_opt.training.loop import train

    agent = {"checkpoint": str(checkpoint), "output": output}
    tasks = {"tasks": "pendulum-swingup", "output": output, "workers": 1}
    mixed = {"format": "mixed", "budget_bytes": 10_000_000, "data": data}
    run = {"data": data, "output": output, "updates": 1000, "batch_size": 8, "device": "cpu"}
    run |= {"teacher": str(checkpoint), "start": str(checkpoint)}
    return {
        "tune-planner": (tune, TuneConfig(**agent, workers=1)),
        "sensitivity": (sensitivity, SensitivityConfig(**agent, data=data)),
        "sensitivity with scores": (
            sensitivity,
            SensitivityConfig(**agent, data=data, episodes=1, workers=1),
        ),
        "quantize": (quantize, QuantizeConfig(**agent, **mixed)),
        "experts": (train_experts, ExpertsConfig(**tasks, method="plan")),
        "bench": (bench, BenchConfig(sources=(str(checkpoint),))),
        "evaluate": (evaluate, EvaluateConfig(checkpoint="random", **tasks)),
        "collect": (collect, CollectConfig(policy="random", **tasks)),
        "train": (train, TrainConfig(**run)),
        "dagger": (dagger, DaggerConfig(**run, rounds=2, workers=1)),
        "export": (
            lambda config, progress: export(config, progress=progress),
            ExportConfig(**agent, policy_only=True),
        ),
    }


@pytest.mark.parametrize(
    "command",
    [
        *("tune-planner", "sensitivity", "sensitivity with scores", "quantize", "experts"),
        *("bench", "evaluate", "collect", "train", "dagger", "export"),
    ],
)
def test_a_long_command_estimates_its_time_before_it_starts(
    command, checkpoint_file, dataset_dir, tmp_path
):
    function, config = _commands(checkpoint_file, dataset_dir, tmp_path / "out")[command]
    with pytest.raises(_FirstReportError, match=r"^0 of \d+ ") as first:
        function(config, _Ending())
    assert re.search(r"about \d+ min|less than a minute", str(first.value))


def test_a_log_file_gets_lines_with_the_time_left(capsys, monkeypatch):
    clock = iter([100.0, 160.0, 220.0])
    monkeypatch.setattr(output.time, "monotonic", lambda: next(clock))
    console = Terminal("train")
    console.update(0, 40, "")
    console.update(10, 40, "loss 0.5")
    console.update(40, 40, "loss 0.1")
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "train: 10/40, 3.0 min left  loss 0.5"
    assert lines[2] == "train: 40/40  loss 0.1"


def test_lines_come_no_faster_than_one_can_read(capsys, monkeypatch):
    clock = iter([100.0, 101.0, 102.0, 104.0, 116.0])
    monkeypatch.setattr(output.time, "monotonic", lambda: next(clock))
    console = Terminal("train")
    for done in range(5):
        console.update(done, 40, "")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "train: 0/40  ",
        "train: 2/40, 0.6 min left  ",  # the first estimate after two seconds
    ]


@pytest.mark.parametrize("before", [4, 3])
def test_a_new_stage_estimates_its_own_time(capsys, monkeypatch, before):
    clock = iter([100.0, 200.0, 300.0, 320.0])
    monkeypatch.setattr(output.time, "monotonic", lambda: next(clock))
    console = Terminal("demo")
    for name, done, total in (
        ("a", 0, before),
        ("a", before, before),
        ("b", 0, 3),
        ("b", 1, 3),
    ):
        Stage(console, name).update(done, total, "")
    assert capsys.readouterr().err.splitlines()[-1] == "demo: 1/3, 0.7 min left  b"


def test_acting_does_not_wait_for_torchs_compiler():
    """It takes a second to import, before the first line of a command."""
    code = "import sys, tdmpc_opt.evaluation.evaluate; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
