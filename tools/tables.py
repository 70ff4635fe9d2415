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
import torch

from tdmpc_opt import zoo
from tdmpc_opt.checkpoints.summary import describe
from tdmpc_opt.contract import by_contract, contracts_of
from tdmpc_opt.evaluation.compare import ablation as ablation_rows
from tdmpc_opt.evaluation.compare import compare
from tdmpc_opt.evaluation.score import stored_score
from tdmpc_opt.files import sha256
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.planning.presets import PRESETS, PUBLISHED
from tdmpc_opt.schema import MT30, PlannerBudget, Size, model_config

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
Json = dict[str, Any]

_FIRST = "git checkout c82b3668 &&"
"""Goes to the last commit that has the first teacher, its student and their scripts."""

COMMANDS = {
    "demo": "tdmpc-opt demo --output FOLDER",
    "bench-device-latency": "taskset -c 0 python benchmarks/device_latency.py",
    "bench-ddp": "python benchmarks/ddp.py",
    "bench-distill": "python benchmarks/training_throughput.py --teacher 48 "
    "--output results/bench-distill.json",
    "bench-microcontroller": "python benchmarks/microcontroller.py",
    "export-parity": "python benchmarks/export_parity.py",
    "hostile-messages": "python benchmarks/hostile_messages.py --messages 1000000",
    "bench-evaluation": "python benchmarks/evaluation_throughput.py --checkpoint FILE",
    "bench-runtime-footprint": "python benchmarks/runtime_footprint.py --task walker-walk "
    "--files policy-fp32.onnx policy-int8.onnx walk-int8.onnx policy-fp16.safetensors",
    "bench-sampling-scale": "python benchmarks/sampling_scale.py --sizes 1 4 12",
    "bench-training": "python benchmarks/training_throughput.py",
    "formats-mt30-1m": "python benchmarks/formats.py --checkpoint FILE --name mt30-1m "
    "--data DATA",
    "onnxruntime-versions": "python benchmarks/onnxruntime_versions.py",
    "first-teacher-policy": f"{_FIRST} tdmpc-opt evaluate weights/mt30-teacher.safetensors "
    "--seed 10000 --output FILE",
    "first-teacher-rounds": f"{_FIRST} examples/mt30/teacher_rounds.sh START FOLDER DATASET",
    "first-1m-policy": f"{_FIRST} tdmpc-opt evaluate mt30-1m --seed 10000 --output FILE",
    "first-1m-rounds": f"{_FIRST} examples/mt30/student_rounds.sh TEACHER STUDENT FOLDER",
    "no-teacher-policy": f"{_FIRST} examples/mt30/no_teacher.sh "
    "weights/mt30-teacher.safetensors FOLDER",
    "no-teacher-planner": f"{_FIRST} examples/mt30/no_teacher.sh "
    "weights/mt30-teacher.safetensors FOLDER",
    "mt30-student-rounds": f"{_FIRST} tdmpc-opt distill weights/mt30-teacher.safetensors "
    "--size 1 --matmul medium --updates 30000 --output FOLDER",
    "mt30-1m-regularized-published": "examples/mt30/regularize.sh FOLDER",
    "released-1m-fourth-round": (
        "git checkout 3984b462 && tdmpc-opt evaluate weights/released-1m-improved.safetensors "
        "--episodes 10 --seed 0 --mode policy"
    ),
    "released-1m-fourth-round-unseen": (
        "git checkout 3984b462 && tdmpc-opt evaluate weights/released-1m-improved.safetensors "
        "--episodes 10 --seed 10000 --mode policy"
    ),
    "released-1m-rounds": (
        "git checkout 9dd865a0 && tdmpc-opt evaluate weights/released-1m-improved.safetensors "
        "--episodes 10 --seed 10000 --mode policy"
    ),
    "mt30-1m-regularized-second-fit": (
        "git checkout 3984b462 && examples/mt30/regularize.sh FOLDER"
    ),
    **{
        f"mt30-{name}-rounds-{number}": "examples/mt30/more_rounds.sh "
        f"{labels} START {size} {50_000 + 10_000 * number} TASKS FOLDER"
        for name, labels, size in (("teacher", "experts", 5), ("1m", "TEACHER", 1))
        for number in (1, 2, 3, 4)
    },
    "mutation": "python tools/mutation.py results/mutation.json",
    "own-task": "examples/own_task/run.sh FOLDER",
    # Scripts that were removed after their file was written.
    "demo-reward-term": "git show 94c1e6f:src/tdmpc_opt/demo.py",
    "bench-integer-kernels": "git show 94c1e6f:benchmarks/integer_kernels.py",
    "bench-page": "git show 94c1e6f:benchmarks/page_opening.py",
    "bench-planner-cost": "git show 94c1e6f:benchmarks/planner_cost.py",
    "bench-planner-latency": "git show 94c1e6f:benchmarks/planner_latency.py",
    "bench-teacher-memory": "git show 94c1e6f:benchmarks/teacher_memory.py",
    "fuzz": "git show 94c1e6f:benchmarks/fuzz.py",
    "kills": "git show 94c1e6f:benchmarks/kills.py",
}
"""The commands that wrote the files whose kind does not determine it."""

