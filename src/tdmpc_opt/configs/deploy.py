"""Commands that look at checkpoints, rewrite, regularise, compress, export and serve them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tdmpc_opt.configs.common import (
    POSITIONAL,
    AtPort,
    ByWorkers,
    MatmulPrecision,
    Numbers,
    OfCheckpoint,
    OnDevice,
    OnTasks,
    Seeded,
    ToOutput,
    ToPlot,
)
from tdmpc_opt.errors import InputError


@dataclass(frozen=True, kw_only=True)
class OfPart:
    """The part of an agent that a command writes."""

    policy_only: bool = False
    """Encoder and policy alone: a file that acts and cannot plan."""
    task: str | None = None
    """One task alone, with its embedding folded into the biases and no padding; without it
    all."""


@dataclass(frozen=True, kw_only=True)
class TasksConfig(OnTasks):
    """List the tasks with their ids and sizes."""


@dataclass(frozen=True, kw_only=True)
class ZooConfig:
    """List the bundled checkpoints."""


@dataclass(frozen=True, kw_only=True)
class InspectConfig(OfCheckpoint, OnTasks):
    """Show a file's sizes, tasks and parameters, and what the numbers of its tasks are."""

    checkpoint: Annotated[str, POSITIONAL]
    """Checkpoint file of any known layout, model folder, zoo name or hub id; or what
    `tdmpc-opt export` wrote."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(OfCheckpoint, OnTasks, ToOutput):
    """Rewrite a checkpoint as safetensors of this project, or as a model folder.

    The output is a file if its name ends in .safetensors, and else a model folder.
    """

    results: tuple[Path, ...] = ()
    """Results of `tdmpc-opt evaluate` on this checkpoint, for the model card."""
    license: str = "unknown"
    """Licence of the weights for the model card, by its id on the hub, such as mit."""

    def __post_init__(self) -> None:
        if self.is_file and (self.results or self.license != "unknown"):
            raise InputError("`results` and `license` belong to the card of a model folder")

    @property
    def is_file(self) -> bool:
        """Whether the output is a file and not a folder."""
        return self.output.suffix == ".safetensors"


@dataclass(frozen=True, kw_only=True)
class RegularizeConfig(OfCheckpoint, OnTasks, ToOutput, OnDevice, Seeded):
    """Train an agent's reward head so that plans of any budget stay near its policy.

    The output is a safetensors file with all other weights unchanged. It plans and acts; it
    teaches no rewards.
    """

    data: tuple[Path, ...]
    """Dataset folders with observations of the agent's tasks, best of its own policy with
    different noise, from `tdmpc-opt collect`."""
    updates: int = 12_000
    """Gradient updates of the reward head."""
    matmul: MatmulPrecision = "highest"
    """Precision of float32 matrix products, as torch names it: `medium` multiplies in bf16 and
    sums in float32 on processors with units for that."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data or self.updates < 1:
            raise InputError("`data` names at least one dataset, and `updates` is at least 1")


