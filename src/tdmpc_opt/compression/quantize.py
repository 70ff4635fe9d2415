"""Storing an agent, or the part of it that a device needs, in fewer bytes."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from tdmpc_opt.checkpoints.checkpoint import Checkpoint, build
from tdmpc_opt.checkpoints.load import read_checkpoint, resolve, with_origin
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.compression.calibration import Observations, Reference, read_observations
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
from tdmpc_opt.configs import QuantizeConfig
from tdmpc_opt.errors import InputError
from tdmpc_opt.files import refuse_overwrite
from tdmpc_opt.progress import Progress, Silent
from tdmpc_opt.runtime.contract import CONTRACT, contracts_to_json
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
    max_error: float | None
    """Largest absolute change of a weight by rounding; None for integers, which differ on
    purpose where that keeps the outputs."""
    action_error: float | None = None
    """Root mean square change of the policy's actions on observations of the dataset that were
    not used otherwise, in action units; None without a dataset."""
    value_error: float | None = None
    """1 less the correlation of planned values there; None without dataset or world model."""
    undistilled: tuple[float, float | None] | None = None
    """Both errors before the distillation; None without one."""
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
    refuse_overwrite(config)
    source = resolve(config.checkpoint)
    checkpoint = read_checkpoint(source, tasks=config.tasks)
    refuse_quantized(checkpoint, source)
    part = replace(with_origin(checkpoint, source), tensors=checkpoint.without_targets())
    if config.policy_only:
        part = policy_only(part)
    if config.task is not None:
        part = one_task(part, config.task)
    if config.policy_only:
        contracts = with_own_contracts(checkpoint.contracts, part.tasks, config.tasks)
        own = {name: contracts[name] for name in part.tasks.names if name in contracts}
        part = replace(part, extra=part.extra | {CONTRACT: contracts_to_json(own)})
    report = QuantizeReport(
        source=source,
        output=config.output,
        format=config.format,
        source_bytes=source.stat().st_size,
        output_bytes=0,
        parameters=0,
        max_error=None,
    )
    if config.format in DTYPES:
        rounded = round_weights(part.tensors, DTYPES[config.format])
        errors = (
            float((part.tensors[name].double() - tensor.double()).abs().max())
            for name, tensor in rounded.items()
        )
        report = replace(report, max_error=max(errors))
        small = replace(part, tensors=rounded)
    else:
        small, report = _integers(config, part, report, progress or Silent())
    write_native(config.output, small)
    return replace(
        report, output_bytes=config.output.stat().st_size, parameters=small.parameters
    )


def _integers(
    config: QuantizeConfig, part: Checkpoint, report: QuantizeReport, progress: Progress
) -> tuple[Checkpoint, QuantizeReport]:
    """Return the agent in integers, and the errors of its actions and values."""
    part = compact_embedding(part)
    if config.data is None:
        return to_integers(part, _recipe(config, part), None), report
    used, held_out = read_observations(config.data, part.tasks)
    note = f"{len(used)} observations of {config.data.resolve().name}"
    part = replace(part, extra=part.extra | {"calibration": note})
    teacher = build(part, policy_will_do=True)
    reference = Reference(teacher, held_out)
    if config.format == "mixed":
        small = _mixed(config, part, (used, held_out), reference, progress)
    else:
        small = to_integers(part, _recipe(config, part), used)
    errors = before = _errors(small, reference)
    if config.distill_updates:
        trained = distilled(small, teacher, used, config.distill_updates, progress)
        after = _errors(trained, reference)
        report = replace(report, undistilled=before, distilled=_sum(after) < _sum(before))
        if report.distilled:
            small, errors = trained, after
    return small, replace(report, action_error=errors[0], value_error=errors[1])


def _sum(errors: tuple[float, float | None]) -> float:
    """Return both errors as one number; a loss of correlation is of the order of a square."""
    return errors[0] ** 2 + (errors[1] or 0.0)


def _recipe(config: QuantizeConfig, part: Checkpoint) -> Recipe:
    assert config.format in ("int8", "int4"), "other formats have no recipe"
    return recipe(config.format, part)


def _errors(small: Checkpoint, reference: Reference) -> tuple[float, float | None]:
    model = build(small, policy_will_do=True)
    return reference.action_error(model).rms, reference.value_error(model)


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
        action, value = _errors(small, reference)
        excess = (action / limits[0], (value or 0.0) / limits[1])
        if max(excess) <= 1:
            return small
        aims = (aims[0] / max(1.0, 1.05 * excess[0]), aims[1] / max(1.0, 1.05 * excess[1]))
    raise InputError(
        f"no mix of formats was found within these errors; the last one's were {action:.3g} "
        f"(actions) and {value or 0.0:.3g} (values): allow more, or take fp16"
    )


def _overhead_bytes(part: Checkpoint) -> int:
    """Return an upper bound of the bytes of a file without those of the layers' weights."""
    shapes = layers(part)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "all-int8.safetensors"
        write_native(path, to_integers(part, dict.fromkeys(shapes, "int8"), None))
        whole = path.stat().st_size
    return whole - sum(weight_bytes(name, shape, "int8") for name, shape in shapes.items())
