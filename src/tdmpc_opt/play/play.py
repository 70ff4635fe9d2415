"""`play`: export what was asked for, and serve the page until it is stopped."""

import gzip
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tdmpc_opt.configs import PlayConfig
from tdmpc_opt.play.agents import LIST, write_agents
from tdmpc_opt.play.server import BUNDLE, PlayServer


@contextmanager
def page_server(
    config: PlayConfig, started: Callable[[str], None] = lambda _: None, bundle: Path = BUNDLE
) -> Iterator[PlayServer]:
    """Make the server of the page, ready to `serve_forever`.

    Args:
        config: Agents to offer beside the bundled ones, and the port.
        started: Called with each agent's name when its export begins.
        bundle: Folder of the built page.

    Raises:
        CheckpointError: A file that is missing, damaged, foreign or unsafe.
        InputError: A port that cannot be used, or an agent without a task of MT30.
        MissingDependencyError: No built page, or no library to export agents.
    """
    with tempfile.TemporaryDirectory(prefix="tdmpc-opt-play-") as folder:
        site = Path(folder)
        with PlayServer([site, bundle], config.port):
            pass  # a port that is taken is known before anything is exported
        if config.checkpoints:
            (site / LIST).write_bytes(gzip.decompress((bundle / f"{LIST}.gz").read_bytes()))
            write_agents(config.checkpoints, site, started)
        with PlayServer([site, bundle], config.port) as server:
            yield server
