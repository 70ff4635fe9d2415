"""The command line: parse a config, call one function, print what came of it."""

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

import tdmpc_opt
from tdmpc_opt import configs
from tdmpc_opt.errors import TdmpcOptError
from tdmpc_opt.progress import ConsoleProgress

Command = (
    Annotated[configs.TasksConfig, tyro.conf.subcommand("tasks")]
    | Annotated[configs.ZooConfig, tyro.conf.subcommand("zoo")]
    | Annotated[configs.InspectConfig, tyro.conf.subcommand("inspect")]
    | Annotated[configs.ConvertConfig, tyro.conf.subcommand("convert")]
    | Annotated[configs.EvaluateConfig, tyro.conf.subcommand("evaluate")]
    | Annotated[configs.CompareConfig, tyro.conf.subcommand("compare")]
    | Annotated[configs.AblationConfig, tyro.conf.subcommand("ablation")]
    | Annotated[configs.ExpertsConfig, tyro.conf.subcommand("experts")]
    | Annotated[configs.CollectConfig, tyro.conf.subcommand("collect")]
    | Annotated[configs.DataInfoConfig, tyro.conf.subcommand("data info")]
    | Annotated[configs.TrainConfig, tyro.conf.subcommand("train")]
    | Annotated[configs.DistillConfig, tyro.conf.subcommand("distill")]
    | Annotated[configs.DaggerConfig, tyro.conf.subcommand("dagger")]
    | Annotated[configs.QuantizeConfig, tyro.conf.subcommand("quantize")]
    | Annotated[configs.DemoConfig, tyro.conf.subcommand("demo")]
)

