import os
import subprocess
import sys
from pathlib import Path

import pytest

from tdmpc_opt import zoo

ROOT = Path(__file__).parents[1]
SAYS = {
    "act": ["return 9", "of 1000"],
    "evaluate": ["demo-teacher: ", "random: ", "points better over 6 episodes"],
    "distill": ["teacher 9", "student ", "example-output/student: -"],
    "quantize": ["agent.safetensors", "policy.safetensors", "cup-catch.safetensors"],
    "robot_loop": ["return 8", "an action took "],
}
ARGUMENTS = {"robot_loop": [str(zoo.path("demo-teacher")), "pendulum-spin"]}


def test_there_is_a_test_of_every_example():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(SAYS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs_as_it_stands(name, tmp_path):
    run = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), *ARGUMENTS.get(name, [])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    for words in SAYS[name]:
        assert words in run.stdout + run.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"example-output"}
