"""The policy as C99: compiled here, and for a Cortex-M board, it acts as torch does."""

import errno
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tdmpc_opt import files, load_agent, make_env
from tdmpc_opt.configs.deploy import ExportConfig
from tdmpc_opt.errors import CheckpointError, InputError, MissingDependencyError

pytest.importorskip("onnx")
pytest.importorskip("emx_onnx_cgen", reason="needs the extra c")
for program in ("cc", "cmake"):
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}", allow_module_level=True)

from tdmpc_opt.export.export import export  # noqa: E402  # needs onnx

TASK = "cartpole-balance"


def _exported(folder: Path, checkpoint: str, **options) -> Path:
    config = ExportConfig(
        checkpoint=checkpoint, policy_only=True, target="c", output=folder, **options
    )
    report = export(config)
    assert report.output_bytes == sum(file.stat().st_size for file in folder.iterdir())
    return folder


def _built(folder: Path) -> Path:
    """Build with the exported CMake file and return the program that reads stdin."""
    for command in (["cmake", "-S", ".", "-B", "build"], ["cmake", "--build", "build"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return next((folder / "build").glob("*_main"))


def _rows(task: str, steps: int = 20) -> np.ndarray:
    env = make_env(task, 3)
    source = np.random.default_rng(0)
    rows = [env.reset()[0]]
    while len(rows) < steps:
        rows.append(env.step(source.uniform(-1, 1, env.action_space.shape[0]))[0])
    return np.stack(rows)


def _answers(program: Path, lines: list[str], task: str, status: int = 0) -> list[str]:
    done = subprocess.run(
        [program, task], input="".join(lines), capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    return done.stdout.splitlines()


def _lines(rows: np.ndarray) -> list[str]:
    return [" ".join(f"{number:.9g}" for number in row) + "\n" for row in rows]


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory, checkpoint_file) -> Path:
    return _exported(tmp_path_factory.mktemp("c") / "two", str(checkpoint_file))


@pytest.fixture(scope="module")
def program(two_tasks) -> Path:
    return _built(two_tasks)


def test_the_built_program_acts_as_torch_in_each_task(program, checkpoint_file):
    agent = load_agent(checkpoint_file, mode="policy")
    for task in agent.tasks.names:
        rows = _rows(task)
        found = [line.split() for line in _answers(program, _lines(rows), task)]
        np.testing.assert_allclose(
            np.array(found, np.float32), agent.act(rows, task), rtol=0, atol=1e-5
        )


def test_the_built_program_answers_bad_lines_with_one_error_each(program):
    good = "0 1 0 0 0\n"
    bad = ["nan 1 0 0 0\n", "1e16 1 0 0 0\n", "1 2 3 4\n", "1 2 3 4 5 6\n", "a b c d e\n"]
    bad += ["1 " * 1000 + "\n", "1 2\0 3 4 5\n", "0 1 0 0 0\0\n", "\n"]
    answers = _answers(program, [good, *bad, good.strip()], TASK, status=1)
    assert len(answers) == 11
    assert answers[0] == answers[-1]
    assert -1 <= float(answers[0]) <= 1
    invalid = "error: the observation contains NaN, infinity or a number above 1e15"
    assert answers[1:3] == [invalid] * 2
    assert answers[3:10] == ["error: a line needs 5 numbers"] * 7


@pytest.mark.parametrize("words", [[], ["cartpole"], [TASK, TASK]])
def test_the_built_program_lists_its_tasks_where_none_of_them_is_named(program, words):
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "tasks: pendulum-swingup cartpole-balance" in done.stderr


@pytest.mark.slow
def test_a_program_of_one_task_takes_no_other_name_and_reports_a_full_disk(tmp_path):
    program = _built(_exported(tmp_path / "c", "mt30-1m", task=TASK))
    assert _answers(program, ["0 1 0 0 0\n"], TASK)
    assert _answers(program, ["0 1 0 0 0\n"], "walker-walk", status=2) == []
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([program], input=b"0 1 0 0 0\n", stdout=full, check=False)
    assert done.returncode == 1


def test_the_source_uses_no_heap_and_no_global_state(two_tasks, tmp_path):
    compiled = tmp_path / "tiny.o"
    command = ["cc", "-std=c99", "-O0", "-Wall", "-Wextra", "-Werror", "-c", "tiny.c"]
    subprocess.run([*command, "-o", compiled], cwd=two_tasks, check=True)
    listed = subprocess.run(["nm", compiled], capture_output=True, text=True, check=True)
    symbols = dict(reversed(line.split()[-2:]) for line in listed.stdout.splitlines())
    missing = {name for name, kind in symbols.items() if kind == "U"}
    assert missing <= {"expf", "sqrtf", "tanhf", "logf", "fmaxf", "fminf", "memcpy", "memset"}
    assert not {name for name, kind in symbols.items() if kind in "bBdD"} - {"tiny_task_names"}
    public = {name for name, kind in symbols.items() if kind in "TDR"}
    assert public == {
        f"tiny_{what}" for what in ("act", "task_names", "obs_width", "action_width", "rate_hz")
    }


def test_the_header_states_the_numbers_of_the_tasks(two_tasks):
    header, source = (next(two_tasks.glob(f"tiny.{kind}")).read_text() for kind in "hc")
    for line in (
        " * pendulum-swingup: 25 actions/s\n",
        " *   observation 0-1: orientation: pole_zz, pole_xz; unit 1, in [-1, 1]\n",
        " *   observation 4: velocity: hinge_1; unit rad/s\n",
        " *   action 0: control: slide; unit 1, in [-1, 1]\n",
    ):
        assert line in header
    assert "const float tiny_rate_hz[TINY_TASKS] = {25, 50};" in source


def test_the_source_names_no_path_of_this_machine(two_tasks):
    for file in two_tasks.iterdir():
        if file.is_file():
            assert not re.search(r"/(home|root|tmp|usr|work)/", file.read_text())


def test_a_task_with_an_odd_name_makes_plain_c(tmp_path, make_model):
    from tdmpc_opt.contract import Block, Contract
    from tdmpc_opt.export.c_source import c_policy
    from tdmpc_opt.schema import Task, TaskTable

    tasks = TaskTable((Task('3"*/\\é', 4, 2),))
    odd = Block("*/ int", tuple("ab"), "°", -1.0)
    contracts = {tasks.names[0]: Contract((odd, odd), (odd,), None)}
    _, files = c_policy(
        make_model(tasks), contracts, tmp_path / "odd.safetensors", 'a "*/ b', quantize=False
    )
    assert "policy_3.c" in files
    assert b"observation 2-3: _/ int: a, b; unit _, in [-1, inf]" in files["policy_3.h"]


def test_a_machine_without_a_compiler_is_named(tmp_path, checkpoint_file, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(MissingDependencyError, match="no compiler 'no-such-compiler' here"):
        _exported(tmp_path / "c", str(checkpoint_file))
    assert not (tmp_path / "c").exists()


def test_a_full_disk_leaves_no_part_of_the_source(tmp_path, checkpoint_file, monkeypatch):
    done = []

    def full(handle: int) -> None:
        done.append(handle)
        if len(done) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*: No space left"):
        _exported(tmp_path / "c", str(checkpoint_file))
    assert not (tmp_path / "c").exists()


def test_c_has_no_fp16_and_no_planner(tmp_path, checkpoint_file):
    with pytest.raises(InputError, match="C has no portable fp16; take --format fp32 or int8"):
        _exported(tmp_path / "c", str(checkpoint_file), format="fp16")
    for options, message in (
        ({}, "c files hold the policy; add --policy-only"),
        (
            {"policy_only": True, "opset": 20},
            "`opset` and `ir_version` are for ONNX files, not c",
        ),
    ):
        with pytest.raises(InputError, match=message):
            ExportConfig(checkpoint="x", output=tmp_path, target="c", **options)


def test_the_loop_of_the_page_compiles_with_the_header(two_tasks, tmp_path):
    page = Path(__file__).parents[1] / "docs" / "deploy.md"
    (source,) = re.findall(r"^```c\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    renamed = source.replace("walker_walk", "tiny").replace("WALKER_WALK", "TINY")
    (tmp_path / "loop.c").write_text(renamed)
    command = [
        "cc",
        "-std=c99",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsyntax-only",
        "-I",
        two_tasks,
    ]
    subprocess.run([*command, tmp_path / "loop.c"], check=True)


@pytest.mark.slow
def test_thirty_tasks_in_c_stay_within_1e_4_of_torch(tmp_path):
    config = ExportConfig(
        checkpoint="mt30-1m", policy_only=True, target="c", output=tmp_path / "c"
    )
    parity = export(config).parity
    assert parity.rows == 1200
    assert parity.max_error <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["cortex-m4", "cortex-m7"])
def test_int8_fits_a_board_with_300_kb_of_flash_and_32_kb_of_ram(tmp_path, processor):
    for needed in ("arm-none-eabi-gcc", "qemu-system-arm"):
        if shutil.which(needed) is None:
            pytest.skip(f"needs {needed}")
    from microcontroller import measure

    options = {"task": "walker-walk", "format": "int8"}
    folder = _exported(tmp_path / "c", "mt30-1m", **options)
    figures = measure(folder, "mt30-1m", "walker-walk", processor)
    assert figures["flash_bytes"] <= 300_000
    assert figures["ram_bytes"] <= 32_000
    assert figures["nine_of_ten_within"] <= 0.3
