"""Read hundreds of thousands of changed files of every kind, in processes that may die of them.

Every kind of file has valid ones that are made here; a case is a change of one, made from the
seed and the number of the case, so that it can be made again. What is already done is kept, and
the same command goes on; faults are tried anew first, so that mended ones go.

    python benchmarks/fuzz.py --cases 5000000
"""

import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from tdmpc_opt import provenance
from tdmpc_opt.atomic import replace_when_done

SHARES = {
    "public checkpoints": 0.02,
    "safetensors": 0.06,
    "quantised safetensors": 0.06,
    "safetensors on the device": 0.2,
    "ONNX": 0.02,
    "official shards": 0.01,
    "datasets": 0.05,
    "result files": 0.23,
    "run records": 0.23,
    "training states": 0.01,
    "expert policies": 0.1,
    "expert states": 0.01,
}
"""Part of all cases of each kind: those that are quick to read get more."""
AT_LEAST = 10_000
"""Cases of each kind."""
MARKS = ("<!-- fuzz: begin -->", "<!-- fuzz: end -->")
"""Where the table of a page begins and ends."""
_HANG_S = 20.0  # processor seconds for one small file
_LOST_S = 600.0  # wall seconds, of a process that does not even compute


@dataclass(frozen=True)
class Config:
    """How much to try."""

    cases: int = 120_000
    """Cases in all, of every kind at least 10,000."""
    only: str | None = None
    """One kind of file alone."""
    seconds: float = 90.0
    """Time of one process, after which another kind has its turn."""
    seed: int = 0
    """Seed of all changes; another seed begins anew beside it."""
    output: Path = Path("results/fuzz.json")
    """Result file."""
    page: Path | None = None
    """Page whose table is to show the result, such as docs/security.md."""


@dataclass
class Tally:
    """What was tried of one kind."""

    cases: int = 0
    passed: int = 0
    """Cases that the first check of the content lets through."""
    read: int = 0
    """Changed files that were still valid to their reader."""
    too_large: int = 0
    """Files that asked for more than 3 GiB at once, did not get it, and were refused."""
    seconds: float = 0.0
    following: int = 0
    """Number of the next case."""
    faults: list[dict[str, Any]] = field(default_factory=list)
    """Cases that crashed, hung, ran code or took much memory, and still do."""
    mended: int = 0
    """Faults that were found and are none any more."""


class State:
    """All tallies, kept in a file between calls.

    Args:
        folder: Where to keep it.
        seed: Seed of the cases.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.path = folder / f"state-{seed}.json"
        self.tallies = {name: Tally() for name in SHARES}
        if self.path.exists():
            found = json.loads(self.path.read_text())
            self.tallies |= {name: Tally(**values) for name, values in found.items()}

    def save(self) -> None:
        """Write the file as a whole."""
        content = {name: asdict(tally) for name, tally in self.tallies.items()}
        with replace_when_done(self.path) as temporary:
            temporary.write_text(json.dumps(content, indent=1))


def main(config: Config) -> None:
    """Try, keep what was done after every turn, and write the result."""
    home = Path(os.environ.get("TDMPC_OPT_HOME", Path.home() / ".cache" / "tdmpc-opt")) / "fuzz"
    home.mkdir(parents=True, exist_ok=True)
    state = State(home, config.seed)
    names = [config.only] if config.only else list(SHARES)
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_memory()) as folder:
        work = Path(folder)
        for name in names:
            _retry(state, config, name, work)
        for name, limit in _turns(state, config, names):
            begun = time.monotonic()
            _turn(state.tallies[name], config, name, limit, work)
            state.tallies[name].seconds += time.monotonic() - begun
            state.save()
            write_result(state, config)
    write_result(state, config)
    faults = sum(len(tally.faults) for tally in state.tallies.values())
    total = sum(tally.cases for tally in state.tallies.values())
    Console().print(f"{total:,} cases, {faults} faults; {config.output}", highlight=False)
    sys.exit(1 if faults else 0)


def _memory() -> str | None:
    """Return a folder in memory where there is one: a case writes a file or two."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _turns(state: State, config: Config, names: list[str]) -> Iterator[tuple[str, int]]:
    """Yield whose turn it is and up to which case, the kinds that lack most of theirs first."""
    goals = {name: max(AT_LEAST, math.ceil(SHARES[name] * config.cases)) for name in names}
    while True:
        lacking = {
            name: state.tallies[name].cases / min(goal, AT_LEAST)
            if state.tallies[name].cases < AT_LEAST
            else 1 + state.tallies[name].cases / goal
            for name, goal in goals.items()
            if state.tallies[name].cases < goal
        }
        if not lacking:
            return
        name = min(lacking, key=lambda each: lacking[each])
        tally = state.tallies[name]
        yield name, tally.following + goals[name] - tally.cases


def _retry(state: State, config: Config, name: str, work: Path) -> None:
    """Try known faults again; the tally keeps those that still are some."""
    tally = state.tallies[name]
    known, tally.faults = tally.faults, []
    again = Tally()
    for fault in known:
        again.following = fault["case"]
        _turn(again, config, name, fault["case"] + 1, work)
    tally.faults = again.faults
    tally.mended += len(known) - len(again.faults)
    state.save()


