"""Commands that train."""

from tdmpc_opt import configs
from tdmpc_opt.cli.command import Command
from tdmpc_opt.cli.output import Terminal, table


def _written(config: configs.TrainConfig) -> int | None:
    """Return when the run's checkpoint was written last; None where there is none."""
    path = config.output / "model.safetensors"
    return path.stat().st_mtime_ns if path.exists() else None


def _outcome(config: configs.TrainConfig, before: int | None, budget: str) -> str:
    """Return what was written, or that the run was finished before."""
    path = config.output / "model.safetensors"
    if _written(config) == before:
        return f"{path} has its {budget} already; nothing to do"
    return f"wrote {path}"


def _train(config: configs.TrainConfig, terminal: Terminal) -> None:
    from tdmpc_opt.training.loop import train

    before = _written(config)
    train(config, terminal)
    terminal.print(_outcome(config, before, f"{config.updates:,} updates"))


def _dagger(config: configs.DaggerConfig, terminal: Terminal) -> None:
    from tdmpc_opt.training.dagger import dagger

    before = _written(config)
    rounds = dagger(config, terminal)
    columns = ("round", "updates", "episodes", "mean return on the way")
    rows = []
    for row in rounds:
        mean = sum(row.returns.values()) / len(row.returns)
        rows.append((row.round, f"{row.updates:,}", f"{row.episodes:,}", f"{mean:.1f}"))
    terminal.print(table(str(config.output), columns, rows))
    terminal.print(_outcome(config, before, f"{config.rounds:,} rounds"))


def _distill(config: configs.DistillConfig, terminal: Terminal) -> None:
    from tdmpc_opt.pipeline.distill import distill
    from tdmpc_opt.pipeline.plan import plan

    terminal.print(str(plan(config, terminal)))
    student = distill(config, terminal)
    lost = student.lost
    rows = [(name, f"{less:+.2f}") for name, less in lost.per_task.items()]
    columns = ("task", f"student less teacher, {lost.unit.name}")
    terminal.print(
        table(str(config.output), columns, rows),
        f"teacher {student.teacher}, student {student.policy}, its int8 policy {student.int8}; "
        f"paired difference {lost.difference}",
        f"wrote {student.folder}: model, policy, planner, card and report.html",
    )


def _demo(config: configs.DemoConfig, terminal: Terminal) -> None:
    from tdmpc_opt.pipeline.demo import demo

    rows = []
    for row in demo(config.output, terminal):
        interval = f"[{row.ci95[0]:.1f}, {row.ci95[1]:.1f}]" if row.ci95 else "-"
        sizes = (f"{row.parameters:,}", f"{row.size_bytes:,}") if row.parameters else ("-", "-")
        rows.append((row.name, f"{row.score:.1f}", interval, *sizes))
    columns = ("agent", "score (0..100)", "95% CI", "parameters", "bytes")
    terminal.print(
        table("Demo, policy alone", columns, rows),
        f"results, curves and plots are in {config.output}",
    )


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
