"""Commands that measure agents and compare what was measured."""

from tdmpc_opt import configs
from tdmpc_opt.cli.command import Command
from tdmpc_opt.cli.output import ConsoleProgress, console, table_of


def _evaluate(config: configs.EvaluateConfig) -> None:
    from tdmpc_opt.agents.sources import CheckpointSource, open_source
    from tdmpc_opt.evaluation.evaluate import evaluate
    from tdmpc_opt.export.engine import engine_choice

    full = config.chosen_mode == "planner" and config.preset in (None, "full")
    if full and isinstance(open_source(config.checkpoint), CheckpointSource):
        console().print(
            "plans with the full budget, some tenths of a second an action on a CPU core; "
            "--preset realtime and --mode policy are faster",
            highlight=False,
        )
    with ConsoleProgress("evaluate") as progress:
        content = evaluate(config, progress, engine_choice(config.engine))
    table = table_of(str(config.output), "task", "score", "mean return", "episodes")
    for name, record in content["tasks"].items():
        mean = sum(record["returns"]) / len(record["returns"])
        table.add_row(name, f"{mean / 10:.2f}", f"{mean:.1f}", str(len(record["returns"])))
    score = content["score"]
    interval = score["ci95"]
    shown = f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else " (one episode: no CI)"
    terminal = console()
    terminal.print(table)
    own = "environments" in content["config"]  # whose returns have any scale
    what = "mean return / 10" if own else "normalized score"
    terminal.print(f"{what} {score['mean']:.2f}{shown}", highlight=False)


def _compare(config: configs.CompareConfig) -> None:
    from tdmpc_opt.evaluation.compare import compare

    first, second = config.results
    result = compare(first, second)
    table = table_of(f"{second.name} - {first.name}", "task", "points")
    for name, points in result.per_task.items():
        table.add_row(name, f"{points:+.2f}")
    terminal = console()
    terminal.print(table)
    terminal.print(
        f"paired difference {result.difference} points over {result.episodes} episodes",
        highlight=False,
    )


def _ablation(config: configs.AblationConfig) -> None:
    from tdmpc_opt.evaluation.ablation import ablation
    from tdmpc_opt.report.plots import plot_scores

    rows = ablation(config.results)
    table = table_of("Ablation at equal budget", "run", "seeds", "score", "95% CI")
    for row in rows:
        interval = row.score.ci95
        shown = f"[{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "-"
        table.add_row(row.label, str(len(row.seeds)), f"{row.score.mean:.2f}", shown)
    terminal = console()
    terminal.print(table)
    if config.plot is not None:
        plot_scores({row.label: (row.score.mean, row.score.ci95) for row in rows}, config.plot)
        terminal.print(f"plot: {config.plot}")


COMMANDS = (
    Command("evaluate", configs.EvaluateConfig, _evaluate),
    Command("compare", configs.CompareConfig, _compare),
    Command("ablation", configs.AblationConfig, _ablation),
)