BEFORE_REMOVALS = "94c1e6f"
"""The last commit whose commands have the options that were removed since."""
BEFORE_THREE_STEPS = "c08228d1"
"""Commit whose experts learn from one reward a target, and from few starts."""
BEFORE_SMALL_BATCHES = "bf2cf96a"
"""Commit whose experts learn from 256 transitions an update, every fourth step."""

SURVIVORS: dict[str, dict[int, str]] = {
    "training/losses.py": {
        24: "equivalent: the tensor has one axis",
    },
    "planning/mppi.py": {
        26: "equivalent: the tensor has one axis",
    },
    "data/sampler.py": {
        24: "equivalent: where it counts, what is divided is 0",
        151: "equivalent: numpy takes any negative size for the one that is left",
        165: "equivalent, as above",
    },
    "compression/rounding.py": {
        26: "as good: it is how many rows are computed",
        68: "equivalent: all rows are of one length",
        151: "as good: weights that stay are rounded to fp16 a little later, at the end",
    },
    "evaluation/results.py": {
        24: "equivalent: every file states its episodes",
    },
    "evaluation/compare.py": {
        31: "equivalent: all budgets list their fields in one order",
    },
}
"""Why no test finds a mutant, by its file and number."""


def home() -> str:
    """The policies of a teacher and of students on MT30, measured in the same way."""
    timed = {
        each["file"]["name"].removesuffix(".onnx"): f"{each['batches']['1']['hz']:,.0f}"
        for each in _read("bench-policies")["candidates"]
    }
    agents = {
        "mt30-teacher-policy": (
            "teacher `mt30-teacher`",
            _size("mt30-teacher.safetensors"),
            "mt30-teacher-policy",
        ),
        "mt30-1m-policy": (
            "student `mt30-1m` (bundled), which learned from this teacher and its earlier "
            "states alone",
            zoo.path("mt30-1m").stat().st_size,
            "mt30-1m-policy",
        ),
        "mt30-1m-onnx-int8-policy": (
            "the same, int8 policy",
            _format_bytes("ONNX int8", "policy"),
            "mt30-1m-policy-int8",
        ),
        "no-teacher-policy": (
            "the same size without a teacher: plain TD-MPC2 on episodes of the first teacher",
            None,
            "",
        ),
        "released-1m-unseen": (
            "published student of TD-MPC-Opt",
            _format_bytes("mt30_1M_steps_045dist_fp16.pt", "policy"),
            "released-1m-policy",
        ),
        "random-unseen": ("random actions", None, ""),
    }
    student = describe("mt30-1m").parameters
    parameters = {
        "mt30-teacher-policy": describe(
            ROOT / "weights" / "mt30-teacher.safetensors"
        ).parameters,
        "random-unseen": None,
    }
    rows = []
    for name, (agent, size, bench) in agents.items():
        path = RESULTS / f"{name}.json"
        counts = (_bytes(parameters.get(name, student)), _bytes(size), timed.get(bench, "-"))
        numbers = (_score(_read(name)), *counts)
        rows.append((agent, *numbers, _link(path)))
    return _table("agent, score, parameters, bytes, actions a second, file", rows)


def demo() -> str:
    """The agents of `make demo`."""
    rows = []
    for row in _read("demo")["rows"]:
        counts = (_bytes(row["parameters"]), _bytes(row["size_bytes"]))
        score = {"mean": row["score"], "ci95": row["ci95"]}
        rows.append((row["name"], _score({"score": score}), *counts))
    return _table("agent, score, parameters, bytes", rows)


