"""Files: written completely or not at all, never over an input, by one process at a time.

Also the names and the schema of file formats, hashes, JSON and the comparison of stored
configurations.
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO

from tdmpc_opt import zoo
from tdmpc_opt.errors import CheckpointError, InputError, RunError, TdmpcOptError


@contextmanager
def replace_when_done(path: Path) -> Iterator[Path]:
    """Yield a temporary file to write, and move it to `path` once the block has succeeded.

    Parent folders are made. The file is in the folder of `path`, so that the move cannot cross
    file systems. On any exception it is deleted and `path` stays unchanged.

    Raises:
        OSError: A folder that cannot be made or written, or a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors leaves files that their owner alone can read
        to_disk(temporary)  # or a power cut after the move could leave an empty file
        temporary.replace(path)
        to_disk(path.parent)  # or one could restore the old file
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def written(path: Path, error: type[TdmpcOptError]) -> Iterator[Path]:
    """As `replace_when_done`, with one line where the file cannot be written.

    Raises:
        TdmpcOptError: Of class `error`, in place of an OSError.
    """
    try:
        with replace_when_done(path) as temporary:
            yield temporary
    except OSError as failure:
        raise error(f"cannot write {path}: {failure.strerror or failure}") from failure


@contextmanager
def written_together(folder: Path, error: type[TdmpcOptError]) -> Iterator[Path]:
    """Yield a temporary folder, and move its files to `folder` once the block has succeeded.

    Nothing is moved before all files are on disk, so that a full disk leaves the files of
    `folder` as they were, and none where there were none.

    Raises:
        TdmpcOptError: Of class `error`, in place of an OSError.
    """
    temporary = folder / f".{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        files = sorted(temporary.iterdir())
        for path in files:
            to_disk(path)
        for path in files:
            path.replace(folder / path.name)
        to_disk(folder)
    except OSError as failure:
        raise error(f"cannot write {folder}: {failure.strerror or failure}") from failure
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


FORMAT = "tdmpc-opt"
"""Mark of this project's files in their metadata."""
CHECKPOINT_SCHEMA = 2
"""Newest schema of checkpoints, that of quantised weights; others keep schema 1. A reader for
each released one stays."""
FOREIGN = (
    f"a safetensors file of another program: it lacks the config and task table of {FORMAT}; "
    "convert the original checkpoint with `tdmpc-opt convert`"
)
"""What is wrong with a safetensors file without this project's metadata."""
MODEL_FILE = "model.safetensors"
"""The weights in a model folder and in the folder of a training run."""
CURVES = "metrics.csv"
"""The losses, speeds and scores of a training run, in its folder."""
STORED_PRESETS = "presets"
"""Key of a checkpoint's presets among its further facts."""
REGULARIZED = "regularized"
"""Key, among these, of how the rewards were changed by `tdmpc-opt regularize`."""
CONTRACT = "contract"
"""Key of the names and units of an agent's numbers in the metadata of its files."""

_WRITTEN = ("output", "figures", "plot", "card", "sheet")
"""Options that name a file or folder to write. `store` may be the checkpoint that was read, for
it only gains presets."""
_ENDINGS = {"plot": (".png",), "card": (".md",), "sheet": (".png",)}
"""How the names of files end that these options name."""
_READ = (
    *("checkpoint", "checkpoints", "sources", "results", "result", "random"),
    *("data", "on_policy", "policy", "label", "against", "start"),
    *("teacher", "teachers", "more_teachers", "policy_teacher"),
)
"""Options that name a file or folder to read. `warm_up` may be the folder of experts that is
added to."""
_CONTENT = ("*.safetensors", "config.json", "dataset.json")
"""What identifies a model folder, a folder of experts, a run or a dataset."""
_INSIDE = ("*/*.memmap", "*/*.npy", "*/meta.json", "*/*.safetensors")
"""Shards of a dataset and students of a run: an output may not replace those of an input."""
_OF_RESULTS = ("results", "result")
"""Options of which a folder stands for the result files in it."""


