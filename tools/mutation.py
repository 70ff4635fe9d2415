"""Put small faults into the code that results depend on, and count those that tests find.

    python tools/mutation.py results/mutation.json [MINUTES]

It works on one core in a copy of the committed files, and goes on from a file that exists;
mutants of a file that has changed since are tested again. A mutant is one changed number,
operator, comparison or condition, and a fixed sample of each file's is tested. Starting Python,
torch and the simulator takes longer than most mutants live: this process loads them once and
forks for each mutant. The fork executes the mutated file anew, and puts the new functions and
classes where other modules have the old ones.

A slow machine kills no mutant: the test that fails has to pass right after without the mutant,
the limit counts the time of the processor, and mutants that reach it do not count as killed.
"""

import ast
import difflib
import hashlib
import importlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
SEED = 1
CPU_SECONDS = 120
"""A mutant that computes longer is neither killed nor survives."""
LOG = "mutant.log"
"""What the tests of a mutant print, in the copy."""
_ROUNDING = [
    f"tests/test_integers.py::test_{name}"
    for name in (
        "rounding_to_nearest_stays_within_half_a_step",
        "four_bit_scales_are_the_best_for_the_inputs_that_vary",
        "the_bytes_of_a_layer_are_known_before_it_is_rounded",
        "a_layer_is_fitted_to_inputs_that_changed",
        "one_task_policies_can_be_rounded",
        "int8_has_one_scale_for_each_row_of_every_layer",
        "a_refitted_weight_does_not_depend_on_the_unit_of_its_inputs",
        "four_bits_clip_only_where_that_lowers_the_error",
        "four_bit_scales_are_the_best_of_those_tried",
        "rounding_by_inputs_disturbs_the_products_less",
        "rounding_by_inputs_solves_for_the_columns_left",
        "independent_inputs_leave_each_weight_to_itself",
        "a_weight_too_large_for_its_scale_is_refused",
        "files_hold_integers_and_no_targets",
        "a_loaded_model_computes_what_its_numbers_say",
        "calibration_on_real_observations_beats_plain_rounding",
        "agents_of_one_task_have_their_first_layer_in_integers",
        "what_is_quantised_is_neither_quantised_again_nor_trained",
    )
]
_EVALUATION = ["tests/test_evaluation.py", "tests/test_ablation.py"]
SAMPLES: dict[str, tuple[int, list[str]]] = {
    "training/losses.py": (
        30,
        ["tests/test_terms.py", "tests/test_golden.py", "tests/test_objective.py"],
    ),
    "training/step.py": (
        10,
        [
            "tests/test_golden.py",
            "tests/test_objective.py",
            "tests/test_device_updates.py",
            "tests/test_distillation.py::test_the_models_optimiser_owns_the_projection",
        ],
    ),
    "planning/mppi.py": (28, ["tests/test_golden.py", "tests/test_planning.py"]),
    "runtime/plan_state.py": (
        12,
        ["tests/test_planner.py", "tests/test_invalid_observations.py"],
    ),
    "data/sampler.py": (40, ["tests/test_sampler.py"]),
    "compression/rounding.py": (40, _ROUNDING),
    "evaluation/score.py": (10, _EVALUATION),
    "evaluation/results.py": (14, _EVALUATION),
    "evaluation/compare.py": (10, _EVALUATION),
    "evaluation/evaluate.py": (6, ["tests/test_evaluation.py"]),
}
"""Mutants and tests of each file."""

_OPERATORS: dict[type[ast.AST], type[Any]] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.Pow: ast.Mult},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
}
"""What stands in the place of an operator."""
_REVERSED: dict[type[ast.AST], type[ast.cmpop]] = {
    **{ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE},
}


class Mutant(NamedTuple):
    """One change of a file: the expression between two places, in bytes of its lines."""

    start: tuple[int, int]
    end: tuple[int, int]
    text: str


def mutants(source: str) -> list[Mutant]:
    """Return all mutants of a source, in the order of their places."""
    found = []
    for node in _expressions(ast.parse(source)):
        start = (node.lineno, node.col_offset)
        end = (node.end_lineno or 0, node.end_col_offset or 0)
        found += [Mutant(start, end, _text(changed)) for changed in _changed(node)]
    return sorted(set(found))


