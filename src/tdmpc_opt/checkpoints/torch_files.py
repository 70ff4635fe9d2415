"""Files by `torch.save`, read as data: code in them is refused, never run; training states."""

import io
import mmap
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.files import replace_when_done

_STATE_SCHEMA = 2
ZIP_MAGIC = b"PK\x03\x04"
"""First bytes of a file by torch.save since PyTorch 1.6."""

_LOCAL_HEADER = struct.Struct("<26xHH")  # ends with the lengths of the name and of the extras
_CODE_SIGNS = ("GLOBAL", "global", "class", "Trying to call reduce")
_REFUSED = (
    "was refused: the file would run code or build objects other than tensors; get it from "
    "another source"
)
_BIG_ENDIAN = "was written on a big-endian machine, which is not supported"
_HARMLESS = (
    "TypedStorage is deprecated",
    "torch.quantize_per_tensor",
    "Detected pickle protocol",
)
_FRAME = "Unsupported operand 149"
"""What torch's reader says at the instruction with which later protocols begin."""
_DAMAGE = (
    *(OSError, EOFError, RuntimeError, zipfile.BadZipFile, NotImplementedError),
    *(KeyError, IndexError, ValueError, TypeError, AttributeError, AssertionError),
    *(OverflowError, RecursionError, MemoryError, struct.error),
)
"""The kinds that torch's reader was seen to raise on files cut or changed at random."""


class TorchFileError(ValueError):
    """A file that cannot be read; the message continues a sentence that names the file."""


def load_whole(path: Path) -> Any:
    """Return the contents of a `torch.save` file, tensors on the CPU.

    Big files of the zip format are mapped into memory, so that only what is used is read.

    Raises:
        TorchFileError: A file that would run code or build foreign objects, is compressed,
            truncated or damaged, or cannot be read.
    """
    return _load(path, "cpu", mapped=is_zipped(path))


def load_outline(path: Path, stand_ins: Mapping[str, Callable[..., Any]] | None = None) -> Any:
    """Return the contents of a zipped `torch.save` file, with tensors on the meta device.

    `MappedFile` reads the values of such a tensor. Quantised tensors cannot be outlined.
    `stand_ins` are what to call for further classes and functions that the file names, by their
    full names; torch's own allow-list applies too.

    Raises:
        TorchFileError: As `load_whole`; or a torch that does not record the places.
    """
    if not _records_places():
        raise TorchFileError(
            f"cannot be read in parts by torch {torch.__version__}; upgrade it"
        )
    return _load(path, "meta", stand_ins=stand_ins)


@cache
def _records_places() -> bool:
    """Return whether torch records the places of values in a file; older ones do not."""
    file = io.BytesIO()
    torch.save(torch.zeros(1), file)
    file.seek(0)
    outline = torch.load(file, map_location="meta", weights_only=True)
    return _storage_start(outline) > 0


def is_zipped(path: Path) -> bool:
    """Return whether the file is of the zip format.

    Raises:
        TorchFileError: A file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    except OSError as error:
        raise TorchFileError(f"cannot be read: {error.strerror}") from error


def _load(
    path: Path,
    device: str,
    *,
    mapped: bool = False,
    stand_ins: Mapping[str, Callable[..., Any]] | None = None,
) -> Any:
    try:
        _refuse_foreign(path)
        with warnings.catch_warnings(), _allowed(stand_ins or {}):
            for message in _HARMLESS:  # set off by quantised entries and damaged files
                warnings.filterwarnings("ignore", message=message, category=UserWarning)
            return torch.load(path, map_location=device, weights_only=True, mmap=mapped)
    except TorchFileError:
        raise  # it is a ValueError, which is caught below
    except pickle.UnpicklingError as error:
        # What follows the mark is the fault itself; the advice before it names classes as well.
        fault = str(error).rpartition("WeightsUnpickler error:")[2]
        if any(sign in fault for sign in _CODE_SIGNS):
            raise TorchFileError(_REFUSED) from error
        if _FRAME in fault:
            raise TorchFileError(
                "was saved with a pickle protocol above 2, which torch does not read without "
                "executing code; save it anew by torch.save without pickle_protocol"
            ) from error
        raise TorchFileError(
            "is truncated or damaged, or contains other things than tensors"
        ) from error
    except PermissionError as error:
        raise TorchFileError(f"cannot be read: {error.strerror}") from error
    except _DAMAGE as error:
        raise TorchFileError("is truncated or damaged") from error


@contextmanager
def _allowed(stand_ins: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Allow these beside torch's own list, and nothing that libraries put on it: theirs run."""
    before = get_safe_globals()
    clear_safe_globals()
    add_safe_globals([(function, name) for name, function in stand_ins.items()])
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)


def _refuse_foreign(path: Path) -> None:
    """Refuse what torch.save does not write and torch would read all the same.

    Packed entries may unpack to terabytes. Of two entries of one name, in capitals or not,
    torch may read the other one than is looked at here.
    """
    if not is_zipped(path):
        _refuse_filling(path.read_bytes())
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename.lower() for entry in entries]
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise TorchFileError("is a packed zip file, not one by torch.save")
        if not any(Path(name).name == "data.pkl" for name in names):
            raise TorchFileError("is a zip file of another program, not one by torch.save")
        if len({*names}) < len(names) or any(n.endswith("constants.pkl") for n in names):
            raise TorchFileError(
                "contains a program, or an entry twice; torch.save writes neither"
            )
        for entry, name in zip(entries, names, strict=True):
            if name.endswith(".pkl"):
                _refuse_filling(archive.read(entry))
            if name.endswith("byteorder") and archive.open(entry).read(16) != b"little":
                raise TorchFileError(_BIG_ENDIAN)  # torch ends the process on outlines of these


