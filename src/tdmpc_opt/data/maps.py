"""Files as read-only arrays whose parts the system reads when they are used."""

import ctypes
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_PAGE = mmap.PAGESIZE
_LIBC = ctypes.CDLL(None)


def map_file(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> NDArray[Any]:
    """Map a file.

    Neither numpy's maps nor Python's would do: they keep a descriptor open for each file, and a
    dataset may have more files than a process may have descriptors.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb"):  # torch's own error is of no kind in particular
        size = int(np.prod(shape))
    values = torch.from_file(str(path), shared=False, size=size, dtype=dtype).numpy()
    values.flags.writeable = False
    return values.reshape(shape)


def will_need(values: NDArray[Any], first: int, count: int) -> None:
    """Have the system start to read some rows of a mapped array; a mere hint.

    Args:
        values: A contiguous array by `map_file`, or a view of its first columns.
        first: First row.
        count: Number of rows.
    """
    address = values.ctypes.data + first * values.strides[0]
    start = address - address % _PAGE
    length = address + count * values.strides[0] - start
    _LIBC.madvise(
        ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(mmap.MADV_WILLNEED)
    )
