"""Commands that train."""

from tdmpc_opt import configs
from tdmpc_opt.cli.command import Command
from tdmpc_opt.cli.output import console, table_of
from tdmpc_opt.progress import ConsoleProgress


def _train(config: configs.TrainConfig) -> None:
    from tdmpc_opt.training.loop import train

    with ConsoleProgress("train") as progress:
        path = train(config, progress)
    console().print(f"wrote {path}")


def _distill(config: configs.DistillConfig) -> None:
    from tdmpc_opt.training.distillation import distill

    with ConsoleProgress("distill") as progress:
        path = distill(config, progress)
    console().print(f"wrote {path}")


def _dagger(config: configs.DaggerConfig) -> None:
    from tdmpc_opt.dagger import dagger

    with ConsoleProgress("dagger") as progress:
        rounds = dagger(config, progress)
    table = table_of(
        *(str(config.output), "round", "updates", "episodes"),
        *("mean return on the way", "score afterwards"),
    )
    for row in rounds:
        mean = sum(row.returns.values()) / len(row.returns)
        score = "-" if row.score is None else f"{row.score:.2f}"
        table.add_row(
            str(row.round), f"{row.updates:,}", f"{row.episodes:,}", f"{mean:.1f}", score
        )
    terminal = console()
    terminal.print(table)
    terminal.print(f"wrote {config.output / 'model.safetensors'}")


def _demo(config: configs.DemoConfig) -> None:
    from tdmpc_opt.demo import demo

    with ConsoleProgress("demo") as progress:
        rows = demo(config, progress)
    table = table_of(
        "Demo, policy alone", "agent", "score (0..100)", "95% CI", "parameters", "bytes"
    )
    for row in rows:
        interval = f"[{row.ci95[0]:.1f}, {row.ci95[1]:.1f}]" if row.ci95 else "-"
        sizes = (f"{row.parameters:,}", f"{row.size_bytes:,}") if row.parameters else ("-", "-")
        table.add_row(row.name, f"{row.score:.1f}", interval, *sizes)
    terminal = console()
    terminal.print(table)
    terminal.print(f"results, curves and plots are in {config.output}")


COMMANDS = (
    Command("train", configs.TrainConfig, _train, by_ranks=True),
    Command("distill", configs.DistillConfig, _distill, by_ranks=True),
    Command("dagger", configs.DaggerConfig, _dagger),
    Command("demo", configs.DemoConfig, _demo),
)
