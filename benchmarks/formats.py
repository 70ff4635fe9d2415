"""Bytes, memory, latency, score and action error of each number format, by policy and planner.

Uses `quantize`, `export`, `evaluate` and `bench`; planners use the checkpoint's preset
`realtime`. A repeated command goes on where it stopped. Writes results/formats-NAME.json and a
result file for each score; `python tools/formats_figure.py` draws them:

    python benchmarks/formats.py --checkpoint mt30-1m --name mt30-1m --data data
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray
from timing import save

from tdmpc_opt.agents.sources import open_source
from tdmpc_opt.checkpoints.load import read_checkpoint, resolve
from tdmpc_opt.compression.calibration import Observations, read_observations
from tdmpc_opt.compression.quantize import quantize
from tdmpc_opt.configs.deploy import ExportConfig, ExportFormat, Format, QuantizeConfig
from tdmpc_opt.configs.measure import BenchConfig, EvaluateConfig
from tdmpc_opt.evaluation.bench import bench
from tdmpc_opt.evaluation.evaluate import evaluate
from tdmpc_opt.export.engine import fast_engine
from tdmpc_opt.export.export import export
from tdmpc_opt.files import sha256

How = Literal["policy", "realtime"]
HOWS: tuple[How, ...] = ("policy", "realtime")
STORED: tuple[Format, ...] = ("fp32", "fp16", "bf16", "int8", "int4", "mixed")
EXPORTED: tuple[ExportFormat, ...] = ("fp32", "fp16", "int8")
_CALIBRATED = ("int8", "int4", "mixed")
_ROWS = 40
"""Observations of each task that actions are compared on."""
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Config:
    """What to measure."""

    checkpoint: str
    """Checkpoint in floating point."""
    name: str
    """How result files begin."""
    data: Path
    """Dataset of its tasks' observations, from `tdmpc-opt collect`."""
    others: tuple[Path, ...] = ()
    """Files of another agent, such as the released ones, the most exact first; by torch."""
    others_name: str = "others"
    """How their result files begin; the format's name, the last part of the file's, follows."""
    mixed_bytes: int = 800_000
    """Length that `mixed` must not exceed."""
    mixed_policy_bytes: int = 220_000
    """The same of a policy alone."""
    policy_episodes: int = 10
    """Episodes per task that score a policy."""
    planner_episodes: int = 3
    """Episodes per task that score a planner."""
    seconds: float = 0.5
    """Length of a turn of the timing, of which there are ten."""
    files: Path = Path("formats")
    """Folder for the files."""
    results: Path = Path("results")
    """Folder of the result files."""

    @property
    def output(self) -> Path:
        """The result file."""
        return self.results / f"formats-{self.name}.json"


@dataclass(frozen=True)
class File:
    """One file and one way to act by it."""

    label: str
    how: How
    path: Path
    exact: bool = False
    """Whether the following files that act in the same way are compared with this one."""

    @property
    def preset(self) -> How | None:
        """The preset to ask for; an exported file contains its own."""
        return None if self.how == "policy" or self.path.suffix == ".onnx" else self.how


def main(config: Config) -> None:
    """Make the files, score and time them, and write the result file."""
    config.files.mkdir(parents=True, exist_ok=True)
    files = [*_made(config)]
    for path in config.others:
        files += [File(path.name, how, path, path == config.others[0]) for how in HOWS]
    errors = _errors(config, files)
    scores = [_score(config, file) for file in files]
    times = [_times(config, how, [file for file in files if file.how == how]) for how in HOWS]
    timed = times[0] | times[1]
    rows = [
        {
            "format": file.label,
            "how": file.how,
            "size_bytes": file.path.stat().st_size,
            "action_error": error,
            **scored,
            **timed[file.label, file.how],
        }
        for file, error, scored in zip(files, errors, scores, strict=True)
    ]
    save("formats", config, {"rows": rows}, ("data", "others", "results", "files"))


