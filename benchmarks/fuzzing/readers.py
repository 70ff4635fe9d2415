"""What reads each kind of file, and the first thing it looks at."""

import io
import json
import random
import shutil
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fuzzing.mutations import change
from fuzzing.seeds import RUN, TASKS, Seed
from tdmpc_opt import provenance, runtime
from tdmpc_opt.agent import load_agent
from tdmpc_opt.collection.exchange import export_data, import_data
from tdmpc_opt.collection.expert_state import read_progress
from tdmpc_opt.configs import (
    DataExportConfig,
    DataImportConfig,
    InspectConfig,
)
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.data.sampler import SliceSampler
from tdmpc_opt.data.summary import summarize
from tdmpc_opt.data.verify import verify
from tdmpc_opt.errors import TdmpcOptError
from tdmpc_opt.evaluation import ablation, score
from tdmpc_opt.expert_policy import ExpertNetwork
from tdmpc_opt.progress import Silent
from tdmpc_opt.report.read import read_result_files
from tdmpc_opt.report.sections import sections

Read = Callable[[Path, int], object]
"""Reads a file as the command line would, the rarer commands on some case numbers alone."""


@dataclass(frozen=True)
class Reader:
    """A kind of file and what reads it."""

    name: str
    read: Read
    passes: Callable[[Seed], bool]
    """Whether the first check of the content would let the file through."""


def prepare() -> None:
    """Leave out what costs time and reads nothing, such as asking git for a commit."""
    provenance.versions = dict
    provenance.machine = dict
    score.RESAMPLES = ablation.RESAMPLES = (
        20  # the intervals of a report are no part of reading
    )


def _public(path: Path, number: int) -> object:
    if number % 8 == 0:
        return _inspect(path)
    return load_agent(path, mode="policy" if number % 2 else "planner")


def _inspect(path: Path) -> object:
    from tdmpc_opt.cli import files

    with redirect_stdout(io.StringIO()) as shown:
        files._inspect(InspectConfig(checkpoint=str(path)))
    assert "\x1b" not in shown.getvalue(), "the file wrote to the terminal"
    return shown


def _native(path: Path, number: int) -> object:
    from tdmpc_opt.checkpoints.summary import describe
    from tdmpc_opt.model_folder import card
    from tdmpc_opt.policies import PolicySource

    if number % 8 == 0:
        return _inspect(path)
    if number % 8 == 1:
        return card("m", describe(path.parent), "mit", [])
    if number % 8 == 2:
        return PolicySource(source=str(path)).training()
    return load_agent(path, preset="quick" if number % 8 == 3 else None)


def _on_device(path: Path, number: int) -> object:
    agent = runtime.load(path)
    return _act(agent)


def _act(agent: runtime.Agent) -> object:
    task = agent.tasks.tasks[0]
    obs = np.zeros((2, task.obs_dim), np.float32)
    # Weights may be finite and yet so large that products are not: bad actions, no fault.
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        return agent.act(obs, 0)


def _onnx(path: Path, number: int) -> object:
    if number % 16 == 0:
        return _inspect(path)
    return _act(runtime.load(path))


def _official(path: Path, number: int) -> object:
    output = path.parent / "data"
    shutil.rmtree(output, ignore_errors=True)
    bad = "skip" if number % 2 else "refuse"
    return import_data(DataImportConfig(sources=(path,), output=output, on_bad=bad))


def _dataset(listing: Path, number: int) -> object:
    path = listing.parent
    if number % 4 == 0:
        return verify(path, Silent())
    opened = EpisodeDataset.open(path)
    if number % 4 == 1:
        opened.check()
        return [list(opened.episodes(shard)) for shard in opened.shards], summarize(opened)
    if number % 4 == 2:
        return export_data(DataExportConfig(data=path, output=path / "out"))
    return SliceSampler([opened], TASKS, horizon=2, batch_size=4, seed=number).sample()


def _result(path: Path, number: int) -> object:
    return sections(read_result_files([path]))


def _record(path: Path, number: int) -> object:
    from tdmpc_opt.collection import experts
    from tdmpc_opt.dagger import _RoundsFile
    from tdmpc_opt.training import run

    if path.name == "config.json":
        return run._require_same(path, RUN["config"])
    if path.name == "rounds.json":
        return _RoundsFile(path, RUN["config"])
    return experts._recorded(path)


class _Resumed:
    """A learner of a few numbers, into which states are put back."""

    def __init__(self, folder: Path) -> None:
        from fuzzing.seeds import learner_of

        self.run, self.learner, self.draws = learner_of(folder)

    def __call__(self, path: Path, number: int) -> object:
        states = self.run.folder / "states"
        states.mkdir(exist_ok=True)
        shutil.copyfile(path, states / "4.pt")
        return self.run.restore(self.learner, self.draws, Silent())


def _expert(path: Path, number: int) -> object:
    network = ExpertNetwork.load(path)
    return network.mean(np.zeros((1, network.obs_dim), np.float32))


def _expert_state(path: Path, number: int) -> object:
    return read_progress(path)


