"""What is shipped: its licences, its bill of materials, and packages of the same bytes."""

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import licences
import pytest

ROOT = Path(__file__).parents[1]
PAGE_FILES = {"index.html.gz", "icon.svg.gz", "licences.txt.gz"}
_DATE = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}


def test_the_licence_of_every_pinned_library_is_listed():
    text = licences.PAGE.read_text()
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)
    listed = {licences.normal(name): version for name, version, _ in rows[1:]}
    assert listed == licences.pinned()
    assert not [row for row in rows if row[2].strip().upper() in ("", "UNKNOWN")]


def test_pins_are_exact_and_in_order():
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!]+", line) for line in lines)
    assert lines == sorted(lines, key=str.lower)
    assert len({licences.normal(line.split("==")[0]) for line in lines}) == len(lines)


def test_what_make_licences_installs_has_every_extra():
    """It asks about all pinned libraries, which have to be there."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    makefile = (ROOT / "Makefile").read_text()
    named = {
        "dev",
        "train",
        "envs",
        *re.search(r"-e \"\.\[(.*audit.*)\]\"", makefile)[1].split(","),
    }
    installed = set()
    for extra in ("all", *named):
        for needed in extras[extra]:
            installed |= {
                *re.findall(r"[\w-]+", (re.match(r"tdmpc-opt\[(.*)\]", needed) or [""])[0])
            }
        installed.add(extra)
    assert installed >= extras.keys()


DOCKERFILE = ROOT / "examples" / "docker" / "Dockerfile"


def test_the_dockerfile_has_no_fault_that_a_linter_finds():
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_dockerfile_copies_is_there_and_its_command_is_taken():
    from tdmpc_opt.cli import _parse

    text = DOCKERFILE.read_text()
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ")]
    assert copied
    assert all((ROOT / name).exists() for names in copied for name in names)
    (command,) = (line for line in text.splitlines() if line.startswith("CMD "))
    words = json.loads(command.removeprefix("CMD "))
    assert _parse(words).host == "0.0.0.0"


@pytest.mark.slow
def test_the_bill_of_materials_names_every_pinned_library(tmp_path):
    pytest.importorskip("cyclonedx")
    output = tmp_path / "sbom.json"
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", ROOT / "constraints.txt"]
    command += ["--pyproject", ROOT / "pyproject.toml", "--output-reproducible"]
    subprocess.run([*command, "--of", "JSON", "-o", output], check=True, capture_output=True)
    content = json.loads(output.read_text())
    found = {licences.normal(part["name"]): part["version"] for part in content["components"]}
    assert found == licences.pinned()
    assert content["metadata"]["component"]["name"] == "tdmpc-opt"


def _build(folder: Path, source: Path, *kinds: str) -> dict[str, bytes]:
    command = [sys.executable, "-m", "build", *kinds, "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True, env=_DATE)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, bytes]:
    """The sdist, and the wheel that is built out of it."""
    return _build(tmp_path_factory.mktemp("first"), ROOT)


@pytest.mark.slow
def test_building_twice_gives_the_same_bytes(built, tmp_path):
    assert sorted(name.rpartition(".")[2] for name in built) == ["gz", "whl"]
    assert _build(tmp_path, ROOT) == built


@pytest.mark.slow
def test_wheels_hold_the_page_whether_built_from_the_checkout_or_the_sdist(built, tmp_path):
    direct = _build(tmp_path / "direct", ROOT, "--wheel")
    (name,) = direct
    for number, content in enumerate((direct[name], built[name])):
        path = tmp_path / f"{number}.whl"
        path.write_bytes(content)
        with zipfile.ZipFile(path) as wheel:
            names = {n.removeprefix("tdmpc_opt/play/static/") for n in wheel.namelist()}
        assert names >= PAGE_FILES
        assert any(n.startswith("agents/") for n in names)
        assert any(n.startswith("models/") for n in names)
        assert "tdmpc_opt/zoo/demo-teacher.safetensors" in names
        assert not any(n.startswith(("tests/", "benchmarks/")) for n in names)
    assert direct[name] == built[name]


@pytest.mark.slow
def test_the_sdist_installs_in_a_bare_environment(built, tmp_path):
    (name,) = [name for name in built if name.endswith(".tar.gz")]
    path = tmp_path / name
    path.write_bytes(built[name])
    with tarfile.open(path) as archive:
        assert not [member for member in archive if member.name.startswith(("/", ".."))]
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    clean = {key: value for key, value in _DATE.items() if key != "PYTHONPATH"}
    install = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", path]
    subprocess.run(install, check=True, env=clean)
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "tdmpc-opt", "zoo"],
        check=True,
        env=clean,
        capture_output=True,
        text=True,
    )
    assert "demo-teacher" in done.stdout
