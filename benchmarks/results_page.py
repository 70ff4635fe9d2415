"""Fill the tables of the pages under docs/ from result files.

Run it after adding or replacing a file of results/:

    python benchmarks/results_page.py
"""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from marked import RESULTS, ROOT, Tables, against, filled, read, score, table_of
from rich.console import Console

from tdmpc_opt import zoo
from tdmpc_opt.checkpoints.load import sha256
from tdmpc_opt.configs import PlannerBudget
from tdmpc_opt.evaluation.ablation import ablation
from tdmpc_opt.planning.presets import PRESETS
from tdmpc_opt.task_table import MT30

HOME = (
    ("mt30-1m-policy.json", "our 1M student, policy network alone"),
    ("mt30-1m-planner-realtime.json", "the same, planning by its preset `realtime`"),
    ("mt30-1m-planner-full.json", "the same, planning by the published budget"),
    ("mt30-1m-taught.json", "the same network taught by experts, not corrected yet"),
    ("mt30-1m-untaught.json", "the same network, data and updates without a teacher"),
    ("released-1m-planner-noise.json", "released 1M student of TD-MPC-Opt, planner with noise"),
    ("released-1m-policy.json", "the same, policy network alone"),
    ("random-mt30.json", "random actions"),
)
FORMATS = "formats-mt30-1m.json"
SENSITIVITY = "sensitivity-mt30-1m.json"
STUDENT = {
    "student": "mt30-1m-policy.json",
    "student, planner": "mt30-1m-planner-realtime.json",
    "released, policy": "released-1m-policy.json",
    "released, planner": "released-1m-planner-deterministic.json",
}
PAIR = {
    "mt30-1m-untaught.json": "nobody: plain TD-MPC2",
    "mt30-1m-taught.json": "the experts, on the states of the dataset",
    "mt30-1m-corrected.json": "the experts, then on its own states too",
    "mt30-1m-again.json": "the same again on nine tasks where it stays behind them",
    "mt30-1m-policy.json": "the same on all tasks once more: `mt30-1m`",
}
"""The main comparison, and the recipe's last step."""
RELEASED = {
    "released-1m-policy.json": "as released",
    "released-1m-imitating.json": "after learning from its planner's and its own best episodes",
    "released-1m-first-round.json": "after more of it, and a round where it drove itself",
    "released-1m-more.json": "after a second round, from more starts",
    "released-1m-third-round.json": "after a third, in FP16",
    "released-1m-improved.json": "after a fourth, in FP16",
}
"""The released checkpoint before and after it learnt from itself."""
ABLATION = {
    "none": "no teacher",
    "reward-d0.05": "rewards, d = 0.05 (the paper's term)",
    "reward-d0.25": "rewards, d = 0.25",
    "reward-d0.4": "rewards, d = 0.4",
    "reward-d0.55": "rewards, d = 0.55",
    "reward-d0.9": "rewards, d = 0.9",
    "reward-kl": "rewards, two-hot KL at all steps, 0.1",
    "value-kl": "values, two-hot KL, 0.1",
    "latent": "latents by a learned projection, 1",
    "policy-of-teacher": "actions of the teacher's policy, 20",
    "policy-of-experts": "actions of the experts, 20",
    "full": "actions of the experts, reward KL and value KL",
}
"""The rows of `examples/mt30/ablation.sh`."""
TRIALS = {
    "mt30-trial-constant.json": "a constant learning rate, five rounds of `dagger`",
    "mt30-trial-annealed.json": "1,500 updates more, `--lr-zero-at 1500`",
    "mt30-trial-labels.json": "the same with `--behaviour-batch 256` instead",
    "mt30-trial-noise.json": "1,200 more, the policy's noise held down by its labels",
}
"""Steps on the way to the student, each from the weights of one before it."""


def main() -> None:
    """Rewrite the pages in place."""
    for page, tables in PAGES.items():
        page.write_text(filled(page, tables))
        Console().print(f"wrote {page.name}")


def _home() -> list[str]:
    """The published agent on MT30, and what the demo makes."""
    found = [("agent", "score", "measured on", "bytes of the file")]
    student = zoo.path("mt30-1m")
    for name, agent in HOME:
        content = read(name)
        shown = _score(content["score"])
        bundled = content["config"]["checkpoint"].get("sha256") == sha256(student)
        size = f"{student.stat().st_size:,}" if bundled else "-"
        found.append((agent, shown, _measured_on(content["config"]), size))
    for row in reversed(read("demo.json")["rows"]):
        size = f"{row['size_bytes']:,}" if row["size_bytes"] else "-"
        shown = score(row["score"], row["ci95"])
        found.append((f"demo: {row['name']}", shown, "4 tasks, 10 episodes a task", size))
    return table_of(*found)


