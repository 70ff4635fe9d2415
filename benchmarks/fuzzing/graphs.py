"""Changes inside ONNX files: nodes, shapes and weights of the graph, and the metadata."""

import random
from functools import lru_cache
from typing import Any

_SIZES = (0, 1, -1, 2, 3, 7, 100, 2**20, 2**31 - 1, 2**31, 2**40, 2**62, -(2**40))
_OPS = (
    "Add",
    "MatMul",
    "Reshape",
    "Expand",
    "ConstantOfShape",
    "Range",
    "Loop",
    "If",
    "Tile",
    "Gather",
)
_WORDS = ("", "obs", "action", "mean", "x" * 300, "../x", "/etc/passwd", "com.microsoft", "é")


@lru_cache(maxsize=8)
def _parsed(content: bytes) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load_from_string(content)
    except DecodeError:
        return None


def graph(draw: random.Random, content: bytes) -> bytes:
    """Change a field somewhere in the file, drop a part of it, or repeat one."""
    source = _parsed(content)
    if source is None:
        return content
    model = type(source)()
    model.CopyFrom(source)
    message: Any = model.graph
    for _ in range(draw.randint(0, 5)):
        inner = [m for field, value in message.ListFields() for m in _messages(field, value)]
        if not inner:
            break
        message = draw.choice(inner)
    _change(draw, message)
    return model.SerializeToString()


def _messages(field: Any, value: Any) -> list[Any]:
    if field.message_type is None:
        return []
    return list(value) if _repeated(field) else [value]


def _repeated(field: Any) -> bool:
    return bool(field.is_repeated)


def _change(draw: random.Random, message: Any) -> None:
    fields = message.ListFields()
    if not fields:
        return
    field, value = draw.choice(fields)
    if _repeated(field):
        _change_row(draw, field, value)
    elif field.message_type is not None:
        message.ClearField(field.name)
    else:
        other = _other(draw, field, value)
        if field.enum_type is None or other in field.enum_type.values_by_number:
            setattr(message, field.name, other)


def _change_row(draw: random.Random, field: Any, row: Any) -> None:
    at, action = draw.randrange(len(row)), draw.randrange(3)
    if action == 0:
        del row[at]
    elif field.message_type is not None:
        row.add().CopyFrom(row[at])
    elif action == 1:
        row.append(row[at])
    else:
        row[at] = _other(draw, field, row[at])


def _other(draw: random.Random, field: Any, value: Any) -> Any:  # noqa: PLR0911
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        wide = field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64)
        chosen = draw.choice((*_SIZES, value + 1, value - 1))
        return chosen if wide else max(min(chosen, 2**31 - 1), 0)
    if isinstance(value, float):
        return draw.choice((0.0, -1.0, 1e30, float("nan"), float("inf"), value * 2))
    if isinstance(value, bytes):
        text = bytearray(value)
        if text:
            text[draw.randrange(len(text))] ^= 1 << draw.randrange(8)
        return draw.choice((bytes(text), value[:-1], value + b"x", value * 2))
    return draw.choice(_OPS if field.name == "op_type" else (*_WORDS, value + "x"))


def metadata(draw: random.Random, content: bytes) -> bytes:
    """Change the project's own entries, as the JSON they are."""
    from fuzzing.mutations import json_value  # which knows all kinds of files, this one too

    source = _parsed(content)
    if source is None:
        return content
    model = type(source)()
    model.CopyFrom(source)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    changed = json_value(draw, entries)
    del model.metadata_props[:]
    for key, value in changed.items() if isinstance(changed, dict) else ():
        text = str(value).encode("utf-8", "replace").decode()
        model.metadata_props.add(key=str(key), value=text)
    return model.SerializeToString()
