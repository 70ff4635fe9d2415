"""What each layer's rounding alone does to actions and planned values."""

import copy
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdmpc_opt.checkpoints.checkpoint import Checkpoint, build
from tdmpc_opt.checkpoints.load import read_checkpoint, resolve, sha256
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.compression.accuracy import Reference
from tdmpc_opt.compression.calibration import (
    Observations,
    inputs_of,
    read_observations,
    try_actions,
)
from tdmpc_opt.compression.extract import compact_embedding, policy_only
from tdmpc_opt.compression.integers import (
    SEQUENCE_ROWS,
    as_float,
    refuse_quantized,
    round_layer,
    through,
    to_integers,
)
from tdmpc_opt.compression.recipe import PARTS, LayerFormat, layers, recipe, weight_bytes
from tdmpc_opt.compression.rounding import DTYPES, round_weights
from tdmpc_opt.configs import EvaluateConfig, SensitivityConfig
from tdmpc_opt.evaluation.evaluate import evaluate
from tdmpc_opt.evaluation.results import ResultFile
from tdmpc_opt.model.layers import Dense
from tdmpc_opt.model.quantized import IntFormat
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.progress import Progress, Silent

KIND = "sensitivity"
INTEGERS: tuple[IntFormat, ...] = ("int8", "int4")
FORMATS: tuple[LayerFormat, ...] = ("fp16", "int8", "int4")


@dataclass(frozen=True, slots=True)
class SensitivityRow:
    """One layer in one format, all others as they were."""

    layer: str
    """Name of the layer, such as `dynamics.1`."""
    format: LayerFormat
    """Format of its weight."""
    parameters: int
    """Numbers in its weight."""
    size_bytes: int
    """Bytes of its weight with the scales."""
    action_error: float
    """Root mean square change of the policy's action, in action units."""
    value_error: float | None
    """1 less the correlation of planned values; None of a policy alone."""
    score: float | None = None
    """Normalised score of the policy alone, where it was asked for."""


def measure(
    checkpoint: Checkpoint, used: Observations, held_out: Observations
) -> Iterator[SensitivityRow]:
    """Yield what each layer costs in each format.

    Args:
        checkpoint: An agent in floating point, without target Qs.
        used: Observations to calibrate with.
        held_out: Observations to measure with.
    """
    original = build(as_float(checkpoint), policy_will_do=True)
    reference = Reference(original, held_out)
    changed = copy.deepcopy(original)
    shapes = layers(checkpoint)
    for name, pair, seen in _layers_at_work(original, changed, used, list(shapes)):
        kept = copy.deepcopy(pair[1].state_dict())
        for kind in FORMATS:
            with torch.no_grad():
                round_layer(name, pair, (seen, seen), kind)
            shape = shapes[name]
            yield SensitivityRow(
                layer=name,
                format=kind,
                parameters=torch.Size(shape).numel(),
                size_bytes=weight_bytes(name, shape, kind),
                action_error=reference.action_error(changed).rms,
                value_error=reference.value_error(changed),
            )
        pair[1].load_state_dict(kept)


def measure_whole(
    checkpoint: Checkpoint, used: Observations, held_out: Observations
) -> list[dict[str, Any]]:
    """Return what storing the whole agent in each format costs, as JSON values."""
    reference = Reference(build(as_float(checkpoint), policy_will_do=True), held_out)
    compact = compact_embedding(checkpoint)
    agents = {
        kind: replace(checkpoint, tensors=round_weights(checkpoint.tensors, DTYPES[kind]))
        for kind in ("fp16", "bf16")
    }
    for kind in INTEGERS:
        agents[kind] = to_integers(compact, recipe(kind, compact), used)
    rows = []
    for name, small in agents.items():
        model = build(small, policy_will_do=True)
        actions = reference.action_error(model)
        by_task = {checkpoint.tasks.names[i]: rms for i, rms in actions.by_task.items()}
        rows.append(
            {
                "format": name,
                "size_bytes": sum(t.nbytes for t in small.tensors.values())
                + sum(weight.size_bytes for weight in small.quantized.values()),
                "action_error": actions.rms,
                "action_error_mean": actions.mean,
                "action_error_by_task": by_task,
                "value_error": reference.value_error(model),
            }
        )
    return rows


def _layers_at_work(
    original: WorldModel, changed: WorldModel, used: Observations, names: list[str]
) -> Iterator[tuple[str, tuple[Dense, Dense], Tensor]]:
    """Yield each layer of both models with what it sees in the original."""
    with torch.no_grad():
        tried = None
        if original.can_plan:
            tried = try_actions(original, used.spread(SEQUENCE_ROWS))
        for part in (part for part in PARTS if f"{part}.0" in names):
            seen = inputs_of(part, original, used, tried)
            networks = getattr(original, part), getattr(changed, part)
            for index, pair in enumerate(zip(*networks, strict=True)):
                yield f"{part}.{index}", pair, seen
                seen = through(pair[0], seen)


def sensitivity(config: SensitivityConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Measure every layer in every format on real observations and write the result file.

    Returns:
        The content of the result file.

    Raises:
        CheckpointError: A checkpoint that cannot be read, or is quantised already.
        DataError: No dataset, or none of the agent's tasks in it.
        ResultError: A file that cannot be written.
    """
    progress = progress or Silent()
    source = resolve(config.checkpoint)
    checkpoint = read_checkpoint(source)
    refuse_quantized(checkpoint, source)
    small = replace(checkpoint, tensors=checkpoint.without_targets())
    if config.policy_only:
        small = policy_only(small)
    compact = compact_embedding(small)
    used, held_out = read_observations(config.data, small.tasks)
    rows: list[SensitivityRow] = []
    total = len(layers(compact)) * len(FORMATS)
    for row in measure(compact, used, held_out):
        score = _score(compact, row, used, config) if config.episodes else None
        rows.append(replace(row, score=score))
        progress.update(len(rows), total, f"{row.layer} {row.format}")
    settings = {
        "checkpoint": {"name": source.name, "sha256": sha256(source)},
        "policy_only": config.policy_only,
        "data": config.data.resolve().name,
        "tasks": list(small.tasks.names),
        "calibration_rows": len(used),
        "measured_rows": len(held_out),
        "episodes": config.episodes,
        "seed": 0,
    }
    return ResultFile(config.output, KIND, settings).write(
        rows=[asdict(row) for row in rows], whole=measure_whole(small, used, held_out)
    )


def _score(
    checkpoint: Checkpoint, row: SensitivityRow, used: Observations, config: SensitivityConfig
) -> float | None:
    """Return the policy's score with this layer rounded; None where it has no part in it."""
    if not row.layer.startswith(("encoder.", "policy_head.")):
        return None
    policy = policy_only(checkpoint)
    formats: Mapping[str, LayerFormat] = {
        name: row.format if name == row.layer else "fp16" for name in layers(policy)
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one-layer.safetensors"
        write_native(path, to_integers(policy, formats, used))
        result = evaluate(
            EvaluateConfig(
                checkpoint=str(path),
                mode="policy",
                episodes=config.episodes,
                output=Path(folder) / "score.json",
                device="cpu",
                workers=config.workers,
                ray=config.ray,
            )
        )
    return float(result["score"]["mean"])
