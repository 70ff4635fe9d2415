"""Commands that show results and agents."""

from tdmpc_opt import configs
from tdmpc_opt.cli.command import Command
from tdmpc_opt.cli.output import ConsoleProgress, console


def _report(config: configs.ReportConfig) -> None:
    from tdmpc_opt.report.page import write_report

    summary = write_report(config)
    terminal = console()
    reasons: dict[str, list[str]] = {}
    for path, reason in summary.skipped:
        reasons.setdefault(reason, []).append(str(path))
    for reason, paths in reasons.items():
        terminal.print(f"left out {', '.join(paths)}: {reason}", highlight=False)
    size = f"{summary.size_bytes / 1000:,.0f} kB"
    terminal.print(
        f"wrote {summary.path}: {summary.files} result files, {size}", highlight=False
    )
    if config.figures is not None:
        terminal.print(f"wrote {len(summary.figures)} pictures to {config.figures}")


def _video(config: configs.VideoConfig) -> None:
    from tdmpc_opt.report.film import video

    with ConsoleProgress("video") as progress:
        written = video(config, progress)
    for path in written:
        console().print(f"wrote {path}: {path.stat().st_size / 1000:,.0f} kB", highlight=False)


COMMANDS = (
    Command("report", configs.ReportConfig, _report),
    Command("video", configs.VideoConfig, _video),
)
