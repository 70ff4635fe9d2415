"""Commands that make data or show it."""

from tdmpc_opt import configs
from tdmpc_opt.cli.command import Command
from tdmpc_opt.cli.output import console, table_of
from tdmpc_opt.progress import ConsoleProgress


def _experts(config: configs.ExpertsConfig) -> None:
    from tdmpc_opt.collection.experts import train_experts

    train_experts(config)


def _collect(config: configs.CollectConfig) -> None:
    from tdmpc_opt.collection.collect import collect

    with ConsoleProgress("collect") as progress:
        dataset = collect(config, progress)
    console().print(f"{config.output} now holds {len(dataset):,} episodes")


def _data_info(config: configs.DataInfoConfig) -> None:
    from tdmpc_opt.data.episodes import EpisodeDataset
    from tdmpc_opt.data.summary import summarize
    from tdmpc_opt.report.dataset_card import write_dataset_card
    from tdmpc_opt.report.plots import plot_returns

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


COMMANDS = (
    Command("experts", configs.ExpertsConfig, _experts),
    Command("collect", configs.CollectConfig, _collect),
    Command("data info", configs.DataInfoConfig, _data_info),
)
