"""The report: one HTML file that opens from disk, and its charts as pictures for papers."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context

import tdmpc_opt
from tdmpc_opt.configs import ReportConfig
from tdmpc_opt.errors import ResultError
from tdmpc_opt.files import replace_when_done
from tdmpc_opt.report.charts import Chart
from tdmpc_opt.report.read import ResultSet, Source, read_result_files
from tdmpc_opt.report.sections import sections
from tdmpc_opt.report.style import PAPER, RC, css_variables, themed

_BROAD = 7.2  # inches: a page of paper, and the column of text on a desk
_PHONE = 3.5
_DPI = 200


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
    results = read_result_files(config.results)
    parts = sections(results)
    if not parts:
        told = "; ".join(f"{path}: {reason}" for path, reason in results.skipped)
        raise ResultError(
            f"nothing to report ({told or 'no file has scores or curves'}); name result files "
            "such as tdmpc-opt evaluate writes"
        )
    environment = Environment(
        loader=PackageLoader("tdmpc_opt.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"inline": _inline, "facts": _facts}
    html = environment.get_template("report.html").render(
        title="tdmpc-opt report",
        sections=parts,
        sources=results.sources,
        skipped=[(path.name, reason) for path, reason in results.skipped],
        light=css_variables(dark=False),
        dark=css_variables(dark=True),
        version=tdmpc_opt.__version__,
        machines=_machines(results),
    )
    charts = [figure.chart for section in parts for figure in section.figures]
    try:
        with replace_when_done(config.output) as temporary:
            temporary.write_text(html, encoding="utf-8")
        figures = _pictures(charts, config.figures) if config.figures else ()
    except OSError as error:
        raise ResultError(f"cannot write {error.filename}: {error.strerror}") from error
    return ReportSummary(
        path=config.output,
        size_bytes=config.output.stat().st_size,
        files=len(results.sources),
        figures=figures,
        skipped=tuple(results.skipped),
    )


def _svg(chart: Chart, width: float) -> str:
    with rc_context(RC):
        file = io.StringIO()
        figure = chart.draw(width)
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _inline(chart: Chart) -> Markup:
    """Return a chart as two SVGs for the page, of which CSS shows the one that fits."""
    parts = []
    for kind, width in (("broad", _BROAD), ("narrow", _PHONE)):
        svg = _svg(chart, width)
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        # All charts share one document, in which an id may stand but once.
        svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{chart.name}-{kind}-", svg)
        svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1">', svg, count=1)
        label = Markup.escape(f"{chart.title}. {chart.summary}")
        opening = f'<svg class="{kind}" role="img" aria-label="{label}" '
        parts.append(themed(svg.replace("<svg ", opening, 1)))
    return Markup("".join(parts))


def _facts(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=1, ensure_ascii=False)


def _machines(results: ResultSet) -> list[str]:
    """Return each machine and package version that results come from, once."""
    return sorted({_machine(source) for source in results.sources} - {""})


def _machine(source: Source) -> str:
    machine, versions = source.facts.get("machine", {}), source.facts.get("versions", {})
    if not machine:
        return ""
    place = f"{machine.get('processor')}, {machine.get('cores')} cores, {machine.get('system')}"
    return f"{place}; tdmpc-opt {versions.get('tdmpc_opt', 'of unknown version')}"


def _pictures(charts: Sequence[Chart], folder: Path) -> tuple[Path, ...]:
    """Write each chart as PNG and SVG with a white background."""
    written = []
    for chart in charts:
        for kind in ("png", "svg"):
            path = folder / f"{chart.name}.{kind}"
            date: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {}
            with rc_context(RC), replace_when_done(path) as temporary:
                figure = chart.draw(_BROAD)
                figure.savefig(temporary, format=kind, dpi=_DPI, facecolor=PAPER, **date)
            written.append(path)
    return tuple(written)
