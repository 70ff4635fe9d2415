"""From a path or a name to a checkpoint; the content decides the format, not the suffix."""

import difflib
from pathlib import Path

from tdmpc_opt import zoo
from tdmpc_opt.checkpoints.checkpoint import Checkpoint
from tdmpc_opt.checkpoints.hub import fetch, is_hub_id, is_model_folder
from tdmpc_opt.checkpoints.native import read_native
from tdmpc_opt.checkpoints.public import read_public
from tdmpc_opt.checkpoints.torch_files import ZIP_MAGIC
from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.files import sha256 as sha256
from tdmpc_opt.runtime.onnx_file import is_onnx
from tdmpc_opt.runtime.weights import MODEL_FILE

_PICKLE_MAGIC = b"\x80"
_SAFETENSORS_BRACE = 8  # the JSON header starts after eight bytes that hold its length


def resolve(path_or_name: str | Path) -> Path:
    """Return the file that a path, zoo name or hub id stands for; a path that exists wins.

    Raises:
        CheckpointError: None of these; the message lists the zoo's names and near matches. Or
            a hub id that is not in the local cache and cannot be fetched.
    """
    path = Path(path_or_name)
    if path.exists():
        return path / MODEL_FILE if is_model_folder(path) else path
    name, known = str(path_or_name), zoo.names()
    if name in known:
        return zoo.path(name)
    if is_hub_id(name):
        return fetch(name)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise CheckpointError(
        f"{name} is neither a file nor a bundled checkpoint; {hint}"
        f"bundled: {', '.join(known) or 'none'}"
    )


def read_checkpoint(path_or_name: str | Path, *, check_values: bool = True) -> Checkpoint:
    """Read a checkpoint of this project or of any public layout.

    Args:
        path_or_name: File, or zoo name.
        check_values: Look for NaN and infinity at once, which reads the whole file; else
            `build` looks for them in what it uses, and of a public file no more is ever read.

    Raises:
        CheckpointError: Nothing there, a folder without a model, an empty or foreign file, or
            one that its reader refuses as damaged, unsafe or unfit.
    """
    path = resolve(path_or_name)
    head = _head(path)
    # First, since the length before the brace may begin with any byte, a pickle's too.
    if head[_SAFETENSORS_BRACE : _SAFETENSORS_BRACE + 1] == b"{" and not _is_text(head):
        return read_native(path, check_values=check_values)
    if head.startswith((ZIP_MAGIC, _PICKLE_MAGIC)):
        return read_public(path, check_values=check_values)
    if _is_text(head):
        raise CheckpointError(
            f"{path} is a text file, not a checkpoint; a web page or a Git LFS pointer may "
            "have been saved in its place"
        )
    if is_onnx(path):
        raise CheckpointError(
            f"{path} is an ONNX file, which holds no weights to load; act with "
            "tdmpc_opt.runtime.load, or name the checkpoint it was exported from"
        )
    raise CheckpointError(f"{path} is not a checkpoint of any known format, or is cut off")


def _head(path: Path) -> bytes:
    """Return the first bytes of the file."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name the checkpoint file in it")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise CheckpointError(f"{path} is empty")
    return head


def _is_text(head: bytes) -> bool:
    """Return whether the bytes hold no control characters but those of text."""
    return all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)
