"""The policy as C99 without a heap, generated from its ONNX graph by emx-onnx-cgen."""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from importlib import resources
from math import prod
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

import tdmpc_opt
from tdmpc_opt.contract import Contracts, by_contract
from tdmpc_opt.errors import CheckpointError, MissingDependencyError
from tdmpc_opt.export.formats import in_integers
from tdmpc_opt.export.graphs import Inputs, Run, traced
from tdmpc_opt.model.fold import FoldedModel
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.schema import TaskTable

Array = NDArray[np.float32]

_STRICT = ("-std=c99", "-O2", "-Wall", "-Werror")
_BYTES = {"float": 4, "int32_t": 4, "int64_t": 8, "uint8_t": 1, "int8_t": 1}


def c_policy(
    model: WorldModel, contracts: Contracts, checkpoint: Path, origin: str, *, quantize: bool
) -> tuple[Run, dict[str, bytes]]:
    """Return what runs the policy as compiled C, row by row, and its source by file name.

    The compiler is `$CC` or `cc`.

    Args:
        model: World model in eval mode, or its encoder and policy alone.
        contracts: What is known of the numbers of its tasks.
        checkpoint: File that it was read from, whose name a policy of several tasks gets.
        origin: What the source states about its origin.
        quantize: Compute the large products in int8.

    Raises:
        MissingDependencyError: emx-onnx-cgen or a C compiler is not installed.
        CheckpointError: The generated source does not compile.
    """
    if importlib.util.find_spec("emx_onnx_cgen") is None:
        raise MissingDependencyError('target c needs emx-onnx-cgen: pip install "tdmpc-opt[c]"')
    tasks = model.tasks
    prefix = _c_name(tasks.names[0] if len(tasks) == 1 else checkpoint.stem)
    network, stack_bytes = _network(_fixed_graph(model, quantize=quantize))
    takes_task = model.task_embedding is not None
    values = _values(tasks, contracts, prefix, stack_bytes, takes_task=takes_task)
    values["source"] = _ascii(origin)
    made = {
        f"{prefix}.h": _filled("policy.h", values),
        f"{prefix}.c": network + _filled("policy.c", values),
        "main.c": _filled("main.c", values),
        "CMakeLists.txt": _filled("CMakeLists.txt", values),
    }
    files = {name: text.encode("ascii") for name, text in made.items()}
    act = _compiled(files, prefix)

    def run(inputs: Inputs) -> dict[str, Array]:
        rows: Array = np.ascontiguousarray(inputs["obs"], np.float32)
        actions = np.zeros((len(rows), tasks.action_dim), np.float32)
        ids = inputs.get("task", np.zeros(len(rows), np.int64))
        for row, action, task in zip(rows, actions, ids.tolist(), strict=True):
            status = act(task, row.ctypes.data, action.ctypes.data)
            if status:
                raise CheckpointError(f"the C policy refuses an observation (status {status})")
        return {"action": actions}

    return run, files


