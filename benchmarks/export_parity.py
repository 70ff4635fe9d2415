"""Differences of exported files from torch, on real observations of all tasks of a student.

Exports each file as `tdmpc-opt export` does and stores its comparison: policies of every target
and number format on 40 observations of each task, the planner on one plan of each task. Writes
results/export-parity.json:

    python benchmarks/export_parity.py
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from rich.console import Console
from timing import save

from tdmpc_opt.configs.deploy import ExportConfig, ExportFormat, ExportTarget
from tdmpc_opt.export.export import export

POLICIES: tuple[tuple[ExportTarget, ExportFormat], ...] = (
    *(("c", "fp32"), ("c", "int8")),
    *(("onnx", "fp32"), ("onnx", "fp16"), ("onnx", "int8")),
)


@dataclass(frozen=True)
class Config:
    """What to compare."""

    checkpoint: str = "mt30-1m"
    """Checkpoint file or zoo name."""
    preset: str = "realtime"
    """Budget of the planner."""
    output: Path = Path("results/export-parity.json")
    """Result file."""


def main(config: Config) -> None:
    """Export and compare each file, write the result file and print its figures."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for target, kind in POLICIES:
            options = {"target": target, "format": kind, "policy_only": True}
            found[f"policy, {target} {kind}"] = options
        found[f"planner {config.preset}, onnx fp32"] = {"preset": config.preset}
        for number, (name, options) in enumerate(found.items()):
            output = Path(folder) / f"{number}.{options.get('target', 'onnx')}"
            report = export(
                ExportConfig(checkpoint=config.checkpoint, output=output, **options)
            )
            figures = asdict(report.parity) | {"tolerance": report.tolerance}
            del figures["act_ms"]  # timed in bench-device-latency
            found[name] = figures
            Console().print_json(data={name: figures})
    save("export-parity", config, {"files": found})


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