def _first(files: Seed) -> bytes:
    return next(iter(files.values()))


def _has_header(files: Seed) -> bool:
    """A header of the stated length that is a JSON object."""
    content = _first(files)
    length = int.from_bytes(content[:8], "little")
    return length <= len(content) - 8 and _is_json(content[8 : 8 + length])


def _has_magic(files: Seed) -> bool:
    """A zip's first bytes and its end record, or the first byte of a pickle."""
    content = _first(files)
    zipped = content.startswith(b"PK\x03\x04") and b"PK\x05\x06" in content[-(1 << 16) :]
    return zipped or content.startswith(b"\x80")


def _has_tag(files: Seed) -> bool:
    content = _first(files)
    return content[:1] == b"\x08" and content[8:9] != b"{"


def _has_listing(files: Seed) -> bool:
    return _is_json(_first(files))


def _is_json(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content), dict)
    except (ValueError, RecursionError):
        return False


def readers(folder: Path) -> dict[str, Reader]:
    """Return all of them by name; the folder is for what they need beside the files."""
    found = (
        Reader("public checkpoints", _public, _has_magic),
        Reader("safetensors", _native, _has_header),
        Reader("quantised safetensors", _native, _has_header),
        Reader("safetensors on the device", _on_device, _has_header),
        Reader("ONNX", _onnx, _has_tag),
        Reader("official shards", _official, _has_magic),
        Reader("datasets", _dataset, _has_listing),
        Reader("result files", _result, _has_listing),
        Reader("run records", _record, _has_listing),
        Reader("training states", _Resumed(folder / "resumed"), _has_magic),
        Reader("expert policies", _expert, _has_header),
        Reader("expert states", _expert_state, _has_magic),
    )
    return {reader.name: reader for reader in found}


@dataclass(frozen=True)
class Outcome:
    """What one case came to."""

    passed: bool
    """Whether the file passed the first check."""
    read: bool
    """Whether the reader took it."""
    fault: str | None
    """As of `Verdict`."""
    too_large: bool
    """As of `Verdict`."""


class Case:
    """Valid files of one kind in a folder, of which one at a time is changed and read.

    Args:
        reader: What reads them.
        seeds: The valid files.
        folder: Where to put them.
    """

    def __init__(self, reader: Reader, seeds: list[Seed], folder: Path) -> None:
        self.reader, self.seeds = reader, seeds
        self._folders = [folder / str(number) for number in range(len(seeds))]
        for seed, place in zip(seeds, self._folders, strict=True):
            for name, content in seed.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(content)

    def path(self, number: int) -> Path:
        """Return the file of a seed that the reader is given."""
        return self._folders[number] / next(iter(self.seeds[number]))

    def run(self, draw: random.Random, number: int) -> Outcome:
        """Change a file, read it, and put the valid one back."""
        chosen = draw.randrange(len(self.seeds))
        seed = self.seeds[chosen]
        names = list(seed)
        name = names[0] if draw.random() < 0.6 else draw.choice(names)
        changed = change(draw, name, seed[name])
        place = self._folders[chosen] / name
        place.unlink()  # not overwritten: what was read before may still be mapped
        place.write_bytes(changed)
        try:
            verdict = judge(self.reader.read, self.path(chosen), number)
        finally:
            place.unlink(missing_ok=True)
            place.write_bytes(seed[name])
        passed = self.reader.passes(seed | {name: changed})
        return Outcome(passed, not verdict.refused, verdict.fault, verdict.too_large)


class Verdict(NamedTuple):
    """What reading one file came to."""

    fault: str | None
    """What is wrong: anything but success or one clear line of the project's own errors."""
    refused: bool
    """Whether it was not read."""
    too_large: bool = False
    """Whether it asked for more memory than the process may have, and did not get it."""


def judge(read: Read, path: Path, number: int) -> Verdict:
    """Read a file, and say what is wrong with how that went."""
    try:
        read(path, number)
    except TdmpcOptError as error:
        return Verdict(_unclear(error), True, _is_of_memory(error))
    except Exception as error:  # which is what is looked for
        fault = f"{type(error).__name__}: {str(error)[:300]!r} at {_origin(error)}"
        return Verdict(fault, True)
    return Verdict(None, False)


def _unclear(error: TdmpcOptError) -> str | None:
    """Say what is wrong with the message."""
    text = str(error)
    if text.isprintable() and 10 < len(text) < 3000:
        return None
    return f"unclear message of {len(text)} characters: {text[:200]!r}"


def _is_of_memory(error: BaseException) -> bool:
    """Tell whether an allocation failed on the way."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or "alloc" in str(cause).lower():
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _origin(error: BaseException) -> str:
    """Return the innermost lines of the project and of all."""
    trace, lines = error.__traceback__, []
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append((Path(code.co_filename), trace.tb_lineno))
        trace = trace.tb_next
    own = [line for line in lines if "tdmpc_opt" in line[0].parts]
    places = dict.fromkeys([*own[-1:], *lines[-1:]])
    return ", ".join(f"{path.name}:{number}" for path, number in places)
