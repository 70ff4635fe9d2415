"""Messages of the openpi protocol: msgpack in which NumPy arrays are maps of their bytes.

Source: the wire format of openpi-client 0.1.2.
"""

from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from tdmpc_opt.errors import InputError

_KINDS = "fiub"
"""Kinds of dtypes that are accepted: floats, integers and booleans."""


def pack(message: Any) -> bytes:
    """Return a message as bytes."""
    packed: bytes = msgpack.packb(message, default=_encoded)
    return packed


def unpack(data: bytes) -> Any:
    """Return the message that bytes contain.

    Raises:
        InputError: Bytes that are no message, or contain an array that is none.
    """
    try:
        return msgpack.unpackb(data, object_hook=_decoded)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"not a message of the openpi protocol: {reason[:200]}") from error


def _encoded(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        data = {b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
        return {b"__ndarray__": True, **data}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"cannot send a {type(value).__name__}")


def _decoded(fields: dict[Any, Any]) -> Any:
    if b"__ndarray__" in fields:
        dtype, shape = _dtype(fields), fields[b"shape"]
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"an array of shape {shape!r:.40}")
        values: NDArray[Any] = np.frombuffer(fields[b"data"], dtype).reshape(shape)
        return values
    if b"__npgeneric__" in fields:
        return _dtype(fields).type(fields[b"data"])
    return fields


def _dtype(fields: dict[Any, Any]) -> np.dtype[Any]:
    needed = {b"data", b"dtype"} | ({b"shape"} if b"__ndarray__" in fields else set())
    if not needed <= fields.keys():
        raise ValueError("an array without data, dtype or shape")
    name = fields[b"dtype"]
    dtype = np.dtype(name) if isinstance(name, str) and len(name) <= 4 else None
    if dtype is None or dtype.kind not in _KINDS:
        raise ValueError(f"an array of dtype {name!r:.40}; send floats, integers or booleans")
    return dtype