def scores() -> str:
    """Every evaluation."""
    rows = []
    for path, content in _of_kind("evaluation"):
        config, agent = content["config"], source(content["config"]["checkpoint"])
        shown = _score(content) if content["complete"] else "unfinished"
        rows.append((_link(path), Path(agent).stem, _how(config), _measured_on(config), shown))
    return _table("file, agent, acts by, measured on, score", rows)


def _how(config: Json) -> str:
    """Return how the agent of an evaluation chose its actions."""
    if config["checkpoint"]["name"] == "random":
        return "random actions"
    how = config["mode"] or "exported file"
    if (preset := _preset(config)) is not None:
        budget = PlannerBudget(**config["budget"])
        how += f" `{preset}`"
        how += ", regularised" * bool(budget.prior_penalty or budget.prior_hold)
        how += f", {budget.replan_every} actions a plan" * (budget.replan_every > 1)
    return how + ", noise" * config["noise"]


def expert_trials() -> str:
    """The trials of training experts."""
    rows = []
    for path, content in _of_kind("expert"):
        config = content["config"]
        # Since SAC on batched physics is the only method of RL, its name is not stored.
        settings = (config["task"], config.get("algorithm", "sac"), config.get("n_steps", 1))
        numbers = (f"{content['steps']:,}", len(content["returns"]), f"{_mean(content):.1f}")
        rows.append((_link(path), *settings, *numbers))
    head = "file, task, algorithm, n-step, agent steps, episodes measured, mean return"
    return _table(head, rows)


def experts() -> str:
    """The mean return of each committed expert of MT30, and how it was trained."""
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
        rows.append(
            (
                link,
                *numbers,
                how,
                _driver(content) or ("none" if how == "plan" else "random actions"),
            )
        )
    rows.append((f"mean of {len(means)}", f"{np.mean(means):.0f}", "", "", ""))
    head = (
        "task, mean return of 10 episodes, agent steps, algorithm, warm-up policy and episodes"
    )
    return _table(head, rows)


def warmed() -> str:
    """Experts with and without a warm-up policy."""
    rows = []
    for path, content in _of_kind("expert"):
        task = content["config"]["task"]
        if path.stem == f"expert-alone-{task}" and (driver := _driver(_expert(task))):
            alone = f"[{_mean(content):.0f}](../results/{path.name})"
            rows.append((task, alone, f"{_mean(_expert(task)):.0f}", driver))
    return _table("task, without warm-up, committed expert, warm-up policy and episodes", rows)


def student() -> str:
    """Mean returns of experts, teacher and students by task, from the same starts."""
    names = {
        "experts": "mt30-experts",
        "teacher": "mt30-teacher-policy",
        "student, policy": "mt30-1m-policy",
        "student, planner `realtime`": "mt30-1m-planner-realtime",
        "student, int8 policy": "mt30-1m-onnx-int8-policy",
        "published student, policy": "released-1m-unseen",
    }
    contents = [_read(name) for name in names.values()]
    (starts,) = {_starts(content["config"]) for content in contents}
    means = [[_mean(content["tasks"][task]) for content in contents] for task in MT30.names]
    named = zip(
        [*MT30.names, f"mean of 30, {starts}"], [*means, np.mean(means, axis=0)], strict=True
    )
    rows = [(task, *(f"{mean:.0f}" for mean in row)) for task, row in named]
    return _table(("task", *names), rows)


def generations() -> str:
    """Experts, teachers and students, the first and the present ones."""
    agents = {
        "mt30-experts-earlier": "the first teacher's experts, one for each task",
        "first-teacher-policy": "first teacher",
        "mt30-student-policy": "its student, by one command",
        "first-1m-policy": "the same after more rounds",
        "mt30-experts": "experts",
        "mt30-teacher-policy": "teacher `mt30-teacher`",
        "mt30-1m-policy": "student `mt30-1m` (bundled)",
    }
    rows = [
        (agent, _score(_read(name)), _link(RESULTS / f"{name}.json"))
        for name, agent in agents.items()
    ]
    return _table("agent, score, file", rows)


