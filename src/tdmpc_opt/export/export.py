"""`tdmpc-opt export`: trace, compare with torch, and write only what acts alike."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from tdmpc_opt.agents.agent import Agent
from tdmpc_opt.checkpoints.checkpoint import Checkpoint, build
from tdmpc_opt.checkpoints.load import read_checkpoint, resolve, sha256
from tdmpc_opt.compression.extract import one_task, policy_only
from tdmpc_opt.configs import ExportConfig
from tdmpc_opt.errors import CheckpointError, InputError
from tdmpc_opt.export.metadata import Facts, measured_score
from tdmpc_opt.export.parity import Parity, observations, planner_parity, policy_parity
from tdmpc_opt.export.targets import make_artifact
from tdmpc_opt.files import refuse_overwrite, replace_when_done
from tdmpc_opt.planning.presets import find_preset
from tdmpc_opt.runtime.onnx_file import open_onnx
from tdmpc_opt.schema import PlannerBudget
from tdmpc_opt.tasks import with_own_contracts

_TOLERANCE = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.3}
_TOLERANCE_OF_PLANS = {"fp32": 5e-3, "fp16": 0.2, "int8": 1.0}
_OF_TORCH_ITSELF = 3.0
"""Times the error of torch's own fp32 that a policy may err, where that is the larger."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What exporting one file cost, and how it acts."""

    source: Path
    """Checkpoint that was read."""
    output: Path
    """File, or folder of C source, that was written."""
    source_bytes: int
    """Length of the checkpoint."""
    output_bytes: int
    """Length of what was written, of all files together."""
    format: str
    """Number format of the weights."""
    preset: str | None
    """Name of the planner's budget; None for the policy alone."""
    parity: Parity
    """How its actions compare with torch's."""
    tolerance: float
    """What they had to keep."""
    seconds: float
    """How long exporting took."""


def export(config: ExportConfig, budget: PlannerBudget | None = None) -> ExportReport:
    """Write an agent for an engine without torch.

    Args:
        config: What to write and where.
        budget: Sizes of the planner's search; None takes the config's preset.

    Raises:
        CheckpointError: A checkpoint that cannot be read or cannot plan, actions that miss the
            tolerance, or a file that cannot be written.
        UnknownTaskError: A task that the agent does not know.
        InputError: An unknown preset, or no observations to check with.
        DataError, ResultError: A dataset or result file that does not fit.
        MissingDependencyError: A library that the target or the simulator needs.
    """
    refuse_overwrite(config)
    start = time.perf_counter()
    source = resolve(config.checkpoint)
    read = read_checkpoint(source, tasks=config.tasks)
    checkpoint = _part(read, config)
    digest, source_bytes = sha256(source), source.stat().st_size
    if not config.policy_only and budget is None:
        budget = _budget(config, read)
    score = None if config.result is None else measured_score(config.result, digest)
    facts = Facts(
        source=source,
        sha256=digest,
        config=checkpoint.config,
        tasks=checkpoint.tasks,
        contracts=with_own_contracts(checkpoint.contracts, checkpoint.tasks, config.tasks),
        number_format=config.format,
        preset=None if budget is None else config.preset or "full",
        budget=budget,
        score=score,
    )
    model = build(checkpoint, policy_will_do=config.policy_only)
    double = build(checkpoint, policy_will_do=config.policy_only, dtype=torch.float64)
    reference = Agent(double, mode="policy")
    seen = observations(reference, config.data)
    artifact = make_artifact(config, model, facts)
    single, exact = Agent(model, mode="policy"), config.format == "fp32"
    if budget is None:
        parity = policy_parity(artifact.run, reference, single, seen, exact=exact)
    else:
        parity = planner_parity(artifact.run, single, budget, seen)
    tolerance = config.tolerance or _usual_tolerance(config, parity)
    if not parity.judged_error <= tolerance:
        raise CheckpointError(_too_far(config, parity, tolerance))
    files = artifact.files(asdict(parity) | {"tolerance": tolerance})
    try:
        for name, content in files.items():
            with replace_when_done(config.output / name) as temporary:
                temporary.write_bytes(content)
                if config.target == "onnx":
                    open_onnx(temporary, threads=1, providers=None)
    except OSError as error:
        raise CheckpointError(f"cannot write {config.output}: {error.strerror}") from error
    return ExportReport(
        source=source,
        output=config.output,
        source_bytes=source_bytes,
        output_bytes=sum(map(len, files.values())),
        format=config.format,
        preset=facts.preset,
        parity=parity,
        tolerance=tolerance,
        seconds=time.perf_counter() - start,
    )


def _budget(config: ExportConfig, checkpoint: Checkpoint) -> PlannerBudget:
    chosen = find_preset(config.preset, checkpoint.extra)
    if chosen.mode == "policy":
        raise InputError(f"the preset {config.preset} plans nothing; export with --policy-only")
    return chosen.budget


def _part(checkpoint: Checkpoint, config: ExportConfig) -> Checkpoint:
    """Return what goes into the file, without target Qs."""
    part = replace(checkpoint, tensors=checkpoint.without_targets())
    if config.policy_only:
        part = policy_only(part)
    if config.task is not None:
        return one_task(part, config.task)
    if len(part.tasks) == 1 and part.config.task_dim:
        return one_task(part, part.tasks.names[0])
    return part


def _usual_tolerance(config: ExportConfig, parity: Parity) -> float:
    if not config.policy_only:
        return _TOLERANCE_OF_PLANS[config.format]
    return max(_TOLERANCE[config.format], _OF_TORCH_ITSELF * parity.torch_error)


def _too_far(config: ExportConfig, parity: Parity, tolerance: float) -> str:
    exact = parity.judged_error == parity.max_error
    how = "by up to" if exact else "in one of ten by more than"
    return (
        f"{config.output} is not written: its actions differ from torch's {how} "
        f"{parity.judged_error:.1e} (mean cosine {parity.cosine:.6f}), more than the tolerance "
        f"{tolerance:.1e}; take another --format, or allow more with --tolerance"
    )
