"""The tables of the pages under docs/, from committed result files.

A page calls a function of this module in a comment; cog writes what it returns below it:

    <!-- [[[cog cog.outl(tables.demo()) ]]] -->
    <!-- [[[end]]] -->

After a result file was added or replaced: `make docs-tables`.
"""

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tdmpc_opt import zoo
from tdmpc_opt.checkpoints.load import sha256
from tdmpc_opt.evaluation.ablation import ablation as ablation_rows
from tdmpc_opt.evaluation.compare import compare
from tdmpc_opt.planning.presets import PRESETS
from tdmpc_opt.schema import MT30, PlannerBudget

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
Json = dict[str, Any]

BEFORE_SAC_ALONE = "94c1e6f"

COMMANDS = {
    "bench-action-latency": "python benchmarks/action_latency.py --checkpoint FILE",
    "bench-ddp": "python benchmarks/ddp.py",
    "bench-distill": "python benchmarks/training_throughput.py --teacher 48 "
    "--output results/bench-distill.json",
    "bench-evaluation": "python benchmarks/evaluation_throughput.py --checkpoint FILE",
    "bench-runtime-footprint": "python benchmarks/runtime_footprint.py --task walker-walk "
    "--files policy.onnx planner.onnx",
    "bench-sampling-scale": "python benchmarks/sampling_scale.py --sizes 1 4 12",
    "bench-training": "python benchmarks/training_throughput.py",
    "demo": "make demo",
    "formats-mt30-1m": "python benchmarks/formats.py --checkpoint FILE --name mt30-1m "
    "--data DATA",
    "mutation": "python tools/mutation.py results/mutation.json",
    # Scripts that were removed after their file was written.
    "bench-integer-kernels": "git show 94c1e6f:benchmarks/integer_kernels.py",
    "bench-page": "git show 94c1e6f:benchmarks/page_opening.py",
    "bench-planner-cost": "git show 94c1e6f:benchmarks/planner_cost.py",
    "bench-planner-latency": "git show 94c1e6f:benchmarks/planner_latency.py",
    "bench-teacher-memory": "git show 94c1e6f:benchmarks/teacher_memory.py",
    "fuzz": "git show 94c1e6f:benchmarks/fuzz.py",
    "kills": "git show 94c1e6f:benchmarks/kills.py",
}
"""The commands that wrote the files whose kind does not determine it."""

SURVIVORS = {
    "@dataclass(frozen=False, slots=True, eq=False)": "equivalent: nothing assigns to a field",
    "self._drawn = np.zeros( 1, dtype=np.int64)": "equivalent: the first batch replaces it "
    "before anything reads it",
    "label = torch.where(known.unsqueeze(-1), batch.label, 1.0)": "equivalent: states without "
    "a label get the weight 0",
    "labelled = ranks.mean(known.sum().float()).clamp(min=1 * ranks.count)": "equivalent for "
    "one process; `tests/test_ranks.py`, which starts several, takes too long for each mutant",
    "return ranks.own_rows(torch.randn(shape, generator=generator), 2).to(z)": "the same",
}
"""Why no test finds a mutant, by its line."""


def home() -> str:
    """The bundled agent on MT30, and what the demo makes."""
    agents = {
        "mt30-1m-policy": "our 1M student, policy network alone",
        "mt30-1m-planner-realtime": "the same, planning by its preset `realtime`",
        "mt30-1m-planner-full": "the same, planning by the published budget",
        "mt30-1m-taught": "the same network taught by experts, not corrected yet",
        "mt30-1m-untaught": "the same network, data and updates without a teacher",
        "released-1m-planner-noise": "released 1M student of TD-MPC-Opt, planner with noise",
        "released-1m-policy": "the same, policy network alone",
        "random-mt30": "random actions",
    }
    student = zoo.path("mt30-1m")
    rows = []
    for name, agent in agents.items():
        content = _read(name)
        bundled = content["config"]["checkpoint"].get("sha256") == sha256(student)
        size = student.stat().st_size if bundled else None
        rows.append((agent, _score(content), _measured_on(content["config"]), _bytes(size)))
    for row in reversed(_read("demo")["rows"]):
        shown = (f"demo: {row['name']}", _interval(row["score"], row["ci95"]))
        rows.append((*shown, "4 tasks, 10 episodes a task", _bytes(row["size_bytes"])))
    return _table("agent, score, measured on, bytes of the file", rows)


