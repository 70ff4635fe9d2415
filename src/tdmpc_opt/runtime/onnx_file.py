"""Opening ONNX files that `tdmpc-opt export` wrote; onnxruntime loads with the first."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdmpc_opt.errors import CheckpointError, InputError, MissingDependencyError
from tdmpc_opt.json_text import parse_json
from tdmpc_opt.task_table import TaskTable

FORMAT = "tdmpc-opt"
"""Mark of this project's files in their metadata."""
SCHEMA = 1
"""Newest schema of ONNX files; a reader for each released one stays."""

Provider = str | tuple[str, Mapping[str, Any]]
"""Name of an execution provider of ONNX Runtime, alone or with its options."""


@dataclass(frozen=True, eq=False)
class PlanSizes:
    """What the planner of a file searches with."""

    preset: str
    """Name of the budget."""
    rounds: int
    """Refinements of one plan."""
    horizon: int
    samples: int
    policy_samples: int
    max_std: float
    replan_every: int
    """Actions executed of one plan before the next is made."""
    num_q: int
    """Members of the Q ensemble, of which each round draws two."""


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """An open file."""

    session: Any
    """onnxruntime.InferenceSession."""
    tasks: TaskTable
    """Tasks in the order of their ids."""
    plan: PlanSizes | None
    """None where the file holds the policy alone."""


def is_onnx(path: Path) -> bool:
    """Return whether a file begins as ONNX files do; one that cannot be read does not."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError:
        return False
    # The tag of the first field; a safetensors header may have a length of that low byte.
    return head[:1] == b"\x08" and head[8:] != b"{"


def open_onnx(path: Path, threads: int, providers: Sequence[Provider] | None) -> OnnxFile:
    """Open a file and get it ready to run.

    Args:
        path: File that `tdmpc-opt export` wrote.
        threads: Threads of one action.
        providers: Execution providers in the order of preference; None is the CPU.

    Raises:
        CheckpointError: A file that is damaged, foreign or of a newer schema.
        InputError: A provider that this build of ONNX Runtime lacks.
        MissingDependencyError: onnxruntime is not installed.
    """
    session = _session(path, threads, providers)
    metadata = _metadata(path, session)
    try:
        tasks = TaskTable.from_json(parse_json(metadata["tasks"]))
        plan = None
        if metadata["kind"] == "planner":
            plan = PlanSizes(**parse_json(metadata["plan"]))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from error
    return OnnxFile(session, tasks, plan)


def _session(path: Path, threads: int, providers: Sequence[Provider] | None) -> Any:
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingDependencyError(
            'ONNX files need onnxruntime: pip install "tdmpc-opt[runtime]"'
        )
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    wanted = ["CPUExecutionProvider"] if providers is None else list(providers)
    offered = onnxruntime.get_available_providers()
    for provider in wanted:
        name = provider if isinstance(provider, str) else provider[0]
        if name not in offered:
            raise InputError(
                f"this build of onnxruntime has no {name}; it has {', '.join(offered)}"
            )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors alone: what goes wrong is raised
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=wanted)
    except (
        errors.Fail,
        errors.InvalidArgument,
        errors.InvalidGraph,
        errors.InvalidProtobuf,
        errors.NotImplemented,
        errors.RuntimeException,
    ) as error:
        raise CheckpointError(
            f"{path} is damaged, or not an ONNX file that runs here: {_one_line(error)}"
        ) from error


def _metadata(path: Path, session: Any) -> dict[str, str]:
    try:
        metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is an ONNX file of another program; write one with tdmpc-opt export"
        )
    schema = metadata.get("schema", "")
    if not (schema.isascii() and schema.isdigit() and len(schema) < 10):
        raise CheckpointError(f"{path} is damaged: its schema number is {schema[:20]!r}")
    if int(schema) > SCHEMA:
        raise CheckpointError(
            f"{path} was written by a newer version (its schema is {schema}, the newest known "
            f"here {SCHEMA}); upgrade {FORMAT}"
        )
    return metadata


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
