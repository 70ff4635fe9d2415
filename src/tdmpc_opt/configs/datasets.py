"""Commands that bring datasets in and out, and check them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tdmpc_opt.errors import InputError


@dataclass(frozen=True, kw_only=True)
class DataImportConfig:
    """Turn official MT30 or MT80 shard files, or Minari datasets, into a dataset on disk.

    The same call goes on where an interrupted one stopped.
    """

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Official shard files, or folders of Minari datasets; the content tells them apart."""
    output: Path
    """Dataset folder; a new import adds to what is there."""
    tasks: str | None = None
    """Of shard files, task names joined by commas, to import no others; of Minari datasets, the
    one task that their episodes are of, MODULE:ID for an environment of your own."""
    on_bad: Literal["refuse", "skip"] = "refuse"
    """What to do about a source that is truncated or foreign, or an episode with NaN: stop, or
    name it and leave it out."""

    def __post_init__(self) -> None:
        """Refuse an import of nothing."""
        if not self.sources:
            raise InputError("name a shard file or a Minari folder at least")


@dataclass(frozen=True, kw_only=True)
class DataExportConfig:
    """Write a dataset as official shard files, or as Minari datasets."""

    data: Annotated[Path, tyro.conf.Positional]
    """Dataset folder."""
    output: Path
    """Folder for the files; those that are there already are kept, and not written again."""
    format: Literal["official", "minari"] = "official"
    """`official`: pickled TensorDicts like MT30 and MT80. `minari`: a dataset for each task."""


@dataclass(frozen=True, kw_only=True)
class DataVerifyConfig:
    """Compare every file of a dataset with its stored checksum."""

    data: Annotated[Path, tyro.conf.Positional]
    """Dataset folder."""
