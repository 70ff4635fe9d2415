"""A model as a folder that people and hubs expect: weights, config.json and a model card."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from tdmpc_opt.checkpoints.checkpoint import Checkpoint
from tdmpc_opt.checkpoints.load import read_checkpoint, resolve, with_origin
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.checkpoints.summary import CheckpointSummary, describe
from tdmpc_opt.configs.deploy import ConvertConfig
from tdmpc_opt.errors import CheckpointError, counted, printable
from tdmpc_opt.evaluation.results import read_finished
from tdmpc_opt.evaluation.score import stored_score, unit_of
from tdmpc_opt.files import (
    CHECKPOINT_SCHEMA,
    CURVES,
    MODEL_FILE,
    alone,
    parse_json,
    refuse_overwrite,
    sha256,
    write_json,
    written_together,
)
from tdmpc_opt.schema import MT30

_TAGS = ("reinforcement-learning", "world-model", "tdmpc2", "robotics", "continuous-control")
_LONGEST = 20_000
"""Characters of a fact; one is the whole configuration of a run."""


def save_folder(config: ConvertConfig) -> CheckpointSummary:
    """Write the same weights, bit for bit, as a model folder, and return what it contains.

    Raises:
        CheckpointError: A source that cannot be read, or a folder that cannot be written or has
            the run that made another model.
        ResultError: A result file that is damaged, unfinished or of another checkpoint.
        RunError: Another process writes the folder.
    """
    refuse_overwrite(config)
    source = resolve(config.checkpoint)
    results = [read_finished(path, sha256(source)) for path in config.results]
    checkpoint = with_origin(read_checkpoint(source, tasks=config.tasks), source)
    with alone(config.output / MODEL_FILE):
        return _write_folder(config, checkpoint, results)


def _write_folder(
    config: ConvertConfig, checkpoint: Checkpoint, results: Sequence[Mapping[str, Any]]
) -> CheckpointSummary:
    if (config.output / CURVES).exists():
        raise CheckpointError(
            f"{config.output} has a training run, whose model this would replace; name another "
            "folder"
        )
    with written_together(config.output, CheckpointError) as folder:
        write_native(folder / MODEL_FILE, checkpoint)
        summary = replace(describe(folder), path=config.output / MODEL_FILE)
        described = {
            "library_name": "tdmpc-opt",
            "model_type": "tdmpc2",
            "schema": CHECKPOINT_SCHEMA,
            "model": summary.config.to_json(),
            "tasks": checkpoint.tasks.to_json(),
        }
        write_json(folder / "config.json", described, CheckpointError)
        text = card(config.output.resolve().name, summary, config.license, results)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return summary


def card(
    name: str, summary: CheckpointSummary, license_id: str, results: Sequence[Mapping[str, Any]]
) -> str:
    """Return the card of a model with the results: Markdown after the YAML that hubs read."""
    extra = {key: printable(text, _LONGEST) for key, text in summary.extra.items()}
    data: dict[str, Any] = {
        "library_name": "tdmpc-opt",
        "license": license_id,
        "pipeline_tag": "reinforcement-learning",
        "tags": list(_TAGS),
    }
    if results:
        data["model-index"] = [{"name": name, "results": [_entry(found) for found in results]}]
    formats = sorted({kind for found in summary.dtypes.values() for kind in found.split(", ")})
    lines = [
        f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        "",
        "A TD-MPC2 world model for continuous control, in the format of tdmpc-opt.",
        "",
        "```python",
        "import tdmpc_opt",
        "",
        f'agent = tdmpc_opt.load_agent("{name}", mode="policy")  # this folder, or its hub id',
        f'action = agent.act(observation, "{summary.tasks[0]}")',
        "```",
        "",
        "| fact | value |",
        "|---|---|",
        f"| parameters | {summary.parameters:,} |",
        f"| bytes | {summary.size_bytes:,} |",
        f"| number format | {', '.join(formats)} |",
        f"| observation, padded | {summary.config.obs_dim} |",
        f"| action, padded | {summary.config.action_dim} |",
        f"| tasks | {', '.join(summary.tasks)} |",
        f"| made from | {extra.get('source', '?')}, sha256 {extra.get('source_sha256', '?')} |",
        f"| licence | {license_id} |",
        *_results(results),
        *_training(extra),
    ]
    return "\n".join(lines) + "\n"


def _tasks(result: Mapping[str, Any]) -> str:
    names = list(result["tasks"])
    return "MT30" if set(names) == set(MT30.names) else ", ".join(names)


def _entry(result: Mapping[str, Any]) -> dict[str, Any]:
    acting, unit = result["config"].get("mode") or "policy", unit_of(result["tasks"])
    return {
        "task": {"type": "reinforcement-learning", "name": "continuous control"},
        "dataset": {"type": "environment", "name": _tasks(result)},
        "metrics": [
            {
                "type": unit.name.replace(" ", "_"),
                "name": f"{unit.name}, {acting}",
                "value": round(unit.per_point * result["score"]["mean"], 2),
            }
        ],
    }


def _results(results: Sequence[Mapping[str, Any]]) -> list[str]:
    if not results:
        return []
    rows = []
    for result in results:
        unit = unit_of(result["tasks"])
        score = unit.shown(stored_score(result["score"]))
        shown = f"{score.ci95[0]:.2f} to {score.ci95[1]:.2f}" if score.ci95 else "-"
        config, versions = result["config"], result["versions"]
        rows.append(
            f"| {_tasks(result)} | {config['mode']} | {score.mean:.2f} | {unit.name} | {shown} "
            f"| {config['episodes']} | {versions['tdmpc_opt']} |"
        )
    return [
        "",
        "## Results",
        "",
        "Normalized score: mean episode return over 10, averaged over the tasks of MT30. Other",
        "tasks show their mean return.",
        "",
        "| tasks | acting by | score | unit | 95% interval | episodes a task | tdmpc-opt |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def _training(extra: Mapping[str, str]) -> list[str]:
    if "run" not in extra:
        return []
    try:
        run = json.dumps(parse_json(extra["run"]), indent=1)
        count = int(extra["updates"])
    except (LookupError, ValueError):
        return []  # another program may have put anything there
    updates = f"Trained for {counted(count, 'update')} by a run of this configuration:"
    return ["", "## Training", "", updates, "", "```json", run, "```"]