def _scores() -> list[str]:
    found = [("file", "agent", "acts by", "measured on", "score")]
    for path, content in _of_kind("evaluation"):
        config = content["config"]
        how = config["mode"] or "its own network"
        how = "chance" if config["checkpoint"]["name"] == "random" else how
        how += _budget(config) + (", noise" if config["noise"] else "")
        agent = Path(config["checkpoint"]["name"]).stem
        shown = _score(content["score"]) if content["complete"] else "unfinished"
        where = _measured_on(config)
        found.append((_link(path), agent, how, where, shown))
    return table_of(*found)


def _demo() -> list[str]:
    found = [("agent", "score", "parameters", "bytes")]
    for row in read("demo.json")["rows"]:
        sizes = (f"{row[key]:,}" if row[key] else "-" for key in ("parameters", "size_bytes"))
        found.append((row["name"], score(row["score"], row["ci95"]), *sizes))
    return table_of(*found)


def _experts() -> list[str]:
    head = ("file", "task", "algorithm", "n-step", "agent steps", "mean return")
    found = [head]
    for path, content in _of_kind("expert"):
        config, mean = content["config"], f"{np.mean(content['returns']):.1f}"
        settings = (config["task"], config["algorithm"], str(config["n_steps"]))
        steps = f"{content['steps']:,}"
        found.append((_link(path), *settings, steps, mean))
    return table_of(*found)


def _mt30_experts() -> list[str]:
    """What the committed experts of MT30 reach, and how each was trained."""
    found = [("task", "mean return", "agent steps", "algorithm", "first episodes driven by")]
    means = []
    for task in MT30.names:
        path = ROOT / "experts" / f"{task}.json"
        if not path.exists():
            continue
        content = json.loads(path.read_text())
        config = content["config"]
        means.append(np.mean(content["returns"]))
        how = (
            f"{config['algorithm']}, {config['n_steps']}-step, ratio {config['update_ratio']:g}"
        )
        warm = config.get("warm_up")
        driver = "random actions" if warm is None else _driver(warm, task)
        numbers = (f"{means[-1]:.0f}", f"{content['steps']:,}")
        found.append((f"[{task}](../experts/{path.name})", *numbers, how, driver))
    found.append((f"mean of {len(means)}", f"{np.mean(means):.0f}", "", "", ""))
    return table_of(*found)


def _mt30_student() -> list[str]:
    """The student beside its experts and the released one, task by task."""
    shown = {name: read(file)["tasks"] for name, file in STUDENT.items()}
    found = [("task", "expert", *shown)]
    rows = []
    for task in MT30.names:
        expert = json.loads((ROOT / "experts" / f"{task}.json").read_text())
        returns = [expert["returns"], *(tasks[task]["returns"] for tasks in shown.values())]
        rows.append([float(np.mean(each)) for each in returns])
        found.append((task, *(f"{mean:.0f}" for mean in rows[-1])))
    found.append(("mean of 30", *(f"{mean:.0f}" for mean in np.mean(rows, axis=0))))
    return table_of(*found)


def _pair() -> list[str]:
    """What teachers bring at equal budget."""
    found = [("teacher", "updates", "score", "measured on", "file")]
    for name, teacher in PAIR.items():
        content = read(name)
        training = content["training"]
        updates = f"{training['updates']:,}" + (" more" if training["start"] else "")
        on = _measured_on(content["config"])
        found.append((teacher, updates, _score(content["score"]), on, _link(RESULTS / name)))
    return table_of(*found)


def _trials() -> list[str]:
    """What some steps on the way brought."""
    return _steps(TRIALS)


def _ablation() -> list[str]:
    """What each term brings at equal budget, by policy and by planner."""
    found = [("what the teacher tells", "policy", "planner `realtime`")]
    columns = [_ablation_scores("policy"), _ablation_scores("planner")]
    found += zip(ABLATION.values(), *columns, strict=True)
    return table_of(*found)


def _ablation_scores(how: str) -> list[str]:
    """Score each row of the ablation over its three seeds."""
    folder = RESULTS / "ablation"
    files = [folder / f"{how}-{name}-{seed}.json" for name in ABLATION for seed in range(3)]
    for file in files:
        file.stat()  # `filled` knows what to say of a file that is not there
    rows = ablation(files)
    assert len(rows) == len(ABLATION), "each row has settings of its own"
    return [score(row.score.mean, list(row.score.ci95 or ())) for row in rows]


def _released() -> list[str]:
    return _steps(RELEASED)


def _steps(files: dict[str, str]) -> list[str]:
    found = [("step", "score", "measured on", "file")]
    for name, step in files.items():
        content = read(name)
        on = _measured_on(content["config"])
        found.append((step, _score(content["score"]), on, _link(RESULTS / name)))
    return table_of(*found)


