"""Commands about what acting costs."""

from typing import Any

from tdmpc_opt import configs
from tdmpc_opt.cli.command import Command
from tdmpc_opt.cli.output import ConsoleProgress, console, table_of


def _tune(config: configs.TuneConfig) -> None:
    from tdmpc_opt.report.plots import plot_front
    from tdmpc_opt.tuning.search import tune

    with ConsoleProgress("tune-planner") as progress:
        content = tune(config, progress)
    table = table_of("Pareto front", "budget", "ms", "Hz", "score", "95% CI", "preset")
    names: dict[str, list[str]] = {}
    for name, preset in content["presets"].items():
        names.setdefault(str(preset["budget"]), []).append(name)
    for trial in content["trials"]:
        chosen = ", ".join(names.get(str(trial["budget"]), []))
        if trial["on_front"] or chosen:
            ms, score = trial["latency_ms"], trial["score"]
            table.add_row(
                _shown(trial["budget"]),
                f"{ms:.1f}",
                f"{1000 / ms:.0f}",
                f"{score['mean']:.1f}",
                _interval(score["ci95"]),
                chosen,
            )
    terminal = console()
    terminal.print(table)
    if content["full"]:
        full = content["full"]
        line = f"full budget: score {full['mean']:.1f} {_interval(full['ci95'])}"
        terminal.print(line, highlight=False, markup=False)
    plot_front(content, config.output / "front.png")
    terminal.print(f"plot: {config.output / 'front.png'}")
    if config.store is not None:
        terminal.print(f"presets are stored in {config.store}")


def _bench(config: configs.BenchConfig) -> None:
    from tdmpc_opt.bench.measure import bench

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
        f"against {content['reference']}, in turns; jitter is the standard deviation",
        highlight=False,
        markup=False,
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


COMMANDS = (
    Command("bench", configs.BenchConfig, _bench),
    Command("tune-planner", configs.TuneConfig, _tune),
)
