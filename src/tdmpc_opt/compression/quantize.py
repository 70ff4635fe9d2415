"""Storing an agent, or the part of it that a device needs, in fewer bytes."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tdmpc_opt.checkpoints.checkpoint import Checkpoint, build
from tdmpc_opt.checkpoints.load import read_checkpoint, resolve, with_origin
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.checkpoints.summary import stored_contracts
from tdmpc_opt.compression.calibration import Errors, Observations, Reference, read_observations
from tdmpc_opt.compression.distillation import distilled
from tdmpc_opt.compression.extract import compact_embedding, one_task, policy_only
from tdmpc_opt.compression.rounding import (
    DTYPES,
    Recipe,
    layers,
    recipe,
    refuse_quantized,
    round_weights,
    to_integers,
    weight_bytes,
)
from tdmpc_opt.compression.sensitivity import (
    measure,
    most_accurate,
    refuse_too_little,
    smallest,
)
from tdmpc_opt.configs.deploy import QuantizeConfig
from tdmpc_opt.contract import contracts_to_json
from tdmpc_opt.errors import InputError
from tdmpc_opt.files import CONTRACT, refuse_overwrite
from tdmpc_opt.progress import Progress, Silent
from tdmpc_opt.tasks import with_own_contracts

_TRIES = 6


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """The result of quantizing one file."""

    source: Path
    output: Path
    format: str
    source_bytes: int
    output_bytes: int
    parameters: int
    """Weights written; target Qs are left out, and columns of a wide task embedding."""
    max_error: float | None = None
    """Largest absolute change of a weight by rounding; None for integers, which differ on
    purpose where that keeps the outputs."""
    errors: Errors | None = None
    """Of the actions and planned values on observations of the dataset that were not used
    otherwise; None without a dataset."""
    undistilled: Errors | None = None
    """Those before the distillation; None without one."""
    distilled: bool = False
    """Whether its weights were kept, being closer to the original's."""


def quantize(config: QuantizeConfig, progress: Progress | None = None) -> QuantizeReport:
    """Write a smaller copy without target Qs, which acting does not need.

    Raises:
        UnknownTaskError: A task that the agent does not have.
        CheckpointError: A source that cannot be read or is quantised already, a weight too
            large for the format, or a file that cannot be written.
        DataError: No dataset where one is named, or none of the agent's tasks in it.
        InputError: A budget below the size of every mix of formats.
    """
    refuse_overwrite(config, ".safetensors")
    source = resolve(config.checkpoint)
    checkpoint = read_checkpoint(source, tasks=config.tasks)
    refuse_quantized(checkpoint, source)
    part = replace(with_origin(checkpoint, source), tensors=checkpoint.without_targets())
    if config.policy_only:
        part = policy_only(part)
    if config.task is not None:
        part = one_task(part, config.task)
    if config.policy_only:
        contracts = with_own_contracts(stored_contracts(checkpoint), part.tasks, config.tasks)
        own = {name: contracts[name] for name in part.tasks.names if name in contracts}
        part = replace(part, extra=part.extra | {CONTRACT: contracts_to_json(own)})
    measured: dict[str, Any] = {}
    if config.format in DTYPES:
        small = replace(part, tensors=round_weights(part.tensors, DTYPES[config.format]))
        measured["max_error"] = max(
            float((part.tensors[name].double() - tensor.double()).abs().max())
            for name, tensor in small.tensors.items()
        )
    else:
        small, measured = _integers(config, part, progress or Silent())
    write_native(config.output, small)
    return QuantizeReport(
        source=source,
        output=config.output,
        format=config.format,
        source_bytes=source.stat().st_size,
        output_bytes=config.output.stat().st_size,
        parameters=small.parameters,
        **measured,
    )


def _integers(
    config: QuantizeConfig, part: Checkpoint, progress: Progress
) -> tuple[Checkpoint, dict[str, Any]]:
    """Return the agent in integers, and what the report states of its errors."""
    part = compact_embedding(part)
    if config.data is None:
        return to_integers(part, _recipe(config, part), None), {}
    used, held_out = read_observations(config.data, part.tasks)
    note = f"{len(used)} observations of {config.data.resolve().name}"
    part = replace(part, extra=part.extra | {"calibration": note})
    teacher = build(part, policy_will_do=True)
    reference = Reference(teacher, held_out)
    if config.format == "mixed":
        small = _mixed(config, part, (used, held_out), reference, progress)
    else:
        small = to_integers(part, _recipe(config, part), used)
    errors = _errors(small, reference)
    if not config.distill_updates:
        return small, {"errors": errors}
    trained = distilled(small, teacher, used, config.distill_updates, progress)
    after = _errors(trained, reference)
    if after.sum < errors.sum:
        return trained, {"errors": after, "undistilled": errors, "distilled": True}
    return small, {"errors": errors, "undistilled": errors}


def _recipe(config: QuantizeConfig, part: Checkpoint) -> Recipe:
    assert config.format in ("int8", "int4"), "other formats have no recipe"
    return recipe(config.format, part)


def _errors(small: Checkpoint, reference: Reference) -> Errors:
    return reference.errors(build(small, policy_will_do=True))


def _mixed(
    config: QuantizeConfig,
    part: Checkpoint,
    observations: tuple[Observations, Observations],
    reference: Reference,
    progress: Progress,
) -> Checkpoint:
    """Return the agent with the mix of formats that the config requests."""
    used = observations[0]
    if config.budget_bytes is not None:
        room = config.budget_bytes - _overhead_bytes(part)
        refuse_too_little(part, room)  # before minutes of measuring
        formats = most_accurate(list(measure(part, *observations, progress)), room)
        return to_integers(part, formats, used)
    rows = list(measure(part, *observations, progress))
    assert config.max_action_error is not None, "the config has one of the two"
    limits = aims = (config.max_action_error, config.max_value_error)
    for _ in range(_TRIES):  # errors of layers add up only roughly: what misses is tightened
        small = to_integers(part, smallest(rows, *aims), used)
        found = _errors(small, reference)
        excess = (found.action / limits[0], (found.value or 0.0) / limits[1])
        if max(excess) <= 1:
            return small
        aims = (aims[0] / max(1.0, 1.05 * excess[0]), aims[1] / max(1.0, 1.05 * excess[1]))
    raise InputError(
        "no mix of formats was found within these errors; the last one's were "
        f"{found.action:.3g} (actions) and {found.value or 0.0:.3g} (values): allow more, or "
        "take fp16"
    )


def _overhead_bytes(part: Checkpoint) -> int:
    """Return an upper bound of the bytes of a file without those of the layers' weights."""
    shapes = layers(part)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "all-int8.safetensors"
        write_native(path, to_integers(part, dict.fromkeys(shapes, "int8"), None))
        whole = path.stat().st_size
    return whole - sum(weight_bytes(name, shape, "int8") for name, shape in shapes.items())
