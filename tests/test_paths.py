import os
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from tdmpc_opt import cli, zoo
from tdmpc_opt.checkpoints.checkpoint import from_model
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.errors import InputError
from tdmpc_opt.files import _READ, _WRITTEN


@pytest.fixture
def teacher(make_model, tmp_path) -> Path:
    path = tmp_path / "t.safetensors"
    write_native(path, from_model(make_model()))
    return path


def _refused(words: list[object], kept: Path, capsys) -> None:
    before = kept.read_bytes()
    assert cli.main([str(word) for word in words]) == 1
    error = capsys.readouterr().err
    assert "would overwrite" in error
    assert error.count("\n") == 1
    assert kept.read_bytes() == before


@pytest.mark.parametrize("kind", ["same", "relative", "symlink", "hardlink"])
def test_an_output_that_is_the_input_by_any_name_is_refused(
    teacher, tmp_path, kind, capsys, monkeypatch
):
    output = teacher
    if kind == "relative":
        monkeypatch.chdir(tmp_path)
        output = Path("..") / tmp_path.name / teacher.name
    if kind == "symlink":
        output = tmp_path / "link.safetensors"
        output.symlink_to(teacher)
    if kind == "hardlink":
        output = tmp_path / "link.safetensors"
        os.link(teacher, output)
    words = ["quantize", teacher, "--policy-only", "--format", "int8", "--output", output]
    _refused(words, teacher, capsys)


@pytest.mark.parametrize(
    "words",
    [
        ["export", "T", "--policy-only", "--output", "T"],
        ["convert", "T", "--output", "T"],
        ["report", "T", "--output", "T"],
        ["evaluate", "T", "--output", "T"],
        ["evaluate", "F", "--output", "F/model.safetensors"],
        ["bench", "T", "--output", "T"],
        ["video", "random", "--against", "T", "--sheet", "T"],
        ["convert", "T", "--output", "F"],
        ["train", "--data", "D", "--updates", "1", "--output", "D"],
        ["train", "--data", "D", "--updates", "1", "--start", "T", "--output", "F"],
        ["train", "--data", "D", "--updates", "1", "--teacher", "F", "--output", "F"],
        ["collect", "--policy", "F", "--output", "F"],
        ["data", "export", "D", "--output", "D"],
        ["data", "import", "D", "--output", "D"],
        ["data", "info", "D", "--plot", "D/dataset.json"],
        ["data", "info", "D", "--plot", "D/shard/obs.memmap"],
        ["data", "info", "D", "--card", "D/shard/meta.json"],
        ["export", "T", "--data", "D", "--policy-only", "--output", "D/shard/action.memmap"],
        ["evaluate", "F", "--output", "F/students/round-1.safetensors"],
        ["sensitivity", "T", "--data", "D", "--output", "D/dataset.json"],
        ["ablation", "T", "--plot", "T"],
        ["ablation", "R", "--plot", "R/score.json"],
        ["report", "R", "--output", "R/score.json"],
        ["convert", "T", "--results", "R", "--output", "R/score.json"],
        ["tune-planner", "F", "--output", "F"],
    ],
)
def test_every_command_that_writes_refuses_its_inputs(
    words, teacher, dataset_dir, tmp_path, capsys
):
    folder, data = tmp_path / "folder", tmp_path / "data"
    folder.mkdir()
    os.link(teacher, folder / "model.safetensors")
    (folder / "students").mkdir()
    shutil.copyfile(teacher, folder / "students" / "round-1.safetensors")
    shutil.copytree(dataset_dir, data)
    next(path for path in data.iterdir() if path.is_dir()).rename(data / "shard")
    results = tmp_path / "results"
    results.mkdir()
    (results / "score.json").write_text("{}")
    places = {"T": teacher, "F": folder, "D": data, "R": results}
    found = [
        str(places.get(word[:1], "")) + word[1:]
        if word[:1] in places and word[1:2] in ("", "/")
        else word
        for word in words
    ]
    kept = data / "dataset.json" if words[-1] == "D" else teacher
    kept = Path(found[-1]) if Path(found[-1]).is_file() else kept
    _refused(list(found), kept, capsys)


@pytest.mark.parametrize(
    ("words", "ending"),
    [
        (["quantize", "mt30-1m", "--policy-only", "--output"], ".safetensors"),
        (["regularize", "mt30-1m", "--data", "D", "--output"], ".safetensors"),
        (["export", "mt30-1m", "--policy-only", "--output"], ".onnx"),
        (["export", "mt30-1m", "--policy-only", "--target", "executorch", "--output"], ".pte"),
        (["evaluate", "random", "--output"], ".json"),
        (["sensitivity", "mt30-1m", "--data", "D", "--output"], ".json"),
        (["bench", "mt30-1m", "--output"], ".json"),
        (["report", "R", "--output"], ".html"),
        (["data", "info", "D", "--plot"], ".png"),
        (["data", "info", "D", "--card"], ".md"),
        (["video", "random", "--sheet"], ".png"),
    ],
)
def test_an_output_named_as_another_format_is_refused(
    words, ending, dataset_dir, tmp_path, capsys
):
    kept, result = tmp_path / "score.jsonl", tmp_path / "r.json"
    kept.write_text("precious")
    result.write_text("{}")
    places = {"D": dataset_dir, "R": result}
    assert cli.main([*(str(places.get(word, word)) for word in words), str(kept)]) == 1
    error = capsys.readouterr().err
    assert f"score.jsonl has to end in {ending}" in error
    assert error.count("\n") == 1
    assert kept.read_text() == "precious"


