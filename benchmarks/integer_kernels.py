"""Time the ways torch has to multiply by weights of 8 bits, at the sizes of a 1M agent.

All take turns in one process on one thread, so that what else the machine does hits all of them
alike; the least time of each counts:

    python benchmarks/integer_kernels.py
"""

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from tdmpc_opt import provenance

SHAPES = ((1, 158, 384), (1, 384, 384), (10, 384, 384), (512, 164, 384), (512, 384, 384))
"""Rows, inputs and outputs: one observation, ten, and the sequences of a plan."""


@dataclass(frozen=True)
class Config:
    """What to time."""

    rounds: int = 30
    """Measurements of each product, after one that does not count."""
    output: Path = Path("results/bench-integer-kernels.json")
    """Result file."""


def products(x: Tensor, weight: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return the same product with a float weight and with its 8-bit form."""
    scale = weight.abs().amax(dim=1) / 127
    codes = (weight / scale.unsqueeze(1)).round().to(torch.int8)

    def integer() -> Tensor:
        step = x.abs().amax(dim=1, keepdim=True) / 127
        rounded = (x / step).round().to(torch.int8)
        return torch._int_mm(rounded, codes.t()) * step * scale

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that quantised tensors are going away
        packed = torch.ops.quantized.linear_prepack(
            torch.quantize_per_channel(
                weight, scale.double(), torch.zeros(len(scale)).long(), 0, torch.qint8
            ),
            None,
        )
    return {
        "float32": lambda: functional.linear(x, weight),
        "int8 weights to float, ours": lambda: functional.linear(x, codes.float()) * scale,
        "_weight_int8pack_mm": lambda: torch._weight_int8pack_mm(x, codes, scale),
        "_int_mm, as torchao": integer,
        "fbgemm, 8-bit inputs": lambda: torch.ops.quantized.linear_dynamic(x, packed, False),
        "fbgemm, 7-bit inputs": lambda: torch.ops.quantized.linear_dynamic(x, packed, True),
    }


def main(config: Config) -> None:
    """Time the products, write the result file and print it as tables."""
    torch.set_num_threads(1)
    source = torch.Generator().manual_seed(0)
    rows = []
    for shape in SHAPES:
        x = torch.randn(shape[:2], generator=source)
        weight = torch.randn(shape[2], shape[1], generator=source) * 0.05
        exact = x.double() @ weight.double().T
        found = products(x, weight)
        least = dict.fromkeys(found, float("inf"))
        for turn in range(config.rounds + 1):
            for name, run in found.items():
                start = time.perf_counter()
                run()
                if turn:
                    least[name] = min(least[name], time.perf_counter() - start)
        for name, run in found.items():
            error = float((run() - exact).square().mean().sqrt() / exact.square().mean().sqrt())
            rows.append(
                {"shape": shape, "kernel": name, "us": least[name] * 1e6, "error": error}
            )
    content = {
        "kind": "kernels",
        "rows": rows,
        "config": {"rounds": config.rounds, "threads": 1},
        "versions": provenance.versions(),
        "machine": provenance.machine() | {"vector": torch.backends.cpu.get_cpu_capability()},
    }
    config.output.write_text(json.dumps(content, indent=1) + "\n")
    table = Table("rows x inputs x outputs", "kernel", "us", "relative error")
    for row in rows:
        size = " x ".join(map(str, row["shape"]))
        table.add_row(size, str(row["kernel"]), f"{row['us']:.0f}", f"{row['error']:.4f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main(tyro.cli(Config))
