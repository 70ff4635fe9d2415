"""Processes that train one model together: each takes its slices of the same global batch.

Policy noise is drawn for the whole batch on every rank, and each takes its rows; dropout is
drawn by each rank. Without dropout a run is the same on any number of ranks but for rounding.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

from tdmpc_opt import machine
from tdmpc_opt.errors import InputError, NonFiniteError, RunError

PATIENCE = timedelta(hours=2)
"""How long a rank waits for the others."""

Value = TypeVar("Value")


@contextmanager
def _others_alive() -> Iterator[None]:
    """Report in one line that a connection broke."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            f"rank {machine.rank()} lost the other processes ({str(error).splitlines()[0]}); "
            "torchrun --max-restarts starts all again from the last checkpoint"
        ) from error


class Ranks:
    """The ranks of a run, of which this process is number `rank` of `count`.

    Every method that talks to the others must be called by all of them, in the same order. A
    rank that is alone talks to nobody, and gets back what it gave.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank = rank
        self.count = count

    @property
    def is_first(self) -> bool:
        """Whether this rank writes, logs and prints for all."""
        return self.rank == 0

    def randn(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draw normal numbers for the whole batch, and return this rank's, of this shape.

        The axis before the last is the batch's; as of the sampler, a rank gets every so many.
        """
        *lead, rows, width = shape
        whole = torch.randn(*lead, rows * self.count, width, generator=generator)
        return whole[..., self.rank :: self.count, :]

    @_others_alive()
    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over the ranks, in a tensor of its own where there are several."""
        if self.count == 1:
            return value
        total = value.detach().clone()
        distributed.all_reduce(total)
        return total / self.count

    @_others_alive()
    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, laid end to end."""
        if self.count == 1:
            return rows
        found = [torch.empty_like(rows) for _ in range(self.count)]
        distributed.all_gather(found, rows.contiguous())
        return torch.cat(found)

    @_others_alive()
    def gather(self, value: Value) -> list[Value]:
        """Return a plain value of each rank, by rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value)
        return found

    @_others_alive()
    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        if self.count == 1:
            return flag
        shared = torch.tensor([float(flag)])
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        return bool(shared[0])

    def raise_together(self, error: NonFiniteError | None) -> None:
        """Raise on all ranks what any of them met; nothing where none met anything.

        Raises:
            NonFiniteError: With the messages of all.
        """
        if not self.any(error is not None):
            return
        shared = [text for text in self.gather(str(error) if error else None) if text]
        raise NonFiniteError("; ".join(shared)) from error

    def require_same(self, value: Any, what: str) -> None:
        """Raise unless all ranks have the same value, made of JSON's kinds of values.

        Raises:
            RunError: A rank has another value; the message names it by `what`.
        """
        text = json.dumps(value, sort_keys=True, default=str)
        digests = self.gather(hashlib.sha256(text.encode()).hexdigest())
        other = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if other:
            raise RunError(
                f"the ranks {other} have another {what} than rank 0; give all the same "
                "options, and put data, teachers and --output on a disk that they share"
            )

    def wait(self) -> None:
        """Go on once all ranks are here."""
        self.any(False)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let rank 0 go through a block before the others do."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()


ALONE = Ranks()
"""A run in a single process."""


def join(device: torch.device, *, some_unused: bool = False) -> tuple[Fabric, Ranks]:
    """Meet the other processes that torchrun started; without torchrun there are none.

    Args:
        device: Kind of device to train on.
        some_unused: Whether there are updates that do not use all weights.

    Raises:
        InputError: More processes on this machine than it has GPUs.
        RunError: The others cannot be reached.
    """
    if machine.world_size() == 1:
        return Fabric(accelerator=device.type, devices=1), ALONE
    started = machine.local_world_size()
    found = {"cuda": torch.cuda.device_count(), "cpu": started}.get(device.type, 1)
    if started > found:
        raise InputError(
            f"torchrun started {started} processes here, for {found} {device.type} device"
            f"{'s' * (found != 1)}; set --nproc-per-node to that, or train with --device cpu"
        )
    # gloo carries flags and texts beside nccl, so that no GPU is waited for.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    # torchrun keeps one store over restarts, with the addresses of the ranks before. On one
    # machine each attempt gets keys of its own; machines may count their restarts differently.
    attempt = machine.restarts() if machine.nodes() == 1 else 0
    fabric = Fabric(
        accelerator=device.type,
        devices=started,
        num_nodes=machine.nodes(),
        strategy=DDPStrategy(broadcast_buffers=False, find_unused_parameters=some_unused),
    )
    with _others_alive():
        store, rank, count = next(rendezvous("env://"))
        store = distributed.PrefixStore(f"attempt-{attempt}", store)  # type: ignore[attr-defined]
        distributed.init_process_group(
            backend, store=store, rank=rank, world_size=count, timeout=PATIENCE
        )
        fabric.launch()  # takes the group that it finds
    return fabric, Ranks(fabric.global_rank, fabric.world_size)
