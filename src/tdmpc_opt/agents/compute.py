"""Where and how torch computes: the device, the threads, the precision of products."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tdmpc_opt.configs.common import MatmulPrecision
from tdmpc_opt.errors import InputError


def best_device(name: str = "auto") -> torch.device:
    """Return the named device; `auto` chooses CUDA, then Apple's MPS, then the CPU.

    Raises:
        InputError: A device that this machine does not offer.
    """
    usable = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    usable.append("cpu")
    try:
        device = torch.device(usable[0] if name == "auto" else name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}; take auto, cpu, cuda or mps") from None
    if device.type not in usable:
        raise InputError(f"device {name!r} is not available on this machine")
    return device


@contextmanager
def threads(count: int, matmul: MatmulPrecision = "highest") -> Iterator[None]:
    """Let torch compute on so many threads, and with this precision of matrix products.

    On one thread, sums round equally on every machine.
    """
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(count)
    torch.set_float32_matmul_precision(matmul)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
