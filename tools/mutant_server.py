"""Runs tests on a mutated module in a fork of a process that has loaded everything.

Starting Python, torch and the simulator takes longer than most mutants live. `serve` loads them
once; a client (`python -S mutant_server.py SOCKET MODULE TEST...`) has it fork. The fork
executes the module's file anew, and puts the new functions and classes where other modules have
the old ones.
"""

import json
import os
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path

CPU_SECONDS = 120
"""A mutant that computes longer counts as killed."""


def serve(path: Path, modules: list[str]) -> None:
    """Load modules and answer clients until killed."""
    import importlib

    import pytest

    for name in ("dm_control.suite", "lightning_fabric", *modules):
        importlib.import_module(name)
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{path}.new")
    server.listen()
    Path(f"{path}.new").rename(path)
    while True:
        client, _ = server.accept()
        with client, client.makefile("rw") as stream:
            module, *tests = json.loads(stream.readline())
            child = os.fork()
            if child == 0:
                code = 1  # of a mutant that cannot be executed
                try:
                    code = _run(module, tests, pytest.main)
                finally:
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            stream.write(f"{int(status != 0)}\n")


def _run(module: str, tests: list[str], main: Callable[[list[str]], int]) -> int:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    log = os.open("mutant.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _execute_anew(module)
    # Without the shape checks, which would not see the modules loaded before.
    options = [
        "-x",
        "-q",
        "--assert=plain",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=--import-mode=importlib",
    ]
    return int(main([*options, "-m", "not slow and not compile and not experts", *tests]))


def _execute_anew(module: str) -> None:
    changed = sys.modules[module]
    old = {name: value for name, value in vars(changed).items() if not name.startswith("__")}
    path = Path(str(changed.__file__))
    assert path.is_relative_to(Path.cwd()), (
        "loaded from elsewhere: its mutants are not executed"
    )
    exec(compile(path.read_text(), str(path), "exec"), vars(changed))
    new = {id(value): vars(changed)[name] for name, value in old.items()}
    own = {id(value) for value in old.values() if getattr(value, "__module__", "") == module}
    for other in [m for name, m in sys.modules.items() if name.startswith("tdmpc_opt")]:
        for name, value in list(vars(other).items()):
            if id(value) in own:
                setattr(other, name, new[id(value)])


def ask(path: str, words: list[str]) -> int:
    """Have the server test the module of the first word with the tests of the others."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        with client.makefile("rw") as stream:
            stream.write(json.dumps(words) + "\n")
            stream.flush()
            return int(stream.readline())


if __name__ == "__main__":
    sys.exit(ask(sys.argv[1], sys.argv[2:]))
