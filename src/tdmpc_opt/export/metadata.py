"""What an exported file says of itself."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tdmpc_opt
from tdmpc_opt.errors import ResultError
from tdmpc_opt.evaluation.results import read_evaluation
from tdmpc_opt.evaluation.score import stored_score, unit_of
from tdmpc_opt.planning.mppi import iterations
from tdmpc_opt.runtime.contract import CONTRACT, Contracts, contracts_to_json
from tdmpc_opt.runtime.onnx_file import FORMAT, SCHEMA
from tdmpc_opt.schema import ModelConfig, PlannerBudget, PlanRules, TaskTable


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Where a file comes from, and what it holds."""

    source: Path
    """Checkpoint it was made from."""
    sha256: str
    """SHA-256 of the checkpoint."""
    config: ModelConfig
    """Widths of the exported agent."""
    tasks: TaskTable
    """Its tasks."""
    contracts: Contracts
    """What is known of their numbers."""
    number_format: str
    """Number format of the weights."""
    preset: str | None
    """Name of the planner's budget; None for the policy alone."""
    budget: PlannerBudget | None
    """The planner's budget; None for the policy alone."""
    score: Mapping[str, Any] | None
    """Measured score of the checkpoint."""


def metadata(facts: Facts, check: Mapping[str, Any]) -> dict[str, str]:
    """Return the entries of a file's metadata, by name.

    Args:
        facts: What the file holds.
        check: How its actions compare with torch's.
    """
    entries = {
        "format": FORMAT,
        "schema": str(SCHEMA),
        "version": tdmpc_opt.__version__,
        "kind": "policy" if facts.budget is None else "planner",
        "tasks": json.dumps(facts.tasks.to_json()),
        CONTRACT: contracts_to_json(facts.contracts),
        "number_format": facts.number_format,
        "source": facts.source.name,
        "source_sha256": facts.sha256,
        "check": json.dumps(check),
    }
    if facts.score is not None:
        entries["score"] = json.dumps(facts.score)
    if facts.budget is not None:
        sizes = {rule.name: getattr(facts.budget, rule.name) for rule in fields(PlanRules)}
        plan = sizes | {
            "preset": facts.preset,
            "rounds": iterations(facts.budget, facts.config.action_dim),
            "num_q": facts.config.num_q,
        }
        entries["plan"] = json.dumps(plan)
    return entries


def measured_score(path: Path, sha256: str) -> dict[str, Any]:
    """Return what a result file says of a checkpoint.

    Raises:
        ResultError: The file is missing or damaged, is of another checkpoint, or unfinished.
    """
    content = read_evaluation(path)
    config = content["config"]
    found = config.get("checkpoint", {})
    if found.get("sha256") != sha256:
        raise ResultError(
            f"{path} is a result of another checkpoint ({found.get('name')}); name one of this"
        )
    if not content.get("complete"):
        raise ResultError(f"{path} is unfinished; run the same tdmpc-opt evaluate again")
    unit = unit_of(content["tasks"])
    score = unit.shown(stored_score(content["score"]))
    return {
        "mean": score.mean,
        "ci95": score.ci95,
        "unit": unit.name,
        "tasks": len(content["tasks"]),
        "episodes": config.get("episodes"),
        "mode": config.get("mode"),
    }
