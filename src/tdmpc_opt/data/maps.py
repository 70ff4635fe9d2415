"""Files as read-only arrays whose parts the system reads when they are used."""

import ctypes
import mmap
import tokenize
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

DAMAGED_ARRAY = (
    *(OSError, EOFError, MemoryError, SyntaxError, tokenize.TokenError),
    *(ArithmeticError, LookupError, TypeError, ValueError),
)
"""What numpy was seen to raise on array files that are cut, changed or foreign."""
_PAGE = mmap.PAGESIZE
_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


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


class ReadAhead:
    """Has the system start to read rows of a mapped array; a mere hint.

    Args:
        values: A contiguous array by `map_file`, or a view of its first columns.
    """

    def __init__(self, values: NDArray[Any]) -> None:
        self._address, self._row_bytes = values.ctypes.data, values.strides[0]

    def begin(self, first: int, count: int) -> None:
        """Start to read some rows."""
        address = self._address + first * self._row_bytes
        start = address - address % _PAGE
        _madvise(start, address + count * self._row_bytes - start, mmap.MADV_WILLNEED)
