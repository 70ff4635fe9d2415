"""Let a coverage-guided fuzzer (atheris, on libFuzzer) choose the changes of one kind of file.

It runs until it finds a fault or is stopped; options of libFuzzer may follow the kind:

    pip install "tdmpc-opt[fuzz]"
    python tests/fuzz_coverage.py result-files -runs=100000
"""

import shutil
import sys
import tempfile
from pathlib import Path

import atheris
import pytest

with atheris.instrument_imports(include=["tdmpc_opt"], enable_loader_override=False):
    import test_fuzz
from hypothesis import given, settings
from hypothesis import strategies as st


def main(kind: str, options: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        test_fuzz.only_read(patch)
        shutil.copytree(test_fuzz.CORPUS / kind, Path(folder, kind))

        @settings(deadline=None)
        @given(data=st.data())
        def check(data: st.DataObject) -> None:
            test_fuzz.check_changed_file(kind, Path(folder), data)

        # Hypothesis draws a change from thousands of bytes; libFuzzer would begin with a few.
        options = ["-len_control=0", "-max_len=8192", *options]
        atheris.Setup([sys.argv[0], *options], check.hypothesis.fuzz_one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