def _compiled(files: Mapping[str, bytes], prefix: str) -> Any:
    """Return the function of the compiled source."""
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        raise MissingDependencyError(
            f"target c is checked by compiling it, and there is no compiler {compiler!r} "
            "here; install gcc or clang, or set CC"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        library = folder / "policy.so"
        command = [compiler, *_STRICT, "-shared", "-fPIC", "-o", str(library)]
        command += [str(folder / f"{prefix}.c"), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = next(iter(done.stderr.splitlines()), "no message")
            raise CheckpointError(f"{compiler} does not compile the C policy: {reason}")
        act = getattr(ctypes.CDLL(str(library)), f"{prefix}_act")
    act.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    return act


def _c_name(name: str) -> str:
    """Return the prefix of functions and files for a task or a checkpoint of this name."""
    plain = re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_")
    return plain if plain[:1].isalpha() else f"policy_{plain}".strip("_")


def _filled(name: str, values: Mapping[str, str]) -> str:
    template = resources.files("tdmpc_opt.export") / "c_templates" / name
    return Template(template.read_text(encoding="utf-8")).substitute(values)


def _values(
    tasks: TaskTable, contracts: Contracts, prefix: str, stack_bytes: int, *, takes_task: bool
) -> dict[str, str]:
    """Return what the templates' places are filled with."""
    widths = [(task.obs_dim, task.action_dim) for task in tasks.tasks]
    found = [contracts.get(name) for name in tasks.names]
    rates = [(each.rate_hz if each else None) or 0.0 for each in found]
    call = "network(padded, ids, found);" if takes_task else "network(padded, found);"
    ids = "const int64_t ids[1] = {task};\n    " if takes_task else ""
    return {
        "title": _ascii(f"{len(tasks)} tasks" if len(tasks) > 1 else tasks.names[0]),
        "version": tdmpc_opt.__version__,
        "stack_bytes": str(stack_bytes + 4 * (tasks.obs_dim + tasks.action_dim) + 128),
        "contract": _contract_lines(contracts),
        "rates": ", ".join(f"{rate:g}" for rate in rates),
        "prefix": prefix,
        "upper": prefix.upper(),
        "tasks": str(len(tasks)),
        "obs": str(tasks.obs_dim),
        "action": str(tasks.action_dim),
        "names": ", ".join(f'"{_ascii(name)}"' for name in tasks.names),
        "obs_widths": ", ".join(str(obs) for obs, _ in widths),
        "action_widths": ", ".join(str(action) for _, action in widths),
        "call": ids + call,
    }


def _contract_lines(contracts: Contracts) -> str:
    """Return comment lines about the numbers of the tasks, in their order."""
    lines = []
    for found, names in by_contract(contracts).items():
        lines.append(f"{', '.join(names)}: {found.rate}")
        for numbers, named, unit, bounds in found.rows():
            lines.append(f"  {numbers}: {named}; unit {unit}{f', in {bounds}' * bool(bounds)}")
    return "".join(f" * {_ascii(line)}\n" for line in lines)


def _ascii(text: str) -> str:
    """Return a text that is safe in a C string or comment, whatever a task's name is."""
    return re.sub(r'[^ -~]|["\\*?]', "_", text)


def _fixed_graph(model: WorldModel, *, quantize: bool) -> onnx.ModelProto:
    """Return the policy's graph for one padded observation, with short names and no notes."""
    inputs: dict[str, torch.Tensor] = {"obs": torch.zeros(1, model.config.obs_dim)}
    if model.task_embedding is not None:
        inputs["task"] = torch.zeros(1, dtype=torch.int64)
    graph = traced(
        FoldedModel(model, centred=True), tuple(inputs.values()), list(inputs), ["action"]
    )
    if quantize:
        graph = in_integers(graph)
    bare = onnx.ModelProto()
    bare.CopyFrom(graph)
    del bare.graph.value_info[:], bare.metadata_props[:], bare.graph.metadata_props[:]
    short = {name: name for name in (*inputs, "action", "")}
    for count, constant in enumerate(bare.graph.initializer):
        constant.name = short.setdefault(constant.name, f"w{count}")
    for count, node in enumerate(bare.graph.node):
        node.name = node.op_type.lower()
        node.output[:] = [short.setdefault(name, f"x{count}") for name in node.output]
        node.input[:] = [short[name] for name in node.input]
    return bare


def _network(graph: onnx.ModelProto) -> tuple[str, int]:
    """Return C source with one static function `network`, and the bytes of its buffers."""
    from emx_onnx_cgen.compiler import Compiler, CompilerOptions

    # A threshold of 0 keeps temporaries off the heap, and weights in the source.
    options = CompilerOptions(
        model_name="network", large_temp_threshold_bytes=0, large_weight_threshold=0
    )
    source = Compiler(options).compile(graph)
    source = re.sub(r"/\*.*?\*/\n?", "", source, flags=re.DOTALL)
    source = re.sub(r"^extern const .*;\n", "", source, flags=re.MULTILINE)
    source = re.sub(
        r"^const EMX_UNUSED ", "static const EMX_UNUSED ", source, flags=re.MULTILINE
    )
    source = re.sub(r"^_Bool network_load.*?^\}\n", "", source, flags=re.DOTALL | re.MULTILINE)
    source = re.sub(r"\n{3,}", "\n\n", source)
    before, start, body = source.partition("\nvoid network(")
    assert start, "the generated source has a function of the model's name"
    packed, size = _packed(body)
    made_by = "/* Generated from ONNX by emx-onnx-cgen, then buffers packed by tdmpc-opt. */\n"
    return f"{made_by}{before}\nstatic void network({packed}\n", size


_BUFFER = re.compile(r"    (\w+) (tmp\w+)((?:\[\d+\])+);\n")


def _packed(body: str) -> tuple[str, int]:
    """Let the buffers of a function that are not needed at the same time share memory.

    `body` declares buffers, then calls functions. The bytes of the arrays are returned too.

    Each number type has one array, so that no memory is read as another type than it was
    written as, which C forbids.

    Returns:
        The same with one array a type, and its bytes.
    """
    calls = _BUFFER.sub("", body)
    lines = calls.split("\n")
    ends: dict[str, int] = {}
    spans: dict[str, list[tuple[int, int, int, int]]] = {}  # of a type: start, end, first, last
    replacement: dict[str, str] = {}
    for kind, name, axes in _BUFFER.findall(body):
        used = [i for i, line in enumerate(lines) if re.search(rf"\b{name}\b", line)]
        sizes = [int(size) for size in re.findall(r"\d+", axes)]
        first, last, length = used[0], used[-1], prod(sizes)
        live = sorted(
            span[:2] for span in spans.get(kind, []) if span[2] <= last and first <= span[3]
        )
        offset = 0
        for start, end in live:
            if offset + length <= start:
                break
            offset = max(offset, end)
        spans.setdefault(kind, []).append((offset, offset + length, first, last))
        ends[kind] = max(ends.get(kind, 0), offset + length)
        inner = "".join(f"[{size}]" for size in sizes[1:])
        pointer = f"{kind} (*){inner}" if inner else f"{kind} *"
        replacement[name] = f"({pointer})({kind}_buffer + {offset})"
    text = re.sub(r"\btmp\w+\b", lambda found: replacement[found[0]], calls)
    head, brace, rest = text.partition("{\n")
    arrays = "".join(f"    {kind} {kind}_buffer[{size}];\n" for kind, size in ends.items())
    return head + brace + arrays + rest, sum(_BYTES[kind] * size for kind, size in ends.items())
