"""Commands that show agents at work, or let other programs use them."""

import asyncio

from tdmpc_opt import configs
from tdmpc_opt.cli.command import Command
from tdmpc_opt.cli.output import console


def _play(config: configs.PlayConfig) -> None:
    from tdmpc_opt.play.play import page_server

    terminal = console()

    def started(name: str) -> None:
        terminal.print(f"preparing {name} for the browser ...", highlight=False)

    with page_server(config, started) as server:
        terminal.print(f"open {server.address} in a browser; Ctrl-C stops", highlight=False)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            terminal.print("stopped")


def _serve(config: configs.ServeConfig) -> None:
    from tdmpc_opt.server.server import PolicyServer

    terminal = console()
    server = PolicyServer(
        config.checkpoint, config.threads, config.max_clients, 1024 * config.max_message_kb
    )

    def started(host: str, port: int) -> None:
        terminal.print(f"serving at ws://{host}:{port}; Ctrl-C stops", highlight=False)

    asyncio.run(server.run(config.host, config.port, started))
    counts = server.statistics
    terminal.print(
        f"stopped after {counts['answers']:,} answers and {counts['errors']:,} errors; an "
        f"answer took {counts['ms_p50']:.2f} ms, 99 of 100 at most {counts['ms_p99']:.2f} ms",
        highlight=False,
    )


COMMANDS = (
    Command("play", configs.PlayConfig, _play),
    Command("serve", configs.ServeConfig, _serve),
)
