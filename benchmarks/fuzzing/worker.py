"""Reads changed files one after the other, in a process that may die of one.

python -m fuzzing.worker READER SEED FIRST SECONDS LIMIT FOLDER
"""

import json
import mmap
import random
import resource
import sys
import time
import warnings
from pathlib import Path

import torch

from fuzzing import readers, watch
from fuzzing.seeds import MAKERS

BEAT = "beat"
"""File in the work folder that holds the number of the case in hand, eight bytes."""
_REPORT_EVERY_S = 2.0
_ADDRESS_SPACE = 3 << 30  # beyond what the process has, so that this machine survives a bomb


def case_of(seed: int, reader: str, number: int) -> random.Random:
    """Return the source of the choices that make a case."""
    return random.Random(f"{seed}/{reader}/{number}")


def main(arguments: list[str]) -> None:
    """Read until the time or the cases are over, and print what was found as JSON lines."""
    name, seed, first, seconds, limit, folder = arguments
    torch.set_num_threads(1)
    _Worker(name, int(seed), Path(folder)).run(int(first), int(limit), float(seconds))


class _Worker:
    def __init__(self, name: str, seed: int, folder: Path) -> None:
        readers.prepare()
        self._name, self._seed = name, seed
        work = folder / "work"
        work.mkdir(parents=True, exist_ok=True)
        reader = readers.readers(work)[name]
        seeds = folder / "seeds" / name
        seeds.mkdir(parents=True, exist_ok=True)
        self._case = readers.Case(reader, MAKERS[name](seeds), work / "cases")
        self._watch = watch.Watch(work)
        (folder / BEAT).write_bytes(b"\xff" * 8)
        with (folder / BEAT).open("r+b") as file:
            self._beat = mmap.mmap(file.fileno(), 8)
        self._counts = {"cases": 0, "passed": 0, "read": 0, "too_large": 0}

    def run(self, first: int, limit: int, seconds: float) -> None:
        self._warm_up()
        begin = shown = time.monotonic()
        number = first
        while number < limit and time.monotonic() - begin < seconds:
            self._beat[:] = number.to_bytes(8, "little")
            self._one(number)
            number += 1
            if time.monotonic() - shown > _REPORT_EVERY_S:
                self._report(number)
                shown = time.monotonic()
        self._report(number)

    def _warm_up(self) -> None:
        """Read the valid files in every way, which loads all that readers load."""
        warnings.simplefilter("error")  # a warning is a second line beside the error's one
        for chosen in range(len(self._case.seeds)):
            ways = []
            for number in range(16):
                found = readers.judge(self._case.reader.read, self._case.path(chosen), number)
                assert found.fault is None, f"{self._name}, {chosen}, {number}: {found.fault}"
                ways.append(found.refused)
            assert not all(ways), f"{self._name}: valid file {chosen} was refused"
        for number in range(20):
            self._case.run(case_of(-1, self._name, number), number)
        self._peak = watch.peak_memory() + watch.MEMORY_BOUND
        used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        room = used + _ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (room, room))

    def _one(self, number: int) -> None:
        try:
            with self._watch:
                outcome = self._case.run(case_of(self._seed, self._name, number), number)
        except watch.CodeRunError as error:
            self._counts["cases"] += 1
            _say(fault="code_run", case=number, message=str(error))
            self._leave(number)
        self._counts["cases"] += 1
        self._counts["passed"] += outcome.passed
        self._counts["read"] += outcome.read
        self._counts["too_large"] += outcome.too_large
        if outcome.fault is not None:
            _say(fault="crash", case=number, message=outcome.fault)
        if watch.peak_memory() > self._peak:
            taken = (watch.peak_memory() - self._peak + watch.MEMORY_BOUND) >> 20
            _say(fault="memory", case=number, message=f"{taken} MiB")
            self._leave(number)

    def _leave(self, number: int) -> None:
        """End, since this process is not as it was."""
        self._report(number + 1)
        sys.exit(0)

    def _report(self, following: int) -> None:
        _say(next=following, **self._counts)
        self._counts = dict.fromkeys(self._counts, 0)


def _say(**values: object) -> None:
    sys.__stdout__.write(json.dumps(values) + "\n")
    sys.__stdout__.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