def refuse_overwrite(config: Any, *endings: str) -> None:
    """Refuse an output that is an input, another output, a device, or named as another format.

    Names and links do not matter: files are compared by inode. Of a folder, the model, run or
    dataset in it counts as well. Inputs that do not exist do not count.

    Args:
        config: Configuration of a command.
        endings: How the name of its `output` may end where it has an ending, such as `.json`,
            so that a checkpoint never takes the place of a result; without any it is free.

    Raises:
        InputError: The message names the output, and what it would overwrite.
    """
    names = {field.name for field in fields(config)}
    known = dict[tuple[int, int], Path]()
    for name in names.intersection(_READ):
        content = (*_CONTENT, *_INSIDE, *(["*.json"] if name in _OF_RESULTS else []))
        for path in _paths(getattr(config, name)):
            known |= {_key(part): path for part in _parts(path, content)}
    for name in names.intersection(_WRITTEN):
        option = f"--{name.replace('_', '-')}"
        allowed = endings if name == "output" else _ENDINGS.get(name, ())
        for path in _paths(getattr(config, name)):
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise InputError(f"{option} {path} is a device or pipe; name a file or folder")
            for part in _parts(path, _CONTENT):
                other = known.setdefault(_key(part), path)
                if other is not path:
                    raise InputError(
                        f"{option} {path} would overwrite {other}, which this command reads or "
                        "writes too; name another file or folder"
                    )
            if allowed and path.suffix.lower() not in (*allowed, "") and not path.is_dir():
                raise InputError(f"{option} {path} has to end in {' or '.join(allowed)}")


def _paths(value: object) -> Iterator[Path]:
    """Yield what an option names: files, folders, or bundled checkpoints."""
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, str | Path):
            yield zoo.path(item) if item in zoo.names() else Path(item)


def _parts(path: Path, content: Sequence[str]) -> list[Path]:
    """Return a file or folder and what identifies the folder; nothing if it does not exist."""
    if not path.exists():
        return []
    found = (part for pattern in content if path.is_dir() for part in path.glob(pattern))
    return [path, *found]


def _key(path: Path) -> tuple[int, int]:
    status = path.stat()  # of what a link points to
    return status.st_dev, status.st_ino


_LOCKED = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
"""Errors for a lock that another process has."""
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_SECONDS_BETWEEN_TRIES = 0.05


