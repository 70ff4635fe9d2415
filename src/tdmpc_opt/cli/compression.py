"""Commands that compress agents and measure what it costs."""

from tdmpc_opt import configs
from tdmpc_opt.cli.command import Command
from tdmpc_opt.cli.output import ConsoleProgress, console, table_of


def _quantize(config: configs.QuantizeConfig) -> None:
    from tdmpc_opt.compression.quantize import quantize

    if config.distill_updates:
        with ConsoleProgress("distil") as progress:
            report = quantize(config, progress)
    else:
        report = quantize(config)
    if report.max_error is not None:
        cost = f", largest rounding {report.max_error:.1e}"
    elif report.action_error is not None:
        cost = f", actions {report.action_error:.4f} rms off (their range is 2)"
        if report.value_error is not None:
            cost += f", planned values correlate {1 - report.value_error:.4f}"
        cost += _distilled(report.undistilled, kept=report.distilled)
    else:
        cost = "; --data DIR would round it better and measure the cost"
    console().print(
        f"{report.source.name}: {report.source_bytes:,} bytes -> {report.output}: "
        f"{report.output_bytes:,} bytes ({report.source_bytes / report.output_bytes:.2f}x "
        f"smaller, {report.format}{cost})",
        highlight=False,
    )


def _distilled(before: tuple[float, float | None] | None, *, kept: bool) -> str:
    """Say what the distillation brought, where there was one."""
    if before is None:
        return ""
    if not kept:
        return "; distilling brought it no closer and was dropped"
    action, value = before
    shown = f"{action:.4f}" if value is None else f"{action:.4f} and {1 - value:.4f}"
    return f"; before distilling {shown}"


def _sensitivity(config: configs.SensitivityConfig) -> None:
    from tdmpc_opt.compression.sensitivity import sensitivity
    from tdmpc_opt.report.plots import plot_sensitivity

    with ConsoleProgress("sensitivity") as progress:
        content = sensitivity(config, progress)
    table = table_of(
        *(str(config.output), "layer", "format", "bytes"),
        *("action error", "value error", "policy score"),
    )
    for row in content["rows"]:
        value, score = row["value_error"], row["score"]
        table.add_row(
            row["layer"],
            row["format"],
            f"{row['size_bytes']:,}",
            f"{row['action_error']:.4f}",
            "-" if value is None else f"{value:.5f}",
            "-" if score is None else f"{score:.2f}",
        )
    terminal = console()
    terminal.print(table)
    whole = table_of("Whole agent", "format", "bytes", "action error", "value error")
    for row in content["whole"]:
        value = row["value_error"]
        whole.add_row(
            row["format"],
            f"{row['size_bytes']:,}",
            f"{row['action_error']:.4f}",
            "-" if value is None else f"{value:.5f}",
        )
    terminal.print(whole)
    if config.plot is not None:
        plot_sensitivity(content["rows"], config.plot)
        terminal.print(f"plot: {config.plot}")


COMMANDS = (
    Command("quantize", configs.QuantizeConfig, _quantize),
    Command("sensitivity", configs.SensitivityConfig, _sensitivity),
)
