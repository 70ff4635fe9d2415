"""Commands that show agents at work."""

from dataclasses import dataclass
from typing import Annotated

from tdmpc_opt.configs.common import POSITIONAL


@dataclass(frozen=True, kw_only=True)
class PlayConfig:
    """Serve a page on this machine where agents act live and can be pushed around."""

    checkpoints: Annotated[tuple[str, ...], POSITIONAL] = ()
    """Checkpoint files of any known layout, zoo names, or files of `tdmpc-opt export`, to offer
    beside the bundled agent."""
    port: int = 8707
    """Port of 127.0.0.1; 0 takes any free one."""
