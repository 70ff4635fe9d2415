"""Changes inside zip files: their directory, the pickles in them, their members."""

import io
import pickletools
import random
import struct
import warnings
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fuzzing import programs

_ALIGNMENT = 64
_CENTRAL = b"PK\x01\x02"
_END = b"PK\x05\x06"
_SIZES = (0, 1, -1, 2, 8, 64, 2**31 - 1, 2**31, 2**40, 2**62, -(2**31))
_NAMES = (
    b"data.pkl",
    b"../data.pkl",
    b"byteorder",
    b"version",
    b"data/0",
    b"constants.pkl",
    b"",
)
_GLOBALS = (
    *(
        b"torch FloatStorage",
        b"torch DoubleStorage",
        b"torch QInt8Storage",
        b"torch ByteStorage",
    ),
    *(b"torch._utils _rebuild_tensor_v2", b"torch._utils _rebuild_sparse_tensor"),
    *(b"torch._utils _rebuild_parameter", b"torch._utils _rebuild_qtensor"),
    *(b"torch._utils _rebuild_meta_tensor_no_storage", b"torch.storage UntypedStorage"),
    *(b"collections OrderedDict", b"builtins bytearray", b"torch Size", b"torch float64"),
    *(
        b"_codecs encode",
        b"builtins set",
        b"torch device",
        b"torch._utils _rebuild_wrapper_subclass",
    ),
    *(b"torch._tensor _rebuild_from_type_v2", b"torch.nn.parameter Parameter"),
)


@dataclass(frozen=True)
class _Entry:
    name: str
    data: bytes


@lru_cache(maxsize=64)
def _entries(content: bytes) -> tuple[_Entry, ...] | None:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found = [_Entry(item.filename, archive.read(item)) for item in archive.infolist()]
    except Exception:  # whatever a changed archive may raise: it has no entries
        return None
    return tuple(found) or None


def pack(entries: tuple[_Entry, ...] | list[_Entry], *, packed: bool = False) -> bytes:
    """Write an archive as torch does: each entry's bytes begin at a multiple of 64."""
    file = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with (
        warnings.catch_warnings(action="ignore", category=UserWarning),  # of equal names
        zipfile.ZipFile(file, "w", kind) as archive,
    ):
        for entry in entries:
            info = zipfile.ZipInfo(entry.name)
            info.compress_type = kind
            start = file.tell() + 30 + len(entry.name.encode()) + 4
            room = -start % _ALIGNMENT
            info.extra = b"FB" + room.to_bytes(2, "little") + b"Z" * room
            archive.writestr(info, entry.data)
    return file.getvalue()


def pickled(draw: random.Random, content: bytes) -> bytes:
    """Change the program of the pickle in an archive, or of a bare one."""
    entries = _entries(content)
    if entries is None:
        return programs_of_bare(draw, content)
    changed = [
        _Entry(entry.name, _program(draw, entry.data))
        if entry.name.endswith("data.pkl")
        else entry
        for entry in entries
    ]
    return pack(changed)


def programs_of_bare(draw: random.Random, content: bytes) -> bytes:
    """Change one of the pickles that an old file is a row of."""
    hostile = programs.hostile(draw)
    at = draw.choice((0, *_stops(content)))
    return content[:at] + hostile + content[at:]


@lru_cache(maxsize=16)
def _stops(content: bytes) -> tuple[int, ...]:
    """Return where the first pickles of a file end."""
    stops, file = [], io.BytesIO(content)
    for _ in range(5):
        try:
            for _ in pickletools.genops(file):
                pass
        except Exception:  # the end of the pickles, in whatever way it shows
            break
        stops.append(file.tell())
    return tuple(stops)


@lru_cache(maxsize=64)
def _ops(program: bytes) -> tuple[tuple[Any, Any, int, int], ...]:
    """Return operation, argument, begin and end of each."""
    try:
        found = list(pickletools.genops(program))
    except Exception:  # a pickle changed before: nothing to take apart
        return ()
    ends = [*(at for _, _, at in found[1:]), len(program)]
    return tuple(
        (op, argument, at, end) for (op, argument, at), end in zip(found, ends, strict=True)
    )


def _program(draw: random.Random, program: bytes) -> bytes:  # noqa: PLR0911  # one for each change
    ops = _ops(program)
    if not ops:
        return program
    op, argument, at, end = draw.choice(ops)
    action = draw.randrange(10)
    if action == 0:
        return program[:at] + program[end:]
    if action == 1:
        return program[:end] + program[at:end] * draw.choice((1, 1, 2, 500)) + program[end:]
    if action == 2:
        other = draw.choice(ops)
        return program[:at] + program[other[2] : other[3]] + program[end:]
    if action == 3:
        return program[:at] + programs.hostile(draw, whole=False) + program[at:]
    if action == 4:
        return programs.hostile(draw)
    return program[:at] + _argument(draw, op.name, argument, program[at:end]) + program[end:]


