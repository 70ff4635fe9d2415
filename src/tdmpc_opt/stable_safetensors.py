"""Makes safetensors files equal byte for byte where their content is equal."""

import json
from pathlib import Path

_LENGTH_BYTES = 8


def sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file in place; the library writes it in random order.

    Result files name checkpoints by their SHA-256, so equal weights have to give equal files.

    Args:
        path: File that the library has just written.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        # The same entries in another order: the length stays, and with it the tensors' place.
        assert len(text) <= length, "the header cannot grow by sorting"
        file.seek(_LENGTH_BYTES)
        file.write(text.ljust(length))