Format = Literal["fp32", "fp16", "bf16", "int8", "int4", "mixed"]


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig(OfCheckpoint, OnTasks, OfPart, ToOutput, Numbers):
    """Write a smaller file of the same agent, without target Qs.

    The output is a safetensors file.
    """

    format: Format = "fp16"
    """Number format of the stored weights. `int8` and `int4` keep what is small or sensitive in
    more bits; `mixed` chooses each layer's by measurement."""
    data: Path | None = None
    """Dataset folder, which format mixed needs. With it int8 and int4 are rounded better, and
    the cost is measured on other observations of it; without it neither."""
    budget_bytes: int | None = None
    """With mixed: length of the file that must not be exceeded; without it
    `max_action_error` decides."""
    max_action_error: float | None = None
    """With mixed: root mean square change of the policy's actions that is allowed, in action
    units (their range is 2); the smallest such file is written. Without it `budget_bytes`
    decides."""
    max_value_error: float = 0.02
    """With `max_action_error`: 1 less the correlation of planned values that is allowed."""
    distill_updates: int = 0
    """With a dataset: updates that train the rounded weights to act and plan as the original
    does; kept where they bring the file closer to it. For int4 take 300 to 1000."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ("budget_bytes", "max_action_error")
        limits = [name for name in names if getattr(self, name) is not None]
        if self.format == "mixed" and (self.data is None or len(limits) != 1):
            raise InputError(
                "format mixed needs --data, a dataset to measure on, and either --budget-bytes "
                "or --max-action-error"
            )
        if self.format != "mixed" and limits:
            raise InputError(
                f"--{limits[0].replace('_', '-')} is for format mixed, not {self.format}"
            )
        if self.data is not None and self.format in ("fp32", "fp16", "bf16"):
            raise InputError(f"format {self.format} needs no data; leave out --data")
        if any(getattr(self, name) <= 0 for name in limits) or self.max_value_error <= 0:
            raise InputError(
                "`budget_bytes`, `max_action_error` and `max_value_error` must be above 0"
            )
        if self.distill_updates and self.data is None:
            raise InputError("--distill-updates needs --data, a dataset to train on")


@dataclass(frozen=True, kw_only=True)
class SensitivityConfig(OfCheckpoint, ToOutput, ToPlot, ByWorkers):
    """Measure what each layer's rounding alone does to actions and planned values.

    The output is a result file (JSON).
    """

    data: Path
    """Dataset of real observations, from `tdmpc-opt collect`."""
    policy_only: bool = False
    """Measure encoder and policy alone."""
    episodes: int = 0
    """Episodes per task that score the policy for each layer and format; 0 scores none."""


ExportTarget = Literal["onnx", "executorch", "c"]
ExportFormat = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig(OfCheckpoint, OnTasks, OfPart, ToOutput, Numbers):
    """Write the policy or the whole planner for an engine, once it acts as torch does.

    The output is a file, or a folder for C source.
    """

    target: ExportTarget = "onnx"
    """Kind of file: ONNX, which OpenVINO reads too, ExecuTorch's .pte, or C99 source."""
    format: ExportFormat = "fp32"
    """fp16 halves the file and computes in fp32; int8 computes the large products in int8."""
    preset: str | None = None
    """Planner budget by name, as in `evaluate`; without it full."""
    data: Path | None = None
    """Dataset folder with observations to compare on; without it the simulator is driven for
    some, or the environments that `tasks` names."""
    result: Path | None = None
    """`tdmpc-opt evaluate` result of this checkpoint, whose score the file is to state; without
    it none."""
    opset: int = 18
    """Operator set of an ONNX file, 18 to 20. 18 runs in onnxruntime from 1.15 on."""
    ir_version: int = 8
    """Version of an ONNX file's own format, 8 to 10. 8 runs in onnxruntime from 1.15 on."""
    tolerance: float | None = None
    """Largest difference from torch's actions that is written; of planned, fp16 and int8 ones
    9 of 10 have to keep it. Without it for fp32 1e-4, or three times the error of torch's own
    fp32 where that is more (plans: 0.005); for fp16 0.02 (plans: 0.2); for int8 0.3 (plans:
    1.0)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerance == 0:
            raise InputError(f"`tolerance` must be above 0, got {self.tolerance}")
        if not (18 <= self.opset <= 20 and 8 <= self.ir_version <= 10):
            raise InputError(
                f"`opset` must be in 18..20 and `ir_version` in 8..10, got {self.opset} and "
                f"{self.ir_version}"
            )
        if self.target != "onnx" and not self.policy_only:
            raise InputError(f"{self.target} files hold the policy; add --policy-only")
        if self.target != "onnx" and (self.opset, self.ir_version) != (18, 8):
            raise InputError(f"`opset` and `ir_version` are for ONNX files, not {self.target}")
        if self.target == "executorch" and self.format != "fp32":
            raise InputError(f"executorch files are fp32 here, not {self.format}")
        if self.target == "c" and self.format == "fp16":
            raise InputError("C has no portable fp16; take --format fp32 or int8")
        if self.policy_only and self.preset is not None:
            raise InputError(
                "a policy has no planner preset; leave out --policy-only or --preset"
            )


@dataclass(frozen=True, kw_only=True)
class ServeConfig(AtPort):
    """Serve an agent over the openpi WebSocket protocol, without torch."""

    checkpoint: Annotated[Path, POSITIONAL]
    """ONNX file of `tdmpc-opt export`, or safetensors checkpoint, of which the policy acts."""
    host: str = "127.0.0.1"
    """Address to listen at: this machine alone. 0.0.0.0 lets everyone in the network act."""
    port: int = 8000
    """Port; 0 takes any free one."""
    threads: int = 1
    """Threads of one action."""
    max_clients: int = 8
    """Connections at a time."""
    max_message_kb: int = 1024
    """Longest message in kilobytes; a longer one ends its connection."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.threads, self.max_clients, self.max_message_kb) < 1:
            raise InputError("`threads`, `max_clients` and `max_message_kb` must be at least 1")
