"""Commands that measure agents, and compare and show what was measured."""

from typing import Any

from tdmpc_opt.cli.command import Command
from tdmpc_opt.cli.output import Terminal, table
from tdmpc_opt.configs.measure import (
    AblationConfig,
    BenchConfig,
    CompareConfig,
    EvaluateConfig,
    ReportConfig,
    TuneConfig,
    VideoConfig,
)
from tdmpc_opt.errors import counted
from tdmpc_opt.files import refuse_overwrite


def _evaluate(config: EvaluateConfig, terminal: Terminal) -> None:
    from tdmpc_opt.agents.sources import CheckpointSource, open_source
    from tdmpc_opt.evaluation import score
    from tdmpc_opt.evaluation.evaluate import evaluate
    from tdmpc_opt.export.engine import engine_choice

    full = config.chosen_mode == "planner" and config.preset in (None, "full", "published")
    source = open_source(config.checkpoint, names=config.tasks)
    if full and isinstance(source, CheckpointSource) and source.plans():
        terminal.print(
            f"plans with the preset {config.preset or 'full'}, some tenths of a second an "
            "action on a CPU core; --preset realtime and --mode policy are faster"
        )
    content = evaluate(config, terminal, engine_choice(config.engine))
    unit = score.unit_of(content["tasks"])
    points = ("score",) if unit is score.NORMALIZED else ()
    rows = []
    for name, record in content["tasks"].items():
        found = score.normalized_score({name: record["returns"]})
        returns = score.MEAN_RETURN.shown(found)
        cells = [f"{record['score']:.2f}"] if points else []
        cells += [f"{returns.mean:.1f}", _interval(returns.ci95)]
        rows.append((name, *cells, len(record["returns"])))
    columns = ("task", *points, "mean return", "95% CI", "episodes")
    whole = unit.shown(score.stored_score(content["score"]))
    single = "" if whole.ci95 else " (one episode: no CI)"
    terminal.print(table(str(config.output), columns, rows), f"{unit.name} {whole}{single}")


def _compare(config: CompareConfig, terminal: Terminal) -> None:
    from tdmpc_opt.evaluation.compare import compare
    from tdmpc_opt.evaluation.score import NORMALIZED

    first, second = config.results
    result = compare(first, second, config.random)
    measure = "points" if result.unit is NORMALIZED else "in return"
    columns = ["task", measure]
    rows = [[name, f"{points:+.2f}"] for name, points in result.per_task.items()]
    lines = [f"paired difference {result.difference} {measure} over {result.episodes} episodes"]
    if result.shares and config.random:
        columns.append("% of A")
        for row in rows:
            row.append(f"{result.shares[row[0]]:.1f}")
        lines.append(
            f"{second.name} has {result.share}% of {first.name}, mean over tasks, where random "
            f"actions ({config.random.name}) have 0% in each task"
        )
    terminal.print(table(f"{second.name} - {first.name}", columns, rows), *lines)


def _ablation(config: AblationConfig, terminal: Terminal) -> None:
    from tdmpc_opt.evaluation.compare import ablation
    from tdmpc_opt.report.charts import bar_chart, save_picture

    refuse_overwrite(config)
    found = ablation(config.results)
    unit = found[0].unit
    rows = [
        (row.label, len(row.seeds), f"{row.score.mean:.2f}", _interval(row.score.ci95, 2))
        for row in found
    ]
    columns = ("run", "seeds", unit.name, "95% CI")
    terminal.print(table("Ablation at equal budget", columns, rows))
    if config.plot is not None:
        save_picture(bar_chart({row.label: [row.score] for row in found}, unit), config.plot)
        terminal.print(f"plot: {config.plot}")


def _tune(config: TuneConfig, terminal: Terminal) -> None:
    from tdmpc_opt.evaluation.score import stored_score, unit_of
    from tdmpc_opt.evaluation.tune import tune
    from tdmpc_opt.export.engine import engine_choice
    from tdmpc_opt.report.charts import plot_front

    content = tune(config, terminal, engine_choice(config.engine))
    unit = unit_of(content["config"]["tasks"])
    rows = []
    for trial in content["trials"]:
        budget, presets = trial["budget"], content["presets"].items()
        chosen = ", ".join(name for name, preset in presets if preset["budget"] == budget)
        if trial["on_front"] or chosen:
            ms, score = trial["latency_ms"], unit.shown(stored_score(trial["score"]))
            cells = (f"{ms:.1f}", f"{1000 / ms:.0f}", f"{score.mean:.1f}")
            rows.append((_shown(budget), *cells, _interval(score.ci95), chosen))
    columns = ("budget", "ms", "Hz", unit.name, "95% CI", "preset")
    terminal.print(table("Pareto front", columns, rows))
    if content["full"]:
        full = unit.shown(stored_score(content["full"]))
        terminal.print(f"preset full: {unit.name} {full.mean:.1f} {_interval(full.ci95)}")
    plot_front(content, config.output / "front.png")
    terminal.print(f"plot: {config.output / 'front.png'}")
    if config.store is not None:
        terminal.print(f"presets are stored in {config.store}")


