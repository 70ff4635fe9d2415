"""What the pages say: their Python runs, their commands parse, their figures hold."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tables
from cogapp import Cog

from tdmpc_opt import cli, zoo

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES_WITH_TABLES = [page for page in PAGES if "[[[cog" in page.read_text()]
PLACEHOLDERS = {"FILE", "DATA", "..."}
# Pieces of a page's code that need another machine or minutes of export.
ELSEWHERE = ("deploy.md", "planner.md")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT / "docs"))


def _blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text()) if kind == language]


def _shell_lines() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in _blocks(page, "sh"):
            text = block.replace("\\\n", " ")
            found += [(_name(page), line.strip()) for line in text.splitlines() if line.strip()]
    return found


LINES = _shell_lines()
RUNS = [page for page in PAGES if _blocks(page, "python") and _name(page) not in ELSEWHERE]


@pytest.mark.parametrize(
    "line", [line for _, line in LINES if line.startswith("tdmpc-opt ")], ids=str
)
def test_a_command_of_a_page_is_one_that_the_parser_takes(line):
    words = shlex.split(line, comments=True)[1:]
    if PLACEHOLDERS & set(words):
        words = [word for word in words if word != "..."]
    cli._parse(words)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "results").glob("*.json")), ids=lambda path: path.stem
)
def test_the_command_behind_a_result_is_there(path):
    words = shlex.split(tables.command(path.stem, json.loads(path.read_text())))
    if words[0] == "tdmpc-opt":
        cli._parse(words[1:])
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    else:
        assert words[0] == "make" or words[:2] in (["git", "show"], ["git", "checkout"])


@pytest.mark.parametrize(("page", "line"), LINES)
def test_what_a_line_of_shell_names_is_there(page, line):
    for script in re.findall(r"\b(?:benchmarks|examples|tests|tools)/[\w/.]+", line):
        assert (ROOT / script).exists(), f"{page}: {line}"
    if target := re.match(r"make ([\w-]+)", line):
        assert re.search(rf"^{target[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for extras in re.findall(r"tdmpc-opt\[([\w,]+)\]", line):
        assert set(extras.split(",")) <= set(EXTRAS), f"{page}: {line}"


@pytest.mark.parametrize("page", RUNS, ids=_name)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in _blocks(page, "python"):
        exec(compile(block, _name(page), "exec"), names)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # both from torch.onnx
@pytest.mark.filterwarnings("ignore:.*axis name:UserWarning")
def test_the_python_about_devices_runs(tmp_path, monkeypatch):
    """Up to the block for boards with a GPU."""
    monkeypatch.chdir(tmp_path)
    policy = ("--policy-only", "--task", "walker-walk", "--format", "int8")
    short = ("--preset", "realtime", "--tolerance", "2")
    for agent, name, options in (
        ("mt30-1m", "walk.onnx", policy),
        ("demo-teacher", "planner.onnx", short),
    ):
        file = str(zoo.path(agent))
        assert cli.main(["export", file, *options, "--output", name]) == 0
    first, second, _ = _blocks(ROOT / "docs" / "deploy.md", "python")
    names: dict[str, object] = {}
    exec(compile(first, "deploy.md", "exec"), names)
    names["obs"] = np.zeros(8, np.float32)
    exec(compile(second, "deploy.md", "exec"), names)


def test_other_python_of_the_pages_compiles():
    for page in (ROOT / "docs" / name for name in ELSEWHERE):
        for block in _blocks(page, "python"):
            compile(block, _name(page), "exec")


@pytest.mark.parametrize("page", PAGES_WITH_TABLES, ids=_name)
def test_the_tables_of_a_page_are_those_of_the_result_files(page):
    status = Cog().main(["cog", "-p", "import tables", "--check", str(page)])
    assert status == 0, "the tables are out of date; run: make docs-tables"


def test_every_table_is_on_a_page():
    text = "".join(page.read_text() for page in PAGES)
    called = re.findall(r"\[\[\[cog cog\.outl\(tables\.(\w+)\(\)\) \]\]\]", text)
    defined = re.findall(
        r"^def ([a-z]\w*)\(\) ", Path(tables.__file__).read_text(), re.MULTILINE
    )
    assert sorted(called) == sorted(defined)


def test_a_changed_table_is_noticed(tmp_path):
    page = tmp_path / "results.md"
    page.write_text(
        (ROOT / "docs" / "results.md").read_text().replace("| 15.95 [", "| 16.95 [")
    )
    assert Cog().main(["cog", "-p", "import tables", "--check", str(page)]) != 0


def test_every_file_that_a_page_links_to_is_published():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" in link:
                continue
            target = (page.parent / link).resolve()
            assert target.exists(), f"{_name(page)}: {link}"
            outside = not target.is_relative_to(ROOT / "docs")
            published = {"results", "examples", "experts", "weights"}
            assert not outside or target.relative_to(ROOT).parts[0] in published


def test_every_page_is_in_the_navigation():
    config = (ROOT / "zensical.toml").read_text()
    missing = [_name(page) for page in PAGES if f'"{_name(page)}"' not in config]
    assert missing == []


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "src").symlink_to(ROOT / "src")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    pages = list((tmp_path / "site" / "docs").rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        assert not re.search(
            r'<(?:script|img|link)[^>]+(?:src|href)="?https?:', page.read_text()
        )
