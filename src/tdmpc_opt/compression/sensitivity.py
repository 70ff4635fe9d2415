"""The error that rounding each layer alone causes, and the mix of formats chosen by it."""

import copy
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp

from tdmpc_opt.agents.sources import open_source
from tdmpc_opt.agents.timing import seconds_of
from tdmpc_opt.checkpoints.checkpoint import Checkpoint, build
from tdmpc_opt.checkpoints.load import read_checkpoint, resolve
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.compression.calibration import Observations, Reference, read_observations
from tdmpc_opt.compression.extract import compact_embedding, policy_only
from tdmpc_opt.compression.rounding import (
    DTYPES,
    LayerFormat,
    layers,
    layers_at_work,
    recipe,
    refuse_quantized,
    round_layer,
    round_weights,
    to_integers,
    weight_bytes,
)
from tdmpc_opt.configs.common import CHOICE_SEED
from tdmpc_opt.configs.deploy import SensitivityConfig
from tdmpc_opt.configs.measure import EvaluateConfig
from tdmpc_opt.errors import InputError
from tdmpc_opt.evaluation.evaluate import evaluate
from tdmpc_opt.files import file_identity, refuse_overwrite
from tdmpc_opt.machine import ResultFile, choose_processes
from tdmpc_opt.model.quantized import IntFormat
from tdmpc_opt.progress import Progress, Silent, expected

KIND = "sensitivity"
INTEGERS: tuple[IntFormat, ...] = ("int8", "int4")
FORMATS: tuple[LayerFormat, ...] = ("fp16", "int8", "int4")


_POLICY_LAYERS = ("encoder.", "policy_head.")


@dataclass(frozen=True, slots=True)
class SensitivityRow:
    """One layer in one format, all others as they were."""

    layer: str
    """Name of the layer, such as `dynamics.1`."""
    format: LayerFormat
    parameters: int
    size_bytes: int
    """Bytes of its weight with the scales."""
    action_error: float
    """Root mean square change of the policy's action, in action units."""
    value_error: float | None
    """1 less the correlation of planned values; None of a policy alone."""
    score: float | None = None
    """Normalised score of the policy alone; None without episodes."""


def measure(
    checkpoint: Checkpoint,
    used: Observations,
    held_out: Observations,
    progress: Progress,
    score_seconds: float = 0.0,
) -> Iterator[SensitivityRow]:
    """Yield the error of each layer of an agent without target Qs in each format.

    `score_seconds` is what the caller spends on all rows, for the estimate of the time.
    """
    original = build(checkpoint, policy_will_do=True)
    start = time.perf_counter()
    reference = Reference(original, held_out)
    changed = copy.deepcopy(original)
    shapes = layers(checkpoint)
    total = len(shapes) * len(FORMATS)
    seconds = total * (time.perf_counter() - start) + score_seconds
    progress.update(0, total, f"{len(shapes)} layers{expected(seconds)}")
    done = 0
    for name, pair, seen in layers_at_work(original, changed, used):
        kept = copy.deepcopy(pair[1].state_dict())
        for kind in FORMATS:
            with torch.no_grad():
                round_layer(name, pair, seen, kind)
            shape, errors = shapes[name], reference.errors(changed)
            size = weight_bytes(name, shape, kind)
            count = torch.Size(shape).numel()
            yield SensitivityRow(name, kind, count, size, errors.action, errors.value)
            done += 1
            progress.update(done, total, f"{name} {kind}")
        pair[1].load_state_dict(kept)


def measure_whole(
    checkpoint: Checkpoint, used: Observations, held_out: Observations
) -> list[dict[str, Any]]:
    """Return the errors of the whole agent in each format, as JSON values."""
    reference = Reference(build(checkpoint, policy_will_do=True), held_out)
    compact = compact_embedding(checkpoint)
    agents = {
        kind: replace(checkpoint, tensors=round_weights(checkpoint.tensors, DTYPES[kind]))
        for kind in ("fp16", "bf16")
    }
    for kind in INTEGERS:
        agents[kind] = to_integers(compact, recipe(kind, compact), used)
    rows = []
    for name, small in agents.items():
        errors = reference.errors(build(small, policy_will_do=True))
        rows.append(
            {
                "format": name,
                "size_bytes": small.size_bytes,
                "action_error": errors.action,
                "action_error_mean": errors.action_mean,
                "action_error_by_task": {
                    checkpoint.tasks.names[index]: rms for index, rms in errors.by_task.items()
                },
                "value_error": errors.value,
            }
        )
    return rows


