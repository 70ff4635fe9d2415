"""Serving an agent to other programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tdmpc_opt.configs.common import POSITIONAL


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve an agent over the openpi WebSocket protocol, without torch."""

    checkpoint: Annotated[Path, POSITIONAL]
    """ONNX file of `tdmpc-opt export`, or safetensors checkpoint, of which the policy acts."""
    host: str = "127.0.0.1"
    """Address to listen at: this machine alone. 0.0.0.0 lets everyone in the network act."""
    port: int = 8000
    """Port; 0 takes any free one."""
    threads: int = 1
    """Threads of one action."""
    max_clients: int = 8
    """Connections at a time."""
    max_message_kb: int = 1024
    """Longest message in kilobytes; a longer one ends its connection."""