@contextmanager
def alone(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Exclude other processes from the block that writes or resumes the same file.

    The operating system releases the lock when the process ends, however it ends. File systems
    without locks, such as some network file systems, exclude no process.

    Args:
        path: The file, which need not exist. `.NAME.lock` beside it is locked, and is there
            while the block runs.
        wait: Wait for the other process, where refusing is the default.

    Raises:
        RunError: Another process is in the block, which the message names; or a folder that
            cannot be made or written.
    """
    lock = path.parent / f".{path.name}.lock"
    made = not path.parent.exists()
    while (file := _locked(lock)) is None:
        if not wait:
            owner = lock.read_text(encoding="utf-8") if lock.exists() else ""
            raise RunError(
                f"{path} is being written by {owner or 'another process'}; wait until that has "
                "finished, or name another --output"
            )
        time.sleep(_SECONDS_BETWEEN_TRIES)
    with file:
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        owner = f"process {os.getpid()} on {socket.gethostname()} since {started}"
        try:
            _write_owner(file, owner)
            yield
        finally:
            lock.unlink(missing_ok=True)
            if made and not any(path.parent.iterdir()):  # nothing was written
                path.parent.rmdir()


def _write_owner(file: TextIO, owner: str) -> None:
    try:
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), owner.encode())  # no buffer, whose rest would fail on closing
    except OSError as error:
        raise RunError(f"cannot write {file.name}: {error.strerror}") from error


def _locked(lock: Path) -> TextIO | None:
    """Return the locked file; None where another process has it, or has just deleted it."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a+", encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write to {lock.parent}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _LOCKED:
            file.close()
            return None
        if error.errno not in _UNSUPPORTED:
            raise
    if lock.exists() and lock.stat().st_ino == os.fstat(file.fileno()).st_ino:
        return file
    file.close()
    return None


def remove_unfinished(folder: Path) -> None:
    """Delete unfinished files of killed processes; no other process may be writing there."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Flush a file, or the names of a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def parse_json(text: str | bytes) -> Any:
    """Parse a document.

    Raises:
        ValueError: It is no JSON, no UTF-8, or nested too deeply for Python.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def check_schema(path: Path, metadata: Mapping[str, str], newest: int, foreign: str) -> None:
    """Refuse a file of another program, and one of a schema that this version does not know.

    Args:
        path: The file.
        metadata: What it states about itself.
        newest: Newest schema of its kind that is known here.
        foreign: What is wrong with a file of another program, and what to do.

    Raises:
        CheckpointError: The message names the file.
    """
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is {foreign}")
    schema = metadata.get("schema", "")
    if not (schema.isascii() and schema.isdigit() and len(schema) < 10 and int(schema)):
        raise CheckpointError(f"{path} is damaged: its schema number is {schema[:20]!r}")
    if int(schema) > newest:
        raise CheckpointError(
            f"{path} was written by a newer version (its schema is {schema}, the newest known "
            f"here {newest}); upgrade {FORMAT}"
        )


def sha256(path: Path) -> str:
    """Return the SHA-256 of the file, in hexadecimal.

    Raises:
        CheckpointError: A file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def is_onnx(path: Path) -> bool:
    """Return whether a file begins as ONNX files do; one that cannot be read does not."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError:
        return False
    # The tag of the first field; a safetensors header may have a length of that low byte.
    return head[:1] == b"\x08" and head[8:] != b"{"


Identity = dict[str, str | None]
"""File name and SHA-256 of the content, with no path; the hash is None without a file."""


def file_identity(path: Path) -> Identity:
    """Return the name and hash of one file.

    Raises:
        CheckpointError: A file that cannot be read.
    """
    return {"name": path.name, "sha256": sha256(path)}


_LENGTH_BYTES = 8


def sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file in place; the library writes it in random order.

    Result files name checkpoints by their SHA-256, so equal weights have to give equal files.
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


def without_removed(found: Mapping[str, Any], removed: Mapping[str, object]) -> dict[str, Any]:
    """Return a stored configuration without the options that no longer exist.

    An option stays if its value is not the one that is fixed today.

    Args:
        found: Stored configuration.
        removed: The fixed value of each removed option; `part.name` is one of a nested part.
    """
    kept = dict(found)
    for name, fixed in removed.items():
        part, _, field = name.rpartition(".")
        if part and isinstance(kept.get(part), dict):
            kept[part] = without_removed(kept[part], {field: fixed})
        elif not part and kept.get(name) in (None, fixed):
            kept.pop(name, None)
    return kept


@contextmanager
def repairable(path: Path, error: type[TdmpcOptError]) -> Iterator[None]:
    """Turn what the content of a damaged record, read in the block, raises into one line.

    Raises:
        TdmpcOptError: Of class `error`; the file cannot be read, or lacks what is expected.
    """
    try:
        yield
    except (OSError, ArithmeticError, LookupError, TypeError, ValueError) as fault:
        raise error(
            f"{path} is damaged ({fault!r}); choose another --output or delete it"
        ) from fault


def require_same(
    path: Path,
    found: Mapping[str, Any],
    requested: Mapping[str, Any],
    error: type[TdmpcOptError],
    *,
    cost: Collection[str] = (),
    removed: Mapping[str, object] | None = None,
) -> None:
    """Refuse to continue what was started with another configuration.

    Args:
        path: File or folder that exists, for the message.
        found: Its configuration.
        requested: Configuration of the command, of values that JSON can represent.
        error: Class of the error to raise.
        cost: Fields that do not affect the result and may differ.
        removed: Options that no longer exist, with the value that is fixed today.

    Raises:
        TdmpcOptError: Of class `error`; the message names the first field that differs.
    """
    removed = removed or {}
    found, requested = without_removed(found, removed), json.loads(json.dumps(requested))
    for key in {**requested, **found}:
        old, new = found.get(key), requested.get(key)
        if key in cost or old == new:
            continue
        for name, value in _flat(key, old):
            if name in removed:
                raise error(
                    f"{path} was made with {name}={value}; this option no longer exists and is "
                    f"fixed at {removed[name]}: choose another --output"
                )
        raise error(
            f"{path} belongs to another run: {_difference(key, old, new)}; choose another "
            "--output or delete it"
        )


def _flat(key: str, value: object) -> list[tuple[str, object]]:
    """Return a value and those of its parts, by dotted name."""
    parts = value.items() if isinstance(value, dict) else ()
    return [(key, value), *((f"{key}.{name}", part) for name, part in parts)]


def _difference(key: str, found: object, requested: object) -> str:
    """Return how a value differs in its first part that does; files go by their names."""
    if isinstance(found, dict) and isinstance(requested, dict):
        if "sha256" not in {*found, *requested}:
            parts = (
                name for name in [*found, *requested] if found.get(name) != requested.get(name)
            )
            name = next(parts)
            return _difference(f"{key}.{name}", found.get(name), requested.get(name))
        if found.get("name") == requested.get("name"):
            return f"{key} {found.get('name')} has changed since"
    if isinstance(found, list) and isinstance(requested, list) and len(found) == len(requested):
        for old, new in zip(found, requested, strict=True):
            if old != new and isinstance(old, dict):
                return _difference(key, old, new)
    return f"existing run has {key}={_named(found)}, requested {key}={_named(requested)}"


def _named(value: Any) -> Any:
    """Return a value with files by their names."""
    if isinstance(value, list):
        return [_named(item) for item in value]
    return value.get("name") if isinstance(value, dict) and "sha256" in value else value


def write_json(path: Path, content: Mapping[str, Any], error: type[TdmpcOptError]) -> None:
    """Write values that JSON can represent, completely or not at all.

    Raises:
        TdmpcOptError: Of class `error`; the file cannot be written.
    """
    with written(path, error) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
