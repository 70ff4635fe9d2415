"""The report: one HTML file that opens from disk, and its charts as pictures for papers."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context

import tdmpc_opt
from tdmpc_opt.configs import ReportConfig
from tdmpc_opt.errors import ResultError
from tdmpc_opt.evaluation.compare import ablation, equal_budgets
from tdmpc_opt.evaluation.results import refuse_damaged
from tdmpc_opt.evaluation.score import NORMALIZED, Score, Unit, normalized_score
from tdmpc_opt.files import refuse_overwrite, written
from tdmpc_opt.report.charts import (
    AGENTS,
    BROAD,
    RC,
    Chart,
    Point,
    cost_chart,
    css_variables,
    curve_chart,
    pareto_front,
    save_picture,
    score_chart,
    task_chart,
    themed,
)
from tdmpc_opt.report.read import Curve, Evaluated, ResultSet, Source, read_result_files
from tdmpc_opt.schema import MT30


@dataclass(frozen=True, slots=True)
class Table:
    """Numbers behind a chart."""

    columns: Sequence[str]
    """The first column is of text, the others of numbers."""
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart, and the same in numbers."""

    chart: Chart
    table: Table


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page."""

    name: str
    """Its anchor."""
    title: str
    text: str
    figures: Sequence[Figure] = field(default_factory=list)


def sections(results: ResultSet) -> list[Section]:
    """Return the sections for which there are results.

    Raises:
        ResultError: Values that cannot be shown, such as a curve without a point.
    """
    names = ", ".join(source.name for source in results.sources)
    with refuse_damaged(f"{names}: cannot be shown"):
        found = [part(results) for part in (_scores, _tasks, _costs, _ablations, _curves)]
    return [section for section in found if section.figures]


def by_tasks(evaluated: Sequence[Evaluated]) -> dict[tuple[str, ...], list[Evaluated]]:
    """Sort evaluations by their tasks, most tasks first: scores of others do not compare."""
    groups: dict[tuple[str, ...], list[Evaluated]] = {}
    for result in evaluated:
        groups.setdefault(tuple(sorted(result.tasks)), []).append(result)
    return dict(sorted(groups.items(), key=lambda group: -len(group[0])))


def _title(tasks: Sequence[str]) -> str:
    if set(tasks) == set(MT30.names):
        return "MT30"
    names = ", ".join(tasks) if len(tasks) <= 6 else f"{', '.join(tasks[:5])}, ..."
    return names if len(tasks) == 1 else f"{len(tasks)} tasks: {names}"


def _scores(results: ResultSet) -> Section:
    figures = []
    for number, (tasks, members) in enumerate(by_tasks(results.evaluated).items(), 1):
        members = sorted(members, key=lambda member: -member.score.mean)
        unit, names = members[0].unit, _labels(members)
        scores = {name: member.score for name, member in zip(names, members, strict=True)}
        rows = [
            [member.source.name, *_score_cells(member.score), _episodes(member), member.about]
            for member in members
        ]
        columns = ("agent", unit.name, "95% interval", "episodes a task", "what")
        title = _title(tasks)
        figures.append(
            _score_figure(f"scores-{number}", title, scores, Table(columns, rows), unit)
        )
    for number, (source, lines) in enumerate(results.demos, 1):
        lines = sorted(lines, key=lambda line: -line.score.mean)
        scores = {line.name: line.score for line in lines}
        rows = [
            [
                line.name,
                *_score_cells(line.score),
                f"{line.size_bytes:,.0f}" if line.size_bytes else "-",
            ]
            for line in lines
        ]
        table = Table(("agent", "score", "95% interval", "bytes"), rows)
        title = f"Demo ({source.name})"
        figures.append(_score_figure(f"demo-{number}", title, scores, table, NORMALIZED))
    text = (
        "Normalized score of MT30's tasks: mean episode return over 10, averaged over tasks; "
        "other tasks show their mean return. The line is the 95% interval of a bootstrap over "
        "episodes, with the tasks kept fixed; an agent of one episode a task has none. Scores "
        "of different tasks do not compare. Where the numbers of episodes differ, each agent "
        "shows its own: intervals of fewer episodes are wider, and tdmpc-opt compare pairs the "
        "common ones."
    )
    return Section("scores", "Scores", text, figures)


def _score_figure(
    name: str, title: str, scores: Mapping[str, Score], table: Table, unit: Unit
) -> Figure:
    best = max(scores, key=lambda agent: scores[agent].mean)
    summary = f"{len(scores)} agents; highest is {best} with {scores[best]}"
    return Figure(Chart(name, title, summary, score_chart(scores, unit)), table)


def _score_cells(score: Score) -> tuple[str, str]:
    interval = f"{score.ci95[0]:.2f} to {score.ci95[1]:.2f}" if score.ci95 else "-"
    return f"{score.mean:.2f}", interval


def _labels(members: Sequence[Evaluated]) -> list[str]:
    """Name agents by file, and by episodes a task where these are not all the same."""
    counts = [_episodes(member) for member in members]
    several = len(set(counts)) > 1
    return [
        f"{member.source.name} ({count} episode{'' if count == '1' else 's'} a task)"
        if several
        else member.source.name
        for member, count in zip(members, counts, strict=True)
    ]


def _episodes(result: Evaluated) -> str:
    counts = {len(values) for values in result.returns.values()}
    return " or ".join(str(count) for count in sorted(counts))


def _tasks(results: ResultSet) -> Section:
    figures: list[Figure] = []
    for tasks, members in by_tasks(results.evaluated).items():
        members = sorted(members, key=lambda member: -member.score.mean)
        for start in range(0, len(members), AGENTS):
            part = members[start : start + AGENTS]
            figures.append(_task_figure(f"tasks-{len(figures) + 1}", tasks, part))
    text = (
        "Each task's mean episode return, over 10 for the tasks of MT30, with the 95% "
        "interval of its episodes."
    )
    return Section("tasks", "Task by task", text, figures)


def _task_figure(name: str, tasks: Sequence[str], members: Sequence[Evaluated]) -> Figure:
    order = [task for task in MT30.names if task in tasks]
    order += [task for task in members[0].tasks if task not in order]
    unit, names = members[0].unit, _labels(members)
    scores = {
        name: {
            task: unit.shown(normalized_score({task: member.returns[task]})) for task in order
        }
        for name, member in zip(names, members, strict=True)
    }
    rows = [[task, *(str(found[task]) for found in scores.values())] for task in order]
    summary = f"Scores of {', '.join(names)} on each of {len(order)} tasks"
    chart = Chart(name, _title(tasks), summary, task_chart(scores, unit))
    return Figure(chart, Table(("task", *names), rows))


def _costs(results: ResultSet) -> Section:
    """Join sizes and latencies with scores by the checkpoint that both name."""
    sized: dict[str, list[Point]] = {}
    timed: dict[str, list[Point]] = {}
    for row in results.benched:
        for member in results.evaluated:
            if row.checkpoint.is_that_of(member.checkpoint):
                group, name = _title(member.tasks), f"{member.source.name}: {row.name}"
                for groups, cost in ((sized, row.size_bytes), (timed, row.latency_s)):
                    if cost is not None:
                        point = Point(name, cost, member.score.mean, member.unit)
                        groups.setdefault(group, []).append(point)
    for source, lines in results.demos:
        sized[f"Demo ({source.name})"] = [
            Point(line.name, line.size_bytes, line.score.mean)
            for line in lines
            if line.size_bytes is not None
        ]
    figures = [
        *_cost_figures("size", "bytes on disk", sized),
        *_cost_figures("latency", "median time of an action", timed),
    ]
    text = (
        "Who gives most for least: the line joins the agents that no other beats in both. "
        "Points are numbered by cost."
    )
    return Section("cost", "Score against size and latency", text, figures)


def _cost_figures(name: str, label: str, groups: Mapping[str, list[Point]]) -> list[Figure]:
    figures = []
    for number, (title, points) in enumerate(groups.items(), 1):
        front = pareto_front(points)
        rows = [
            [
                point.name,
                f"{point.cost:,.0f}" if name == "size" else f"{1000 * point.cost:.3f} ms",
                f"{point.score:.2f}",
                "yes" if point in front else "no",
            ]
            for point in sorted(points, key=lambda point: point.cost)
        ]
        summary = f"Score over {label} of {len(points)} agents, {len(front)} on the front"
        draw = cost_chart(points, label, "B" if name == "size" else "s", points[0].unit.name)
        chart = Chart(f"{name}-{number}", f"{title}: {label}", summary, draw)
        columns = ("agent", label, points[0].unit.name, "on the front")
        figures.append(Figure(chart, Table(columns, rows)))
    return figures


def _ablations(results: ResultSet) -> Section:
    figures: list[Figure] = []
    trained = [result.source.path for result in results.evaluated if result.trained]
    for paths in equal_budgets(trained):
        rows = ablation(paths)
        if len(rows) < 2:
            continue
        scores = {row.label: row.score for row in rows}
        cells = [[row.label, str(len(row.seeds)), *_score_cells(row.score)] for row in rows]
        unit = rows[0].unit
        table = Table(("run", "seeds", unit.name, "95% interval"), cells)
        name = f"ablation-{len(figures) + 1}"
        figures.append(_score_figure(name, f"{len(paths)} runs", scores, table, unit))
    text = (
        "Runs on the same data with as many updates and the same evaluation, named by what "
        "they differ in. Intervals resample training seeds and, within each, episodes."
    )
    return Section("ablation", "Ablation at equal budget", text, figures)


def _curves(results: ResultSet) -> Section:
    charts: dict[str, dict[str, list[Curve]]] = {}
    objectives = list(
        dict.fromkeys(each.objective for each in results.curves if each.objective)
    )
    for curve in results.curves:
        panels = charts.setdefault(curve.chart, {})
        panel = curve.panel
        if curve.objective and len(objectives) > 1:
            panel += f", objective {objectives.index(curve.objective) + 1}"
        same = [name for name in panels if re.sub(r" \(\d+\)$", "", name) == panel]
        if same and len(panels[same[-1]]) < AGENTS:
            panels[same[-1]].append(curve)
        else:  # a further panel, for more curves cannot be distinguished
            panels[panel + (f" ({len(same) + 1})" if same else "")] = [curve]
    figures = []
    for title, panels in charts.items():
        rows = [
            [name, curve.name, f"{curve.points[-1][0]:g}", f"{curve.points[-1][1]:.4g}"]
            for name, curves in panels.items()
            for curve in curves
        ]
        table = Table(("panel", "run", "last step", "last value"), rows)
        summary = f"{len(rows)} curves: {', '.join(panels)}"
        chart = Chart(f"curves-{title.lower()}", title, summary, curve_chart(panels))
        figures.append(Figure(chart, table))
    listed = "; ".join(f"{number}: {each}" for number, each in enumerate(objectives, 1))
    text = (
        "Losses of different objectives do not compare and have panels of their own. "
        f"Objectives by their weights: {listed}."
    )
    return Section("curves", "Learning curves", text if len(objectives) > 1 else "", figures)


_PHONE = 3.5  # inches


@dataclass(frozen=True, slots=True)
class ReportSummary:
    """What was written."""

    path: Path
    size_bytes: int
    files: int
    """Result files that are in it."""
    figures: tuple[Path, ...]
    """Pictures that were written beside it."""
    skipped: tuple[tuple[Path, str], ...]
    """Files that are not in it, and why."""


def write_report(config: ReportConfig) -> ReportSummary:
    """Write the page, and the pictures if asked for, out of result files alone.

    Raises:
        ResultError: A file that cannot be read or is damaged, none that has something to
            show, or an output that cannot be written.
    """
    refuse_overwrite(config)
    results = read_result_files(config.results)
    parts = sections(results)
    if not parts:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in results.skipped)
        raise ResultError(
            f"nothing to report ({reasons or 'no file has scores or curves'}); name result "
            "files such as tdmpc-opt evaluate writes"
        )
    environment = Environment(
        loader=PackageLoader("tdmpc_opt.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "inline": _inline,
        "facts": partial(json.dumps, indent=1, ensure_ascii=False),
    }
    html = environment.get_template("report.html").render(
        title="tdmpc-opt report",
        sections=parts,
        sources=results.sources,
        skipped=[(path.name, reason) for path, reason in results.skipped],
        light=css_variables(dark=False),
        dark=css_variables(dark=True),
        version=tdmpc_opt.__version__,
        machines=sorted({_machine(source) for source in results.sources} - {""}),
    )
    with written(config.output, ResultError) as temporary:
        temporary.write_text(html, encoding="utf-8")
    pictures: list[Path] = []
    if config.figures is not None:
        charts = [figure.chart for section in parts for figure in section.figures]
        for chart, kind in product(charts, ("png", "svg")):
            pictures.append(config.figures / f"{chart.name}.{kind}")
            save_picture(chart.draw, pictures[-1], kind=kind)
    return ReportSummary(
        path=config.output,
        size_bytes=config.output.stat().st_size,
        files=len(results.sources),
        figures=tuple(pictures),
        skipped=tuple(results.skipped),
    )


def _inline(chart: Chart) -> Markup:
    """Return a chart as two SVGs for the page, of which CSS shows the one that fits."""
    parts = []
    for kind, width in (("broad", BROAD), ("narrow", _PHONE)):
        file = io.StringIO()
        with rc_context(RC):
            chart.draw(width).savefig(file, format="svg", metadata={"Date": None})
        svg = file.getvalue()
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        # All charts share one document, in which an id may stand but once.
        svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{chart.name}-{kind}-", svg)
        svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1">', svg, count=1)
        label = Markup.escape(f"{chart.title}. {chart.summary}")
        opening = f'<svg class="{kind}" role="img" aria-label="{label}" '
        parts.append(themed(svg.replace("<svg ", opening, 1)))
    return Markup("".join(parts))


def _machine(source: Source) -> str:
    """Return the machine and the version that a result comes from, if it states them."""
    machine, versions = source.facts.get("machine", {}), source.facts.get("versions", {})
    if not machine:
        return ""
    place = f"{machine.get('processor')}, {machine.get('cores')} cores, {machine.get('system')}"
    return f"{place}; tdmpc-opt {versions.get('tdmpc_opt', 'of unknown version')}"