def _made(config: Config) -> Iterator[File]:
    """Quantise and export into each format, whole and the policy alone; files stay."""
    folder = config.files / sha256(resolve(config.checkpoint))[:12]
    folder.mkdir(exist_ok=True)
    for form, how in itertools.product(STORED, HOWS):
        path = folder / f"{config.name}-{form}-{how}.safetensors"
        limit = config.mixed_policy_bytes if how == "policy" else config.mixed_bytes
        if not path.exists():
            quantize(
                QuantizeConfig(
                    checkpoint=config.checkpoint,
                    output=path,
                    format=form,
                    policy_only=how == "policy",
                    data=config.data if form in _CALIBRATED else None,
                    budget_bytes=limit if form == "mixed" else None,
                )
            )
        yield File(form, how, path, exact=form == "fp32")
    for form, how in itertools.product(EXPORTED, HOWS):
        path = folder / f"{config.name}-{form}-{how}.onnx"
        # Exported files are written once: they contain the error of their check, whose
        # last digits depend on the number of threads, and another hash would be scored again.
        if not path.exists():
            export(
                ExportConfig(
                    checkpoint=config.checkpoint,
                    output=path,
                    format=form,
                    policy_only=how == "policy",
                    preset=None if how == "policy" else how,
                    data=config.data,
                )
            )
        # Its plans draw other noise than torch's and are compared with each other.
        yield File(f"ONNX {form}", how, path, exact=form == "fp32" and how != "policy")


def _errors(config: Config, files: Sequence[File]) -> list[float | None]:
    """Return how far each file's actions are from those of the exact one, rms in action units.

    From equal observations and, where they plan, by equal noise; None of the exact themselves.
    """
    seen = _observations(config)
    exact: dict[How, Array] = {}
    errors: list[float | None] = []
    for file in files:
        actions = _actions(file, seen)
        if file.exact:
            exact[file.how] = actions
        distance = float(np.sqrt(np.square(actions - exact[file.how]).mean()))
        errors.append(None if file.exact else distance)
    return errors


def _observations(config: Config) -> dict[str, Array]:
    """Return observations of each task that no calibration has seen, [n, obs]."""
    tasks = read_checkpoint(resolve(config.checkpoint)).tasks
    _, held_out = read_observations(config.data, tasks)
    found = {}
    for index in held_out.task.unique().tolist():
        of_task = held_out.task == index
        some = Observations(held_out.obs[of_task], held_out.task[of_task]).spread(_ROWS)
        found[tasks.names[index]] = some.obs[:, : tasks.tasks[index].obs_dim].numpy()
    return found


def _actions(file: File, seen: Mapping[str, Array]) -> Array:
    """Return all actions of a file on observations of several tasks."""
    policy = open_source(
        str(file.path),
        mode="policy" if file.how == "policy" else "planner",
        preset=file.preset,
    ).load()
    found = []
    for task, obs in seen.items():
        act = policy(task, [(0, row) for row in range(len(obs))], [])
        found.append(act(obs).ravel())
    return np.concatenate(found)


def _score(config: Config, file: File) -> dict[str, Any]:
    if file.path in config.others:
        name, label = config.others_name, file.path.stem.rpartition("_")[-1]
    else:
        name, label = config.name, file.label.lower().replace(" ", "-")
    output = config.results / f"{name}-{label}-{file.how}.json"
    policy = file.how == "policy"
    result = evaluate(
        EvaluateConfig(
            checkpoint=str(file.path),
            tasks=",".join(_tasks(config)),
            episodes=config.policy_episodes if policy else config.planner_episodes,
            mode="policy" if policy else "planner",
            preset=file.preset,
            output=output,
        ),
        choose_engine=fast_engine,
    )
    return {"score": result["score"], "result": output.name, "sha256": sha256(file.path)}


def _tasks(config: Config) -> tuple[str, ...]:
    return read_checkpoint(resolve(config.checkpoint)).tasks.names


def _times(config: Config, how: How, files: list[File]) -> dict[tuple[str, str], Any]:
    """Time files in turns; the first is the reference of the speedups."""
    found = bench(
        BenchConfig(
            sources=tuple(str(file.path) for file in files),
            preset=(how,),
            batch=(1,),
            task=_tasks(config)[0],
            seconds=config.seconds,
        )
    )
    keys = ("p50_ms", "cpu_p50_ms", "speedup_cpu", "peak_rss_bytes")
    return {
        (file.label, how): {key: record["batches"]["1"][key] for key in keys}
        | {"by": record["engine"]}
        for file, record in zip(files, found["candidates"], strict=True)
    }


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
