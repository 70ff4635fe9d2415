"""Commands that show agents at work."""

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


COMMANDS = (Command("play", configs.PlayConfig, _play),)
