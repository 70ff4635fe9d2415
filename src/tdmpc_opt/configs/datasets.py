"""Commands that bring datasets in and out, and check them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tdmpc_opt.configs.common import POSITIONAL, OfDataset, ToOutput
from tdmpc_opt.errors import InputError


@dataclass(frozen=True, kw_only=True)
class DataImportConfig(ToOutput):
    """Turn official MT30 or MT80 shard files, or Minari datasets, into a dataset on disk.

    The same call goes on where an interrupted one stopped.
    """

    sources: Annotated[tuple[Path, ...], POSITIONAL]
    """Official shard files, or folders of Minari datasets; the content tells them apart."""
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
class DataExportConfig(OfDataset, ToOutput):
    """Write a dataset as official shard files, or as Minari datasets."""

    format: Literal["official", "minari"] = "official"
    """`official`: pickled TensorDicts like MT30 and MT80. `minari`: a dataset for each task."""


@dataclass(frozen=True, kw_only=True)
class DataVerifyConfig(OfDataset):
    """Compare every file of a dataset with its stored checksum."""
