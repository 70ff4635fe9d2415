"""From a path, zoo name or hub id to a checkpoint; the content decides the format.

Names of tasks are shared out to files without them, and facts on the source file are added.
"""

import difflib
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tdmpc_opt import zoo
from tdmpc_opt.checkpoints.checkpoint import Checkpoint
from tdmpc_opt.checkpoints.native import read_native
from tdmpc_opt.checkpoints.torch_files import ZIP_MAGIC
from tdmpc_opt.errors import CheckpointError, InputError, UnknownTaskError
from tdmpc_opt.files import MODEL_FILE, is_onnx, sha256
from tdmpc_opt.schema import TaskTable
from tdmpc_opt.tasks import choose_tasks

_PICKLE_MAGIC = b"\x80"
_SAFETENSORS_BRACE = 8  # the JSON header follows eight bytes with its length
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def is_model_folder(path: Path) -> bool:
    """Return whether the path is a folder with a model in it."""
    return (path / MODEL_FILE).is_file()


def resolve(path_or_name: str | Path) -> Path:
    """Return the file of a path, zoo name or hub id; a path that exists comes first.

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
    if _HUB_ID.fullmatch(name) and not name.endswith((".safetensors", ".pt", ".pth")):
        return _fetch(name)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise CheckpointError(
        f"{name} is neither a file nor a bundled checkpoint; {hint}"
        f"bundled: {', '.join(known) or 'none'}"
    )


def _fetch(name: str) -> Path:
    """Return the weights of a model on the hub, from the local cache where they are there."""
    missing = f"{name} is neither a file nor a folder here"
    try:
        from huggingface_hub import errors, hf_hub_download
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{missing}; if it is a hub id, run: pip install 'tdmpc-opt[hub]'"
        ) from error
    refused = (errors.EntryNotFoundError, errors.HfHubHTTPError, errors.HFValidationError)
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)  # it reports each of its retries; what it raises is reported
    try:
        return Path(hf_hub_download(name, MODEL_FILE, library_name="tdmpc-opt"))
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{missing}, and as a hub id it is not in the local cache and the hub cannot be "
            "reached; correct the path, or go online"
        ) from error
    except (*refused, OSError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise CheckpointError(
            f"{missing}, and the hub gives no {MODEL_FILE}: {reason}"
        ) from error
    finally:
        log.setLevel(level)


def read_checkpoint(
    path_or_name: str | Path, *, check_values: bool = True, tasks: str | None = None
) -> Checkpoint:
    """Read a checkpoint of this project or of any public layout.

    Args:
        path_or_name: As `resolve` takes.
        check_values: Look for NaN and infinity at once, which reads the whole file; else
            `build` looks for them in what it uses, and no more is ever read.
        tasks: Names joined by commas, for a file that does not name its tasks: each of them,
            in the order of the task embedding. Other files keep their own.

    Raises:
        CheckpointError: Nothing there, a folder without a model, an empty or foreign file, or
            one that its reader refuses as damaged, unsafe or unfit.
        UnknownTaskError: More or fewer names than the file has tasks, or an unknown one.
        InputError: Names of tasks of other sizes.
    """
    path = resolve(path_or_name)
    checkpoint = _read(path, check_values)
    if tasks is None or not checkpoint.tasks.unnamed:
        return checkpoint
    return replace(checkpoint, tasks=_named(path, checkpoint, tasks))


def require_names(path_or_name: str | Path, tasks: TaskTable) -> None:
    """Refuse the tasks of a file that does not name them.

    Raises:
        UnknownTaskError: It does not.
    """
    if tasks.unnamed:
        raise UnknownTaskError(
            f"{path_or_name} does not name its {len(tasks)} task{'s' * (len(tasks) > 1)}; name "
            "each in its order with --tasks, or once with tdmpc-opt convert --tasks"
        )


def share_names(paths: Sequence[str], text: str | None) -> list[str | None]:
    """Share names out to files, as many to each as it has tasks without a name.

    Args:
        paths: Checkpoint files, or zoo names.
        text: Names joined by commas; those that are left go to the last such file, which
            `read_checkpoint` then refuses.

    Returns:
        What `read_checkpoint` takes as `tasks` of each; None for a file that names its own.

    Raises:
        CheckpointError: A file that cannot be read.
    """
    tables = [read_checkpoint(path, check_values=False).tasks for path in paths]
    counts = [len(table) if table.unnamed else 0 for table in tables]
    names, shares = (text or "").split(","), list[str | None]()
    for index, count in enumerate(counts):
        end = count if any(counts[index + 1 :]) else len(names)
        shares.append(",".join(names[:end]) if count and text else None)
        names = names[end:] if count else names
    return shares


def _named(path: Path, checkpoint: Checkpoint, text: str) -> TaskTable:
    """Return the tasks of a file that does not name them."""
    parts = [part for part in text.split(",") if part.strip()]
    named = TaskTable(tuple(task for part in parts for task in choose_tasks(part).tasks))
    own = checkpoint.tasks
    if len(named) != len(own) or len({*named.names}) != len(own):
        raise UnknownTaskError(
            f"{path} has {len(own)} task{'s' * (len(own) > 1)} without names, and --tasks "
            f"names {len({*named.names})}; name each once, in the order of its task embedding"
        )
    widths = [task.action_dim for task in named.tasks]
    # Without masks all tasks have the padded width.
    masked = [task.action_dim for task in own.tasks]
    fits = widths == masked if len({*masked}) > 1 else max(widths) == own.action_dim
    if named.obs_dim != own.obs_dim or not fits:
        raise InputError(
            f"{path} is not of {text}: its tasks have {own.obs_dim} observations and "
            f"{', '.join(map(str, masked))} actions, these {named.obs_dim} and "
            f"{', '.join(map(str, widths))}"
        )
    return named


def _read(path: Path, check_values: bool) -> Checkpoint:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name the checkpoint file in it")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise CheckpointError(f"{path} is empty")
    is_text = all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)
    # First, since the length before the brace may begin with any byte, a pickle's too.
    if head[_SAFETENSORS_BRACE : _SAFETENSORS_BRACE + 1] == b"{" and not is_text:
        return read_native(path, check_values=check_values)
    if head.startswith((ZIP_MAGIC, _PICKLE_MAGIC)):
        from tdmpc_opt.checkpoints.public import read_public

        return read_public(path, check_values=check_values)
    if is_text:
        raise CheckpointError(
            f"{path} is a text file, not a checkpoint; a web page or a Git LFS pointer may "
            "have been saved in its place"
        )
    if is_onnx(path):
        raise CheckpointError(
            f"{path} is an ONNX file, which contains no weights to load; act with "
            "tdmpc_opt.runtime.load, or name the checkpoint it was exported from"
        )
    raise CheckpointError(f"{path} is not a checkpoint of any known format, or is cut off")


def with_origin(checkpoint: Checkpoint, source: Path) -> Checkpoint:
    """Return the checkpoint with the name, hash and layout of the file it came from."""
    origin = {
        "source": source.name,
        "source_sha256": sha256(source),
        "source_layout": checkpoint.layout,
    }
    return replace(checkpoint, extra=checkpoint.extra | origin)
