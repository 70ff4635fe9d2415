"""Compiles `heads.cpp` at its first use and keeps the library in the user's cache."""

import ctypes
import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch

from tdmpc_opt.atomic import replace_when_done
from tdmpc_opt.errors import InputError, MissingDependencyError

_SOURCE = Path(__file__).with_name("heads.cpp")
_FLAGS = ("-std=c++17", "-O3", "-mavx2", "-mfma", "-shared", "-fPIC", "-pthread")


def check_native() -> None:
    """Refuse a machine that cannot compile or run the library.

    Raises:
        InputError: A CPU without AVX2.
        MissingDependencyError: No compiler.
    """
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        raise InputError("engine native needs an x86 CPU with AVX2; take engine onnxruntime")
    if _compiler() is None:
        raise MissingDependencyError(
            "engine native needs a C++ compiler: install g++ or clang, or name one in CXX"
        )


@cache
def library() -> ctypes.CDLL:
    """Return the library, compiled if the cache has none of this source.

    Raises:
        InputError: A CPU without AVX2.
        MissingDependencyError: No compiler, or one that fails.
    """
    check_native()
    compiler = _compiler()
    assert compiler is not None, "checked above"
    recipe = "\0".join((compiler, *_FLAGS, _SOURCE.read_text()))
    path = _folder() / f"heads-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        with replace_when_done(path) as unfinished:
            _compile(compiler, unfinished)
    loaded = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    loaded.run_head.argtypes = [pointer, pointer, number, number, pointer, number]
    loaded.run_head.restype = None
    return loaded


def _compile(compiler: str, output: Path) -> None:
    command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split())[:200]
        raise MissingDependencyError(f"{compiler} cannot compile engine native: {said}")


def _compiler() -> str | None:
    named = (os.environ.get("CXX", "g++"), "clang++")
    return next((found for name in named if (found := shutil.which(name))), None)


def _folder() -> Path:
    """Return a folder of the user's own: nobody else may put code there."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "tdmpc-opt"
