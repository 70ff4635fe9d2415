"""The command that times policies."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tdmpc_opt.configs.common import POSITIONAL, Device, EngineName
from tdmpc_opt.errors import InputError


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Time policies against each other, in turns, each in a process of its own."""

    sources: Annotated[tuple[str, ...], POSITIONAL]
    """Checkpoint files, zoo names, and exported files. A file of the policy alone runs as on a
    device, without torch."""
    preset: tuple[str, ...] = ("full",)
    """`full`, `balanced`, `realtime`, `policy`, or others that a checkpoint holds."""
    engine: tuple[EngineName, ...] = ("auto",)
    """What computes the plans of checkpoints: auto takes ONNX Runtime where it is installed,
    eager takes torch."""
    task: str | None = None
    """Task to act in; none means the first one of the first source."""
    batch: tuple[int, ...] = (1, 8, 64)
    """Observations that are acted on at once."""
    threads: int = 1
    """Threads of each process."""
    rounds: int = 10
    """Turns of each policy at each batch size."""
    seconds: float = 0.5
    """Length of a turn; it holds one action at least."""
    device: Device = "cpu"
    """Where the networks of checkpoints run."""
    output: Path | None = None
    """Result file (JSON); none writes none."""

    def __post_init__(self) -> None:
        """Refuse what cannot be timed."""
        if not (self.sources and self.preset and self.engine and self.batch):
            raise InputError("name at least one source, preset, engine and batch")
        if min(self.batch) < 1 or self.threads < 1 or self.rounds < 1:
            raise InputError("batch, threads and rounds must be at least 1")
        if not self.seconds > 0:
            raise InputError(f"seconds must be above 0, got {self.seconds}")
