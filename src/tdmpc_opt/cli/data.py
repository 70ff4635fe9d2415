"""Commands that make data or show it."""

from tdmpc_opt import configs
from tdmpc_opt.cli.command import Command
from tdmpc_opt.cli.output import Lines, Terminal, table
from tdmpc_opt.errors import DataError
from tdmpc_opt.files import refuse_overwrite


def _experts(config: configs.ExpertsConfig, terminal: Terminal) -> None:
    from tdmpc_opt.experts.train import train_experts

    train_experts(config, Lines())


def _collect(config: configs.CollectConfig, terminal: Terminal) -> None:
    from tdmpc_opt.agents.collect import collect

    dataset = collect(config, terminal)
    terminal.print(f"{config.output} now contains {len(dataset):,} episodes")


def _data_info(config: configs.DataInfoConfig, terminal: Terminal) -> None:
    from tdmpc_opt.data.episodes import EpisodeDataset
    from tdmpc_opt.data.reports import summarize
    from tdmpc_opt.report.charts import plot_returns
    from tdmpc_opt.report.dataset import write_dataset_card

    refuse_overwrite(config)
    dataset = EpisodeDataset.open(config.data)
    dataset.check()
    plot = config.plot or config.data / "returns.png"
    plot_returns(dataset.returns(), plot)
    counts, returns = ("episodes", "transitions", "labelled"), ("return mean", "min", "max")
    rows = [
        (
            row.task,
            *(f"{count:,}" for count in (row.episodes, row.transitions, row.labelled)),
            *(f"{x:.1f}" for x in (row.return_mean, row.return_min, row.return_max)),
        )
        for row in summarize(dataset)
    ]
    terminal.print(table(str(config.data), ("task", *counts, *returns), rows))
    terminal.print(f"histograms: {plot}")
    if config.card is not None:
        write_dataset_card(dataset, plot, config.card)
        terminal.print(f"card: {config.card}")


def _data_import(config: configs.DataImportConfig, terminal: Terminal) -> None:
    from tdmpc_opt.data.exchange import import_data

    report = import_data(config, terminal)
    terminal.print(*report.lines, *(f"left out: {line}" for line in report.left_out))
    terminal.print(f"added {report.episodes:,} episodes to {config.output}")


def _data_export(config: configs.DataExportConfig, terminal: Terminal) -> None:
    from tdmpc_opt.data.exchange import export_data

    terminal.print(*(str(path) for path in export_data(config, terminal)))


def _data_verify(config: configs.DataVerifyConfig, terminal: Terminal) -> None:
    from tdmpc_opt.data.reports import verify

    found = verify(config.data, terminal)
    if found.faults:
        count = f"{len(found.faults)} of {found.shards} shards"
        raise DataError(f"{config.data}: {count} are damaged: " + "; ".join(found.faults))
    whole = f"{found.shards} shards, {found.size_bytes / 1e9:.3f} GB: as they were written"
    if found.unsummed:
        whole += f"; {len(found.unsummed)} have no checksums, their values are sound"
    terminal.print(whole)


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
