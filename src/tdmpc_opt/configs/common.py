"""What configs of several commands share."""

from typing import Literal

from tdmpc_opt.errors import InputError

Mode = Literal["planner", "policy"]
Device = Literal["auto", "cpu", "cuda", "mps"]
EngineName = Literal["auto", "eager"]
"""`auto` is ONNX Runtime where it is installed and the agent fits, and else eager torch."""

COLLECTION_SEED = 1_000_000
"""First environment seed of experts, collection and relabelling; evaluation stays below."""


def device_of_work(device: Device, ray: str | None) -> Device:
    """Return where the networks of work for `run_parallel` run: on a Ray cluster, the CPU.

    Raises:
        InputError: Another device is asked for on a Ray cluster.
    """
    if ray is not None and device in ("cuda", "mps"):
        raise InputError(
            f"--ray shares CPUs alone, and --device {device} was asked for; leave one out"
        )
    return device if ray is None else "cpu"