def pupil() -> str:
    """The published student as the teacher of a smaller one, all from the same starts."""
    agents = {
        "released-1m-unseen": ("published student, policy", None),
        "released-0.3m-teacher": (
            "the teacher: the better of policy and planner by task",
            None,
        ),
        "released-0.3m-policy": ("student, policy", _size("released-0.3m.safetensors")),
        "released-0.3m-policy-int8": (
            "student, int8 policy",
            _size("released-0.3m-policy-int8.onnx"),
        ),
    }
    rows = []
    for name, (agent, size) in agents.items():
        rows.append((agent, _score(_read(name)), _bytes(size), _link(RESULTS / f"{name}.json")))
    return _table("agent, score, bytes, file", rows)


_RELEASED = {
    "released-1m-fp16-policy": "as published",
    "released-1m-fourth-round-unseen": "after `released.sh`",
    "released-1m-rounds": "after `released_rounds.sh`",
    "released-1m-improved": "after `released_online.sh`",
}
"""The steps of training the published student further."""


def released() -> str:
    """The published student before and after training on its own plans and episodes."""
    return _table(f"step, {_COMPARED}", _steps(_RELEASED))


def released_tasks() -> str:
    """The mean return of each task after the same steps."""
    found = [_read(name)["tasks"] for name in _RELEASED]
    rows = [
        (task, *(f"{np.mean(tasks[task]['returns']):.0f}" for tasks in found))
        for task in MT30.names
    ]
    return _table(["task", *_RELEASED.values()], rows)


def _steps(names: Mapping[str, str]) -> list[tuple[str, ...]]:
    return [
        (step, *found) for step, found in zip(names.values(), _compared(names), strict=True)
    ]


_COMPARED = "score, measured on, difference from the row above on common starts, file"


def _compared(names: Iterable[str]) -> list[tuple[str, str, str, str]]:
    """Return the score of each file, and the paired difference from the one before it."""
    paths = [RESULTS / f"{name}.json" for name in names]
    found = []
    for before, path in zip([paths[0], *paths], paths, strict=False):
        content = _read(path.stem)
        where = _measured_on(content["config"])
        found.append((_score(content), where, _against(before, path), _link(path)))
    return found


CLAIM = {
    "plain": "nothing: rewards and values of the data (plain TD-MPC2)",
    "cloned": "the actions taken in the data",
    "paper": "the teacher's rewards, d = 0.4 (the paper's term)",
    "full": "the teacher's actions and rewards (the recipe of `distill`)",
}
"""The rows of `examples/mt30/claim.sh`: what a student learns from in addition to the data."""


def claim() -> str:
    """Scores of students of equal budget by what they learn from, and of their references."""
    rows = []
    for name, what in CLAIM.items():
        policy, planner = (
            ablation_rows(sorted((RESULTS / "claim").glob(f"{how}-{name}-*.json")))[0]
            for how in ("policy", "planner")
        )
        rows.append((what, len(policy.seeds), str(policy.score), str(planner.score)))
    rows += [
        (f"*{name}*", "-", _score(_read(f"claim/{name}")), "-")
        for name in ("teacher", "random")
    ]
    return _table("the student learns from, seeds, policy, planner `realtime`", rows)


def planned() -> str:
    """Plans of the bundled student against its policy on the same starts."""
    rows = [(f"`{preset}`", *_scored(preset)) for preset in ("policy", "realtime", PUBLISHED)]
    path = RESULTS / "mt30-1m-regularized-published.json"
    rows.append((f"`{PUBLISHED}`, regularised rewards", *_scored_in(path)))
    return _table(f"preset, {_SCORED}", rows)


def regularized() -> str:
    """Returns by task of the published budget, with and without regularised rewards."""
    plans, policy = _read("mt30-1m-regularized-published"), _read("mt30-1m-policy")
    before = _read("mt30-1m-planner-published")
    rows = []
    for task in MT30.names:
        planned = plans["tasks"][task]
        taken = [policy["tasks"][task]["seeds"].index(seed) for seed in planned["seeds"]]
        acted = [policy["tasks"][task]["returns"][index] for index in taken]
        means = (np.mean(acted), np.mean(planned["returns"]))
        rows.append(
            (task, *(f"{mean:.0f}" for mean in means), f"{_mean(before['tasks'][task]):.0f}")
        )
    return _table(
        "task, policy, `published` with regularised rewards, `published` from one start", rows
    )


