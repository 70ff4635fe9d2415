"""Writing a file so that a reader sees either the old one or the whole new one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_when_done(path: Path) -> Iterator[Path]:
    """Give a temporary file to write, and move it to `path` once the block has succeeded.

    Parent folders are made. On any exception the temporary file goes and `path` stays as it is.

    Args:
        path: File to create or to replace.

    Yields:
        An empty file in the folder of `path`, so that the move cannot cross file systems.

    Raises:
        OSError: A folder that cannot be made or written, or a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _to_disk(temporary)
        temporary.replace(path)
        _folder_to_disk(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_unfinished(folder: Path) -> None:
    """Delete what killed processes left half-written; nobody else may be writing there."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Force the bytes out, so that a power cut after the move cannot leave an empty file."""
    path.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner may read
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _folder_to_disk(folder: Path) -> None:
    """Force the new name out, so that a power cut cannot bring the old file back.

    Windows opens no folders and needs none of this.
    """
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """Return the process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