def demo() -> str:
    """What `make demo` makes."""
    rows = []
    for row in _read("demo")["rows"]:
        counts = (_bytes(row["parameters"]), _bytes(row["size_bytes"]))
        rows.append((row["name"], _interval(row["score"], row["ci95"]), *counts))
    return _table("agent, score, parameters, bytes", rows)


def scores() -> str:
    """Every evaluation."""
    rows = []
    for path, content in _of_kind("evaluation"):
        config, agent = content["config"], content["config"]["checkpoint"]["name"]
        how = "chance" if agent == "random" else config["mode"] or "its own network"
        if (preset := _preset(config)) is not None:
            how += f" ({preset or 'budget of its own'})"
        how += ", noise" * config["noise"]
        shown = _score(content) if content["complete"] else "unfinished"
        rows.append((_link(path), Path(agent).stem, how, _measured_on(config), shown))
    return _table("file, agent, acts by, measured on, score", rows)


def expert_trials() -> str:
    """The trials of training experts."""
    rows = []
    for path, content in _of_kind("expert"):
        config = content["config"]
        settings = (config["task"], config["algorithm"], config["n_steps"])
        rows.append((_link(path), *settings, f"{content['steps']:,}", f"{_mean(content):.1f}"))
    return _table("file, task, algorithm, n-step, agent steps, mean return", rows)


def experts() -> str:
    """What the committed experts of MT30 reach, and how each was trained."""
    rows, means = [], []
    for task in MT30.names:
        content = _expert(task)
        config = content["config"]
        means.append(_mean(content))
        how = config.get("method", config.get("algorithm", "sac"))
        if config.get("n_steps", 1) > 1:
            how += f", {config['n_steps']}-step"
        if "update_ratio" in config:
            how += f", ratio {config['update_ratio']:g}"
        link = f"[{task}](../experts/{task}.json)"
        numbers = (f"{means[-1]:.0f}", f"{content['steps']:,}")
        rows.append((link, *numbers, how, _driver(content) or "random actions"))
    rows.append((f"mean of {len(means)}", f"{np.mean(means):.0f}", "", "", ""))
    return _table("task, mean return, agent steps, algorithm, first episodes driven by", rows)


def warmed() -> str:
    """What it changes that another policy drives an expert's first episodes."""
    rows = []
    for path, content in _of_kind("expert"):
        task = content["config"]["task"]
        if path.stem == f"expert-alone-{task}" and (driver := _driver(_expert(task))):
            alone = f"[{_mean(content):.0f}](../results/{path.name})"
            rows.append((task, alone, f"{_mean(_expert(task)):.0f}", driver))
    return _table("task, alone, committed, first episodes driven by", rows)


def student() -> str:
    """The student beside its experts and the released one, task by task."""
    names = {
        "student": "mt30-1m-policy",
        "student, planner": "mt30-1m-planner-realtime",
        "released, policy": "released-1m-policy",
        "released, planner": "released-1m-planner-deterministic",
    }
    columns = [_read(name)["tasks"] for name in names.values()]
    means = [
        [_mean(each) for each in (_expert(task), *(tasks[task] for tasks in columns))]
        for task in MT30.names
    ]
    named = zip([*MT30.names, "mean of 30"], [*means, np.mean(means, axis=0)], strict=True)
    rows = [(task, *(f"{mean:.0f}" for mean in row)) for task, row in named]
    return _table(("task", "expert", *names), rows)


def pair() -> str:
    """Training with and without a teacher at equal budget, and the recipe's later steps."""
    teachers = {
        "mt30-1m-untaught": "none (plain TD-MPC2)",
        "mt30-1m-taught": "the experts, on the states of the dataset",
        "mt30-1m-corrected": "the experts, then on its own states too",
        "mt30-1m-again": "the same again on nine tasks where it stays behind them",
        "mt30-1m-policy": "the same on all tasks once more: `mt30-1m`",
    }
    rows = []
    for name, teacher in teachers.items():
        content = _read(name)
        training = content["training"]
        updates = f"{training['updates']:,}" + " more" * bool(training["start"])
        rows.append((teacher, updates, *_measured(name)))
    return _table("teacher, updates, score, measured on, file", rows)


def trials() -> str:
    """Steps on the way to the student, each from the weights of one before it."""
    return _steps(
        {
            "mt30-trial-constant": "a constant learning rate, five rounds of `dagger`",
            "mt30-trial-annealed": "1,500 updates more, `--lr-zero-at 1500`",
            "mt30-trial-labels": "the same with `--behaviour-batch 256` instead",
            "mt30-trial-noise": "1,200 more, the policy's noise limited by its labels",
        }
    )