def _warmed() -> list[str]:
    """What it brings that somebody drives the first episodes."""
    found = [("task", "alone", "committed", "first episodes driven by")]
    for path, content in _of_kind("expert"):
        task = content["config"]["task"]
        if path.stem != f"expert-alone-{task}":
            continue
        other = json.loads((ROOT / "experts" / f"{task}.json").read_text())
        means = [f"{np.mean(record['returns']):.0f}" for record in (content, other)]
        warm = other["config"].get("warm_up")
        if warm is not None:
            alone = f"[{means[0]}](../results/{path.name})"
            found.append((task, alone, means[1], _driver(warm, task)))
    return table_of(*found)


def _driver(warm: dict[str, Any], task: str) -> str:
    who = f"the expert of {warm['task']}" if warm["task"] != task else "the released planner"
    return f"{who}, {warm['episodes']}"


def _files() -> list[str]:
    found = [("file", "kind", "command")]
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text())
        found.append((_link(path), content["kind"], f"`{command(path, content)}`"))
    return table_of(*found)


def _formats() -> list[str]:
    found = [("format", "bytes", "action error", "loss of correlation of planned values")]
    for row in read(SENSITIVITY)["whole"]:
        value = "-" if row["value_error"] is None else f"{row['value_error']:.5f}"
        error = f"{row['action_error']:.4f}"
        found.append((f"`{row['format']}`", f"{row['size_bytes']:,}", error, value))
    return table_of(*found)


def _proof() -> list[str]:
    """Bytes, memory, latency, score and error of each format.

    A score stands beside its difference, over the same starts, from the most exact file's of
    the same agent that acts likewise.
    """
    head = (
        "format",
        "acts by",
        "bytes",
        "memory, MB",
        "CPU ms an action",
        "score",
        "paired difference",
        "action error",
    )
    found, exact = [head], dict[tuple[bool, str], Path]()
    for row in read(FORMATS)["rows"]:
        error = "-" if row["action_error"] is None else f"{row['action_error']:.4f}"
        memory = f"{row['peak_rss_bytes'] / 1e6:.0f}"
        numbers = (f"{row['size_bytes']:,}", memory, f"{row['cpu_p50_ms']:.3g}")
        how = {"policy": "policy", "realtime": "planner"}[row["how"]]
        shown = f"[{_score(row['score'])}](../results/{row['result']})"
        result = RESULTS / row["result"]
        first = exact.setdefault((row["format"].endswith(".pt"), how), result)
        paired = against(first, result)
        found.append((f"`{row['format']}`", how, *numbers, shown, paired, error))
    return table_of(*found)


def _sampling() -> list[str]:
    """Import, start-up, memory and sampling at each size, a column a size."""
    sizes = read("bench-sampling-scale.json")["sizes"]
    rows = [("", *(f"{row['gigabytes']:g} GB" for row in sizes))]
    for name, shown in _SAMPLING:
        rows.append((name, *(shown(row) for row in sizes)))
    return table_of(*rows)


def _batches(how: str) -> Callable[[dict[str, Any]], str]:
    def shown(row: dict[str, Any]) -> str:
        found = row[f"sample_{how}"]
        return f"{found['cold_batches_per_second']:.0f}, {found['warm_batches_per_second']:.0f}"

    return shown


_SAMPLING: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("episodes", lambda row: f"{row['episodes']:,}"),
    ("import, seconds", lambda row: f"{_wall(row['imports']):.1f}"),
    ("speed of the import over that of a copy", lambda row: f"{row['import_over_copy']:.2f}"),
    (
        "most memory of the import, MB",
        lambda row: f"{max(found['peak_rss_bytes'] for found in row['imports']) / 1e6:.0f}",
    ),
    (
        "from the end of imports to the first update, seconds, cold",
        lambda row: f"{row['train_cold']['first_update_seconds']:.2f}",
    ),
    ("the same, warm", lambda row: f"{row['train_warm']['first_update_seconds']:.2f}"),
    (
        "anonymous memory of training, MB",
        lambda row: f"{row['train_warm']['anonymous_peak_bytes'] / 1e6:.0f}",
    ),
    (
        "sampling's share of an update, cold",
        lambda row: f"{row['train_cold']['sampling_share']:.1%}",
    ),
    ("the same, warm", lambda row: f"{row['train_warm']['sampling_share']:.1%}"),
    ("batches/s, cold and warm, `uniform`", _batches("uniform")),
    ("the same, `task`", _batches("task")),
    ("the same, `return`", _batches("return")),
)


def _wall(timings: list[dict[str, Any]]) -> float:
    return min(float(found["wall_seconds"]) for found in timings)


def _of_kind(kind: str) -> list[tuple[Path, dict[str, Any]]]:
    pairs = ((path, json.loads(path.read_text())) for path in sorted(RESULTS.glob("*.json")))
    return [(path, content) for path, content in pairs if content["kind"] == kind]


