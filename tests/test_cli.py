import errno
import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest

import tdmpc_opt
from tdmpc_opt import cli, files, tasks
from tdmpc_opt.checkpoints.checkpoint import from_model
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.cli import main
from tdmpc_opt.cli.output import Terminal
from tdmpc_opt.configs.common import ToOutput
from tdmpc_opt.configs.training import Schedule
from tdmpc_opt.schema import MT30, Task, TaskTable

TRAIN = ("--size", "0.3", "--updates", "2", "--batch-size", "8", "--device", "cpu")
ONE_TASK = ("--tasks", "pendulum-swingup", "--episodes", "1", "--workers", "1")
ROUND = ("--rounds", "1", *TRAIN, *ONE_TASK)


@pytest.fixture
def run(capsys):
    """Runs a command and returns its exit status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # how tyro reports usage errors and help
            status = int(leaving.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def refused(run, tmp_path):
    """Runs a command that must fail with one line, and leave nothing half-written."""

    def refused(*arguments: object) -> str:
        status, _, errors = run(*arguments)
        assert status == 1, errors
        lines = [line for line in errors.splitlines() if line.startswith("tdmpc-opt:")]
        assert len(lines) == 1, errors
        assert errors.splitlines()[-1] == lines[0]
        assert "Traceback" not in errors
        assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
        return lines[0]

    return refused


def test_the_version_is_shown(run):
    assert run("--version") == (0, f"tdmpc-opt {tdmpc_opt.__version__}\n", "")


def test_a_process_without_standard_output_works():
    closed = "import os, sys; os.close(1); os.close(2); os.execv(sys.executable, sys.argv[1:])"
    words = (sys.executable, "-m", "tdmpc_opt")
    for command, status in (("zoo", 0), ("nonsense", 2)):
        run = subprocess.run([sys.executable, "-c", closed, *words, command], check=False)
        assert run.returncode == status


def test_help_names_every_command(run):
    status, out, _ = run("--help")
    assert status == 0
    for command in (
        *("tasks", "zoo", "inspect", "convert", "evaluate", "compare", "experts", "collect"),
        *("data info", "distill", "train", "dagger", "quantize", "export", "demo"),
        *("report", "video", "sensitivity", "bench", "tune-planner", "ablation"),
    ):
        assert command in out


def test_help_lists_the_commands_by_group_a_line_for_each(run):
    _, out, _ = run("--help")
    assert all(f"\n\n{title}\n" in out for title in cli._GROUPS)
    for name, command in cli._COMMANDS.items():
        assert f"  {name:14}{command.summary}\n" in f"{out}\n"
        assert command.summary.endswith(".")


def test_the_help_of_data_lists_its_commands_alone(run):
    status, out, _ = run("data", "--help")
    assert status == 0
    listed = {name for name in cli._COMMANDS if f"\n  {name} " in out}
    assert listed == {name for name in cli._COMMANDS if name.startswith("data ")}


@pytest.mark.parametrize("name", cli._COMMANDS)
def test_the_help_of_a_command_has_an_example_and_names_what_it_takes(run, name):
    command = cli._COMMANDS[name]
    assert isinstance(cli._parse([*name.split(), *command.example.split()]), command.config)
    status, out, _ = run(*name.split(), "--help")
    assert status == 0
    assert f"Example: tdmpc-opt {name} {command.example}".strip() in out
    assert "STR" not in out
    assert "None" not in out
    assert "\n\n\n" not in out
    assert not re.search(r"\d,\W*\n", out)  # a number that is broken across lines
    description = " ".join(out.partition("Example: ")[0].split())
    assert command.resumes == ("The same command continues an interrupted one." in description)
    if issubclass(command.config, ToOutput):
        assert re.search(r"The output is (a|the) ", description)
    assert "(default: )" not in out
    assert not re.search(r"`[a-z]+_[a-z_]+`", out)  # a field where an option is meant
    for kind in {each.config for each in cli._COMMANDS.values()}:
        assert not [f.name for f in fields(kind) if "_" in f.name and f.name in out]
    mentioned = {*re.findall(r"--(?!no-)[a-z][a-z.-]*[a-z]", out.replace(command.example, ""))}
    assert mentioned <= {*re.findall(r"^\W*(--[a-z.-]+)", out, re.MULTILINE)} | {"--help"}
    if command.essentials is not None:
        essential, advanced = out.split(" advanced options ")
        for field in command.essentials:
            line = re.compile(rf"^\W*--{field.replace('_', '-')}[ ,]", re.MULTILINE)
            assert line.search(essential)
            assert not line.search(advanced)


def _options(config):
    """The fields of a configuration and of its parts, with the option of each."""
    for field in fields(config):
        if is_dataclass(field.type) and field.type is not Schedule:
            yield from ((f"{field.name}.{name}", each) for name, each in _options(field.type))
        else:
            yield field.name, field


@pytest.mark.parametrize("name", cli._COMMANDS)
def test_the_help_states_what_an_option_that_is_left_out_does(run, name):
    _, out, _ = run(*name.split(), "--help")
    shown = " ".join(out.replace("│", " ").split())
    for option, field in _options(cli._COMMANDS[name].config):
        if field.default is None:
            _, text = re.split(rf" --{option.replace('_', '-')} (?=[A-Z{{])", shown, maxsplit=1)
            text = re.split(r" --[a-z.-]+ [A-Z{]", text)[0]
            assert re.search("[Ww]ithout", text), option


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["evaluate", "random", "--output", "x.json", "--episodes", "0"], "--episodes"),
        (["data", "info"], "DATASET"),
        (["experts", "--output", "x", "--save-every", "0"], "--save-every"),
        (["tune-planner", "t", "--output", "x", "--max-samples", "1"], "--max-samples"),
        (
            [
                *("train", "--data", "d", "--output", "o", "--updates", "1"),
                *("--on-policy-share", "1"),
            ],
            "--on-policy-share is",
        ),
    ],
)
def test_a_refused_value_is_named_by_its_option(run, words, option):
    status, out, errors = run(*words)
    assert status == 2
    assert option in out + errors
    assert not re.search("Config|`", out + errors)


@pytest.mark.parametrize("name", cli._COMMANDS)
def test_numbers_that_nothing_can_be_done_with_are_refused(name, capsys):
    command = cli._COMMANDS[name]
    for option, field in _options(command.config):
        if field.init and re.search("int|float|Schedule", str(field.type)):
            for number in ("nan", "inf", "-1", "9" * 30):
                words = (*name.split(), *command.example.split(), f"--{option}={number}")
                with pytest.raises(SystemExit) as leaving:
                    cli._parse(words)
                assert leaving.value.code == 2
                shown = capsys.readouterr()
                assert option.replace("_", "-") in shown.err + shown.out, (option, number)


@pytest.mark.parametrize("option", ["--mode", "--against-mode", "--seconds"])
def test_no_option_offers_or_takes_a_none_of_python(run, option):
    words = ("video", "random", "--output", "x.gif", option)
    _, out, errors = run(*words, "fast")
    assert "None" not in out + errors
    status, _, _ = run(*words, "None")
    assert status == 2


def test_a_refused_configuration_is_one_plain_line(run):
    _, out, errors = run("evaluate", "random", "--output", "x.json", "--episodes", "0")
    assert out == ""
    assert errors == ("tdmpc-opt: --episodes must be at least 1 (tdmpc-opt evaluate --help)\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["data"],
        ["train"],
        ["inspect"],
        ["quantize", "x", "--output", "y", "--format", "int1"],
        ["evaluate", "random", "--output", "x.json", "--episodes", "none"],
        ["evaluate", "random", "--output", "x.json", "--seed", "1000000"],
        ["collect", "--policy", "random", "--output", "x", "--noise", "-1"],
        ["train", "--data", "d", "--output", "o", "--updates", "0"],
        ["train", "--data", "--output", "o", "--updates", "1"],
        ["train", "--data", "d", "--output", "o", "--updates", "1", "--on-policy-share", "1"],
        ["dagger", "--data", "d", "--teacher", "t", "--output", "o", *ROUND],
        ["dagger", "--data", "d", "--teacher", "t", "--start", "s", *ROUND, "--noise", "-1"],
    ],
)
def test_wrong_usage_exits_with_status_2_and_leaves_nothing(
    run, arguments, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    status, out, errors = run(*arguments)
    assert status == 2
    assert out + errors
    assert "Traceback" not in out + errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "meant"), [(["evaluat"], "evaluate"), (["data", "inf"], "data info")]
)
def test_a_misspelt_command_is_told_its_likely_name(run, words, meant):
    status, out, errors = run(*words)
    assert (status, out) == (2, "")
    assert len(errors.splitlines()) == 1
    assert f"did you mean {meant}?" in errors


def test_tasks_lists_mt30(run):
    status, out, errors = run("tasks")
    assert (status, errors) == (0, "")
    assert all(name in out for name in MT30.names)


def test_zoo_lists_the_bundled_checkpoints(run):
    status, out, errors = run("zoo")
    assert (status, errors) == (0, "")
    assert "Bundled checkpoints" in out


@pytest.mark.parametrize("kind", ["executorch", "c"])
def test_inspect_reads_files_for_other_engines_without_their_libraries(run, tmp_path, kind):
    facts = {"format": "tdmpc-opt", "schema": "1", "version": "0", "kind": "policy"}
    facts |= {"tasks": json.dumps(MT30.subset(["cup-catch"]).to_json())}
    facts |= {"number_format": "int8", "source": "student.safetensors"}
    text = json.dumps(facts).encode()
    path = tmp_path / "policy"
    if kind == "c":
        path.mkdir()
        (path / "metadata.json").write_bytes(text)
        (path / "policy.c").write_text("int x;")
    else:
        path.write_bytes(
            b"\x00\x01\x02\x03ET12" + len(text).to_bytes(4, "little") + text + b"\0\7"
        )
    status, out, _ = run("inspect", path)
    assert status == 0
    for word in ("cup-catch", "int8", "student.safetensors", "ball", "actions/s"):
        assert word in out
    cut = path / "metadata.json" if kind == "c" else path
    cut.write_bytes(cut.read_bytes().replace(b"tdmpc-opt", b"other-one"))
    status, _, errors = run("inspect", path)
    assert status == 1
    assert "of another program" in errors


def test_inspect_of_a_file_that_cannot_be_read_is_one_line(run):
    status, _, errors = run("inspect", "/proc/self/mem")
    assert status == 1
    assert errors == "tdmpc-opt: cannot read /proc/self/mem: Input/output error\n"


def test_inspect_shows_sizes_tasks_and_formats(run, checkpoint_file):
    status, out, errors = run("inspect", checkpoint_file)
    assert (status, errors) == (0, "")
    for text in ("native", "pendulum-swingup", "latent_dim", "q_ensemble", "float32"):
        assert text in out
    assert f"{read_checkpoint(checkpoint_file).parameters:,}" in out


def test_convert_and_quantize_write_files(run, checkpoint_file, tmp_path):
    converted, small = tmp_path / "c.safetensors", tmp_path / "q.safetensors"
    status, out, errors = run("convert", checkpoint_file, "--output", converted)
    assert (status, errors) == (0, "")
    assert "wrote" in out
    status, out, errors = run("quantize", converted, "--output", small, "--format", "bf16")
    assert (status, errors) == (0, "")
    assert "smaller, bf16" in out
    assert small.stat().st_size < converted.stat().st_size


def test_evaluate_and_compare_show_scores(run, tmp_path):
    results = []
    for seed in (0, 1):
        results.append(tmp_path / f"{seed}.json")
        status, out, _ = run(
            "evaluate",
            "random",
            *("--tasks", "pendulum-swingup", "--episodes", 2, "--workers", 1),
            *("--seed", seed, "--output", results[-1]),
        )
        assert status == 0
        assert "normalized score" in out
        assert "pendulum-swingup" in out
    # Episodes 0 and 1 against 1 and 2: one seed is in both files.
    status, out, errors = run("compare", *results)
    assert (status, errors) == (0, "")
    assert "over 1 episodes" in out
    status, out, _ = run("compare", results[0], results[0])
    assert "paired difference 0.00 [0.00, 0.00] points over 2 episodes" in out
    zero = json.loads(results[0].read_text())
    zero["tasks"]["pendulum-swingup"]["returns"] = [-1.0, -1.0]
    (tmp_path / "zero.json").write_text(json.dumps(zero))
    status, out, _ = run("compare", results[0], results[0], "--random", tmp_path / "zero.json")
    assert status == 0
    assert "0.json has 100.00 [100.00, 100.00]% of 0.json" in " ".join(out.split())


def test_data_info_shows_and_draws_the_returns(run, dataset_dir, tmp_path):
    picture = tmp_path / "returns.png"
    status, out, errors = run("data", "info", dataset_dir, "--plot", picture)
    assert (status, errors) == (0, "")
    assert "pendulum-swingup" in out
    assert "1,000" in out  # transitions of each task
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_train_and_distill_write_checkpoints(run, dataset_dir, checkpoint_file, tmp_path):
    status, out, _ = run(
        "train",
        "--data",
        dataset_dir,
        "--output",
        tmp_path / "t",
        *TRAIN,
        "--weights.reward",
        "0.2",
    )
    assert status == 0
    assert f"wrote {tmp_path / 't' / 'model.safetensors'}" in out.replace("\n", "")
    words = ("--data", dataset_dir, "--output", tmp_path / "t", *TRAIN)
    status, out, _ = run("train", *words, "--weights.reward", "0.2")
    assert status == 0
    assert "wrote" not in out
    assert "has its 2 updates already" in out.replace("\n", "")
    record = json.loads((tmp_path / "t" / "config.json").read_text())
    assert record["config"]["weights"]["reward"] == 0.2
    status, out, _ = run(
        *("train", "--data", dataset_dir, "--output", tmp_path / "d", *TRAIN),
        *("--teacher", checkpoint_file, "--terms.reward-mse", "0.45"),
    )
    assert status == 0
    assert read_checkpoint(tmp_path / "d" / "model.safetensors").extra["updates"] == "2"


@pytest.mark.usefixtures("unchecked")
def test_dagger_shows_its_rounds(run, dataset_dir, checkpoint_file, tmp_path):
    command = _dagger(dataset_dir, tmp_path / "out", checkpoint_file)
    status, out, _ = run(*command, "--weights.behaviour", "5")
    assert status == 0
    assert "mean return on the way" in out
    record = json.loads((tmp_path / "out" / "rounds.json").read_text())
    assert record["config"]["weights"]["behaviour"] == 5
    student = tmp_path / "out" / "model.safetensors"
    assert f"wrote {student}" in out.replace("\n", "")
    _, out, _ = run(*command, "--weights.behaviour", "5")
    assert "wrote" not in out
    assert "has its 1 round already" in out.replace("\n", "")
    assert read_checkpoint(student).extra["updates"] == "2"


def _commands_on_a_checkpoint(path: Path, folder: Path, data: Path) -> list[tuple]:
    out = folder / "out"
    return [
        ("inspect", path),
        ("convert", path, "--output", out),
        ("quantize", path, "--output", out),
        ("evaluate", path, *ONE_TASK, "--output", out),
        ("collect", "--policy", path, *ONE_TASK, "--output", out),
        ("train", "--data", data, "--output", out, *TRAIN, "--start", path),
        ("train", "--data", data, "--output", out, *TRAIN, "--teacher", path),
        ("collect", "--policy", "random", *ONE_TASK, "--output", out, "--label", path),
        _dagger(data, out, path),
    ]


@pytest.mark.parametrize("command", range(9))
@pytest.mark.parametrize("fault", ["missing", "folder", "foreign", "text", "truncated"])
def test_checkpoints_that_cannot_be_read_are_refused(
    refused, checkpoint_file, dataset_dir, tmp_path, fault, command
):
    path = tmp_path / "agent.safetensors"
    if fault == "folder":
        path.mkdir()
    elif fault != "missing":
        content = checkpoint_file.read_bytes()
        path.write_bytes(
            {
                "foreign": b"\x00\x01\x02" * 99,
                "text": b"<html></html>",
                "truncated": content[: len(content) // 2],
            }[fault]
        )
    line = refused(*_commands_on_a_checkpoint(path, tmp_path, dataset_dir)[command])
    assert "agent.safetensors" in line
    assert not (tmp_path / "out").exists()


def test_unknown_tasks_are_refused_with_near_matches(refused, checkpoint_file, tmp_path):
    out = tmp_path / "out"
    for command in (
        ("evaluate", "random", "--tasks", "pendulum-swing", "--output", out),
        ("collect", "--policy", "random", "--tasks", "pendulum-swing", "--output", out),
        ("evaluate", checkpoint_file, "--tasks", "pendulum-swing", "--output", out),
    ):
        line = refused(*command)
        assert "did you mean pendulum-swingup" in line
        assert "? (an environment of your own is named MODULE:ID)" in line
    line = refused("evaluate", checkpoint_file, "--tasks", "walker-walk", "--output", out)
    assert "unknown task 'walker-walk'" in line
    assert not out.exists()


def test_labellers_that_cannot_label_are_refused(
    refused, checkpoint_file, dataset_dir, two_experts, tmp_path
):
    out, experts = tmp_path / "out", two_experts
    drive = ("collect", "--policy", "random", *ONE_TASK, "--output", out)
    assert "no expert for pendulum-swingup" in refused(*drive, "--label", experts)
    assert "nothing to imitate" in refused(*drive, "--label", "random")
    correct = _dagger(dataset_dir, out, checkpoint_file)
    assert "no expert for pendulum-swingup" in refused(*correct, "--label", experts)
    assert "nothing to imitate" in refused(*correct, "--teacher", "random")
    assert not out.exists()


def test_data_of_another_task_set_is_refused(refused, dataset_dir, make_model, tmp_path):
    start = tmp_path / "start.safetensors"
    write_native(start, from_model(make_model(TaskTable((Task("odd", 3, 1), Task("b", 3, 1))))))
    arguments = ("--data", dataset_dir, "--output", tmp_path / "out", *TRAIN)
    assert "which the model does not know" in refused("train", *arguments, "--start", start)
    assert not (tmp_path / "out").exists()
    line = refused("train", *arguments, "--teacher", start)
    assert "no teacher has cartpole-balance, pendulum-swingup" in line


def test_missing_data_is_refused(refused, checkpoint_file, tmp_path):
    data, out = tmp_path / "none", tmp_path / "out"
    for command in (
        ("data", "info", data),
        ("train", "--data", data, "--output", out, *TRAIN),
        ("train", "--data", data, "--output", out, *TRAIN, "--teacher", checkpoint_file),
        _dagger(data, out, checkpoint_file),
    ):
        assert f"no dataset at {data}" in refused(*command)
    assert list(tmp_path.iterdir()) == []


def test_nan_in_the_data_is_refused(refused, dataset_dir, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(dataset_dir, data)
    for path in data.rglob("obs.memmap"):
        values = np.memmap(path, dtype="<f4", mode="r+")
        values[1000:] = np.nan
        values.flush()
    assert "obs holds NaN" in refused("data", "info", data)
    command = ("train", "--data", data, "--output", tmp_path / "out", *TRAIN)
    assert "obs holds NaN" in refused(*command, "--max-skipped", 0)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert not (data / "returns.png").exists()


def _dagger(data: Path, out: Path, student: Path) -> tuple:
    start = ("--start", student, "--teacher", student)
    return ("dagger", "--data", data, "--output", out, *start, *ROUND)


def _commands_that_write(out: Path, checkpoint: Path, data: Path) -> list[tuple]:
    return [
        ("convert", checkpoint, "--output", out),
        ("quantize", checkpoint, "--output", out),
        ("evaluate", "random", *ONE_TASK, "--output", out),
        ("collect", "--policy", "random", *ONE_TASK, "--output", out),
        ("data", "info", data, "--plot", out),
        ("train", "--data", data, "--output", out, *TRAIN),
        ("train", "--data", data, "--output", out, *TRAIN, "--teacher", checkpoint),
        _dagger(data, out, checkpoint),
    ]


@pytest.mark.parametrize("command", range(8))
def test_an_output_below_a_file_is_refused(
    refused, checkpoint_file, dataset_dir, tmp_path, command
):
    (tmp_path / "file").write_text("kept")
    out = tmp_path / "file" / "out"
    line = refused(*_commands_that_write(out, checkpoint_file, dataset_dir)[command])
    assert "cannot write" in line
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("command", range(8))
def test_a_full_disk_is_reported_and_leaves_nothing_half_written(
    refused, checkpoint_file, dataset_dir, tmp_path, monkeypatch, command
):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    arguments = _commands_that_write(tmp_path / "out", checkpoint_file, dataset_dir)[command]
    assert "No space left" in refused(*arguments)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_unknown_preset_is_refused(refused, checkpoint_file, tmp_path):
    line = refused(
        *("evaluate", checkpoint_file, *ONE_TASK, "--preset", "tiny"),
        *("--output", tmp_path / "out"),
    )
    assert "unknown planner preset 'tiny'" in line
    assert not (tmp_path / "out").exists()


def test_a_value_that_is_refused_later_is_named_by_its_option_too(refused, tmp_path):
    words = ("evaluate", "mt30-1m", *ONE_TASK, "--replan-every", "99")
    assert "--replan-every must be between 1" in refused(*words, "--output", tmp_path / "out")


def test_damaged_results_are_refused(refused, tmp_path):
    path = tmp_path / "r.json"
    path.write_text("{")
    assert "is no JSON" in refused("compare", path, path)
    assert "is no JSON" in refused("evaluate", "random", *ONE_TASK, "--output", path)
    assert "cannot read" in refused("compare", tmp_path / "none.json", path)
    assert path.read_text() == "{"


def test_an_interrupt_exits_with_status_130_and_says_how_to_go_on(run, tmp_path, monkeypatch):
    def stop(self, done: int, total: int, text: str) -> None:
        if done:
            raise KeyboardInterrupt

    monkeypatch.setattr(Terminal, "update", stop)
    out = tmp_path / "r.json"
    status, _, errors = run("evaluate", "random", *ONE_TASK, "--output", out)
    assert status == 130
    again = "the same command goes on with what is not finished yet"  # true of nothing too
    assert errors.splitlines()[-1] == f"tdmpc-opt: interrupted; {again}"
    assert "Traceback" not in errors
    assert json.loads(out.read_text())["complete"]


def test_an_interrupt_of_a_command_without_resume_says_so(
    run, checkpoint_file, dataset_dir, tmp_path, monkeypatch
):
    def stop(self, done: int, total: int, text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Terminal, "update", stop)
    out = tmp_path / "regularized.safetensors"
    status, _, errors = run(
        "regularize", checkpoint_file, "--data", dataset_dir, "--output", out, "--updates", "2"
    )
    assert status == 130
    assert errors.splitlines()[-1] == ("tdmpc-opt: interrupted; the same command begins anew")
    assert not out.exists()


def test_a_reader_that_leaves_early_sees_no_traceback():
    command = [sys.executable, "-m", "tdmpc_opt", "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_missing_library_is_answered_with_the_extra_that_brings_it(monkeypatch, capsys):
    def without_scipy(config):
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy.stats")

    monkeypatch.setattr(tasks, "choose_tasks", without_scipy)
    assert cli.main(["tasks"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert 'pip install "tdmpc-opt[train]"' in error


@pytest.mark.parametrize("named", [True, False])
def test_a_library_that_is_damaged_is_named_in_one_line(named, monkeypatch, capsys):
    """Some libraries raise an ImportError of their own, without a name."""
    library: dict[str, object] = {"__name__": "onnxruntime.capi"}
    exec("def load(error): raise error", library)
    error = ImportError("libx.so:\ncannot open", name="torch._C" if named else None)
    monkeypatch.setattr(tasks, "choose_tasks", lambda _: library["load"](error))
    assert cli.main(["tasks"]) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    name = "torch" if named else "onnxruntime"
    assert f"the library {name} is installed but cannot be imported (libx.so:" in shown


def test_an_import_that_this_project_lacks_is_not_blamed_on_a_library(monkeypatch):
    def broken(config):
        raise ImportError("cannot import name 'x'", name="tdmpc_opt.tasks")

    monkeypatch.setattr(tasks, "choose_tasks", broken)
    with pytest.raises(ImportError, match="cannot import name"):
        cli.main(["tasks"])
