"""Commands that compress agents, bring them to devices and run them there."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from tdmpc_opt.cli.command import Command
from tdmpc_opt.cli.output import Terminal, table
from tdmpc_opt.configs.deploy import (
    ExportConfig,
    QuantizeConfig,
    SensitivityConfig,
    ServeConfig,
)
from tdmpc_opt.configs.measure import PlayConfig
from tdmpc_opt.errors import counted


@contextmanager
def _on_free_cores(terminal: Terminal) -> Iterator[None]:
    """Let torch compute on the cores that are free, and say how many those are."""
    from tdmpc_opt.agents.compute import threads
    from tdmpc_opt.machine import choose_threads

    chosen = choose_threads()
    terminal.print(f"threads: {chosen}")
    with threads(chosen.count):
        yield


def _quantize(config: QuantizeConfig, terminal: Terminal) -> None:
    from tdmpc_opt.compression.quantize import quantize

    with nullcontext() if config.data is None else _on_free_cores(terminal):
        report = quantize(config, terminal)
    if report.max_error is not None:
        cost = f", largest rounding {report.max_error:.1e}"
    elif report.errors is not None:
        cost = f", actions {report.errors.action:.4f} rms off (their range is 2)"
        if report.errors.value is not None:
            cost += f", planned values correlate {1 - report.errors.value:.4f}"
        if report.distilled and report.undistilled is not None:
            cost += f"; before distilling {report.undistilled.action:.4f}"
            if report.undistilled.value is not None:
                cost += f" and {1 - report.undistilled.value:.4f}"
        elif report.undistilled is not None:
            cost += "; distilling did not reduce the error and was dropped"
    else:
        cost = "; --data DIR would round it better and measure the cost"
    terminal.print(
        f"{report.source.name}: {report.source_bytes:,} bytes -> {report.output}: "
        f"{report.output_bytes:,} bytes ({report.source_bytes / report.output_bytes:.2f}x "
        f"smaller, {report.format}{cost})"
    )


def _sensitivity(config: SensitivityConfig, terminal: Terminal) -> None:
    from tdmpc_opt.compression.sensitivity import sensitivity
    from tdmpc_opt.report.charts import plot_sensitivity

    with _on_free_cores(terminal):
        content = sensitivity(config, terminal)
    columns = ("format", "bytes", "action error", "value error")
    rows = [
        (row["layer"], *_errors(row), "-" if row["score"] is None else f"{row['score']:.2f}")
        for row in content["rows"]
    ]
    terminal.print(
        table(str(config.output), ("layer", *columns, "policy score"), rows),
        table("Whole agent", columns, map(_errors, content["whole"])),
    )
    if config.plot is not None:
        plot_sensitivity(content["rows"], config.plot)
        terminal.print(f"plot: {config.plot}")


def _errors(row: dict[str, Any]) -> tuple[str, ...]:
    """Return format, bytes and errors of a layer or an agent as cells."""
    value = "-" if row["value_error"] is None else f"{row['value_error']:.5f}"
    return row["format"], f"{row['size_bytes']:,}", f"{row['action_error']:.4f}", value


def _export(config: ExportConfig, terminal: Terminal) -> None:
    from tdmpc_opt.export.export import export

    with _on_free_cores(terminal):
        report = export(config, progress=terminal)
    parity = report.parity
    what = "policy" if report.preset is None else f"planner, preset {report.preset}"
    exact = parity.judged_error == parity.max_error
    judged = "" if exact else f", 9 of 10 within {parity.judged_error:.1e}"
    own = f"; torch's own fp32 errs by {parity.torch_error:.1e}" if parity.torch_error else ""
    terminal.print(
        f"{report.source.name}: {report.source_bytes:,} bytes -> {report.output} ({what}, "
        f"{report.format}): {report.output_bytes:,} bytes, {parity.act_ms:.2f} ms an action "
        f"here; took {report.seconds:.0f} s",
        f"against torch on {counted(parity.rows, 'real observation')} of "
        f"{counted(parity.tasks, 'task')}: largest difference {parity.max_error:.1e}{judged} "
        f"(tolerance {report.tolerance:.1e}), mean cosine {parity.cosine:.6f}{own}",
    )


def _play(config: PlayConfig, terminal: Terminal) -> None:
    if config.tasks is not None:
        from tdmpc_opt.play.live import live_page

        terminal.print("starting the process that simulates and draws ...")
        with live_page(config) as running:
            try:
                for address in running:
                    terminal.print(f"open {address} in a browser; Ctrl-C stops")
            except KeyboardInterrupt:
                terminal.print("stopped")
        return
    from tdmpc_opt.play.server import page_server

    def started(name: str) -> None:
        terminal.print(f"preparing {name} for the browser ...")

    with page_server(config, started) as server:
        terminal.print(f"open {server.address} in a browser; Ctrl-C stops")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            terminal.print("stopped")


def _serve(config: ServeConfig, terminal: Terminal) -> None:
    from tdmpc_opt.server.server import PolicyServer

    server = PolicyServer(
        config.checkpoint, config.threads, config.max_clients, 1024 * config.max_message_kb
    )

    def started(host: str, port: int) -> None:
        terminal.print(f"serving at ws://{host}:{port}; Ctrl-C stops")

    asyncio.run(server.run(config.host, config.port, started))
    counts = server.statistics
    took = (
        f"; an answer took {counts['ms_p50']:.2f} ms, 99 of 100 at most {counts['ms_p99']:.2f}"
    )
    terminal.print(
        f"stopped; answers: {counts['answers']:,}, errors: {counts['errors']:,}"
        f"{f'{took} ms' if counts['answers'] else ''}"
    )


COMMANDS = (
    Command(
        "quantize",
        _quantize,
        "student.safetensors --format int8 --data data/mt30 --output small.safetensors",
        ("output", "format", "policy_only", "data"),
    ),
    Command(
        "sensitivity",
        _sensitivity,
        "mt30-1m --data data/mt30 --output sensitivity.json",
        ("output", "data", "plot"),
    ),
    Command(
        "export",
        _export,
        "mt30-1m --policy-only --output policy.onnx",
        ("output", "target", "policy_only", "preset", "format"),
    ),
    Command("serve", _serve, "policy.onnx --port 8000"),
    Command("play", _play, "runs/student --tasks my_package.envs:Lift-v0"),
)
