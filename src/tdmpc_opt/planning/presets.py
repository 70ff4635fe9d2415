"""Named planner budgets."""

from tdmpc_opt.configs import PlannerBudget
from tdmpc_opt.errors import InputError

PRESETS = {"full": PlannerBudget()}
"""`full` is the published budget, and what no preset means."""


def budget(preset: str | PlannerBudget | None) -> PlannerBudget:
    """Return the budget of a preset, or the one given; None is the full published one.

    Raises:
        InputError: No preset of that name.
    """
    if isinstance(preset, PlannerBudget):
        return preset
    name = preset or "full"
    if name not in PRESETS:
        raise InputError(f"unknown planner preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