def _argument(  # noqa: PLR0911  # one for each kind
    draw: random.Random, name: str, argument: Any, before: bytes
) -> bytes:
    """Return the operation with another argument of its kind, or one like it."""
    if name == "GLOBAL":
        module, attribute = draw.choice(_GLOBALS).split(b" ")
        return b"c" + module + b"\n" + attribute + b"\n"
    if isinstance(argument, bool):
        return b"\x89" if argument else b"\x88"
    if isinstance(argument, int):
        return programs.integer(draw.choice((*_SIZES, argument + 1, argument * 2, -argument)))
    if isinstance(argument, str):
        words = (
            argument + "x",
            argument[:-1],
            "",
            "0",
            "1",
            "cuda:0",
            "meta",
            "storage",
            "é" * 9,
        )
        return programs.text(draw.choice(words))
    return before + draw.choice(
        (b"0", b"2", b"(", b"t", b"R", b"Q", b"b", b"}", b"]", b"u", b"s")
    )


def directory(draw: random.Random, content: bytes) -> bytes:
    """Change fields of the zip's own directory, or its entries as a whole."""
    entries = _entries(content)
    if entries is None or draw.random() < 0.5:
        return _fields(draw, content)
    chosen = draw.randrange(len(entries))
    changed = list(entries)
    action = draw.randrange(6)
    if action == 0:
        del changed[chosen]
    elif action == 1:
        changed.append(changed[chosen])
    elif action == 2:
        changed[chosen] = _Entry(changed[chosen].name, bytes(4096))
        return pack(changed, packed=True)
    elif action == 3:
        folder = entries[0].name.partition("/")[0]
        name = draw.choice(_NAMES).decode()
        changed[chosen] = _Entry(f"{folder}/{name}", entries[chosen].data)
    elif action == 4:
        changed[chosen] = _Entry(entries[chosen].name, draw.choice((b"", b"big", b"\xff" * 9)))
    else:
        draw.shuffle(changed)
    return pack(changed) if changed else content


def _fields(draw: random.Random, content: bytes) -> bytes:
    """Overwrite a number in a directory record, an end record or a local header."""
    mark = draw.choice((_CENTRAL, _CENTRAL, _END, b"PK\x03\x04", b"PK\x06\x06", b"PK\x06\x07"))
    places, at = [], content.find(mark)
    while at >= 0:
        places.append(at)
        at = content.find(mark, at + 1)
    if not places:
        return content
    width = draw.choice((2, 4, 8))
    start = draw.choice(places) + draw.randrange(4, 48)
    value = draw.choice(
        (0, 1, 8, 9, 14, 0xFFFF, 2**31, 2**32 - 1, len(content), len(content) // 2)
    )
    number = struct.pack("<Q", value)[:width]
    return content[:start] + number + content[start + width :]


def members(draw: random.Random, content: bytes) -> bytes:
    """Change one member of an archive of arrays: its header, or what it holds."""
    from fuzzing import mutations  # which knows all kinds of files, this one too

    entries = _entries(content)
    if entries is None:
        return content
    chosen = draw.randrange(len(entries))
    changed = list(entries)
    data = changed[chosen].data
    if changed[chosen].name == "progress.npy" and draw.random() < 0.6:
        head, mark, text = data.partition(b"\n")
        text = mutations.json_text(draw, text)
        data = head + mark + text
        if draw.random() < 0.7:  # else the header tells another length
            return pack(
                [
                    *changed[:chosen],
                    _Entry("progress.npy", _array(text)),
                    *changed[chosen + 1 :],
                ]
            )
    else:
        kind = draw.choice((mutations.numpy_file, mutations.raw, _as_pickle))
        data = kind(draw, data)
    changed[chosen] = _Entry(changed[chosen].name, data)
    return pack(changed, packed=draw.random() < 0.1)


def _array(text: bytes) -> bytes:
    """Return bytes as an array file."""
    import numpy as np

    file = io.BytesIO()
    np.save(file, np.frombuffer(text, np.uint8))
    return file.getvalue()


def _as_pickle(draw: random.Random, content: bytes) -> bytes:
    """Put a pickle where an array of objects would have it, or in place of the array."""
    head = content.partition(b"\n")[0].replace(b"'<f4'", b"'|O' ").replace(b"'|u1'", b"'|O' ")
    return draw.choice((head + b"\n", b"")) + programs.hostile(draw)
