"""The pages under docs/: their Python runs, their commands parse, their figures are current."""

import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rooms_figure
import tables
from cogapp import Cog

import tdmpc_opt
from tdmpc_opt import cli, zoo
from tdmpc_opt.configs.pipeline import DemoConfig
from tdmpc_opt.pipeline.demo import demo
from tdmpc_opt.planning.presets import PRESETS
from tdmpc_opt.schema import MT30, PlannerBudget

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES_WITH_TABLES = [page for page in PAGES if "[[[cog" in page.read_text()]
PLACEHOLDERS = {"FILE", "DATA", "..."}
# Pages whose code needs another program, another machine or minutes of export.
ELSEWHERE = ("deploy.md", "server.md", "ros2.md")
# Libraries that no extra of tests brings, by the page whose code imports them.
LIBRARIES = {"distil.md": "stable_baselines3"}
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


RESULTS = [
    pytest.param(path, json.loads(path.read_text()), id=path.stem)
    for path in sorted((ROOT / "results").glob("*.json"))
]
WRITTEN_BY_A_COMMAND = [
    param
    for param in RESULTS
    if tables.command(param.id, param.values[1]).startswith("tdmpc-opt ")
]


@pytest.mark.parametrize(("path", "content"), RESULTS)
def test_the_command_behind_a_result_exists(path, content):
    line = tables.command(path.stem, content).removeprefix("taskset -c 0 ")
    words = shlex.split(line)
    if words[0] == "tdmpc-opt":
        cli._parse(words[1:])
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    elif words[0].startswith("examples/"):
        assert (ROOT / words[0]).is_file()
    else:
        assert words[0] == "make" or words[:2] in (["git", "show"], ["git", "checkout"])


@pytest.mark.parametrize(("path", "content"), WRITTEN_BY_A_COMMAND)
def test_the_command_behind_a_result_has_the_configuration_of_its_file(path, content):
    parsed = cli._parse(shlex.split(tables.command(path.stem, content))[1:])
    SAME[content["kind"]](parsed, content)


def _same_evaluation(parsed, content):
    config = content["config"]
    assert parsed.checkpoint == tables.source(config["checkpoint"])
    names = MT30.names if parsed.tasks in (None, "mt30") else parsed.tasks.split(",")
    assert list(names) == config["tasks"]
    assert (parsed.episodes, parsed.seed) == (config["episodes"], config["seed"])
    assert parsed.noise == config["noise"]
    if config["mode"] is None:
        return
    assert parsed.mode == config["mode"]
    if config["mode"] == "planner":
        assert _planned(parsed, config) == PlannerBudget(**config["budget"])
        assert (parsed.engine == "eager") == (config.get("engine", "eager") == "eager")


def _same_demo(parsed, content):
    plan = content["config"]["plan"]
    assert isinstance(parsed, DemoConfig)
    defaults = inspect.signature(demo).parameters
    assert sorted(defaults["tasks"].default.split(",")) == sorted(content["config"]["tasks"])
    updates = plan["updates"] + plan["rounds"] * plan["round_updates"]
    assert updates == defaults["updates"].default


def _planned(parsed, config):
    """Return the budget of the command.

    A committed checkpoint's is that of its file. For a file that is not in the repository the
    preset gives the sizes; what its checkpoint stores beside them is in the result file only.
    """
    recorded = PlannerBudget(**config["budget"])
    if config["checkpoint"].get("sha256") in tables.COMMITTED:
        named = parsed.checkpoint
        path = named if named in zoo.names() else ROOT / named
        found = tdmpc_opt.load_agent(path, preset=parsed.preset).budget
    else:
        stored = ("prior_penalty", "prior_hold", "mean_action")
        found = PRESETS[parsed.preset or "full"].budget
        if parsed.preset is not None:
            found = replace(found, **{name: getattr(recorded, name) for name in stored})
    return replace(found, replan_every=parsed.replan_every or 1)


def _same_bench(parsed, content):
    config, candidates = content["config"], content["candidates"]
    assert {each["file"]["name"] for each in candidates} == set(parsed.sources)
    assert {each["preset"] or "full" for each in candidates} == set(parsed.preset)
    assert all({*map(int, each["batches"])} == set(parsed.batch) for each in candidates)
    for name in ("task", "threads", "rounds", "seconds", "device"):
        assert getattr(parsed, name) == config[name], name


def _same_sensitivity(parsed, content):
    config = content["config"]
    assert parsed.checkpoint == tables.source(config["checkpoint"])
    assert (parsed.policy_only, parsed.episodes) == (config["policy_only"], config["episodes"])


def _same_search(parsed, content):
    config = content["config"]
    assert parsed.checkpoint == tables.source(config["checkpoint"])
    assert parsed.tasks.split(",") == config["tasks"]
    assert parsed.trials == len(content["trials"])
    assert parsed.score_full == (content["full"] is not None)
    assert config["seed"] == 0  # the seed of all searches since
    for name in ("episodes", "realtime_ms", "balanced_ms"):
        assert getattr(parsed, name) == config[name], name


def _same_expert(parsed, content):
    config = content["config"]
    assert (parsed.tasks, parsed.steps) == (config["task"], content["steps"])
    for name in ("method", "hidden", "envs", "update_ratio", "seed", "episodes"):
        assert getattr(parsed, name) == config.get(name, getattr(parsed, name)), name


