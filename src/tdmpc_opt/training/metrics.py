"""Learning curves of a run: metrics.csv, TensorBoard, and Weights & Biases if asked for."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from tdmpc_opt.configs import TERMS
from tdmpc_opt.errors import MissingDependencyError, RunError
from tdmpc_opt.files import replace_when_done

COLUMNS = (
    "update",
    "loss",
    "consistency",
    "reward",
    "value",
    "policy",
    "behaviour",
    "grad_norm",
    "policy_grad_norm",
    "q_scale",
    *(f"distill_{name}" for name in TERMS),
    *(f"weight_{name}" for name in TERMS),
    "updates_per_second",
    "score",
)
"""A column that has nothing to say in a run, or in a row, is empty."""


class MetricsWriter:
    """Appends rows to the curves of a run.

    Args:
        folder: Run folder.
        update: Updates that are done; later rows of an interrupted run are dropped.
        wandb: Log to Weights & Biases as well.

    Raises:
        RunError: The curves cannot be read or written.
        MissingDependencyError: wandb is asked for and missing.
    """

    def __init__(self, folder: Path, update: int, *, wandb: bool = False) -> None:
        self._path = folder / "metrics.csv"
        try:
            self._drop_rows_after(update)
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"cannot go on with {self._path}: {error}; delete it") from error
        self._board = TensorBoardLogger(
            folder, name="tensorboard", version="", purge_step=update
        )
        self._wandb = _wandb(folder) if wandb else None

    def _drop_rows_after(self, update: int) -> None:
        rows: list[dict[str, str]] = []
        if self._path.exists():
            with self._path.open(newline="") as file:
                # A crash may have cut off the last row; its missing fields read as None.
                found = [row for row in csv.DictReader(file) if None not in row.values()]
            rows = [row for row in found if int(row["update"]) <= update]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with replace_when_done(self._path) as temp:
            temp.write_text(text.getvalue())

    def write(self, row: Mapping[str, int | float]) -> None:
        """Add one row; columns it lacks stay empty.

        Raises:
            RunError: The disk is full, or the folder went away.
        """
        try:
            with self._path.open("a", newline="") as file:
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error.strerror}") from error
        values = {name: value for name, value in row.items() if name != "update"}
        self._board.log_metrics(values, step=int(row["update"]))
        if self._wandb is not None:
            self._wandb.log(values, step=int(row["update"]))

    def close(self) -> None:
        """Flush the curves."""
        self._board.finalize("success")
        if self._wandb is not None:
            self._wandb.finish()


def _wandb(folder: Path) -> Any:
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise MissingDependencyError("--wandb needs the package: pip install wandb") from error
    return wandb.init(project="tdmpc-opt", name=folder.name, resume="allow", id=folder.name)
