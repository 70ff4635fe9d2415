"""What a device gets: a wheel that needs no torch, and a C++ program."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from tdmpc_opt import make_env, zoo

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[1]
TASK = "cartpole-balance"

pytestmark = pytest.mark.slow

_ANSWER = """
import sys
import numpy as np
from tdmpc_opt.runtime import load
agent = load(sys.argv[1])
unwanted = {"torch", "gymnasium", "tyro", "rich", "numpy.random"}
assert not unwanted & set(sys.modules), sys.modules.keys()
for line in sys.stdin:
    action = agent.act(np.array(line.split(), np.float32), sys.argv[2])
    print(*action, flush=True)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """The policy of the demo's teacher for a device, by kind of file, and one of two tasks."""
    from tdmpc_opt.configs.deploy import ExportConfig
    from tdmpc_opt.export.export import export

    folder, found = tmp_path_factory.mktemp("device"), {}
    for name, task in (("onnx", TASK), ("several", None)):
        found[name] = folder / f"{name}.onnx"
        options = {"checkpoint": "demo-teacher", "policy_only": True, "task": task}
        export(ExportConfig(**options, output=found[name]))
    return found | {"safetensors": zoo.path("demo-teacher")}


@pytest.fixture(scope="module")
def device_python(tmp_path_factory) -> Path:
    """An interpreter with the wheel, its base dependencies and onnxruntime, and no torch."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "-c",
        str(ROOT / "constraints.txt"),
    ]
    subprocess.run([*install, f"{wheel}[runtime]"], check=True, env=_clean())
    return python


def _clean() -> dict[str, str]:
    """The environment without the sources, so that the installed package is what runs."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _drive():
    spec = importlib.util.spec_from_file_location("drive", ROOT / "examples/cpp/drive.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.drive


@pytest.mark.parametrize("kind", ["onnx", "safetensors"])
def test_the_wheel_drives_a_real_task_without_torch(kind, files, device_python, tmp_path):
    missing = "import importlib.util as u; assert u.find_spec('torch') is None"
    subprocess.run([device_python, "-c", missing], check=True, env=_clean())
    program = tmp_path / "answer.py"
    program.write_text(_ANSWER)
    command = ["env", "-u", "PYTHONPATH", device_python, program, files[kind], TASK]
    assert _drive()(TASK, [str(word) for word in command]) > 500


def _headers() -> Path | None:
    named = os.environ.get("ONNXRUNTIME_INCLUDE")
    known = [Path(named)] if named else []
    known += [Path("/usr/include/onnxruntime"), Path("/usr/local/include/onnxruntime")]
    return next((path for path in known if (path / "onnxruntime_cxx_api.h").is_file()), None)


def test_the_cpp_example_drives_a_real_task(files, tmp_path):
    headers, compiler = _headers(), shutil.which("g++")
    if headers is None or compiler is None:
        pytest.skip("needs g++ and onnxruntime's headers (docs/deploy.md; ONNXRUNTIME_INCLUDE)")
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    (tmp_path / "libonnxruntime.so.1").symlink_to(library)
    program = tmp_path / "policy"
    build = [compiler, "-std=c++17", "-O2", "-Wall", "-Werror", f"-I{headers}"]
    build += [str(ROOT / "examples/cpp/policy.cpp"), str(tmp_path / "libonnxruntime.so.1")]
    subprocess.run([*build, f"-Wl,-rpath,{tmp_path}", "-o", str(program)], check=True)
    assert _drive()(TASK, [str(program), str(files["onnx"])]) > 500
    obs = make_env(TASK, 0).reset()[0]
    line = " ".join(f"{number:.9g}" for number in obs) + "\n"
    answer = subprocess.run(
        [program, files["onnx"]], input=line, capture_output=True, text=True, check=True
    )
    from tdmpc_opt.runtime import load

    wanted = load(files["onnx"]).act(obs)
    np.testing.assert_allclose(np.array(answer.stdout.split(), float), wanted, atol=1e-5)
    bad = ["a b", line.replace(line.split()[0], "nan", 1).strip(), "3e38 " * len(obs), "1", ""]
    answers = subprocess.run(
        [program, files["onnx"]],
        input="\n".join([*bad, line]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answers.returncode == 1
    answers = answers.stdout.splitlines()
    assert answers[0] == "error: not a number: a"
    assert answers[1] == "error: not a finite number that the network can take: nan"
    assert answers[2] == "error: not a finite number that the network can take: 3e38"
    assert answers[3:5] == ["error: a line needs 5 numbers"] * 2
    assert answers[5:] == answer.stdout.splitlines(), "it goes on as if nothing had been"
    named = [program, files["several"], TASK]
    several = subprocess.run(named, input=line, capture_output=True, text=True, check=True)
    np.testing.assert_allclose(np.array(several.stdout.split(), float), wanted, atol=1e-5)
    for arguments, message in (
        ([files["onnx"], "cartpole"], "name one of the tasks: cartpole-balance"),
        ([files["several"]], "name one of the tasks: walker-stand "),
        ([zoo.path("demo-teacher")], "policy: "),
    ):
        failed = subprocess.run(
            [program, *arguments], input=line, capture_output=True, text=True, check=False
        )
        assert failed.returncode == 1
        assert message in failed.stderr
    short = subprocess.run(  # the graph would pad it, and act on what the robot did not send
        [program, files["several"], "pendulum-spin"],
        input="1 2\n" + line,
        capture_output=True,
        text=True,
    )
    assert short.stdout.splitlines()[0] == "error: a line needs 3 numbers"


def test_the_footprint_is_measured_without_torch(files, tmp_path):
    output = tmp_path / "footprint.json"
    command = [sys.executable, ROOT / "benchmarks/runtime_footprint.py", "--task", TASK]
    command += ["--files", files["onnx"], "--rounds", "1", "--actions", "5", "--output", output]
    subprocess.run(command, check=True, capture_output=True)
    (record,) = json.loads(output.read_text())["files"]
    assert record["size_bytes"] == files["onnx"].stat().st_size
    assert 0 < record["memory_over_bare_python_mb"] < 300
