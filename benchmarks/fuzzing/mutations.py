"""Changes of valid files: of single bytes, of lengths, and inside the structure they have."""

import json
import random
from collections.abc import Callable
from typing import Any

from fuzzing import archives, graphs

CANARY_MODULE = "fuzzing_canary"
"""A module that nothing may import; files name it."""

_BYTES = (0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x2E, 0x22, 0x7B)
_LENGTHS = (0, 1, 7, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
_WORDS = (
    "",
    "é",
    "\x1b[2J",
    "a\nb",
    "../../x",
    "[/b]",
    "\ud800",
    "NaN",
    "0" * 400,
    "I64",
    "BF16",
)
_NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 7, 255, 2**31, 2**53, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), float("-inf")),
)
_ODD: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"a": 1}, *_NUMBERS, *_WORDS)

Change = Callable[[random.Random, bytes], bytes]


def change(draw: random.Random, name: str, content: bytes) -> bytes:
    """Return the file with one change or several, most of them inside its structure."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        kinds: tuple[Change, ...] = _BY_SUFFIX.get(name.rpartition(".")[2], (raw,))
        pick = draw.choice(kinds) if draw.random() < 0.75 else raw
        content = pick(draw, content)
    return content


def raw(draw: random.Random, content: bytes) -> bytes:
    """Change bytes without regard to what they mean; rather at the beginning or the end."""
    return draw.choice((_flip, _flip, _set, _number, _cut, _drop, _repeat, _splice))(
        draw, content
    )


def _place(draw: random.Random, content: bytes) -> int:
    where, size = draw.random(), max(len(content), 1)
    if where < 0.35:
        return min(draw.randrange(256), size - 1)
    if where < 0.55:
        return max(size - 1 - draw.randrange(512), 0)
    return draw.randrange(size)


def _flip(draw: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.randint(1, 8) if changed else 0):
        changed[_place(draw, content)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _set(draw: random.Random, content: bytes) -> bytes:
    at = _place(draw, content)
    return content[:at] + bytes([draw.choice(_BYTES)]) + content[at + 1 :]


def _number(draw: random.Random, content: bytes) -> bytes:
    """Write a length over whatever is there."""
    at, width = _place(draw, content), draw.choice((1, 2, 4, 8))
    value = draw.choice((*_LENGTHS, len(content), len(content) + 1, len(content) - 1))
    text = (value % (1 << 8 * width)).to_bytes(width, draw.choice(("little", "big")))
    return content[:at] + text + content[at + width :]


def _cut(draw: random.Random, content: bytes) -> bytes:
    return content[: _place(draw, content)]


def _drop(draw: random.Random, content: bytes) -> bytes:
    at = _place(draw, content)
    return content[:at] + content[at + draw.randint(1, 64) :]


def _repeat(draw: random.Random, content: bytes) -> bytes:
    at = _place(draw, content)
    return content[:at] + content[at : at + draw.randint(1, 64)] * 2 + content[at:]


def _splice(draw: random.Random, content: bytes) -> bytes:
    start, at = _place(draw, content), _place(draw, content)
    part = content[start : start + draw.randint(1, 128)]
    return content[:at] + part + content[at + draw.choice((0, len(part))) :]


def json_text(draw: random.Random, content: bytes) -> bytes:
    """Change a value, a name or the shape of a JSON document, or its text."""
    try:
        root = json.loads(content)
    except (ValueError, RecursionError):
        return raw(draw, content)
    if draw.random() < 0.04:
        return _deep(draw, content)
    changed = json_value(draw, root)
    return json.dumps(changed).encode("utf-8", "surrogatepass")


def _deep(draw: random.Random, content: bytes) -> bytes:
    """Nest, or lengthen a number, beyond what a parser may follow."""
    mark = draw.choice((b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"1e" + b"9" * 40))
    at = content.find(b":", _place(draw, content)) + 1
    return content[:at] + mark + content[at:]


def json_value(draw: random.Random, root: Any) -> Any:
    """Change one place of a parsed document."""
    places = list(_places(root))
    if not places:
        return draw.choice(_ODD)
    parent, key = draw.choice(places)
    action = draw.randrange(8)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, dict):
        parent[draw.choice((*parent, "x", "__class__", "self"))] = parent.pop(key)
    elif action == 2:
        other_parent, other = draw.choice(places)
        parent[key] = other_parent[other] if other_parent is not parent else draw.choice(_ODD)
        _break_circles(parent, key)
    elif action == 3 and isinstance(parent, list):
        parent.insert(draw.randint(0, len(parent)), draw.choice(_ODD))
    else:
        parent[key] = _like(draw, parent[key])
    return root


def _break_circles(parent: Any, key: Any) -> None:
    """Copy what was put inside itself, as far as text can tell of it."""
    try:
        parent[key] = json.loads(json.dumps(parent[key]))
    except ValueError:
        parent[key] = None


def _places(value: Any) -> Any:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in list(items):
            yield value, key
            yield from _places(inner)


def _like(draw: random.Random, value: Any) -> Any:  # noqa: PLR0911
    """Return something of the same kind, mostly; texts that are JSON change inside."""
    if draw.random() < 0.25:
        return draw.choice(_ODD)
    if isinstance(value, str) and value[:1] in ("{", "["):
        return json_text(draw, value.encode("utf-8", "surrogatepass")).decode(
            "utf-8", "replace"
        )
    if isinstance(value, str):
        return draw.choice(
            (*_WORDS, f"{CANARY_MODULE}:Env", value + "x", value[:-1], value * 2)
        )
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return draw.choice((*_NUMBERS, value + 1, value - 1, value * 2, -value, float(value)))
    return draw.choice(_ODD)


def safetensors(draw: random.Random, content: bytes) -> bytes:
    """Change the header as the JSON it is, and mostly keep its length true."""
    length = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + length], content[8 + length :]
    if draw.random() < 0.15:
        rest = raw(draw, rest)
    else:
        header = _tensors_or_metadata(draw, header)
    stated = len(header) if draw.random() < 0.95 else draw.choice((*_LENGTHS, len(header) + 1))
    return stated.to_bytes(8, "little") + header + rest


def _tensors_or_metadata(draw: random.Random, header: bytes) -> bytes:
    """Give tensors and metadata the same chance, although there are many more tensors."""
    try:
        root = json.loads(header)
        part = root["__metadata__"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return raw(draw, header)
    if draw.random() < 0.6 and isinstance(part, dict):
        root["__metadata__"] = json_value(draw, part)
        if draw.random() < 0.9 and isinstance(part, dict):  # the format has texts alone
            part = root["__metadata__"]
            root["__metadata__"] = {k: v for k, v in part.items() if isinstance(v, str)}
    else:
        root = json_value(draw, root)
    return json.dumps(root, separators=(",", ":")).encode("utf-8", "surrogatepass")


def numbers(draw: random.Random, content: bytes) -> bytes:
    """Put values into plain arrays that no array should hold."""
    odd = (b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\xff\xff", b"\x00\x00\x80\xff")
    at = draw.randrange(max(len(content) // 4, 1)) * 4
    return content[:at] + draw.choice(odd) + content[at + 4 :]


def numpy_file(draw: random.Random, content: bytes) -> bytes:
    """Change the text of the header."""
    swaps = (
        (b"'<i8'", b"'|O' "),
        (b"'<i8'", b"'|V8'"),
        (b"(2,)", b"(-2,)"),
        (b"(2,)", b"(9999999999,)"),
        (b"False", b"True"),
        (b"{", b"{" * 200),
        (b"'descr'", b"__import__('fuzzing_canary')"),
    )
    old, new = draw.choice(swaps)
    return content.replace(old, new, 1)


_BY_SUFFIX: dict[str, tuple[Change, ...]] = {
    "json": (json_text,),
    "safetensors": (safetensors,),
    "pt": (archives.pickled, archives.pickled, archives.directory),
    "npz": (archives.directory, archives.members),
    "onnx": (graphs.graph, graphs.graph, graphs.metadata),
    "memmap": (numbers,),
    "npy": (numpy_file,),
}
