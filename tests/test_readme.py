"""The figures of the README come from the result files it names."""

import json
import re
from pathlib import Path

import pytest

from tdmpc_opt import zoo
from tdmpc_opt.files import sha256

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ROWS = [line for line in README.splitlines() if line.startswith("|") and "results/" in line]


FORMATS = json.loads((ROOT / "results" / "formats-mt30-1m.json").read_text())["rows"]
SIZES = {row["sha256"]: row["size_bytes"] for row in FORMATS}
FILES = [zoo.path("mt30-1m"), *sorted((ROOT / "weights").iterdir())]
SIZES |= {sha256(path): path.stat().st_size for path in FILES}


def _shown(mean, interval):
    text = f"{mean:.2f}"
    return f"{text} [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else text


def test_the_readme_shows_measured_results():
    assert len(ROWS) >= 3


@pytest.mark.parametrize("row", ROWS)
def test_each_row_of_results_shows_the_figures_of_its_file(row):
    score, _, size = (cell.strip() for cell in row.strip("|").split("|")[1:4])
    name = re.search(r"results/([\w.-]+)\.json", row)[1]
    content = json.loads((ROOT / "results" / f"{name}.json").read_text())
    assert content["complete"]
    assert score == _shown(content["score"]["mean"], content["score"]["ci95"])
    assert size == "-" or size == f"{SIZES[content['config']['checkpoint']['sha256']]:,}"


def test_the_rows_of_results_are_measured_in_the_same_way():
    names = [re.search(r"results/([\w.-]+)\.json", row)[1] for row in ROWS]
    configs = [
        json.loads((ROOT / f"results/{name}.json").read_text())["config"] for name in names
    ]
    keys = ("tasks", "episodes", "seed", "noise")
    assert all(
        [config[key] for key in keys] == [configs[0][key] for key in keys] for config in configs
    )
    assert {config["mode"] for config in configs} <= {"policy", None}  # None: random actions


def test_other_scores_of_the_readme_are_those_of_their_files():
    found = re.findall(
        r"scores (\d+\.\d+) \(.*?\[json\]\(results/([\w.-]+)\)", README, re.DOTALL
    )
    assert found
    for score, name in found:
        content = json.loads((ROOT / "results" / name).read_text())
        assert score == f"{content['score']['mean']:.2f}"


def test_few_words_come_before_the_first_command():
    words = re.findall(r"[A-Za-z]\S*", re.sub(r"\(http\S+\)", "", README.split("```")[0]))
    assert len(words) <= 60


@pytest.mark.parametrize(
    "path", sorted((ROOT / "results").glob("*.json")), ids=lambda p: p.stem
)
def test_each_result_file_says_where_it_comes_from(path):
    content = json.loads(path.read_text())
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", content["kind"])
    assert content["config"]
    assert content["versions"]["tdmpc_opt"]
    assert content["machine"]["cores"]
    assert not re.search(r'"/(work|root|home|tmp)', path.read_text())


@pytest.fixture
def short(monkeypatch):
    """Distillations of one episode each."""
    from tdmpc_opt.pipeline import demo, distill, plan

    for module in (demo, distill, plan):
        monkeypatch.setattr(module, "SCORE_EPISODES", 1)


@pytest.mark.usefixtures("short")
def test_the_command_of_the_readme_distils_a_teacher(tmp_path, monkeypatch):
    """With a smaller teacher and budget."""
    from tdmpc_opt import cli, zoo

    block = README.split("## Distil your teacher")[1].split("```sh\n")[1].split("```")[0]
    words = block.split()[1:]
    assert len(block.strip().splitlines()) == 1
    monkeypatch.chdir(tmp_path)
    Path("teacher.pt").write_bytes(zoo.path("demo-teacher").read_bytes())
    budget = words.index("--hours")
    words[budget : budget + 2] = ["--updates", "2"]
    small = ["--tasks", "cartpole-balance", "--size", "0.3", "--workers", "1"]
    assert cli.main([*words, *small]) == 0
    assert json.loads(Path("student/results/student-int8.json").read_text())["complete"]


def test_the_stages_of_the_guide_distil_a_teacher(tmp_path, monkeypatch):
    """The six lines of shell with a smaller teacher and budget."""
    from tdmpc_opt import cli, zoo

    guide = (ROOT / "docs/distil.md").read_text()
    block = guide.split("## Stages")[1].split("```sh\n")[1].split("```")[0]
    lines = [line.split()[1:] for line in block.strip().splitlines()]
    assert len(lines) == 6
    monkeypatch.chdir(tmp_path)
    Path("teacher.pt").write_bytes(zoo.path("demo-teacher").read_bytes())
    small = {"--episodes": "1", "--updates": "2", "--rounds": "1"}
    extra = {
        "collect": ["--tasks", "cartpole-balance", "--workers", "1"],
        "train": ["--batch-size", "8", "--size", "0.3"],
        "dagger": ["--batch-size", "8", "--episodes", "1", "--workers", "1"],
        "evaluate": ["--episodes", "1", "--workers", "1"],
    }
    for words in lines:
        pairs = zip(["", *words], words, strict=False)
        words = [small.get(before, word) for before, word in pairs] + extra.get(words[0], [])
        assert cli.main(words) == 0
    assert json.loads(Path("student.json").read_text())["complete"]


@pytest.mark.usefixtures("short")
def test_the_python_of_the_readme_distils_and_acts(tmp_path, monkeypatch):
    """The blocks with a smaller teacher and budget."""
    from tdmpc_opt import zoo

    blocks = [part.split("```")[0] for part in README.split("```python\n")[1:]]
    assert len(blocks) == 2
    distil, act = blocks
    assert len([line for line in distil.splitlines() if line and "import" not in line]) <= 10
    monkeypatch.chdir(tmp_path)
    Path("teacher.pt").write_bytes(zoo.path("demo-teacher").read_bytes())
    small = 'updates=2, size="0.3", workers=1, tasks="cartpole-balance",'
    assert "hours=4," in distil
    exec(compile(distil.replace("hours=4,", small), "README", "exec"), {"__name__": "__main__"})
    assert json.loads(Path("student/results/student.json").read_text())["complete"]
    exec(compile(act.replace('"student"', '"demo-teacher"'), "README", "exec"), {})