def released() -> str:
    """The released checkpoint before and after it was trained on its own plans."""
    return _steps(
        {
            "released-1m-policy": "as released",
            "released-1m-imitating": "after learning from its planner's and its own best "
            "episodes",
            "released-1m-first-round": "after more of it, and a round where it drove itself",
            "released-1m-more": "after a second round, from more starts",
            "released-1m-third-round": "after a third, in FP16",
            "released-1m-improved": "after a fourth, in FP16",
        }
    )


def ablation() -> str:
    """What each term of `examples/mt30/ablation.sh` changes, by policy and by planner."""
    rows = {
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
    columns = []
    for how in ("policy", "planner"):
        files = [
            RESULTS / f"ablation/{how}-{row}-{seed}.json" for row in rows for seed in range(3)
        ]
        found = ablation_rows(files)
        columns.append([_interval(row.score.mean, list(row.score.ci95 or ())) for row in found])
    return _table(
        "distilled from the teacher, policy, planner `realtime`",
        zip(rows.values(), *columns, strict=True),
    )


def formats() -> str:
    """Error of each number format, the whole checkpoint in it."""
    rows = []
    for row in _read("sensitivity-mt30-1m")["whole"]:
        value = "-" if row["value_error"] is None else f"{row['value_error']:.5f}"
        numbers = (f"{row['size_bytes']:,}", f"{row['action_error']:.4f}", value)
        rows.append((f"`{row['format']}`", *numbers))
    return _table("format, bytes, action error, loss of correlation of planned values", rows)


def proof() -> str:
    """Bytes, memory, latency, score and error of each format.

    The paired difference is from the first file of the same agent that acts in the same way.
    """
    rows, exact = [], dict[tuple[bool, str], Path]()
    for row in _read("formats-mt30-1m")["rows"]:
        error = "-" if row["action_error"] is None else f"{row['action_error']:.4f}"
        memory, cpu = f"{row['peak_rss_bytes'] / 1e6:.0f}", f"{row['cpu_p50_ms']:.3g}"
        how = {"policy": "policy", "realtime": "planner"}[row["how"]]
        shown = f"[{_score(row)}](../results/{row['result']})"
        result = RESULTS / row["result"]
        first = exact.setdefault((row["format"].endswith(".pt"), how), result)
        numbers = (f"{row['size_bytes']:,}", memory, cpu, shown, _against(first, result), error)
        rows.append((f"`{row['format']}`", how, *numbers))
    head = "format, acts by, bytes, memory (MB), CPU ms an action, score, paired difference"
    return _table(f"{head}, action error", rows)


def sampling() -> str:
    """Import, start-up, memory and sampling, a column for each size of the data."""

    def batches(how: str) -> Callable[[Json], str]:
        keys = [f"{cache}_batches_per_second" for cache in ("cold", "warm")]
        return lambda size: ", ".join(f"{size[f'sample_{how}'][key]:.0f}" for key in keys)

    shown: dict[str, Callable[[Json], str]] = {
        "episodes": lambda size: f"{size['episodes']:,}",
        "import, seconds": lambda size: (
            f"{min(x['wall_seconds'] for x in size['imports']):.1f}"
        ),
        "speed of the import over that of a copy": lambda size: (
            f"{size['import_over_copy']:.2f}"
        ),
        "most memory of the import, MB": lambda size: (
            f"{max(x['peak_rss_bytes'] for x in size['imports']) / 1e6:.0f}"
        ),
        "from the end of imports to the first update, seconds, cold": lambda size: (
            f"{size['train_cold']['first_update_seconds']:.2f}"
        ),
        "the same, warm": lambda size: f"{size['train_warm']['first_update_seconds']:.2f}",
        "anonymous memory of training, MB": lambda size: (
            f"{size['train_warm']['anonymous_peak_bytes'] / 1e6:.0f}"
        ),
        "sampling's share of an update, cold": lambda size: (
            f"{size['train_cold']['sampling_share']:.1%}"
        ),
        "sampling's share, warm": lambda size: f"{size['train_warm']['sampling_share']:.1%}",
        "batches/s, cold and warm, `uniform`": batches("uniform"),
        "the same, `task`": batches("task"),
        "the same, `return`": batches("return"),
    }
    sizes = _read("bench-sampling-scale")["sizes"]
    head = ("", *(f"{size['gigabytes']:g} GB" for size in sizes))
    return _table(head, [(name, *map(show, sizes)) for name, show in shown.items()])


def presets() -> str:
    """Latency of each preset, and its score where it was evaluated."""
    rows = []
    for record in _read("bench-presets")["candidates"]:
        preset, times = record["preset"], record["batches"]["1"]
        numbers = (f"{times['p50_ms']:.3g}", f"{times['hz']:,.0f}", f"{times['speedup']:.1f}")
        path = RESULTS / f"mt30-1m-{preset if preset == 'policy' else f'planner-{preset}'}.json"
        found = ("not measured", "-", "-")
        if path.exists():
            difference = _against(RESULTS / "mt30-1m-policy.json", path)
            found = (_score(_read(path.stem)), difference, f"[json](../results/{path.name})")
        rows.append((f"`{preset}`", *numbers, *found))
    head = "preset, ms per action (p50), Hz, times faster, score, from the policy, file"
    return _table(head, rows)


def reuse() -> str:
    """Score by how many of a plan's actions are carried out."""
    rows = []
    for agent, *names in (
        ("mt30-1m", "mt30-1m-share-realtime", "mt30-1m-realtime-every-2"),
        ("released-1m", "released-1m-fp16-realtime", "released-1m-realtime-every-2"),
    ):
        first, *_ = paths = [RESULTS / f"{name}.json" for name in names]
        for actions, path in enumerate(paths, 1):
            shown = f"[{_score(_read(path.stem))}](../results/{path.name})"
            rows.append((agent, actions, shown, _against(first, path)))
    return _table("student, actions of a plan, score, paired difference", rows)


def costs() -> str:
    """Milliseconds of a plan over samples, iterations and model size."""
    found = _read("bench-planner-cost")
    ms = {(row["samples"], row["iterations"]): row["ms"] for row in found["budgets"]}
    counts = sorted({iterations for _, iterations in ms})
    head = ("samples", *(f"iterations: {count}" for count in counts))
    samples = sorted({samples for samples, _ in ms})
    rows = [(each, *(f"{ms[each, count]:.1f} ms" for count in counts)) for each in samples]
    sizes = [
        (
            f"{row['parameters']:,}",
            f"{row['full']['ms']:.0f} ms",
            f"{row['small']['ms']:.1f} ms",
        )
        for row in found["sizes"]
    ]
    by_size = _table(("parameters", "full budget", "64 samples, 1 iteration"), sizes)
    return f"{_table(head, rows)}\n\n{by_size}"


def search() -> str:
    """The budgets that no other beats in both time and score."""
    rows = []
    for trial in _read("tuning-released-1m")["trials"]:
        if trial["on_front"]:
            b = trial["budget"]
            sampled, how = b["samples"] - b["policy_samples"], "an elite"
            shape = f"{b['iterations']} x ({sampled} + {b['policy_samples']} of the policy)"
            how = "its mean" if b["mean_action"] else how
            budget = f"{shape}, horizon {b['horizon']}, acts by {how}"
            rows.append((budget, f"{100 * trial['share']:.1f}%", _score(trial)))
    head = ("budget", "share of the full budget's time", "score on the tuning episodes")
    return _table(head, rows)


def fuzz() -> str:
    """What the committed campaign of changed files tried, and what it found."""
    content = _read("fuzz")
    keys = ("cases", "passed_first_check", "read", "too_large")
    readers = content["per_reader"].items()
    rows = [(name, *(f"{row[key]:,}" for key in keys)) for name, row in readers]
    table = _table(
        "kind of file, cases, pass the first check, still valid, ask for over 3 GiB", rows
    )
    found = ", ".join(f"{content[key]} {key.replace('_', ' ')}" for key in ("crashes", "hangs"))
    total = (
        f"{content['cases']:,} cases in all: {found}, {content['code_runs']} executions of code"
    )
    return f"{table}\n\n{total} ([json](../results/fuzz.json))."


def mutation() -> str:
    """How many of the mutants of each file the tests found."""
    found: dict[str, list[str]] = {}
    for mutant in _read("mutation")["mutants"]:
        found.setdefault(mutant["file"], []).append(mutant["outcome"])
    found["all"] = [outcome for outcomes in found.values() for outcome in outcomes]
    rows = [
        (name, len(outcomes), outcomes.count("killed"), outcomes.count("survived"))
        for name, outcomes in found.items()
    ]
    table = _table("file, mutants, killed, survived", rows)
    share = found["all"].count("killed") / len(found["all"])
    return f"{table}\n\n{share:.1%} were killed ([json](../results/mutation.json))."


def survivors() -> str:
    """The mutants that no test finds, with the reason."""
    left = [m for m in _read("mutation")["mutants"] if m["outcome"] == "survived"]
    lines = [mutant["change"][-1][1:].strip() for mutant in left]
    rows = [
        (mutant["file"], f"`{line}`", SURVIVORS[line])
        for mutant, line in zip(left, lines, strict=True)
    ]
    return _table("file, mutated line, why it stays", rows)


def files() -> str:
    """Every result file with the command that wrote it."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text())
        rows.append((_link(path), content["kind"], f"`{command(path.stem, content)}`"))
    return _table("file, kind, command", rows)


def command(name: str, content: Json) -> str:
    """Return the command that wrote a result file."""
    kind, config = content["kind"], content["config"]
    if name in COMMANDS:
        return COMMANDS[name]
    if kind == "expert":
        names = ("method", "algorithm", "n_steps", "hidden", "envs", "update_ratio", "seed")
        words = ["tdmpc-opt", "experts", "--tasks", config["task"]]
        words += ["--steps", str(content["steps"])]
        for key in filter(config.__contains__, names):
            words += [f"--{key.replace('_', '-')}", str(config[key])]
        # Records that name an algorithm were made before SAC became the only one.
        before = f"git checkout {BEFORE_SAC_ALONE} && " if "algorithm" in config else ""
        return before + shlex.join([*words, "--output", "experts"])
    words = {
        "bench": ["bench", "FILE"],
        "sensitivity": ["sensitivity", "FILE", "--data", "DATA"],
        "tuning": ["tune-planner", "FILE"],
        "evaluation": ["evaluate"],
    }[kind]
    if kind == "evaluation":
        words += _evaluation(config)
    return shlex.join(["tdmpc-opt", *words, "--output", f"results/{name}.json"])


def _evaluation(config: Json) -> list[str]:
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
    if config["mode"] == "planner" and config.get("engine", "eager") == "eager":
        words += ["--engine", "eager"]  # removed engines: the default
    return words + ["--noise"] * config["noise"]


def _preset(config: Json) -> str | None:
    """Return the preset of a budget; None for the published one, "" for one without a name."""
    if config.get("budget") is None or PlannerBudget(**config["budget"]) == PlannerBudget():
        return None
    budget = PlannerBudget(**config["budget"])
    return next((name for name, preset in PRESETS.items() if preset.budget == budget), "")


def _table(head: str | Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    names = head.split(", ") if isinstance(head, str) else [*head]
    lines = [names, *([str(cell) for cell in row] for row in rows)]
    shown = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([shown[0], "|" + "---|" * len(names), *shown[1:]])


def _steps(names: Mapping[str, str]) -> str:
    rows = [(step, *_measured(name)) for name, step in names.items()]
    return _table("step, score, measured on, file", rows)


def _measured(name: str) -> tuple[str, str, str]:
    content = _read(name)
    return _score(content), _measured_on(content["config"]), _link(RESULTS / f"{name}.json")


def _measured_on(config: Json) -> str:
    count, episodes = len(config["tasks"]), config["episodes"]
    where = "MT30" if tuple(config["tasks"]) == MT30.names else f"{count} tasks"
    return f"{where}, {episodes} episode{'s' * (episodes > 1)} a task"


def _driver(expert: Json) -> str | None:
    """Return which policy drove an expert's first episodes; None for random actions."""
    config = expert["config"]
    if (warm := config.get("warm_up")) is None:
        return None
    other = warm["task"] != config["task"]
    who = f"the expert of {warm['task']}" if other else "the released planner"
    return f"{who}, {warm['episodes']}"


def _against(first: Path, result: Path) -> str:
    return "-" if first == result else str(compare(first, result).difference)


def _read(name: str) -> Json:
    content: Json = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def _expert(task: str) -> Json:
    content: Json = json.loads((ROOT / "experts" / f"{task}.json").read_text())
    return content


def _of_kind(kind: str) -> list[tuple[Path, Json]]:
    pairs = [(path, _read(path.stem)) for path in sorted(RESULTS.glob("*.json"))]
    return [(path, content) for path, content in pairs if content["kind"] == kind]


def _mean(content: Json) -> float:
    return float(np.mean(content["returns"]))


def _score(content: Json) -> str:
    return _interval(content["score"]["mean"], content["score"]["ci95"])


def _interval(mean: float, interval: list[float] | None) -> str:
    return f"{mean:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def _bytes(count: int | None) -> str:
    return f"{count:,}" if count else "-"


def _link(path: Path) -> str:
    return f"[{path.stem}](../results/{path.name})"
