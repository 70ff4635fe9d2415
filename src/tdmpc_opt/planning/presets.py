"""Named ways to act: planner budgets, and the policy alone."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from tdmpc_opt.configs.common import Mode
from tdmpc_opt.errors import CheckpointError, InputError
from tdmpc_opt.files import STORED_PRESETS, parse_json
from tdmpc_opt.schema import PlannerBudget


@dataclass(frozen=True)
class Preset:
    """A mode, and the budget of its plans."""

    mode: Mode = "planner"
    budget: PlannerBudget = field(default_factory=PlannerBudget)


PUBLISHED = "published"
"""Name of the preset that no checkpoint changes."""

PRESETS = {
    PUBLISHED: Preset(),
    "full": Preset(),
    "balanced": Preset(
        budget=PlannerBudget(
            horizon=3,
            iterations=3,
            samples=192,
            policy_samples=24,
            elites=24,
            temperature=1.0,
            mean_action=True,
        )
    ),
    "realtime": Preset(
        budget=PlannerBudget(
            horizon=2,
            iterations=1,
            samples=48,
            policy_samples=16,
            elites=6,
            temperature=4.0,
            mean_action=True,
        )
    ),
    "policy": Preset("policy"),
}
"""Presets of every agent. A checkpoint may store others under these names, such as a `full`
that is regularised, except `published`: TD-MPC2's own budget, which acts by a sampled elite."""

HELD = {
    name: Preset(
        budget=replace(preset.budget, mean_action=True, prior_penalty=0.3, prior_hold=300.0)
    )
    for name, preset in PRESETS.items()
    if preset.mode == "planner" and name != PUBLISHED
}
"""The same budgets with plans held near the policy, for students that imitate: their values are
those of the data, which says little of actions that nobody took."""


def find_preset(
    name: str | PlannerBudget | None, extra: Mapping[str, str] | None = None
) -> Preset:
    """Return a preset by name, or one with the budget given; None is `full`.

    `extra` are the further facts of a checkpoint, which may contain presets.

    Raises:
        InputError: No preset of that name.
        CheckpointError: The checkpoint's presets cannot be read.
    """
    if isinstance(name, PlannerBudget):
        return Preset(budget=name)
    known = PRESETS | stored(extra or {}) | {PUBLISHED: PRESETS[PUBLISHED]}
    found = known.get(name or "full")
    if found is None:
        raise InputError(f"unknown planner preset {name!r}; known: {', '.join(known)}")
    return found


def stored(extra: Mapping[str, str]) -> dict[str, Preset]:
    """Return a checkpoint's own presets by name.

    Raises:
        CheckpointError: They cannot be read.
    """
    try:
        records = parse_json(extra.get(STORED_PRESETS, "{}"))
        return {
            str(name): Preset(record["mode"], PlannerBudget(**record["budget"]))
            for name, record in records.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"the presets in the checkpoint cannot be read ({error}); store them again with "
            "tdmpc-opt tune-planner"
        ) from error


def storable(presets: Mapping[str, Preset]) -> dict[str, str]:
    """Return presets as an entry of a checkpoint's further facts."""
    return {STORED_PRESETS: json.dumps({name: asdict(each) for name, each in presets.items()})}
