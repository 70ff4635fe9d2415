import os
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from tdmpc_opt import cli, zoo
from tdmpc_opt.checkpoints.checkpoint import from_model
from tdmpc_opt.checkpoints.native import write_native
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
        ["sensitivity", "T", "--data", "D", "--output", "D/dataset.json"],
        ["sensitivity", "T", "--data", "D", "--output", "P", "--plot", "P"],
        ["ablation", "T", "--plot", "T"],
        ["tune-planner", "F", "--output", "F"],
    ],
)
def test_every_command_that_writes_refuses_its_inputs(
    words, teacher, dataset_dir, tmp_path, capsys
):
    folder, data = tmp_path / "folder", tmp_path / "data"
    folder.mkdir()
    os.link(teacher, folder / "model.safetensors")
    shutil.copytree(dataset_dir, data)
    picture = tmp_path / "picture.png"
    picture.touch()
    places = {"T": teacher, "F": folder, "D": data, "P": picture}
    found = [
        str(places.get(word[:1], "")) + word[1:]
        if word[:1] in places and word[1:2] in ("", "/")
        else word
        for word in words
    ]
    kept = data / "dataset.json" if "D" in "".join(words[-1:]) else teacher
    _refused(list(found), kept, capsys)


def test_a_bundled_checkpoint_is_an_input_too(tmp_path, capsys):
    bundled = zoo.path("mt30-1m")
    _refused(["quantize", "mt30-1m", "--output", bundled], bundled, capsys)


def test_every_option_that_names_a_file_is_known_to_the_check():
    for command in cli._COMMANDS.values():
        for field in fields(command.config):
            if "Path" in str(field.type) and field.name != "store":
                assert field.name in (*_READ, *_WRITTEN), (command.name, field.name)


def test_an_output_beside_its_inputs_is_written(teacher, tmp_path):
    output = tmp_path / "small.safetensors"
    for _ in range(2):  # the second replaces what the first wrote
        assert cli.main(["quantize", str(teacher), "--output", str(output)]) == 0
