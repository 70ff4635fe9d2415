"""Flash, RAM and instructions of the C policy on an emulated Cortex-M board without a system.

Needs Debian's gcc-arm-none-eabi, libnewlib-arm-none-eabi and qemu-system-arm, and the extras
c and envs. Writes results/bench-microcontroller.json:

    python benchmarks/microcontroller.py --task walker-walk
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from timing import save

from tdmpc_opt import make_env
from tdmpc_opt.agents.agent import Agent, load_agent
from tdmpc_opt.configs.deploy import ExportConfig, ExportFormat
from tdmpc_opt.export.export import export

FIRMWARE = Path(__file__).parent / "firmware"
BOARDS = {
    "cortex-m4": ("mps2-an386", ("-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16")),
    "cortex-m7": ("mps2-an500", ("-mcpu=cortex-m7", "-mfpu=fpv5-sp-d16")),
}
"""QEMU's machine and the compiler's options, by processor."""
ROWS = 40
"""Observations of an episode that the board acts on."""
INSTRUCTIONS_PER_TICK = 40
"""The boards' processors run at 25 MHz; -icount shift=0 counts an instruction as 1 ns."""


@dataclass(frozen=True)
class Config:
    """What to measure."""

    checkpoint: str = "mt30-1m"
    """Checkpoint file or zoo name."""
    task: str = "walker-walk"
    """Task whose policy is exported."""
    formats: tuple[ExportFormat, ...] = ("fp32", "int8")
    """Number formats of the weights."""
    output: Path = Path("results/bench-microcontroller.json")
    """Result file."""


def main(config: Config) -> None:
    """Measure each format on each board, write the result file and print its figures."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        for number_format in config.formats:
            folder = Path(name) / number_format
            export(
                ExportConfig(
                    checkpoint=config.checkpoint,
                    policy_only=True,
                    task=config.task,
                    target="c",
                    format=number_format,
                    output=folder,
                )
            )
            for processor in BOARDS:
                figures = measure(folder, config.checkpoint, config.task, processor)
                found.append({"format": number_format, "processor": processor, **figures})
    compiler = _output(["arm-none-eabi-gcc", "--version"]).splitlines()[0]
    emulator = _output(["qemu-system-arm", "--version"]).splitlines()[0]
    save("microcontroller", config, {"boards": found, "tools": [compiler, emulator]})
    Console().print_json(data=found)


def measure(folder: Path, checkpoint: str, task: str, processor: str) -> dict[str, Any]:
    """Run an exported policy on a board and compare its actions with torch's.

    Args:
        folder: C source of the policy of one task.
        checkpoint: What it was exported from.
        task: The task.
        processor: One of `BOARDS`.
    """
    agent = load_agent(checkpoint, mode="policy")
    rows = _driven(agent, task)
    header = next(folder.glob("*.h"))
    machine, options = BOARDS[processor]
    with tempfile.TemporaryDirectory() as name:
        build = Path(name)
        (build / "policy.h").write_text(f'#include "{header.name}"\n')
        (build / "test.h").write_text(
            _test_header(header.stem, rows, agent.tasks[task].action_dim)
        )
        program = build / "firmware.elf"
        command = [
            "arm-none-eabi-gcc",
            *options,
            *("-mthumb", "-mfloat-abi=hard", "-std=gnu99", "-O2", "-Wall", "-Werror"),
            *("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections", "-nostartfiles"),
            *("--specs=nano.specs", "--specs=nosys.specs"),
            *(f"-T{FIRMWARE / 'link.ld'}", f"-I{build}", f"-I{folder}", "-o", str(program)),
            *(str(FIRMWARE / "firmware.c"), str(folder / f"{header.stem}.c"), "-lm"),
        ]
        subprocess.run(command, check=True)
        flash, data = _sections(program)
        printed = _output(
            [
                *("qemu-system-arm", "-M", machine, "-icount", "shift=0", "-nographic"),
                *("-monitor", "none", "-serial", "none"),
                *("-semihosting-config", "enable=on,target=native", "-kernel", str(program)),
            ]
        )
    values = [
        (word, int(number, 16)) for word, number in re.findall(r"(\w+) ([0-9a-f]{8})", printed)
    ]
    statuses = [value for name, value in values if name == "status"]
    if len(statuses) != len(rows) or any(statuses):
        raise SystemExit(f"the board gave statuses {statuses} for {len(rows)} observations")
    bits = np.array([value for name, value in values if name == "action"], np.uint32)
    actions = bits.view(np.float32).reshape(len(rows), -1)
    errors = np.abs(actions - agent.act(rows, task)).max(1)
    named = dict(values)
    return {
        "flash_bytes": flash,
        "ram_bytes": data + named["stack"],
        "stack_bytes": named["stack"],
        "instructions": round(named["ticks"] * INSTRUCTIONS_PER_TICK / len(rows)),
        "actions": len(rows),
        "largest_difference_from_torch": float(errors.max()),
        "nine_of_ten_within": float(np.quantile(errors, 0.9)),
    }


def _driven(agent: Agent, task: str) -> NDArray[np.float32]:
    """Return the observations of the first steps of an episode."""
    env = make_env(task, 1)
    rows = [env.reset()[0]]
    while len(rows) < ROWS:
        rows.append(env.step(agent.act(rows[-1], task))[0])
    return np.stack(rows)


def _test_header(prefix: str, rows: NDArray[np.float32], actions: int) -> str:
    numbers = ",\n".join("{" + ", ".join(map(float.hex, row.tolist())) + "}" for row in rows)
    return (
        f"#define OBS {rows.shape[1]}\n#define ACTION {actions}\n#define ROWS {len(rows)}\n"
        f"#define ACT {prefix}_act\n#define TASK 0\n"
        '__attribute__((section(".test"))) static const float rows[ROWS][OBS] = '
        f"{{{numbers}}};\n"
    )


def _sections(program: Path) -> tuple[int, int]:
    """Return the bytes that a program takes of flash and, but for its stack, of RAM."""
    listed = _output(["arm-none-eabi-size", "-A", str(program)])
    sizes = {name: int(size) for name, size in re.findall(r"^(\.\w+)\s+(\d+)", listed, re.M)}
    return sizes[".text"] + sizes.get(".data", 0), sizes.get(".data", 0) + sizes.get(".bss", 0)


def _output(command: list[str]) -> str:
    """Return what a program prints; its error stream too, which semihosting writes to."""
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return done.stdout + done.stderr


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