def sensitivity(config: SensitivityConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Measure every layer in every format on real observations and write the result file.

    Returns:
        The content of the result file.

    Raises:
        CheckpointError: A checkpoint that cannot be read, or is quantised already.
        DataError: No dataset, or none of the agent's tasks in it.
        ResultError: A file that cannot be written.
    """
    refuse_overwrite(config, ".json")
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
    for row in measure(compact, used, held_out, progress, _score_seconds(compact, config)):
        score = _score(compact, row, used, config) if config.episodes else None
        rows.append(replace(row, score=score))
    settings = {
        "checkpoint": file_identity(source),
        "policy_only": config.policy_only,
        "data": config.data.resolve().name,
        "tasks": list(small.tasks.names),
        "calibration_rows": len(used),
        "measured_rows": len(held_out),
        "episodes": config.episodes,
        "seed": CHOICE_SEED,
    }
    return ResultFile(config.output, KIND, settings).write(
        rows=[asdict(row) for row in rows], whole=measure_whole(small, used, held_out)
    )


def _score_seconds(checkpoint: Checkpoint, config: SensitivityConfig) -> float:
    """Return how long the scores take, in seconds, as far as this machine decides it."""
    if not config.episodes or config.ray:
        return 0.0
    scored = sum(name.startswith(_POLICY_LAYERS) for name in layers(checkpoint)) * len(FORMATS)
    policy = open_source(config.checkpoint, mode="policy", device="cpu")
    episodes = dict.fromkeys(policy.tasks(None).tasks, config.episodes * scored)
    return seconds_of([policy], episodes, choose_processes(config.workers).count)


def _score(
    checkpoint: Checkpoint, row: SensitivityRow, used: Observations, config: SensitivityConfig
) -> float | None:
    """Return the policy's score with this layer rounded; None for layers of the world model."""
    if not row.layer.startswith(_POLICY_LAYERS):
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
                seed=CHOICE_SEED,
                output=Path(folder) / "score.json",
                device="cpu",
                workers=config.workers,
                ray=config.ray,
            )
        )
    return float(result["score"]["mean"])


def refuse_too_little(checkpoint: Checkpoint, budget_bytes: int) -> None:
    """Refuse a budget below the size of the smallest mix of formats.

    Raises:
        InputError: The layers' weights take more bytes than these in any mix.
    """
    least = sum(
        min(weight_bytes(name, shape, kind) for kind in FORMATS)
        for name, shape in layers(checkpoint).items()
    )
    if least > budget_bytes:
        raise InputError(
            f"no mix fits: the layers' weights take {least:,} bytes at least, and the budget "
            f"leaves {max(budget_bytes, 0):,} for them"
        )


def most_accurate(rows: Sequence[SensitivityRow], budget_bytes: int) -> dict[str, LayerFormat]:
    """Return the formats of least error whose weights take no more than these bytes.

    Errors of layers are taken as independent: the squares of their action errors add up, and
    so do their losses of correlation, which are of the order of squares.
    """
    sizes, squares, losses = _costs(rows)
    found = _solve(rows, squares + losses, [(sizes, float(budget_bytes))])
    assert found is not None, "refuse_too_little comes first"
    return found


def smallest(
    rows: Sequence[SensitivityRow], max_action_error: float, max_value_error: float
) -> dict[str, LayerFormat]:
    """Return the formats of fewest bytes whose errors, as in `SensitivityRow`, are below these.

    Raises:
        InputError: Not even the most accurate mix does.
    """
    sizes, squares, losses = _costs(rows)
    limits = [(squares, max_action_error**2), (losses, max_value_error)]
    found = _solve(rows, sizes, limits)
    if found is None:
        raise InputError(
            "no mix of fp16, int8 and int4 stays below these errors; allow more, or take fp16"
        )
    return found


def _costs(rows: Sequence[SensitivityRow]) -> np.ndarray:
    """Return bytes, squared action errors and losses of correlation, [3, rows]."""
    values = [(row.size_bytes, row.action_error**2, row.value_error or 0.0) for row in rows]
    return np.array(values, np.float64).T


def _solve(
    rows: Sequence[SensitivityRow],
    cost: np.ndarray,
    limits: Sequence[tuple[np.ndarray, float]],
) -> dict[str, LayerFormat] | None:
    """Choose one row of each layer at the least cost; None where none is within the limits."""
    names = list(dict.fromkeys(row.layer for row in rows))
    one_each = np.array([[row.layer == name for row in rows] for name in names], np.float64)
    constraints = [LinearConstraint(one_each, 1, 1)]
    # Scaled to limits of 1: the solver's tolerance is absolute, and errors are small.
    constraints += [LinearConstraint(use / limit, -np.inf, 1) for use, limit in limits]
    result = milp(
        cost / max(float(cost.max()), np.finfo(np.float64).tiny),
        integrality=np.ones(len(rows)),
        bounds=Bounds(0, 1),
        constraints=constraints,
    )
    if result.x is None:
        return None
    return {
        row.layer: row.format for row, share in zip(rows, result.x, strict=True) if share > 0.5
    }
