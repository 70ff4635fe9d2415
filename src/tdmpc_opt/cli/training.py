"""Commands that make data or show it, and commands that train on it."""

from tdmpc_opt.cli.command import Command
from tdmpc_opt.cli.output import Lines, Terminal, table
from tdmpc_opt.configs.data import (
    CollectConfig,
    DataExportConfig,
    DataImportConfig,
    DataInfoConfig,
    DataVerifyConfig,
    ExpertsConfig,
)
from tdmpc_opt.configs.deploy import RegularizeConfig
from tdmpc_opt.configs.pipeline import DemoConfig, DistillConfig
from tdmpc_opt.configs.training import DaggerConfig, TrainConfig
from tdmpc_opt.errors import DataError, counted
from tdmpc_opt.files import MODEL_FILE, refuse_overwrite


def _experts(config: ExpertsConfig, terminal: Terminal) -> None:
    from tdmpc_opt.experts.train import train_experts

    train_experts(config, Lines())


def _collect(config: CollectConfig, terminal: Terminal) -> None:
    from tdmpc_opt.agents.collect import collect

    dataset = collect(config, terminal)
    terminal.print(f"{config.output} now contains {counted(len(dataset), 'episode')}")


def _data_info(config: DataInfoConfig, terminal: Terminal) -> None:
    from tdmpc_opt.data.episodes import EpisodeDataset
    from tdmpc_opt.data.reports import summarize, write_dataset_card
    from tdmpc_opt.report.charts import plot_returns

    refuse_overwrite(config)
    dataset = EpisodeDataset.open(config.data)
    dataset.check()
    plot = config.plot or config.data / "returns.png"
    plot_returns(dataset.returns(), plot)
    counts, returns = ["episodes", "transitions", "labelled"], ("return mean", "min", "max")
    counts += ["terminated"] if dataset.episodic else []
    rows = [
        (
            row.task,
            *(f"{getattr(row, count):,}" for count in counts),
            *(f"{x:.1f}" for x in (row.return_mean, row.return_min, row.return_max)),
        )
        for row in summarize(dataset)
    ]
    terminal.print(table(str(config.data), ("task", *counts, *returns), rows))
    terminal.print(f"histograms: {plot}")
    if config.card is not None:
        write_dataset_card(dataset, plot, config.card)
        terminal.print(f"card: {config.card}")


def _data_import(config: DataImportConfig, terminal: Terminal) -> None:
    from tdmpc_opt.data.exchange import import_data

    report = import_data(config, terminal)
    terminal.print(*report.lines, *(f"left out: {line}" for line in report.left_out))
    terminal.print(f"added {counted(report.episodes, 'episode')} to {config.output}")


def _data_export(config: DataExportConfig, terminal: Terminal) -> None:
    from tdmpc_opt.data.exchange import export_data

    terminal.print(*(str(path) for path in export_data(config, terminal)))


def _data_verify(config: DataVerifyConfig, terminal: Terminal) -> None:
    from tdmpc_opt.data.reports import verify

    found = verify(config.data, terminal)
    if found.faults:
        count = f"{len(found.faults)} of {counted(found.shards, 'shard')}"
        raise DataError(f"{config.data}: {count} are damaged: " + "; ".join(found.faults))
    size = f"{counted(found.shards, 'shard')}, {found.size_bytes / 1e9:.3f} GB"
    whole = f"{size}: as they were written"
    if found.unsummed:
        whole += f"; {len(found.unsummed)} have no checksums, their values are sound"
    terminal.print(whole)


def _written(config: TrainConfig) -> int | None:
    """Return when the run's checkpoint was written last; None where there is none."""
    path = config.output / MODEL_FILE
    return path.stat().st_mtime_ns if path.exists() else None


def _outcome(config: TrainConfig, before: int | None, budget: str) -> str:
    """Return what was written, or that the run was finished before."""
    path = config.output / MODEL_FILE
    if _written(config) == before:
        return f"{path} has its {budget} already; nothing to do"
    return f"wrote {path}"


def _train(config: TrainConfig, terminal: Terminal) -> None:
    from tdmpc_opt.training.loop import train

    before = _written(config)
    train(config, terminal)
    terminal.print(_outcome(config, before, counted(config.updates, "update")))


def _dagger(config: DaggerConfig, terminal: Terminal) -> None:
    from tdmpc_opt.training.dagger import dagger

    before = _written(config)
    rounds = dagger(config, terminal)
    columns = ("round", "updates", "episodes", "mean return on the way")
    rows = []
    for row in rounds:
        mean = sum(row.returns.values()) / len(row.returns)
        rows.append((row.round, f"{row.updates:,}", f"{row.episodes:,}", f"{mean:.1f}"))
    terminal.print(table(str(config.output), columns, rows))
    terminal.print(_outcome(config, before, counted(config.rounds, "round")))


def _regularize(config: RegularizeConfig, terminal: Terminal) -> None:
    from tdmpc_opt.training.regularize import regularize

    report = regularize(config, terminal)
    terminal.print(
        f"wrote {report.output}: plans of the published budget act at a mean distance of "
        f"{report.after:.3f} from the policy, before {report.before:.3f}"
    )


def _distill(config: DistillConfig, terminal: Terminal) -> None:
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


def _demo(config: DemoConfig, terminal: Terminal) -> None:
    from tdmpc_opt.pipeline.demo import demo

    rows = []
    for row in demo(config.output, terminal):
        ci95, counts = row["ci95"], (row["parameters"], row["size_bytes"])
        interval = f"[{ci95[0]:.1f}, {ci95[1]:.1f}]" if ci95 else "-"
        sizes = (f"{count:,}" if count else "-" for count in counts)
        rows.append((row["name"], f"{row['score']:.1f}", interval, *sizes))
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
        resumes=True,
    ),
    Command(
        "train",
        _train,
        "--teacher teacher.pt --data data/mt30 --updates 100000 --output runs/student",
        ("teacher", "data", "output", "updates", "size", "tasks"),
        by_ranks=True,
        resumes=True,
    ),
    Command(
        "dagger",
        _dagger,
        "--teacher teacher.pt --start runs/student --data data/mt30 --rounds 4 "
        "--updates 2500 --output runs/corrected",
        ("teacher", "start", "data", "output", "rounds", "updates", "episodes"),
        resumes=True,
    ),
    Command(
        "regularize",
        _regularize,
        "runs/student --data data/visited --output student.safetensors",
        ("output", "data", "updates"),
    ),
    Command("demo", _demo, "--output demo-output", resumes=True),
)

DATA_COMMANDS = (
    Command(
        "experts",
        _experts,
        "--tasks walker-walk --output experts",
        ("output", "tasks", "method", "steps"),
        resumes=True,
    ),
    Command(
        "collect",
        _collect,
        "--policy teacher.pt --episodes 20 --output data/mt30",
        ("policy", "output", "tasks", "episodes", "noise"),
        resumes=True,
    ),
    Command("data info", _data_info, "data/mt30 --card card.md"),
    Command("data import", _data_import, "mt30/*.pt --output data/mt30", resumes=True),
    Command("data export", _data_export, "data/mt30 --output shards"),
    Command("data verify", _data_verify, "data/mt30"),
)
