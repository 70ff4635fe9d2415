"""Commands that make data or show it."""

from tdmpc_opt import configs
from tdmpc_opt.cli.command import Command
from tdmpc_opt.cli.output import ConsoleProgress, Lines, console, table_of
from tdmpc_opt.errors import DataError
from tdmpc_opt.files import refuse_overwrite


def _experts(config: configs.ExpertsConfig) -> None:
    from tdmpc_opt.experts.train import train_experts

    train_experts(config, Lines())


def _collect(config: configs.CollectConfig) -> None:
    from tdmpc_opt.agents.collect import collect

    with ConsoleProgress("collect") as progress:
        dataset = collect(config, progress)
    console().print(f"{config.output} now contains {len(dataset):,} episodes")


def _data_info(config: configs.DataInfoConfig) -> None:
    from tdmpc_opt.data.episodes import EpisodeDataset
    from tdmpc_opt.data.reports import summarize
    from tdmpc_opt.report.dataset import plot_returns, write_dataset_card

    refuse_overwrite(config)
    dataset = EpisodeDataset.open(config.data)
    dataset.check()
    table = table_of(
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
    terminal = console()
    terminal.print(table)
    terminal.print(f"histograms: {plot}")
    if config.card is not None:
        write_dataset_card(dataset, plot, config.card)
        terminal.print(f"card: {config.card}")


def _data_import(config: configs.DataImportConfig) -> None:
    from tdmpc_opt.data.exchange import import_data

    with ConsoleProgress("import") as progress:
        report = import_data(config, progress)
    terminal = console()
    for line in report.lines:
        terminal.print(line)
    for line in report.left_out:
        terminal.print(f"left out: {line}")
    terminal.print(f"added {report.episodes:,} episodes to {config.output}")


def _data_export(config: configs.DataExportConfig) -> None:
    from tdmpc_opt.data.exchange import export_data

    with ConsoleProgress("export") as progress:
        written = export_data(config, progress)
    for path in written:
        console().print(path)


def _data_verify(config: configs.DataVerifyConfig) -> None:
    from tdmpc_opt.data.reports import verify

    with ConsoleProgress("verify") as progress:
        found = verify(config.data, progress)
    if found.faults:
        count = f"{len(found.faults)} of {found.shards} shards"
        raise DataError(f"{config.data}: {count} are damaged: " + "; ".join(found.faults))
    whole = f"{found.shards} shards, {found.size_bytes / 1e9:.3f} GB: as they were written"
    if found.unsummed:
        whole += f"; {len(found.unsummed)} have no checksums, their values are sound"
    console().print(whole)


COMMANDS = (
    Command(
        "experts",
        _experts,
        "--tasks walker-walk --output experts",
        ("output", "tasks", "method", "steps"),
    ),
    Command(
        "collect",
        _collect,
        "--policy teacher.pt --episodes 20 --output data/mt30",
        ("policy", "output", "tasks", "episodes", "noise"),
    ),
    Command("data info", _data_info, "data/mt30 --card card.md"),
    Command("data import", _data_import, "mt30/*.pt --output data/mt30"),
    Command("data export", _data_export, "data/mt30 --output shards"),
    Command("data verify", _data_verify, "data/mt30"),
)
