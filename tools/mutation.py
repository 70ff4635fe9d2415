"""Put small faults into the code that results depend on, and count those that tests find.

    pip install cosmic-ray==8.7.0    # beside what the tests need; make setup leaves it out
    python tools/mutation.py results/mutation.json

It works on one core in a copy of the committed files, and goes on from a file that exists.
Cosmic Ray makes the mutants; a fixed sample of them is tested. A second argument of 0.5 tests
the first half of the sample.
"""

import json
import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mutant_server import serve

ROOT = Path(__file__).parents[1]
SEED = 0
_ROUNDING = [
    f"tests/test_integers.py::test_{name}"
    for name in (
        "rounding_to_nearest_stays_within_half_a_step",
        "four_bits_clip_only_where_that_lowers_the_error",
        "four_bit_scales_are_the_best_of_those_tried",
        "rounding_by_inputs_disturbs_the_products_less",
        "rounding_by_inputs_solves_for_the_columns_left",
        "independent_inputs_leave_each_weight_to_itself",
        "a_weight_too_large_for_its_scale_is_refused",
        "files_hold_integers_and_no_targets",
        "a_loaded_model_computes_what_its_numbers_say",
        "calibration_on_real_observations_beats_plain_rounding",
        "what_is_quantised_is_neither_quantised_again_nor_trained",
    )
]
SAMPLES: dict[str, tuple[int, list[str]]] = {
    "data/sampler.py": (30, ["tests/test_sampler.py"]),
    "training/objective.py": (32, ["tests/test_golden.py", "tests/test_objective.py"]),
    "training/terms.py": (22, ["tests/test_terms.py", "tests/test_golden.py"]),
    "training/step.py": (18, ["tests/test_golden.py", "tests/test_objective.py"]),
    "planning/mppi.py": (40, ["tests/test_golden.py", "tests/test_planning.py"]),
    "compression/rounding.py": (36, _ROUNDING),
    "evaluation/score.py": (8, ["tests/test_evaluation.py"]),
    "evaluation/results.py": (8, ["tests/test_evaluation.py"]),
    "evaluation/evaluate.py": (6, ["tests/test_evaluation.py"]),
}
"""Mutants and tests of each file."""
TRIVIAL = [
    # Floats and types take none of these: such a mutant fails wherever it is executed.
    "core/ReplaceBinaryOperator_.*_(BitAnd|BitOr|BitXor|LShift|RShift)",
    "core/ReplaceBinaryOperator_BitOr_.*",
    "core/ReplaceUnaryOperator_USub_(Invert|Not)",
]
"""Operators that would be killed for nothing, and are left out."""


def run(output: Path, share: float = 1.0) -> None:
    """Test the sample, or the first share of it, and write what became of each mutant."""
    found = json.loads(output.read_text())["mutants"] if output.exists() else []
    known = {(m["file"], m["operator"], m["occurrence"]) for m in found}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "copy"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(work)], check=True)
        os.chdir(work)
        address = Path(folder) / "socket"
        sys.path[:0] = [str(work / "src"), str(work / "tests")]
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = (
            "1"  # none is needed, and they load slowly
        )
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
        names = [f"tdmpc_opt.{file[:-3].replace('/', '.')}" for file in SAMPLES]
        server = multiprocessing.Process(target=serve, args=(address, names), daemon=True)
        server.start()
        while not address.exists():
            time.sleep(0.5)
        for (file, (size, tests)), name in zip(SAMPLES.items(), names, strict=True):
            command = [sys.executable, "-S", "tools/mutant_server.py", str(address), name]
            if subprocess.run([*command, *tests], check=False).returncode:
                raise SystemExit(f"{file}: its tests fail without a mutant; see mutant.log")
            session = _session(file, [*command, *tests])
            wanted = _sample(
                session, round(share * size), {key[1:] for key in known if key[0] == file}
            )
            if wanted:
                subprocess.run(["cosmic-ray", "exec", "session.toml", session], check=True)
            found += [row for row in _results(session, file) if row["outcome"]]
            _write(output, found)
        server.kill()


def _session(file: str, command: list[str]) -> str:
    """Let Cosmic Ray list the mutants of a file."""
    Path("session.toml").write_text(
        f'[cosmic-ray]\nmodule-path = "src/tdmpc_opt/{file}"\ntimeout = 3600.0\n'
        f'excluded-modules = []\ntest-command = "{" ".join(command)}"\n'
        '[cosmic-ray.distributor]\nname = "local"\n'
        f"[cosmic-ray.filters.operators-filter]\nexclude-operators = {json.dumps(TRIVIAL)}\n"
    )
    Path("session.sqlite").unlink(missing_ok=True)
    subprocess.run(["cosmic-ray", "init", "session.toml", "session.sqlite"], check=True)
    subprocess.run(["cr-filter-operators", "session.sqlite", "session.toml"], check=True)
    return "session.sqlite"


def _sample(session: str, size: int, known: set[tuple[str, int]]) -> int:
    """Leave a sample of the mutants in the session, without the known ones; return its size."""
    with sqlite3.connect(session) as base:
        skipped = {row[0] for row in base.execute("select job_id from work_results")}
        rows = base.execute(
            "select job_id, operator_name, occurrence from mutation_specs "
            "order by operator_name, occurrence"
        ).fetchall()
        rows = [row for row in rows if row[0] not in skipped]
        random.Random(SEED).shuffle(rows)
        wanted = {row[0] for row in rows[:size] if row[1:] not in known}
        for table in ("work_results", "mutation_specs", "work_items"):
            marks = ",".join("?" * len(wanted))
            base.execute(f"delete from {table} where job_id not in ({marks})", [*wanted])
    return len(wanted)


def _results(session: str, file: str) -> list[dict[str, Any]]:
    with sqlite3.connect(session) as base:
        base.row_factory = sqlite3.Row
        rows = base.execute(
            "select s.operator_name, s.occurrence, s.start_pos_row, r.test_outcome, r.diff "
            "from mutation_specs s join work_results r using (job_id)"
        ).fetchall()
    return [
        {
            "file": file,
            "operator": row["operator_name"],
            "occurrence": row["occurrence"],
            "line": row["start_pos_row"],
            "outcome": row["test_outcome"].lower(),
            "change": [
                line
                for line in row["diff"].splitlines()
                if line[:1] in "+-" and line[:3] not in ("+++", "---") and line[1:].strip()
            ],
        }
        for row in rows
    ]


def _write(output: Path, mutants: list[dict[str, Any]]) -> None:
    from tdmpc_opt import machine  # not before the server was forked: it imports the copy

    content = {
        "kind": "mutation",
        "config": {
            "tool": "cosmic-ray 8.7.0",
            "seed": SEED,
            "samples": {file: size for file, (size, _) in SAMPLES.items()},
            "left_out": TRIVIAL,
        },
        "mutants": mutants,
        "versions": machine.versions(),
        "machine": machine.facts(),
    }
    output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run(Path(sys.argv[1]).resolve(), *map(float, sys.argv[2:]))