def _functions():
    """The Python functions that write, each with a config whose output is its input T."""
    from tdmpc_opt.agents.collect import collect
    from tdmpc_opt.checkpoints.summary import convert
    from tdmpc_opt.compression.quantize import quantize
    from tdmpc_opt.compression.sensitivity import sensitivity
    from tdmpc_opt.data.exchange import export_data, import_data
    from tdmpc_opt.evaluation.bench import bench
    from tdmpc_opt.evaluation.evaluate import evaluate
    from tdmpc_opt.evaluation.tune import tune
    from tdmpc_opt.export.export import export
    from tdmpc_opt.export.model_folder import save_folder
    from tdmpc_opt.pipeline.distill import distill
    from tdmpc_opt.pipeline.plan import plan
    from tdmpc_opt.report.film import video
    from tdmpc_opt.report.page import write_report
    from tdmpc_opt.training.dagger import dagger
    from tdmpc_opt.training.loop import train
    from tdmpc_opt.training.regularize import regularize

    return {
        distill: ["distill", "T", "--output", "T"],
        plan: ["distill", "T", "--output", "T"],
        collect: ["collect", "--policy", "T", "--output", "T"],
        convert: ["convert", "T", "--output", "T"],
        quantize: ["quantize", "T", "--output", "T"],
        sensitivity: ["sensitivity", "T", "--data", "T", "--output", "T"],
        export_data: ["data export", "T", "--output", "T"],
        import_data: ["data import", "T", "--output", "T"],
        bench: ["bench", "T", "--output", "T"],
        evaluate: ["evaluate", "T", "--output", "T"],
        tune: ["tune-planner", "T", "--output", "T"],
        export: ["export", "T", "--output", "T"],
        save_folder: ["convert", "T", "--output", "T"],
        video: ["video", "T", "--sheet", "T"],
        write_report: ["report", "T", "--output", "T"],
        regularize: ["regularize", "T", "--data", "T", "--output", "T"],
        train: ["train", "--data", "T", "--updates", "1", "--output", "T"],
        dagger: [
            *("dagger", "--data", "T", "--teacher", "T", "--start", "T", "--rounds", "1"),
            *("--updates", "1", "--output", "T"),
        ],
    }


def test_the_python_functions_refuse_their_inputs_too(teacher):
    before = teacher.read_bytes()
    for function, words in _functions().items():
        name, *rest = [str(teacher) if word == "T" else word for word in words]
        with pytest.raises(InputError, match="would overwrite"):
            function(cli._parse([*name.split(), *rest]))
        assert teacher.read_bytes() == before


def test_every_command_that_writes_has_a_function_that_refuses():
    tested = {words[0] for words in _functions().values()}
    others = {"demo", "experts"}  # which read no files but their own
    others |= {"data info", "ablation"}  # whose functions write nothing; the command refuses
    for name, command in cli._COMMANDS.items():
        if {field.name for field in fields(command.config)} & {*_WRITTEN}:
            assert name in tested | others, name


def test_a_bundled_checkpoint_is_an_input_too(tmp_path, capsys):
    bundled = zoo.path("mt30-1m")
    _refused(["quantize", "mt30-1m", "--output", bundled], bundled, capsys)


def test_every_option_that_names_a_file_is_known_to_the_check():
    for command in cli._COMMANDS.values():
        for field in fields(command.config):
            if "Path" in str(field.type) and field.name != "store":
                assert field.name in (*_READ, *_WRITTEN), (command.name, field.name)


def test_a_device_or_pipe_is_no_output(teacher, tmp_path, capsys):
    """A finished file would take its place, also that of /dev/null."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert cli.main(["quantize", str(teacher), "--output", str(pipe)]) == 1
    assert f"--output {pipe} is a device or pipe" in capsys.readouterr().err
    assert pipe.is_fifo()


def test_an_output_folder_may_hold_its_input(teacher, tmp_path):
    """As that of `distill` does, which writes a model folder around its work."""
    work = tmp_path / "student" / "work"
    work.mkdir(parents=True)
    source = shutil.copyfile(teacher, work / "student.safetensors")
    assert cli.main(["convert", str(source), "--output", str(work.parent)]) == 0


def test_an_output_beside_its_inputs_is_written(teacher, tmp_path):
    output = tmp_path / "small.safetensors"
    for _ in range(2):  # the second replaces what the first wrote
        assert cli.main(["quantize", str(teacher), "--output", str(output)]) == 0


def test_a_written_checkpoint_may_be_read_by_whoever_may_read_other_files(teacher, tmp_path):
    other = tmp_path / "other"
    other.touch()
    assert teacher.stat().st_mode == other.stat().st_mode
