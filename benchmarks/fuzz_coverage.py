"""Let a coverage-guided fuzzer (atheris, on libFuzzer) choose the changes of one kind of file.

It watches which lines of this package a file reaches and keeps the changes that reach new ones;
the changes themselves are those of `benchmarks/fuzz.py`. It runs until it is stopped, or for as
many runs as libFuzzer's own options say, and ends at the first fault.

    pip install "tdmpc-opt[fuzz]"
    python benchmarks/fuzz_coverage.py "run records" -runs=100000
"""

import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tdmpc_opt"], enable_loader_override=False):
    from fuzzing import readers, watch
    from fuzzing.mutations import change
    from fuzzing.seeds import MAKERS


def main(name: str, options: list[str]) -> None:
    """Fuzz one kind of file; its first valid file is where every change begins."""
    readers.prepare()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        (folder / "seeds").mkdir()
        (folder / "corpus").mkdir()
        reader = readers.readers(folder)[name]
        seeds = MAKERS[name](folder / "seeds")
        case = readers.Case(reader, seeds, folder / "cases")
        path = case.path(0)
        (folder / "corpus" / "valid").write_bytes(path.read_bytes())
        for number in range(16):  # loads what readers load
            readers.judge(reader.read, path, number)
        guard = watch.Watch(folder)

        def one(content: bytes) -> None:
            path.unlink()
            path.write_bytes(content)
            number = random.Random(content).randrange(64)
            with guard:
                fault = readers.judge(reader.read, path, number).fault
            if fault is not None:
                raise AssertionError(fault)

        def mutate(content: bytes, longest: int, seed: int) -> bytes:
            return change(random.Random(seed), path.name, content)[:longest]

        arguments = [sys.argv[0], *options, "-max_len=1000000", str(folder / "corpus")]
        atheris.Setup(arguments, one, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