def _turn(tally: Tally, config: Config, name: str, limit: int, work: Path) -> None:
    """Let a process read until its time is over, or it dies."""
    folder = work / "turn"
    shutil.rmtree(folder / "work", ignore_errors=True)
    folder.mkdir(exist_ok=True)
    (folder / "beat").unlink(missing_ok=True)  # of the process before
    words = [name, config.seed, tally.following, config.seconds, limit, folder]
    command = [sys.executable, "-m", "fuzzing.worker", *map(str, words)]
    root = Path(__file__).resolve().parent
    paths = os.pathsep.join([str(root), str(root.parent / "src")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        hung = not _listen(process, tally, folder)
        status = process.wait()
    if _at(folder) < 0 and (hung or status):
        sys.exit(f"the valid files of {name} are not read; mend that before changing them")
    if hung or status:
        case = max(_at(folder), tally.following)
        reason = "hang" if hung else "crash"
        text = f"no end after {_HANG_S} s" if hung else f"the process ended with {status}"
        tally.faults.append({"fault": reason, "case": case, "message": text})
        tally.cases += max(case + 1 - tally.following, 0)
        tally.following = case + 1


def _listen(process: "subprocess.Popen[bytes]", tally: Tally, folder: Path) -> bool:
    """Take what a process says until it ends; False if it had to be killed."""
    assert process.stdout is not None
    case, since, burnt = -1, time.monotonic(), 0.0
    while True:
        if select.select([process.stdout], [], [], 1.0)[0]:
            line = process.stdout.readline()
            if not line:
                return True
            if line.startswith(b"{"):  # libraries print as well
                _note(tally, json.loads(line))
        current = _at(folder)
        if current != case:
            case, since, burnt = current, time.monotonic(), _burnt(process.pid)
        limit = _HANG_S if case >= 0 else 10 * _HANG_S  # valid files are made and read first
        if _burnt(process.pid) - burnt > limit or time.monotonic() - since > _LOST_S:
            process.send_signal(signal.SIGKILL)
            return False


def _note(tally: Tally, said: dict[str, Any]) -> None:
    if "fault" in said:
        tally.faults.append(said)
    else:
        tally.cases += said["cases"]
        tally.passed += said["passed"]
        tally.read += said["read"]
        tally.too_large += said["too_large"]
        tally.following = said["next"]


def _at(folder: Path) -> int:
    """Return the number of the case in hand; -1 before the first."""
    beat = folder / "beat"
    return int.from_bytes(beat.read_bytes(), "little", signed=True) if beat.exists() else -1


def _burnt(process: int) -> float:
    """Return the processor seconds that a process has taken."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def write_result(state: State, config: Config) -> None:
    """Write what was tried and what came of it, to the file and the page."""
    tallies = state.tallies
    faults = [fault for tally in tallies.values() for fault in tally.faults]
    kinds = [fault["fault"] for fault in faults]
    rows = {
        name: {
            "cases": tally.cases,
            "passed_first_check": tally.passed,
            "read": tally.read,
            "too_large": tally.too_large,
            "faults": len(tally.faults),
            "mended": tally.mended,
            "seconds": round(tally.seconds, 1),
        }
        for name, tally in tallies.items()
    }
    result = {
        "kind": "fuzz",
        "cases": sum(tally.cases for tally in tallies.values()),
        "crashes": kinds.count("crash") + kinds.count("memory"),
        "hangs": kinds.count("hang"),
        "code_runs": kinds.count("code_run"),
        "passed_first_check": sum(tally.passed for tally in tallies.values()),
        "per_reader": rows,
        "seconds": round(sum(tally.seconds for tally in tallies.values()), 1),
        "command": f"python benchmarks/fuzz.py --cases {config.cases} --seed {config.seed}",
        "config": {"cases": config.cases, "seed": config.seed, "memory_bound_mib": 256},
        "versions": provenance.versions(),
        "machine": provenance.machine(),
    }
    with replace_when_done(config.output) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    if config.page is not None:
        config.page.write_text(with_table(config.page.read_text(), result))


def with_table(page: str, result: dict[str, Any]) -> str:
    """Return a page with the result between its two marks."""
    head, _, rest = page.partition(MARKS[0])
    _, _, tail = rest.partition(MARKS[1])
    rows = [
        f"| {name} | {row['cases']:,} | {row['passed_first_check']:,} | {row['read']:,} |"
        f" {row['too_large']:,} |"
        for name, row in result["per_reader"].items()
    ]
    faults = result["crashes"] + result["hangs"] + result["code_runs"]
    lines = [
        "| kind of file | cases | pass the first check | still valid | ask for over 3 GiB |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"{result['cases']:,} cases in all: {result['crashes']} crashes or bombs, "
        f"{result['hangs']} hangs, {result['code_runs']} runs of code "
        f"({faults} faults in [json](../results/fuzz.json)).",
    ]
    return head + MARKS[0] + "\n" + "\n".join(lines) + "\n" + MARKS[1] + tail


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