_SCORED = "score, measured on, difference from the policy on common starts, file"


def _scored(preset: str) -> tuple[str, str, str, str]:
    """Return what a preset of the bundled student scores, where it was evaluated."""
    path = RESULTS / f"mt30-1m-{preset if preset == 'policy' else f'planner-{preset}'}.json"
    return _scored_in(path) if path.exists() else ("not measured", "-", "-", "-")


def _scored_in(path: Path) -> tuple[str, str, str, str]:
    content = _read(path.stem)
    difference = _against(RESULTS / "mt30-1m-policy.json", path)
    return _score(content), _starts(content["config"]), difference, _link(path)


def formats() -> str:
    """Error of each number format, applied to the whole checkpoint."""
    rows = []
    for row in _read("sensitivity-mt30-1m")["whole"]:
        value = "-" if row["value_error"] is None else f"{row['value_error']:.5f}"
        numbers = (f"{row['size_bytes']:,}", f"{row['action_error']:.4f}", value)
        rows.append((f"`{row['format']}`", *numbers))
    return _table("format, bytes, action error, value error", rows)


def proof() -> str:
    """Bytes, memory, latency, score and error of each format.

    The paired difference is from the first file of the same agent with the same mode.
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
    """Latency of each preset of the bundled student, and its score where it was evaluated."""
    rows = []
    timed = {
        each["preset"]: each["batches"]["1"] for each in _read("bench-presets")["candidates"]
    }
    for preset in dict.fromkeys([PUBLISHED, *timed]):
        times = timed.get(preset)
        numbers = ("-", "-", "-")
        if times:
            speedup = f"{times['speedup']:.1f}"
            numbers = (f"{times['p50_ms']:.3g}", f"{times['hz']:,.0f}", speedup)
        rows.append((f"`{preset}`", *numbers, *_scored(preset)))
    head = "preset, ms per action (p50), Hz, speed-up over `full`"
    return _table(f"{head}, {_SCORED}", rows)


def reuse() -> str:
    """Score by the number of actions executed of each plan."""
    rows = []
    for agent, *names in (
        ("`earlier-1m`", "earlier-1m-share-realtime", "earlier-1m-realtime-every-2"),
        ("published", "released-1m-fp16-realtime", "released-1m-realtime-every-2"),
    ):
        first, *_ = paths = [RESULTS / f"{name}.json" for name in names]
        for actions, path in enumerate(paths, 1):
            rows.append(
                (agent, actions, _score(_read(path.stem)), _against(first, path), _link(path))
            )
    return _table("student, `replan_every`, score, paired difference, file", rows)


def regularisation() -> str:
    """Plans of `realtime` by their regularisation, against the policy on the same starts."""
    files = {
        "policy": "the policy itself",
        "realtime-0.3": "`prior_penalty` 0.3",
        "realtime-3": "`prior_penalty` 3",
        "realtime-10": "`prior_penalty` 10",
        "realtime-0.3-hold-10": "0.3 and `prior_hold` 10",
        "realtime-0.3-hold-30": "0.3 and `prior_hold` 30",
        "realtime-0.3-hold-100": "0.3 and `prior_hold` 100",
    }
    policy = RESULTS / "hold" / "policy.json"
    starts = range(_read("hold/realtime-0.3")["config"]["episodes"])
    shown = ("finger-turn-easy", "finger-turn-hard", "finger-spin")
    rows = []
    for name, how in files.items():
        content = _read(f"hold/{name}")
        scores = {
            task: np.mean([each["returns"][start] for start in starts]) / 10
            for task, each in content["tasks"].items()
        }
        difference = _against(policy, RESULTS / "hold" / f"{name}.json")
        tasks = (f"{scores[task]:.0f}" for task in shown)
        link = f"[{name}](../results/hold/{name}.json)"
        rows.append((how, f"{np.mean(list(scores.values())):.2f}", difference, *tasks, link))
    head = ("plans", "MT30", "paired difference from the policy", *shown, "file")
    return _table(head, rows)


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
    by_size = _table(("parameters", "published budget", "64 samples, 1 iteration"), sizes)
    return f"{_table(head, rows)}\n\n{by_size}"


def teachers() -> str:
    """Memory of the published sizes on MT30, computed, and measured times of their plans."""
    found = _read("bench-planner-cost")["sizes"]
    sizes: tuple[Size, ...] = ("1", "5", "19", "48", "317")
    rows = []
    for size, measured in zip(sizes, found, strict=True):
        with torch.device("meta"):
            model = WorldModel(model_config(size, MT30), MT30)
        weights = {name: 4 * value.numel() for name, value in model.state_dict().items()}
        policy = sum(
            count
            for name, count in weights.items()
            if name.startswith(("task_embedding", "encoder", "policy_head"))
        )
        rows.append(
            (
                f"{size}M, {measured['parameters']:,} parameters",
                f"{sum(weights.values()) / 1e6:,.0f} MB",
                f"{policy / 1e6:,.0f} MB",
                f"{measured['full']['ms'] / 1000:.1f} s",
                f"{measured['small']['ms'] / 1000:.2f} s",
            )
        )
    head = (
        "teacher",
        "memory of all networks, fp32",
        "of encoder and policy",
        "a plan, published budget",
        "a plan, 64 samples and 1 iteration",
    )
    return _table(head, rows)


def search() -> str:
    """The budgets on the Pareto front of time and score."""
    rows = []
    for trial in _read("tuning-released-1m")["trials"]:
        if trial["on_front"]:
            b = trial["budget"]
            sampled, how = b["samples"] - b["policy_samples"], "an elite"
            shape = f"{b['iterations']} x ({sampled} + {b['policy_samples']} of the policy)"
            how = "the mean" if b["mean_action"] else how
            budget = f"{shape}, horizon {b['horizon']}, acts by {how}"
            budget += f", `prior_penalty` {b['prior_penalty']:g}" * bool(b["prior_penalty"])
            rows.append((budget, f"{100 * trial['share']:.1f}%", _score(trial)))
    head = ("budget", "share of the published budget's time", "score on the tuning episodes")
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
    kinds = ("killed", "survived", "timeout")
    rows = [
        (name, len(outcomes), *(outcomes.count(kind) for kind in kinds))
        for name, outcomes in found.items()
    ]
    table = _table("file, mutants, killed, survived, without an end", rows)
    share = found["all"].count("killed") / len(found["all"])
    same = sum(why.startswith("equivalent") for why in _reasons())
    real = found["all"].count("killed") / (len(found["all"]) - same)
    return (
        f"{table}\n\n{share:.1%} were killed, and {real:.1%} of those that are not equivalent "
        "([json](../results/mutation.json))."
    )


def _reasons() -> list[str]:
    """Why each survivor stays."""
    return [why for reasons in SURVIVORS.values() for why in reasons.values()]


def survivors() -> str:
    """The mutants that no test finds, with the reason."""
    left = [m for m in _read("mutation")["mutants"] if m["outcome"] != "killed"]
    lines = [mutant["change"][-1][1:].partition("  #")[0].strip() for mutant in left]
    rows = [
        (mutant["file"], f"`{line}`", SURVIVORS[mutant["file"]][mutant["mutant"]])
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
    """Return the command that wrote a result file.

    An option that was removed since stays in the command, behind the commit that has it.
    """
    kind, config = content["kind"], content["config"]
    if name in COMMANDS:
        return COMMANDS[name]
    words = {
        "bench": _bench,
        "evaluation": _evaluation,
        "expert": _experts,
        "sensitivity": _sensitivity,
        "tuning": _tuning,
    }[kind](content)
    output = {"expert": "experts", "tuning": "tuning"}.get(kind, f"results/{name}.json")
    shown = shlex.join(["tdmpc-opt", *words, "--output", output])
    if "algorithm" in config or config.get("precision") == "int8":
        return f"git checkout {BEFORE_REMOVALS} && {shown}"
    one_step = kind == "expert" and config.get("n_steps", 1) == 1 and "method" not in config
    if one_step or name == "mt30-experts-earlier":
        return f"git checkout {BEFORE_THREE_STEPS} && {shown}"
    if kind == "expert" and "n_steps" in config and "batch_size" not in config:
        return f"git checkout {BEFORE_SMALL_BATCHES} && {shown}"
    return shown


def source(checkpoint: Json) -> str:
    """Return how a command names the checkpoint of a result: a committed file by its hash."""
    return COMMITTED.get(checkpoint.get("sha256"), checkpoint["name"])


COMMITTED = {sha256(zoo.path(name)): name for name in zoo.names()} | {
    sha256(path): f"weights/{path.name}" for path in (ROOT / "weights").iterdir()
}


def _evaluation(content: Json) -> list[str]:
    config = content["config"]
    words = ["evaluate", source(config["checkpoint"])]
    if tuple(config["tasks"]) != MT30.names:
        words += ["--tasks", ",".join(config["tasks"])]
    elif config["mode"] is None:
        words += ["--tasks", "mt30"]
    words += ["--episodes", str(config["episodes"]), "--seed", str(config["seed"])]
    if config["mode"]:
        words += ["--mode", config["mode"]]
    if config["mode"] == "planner":
        budget = PlannerBudget(**config["budget"])
        words += ["--preset", _preset(config) or ""]
        if budget.replan_every > 1:
            words += ["--replan-every", str(budget.replan_every)]
        if config.get("engine", "eager") == "eager":
            words += ["--engine", "eager"]  # of removed engines none is left to name
        if config.get("precision") == "int8":
            words += ["--engine", config["engine"], "--precision", "int8"]
    return words + ["--noise"] * config["noise"]


def _experts(content: Json) -> list[str]:
    config = content["config"]
    names = ["method", "algorithm", "hidden", "envs", "update_ratio", "seed", "episodes"]
    if "algorithm" in config:  # later versions always sum three rewards
        names.append("n_steps")
    options = {name: config[name] for name in names if name in config}
    if warm := config.get("warm_up"):
        options |= {
            "warm_up": warm["policy"]["name"],
            "warm_up_task": warm["task"],
            "warm_up_episodes": warm["episodes"],
        }
    words = ["experts", "--tasks", config["task"], "--steps", str(content["steps"])]
    pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in options.items()]
    return [*words, *(word for pair in pairs for word in pair)]


def _bench(content: Json) -> list[str]:
    config, candidates = content["config"], content["candidates"]
    words = ["bench", *dict.fromkeys(each["file"]["name"] for each in candidates)]
    if presets := [*dict.fromkeys(each["preset"] for each in candidates if each["preset"])]:
        engines = dict.fromkeys(each["engine"] for each in candidates)
        words += ["--preset", *presets, "--engine", *engines]
    batches = dict.fromkeys(batch for each in candidates for batch in each["batches"])
    words += ["--task", config["task"], "--batch", *batches]
    return [*words, "--rounds", str(config["rounds"]), "--seconds", str(config["seconds"])]


def _sensitivity(content: Json) -> list[str]:
    return ["sensitivity", source(content["config"]["checkpoint"]), "--data", "DATA"]


def _tuning(content: Json) -> list[str]:
    config, budgets = content["config"], [trial["budget"] for trial in content["trials"]]
    words = ["tune-planner", source(config["checkpoint"]), "--tasks", ",".join(config["tasks"])]
    limits = {
        "episodes": config["episodes"],
        "trials": len(budgets),
        "max-samples": max(b["samples"] - b["policy_samples"] for b in budgets),
        "max-iterations": max(b["iterations"] for b in budgets),
    }
    words += [word for key, value in limits.items() for word in (f"--{key}", str(value))]
    return words + ["--no-score-full"] * (content["full"] is None)


def _preset(config: Json) -> str | None:
    """Return the preset that an evaluation planned with, None for policies.

    A checkpoint may store the budget of a preset with a regularisation added, except that of
    the published budget.
    """
    if config.get("budget") is None:
        return None
    sizes = ("horizon", "iterations", "samples", "policy_samples", "elites", "temperature")
    budget = PlannerBudget(**config["budget"])
    if budget == PRESETS[PUBLISHED].budget:
        return PUBLISHED
    return next(
        name
        for name, preset in PRESETS.items()
        if name != PUBLISHED
        and all(getattr(preset.budget, size) == getattr(budget, size) for size in sizes)
    )


def contracts() -> str:
    """Return what the numbers of the 30 tasks are."""
    head = "tasks and rate, numbers, names, unit, range"
    rows = []
    for found, names in by_contract(contracts_of(MT30)).items():
        title = f"{', '.join(names)}: {found.rate}"
        for cells in found.rows():
            rows.append((title, *cells[:3], cells[3] or "-"))
            title = ""
    return _table(head, rows)


def onnxruntime_versions() -> str:
    """Return which versions of onnxruntime run the exported files."""
    releases = _read("onnxruntime-versions")["releases"]
    files = list(releases[0]["files"])
    rows = [
        (each["onnxruntime"], each["numpy"], *(_ran(each["files"][name]) for name in files))
        for each in releases
    ]
    return _table(["onnxruntime", "numpy", *(name.replace(",", "") for name in files)], rows)


def device_latency() -> str:
    """Return how long an action of the bundled student takes by each engine on one core."""
    content = _read("bench-device-latency")
    rows = [
        (
            name,
            f"{found['ms'] * 1000:,.0f}",
            f"{found['per_second']:,.0f}",
            f"{found['speedup']:.1f}",
        )
        for name, found in content["contenders"].items()
    ]
    trip = content["server"]["ms_p50"]
    server = ("server, a policy's round trip", f"{trip * 1000:,.0f}", f"{1000 / trip:,.0f}", "")
    head = "engine, microseconds an action, actions a second, times as fast as plain modules"
    return _table(head, [*rows, server])


def footprint() -> str:
    """Return what the runtime costs for each file, with an interpreter without torch."""
    rows = [
        (
            f"`{found['name']}`",
            f"{found['size_bytes']:,}",
            f"{found['first_action_s']:.2f} s, {found['first_action_cpu_s']:.2f} s",
            f"{found['memory_over_bare_python_mb']:.0f} MB",
            f"{found['act_cpu_ms_p50']:.2f} ms, {found['act_cpu_ms_min']:.2f} ms",
        )
        for found in _read("bench-runtime-footprint")["files"]
    ]
    head = ("file", "bytes", "import, load and first action: wall, processor")
    return _table((*head, "memory over bare Python", "an action: median, best"), rows)


def export_parity() -> str:
    """Return how far the actions of exported files are from those of torch."""
    head = (
        "file, observations, largest difference, 9 of 10 within, torch's own fp32, mean cosine"
    )
    rows = [
        (
            name.replace(",", ""),
            found["rows"],
            f"{found['max_error']:.1e}",
            "-"
            if found["judged_error"] == found["max_error"]
            else f"{found['judged_error']:.1e}",
            f"{found['torch_error']:.1e}" if found["torch_error"] else "-",
            f"{found['cosine']:.6f}",
        )
        for name, found in _read("export-parity")["files"].items()
    ]
    return _table(head, rows)


def _ran(found: Json) -> str:
    return found["error"] if "error" in found else f"{found['largest_difference']:.0e}"


def _table(head: str | Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    names = head.split(", ") if isinstance(head, str) else [*head]
    lines = [names, *([str(cell) for cell in row] for row in rows)]
    shown = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([shown[0], "|" + "---|" * len(names), *shown[1:]])


def _measured_on(config: Json) -> str:
    mt30 = tuple(config["tasks"]) == MT30.names
    where = "MT30" if mt30 else f"{len(config['tasks'])} tasks"
    return f"{where}, {_starts(config)}"


def _starts(config: Json) -> str:
    """Return the environment seeds of an evaluation's episodes of each task."""
    first, last = config["seed"], config["seed"] + config["episodes"] - 1
    return f"starts {first:,} to {last:,}" if last > first else f"start {first:,}"


def _driver(expert: Json) -> str | None:
    """Return the policy of an expert's first episodes; None for random actions."""
    config = expert["config"]
    if (warm := config.get("warm_up")) is None:
        return None
    name = warm["policy"]["name"]
    if name == "plan":
        who = "planning in the simulator"
    elif name.startswith("experts"):
        who = f"expert of {warm['task']}"
    else:
        who = "published student's planner"
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
    return str(stored_score(content["score"]))


def _size(name: str) -> int:
    """Return the bytes of a committed weights file."""
    return (RESULTS.parent / "weights" / name).stat().st_size


def _format_bytes(form: str, how: str) -> int:
    """Return the bytes of the bundled student in one format."""
    rows = _read("formats-mt30-1m")["rows"]
    return next(row["size_bytes"] for row in rows if (row["format"], row["how"]) == (form, how))


def _bytes(count: int | None) -> str:
    return f"{count:,}" if count else "-"


def _link(path: Path) -> str:
    return f"[{path.stem}](../results/{path.name})"
