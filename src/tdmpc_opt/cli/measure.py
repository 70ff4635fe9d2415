"""Commands that measure agents, and compare and show what was measured."""

from typing import Any

from tdmpc_opt import configs
from tdmpc_opt.cli.command import Command
from tdmpc_opt.cli.output import ConsoleProgress, console, table_of
from tdmpc_opt.files import refuse_overwrite


def _evaluate(config: configs.EvaluateConfig) -> None:
    from tdmpc_opt.agents.sources import CheckpointSource, open_source
    from tdmpc_opt.evaluation.evaluate import evaluate
    from tdmpc_opt.evaluation.score import (
        MEAN_RETURN,
        NORMALIZED,
        normalized_score,
        stored_score,
        unit_of,
    )
    from tdmpc_opt.export.engine import engine_choice

    full = config.chosen_mode == "planner" and config.preset in (None, "full", "published")
    if full and isinstance(open_source(config.checkpoint), CheckpointSource):
        console().print(
            f"plans with the preset {config.preset or 'full'}, some tenths of a second an "
            "action on a CPU core; --preset realtime and --mode policy are faster"
        )
    with ConsoleProgress("evaluate") as progress:
        content = evaluate(config, progress, engine_choice(config.engine))
    unit = unit_of(content["tasks"])
    points = ("score",) if unit is NORMALIZED else ()
    columns = ("task", *points, "mean return", "95% CI", "episodes")
    table = table_of(str(config.output), *columns)
    for name, record in content["tasks"].items():
        returns = MEAN_RETURN.shown(normalized_score({name: record["returns"]}))
        cells = [f"{record['score']:.2f}"] if points else []
        cells += [f"{returns.mean:.1f}", _interval(returns.ci95), str(len(record["returns"]))]
        table.add_row(name, *cells)
    score = unit.shown(stored_score(content["score"]))
    terminal = console()
    terminal.print(table)
    single = "" if score.ci95 else " (one episode: no CI)"
    terminal.print(f"{unit.name} {score}{single}")


def _compare(config: configs.CompareConfig) -> None:
    from tdmpc_opt.evaluation.compare import compare
    from tdmpc_opt.evaluation.score import NORMALIZED

    first, second = config.results
    result = compare(first, second)
    measure = "points" if result.unit is NORMALIZED else "in return"
    table = table_of(f"{second.name} - {first.name}", "task", measure)
    for name, points in result.per_task.items():
        table.add_row(name, f"{points:+.2f}")
    terminal = console()
    terminal.print(table)
    terminal.print(
        f"paired difference {result.difference} {measure} over {result.episodes} episodes"
    )


def _ablation(config: configs.AblationConfig) -> None:
    from tdmpc_opt.evaluation.compare import ablation
    from tdmpc_opt.report.charts import save_picture, score_chart

    refuse_overwrite(config)
    rows = ablation(config.results)
    unit = rows[0].unit
    table = table_of("Ablation at equal budget", "run", "seeds", unit.name, "95% CI")
    for row in rows:
        interval = row.score.ci95
        shown = f"[{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "-"
        table.add_row(row.label, str(len(row.seeds)), f"{row.score.mean:.2f}", shown)
    terminal = console()
    terminal.print(table)
    if config.plot is not None:
        chart = score_chart({row.label: row.score for row in rows}, unit)
        save_picture(chart, config.plot)
        terminal.print(f"plot: {config.plot}")


