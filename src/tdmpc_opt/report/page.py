"""The report: one HTML file that opens from disk, and its charts as pictures for papers."""

import io
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context

import tdmpc_opt
from tdmpc_opt.configs.measure import ReportConfig
from tdmpc_opt.errors import ResultError
from tdmpc_opt.evaluation.compare import ablation, equal_budgets
from tdmpc_opt.evaluation.results import refuse_damaged
from tdmpc_opt.evaluation.score import NORMALIZED, Score, Unit, normalized_score
from tdmpc_opt.files import refuse_overwrite, written
from tdmpc_opt.report.charts import (
    AGENTS,
    BROAD,
    RC,
    Draw,
    bar_chart,
    cost_chart,
    css_variables,
    curve_chart,
    pareto_front,
    save_picture,
    themed,
)
from tdmpc_opt.report.read import Agent, Curve, Evaluated, ResultSet, Source, read_result_files
from tdmpc_opt.schema import MT30


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, its summary for readers who do not see it, and the same in numbers."""

    title: str
    summary: str
    draw: Draw
    columns: Sequence[str]
    """The first column is of text, the others of numbers."""
    rows: Sequence[Sequence[str]]


def sections(results: ResultSet) -> dict[str, list[Chart]]:
    """Return the charts of each section for which there are results; the page has their titles.

    Raises:
        ResultError: Values that cannot be shown, such as a curve without a point.
    """
    names = ", ".join(source.name for source in results.sources)
    with refuse_damaged(f"{names}: cannot be shown"):
        found = {
            "scores": [*_scores(results)],
            "tasks": [*_tasks(results.evaluated)],
            "costs": [*_costs(results)],
            "ablation": [*_ablations(results.evaluated)],
            "curves": [*_curves(results)],
        }
    return {name: charts for name, charts in found.items() if charts}


def _by_tasks(evaluated: Sequence[Evaluated]) -> list[tuple[str, list[Evaluated]]]:
    """Return the evaluations of the same tasks, the best first, with a title for their tasks.

    Those of most tasks come first; scores of different tasks do not compare.
    """
    groups: dict[tuple[str, ...], list[Evaluated]] = {}
    for result in evaluated:
        groups.setdefault(tuple(sorted(result.returns)), []).append(result)
    return [
        (_title(tasks), sorted(groups[tasks], key=lambda member: -member.score.mean))
        for tasks in sorted(groups, key=len, reverse=True)
    ]


def _title(tasks: Collection[str]) -> str:
    if set(tasks) == set(MT30.names):
        return "MT30"
    names = [*tasks] if len(tasks) <= 6 else [*[*tasks][:5], "..."]
    return ", ".join(names) if len(tasks) == 1 else f"{len(tasks)} tasks: {', '.join(names)}"


def _scores(results: ResultSet) -> Iterator[Chart]:
    rows: list[_ScoreRow]
    for title, members in _by_tasks(results.evaluated):
        rows = [
            (label, member.score, (_episodes(member), member.about))
            for label, member in zip(_labels(members), members, strict=True)
        ]
        yield _score_chart(title, members[0].unit, ("agent", "episodes a task", "what"), rows)
    for name, lines in results.demos.items():
        lines = sorted(lines, key=lambda line: -line.score.mean)
        rows = [
            (line.name, line.score, (f"{line.cost:,.0f}" if line.cost else "-",))
            for line in lines
        ]
        yield _score_chart(f"Demo ({name})", NORMALIZED, ("agent", "bytes"), rows)


_ScoreRow = tuple[str, Score, Sequence[str]]
"""Name, score and further cells."""


def _score_chart(
    title: str, unit: Unit, columns: Sequence[str], rows: Sequence[_ScoreRow]
) -> Chart:
    """Return a chart of scores by name."""
    name, best, _ = max(rows, key=lambda row: row[1].mean)
    cells = [
        (
            *(name, f"{score.mean:.2f}"),
            f"{score.ci95[0]:.2f} to {score.ci95[1]:.2f}" if score.ci95 else "-",
            *further,
        )
        for name, score, further in rows
    ]
    return Chart(
        title,
        f"{len(rows)} agents; highest is {name} with {best}",
        bar_chart({name: [score] for name, score, _ in rows}, unit),
        (columns[0], unit.name, "95% interval", *columns[1:]),
        cells,
    )


def _labels(members: Sequence[Evaluated]) -> list[str]:
    """Name agents by file, and by episodes a task and starts where these are not the same."""
    facts = [(_episodes(member), f"starts from {_first_seed(member):,}") for member in members]
    counts, starts = (len(set(column)) > 1 for column in zip(*facts, strict=True))
    names = []
    for member, (count, start) in zip(members, facts, strict=True):
        plural = "" if count == "1" else "s"
        notes = [f"{count} episode{plural} a task"] * counts + [start] * starts
        names.append(member.source.name + (f" ({', '.join(notes)})" if notes else ""))
    return names


def _first_seed(result: Evaluated) -> int:
    return int(result.source.facts["config"].get("seed", 0))


def _episodes(result: Evaluated) -> str:
    counts = {len(values) for values in result.returns.values()}
    return " or ".join(str(count) for count in sorted(counts))


def _tasks(evaluated: Sequence[Evaluated]) -> Iterator[Chart]:
    for title, members in _by_tasks(evaluated):
        for start in range(0, len(members), AGENTS):
            part = members[start : start + AGENTS]
            unit, labels, known = part[0].unit, _labels(part), part[0].returns
            order = [task for task in MT30.names if task in known]
            order += [task for task in known if task not in order]
            scores = {
                task: [unit.shown(normalized_score({task: own.returns[task]})) for own in part]
                for task in order
            }
            rows = [[task, *map(str, found)] for task, found in scores.items()]
            summary = f"Scores of {', '.join(labels)} on each of {len(order)} tasks"
            draw = bar_chart(scores, unit, labels)
            yield Chart(title, summary, draw, ("task", *labels), rows)


def _costs(results: ResultSet) -> Iterator[Chart]:
    """Join sizes and latencies with scores by the checkpoint that both name."""
    sized: dict[tuple[str, Unit], list[Agent]] = {}
    timed: dict[tuple[str, Unit], list[Agent]] = {}
    for row, member in product(results.benched, results.evaluated):
        if row.checkpoint.is_that_of(member.checkpoint):
            group = (_title(member.returns), member.unit)
            for groups, cost in ((sized, row.size_bytes), (timed, row.latency_s)):
                if cost is not None:
                    agent = Agent(f"{member.source.name}: {row.name}", member.score, cost)
                    groups.setdefault(group, []).append(agent)
    for name, lines in results.demos.items():
        sized[f"Demo ({name})", NORMALIZED] = [line for line in lines if line.cost]
    for (title, unit), agents in sized.items():
        yield _cost_chart(title, "bytes on disk", "B", unit, agents)
    for (title, unit), agents in timed.items():
        yield _cost_chart(title, "median time of an action", "s", unit, agents)


def _cost_chart(
    title: str, label: str, symbol: str, unit: Unit, agents: Sequence[Agent]
) -> Chart:
    front = pareto_front(agents)
    rows = [
        (
            agent.name,
            f"{agent.cost:,.0f}" if symbol == "B" else f"{1000 * agent.cost:.3f} ms",
            f"{agent.score.mean:.2f}",
            "yes" if agent in front else "no",
        )
        for agent in sorted(agents, key=lambda agent: agent.cost)
    ]
    return Chart(
        f"{title}: {label}",
        f"Score over {label} of {len(agents)} agents, {len(front)} on the front",
        cost_chart(agents, label, symbol, unit.name),
        ("agent", label, unit.name, "on the front"),
        rows,
    )


def _ablations(evaluated: Sequence[Evaluated]) -> Iterator[Chart]:
    for paths in equal_budgets([each.source.path for each in evaluated if each.trained]):
        found = ablation(paths)
        if len(found) > 1:
            rows = [(row.label, row.score, (str(len(row.seeds)),)) for row in found]
            title = f"{len(paths)} runs"
            yield _score_chart(title, found[0].unit, ("run", "seeds"), rows)


def _objectives(results: ResultSet) -> list[str]:
    """Return the objectives of the losses, each once."""
    return list(dict.fromkeys(each.objective for each in results.curves if each.objective))


def _curves(results: ResultSet) -> Iterator[Chart]:
    charts: dict[str, dict[str, list[Curve]]] = {}
    objectives = _objectives(results)
    for curve in results.curves:
        panels, panel = charts.setdefault(curve.chart, {}), curve.panel
        if curve.objective and len(objectives) > 1:
            panel += f", objective {objectives.index(curve.objective) + 1}"
        number, name = 1, panel
        while len(panels.setdefault(name, [])) == AGENTS:  # more could not be distinguished
            number, name = number + 1, f"{panel} ({number + 1})"
        panels[name].append(curve)
    for title, panels in charts.items():
        rows = [
            (name, curve.name, f"{curve.points[-1][0]:g}", f"{curve.points[-1][1]:.4g}")
            for name, curves in panels.items()
            for curve in curves
        ]
        summary = f"{len(rows)} curves: {', '.join(panels)}"
        columns = ("panel", "run", "last step", "last value")
        yield Chart(title, summary, curve_chart(panels), columns, rows)


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
    refuse_overwrite(config, ".html")
    results = read_result_files(config.results)
    charts = sections(results)
    if not charts:
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
        charts=charts,
        objectives=_objectives(results),
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
        for name, found in charts.items():
            for (number, chart), kind in product(enumerate(found, 1), ("png", "svg")):
                pictures.append(config.figures / f"{name}-{number}.{kind}")
                save_picture(chart.draw, pictures[-1], kind=kind)
    return ReportSummary(
        path=config.output,
        size_bytes=config.output.stat().st_size,
        files=len(results.sources),
        figures=tuple(pictures),
        skipped=tuple(results.skipped),
    )


def _inline(chart: Chart, name: str) -> Markup:
    """Return a chart as two SVGs for the page, of which CSS shows the one that fits.

    The name of the chart makes the ids in it unique on the page.
    """
    parts = []
    for kind, width in (("broad", BROAD), ("narrow", _PHONE)):
        file = io.StringIO()
        with rc_context(RC):
            chart.draw(width).savefig(file, format="svg", metadata={"Date": None})
        svg = file.getvalue()
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-{kind}-", svg)
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
