"""Commands about what planning costs."""

from typing import Any

from tdmpc_opt import configs
from tdmpc_opt.cli.command import Command
from tdmpc_opt.cli.output import console, table_of
from tdmpc_opt.progress import ConsoleProgress


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


def _shown(budget: dict[str, Any]) -> str:
    sampled = budget["samples"] - budget["policy_samples"]
    return (
        f"{budget['iterations']} x ({sampled} + {budget['policy_samples']} of the policy), "
        f"horizon {budget['horizon']}, {budget['elites']} elites"
    )


def _interval(ci95: tuple[float, float] | None) -> str:
    return f"[{ci95[0]:.1f}, {ci95[1]:.1f}]" if ci95 else "-"


COMMANDS = (Command("tune-planner", configs.TuneConfig, _tune),)