def _expressions(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the expressions that compute something: no annotations, assertions or texts."""
    if isinstance(node, ast.Assert | ast.JoinedStr | ast.Raise):
        return
    if isinstance(node, ast.keyword) and node.arg == "strict":  # of lists that are equally long
        return
    if isinstance(node, ast.expr):
        yield node
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _expressions(child)


def _changed(node: ast.expr) -> Iterator[ast.expr]:
    match node:
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            near = {value + 1, value - 1} - {value}  # of 1e100 these are 1e100 too
            yield from map(ast.Constant, near)
        case ast.BinOp(left, operator, right) if type(operator) in _OPERATORS:
            yield ast.BinOp(left, _OPERATORS[type(operator)](), right)
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(_OPERATORS[type(operator)](), values)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.Compare(left, [operator], right):
            yield ast.Compare(left, [_OPERATORS[type(operator)]()], right)
            if type(operator) in _REVERSED:
                yield ast.Compare(left, [_REVERSED[type(operator)]()], right)
        case ast.IfExp(condition, chosen, other):
            yield ast.IfExp(condition, other, chosen)


def _text(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if isinstance(node, ast.Constant | ast.Name) else f"({text})"


def mutated(source: str, mutant: Mutant) -> str:
    """Return the source with the change."""
    lines = [line.encode() for line in source.splitlines(keepends=True)]
    (first, left), (last, right) = mutant.start, mutant.end
    begin, rest = lines[first - 1][:left], lines[last - 1][right:]
    lines[first - 1 : last] = [begin + mutant.text.encode() + rest]
    return b"".join(lines).decode()


def run(output: Path, minutes: float) -> None:
    """Test the sample, as far as the time allows, and write what became of each mutant."""
    content = json.loads(output.read_text()) if output.exists() else {}
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "copy"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(work)], check=True)
        os.chdir(work)
        sys.path[:0] = [str(work / "src"), str(work / "tests")]
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # none is needed, they load slowly
        os.environ["OMP_NUM_THREADS"] = "1"
        heavy = ("pytest", "hypothesis", "dm_control.suite", "lightning_fabric")
        for name in (*heavy, *map(_module, SAMPLES)):
            importlib.import_module(name)
        sources = {file: (work / "src/tdmpc_opt" / file).read_text() for file in SAMPLES}
        hashes = {
            file: hashlib.sha256(text.encode()).hexdigest() for file, text in sources.items()
        }
        old = content.get("config", {}).get("sources", {})
        sample = _sample({file: len(mutants(text)) for file, text in sources.items()})
        found = [
            m
            for m in content.get("mutants", [])
            if (m["file"], m["mutant"]) in sample and old.get(m["file"]) == hashes[m["file"]]
        ]
        known = {(m["file"], m["mutant"]) for m in found}
        for file, number in sample:
            if (file, number) in known or time.monotonic() > end:
                continue
            text = mutated(sources[file], mutants(sources[file])[number])
            change = difflib.unified_diff(sources[file].splitlines(), text.splitlines(), n=0)
            started = time.monotonic()
            row: dict[str, Any] = {"file": file, "mutant": number}
            row["outcome"], test = _outcome(file, text, SAMPLES[file][1])
            row["seconds"] = round(time.monotonic() - started, 1)
            row["change"] = [line for line in list(change)[2:] if not line.startswith("@")]
            if test is not None:
                row["test"] = test
            if row["outcome"] == "killed":
                _require_pass(file, sources[file], [test] if test else SAMPLES[file][1])
            (work / "src/tdmpc_opt" / file).write_text(sources[file])
            found.append(row)
            _write(output, found, hashes)


def _module(file: str) -> str:
    return f"tdmpc_opt.{file[:-3].replace('/', '.')}"


def _sample(counts: dict[str, int]) -> list[tuple[str, int]]:
    """Return the mutants to test, by file and number; any beginning of it is a sample too."""
    chosen = []
    for file, (size, _) in SAMPLES.items():
        numbers = random.Random(SEED).sample(range(counts[file]), min(size, counts[file]))
        chosen += [(file, number) for number in numbers]
    random.Random(SEED).shuffle(chosen)
    return chosen


def _outcome(file: str, text: str, tests: list[str]) -> tuple[str, str | None]:
    """Return whether a file of this content passes tests, and which one failed.

    The first is `survived`, `killed`, or `timeout`. No test fails where a mutant cannot be
    executed.
    """
    Path("src/tdmpc_opt", file).write_text(text)
    child = os.fork()
    if child == 0:
        code = 1  # of a mutant that cannot be executed
        try:
            code = _tested(file, tests)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if not status:
        return "survived", None
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGALRM):
        return "timeout", None
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", Path(LOG).read_text(), re.M)
    return "killed", failed[1] if failed else None


def _require_pass(file: str, source: str, tests: list[str]) -> None:
    if _outcome(file, source, tests)[0] != "survived":
        raise SystemExit(f"{file}: {tests} fail without a mutant:\n{Path(LOG).read_text()}")


def _tested(file: str, tests: list[str]) -> int:
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 9))
    signal.alarm(100 * CPU_SECONDS)  # of one that waits forever, on a busy machine
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _execute_anew(_module(file))
    # Without the shape checks, which would not see the modules loaded before.
    options = ["-x", "-q", "--assert=plain", "--tb=short", "-p", "no:cacheprovider"]
    options += ["-o", "addopts=--import-mode=importlib", "-m", "not slow and not experts"]
    return int(pytest.main([*options, *tests]))


def _execute_anew(module: str) -> None:
    changed = sys.modules[module]
    old = {name: value for name, value in vars(changed).items() if not name.startswith("__")}
    path = Path(str(changed.__file__))
    assert path.is_relative_to(Path.cwd()), "loaded from elsewhere: no mutant is executed"
    exec(compile(path.read_text(), str(path), "exec"), vars(changed))
    new = {id(value): vars(changed)[name] for name, value in old.items()}
    own = {id(value) for value in old.values() if getattr(value, "__module__", "") == module}
    for other in [m for name, m in sys.modules.items() if name.startswith("tdmpc_opt")]:
        for name, value in list(vars(other).items()):
            if id(value) in own:
                setattr(other, name, new[id(value)])


def _write(output: Path, found: list[dict[str, Any]], hashes: dict[str, str]) -> None:
    from tdmpc_opt import machine  # of the copy

    samples = {file: size for file, (size, _) in SAMPLES.items()}
    content = {
        "kind": "mutation",
        "config": {"seed": SEED, "samples": samples, "sources": hashes},
        "mutants": sorted(
            found, key=lambda row: (list(SAMPLES).index(row["file"]), row["mutant"])
        ),
        "versions": machine.versions(),
        "machine": machine.facts(),
    }
    output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run(Path(sys.argv[1]).resolve(), float(sys.argv[2]) if len(sys.argv) > 2 else float("inf"))