def _refuse_filling(pickled: bytes) -> None:
    """Refuse arrays of bytes, of which a few letters make one as large as memory."""
    if b"\nbytearray\n" in pickled:
        raise TorchFileError(_REFUSED)


class MappedFile:
    """A zipped `torch.save` file whose tensors are read when they are used.

    torch works the places of tensors out from the order in which it writes them, which a file
    that another program packed anew need not keep: the file's own index decides.

    Raises:
        TorchFileError: A file without an index, or one that cannot be mapped into memory.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file, zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                self._entries = {_start(file, e.header_offset): e for e in entries}
        except _DAMAGE as error:
            raise TorchFileError("is truncated or damaged") from error
        try:
            with path.open("rb") as file:  # private: torch warns of memory it may not write
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise TorchFileError("cannot be mapped into memory") from error

    def place(self, outline: Tensor) -> int:
        """Return the byte of the file at which a tensor of `load_outline` begins.

        Raises:
            TorchFileError: The tensor reaches beyond what is stored for it.
        """
        start = _storage_start(outline)
        size = self._entries[start].file_size if start in self._entries else -1
        first = outline.storage_offset() * outline.element_size()
        end = first + _span(outline) * outline.element_size()
        if size < outline.untyped_storage().nbytes() or end > size:
            raise TorchFileError("was packed anew or is damaged: a tensor is not in its place")
        return start + int(first)

    def crc(self, outline: Tensor) -> int:
        """Return the checksum that the file's writer stored for a tensor that has its place."""
        return self._entries[_storage_start(outline)].CRC

    def tensor(self, outline: Tensor) -> Tensor:
        """Return the tensor of which `load_outline` gave the outline; do not write into it.

        Raises:
            TorchFileError: A tensor that is not wholly in the file.
        """
        start, count = self.place(outline), _span(outline)
        if not count:
            return torch.empty(outline.shape, dtype=outline.dtype)
        values = torch.frombuffer(self._map, dtype=outline.dtype, count=count, offset=start)
        return values.as_strided(outline.shape, outline.stride())

    def forget(self) -> None:
        """Release the memory of the tensors read so far; using them reads them again."""
        self._map.madvise(mmap.MADV_DONTNEED)


def _storage_start(outline: Tensor) -> int:
    start = getattr(outline.untyped_storage(), "_checkpoint_offset", None)
    return -1 if start is None else start


def _start(file: Any, header: int) -> int:
    """Return where an entry's bytes begin, after a header of varying length."""
    file.seek(header)
    return header + 30 + sum(_LOCAL_HEADER.unpack(file.read(30)))


def _span(tensor: Tensor) -> int:
    """Return how many values lie between a tensor's first and last, both included."""
    if not tensor.numel():
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps)


class StateFolder:
    """The newest `keep` training states of a run, in `states` below it, named by updates."""

    def __init__(self, run: Path, keep: int = 1) -> None:
        self.path = run / "states"
        self._keep = keep

    def files(self) -> list[Path]:
        """Return the states there are, the newest first."""
        found = [path for path in self.path.glob("*.pt") if path.stem.isdecimal()]
        return sorted(found, key=lambda path: int(path.stem), reverse=True)

    def save(self, update: int, state: Mapping[str, Any]) -> None:
        """Write a state beside the older ones, then delete what is not kept.

        A state of a later update is deleted too: it was damaged, or this one would come after.

        Raises:
            CheckpointError: The file cannot be written; the older states are still whole.
        """
        path = self.path / f"{update:09d}.pt"
        try:
            with replace_when_done(path) as temporary:
                torch.save({"schema": _STATE_SCHEMA, "update": update, **state}, temporary)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            raise CheckpointError(f"cannot write {path}: {error}") from error
        older = [path for path in self.files() if int(path.stem) <= update]
        for path in {*self.files()} - {*older[: self._keep]}:
            path.unlink(missing_ok=True)

    def newest(self, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """Read the newest state that is whole; no code is unpickled.

        Args:
            warn: Gets a message for each damaged state that an older one replaces.

        Returns:
            The state on the CPU, or None where there is none at all.

        Raises:
            CheckpointError: All states are damaged, or of another version.
        """
        files = self.files()
        for number, path in enumerate(files):
            try:
                return _read_state(path)
            except CheckpointError as error:
                if number + 1 == len(files):
                    raise
                warn(f"{error}; the run continues from {files[number + 1].name} instead")
        return None


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = load_whole(path)
    except TorchFileError as error:
        raise CheckpointError(
            f"{path} {error}; delete it to start the run anew, or "
            "start another from the run's model.safetensors with --start"
        ) from error
    if not isinstance(state, dict) or state.get("schema") != _STATE_SCHEMA:
        raise CheckpointError(f"{path} is no training state of this version of tdmpc-opt")
    return state
