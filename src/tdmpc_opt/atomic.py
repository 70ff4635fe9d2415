"""Writing files safely: whole or not at all, never over an input, by one process at a time."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tdmpc_opt.errors import InputError


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


_CONTENT = ("*.safetensors", "config.json", "dataset.json")
"""What identifies a model folder, a folder of experts, a run or a dataset."""


def refuse_overwrite(outputs: Mapping[str, Path], inputs: Iterable[Path]) -> None:
    """Refuse an output that is an input or another output, under any name or link.

    Args:
        outputs: Files and folders to be written, by the name of their option. Of a folder, the
            model, run or dataset that it contains counts as well.
        inputs: Files and folders to be read, likewise; those that do not exist do not count.

    Raises:
        InputError: The message names both.
    """
    known = {_key(part): path for path in inputs for part in _parts(path)}
    for option, path in outputs.items():
        for part in _parts(path):
            other = known.setdefault(_key(part), path)
            if other is not path:
                raise InputError(
                    f"{option} {path} would overwrite {other}, which this command reads or "
                    "writes too; name another file or folder"
                )


def _parts(path: Path) -> list[Path]:
    """Return a file or folder and what identifies the folder; nothing if it does not exist."""
    if not path.exists():
        return []
    found = (part for pattern in _CONTENT if path.is_dir() for part in path.glob(pattern))
    return [path, *found]


def _key(path: Path) -> tuple[int, int]:
    status = path.stat()  # of what a link points to
    return status.st_dev, status.st_ino


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
