"""What each number format costs and keeps: bytes, memory, latency, score, of policy and plan.

Makes the files with the project's own commands, scores them by `evaluate` and times them by
`bench`. Scores are result files of their own and are not measured twice, so that a run that was
stopped goes on:

    python benchmarks/formats.py --checkpoint student.safetensors --name mt30-1m --data data
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from racing import save
from rich.console import Console

from tdmpc_opt.bench.measure import bench
from tdmpc_opt.checkpoints.load import read_checkpoint, resolve, sha256
from tdmpc_opt.compression.quantize import quantize
from tdmpc_opt.configs import BenchConfig, EvaluateConfig, ExportConfig, QuantizeConfig
from tdmpc_opt.configs.compression import Format
from tdmpc_opt.configs.export import ExportFormat
from tdmpc_opt.export.export import export

How = Literal["policy", "realtime"]
HOWS: tuple[How, ...] = ("policy", "realtime")
STORED: tuple[Format, ...] = ("fp32", "fp16", "bf16", "int8", "int4", "mixed")
EXPORTED: tuple[ExportFormat, ...] = ("fp32", "fp16", "int8")
_CALIBRATED = ("int8", "int4", "mixed")


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
    """Other files of the same agent, such as the public code's; they need torch."""
    mixed_bytes: int = 800_000
    """Length that `mixed` must not exceed."""
    mixed_policy_bytes: int = 220_000
    """The same of a policy alone."""
    tasks: str | None = None
    """Tasks to score; None means all of the agent's."""
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
    action_error: float | None
    """Root mean square change of the policy's actions, in action units."""


def main(config: Config) -> None:
    """Make the files, score and time them, and write the result file."""
    config.files.mkdir(parents=True, exist_ok=True)
    files = [*_stored(config), *_exported(config), *_others(config)]
    scores = [_score(config, file) for file in files]
    times = [_times(config, how, [file for file in files if file.how == how]) for how in HOWS]
    timed = times[0] | times[1]
    rows = [
        {
            "format": file.label,
            "how": file.how,
            "size_bytes": file.path.stat().st_size,
            "action_error": file.action_error,
            **scored,
            **timed[file.label, file.how],
        }
        for file, scored in zip(files, scores, strict=True)
    ]
    save("formats", config, {"rows": rows}, ("data", "others", "results", "files"))


def _stored(config: Config) -> Iterator[File]:
    """Quantise into each format, whole and the policy alone."""
    for form in STORED:
        for how in HOWS:
            path = config.files / f"{config.name}-{form}-{how}.safetensors"
            limit = config.mixed_policy_bytes if how == "policy" else config.mixed_bytes
            report = quantize(
                QuantizeConfig(
                    checkpoint=config.checkpoint,
                    output=path,
                    format=form,
                    policy_only=how == "policy",
                    data=config.data if form in _CALIBRATED else None,
                    budget_bytes=limit if form == "mixed" else None,
                )
            )
            yield File(form, how, path, report.action_error)


def _exported(config: Config) -> Iterator[File]:
    folder = config.files / sha256(resolve(config.checkpoint))[:12]
    folder.mkdir(exist_ok=True)
    for form in EXPORTED:
        for how in HOWS:
            path = folder / f"{config.name}-{form}-{how}.onnx"
            # A file tells the error that its check measured, whose last digits hang on the
            # number of threads. Written anew it could have another hash, and be scored again.
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
            yield File(f"ONNX {form}", how, path, None)


def _others(config: Config) -> Iterator[File]:
    for path in config.others:
        for how in HOWS:
            yield File(path.name, how, path, None)


def _score(config: Config, file: File) -> dict[str, Any]:
    label = file.path.stem if file.path in config.others else file.label.lower()
    output = config.results / f"{config.name}-{label.replace(' ', '-')}-{file.how}.json"
    policy = file.how == "policy"
    result = _evaluated(
        EvaluateConfig(
            checkpoint=str(file.path),
            tasks=",".join(_tasks(config)),
            episodes=config.policy_episodes if policy else config.planner_episodes,
            mode="policy" if policy else "planner",
            preset=None if policy or file.path.suffix == ".onnx" else file.how,
            output=output,
        )
    )
    return {"score": result["score"], "result": output.name, "sha256": sha256(file.path)}


def _evaluated(config: EvaluateConfig) -> dict[str, Any]:
    from tdmpc_opt.evaluation.evaluate import evaluate

    Console().print(f"{config.output.name} ...", highlight=False)
    return evaluate(config)


def _tasks(config: Config) -> tuple[str, ...]:
    tasks = read_checkpoint(resolve(config.checkpoint)).tasks
    return (tasks.select(config.tasks) if config.tasks else tasks).names


def _times(config: Config, how: How, files: list[File]) -> dict[tuple[str, str], Any]:
    """Time files side by side; the first is what the others are compared with."""
    sources = tuple(str(file.path) for file in files)
    task = _tasks(config)[0]
    found = bench(
        BenchConfig(
            sources=sources, preset=(how,), batch=(1,), task=task, seconds=config.seconds
        )
    )
    times = {}
    for file, record in zip(files, found["candidates"], strict=True):
        first = record["batches"]["1"]
        keys = ("p50_ms", "cpu_p50_ms", "speedup_cpu", "peak_rss_bytes")
        times[file.label, how] = {key: first[key] for key in keys} | {"by": record["engine"]}
    return times


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
