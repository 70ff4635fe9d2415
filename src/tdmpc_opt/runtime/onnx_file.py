"""Opening ONNX files that `tdmpc-opt export` wrote; onnxruntime loads with the first."""

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmpc_opt.contract import Contracts, contracts_of
from tdmpc_opt.errors import CheckpointError, InputError, MissingDependencyError
from tdmpc_opt.files import CONTRACT, check_schema, parse_json
from tdmpc_opt.schema import PlanRules, TaskTable

SCHEMA = 1
"""Newest schema of ONNX files; a reader for each released one stays."""

_TOO_NEW = ("IR version", "opset", "NOT_IMPLEMENTED")
"""What onnxruntime mentions where a file is of a later version of ONNX than it knows."""
_KNOWS_NUMPY_2 = (1, 19)
"""First version of onnxruntime that was built for it."""

Provider = str | tuple[str, Mapping[str, Any]]
"""Name of an execution provider of ONNX Runtime, alone or with its options."""


Run = Callable[[Sequence[str], Mapping[str, Any]], list[Any]]


@dataclass(frozen=True, eq=False, kw_only=True)
class FilePlan(PlanRules):
    """How the planner of a file plans."""

    preset: str
    rounds: int
    """Refinements of one plan."""
    num_q: int
    """Members of the Q ensemble, of which each round draws two."""


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """An open file."""

    run: Run
    """Runs the graph: the names of outputs and inputs by name to the outputs. It raises a
    `CheckpointError` where the graph cannot be computed."""
    tasks: TaskTable
    plan: FilePlan | None
    """None where the file has the policy alone."""
    number_format: str
    contracts: Contracts


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
        plan, number_format = None, metadata["number_format"]
        if metadata["kind"] == "planner":
            plan = _plan(parse_json(metadata["plan"]))
        _check_graph(session, tasks, plan)
        contracts = contracts_of(tasks, metadata.get(CONTRACT))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from error
    return OnnxFile(_runner(path, session), tasks, plan, number_format, contracts)


def _runner(path: Path, session: Any) -> Run:
    """Return what runs the graph of a file, which may fail where the file is damaged."""

    def run(outputs: Sequence[str], inputs: Mapping[str, Any]) -> list[Any]:
        try:
            found: list[Any] = session.run(outputs, inputs)
        except _errors() as error:
            raise CheckpointError(
                f"{path} is damaged, its graph cannot be computed: {_one_line(error)}"
            ) from error
        return found

    return run


def check_output(values: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return what a graph gave.

    Raises:
        CheckpointError: It has another shape than it should.
    """
    if values.shape != shape:
        raise CheckpointError(
            f"the ONNX file is damaged: its graph gave {list(values.shape)}, not {list(shape)}"
        )
    array: NDArray[np.float32] = values
    return array


def _plan(found: dict[str, Any]) -> FilePlan:
    """Return the plan that a file states; refuse one that no planner is written with."""
    if found.keys() != {field.name for field in fields(FilePlan)}:
        raise ValueError(f"a plan of {sorted(found)}")
    plan = FilePlan(**found)
    sizes = (plan.rounds, plan.horizon, plan.samples, plan.policy_samples)
    counts = (*sizes, plan.replan_every, plan.num_q)
    spreads = (plan.min_std, plan.max_std, plan.warm_mean, plan.warm_std, plan.converged_std)
    if type(plan.preset) is not str or type(plan.mean_action) is not bool:
        raise ValueError("its plan has no name, or no rule for its action")
    if not all(type(count) is int and 0 <= count < _MOST for count in counts):
        raise ValueError(f"a plan of {plan}")
    if not all(type(spread) in (int, float) and 0 <= spread < _MOST for spread in spreads):
        raise ValueError(f"a plan of {plan}")
    if min(plan.rounds, plan.num_q) < 1 or plan.samples * plan.horizon * plan.rounds > _MOST:
        raise ValueError(f"a plan of {plan}")
    return plan


_MOST = 1 << 22
"""Sampled actions of one plan; the published budget has about 9,000 of them."""


def _check_graph(session: Any, tasks: TaskTable, plan: FilePlan | None) -> None:
    """Refuse a graph with other inputs and outputs than the metadata lets expect."""
    inputs = {item.name: item.shape for item in session.get_inputs()}
    wanted = {"obs"} | ({"task"} if len(tasks) > 1 else set())
    if plan is not None:
        wanted |= {"prior", "mean", "std", "samples", "value", "heads", "pick"}
    outputs = {item.name for item in session.get_outputs()}
    if {*inputs} != wanted or "action" not in outputs:
        raise ValueError(f"its graph takes {sorted(inputs)} and gives {sorted(outputs)}")
    if plan is not None and not {"new_mean", "new_std"} <= outputs:
        raise ValueError(f"its graph gives {sorted(outputs)}")
    width = inputs["obs"][-1] if inputs["obs"] else None
    if width != tasks.obs_dim and not isinstance(width, str):  # a name where it takes any
        raise ValueError(f"its graph takes {width} numbers, its tasks have {tasks.obs_dim}")


def _errors() -> tuple[type[Exception], ...]:
    """Return what onnxruntime raises on files that are damaged."""
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    return (
        UnicodeDecodeError,  # its own message quotes names of the file
        *(errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf),
        *(errors.NotImplemented, errors.RuntimeException),
    )


def _check_engine() -> None:
    """Refuse an onnxruntime that is missing, or that would crash the process with this numpy.

    Its version is read before it is imported: importing it prints dozens of lines.
    """
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            'ONNX files need onnxruntime: pip install "tdmpc-opt[runtime]"'
        )
    found = re.search(r'__version__ = "(\d+)\.(\d+)', Path(spec.origin).read_text("utf-8"))
    if found and int(np.__version__.partition(".")[0]) >= 2:
        major, minor = map(int, found.groups())
        if (major, minor) < _KNOWS_NUMPY_2:
            raise MissingDependencyError(
                f"onnxruntime {major}.{minor} was built for numpy 1 and crashes with numpy "
                f'{np.__version__}; run: pip install "numpy<2", or take onnxruntime 1.19 on'
            )


def _session(path: Path, threads: int, providers: Sequence[Provider] | None) -> Any:
    _check_engine()
    import onnxruntime

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
    options.log_severity_level = 4  # what goes wrong is raised, and need not be printed too
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=wanted)
    except _errors() as error:
        reason = _one_line(error)
        if any(word in reason for word in _TOO_NEW):
            raise CheckpointError(
                f"{path} is too new for onnxruntime {onnxruntime.__version__}: {reason}; take "
                "a newer onnxruntime, or export with a lower --opset and --ir-version (18 and "
                "8 run in onnxruntime from 1.15 on)"
            ) from error
        raise CheckpointError(
            f"{path} is damaged, or not an ONNX file that runs here: {reason}"
        ) from error


def _metadata(path: Path, session: Any) -> dict[str, str]:
    try:
        metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    foreign = "an ONNX file of another program; write one with tdmpc-opt export"
    check_schema(path, metadata, SCHEMA, foreign)
    return metadata


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