def _same_rounds(parsed, content):
    """A distillation trains for half of its updates in rounds."""
    config, rounds = content["config"], len(content["rounds"])
    assert rounds * config["updates"] == parsed.updates // 2 == config["lr_zero_at"]
    assert (parsed.size, parsed.seed) == (config["size"], config["seed"] % 1_000_000)


SAME = {
    "bench": _same_bench,
    "dagger": _same_rounds,
    "demo": _same_demo,
    "evaluation": _same_evaluation,
    "expert": _same_expert,
    "sensitivity": _same_sensitivity,
    "tuning": _same_search,
}
"""How a parsed command is compared with a result file, by the kind of the file."""


@pytest.mark.parametrize("option", ["--preset realtime", "--replan-every 2"])
def test_a_command_that_lacks_an_option_is_found(option):
    content = tables._read("earlier-1m-realtime-every-2")
    line = tables.command("earlier-1m-realtime-every-2", content)
    assert option in line
    parsed = cli._parse(shlex.split(line.replace(option, ""))[1:])
    with pytest.raises(AssertionError):
        _same_evaluation(parsed, content)


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
    if library := LIBRARIES.get(_name(page)):
        pytest.importorskip(library, reason=f"the page uses {library}")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in _blocks(page, "python"):
        exec(compile(block, _name(page), "exec"), names)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # both from torch.onnx
@pytest.mark.filterwarnings("ignore:.*axis name:UserWarning")
def test_the_python_about_devices_runs(tmp_path, monkeypatch):
    """But for the block for boards with a GPU."""
    monkeypatch.chdir(tmp_path)
    policy = ("--policy-only", "--task", "walker-walk", "--format", "int8")
    short = ("--preset", "realtime", "--tolerance", "2")
    for agent, name, options in (
        ("mt30-1m", "walk.onnx", policy),
        ("demo-teacher", "planner.onnx", short),
    ):
        file = str(zoo.path(agent))
        assert cli.main(["export", file, *options, "--output", name]) == 0
    blocks = _blocks(ROOT / "docs" / "deploy.md", "python")
    first, *others = [block for block in blocks if "CUDAExecutionProvider" not in block]
    assert len(others) == len(blocks) - 2
    names: dict[str, object] = {}
    exec(compile(first, "deploy.md", "exec"), names)
    names["obs"] = np.zeros(8, np.float32)
    for block in others:
        exec(compile(block, "deploy.md", "exec"), names)


def test_other_python_of_the_pages_compiles():
    for page in (ROOT / "docs" / name for name in ELSEWHERE):
        for block in _blocks(page, "python"):
            compile(block, _name(page), "exec")


@pytest.mark.parametrize("page", PAGES_WITH_TABLES, ids=_name)
def test_the_tables_of_a_page_are_those_of_the_result_files(page):
    status = Cog().main(["cog", "-p", "import tables", "--check", str(page)])
    assert status == 0, "the tables are out of date; run: make docs-tables"


def test_the_picture_of_the_rooms_is_that_of_the_package():
    drawn = rooms_figure.FIGURE.read_text()
    assert drawn == rooms_figure.drawing(), "it is out of date; run: make docs-tables"
    package = ROOT / "src" / "tdmpc_opt"
    names = {path.parent.name for path in package.glob("*/__init__.py")}
    names |= {path.stem for path in package.glob("*.py") if not path.stem.startswith("_")}
    assert names == {name for row in rooms_figure.rooms() for name in row}


def test_the_files_that_contributing_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_0-9]+)*\.py)`", text))
    named |= set(re.findall(r"`([a-z_]+/)`", text))
    assert len(named) > 15
    places = (ROOT, ROOT / "src" / "tdmpc_opt", ROOT / "src" / "tdmpc_opt" / "training")
    missing = [name for name in named if not any((place / name).exists() for place in places)]
    assert missing == []


def test_every_table_is_on_a_page():
    text = "".join(page.read_text() for page in PAGES)
    called = re.findall(r"\[\[\[cog cog\.outl\(tables\.(\w+)\(\)\) \]\]\]", text)
    defined = re.findall(
        r"^def ([a-z]\w*)\(\) ", Path(tables.__file__).read_text(), re.MULTILINE
    )
    assert sorted(called) == sorted(defined)


def test_a_changed_table_is_noticed(tmp_path):
    page = tmp_path / "results.md"
    text = (ROOT / "docs" / "results.md").read_text()
    rows = json.loads((ROOT / "results" / "demo.json").read_text())["rows"]
    shown = f"| {rows[1]['score']:.2f} ["
    assert shown in text
    page.write_text(text.replace(shown, "| 0.01 ["))
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


WRITTEN = [*PAGES, *map(ROOT.joinpath, ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
WRITTEN += [
    path
    for path in sorted((ROOT / "examples").rglob("*"))
    if path.suffix in {".md", ".sh", ".py", ".cpp"}
]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_text_uses_no_metaphors(page):
    found = re.findall(
        r"\b(?:bought|tells|mends?|husks?|lessons?|yardsticks?|alike|besides|of its own)\b",
        page.read_text(),
        re.IGNORECASE,
    )
    assert found == []


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
