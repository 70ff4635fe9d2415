"""Opening a `torch.save` file as data: code in it is refused, never run."""

import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from tdmpc_opt.errors import CheckpointError

ZIP_MAGIC = b"PK\x03\x04"
"""First bytes of a file by torch.save since PyTorch 1.6."""

_CODE_SIGNS = ("GLOBAL", "global", "class", "Trying to call reduce")
_HARMLESS = (
    "TypedStorage is deprecated",
    "torch.quantize_per_tensor",
    "Detected pickle protocol",
)


def load_pickled(path: Path) -> Any:
    """Return what a `torch.save` file holds, tensors on the CPU.

    Big files of the zip format are mapped into memory, so that only what is used is read.

    Raises:
        CheckpointError: A file that asks to run code or build foreign objects, is compressed,
            truncated or damaged, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        if zipped:
            _refuse_compressed(path)
        with warnings.catch_warnings():
            for message in _HARMLESS:  # set off by quantised entries and damaged files
                warnings.filterwarnings("ignore", message=message, category=UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise  # it is a ValueError, which is caught below
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} {_reason(str(error))}") from error
    except PermissionError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (
        *(OSError, EOFError, RuntimeError, zipfile.BadZipFile, NotImplementedError),
        *(KeyError, IndexError, ValueError, TypeError, AttributeError, AssertionError),
        *(OverflowError, RecursionError, MemoryError, struct.error),
    ) as error:
        # The kinds that torch's reader was seen to raise on files cut or changed at random.
        raise CheckpointError(f"{path} is truncated or damaged") from error


def _refuse_compressed(path: Path) -> None:
    """Refuse packed entries: torch.save writes none, and one may unpack to terabytes."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{path} is a packed zip file, not one by torch.save")


def _reason(message: str) -> str:
    """Say in one line why the restricted unpickler gave up."""
    # What follows the mark is the fault itself; the advice before it names classes as well.
    fault = message.rpartition("WeightsUnpickler error:")[2]
    if any(sign in fault for sign in _CODE_SIGNS):
        return (
            "was refused: the file asks to run code or to build objects other than tensors; "
            "get the checkpoint from another source"
        )
    return "is truncated or damaged, or holds other things than tensors"