# Libraries that only some commands need, and the extra that brings each.
_EXTRAS = {
    **dict.fromkeys(("torch", "tensordict", "lightning_fabric", "tensorboard"), "train"),
    **dict.fromkeys(("jaxtyping", "scipy", "matplotlib"), "train"),
    **dict.fromkeys(("gymnasium", "dm_control", "mujoco"), "envs"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        _console().print(f"tdmpc-opt {tdmpc_opt.__version__}", highlight=False)
        return 0
    status = 0
    try:
        config = _parse(arguments)
        _COMMANDS[type(config)](config)
    except TdmpcOptError as error:
        status = _fail(str(error))
    except ModuleNotFoundError as error:
        status = _fail(_missing(error))
    except KeyboardInterrupt:
        done = "interrupted; what was finished is kept, and the same command goes on from there"
        status = _fail(done, 130)
    return status


def _parse(arguments: list[str]) -> Any:
    if arguments[:1] == ["data"]:  # its commands are two words, one name to the parser
        name = next((word for word in arguments[1:2] if not word.startswith("-")), "info")
        arguments[: 1 + (name in arguments[1:2])] = [f"data {name}"]
    return tyro.cli(Command, args=arguments, prog="tdmpc-opt", description=tdmpc_opt.__doc__)


def _fail(message: str, status: int = 1) -> int:
    sys.stderr.write(f"tdmpc-opt: {message}\n")
    return status


def _missing(error: ModuleNotFoundError) -> str:
    extra = _EXTRAS.get((error.name or "").partition(".")[0])
    if extra is None:
        raise error
    return f'this command needs {error.name}: pip install "tdmpc-opt[{extra}]"'


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def _tasks(config: configs.TasksConfig) -> None:
    from tdmpc_opt.task_table import MT30

    table = _table("MT30", "task", "id", "observation", "action", "from")
    for index, task in enumerate(MT30.tasks):
        origin = "custom" if task.custom else "dm_control suite"
        table.add_row(task.name, str(index), str(task.obs_dim), str(task.action_dim), origin)
    _console().print(table)


def _zoo(config: configs.ZooConfig) -> None:
    from tdmpc_opt import zoo

    table = _table("Bundled checkpoints", "name", "parameters", "bytes", "tasks")
    for entry in zoo.entries():
        table.add_row(
            entry.name,
            f"{entry.parameters:,}",
            f"{entry.size_bytes:,}",
            ", ".join(entry.tasks) if len(entry.tasks) < 10 else str(len(entry.tasks)),
        )
    _console().print(table)


def _inspect(config: configs.InspectConfig) -> None:
    from tdmpc_opt.checkpoints.summary import describe

    summary = describe(config.checkpoint)
    console = _console()
    facts = _table(summary.path.name, "fact", "value")
    facts.columns[1].justify = "left"
    facts.add_row("layout", summary.layout)
    facts.add_row("bytes", f"{summary.size_bytes:,}")
    facts.add_row("sha256", summary.sha256)
    facts.add_row("parameters (no target Qs)", f"{summary.parameters:,}")
    for name, value in vars(summary.config).items():
        facts.add_row(name, str(value))
    for name, text in summary.extra.items():
        facts.add_row(name, text)
    facts.add_row("tasks", ", ".join(summary.tasks))
    console.print(facts)
    parts = _table("Parts", "part", "parameters", "dtype")
    for part, count in summary.part_parameters.items():
        parts.add_row(part, f"{count:,}", summary.dtypes[part])
    console.print(parts)


def _convert(config: configs.ConvertConfig) -> None:
    from tdmpc_opt.checkpoints.convert import convert

    summary = convert(config)
    _console().print(
        f"wrote {summary.path}: {summary.parameters:,} parameters, {summary.size_bytes:,} bytes"
    )


def _evaluate(config: configs.EvaluateConfig) -> None:
    from tdmpc_opt.evaluation.evaluate import evaluate

    with ConsoleProgress("evaluate") as progress:
        content = evaluate(config, progress)
    table = _table(str(config.output), "task", "score", "mean return", "episodes")
    for name, record in content["tasks"].items():
        mean = sum(record["returns"]) / len(record["returns"])
        table.add_row(name, f"{mean / 10:.2f}", f"{mean:.1f}", str(len(record["returns"])))
    score = content["score"]
    interval = score["ci95"]
    shown = f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else " (one episode: no CI)"
    console = _console()
    console.print(table)
    console.print(f"normalized score {score['mean']:.2f}{shown}", highlight=False)


def _compare(config: configs.CompareConfig) -> None:
    from tdmpc_opt.evaluation.compare import compare

    result = compare(config.first, config.second)
    table = _table(f"{config.second.name} - {config.first.name}", "task", "points")
    for name, points in result.per_task.items():
        table.add_row(name, f"{points:+.2f}")
    console = _console()
    console.print(table)
    console.print(
        f"paired difference {result.difference} points over {result.episodes} episodes",
        highlight=False,
    )


def _ablation(config: configs.AblationConfig) -> None:
    from tdmpc_opt.evaluation.ablation import ablation
    from tdmpc_opt.report.plots import plot_scores

    rows = ablation(config.results)
    table = _table("Ablation at equal budget", "run", "seeds", "score", "95% CI")
    for row in rows:
        interval = row.score.ci95
        shown = f"[{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "-"
        table.add_row(row.label, str(len(row.seeds)), f"{row.score.mean:.2f}", shown)
    console = _console()
    console.print(table)
    if config.plot is not None:
        plot_scores({row.label: (row.score.mean, row.score.ci95) for row in rows}, config.plot)
        console.print(f"plot: {config.plot}")


def _experts(config: configs.ExpertsConfig) -> None:
    from tdmpc_opt.collection.experts import train_experts

    train_experts(config)


def _collect(config: configs.CollectConfig) -> None:
    from tdmpc_opt.collection.collect import collect

    with ConsoleProgress("collect") as progress:
        dataset = collect(config, progress)
    _console().print(f"{config.output} now holds {len(dataset):,} episodes")


def _data_info(config: configs.DataInfoConfig) -> None:
    from tdmpc_opt.data.episodes import EpisodeDataset
    from tdmpc_opt.data.summary import summarize
    from tdmpc_opt.report.dataset_card import write_dataset_card
    from tdmpc_opt.report.plots import plot_returns

    dataset = EpisodeDataset.open(config.data)
    dataset.check()
    table = _table(
        *(str(config.data), "task", "episodes", "transitions", "labelled"),
        *("return mean", "min", "max"),
    )
    for row in summarize(dataset):
        table.add_row(
            row.task,
            f"{row.episodes:,}",
            f"{row.transitions:,}",
            f"{row.labelled:,}",
            f"{row.return_mean:.1f}",
            f"{row.return_min:.1f}",
            f"{row.return_max:.1f}",
        )
    plot = config.plot or config.data / "returns.png"
    plot_returns(dataset.returns(), plot)
    console = _console()
    console.print(table)
    console.print(f"histograms: {plot}")
    if config.card is not None:
        write_dataset_card(dataset, plot, config.card)
        console.print(f"card: {config.card}")


def _train(config: configs.TrainConfig) -> None:
    from tdmpc_opt.training.loop import train

    with ConsoleProgress("train") as progress:
        path = train(config, progress)
    _console().print(f"wrote {path}")


def _distill(config: configs.DistillConfig) -> None:
    from tdmpc_opt.training.distillation import distill

    with ConsoleProgress("distill") as progress:
        path = distill(config, progress)
    _console().print(f"wrote {path}")


def _dagger(config: configs.DaggerConfig) -> None:
    from tdmpc_opt.dagger import dagger

    with ConsoleProgress("dagger") as progress:
        rounds = dagger(config, progress)
    table = _table(
        *(str(config.output), "round", "updates", "episodes"),
        *("mean return on the way", "score afterwards"),
    )
    for row in rounds:
        mean = sum(row.returns.values()) / len(row.returns)
        score = "-" if row.score is None else f"{row.score:.2f}"
        table.add_row(
            str(row.round), f"{row.updates:,}", f"{row.episodes:,}", f"{mean:.1f}", score
        )
    console = _console()
    console.print(table)
    console.print(f"wrote {config.output / 'model.safetensors'}")


def _quantize(config: configs.QuantizeConfig) -> None:
    from tdmpc_opt.compression.quantize import quantize

    report = quantize(config)
    _console().print(
        f"{report.source.name}: {report.source_bytes:,} bytes -> {report.output}: "
        f"{report.output_bytes:,} bytes ({report.source_bytes / report.output_bytes:.2f}x "
        f"smaller, {report.format}, largest rounding {report.max_error:.1e})",
        highlight=False,
    )


def _demo(config: configs.DemoConfig) -> None:
    from tdmpc_opt.demo import demo

    with ConsoleProgress("demo") as progress:
        rows = demo(config, progress)
    table = _table(
        "Demo, policy alone", "agent", "score (0..100)", "95% CI", "parameters", "bytes"
    )
    for row in rows:
        interval = f"[{row.ci95[0]:.1f}, {row.ci95[1]:.1f}]" if row.ci95 else "-"
        sizes = (f"{row.parameters:,}", f"{row.size_bytes:,}") if row.parameters else ("-", "-")
        table.add_row(row.name, f"{row.score:.1f}", interval, *sizes)
    console = _console()
    console.print(table)
    console.print(f"results, curves and plots are in {config.output}")


_COMMANDS: dict[type, Callable[[Any], None]] = {
    configs.TasksConfig: _tasks,
    configs.ZooConfig: _zoo,
    configs.InspectConfig: _inspect,
    configs.ConvertConfig: _convert,
    configs.EvaluateConfig: _evaluate,
    configs.CompareConfig: _compare,
    configs.AblationConfig: _ablation,
    configs.ExpertsConfig: _experts,
    configs.CollectConfig: _collect,
    configs.DataInfoConfig: _data_info,
    configs.TrainConfig: _train,
    configs.DistillConfig: _distill,
    configs.DaggerConfig: _dagger,
    configs.QuantizeConfig: _quantize,
    configs.DemoConfig: _demo,
}
