"""Commands that bring agents to devices."""

from tdmpc_opt import configs
from tdmpc_opt.cli.command import Command
from tdmpc_opt.cli.output import console


def _export(config: configs.ExportConfig) -> None:
    from tdmpc_opt.export.export import export

    report = export(config)
    parity = report.parity
    what = "policy" if report.preset is None else f"planner, preset {report.preset}"
    terminal = console()
    terminal.print(
        f"{report.source.name}: {report.source_bytes:,} bytes -> {report.output} ({what}, "
        f"{report.format}): {report.output_bytes:,} bytes, {parity.act_ms:.2f} ms an action "
        f"here; took {report.seconds:.0f} s",
        highlight=False,
    )
    exact = parity.judged_error == parity.max_error
    judged = "" if exact else f", 9 of 10 within {parity.judged_error:.1e}"
    own = f"; torch's own fp32 errs by {parity.torch_error:.1e}" if parity.torch_error else ""
    terminal.print(
        f"against torch on {parity.rows} real observations of {parity.tasks} tasks: largest "
        f"difference {parity.max_error:.1e}{judged} (tolerance {report.tolerance:.1e}), mean "
        f"cosine {parity.cosine:.6f}{own}",
        highlight=False,
    )


COMMANDS = (Command("export", configs.ExportConfig, _export),)
