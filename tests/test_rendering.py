import os
import subprocess
import sys

import pytest

CODE = """
import numpy as np, tdmpc_opt
from tdmpc_opt.errors import MissingDependencyError
env = tdmpc_opt.make_env("cartpole-balance", 0, render_mode="rgb_array")
env.reset()
try:
    picture = env.render()
    assert picture.shape == (384, 384, 3) and picture.dtype == np.uint8 and picture.std() > 1
except MissingDependencyError as error:
    assert "MUJOCO_GL" in str(error)
"""


def test_a_machine_without_a_display_renders_or_says_what_is_missing():
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL", "PYOPENGL_PLATFORM")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", CODE],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "GLFW" not in run.stderr


@pytest.mark.parametrize("module", ["agents.rollout", "experts.vector_env"])
def test_no_module_loads_the_simulator_before_its_renderer_is_chosen(module):
    if module.startswith("experts"):
        pytest.importorskip("stable_baselines3")
    command = [sys.executable, "-W", "error", "-c", f"import tdmpc_opt.{module}"]
    variables = {"MUJOCO_GL": "nonsense"}
    run = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")


STEPS = """
import numpy as np, tdmpc_opt
from tdmpc_opt.errors import MissingDependencyError
env = tdmpc_opt.make_env("cartpole-balance", 0, render_mode="rgb_array")
env.reset()
assert env.step(np.zeros(1))[1] > 0
try:
    env.render()
except MissingDependencyError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "variables",
    [
        {"MUJOCO_GL": "glfw"},
        {"MUJOCO_GL": ""},
        {"MUJOCO_GL": "osmesa"},
        {"MUJOCO_GL": "nonsense"},
        {"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "99"},
    ],
)
def test_a_backend_that_cannot_draw_keeps_no_task_from_being_stepped(variables):
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL", "PYOPENGL_PLATFORM")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    run = subprocess.run(
        [sys.executable, "-c", STEPS],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    if run.stdout:
        assert f"MUJOCO_GL={variables['MUJOCO_GL']}: " in run.stdout
        assert run.stdout.count("\n") == 1


@pytest.mark.parametrize("fault", ["ModuleNotFoundError", "ImportError", "OSError"])
def test_a_missing_window_library_keeps_no_task_from_being_stepped(fault, tmp_path):
    (tmp_path / "glfw.py").write_text(f"raise {fault}('Failed to load GLFW3 shared library.')")
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{STEPS}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
