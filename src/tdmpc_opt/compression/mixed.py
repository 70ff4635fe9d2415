"""Choosing each layer's format from what each was measured to cost."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from tdmpc_opt.checkpoints.checkpoint import Checkpoint
from tdmpc_opt.compression.recipe import LayerFormat, layers, weight_bytes
from tdmpc_opt.compression.sensitivity import FORMATS, SensitivityRow
from tdmpc_opt.errors import InputError


def refuse_too_little(checkpoint: Checkpoint, budget_bytes: int) -> None:
    """Refuse a budget that not even the smallest mix of formats meets.

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
    so do their losses of correlation, which are the like of squares.

    Args:
        rows: What was measured.
        budget_bytes: Bytes for the layers' weights; at least those of the smallest mix.
    """
    sizes = np.array([row.size_bytes for row in rows], np.float64)
    found = _solve(rows, _squares(rows) + _losses(rows), [(sizes, float(budget_bytes))])
    assert found is not None, "refuse_too_little comes first"
    return found


def smallest(
    rows: Sequence[SensitivityRow], max_action_error: float, max_value_error: float
) -> dict[str, LayerFormat]:
    """Return the formats of fewest bytes whose errors stay below these.

    Args:
        rows: What was measured.
        max_action_error: Root mean square change of the policy's actions, in action units.
        max_value_error: 1 less the correlation of planned values.

    Raises:
        InputError: Not even the most accurate mix does.
    """
    sizes = np.array([row.size_bytes for row in rows], np.float64)
    limits = [(_squares(rows), max_action_error**2), (_losses(rows), max_value_error)]
    found = _solve(rows, sizes, limits)
    if found is None:
        raise InputError(
            "no mix of fp16, int8 and int4 stays below these errors; allow more, or take fp16"
        )
    return found


def _squares(rows: Sequence[SensitivityRow]) -> np.ndarray:
    return np.array([row.action_error**2 for row in rows])


def _losses(rows: Sequence[SensitivityRow]) -> np.ndarray:
    return np.array([row.value_error or 0.0 for row in rows])


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