def _tune(config: configs.TuneConfig) -> None:
    from tdmpc_opt.evaluation.score import stored_score, unit_of
    from tdmpc_opt.evaluation.tune import tune
    from tdmpc_opt.export.engine import engine_choice
    from tdmpc_opt.report.charts import plot_front

    with ConsoleProgress("tune-planner") as progress:
        content = tune(config, progress, engine_choice(config.engine))
    unit = unit_of(content["config"]["tasks"])
    columns = ("budget", "ms", "Hz", unit.name, "95% CI", "preset")
    table = table_of("Pareto front", *columns)
    names: dict[str, list[str]] = {}
    for name, preset in content["presets"].items():
        names.setdefault(str(preset["budget"]), []).append(name)
    for trial in content["trials"]:
        chosen = ", ".join(names.get(str(trial["budget"]), []))
        if trial["on_front"] or chosen:
            ms, score = trial["latency_ms"], unit.shown(stored_score(trial["score"]))
            table.add_row(
                _shown(trial["budget"]),
                f"{ms:.1f}",
                f"{1000 / ms:.0f}",
                f"{score.mean:.1f}",
                _interval(score.ci95),
                chosen,
            )
    terminal = console()
    terminal.print(table)
    if content["full"]:
        full = unit.shown(stored_score(content["full"]))
        line = f"preset full: {unit.name} {full.mean:.1f} {_interval(full.ci95)}"
        terminal.print(line)
    plot_front(content, config.output / "front.png")
    terminal.print(f"plot: {config.output / 'front.png'}")
    if config.store is not None:
        terminal.print(f"presets are stored in {config.store}")


def _bench(config: configs.BenchConfig) -> None:
    from tdmpc_opt.evaluation.bench import bench

    with ConsoleProgress("bench") as progress:
        content = bench(config, progress)
    terminal = console()
    for batch in config.batch:
        table = table_of(
            *(f"Batch {batch}", "policy", "p50 ms", "p95", "p99", "jitter", "Hz"),
            *("peak MB", "speedup", "by CPU"),
        )
        for record in content["candidates"]:
            times = record["batches"].get(str(batch))
            table.add_row(record["name"], *(_times(times) if times else ["cannot"]))
        terminal.print(table)
    facts = content["config"]
    terminal.print(
        f"{facts['task']}; {facts['observations']}; {facts['threads']} thread(s); speedup "
        f"against {content['reference']}, in turns; jitter is the standard deviation"
    )
    if config.output is not None:
        terminal.print(f"wrote {config.output}")


def _times(times: dict[str, Any]) -> list[str]:
    latencies = [times[name] for name in ("p50_ms", "p95_ms", "p99_ms", "jitter_ms")]
    peak = times["peak_rss_bytes"]
    ratios = [times[name] for name in ("speedup", "speedup_cpu")]
    return [
        *(_number(latency) for latency in latencies),
        _number(times["hz"]),
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


def _interval(ci95: tuple[float, float] | None) -> str:
    return f"[{ci95[0]:.1f}, {ci95[1]:.1f}]" if ci95 else "-"


def _report(config: configs.ReportConfig) -> None:
    from tdmpc_opt.report.page import write_report

    summary = write_report(config)
    terminal = console()
    reasons: dict[str, list[str]] = {}
    for path, reason in summary.skipped:
        reasons.setdefault(reason, []).append(str(path))
    for reason, paths in reasons.items():
        terminal.print(f"left out {', '.join(paths)}: {reason}")
    size = f"{summary.size_bytes / 1000:,.0f} kB"
    terminal.print(
        f"wrote {summary.path}: {summary.files} result files, {size}", highlight=False
    )
    if config.figures is not None:
        terminal.print(f"wrote {len(summary.figures)} pictures to {config.figures}")


def _video(config: configs.VideoConfig) -> None:
    from tdmpc_opt.report.film import video

    with ConsoleProgress("video") as progress:
        written = video(config, progress)
    for path in written:
        console().print(f"wrote {path}: {path.stat().st_size / 1000:,.0f} kB")


COMMANDS = (
    Command(
        "evaluate",
        _evaluate,
        "student.safetensors --mode policy --output score.json",
        ("output", "mode", "preset", "tasks", "episodes"),
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
    ),
    Command("report", _report, "results/*.json --output report.html"),
    Command(
        "video",
        _video,
        "mt30-1m --tasks walker-walk --output walk.mp4",
        ("output", "sheet", "mode", "tasks", "against"),
    ),
)
