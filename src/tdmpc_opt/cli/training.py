"""Commands that train."""

from pathlib import Path

from tdmpc_opt import configs
from tdmpc_opt.cli.command import Command
from tdmpc_opt.cli.output import ConsoleProgress, console, table_of


def _written(config: configs.TrainConfig) -> int | None:
    """Return when the run's checkpoint was written last; None where there is none."""
    path = config.output / "model.safetensors"
    return path.stat().st_mtime_ns if path.exists() else None


def _report(path: Path, before: int | None, config: configs.TrainConfig, budget: str) -> None:
    """Print what was written, or that the run was finished before."""
    if _written(config) == before:
        console().print(f"{path} has its {budget} already; nothing to do")
    else:
        console().print(f"wrote {path}")


def _train(config: configs.TrainConfig) -> None:
    from tdmpc_opt.training.loop import train

    before = _written(config)
    with ConsoleProgress("train") as progress:
        path = train(config, progress)
    _report(path, before, config, f"{config.updates:,} updates")


def _dagger(config: configs.DaggerConfig) -> None:
    from tdmpc_opt.training.dagger import dagger

    before = _written(config)
    with ConsoleProgress("dagger") as progress:
        rounds = dagger(config, progress)
    columns = ("round", "updates", "episodes", "mean return on the way")
    table = table_of(str(config.output), *columns)
    for row in rounds:
        mean = sum(row.returns.values()) / len(row.returns)
        table.add_row(
            *(str(row.round), f"{row.updates:,}", f"{row.episodes:,}", f"{mean:.1f}"),
        )
    console().print(table)
    path = config.output / "model.safetensors"
    _report(path, before, config, f"{config.rounds:,} rounds")


def _distill(config: configs.DistillConfig) -> None:
    from tdmpc_opt.pipeline.distill import distill
    from tdmpc_opt.pipeline.plan import plan

    terminal = console()
    with ConsoleProgress("distill") as progress:
        terminal.print(str(plan(config, progress)))
        student = distill(config, progress)
    difference = f"student less teacher, {student.lost.unit.name}"
    table = table_of(str(config.output), "task", difference)
    for name, less in student.lost.per_task.items():
        table.add_row(name, f"{less:+.2f}")
    terminal.print(table)
    terminal.print(
        f"teacher {student.teacher}, student {student.policy}, its int8 policy {student.int8}; "
        f"paired difference {student.lost.difference}"
    )
    terminal.print(f"wrote {student.folder}: model, policy, planner, card and report.html")


def _demo(config: configs.DemoConfig) -> None:
    from tdmpc_opt.pipeline.demo import demo

    with ConsoleProgress("demo") as progress:
        rows = demo(config.output, progress)
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
    Command(
        "distill",
        _distill,
        "teacher.pt --hours 4 --output student",
        ("output", "tasks", "size", "hours", "updates"),
    ),
    Command(
        "train",
        _train,
        "--teacher teacher.pt --data data/mt30 --updates 100000 --output runs/student",
        ("teacher", "data", "output", "updates", "size", "tasks"),
        by_ranks=True,
    ),
    Command(
        "dagger",
        _dagger,
        "--teacher teacher.pt --start runs/student --data data/mt30 --rounds 4 "
        "--updates 2500 --output runs/corrected",
        ("teacher", "start", "data", "output", "rounds", "updates", "episodes"),
    ),
    Command("demo", _demo, "--output demo-output"),
)
