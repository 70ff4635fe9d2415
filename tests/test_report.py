import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib import rc_context

from tdmpc_opt import cli
from tdmpc_opt.configs.measure import ReportConfig
from tdmpc_opt.errors import ResultError
from tdmpc_opt.evaluation.score import Score
from tdmpc_opt.report import charts
from tdmpc_opt.report.charts import pareto_front
from tdmpc_opt.report.page import write_report
from tdmpc_opt.report.read import Agent, read_result_files

ROOT = Path(__file__).parents[1]
POLICY = ROOT / "results" / "released-1m-policy.json"
PLANNER = ROOT / "results" / "released-1m-planner-noise.json"
FILES = (
    *(POLICY, PLANNER, ROOT / "results" / "demo.json"),
    ROOT / "results" / "expert-trial-walker-run-sac.json",
)
VOID = {"meta", "br", "img", "path", "use"}


class _Page(HTMLParser):
    """Collects ids, addresses and text, and notices tags that are not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.addresses += [found[n] for n in ("src", "href", "xlink:href") if n in found]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def _write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def _content(path: Path = POLICY) -> dict:
    """A result of three of its tasks."""
    content = json.loads(path.read_text())
    tasks = content["config"]["tasks"] = content["config"]["tasks"][:3]
    content["tasks"] = {name: content["tasks"][name] for name in tasks}
    return content


def _report(tmp_path: Path, *files: Path) -> str:
    write_report(ReportConfig(results=files, output=tmp_path / "report.html"))
    return (tmp_path / "report.html").read_text()


@pytest.fixture(scope="module")
def full_report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    config = ReportConfig(
        results=FILES, output=folder / "page.html", figures=folder / "figures"
    )
    return write_report(config), (folder / "page.html").read_text()


def test_the_page_is_one_small_file_that_needs_nothing_else(full_report):
    summary, html = full_report
    assert summary.size_bytes < 3_000_000
    page = _Page(html)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(address.startswith("#") for address in page.addresses)
    assert {a[1:] for a in page.addresses if a != "#"} <= set(page.ids)
    assert not re.search(r"@import|url\((?!#)|<script|<link|<img", html)


def test_the_page_shows_every_score_as_its_file_has_it(full_report):
    _, html = full_report
    texts = _Page(html).texts
    for path in FILES:
        content = json.loads(path.read_text())
        if content["kind"] == "evaluation":
            assert f"{content['score']['mean']:.2f}" in texts
            assert any(content["versions"]["commit"] in text for text in texts)


def test_charts_are_text_and_follow_the_theme(full_report):
    _, html = full_report
    svg = html[html.index('<svg class="broad"') :].split("</svg>")[0]
    assert "released-1m-policy (10 episodes a task)</text>" in svg
    assert "released-1m-planner-noise (1 episode a task)</text>" in svg
    assert "var(--series-0)" in svg
    assert "#0072b2" not in svg
    assert "prefers-color-scheme: dark" in html
    assert html.count('<svg class="broad" role="img" aria-label=') == html.count("<figure>")


def test_figures_are_written_for_papers(full_report):
    summary, _ = full_report
    names = {path.name for path in summary.figures}
    assert {"scores-1.png", "scores-1.svg", "tasks-1.png", "curves-1.svg"} <= names
    for path in summary.figures:
        head = path.read_bytes()[:400]
        assert head.startswith(b"\x89PNG") or b"<svg" in head or b"<!DOCTYPE svg" in head


def test_equal_results_give_equal_pages(tmp_path):
    path = _write(tmp_path / "agent.json", _content())
    assert _report(tmp_path, path) == _report(tmp_path, path)


def test_sizes_and_latencies_find_their_scores_by_hash_and_mode(tmp_path):
    policy = _write(tmp_path / "by-policy.json", _content())
    planner = _write(tmp_path / "by-planner.json", _content(PLANNER))
    agent = _content()["config"]["checkpoint"] | {"size_bytes": 1000}
    full = _content(PLANNER)["config"]["budget"] | {"replan_every": 1}
    rows = [
        {"name": "small", "file": agent, "mode": "policy", "budget": None, "batches": {}},
        {"name": "slow", "file": agent, "mode": "planner", "budget": full},
        {"name": "hasty", "file": agent, "mode": "planner", "budget": full | {"samples": 9}},
        {"name": "stranger", "file": agent | {"sha256": "0"}, "mode": "policy"},
    ]
    rows = [{"batches": {"1": {"p50_ms": 145.0}}, **row} for row in rows]
    bench = _write(tmp_path / "bench.json", {"kind": "bench", "candidates": rows})
    texts = _Page(_report(tmp_path, policy, planner, bench)).texts
    assert "by-policy: small" in texts
    assert "by-planner: slow" in texts
    assert "145.000 ms" in texts
    for name in ("stranger", "hasty", "by-policy: slow"):
        assert not any(name in text for text in texts)


def test_number_formats_find_their_scores_likewise(tmp_path):
    policy = _write(tmp_path / "by-policy.json", _content())
    sha256 = _content()["config"]["checkpoint"]["sha256"]
    row = {"format": "int4", "sha256": sha256, "size_bytes": 4321, "p50_ms": 0.25}
    rows = [{**row, "how": "policy"}, {**row, "how": "realtime"}]
    formats = _write(tmp_path / "formats.json", {"kind": "formats", "rows": rows})
    texts = _Page(_report(tmp_path, policy, formats)).texts
    assert {"by-policy: int4, policy", "4,321", "0.250 ms"} <= set(texts)
    assert not any("int4, planner" in text for text in texts)


_POINTS = (("a", 1.0, 10.0), ("b", 2.0, 9.0), ("c", 2.0, 20.0), ("d", 3.0, 20.0))


def test_a_point_is_on_the_front_if_none_is_cheaper_and_better():
    a, b, c, d = (Agent(name, Score(y, None), x) for name, x, y in _POINTS)
    assert pareto_front([d, c, b, a]) == [a, c]


def test_runs_of_equal_budget_become_an_ablation(tmp_path):
    files = []
    for name, updates, lr, shift in (
        *(("a", 10, 1, 0.0), ("b", 10, 2, 50.0)),
        ("other-budget", 20, 1, 0.0),
        ("quantized-a", 10, 1, -50.0),
    ):
        content = _content()
        content["training"] = {"updates": updates, "lr": lr, "seed": 0}
        for record in content["tasks"].values():
            record["returns"] = [value + shift for value in record["returns"]]
        files.append(_write(tmp_path / f"{name}.json", content))
    html = _report(tmp_path, *files)
    section = html[html.index('<section id="ablation">') :].split("</section>")[0]
    texts = _Page(section).texts
    assert "2 runs" in texts
    means = [np.mean([r["score"] for r in _content()["tasks"].values()]) + d for d in (0, 5)]
    assert {f"{mean:.2f}" for mean in means} <= set(texts)
    assert "lr 2" in texts


def test_a_run_and_its_rounds_are_drawn_from_their_folders(tmp_path):
    run = tmp_path / "my-run"
    run.mkdir()
    _write(run / "config.json", {"kind": "run", "config": {"lr": 1}})
    (run / "metrics.csv").write_text("update,loss,score\n1,2.0,\n2,1.0,30.5\n")
    rounds = [{"updates": 5, "score": 12.0}, {"updates": 9, "score": None}, {"updates": 12}]
    _write(run / "rounds.json", {"kind": "dagger", "config": {}, "rounds": rounds})
    curves = read_result_files([run / "config.json", run / "rounds.json"]).curves
    found = [(curve.name, curve.panel, list(curve.points)) for curve in curves]
    assert found == [
        ("my-run", "loss", [(1, 2), (2, 1)]),
        ("my-run", "normalized score", [(2, 30.5)]),
        ("my-run", "normalized score", [(5, 12)]),
    ]


def test_losses_of_different_objectives_have_panels_and_a_note(tmp_path):
    runs = {"plain": 0.0, "again": 0.0, "taught": 0.4}
    for name, weight in runs.items():
        (tmp_path / name).mkdir()
        config = {"weights": {"reward": 0.1}, "terms": {"reward_mse": weight}}
        _write(tmp_path / name / "config.json", {"kind": "run", "config": config})
        (tmp_path / name / "metrics.csv").write_text("update,loss,score\n1,2.0,\n2,1.0,\n")
    html = _report(tmp_path, *(tmp_path / name for name in runs))
    section = html[html.index('<section id="curves">') :].split("</section>")[0]
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td>", section)
    assert rows == [
        ("loss, objective 1", "plain"),
        ("loss, objective 1", "again"),
        ("loss, objective 2", "taught"),
    ]
    assert "1: reward 0.1; 2: reward 0.1, reward_mse 0.4" in section
    html = _report(tmp_path, tmp_path / "plain", tmp_path / "again")
    assert "objective" not in html[html.index('<section id="curves">') :].split("</section>")[0]


def test_agents_of_fewer_episodes_are_marked(tmp_path):
    content = _content()
    for record in content["tasks"].values():
        record |= {name: record[name][:5] for name in ("returns", "seeds")}
    few, many = (
        _write(tmp_path / "few.json", content),
        _write(tmp_path / "many.json", _content()),
    )
    html = _report(tmp_path, few, many)
    assert "few (5 episodes a task)</text>" in html
    assert "many (10 episodes a task)</text>" in html
    assert "episodes a task)" not in _report(tmp_path, many)


def test_agents_scored_from_other_starts_are_marked(tmp_path):
    content = _content()
    old = _write(tmp_path / "old.json", content)
    content["config"]["seed"] = 10_000
    new = _write(tmp_path / "new.json", content)
    html = _report(tmp_path, old, new)
    assert "old (starts from 0)</text>" in html
    assert "new (starts from 10,000)</text>" in html
    assert "starts from" not in _report(tmp_path, new)


def test_own_tasks_are_reported_by_their_returns(tmp_path):
    content = _content()
    tasks = content["config"]["tasks"] = ["Point-v0"]
    content["tasks"] = {tasks[0]: {"returns": [-3.0, -5.0], "seeds": [0, 1]}}
    html = _report(tmp_path, _write(tmp_path / "own.json", content))
    scores = html[html.index('<section id="scores">') :].split("</section>")[0]
    assert "<td>own</td><td>-4.00</td><td>-5.00 to -3.00</td>" in scores
    assert "mean return (line: 95% interval)" in scores
    assert "normalized score (line" not in scores


def test_tasks_whose_names_begin_alike_have_panels_of_their_own(tmp_path):
    files = [
        Path(__file__).parents[1] / "results" / f"expert-alone-{task}.json"
        for task in ("cartpole-swingup-sparse", "cartpole-swingup")
    ]
    html = _report(tmp_path, *files)
    section = html[html.index('<section id="curves">') :].split("</section>")[0]
    assert section.count("<td>cartpole-swingup</td>") == 1


def test_unknown_kinds_and_unfinished_evaluations_are_named_and_left_out(tmp_path, capsys):
    content = _content()
    content["complete"] = False
    whole = _write(tmp_path / "whole.json", _content())
    half = _write(tmp_path / "half.json", content)
    odd = _write(tmp_path / "odd.json", {"kind": "poem"})
    output = tmp_path / "report.html"
    words = ["report", str(whole), str(half), str(odd), "--output", str(output)]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "odd.json: unknown kind 'poem'" in out.replace("\n", " ")
    assert "unfinished: 3 of 3 tasks" in out.replace("\n", " ")
    assert "odd.json: unknown kind" in output.read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kind": "poem"}, "nothing to report"),
        ({"kind": "expert", "config": {}}, "damaged"),
        ({"kind": "expert", "config": {"task": "t"}, "learning_curve": 3}, "damaged"),
        ({"kind": "bench", "candidates": [{"name": "x"}]}, "damaged"),
        ({"kind": "demo", "rows": [{"name": "x"}]}, "damaged"),
        ({"kind": "evaluation", "tasks": []}, "lacks its tasks"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    path = _write(tmp_path / "bad.json", content)
    with pytest.raises(ResultError, match=message):
        _report(tmp_path, path)
    assert not (tmp_path / "report.html").exists()


def test_missing_files_and_text_are_refused(tmp_path):
    (tmp_path / "text.json").write_text("no json")
    for name in ("text.json", "missing.json"):
        with pytest.raises(ResultError, match=name):
            _report(tmp_path, tmp_path / name)


def test_names_from_files_cannot_break_the_page(tmp_path):
    content = json.loads((ROOT / "results" / "demo.json").read_text())
    content["rows"][0]["name"] = "<script>alert(1)</script> $x_1$"
    html = _report(tmp_path, _write(tmp_path / "demo.json", content))
    assert "<script" not in html
    assert "<script>alert(1)</script> $x_1$" in _Page(html).texts


def test_the_axis_of_rounding_errors_has_plain_numbers(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "save_picture", lambda draw, *_: drawn.append(draw))
    row = {"layer": "encoder.0", "value_error": 0.01, "score": None}
    rows = [
        row | {"format": name, "action_error": error}
        for name, error in (("fp16", 0.0), ("int8", 0.001), ("int4", 0.1))
    ]
    charts.plot_sensitivity(rows, tmp_path / "s.png")
    with rc_context(charts.RC):
        figure = drawn[0](8.0)
        figure.draw_without_rendering()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert {"0", "0.001", "0.1"} <= {*labels}
