import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"


def _loaded_by(module: str) -> set[str]:
    """Packages and modules in memory after importing `module` in a fresh interpreter."""
    code = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(run.stdout.split())


def test_no_module_is_longer_than_500_lines():
    lengths = {
        str(path.relative_to(SOURCE)): len(path.read_text().splitlines())
        for path in SOURCE.rglob("*.py")
    }
    assert lengths
    assert {name: length for name, length in lengths.items() if length > 500} == {}


@pytest.mark.parametrize(
    "module",
    [
        "tdmpc_opt",
        "tdmpc_opt.tasks",
        *(f"tdmpc_opt.configs.{path.stem}" for path in SOURCE.glob("tdmpc_opt/configs/*.py")),
    ],
)
def test_light_modules_load_no_torch(module):
    assert not {"torch", "tensordict", "jax"} & _loaded_by(module)


def test_the_runtime_loads_neither_torch_nor_the_command_line():
    assert not {"torch", "gymnasium", "tyro", "rich"} & _loaded_by("tdmpc_opt.runtime")


def test_training_loads_no_planner_simulator_or_runtime():
    rooms = ("planning", "evaluation", "export", "runtime", "contract", "tasks.environment")
    loaded = _loaded_by("tdmpc_opt.training.loop")
    assert "tdmpc_opt.training.losses" in loaded
    assert not {f"tdmpc_opt.{room}" for room in rooms} & loaded
    assert not {"gymnasium", "mujoco"} & loaded