def _score(found: dict[str, Any]) -> str:
    return score(found["mean"], found["ci95"])


def _measured_on(config: dict[str, Any]) -> str:
    count, episodes = len(config["tasks"]), config["episodes"]
    where = "MT30" if tuple(config["tasks"]) == MT30.names else f"{count} tasks"
    return f"{where}, {episodes} episode{'s' * (episodes > 1)} a task"


def _budget(config: dict[str, Any]) -> str:
    preset = _preset(config)
    return "" if preset is None else f" ({preset or 'budget of its own'})"


def _preset(config: dict[str, Any]) -> str | None:
    """Return the preset of a budget; None for the published one, "" for one without a name."""
    if config.get("budget") is None:
        return None
    budget = PlannerBudget(**config["budget"])
    if budget == PlannerBudget():
        return None
    return next((name for name, preset in PRESETS.items() if preset.budget == budget), "")


def _link(path: Path) -> str:
    return f"[{path.stem}](../results/{path.name})"


def command(path: Path, content: dict[str, Any]) -> str:
    """Return the command that wrote a result file."""
    kind, config = content["kind"], content["config"]
    output = ["--output", f"results/{path.name}"]
    if kind == "evaluation":
        words = ["tdmpc-opt", "evaluate", *_evaluation(config), *output]
    elif kind == "expert":
        words = ["tdmpc-opt", "experts", *_expert(content), "--output", "experts"]
    elif kind in _OF_PRODUCT:
        words = ["tdmpc-opt", *_OF_PRODUCT[kind].split(), *output]
    elif kind == "demo":
        words = ["make", "demo"]
    else:
        words = _benchmark(path.name, config)
    return shlex.join(words)


_OF_PRODUCT = {
    "bench": "bench FILE",
    "sensitivity": "sensitivity FILE --data DATA",
    "tuning": "tune-planner FILE",
}


def _evaluation(config: dict[str, Any]) -> list[str]:
    words = [config["checkpoint"]["name"]]
    if tuple(config["tasks"]) != MT30.names:
        words += ["--tasks", ",".join(config["tasks"])]
    elif config["mode"] is None:
        words += ["--tasks", "mt30"]
    words += ["--episodes", str(config["episodes"]), "--seed", str(config["seed"])]
    if config["mode"]:
        words += ["--mode", config["mode"]]
    if preset := _preset(config):
        words += ["--preset", preset]
    for option, usual in (("engine", "eager"), ("precision", "fp32")):
        if config.get(option) not in (None, usual):
            words += [f"--{option}", config[option]]
    return words + ["--noise"] * config["noise"]


def _expert(content: dict[str, Any]) -> list[str]:
    config = content["config"]
    names = ("algorithm", "n_steps", "envs", "update_ratio", "seed")
    options = [(f"--{name.replace('_', '-')}", str(config[name])) for name in names]
    pairs = [("--tasks", config["task"]), ("--steps", str(content["steps"])), *options]
    return [word for pair in pairs for word in pair]


def _benchmark(name: str, config: dict[str, Any]) -> list[str]:
    """Return the command of the script that names a file as its output, or in its docstring.

    Options in the docstring's command get the values that the file was made with.
    """
    if name.startswith("formats-"):  # a script that names its file by an option
        options = ("--checkpoint", "FILE", "--name", config["name"], "--data", "DATA")
        return ["python", "benchmarks/formats.py", *options]
    for script in sorted((ROOT / "benchmarks").glob("*.py")):
        text = script.read_text()
        lines = re.findall(rf"^ +(python benchmarks/{script.name}.*)$", text, re.MULTILINE)
        named = [line for line in lines if line.endswith(f"results/{name}")]
        if not named and f'Path("results/{name}")' not in text:
            continue
        words = (named or lines)[0].split()
        for option, value in config.items():
            if f"--{option}" in words and isinstance(value, str | int):
                words[words.index(f"--{option}") + 1] = str(value)
        return words
    raise ValueError(f"no script under benchmarks/ writes results/{name}; name it in one")


PAGES: dict[Path, Tables] = {
    ROOT / "docs" / "index.md": {"home": _home},
    ROOT / "docs" / "mt30-student.md": {
        "experts": _mt30_experts,
        "warmed": _warmed,
        "student": _mt30_student,
        "pair": _pair,
        "released": _released,
        "ablation": _ablation,
        "trials": _trials,
    },
    ROOT / "docs" / "quantisation.md": {"formats": _formats, "proof": _proof},
    ROOT / "docs" / "scale.md": {"sampling": _sampling},
    ROOT / "docs" / "results.md": {
        "scores": _scores,
        "demo": _demo,
        "experts": _experts,
        "files": _files,
    },
}

if __name__ == "__main__":
    main()