def _bench(config: BenchConfig, terminal: Terminal) -> None:
    from tdmpc_opt.evaluation.bench import bench

    content = bench(config, terminal)
    columns = ("policy", "p50 ms", "p95", "p99", "jitter", "Hz", "peak MB", "speedup", "by CPU")
    for batch in config.batch:
        rows = []
        for record in content["candidates"]:
            times = record["batches"].get(str(batch))
            rows.append((record["name"], *(_times(times) if times else ["cannot"])))
        terminal.print(table(f"Batch {batch}", columns, rows))
    facts = content["config"]
    terminal.print(
        f"{facts['task']}; {facts['observations']}; {facts['threads']} thread(s); speedup "
        f"against {content['reference']}, in turns; jitter is the standard deviation"
    )
    if config.output is not None:
        terminal.print(f"wrote {config.output}")


def _times(times: dict[str, Any]) -> list[str]:
    measured = ("p50_ms", "p95_ms", "p99_ms", "jitter_ms", "hz")
    peak = times["peak_rss_bytes"]
    ratios = (times["speedup"], times["speedup_cpu"])
    return [
        *(_number(times[name]) for name in measured),
        f"{peak / 1e6:.0f}" if peak else "-",
        *(f"{_number(ratio)}x" if ratio else "-" for ratio in ratios),
    ]


def _number(value: float) -> str:
    """Show three digits, all of them before the point for large numbers."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _shown(budget: dict[str, Any]) -> str:
    sampled = budget["samples"] - budget["policy_samples"]
    return (
        f"{budget['iterations']} x ({sampled} + {budget['policy_samples']} of the policy), "
        f"horizon {budget['horizon']}, {budget['elites']} elites"
    )


def _interval(ci95: tuple[float, float] | None, digits: int = 1) -> str:
    return f"[{ci95[0]:.{digits}f}, {ci95[1]:.{digits}f}]" if ci95 else "-"


def _report(config: ReportConfig, terminal: Terminal) -> None:
    from tdmpc_opt.report.page import write_report

    summary = write_report(config)
    reasons: dict[str, list[str]] = {}
    for path, reason in summary.skipped:
        reasons.setdefault(reason, []).append(str(path))
    for reason, paths in reasons.items():
        terminal.print(f"left out {', '.join(paths)}: {reason}")
    size = f"{summary.size_bytes / 1000:,.0f} kB"
    files = counted(summary.files, "result file")
    terminal.print(f"wrote {summary.path}: {files}, {size}")
    if config.figures is not None:
        terminal.print(f"wrote {len(summary.figures)} pictures to {config.figures}")


def _video(config: VideoConfig, terminal: Terminal) -> None:
    from tdmpc_opt.report.film import video

    for path in video(config, terminal):
        terminal.print(f"wrote {path}: {path.stat().st_size / 1000:,.0f} kB")


COMMANDS = (
    Command(
        "evaluate",
        _evaluate,
        "student.safetensors --mode policy --output score.json",
        ("output", "mode", "preset", "tasks", "episodes"),
        resumes=True,
    ),
    Command("compare", _compare, "before.json after.json"),
    Command("ablation", _ablation, "a.json b.json --plot scores.png"),
    Command(
        "bench",
        _bench,
        "mt30-1m policy.onnx --preset realtime policy --output bench.json",
        ("output", "preset", "task", "batch"),
    ),
    Command(
        "tune-planner",
        _tune,
        "student.safetensors --tasks walker-walk --output tuning --store tuned.safetensors",
        ("output", "tasks", "episodes", "trials", "store"),
        resumes=True,
    ),
    Command("report", _report, "results/*.json --output report.html"),
    Command(
        "video",
        _video,
        "mt30-1m --tasks walker-walk --output walk.mp4",
        ("output", "sheet", "mode", "tasks", "against"),
    ),
)
