"""Killed runs end as those left alone do: benchmarks/kills.py on a small scale."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("dm_control")
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("kills", "updates"), [(5, 16), pytest.param(30, 60, marks=pytest.mark.slow)]
)
def test_killed_runs_end_to_the_bit_as_one_left_alone(tmp_path, kills, updates):
    output = tmp_path / "kills.json"
    command = [sys.executable, ROOT / "benchmarks" / "kills.py", "--output", output]
    command += ["--kills", kills, "--updates", updates, "--seed", 1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert result["identical"] == result["kills"] == kills
    within = sum(count for point, count in result["by_point"].items() if " of " in point)
    assert 3 * within >= kills
