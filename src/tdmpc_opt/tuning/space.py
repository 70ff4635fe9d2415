"""The budgets that a search may try."""

from collections.abc import Mapping
from typing import Any

import optuna

from tdmpc_opt.schema import PlannerBudget

Parameters = dict[str, Any]
"""What the search draws, by name."""

FEWEST = 32
"""Sequences sampled per iteration, those of the policy prior not counted."""

_PUBLISHED: Parameters = {
    "horizon": 3,
    "iterations": 6,
    "samples": 488,
    "prior_share": 24 / 488,
    "elite_share": 64 / 512,
    "temperature": 0.5,
    "max_std": 2.0,
    "warm_mean": 1.0,
    "warm_std": 0.0,
    "converged_std": 0.0,
    "mean_action": False,
    "prior_penalty": 0.0,
    "prior_hold": 0.0,
}


def suggest(trial: optuna.Trial, max_samples: int, max_iterations: int) -> PlannerBudget:
    """Let the search draw a budget."""
    return budget_of(
        {
            "horizon": trial.suggest_int("horizon", 2, 5),
            "iterations": trial.suggest_int("iterations", 1, max_iterations),
            "samples": trial.suggest_int("samples", FEWEST, max_samples, log=True),
            "prior_share": trial.suggest_float("prior_share", 0.0, 1.0),
            "elite_share": trial.suggest_float("elite_share", 0.02, 0.5, log=True),
            "temperature": trial.suggest_float("temperature", 0.25, 8.0, log=True),
            "max_std": trial.suggest_float("max_std", 0.2, 2.0, log=True),
            "warm_mean": trial.suggest_categorical("warm_mean", [0.0, 1.0]),
            "warm_std": trial.suggest_categorical("warm_std", [0.0, 1.0, 2.0, 4.0]),
            "converged_std": trial.suggest_categorical("converged_std", [0.0, 0.1, 0.2, 0.4]),
            "mean_action": trial.suggest_categorical("mean_action", [False, True]),
            "prior_penalty": trial.suggest_categorical(
                "prior_penalty", [0.0, 0.03, 0.1, 0.3, 1.0]
            ),
            "prior_hold": trial.suggest_categorical("prior_hold", [0.0, 10.0, 100.0, 300.0]),
        }
    )


def budget_of(drawn: Mapping[str, Any]) -> PlannerBudget:
    """Return the budget.

    `samples` are those of the Gaussian; the policy prior's share of them comes on top. Shares,
    so that a choice means the same whatever the number of samples.
    """
    prior = round(drawn["prior_share"] * drawn["samples"])
    total = drawn["samples"] + prior
    return PlannerBudget(
        horizon=drawn["horizon"],
        iterations=drawn["iterations"],
        samples=total,
        policy_samples=prior,
        elites=max(2, round(drawn["elite_share"] * total)),
        temperature=drawn["temperature"],
        min_std=min(PlannerBudget.min_std, drawn["max_std"]),
        max_std=drawn["max_std"],
        warm_mean=drawn["warm_mean"],
        warm_std=drawn["warm_std"],
        converged_std=drawn["converged_std"],
        mean_action=drawn["mean_action"],
        prior_penalty=drawn["prior_penalty"] if prior else 0.0,
        prior_hold=drawn["prior_hold"] if prior else 0.0,
    )


def starts(max_samples: int, max_iterations: int) -> list[Parameters]:
    """Return what to try first: the published shape at small sizes, the cheapest first."""
    small = {"horizon": 2, "iterations": 1, "samples": FEWEST, "prior_share": 0.5}
    shapes: list[Parameters] = [
        small,
        small | {"mean_action": True},
        small | {"mean_action": True, "temperature": 4.0},
        small
        | {"mean_action": True, "temperature": 4.0, "prior_penalty": 0.3, "prior_hold": 300.0},
        small | {"horizon": 3, "samples": 64, "mean_action": True},
        small | {"horizon": 3, "samples": 64, "iterations": 2, "mean_action": True},
        {"samples": 128, "iterations": 2, "prior_share": 24 / 128},
        {
            **{"samples": 128, "iterations": 2, "prior_share": 24 / 128},
            **{"mean_action": True, "prior_penalty": 0.3},
        },
        {"samples": 256, "iterations": 3, "prior_share": 24 / 256},
    ]
    return [
        _PUBLISHED | shape
        for shape in shapes
        if shape["samples"] <= max_samples and shape["iterations"] <= max_iterations
    ]
