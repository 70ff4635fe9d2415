"""Model folders: on this disk, or fetched from the Hugging Face hub by `owner/name`."""

import re
from pathlib import Path

from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.runtime.weights import MODEL_FILE

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def is_model_folder(path: Path) -> bool:
    """Tell whether the path is a folder with a model in it."""
    return (path / MODEL_FILE).is_file()


def is_hub_id(name: str) -> bool:
    """Tell whether a name that is no path here has the form of a hub id."""
    file = name.endswith((".safetensors", ".pt", ".pth"))
    return _HUB_ID.fullmatch(name) is not None and not file


def fetch(name: str) -> Path:
    """Return the weights of a model on the hub, from the local cache where they are there.

    Raises:
        CheckpointError: huggingface_hub is not installed, the hub cannot be reached, or there
            is no such model; the message says which.
    """
    missing = f"{name} is neither a file nor a folder here"
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{missing}; if it is a hub id, run: pip install 'tdmpc-opt[hub]'"
        ) from error
    try:
        return Path(hf_hub_download(name, MODEL_FILE, library_name="tdmpc-opt"))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{missing}, and as a hub id it is not in the local cache and the hub cannot be "
            "reached; mend the path, or go online"
        ) from error
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise CheckpointError(
            f"{missing}, and the hub gives no {MODEL_FILE}: {reason}"
        ) from error
