"""Pickles that would run code, or take all memory, if anyone unpickled them freely."""

import random
import struct
import tempfile
from pathlib import Path

CANARY = str(Path(tempfile.gettempdir()) / "tdmpc-opt-fuzz-canary")
"""A file that the programs try to make; it must never be there."""

_CALLS: tuple[tuple[str, str, tuple[str | int, ...]], ...] = (
    ("os", "system", (f"touch {CANARY}",)),
    ("posix", "system", (f"touch {CANARY}",)),
    ("subprocess", "getoutput", (f"touch {CANARY}",)),
    ("builtins", "eval", (f"open({CANARY!r}, 'w')",)),
    ("builtins", "exec", (f"open({CANARY!r}, 'w')",)),
    ("__builtin__", "eval", (f"open({CANARY!r}, 'w')",)),
    ("builtins", "open", (CANARY, "w")),
    ("io", "open", (CANARY, "w")),
    ("os", "mkdir", (CANARY,)),
    ("os", "mkfifo", (CANARY,)),
    ("pathlib", "Path.touch", (CANARY,)),
    ("importlib", "import_module", ("fuzzing_canary",)),
    ("builtins", "__import__", ("fuzzing_canary",)),
    ("fuzzing_canary", "Env", ()),
    ("torch", "save", (CANARY, CANARY)),
    ("torch.hub", "load", (CANARY, "x")),
    ("torch._utils", "_import_dotted_name", ("fuzzing_canary.Env",)),
    ("torch.utils._config_module", "_import", ("fuzzing_canary",)),
    ("numpy", "save", (CANARY, 1)),
    ("numpy", "memmap", (CANARY, "f4", "w+", 0, 8)),
    ("numpy.testing._private.utils", "runstring", (f"open({CANARY!r}, 'w')", "")),
    ("tdmpc_opt.atomic", "replace_when_done", (CANARY,)),
    ("tdmpc_opt.executor", "run_parallel", (CANARY,)),
    ("tensordict._td", "TensorDict.load_memmap", (CANARY,)),
    ("builtins", "bytearray", (1 << 33,)),
    ("builtins", "bytearray", (1 << 62,)),
    ("builtins", "getattr", ("x", "__class__")),
)


def hostile(draw: random.Random, *, whole: bool = True) -> bytes:
    """Return a pickle; without `whole` a piece to be put into another."""
    kind = draw.randrange(8)
    if kind == 0:
        body = draw.choice((b"(", b"]", b"}", b"]q\x00h\x00")) * draw.choice((10, 4000))
    elif kind == 1:  # a giant text, or number, of which the first bytes alone are there
        body = draw.choice(
            (b"X\xff\xff\xff\x7fab", b"\x8b\xff\xff\xff\x7f\x01", b"B\xff\xff\xff\x7f")
        )
    elif kind == 2:  # each list holds the one before twice
        body = b"]q\x00" + b"".join(b"(h%ch%cl" % (n, n) + b"q%c" % (n + 1) for n in range(40))
    else:
        body = _call(draw)
    return b"\x80\x02" + body + b"." if whole else body


def _call(draw: random.Random) -> bytes:
    module, name, arguments = draw.choice(_CALLS)
    stack = b"".join(integer(a) if isinstance(a, int) else text(a) for a in arguments)
    form, named = draw.randrange(4), f"{module}\n{name}\n".encode()
    if form == 0:  # as protocol 4 names it
        return text(module) + text(name) + b"\x93(" + stack + b"tR"
    if form == 1:  # INST: called as a class
        return b"(" + stack + b"i" + named
    if form == 2:  # OBJ
        return b"(c" + named + stack + b"o"
    return b"c" + named + b"(" + stack + draw.choice((b"tR", b"t\x81"))


def integer(value: int) -> bytes:
    """Return the operation that puts a number on the stack."""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def text(value: str) -> bytes:
    """Return the operation that puts a text on the stack."""
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded
