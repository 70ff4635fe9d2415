"""Writing an agent for engines that need no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tdmpc_opt.configs.common import OfCheckpoint, OfPart, OnTasks, ToOutput, WithObservations
from tdmpc_opt.errors import InputError

ExportTarget = Literal["onnx", "executorch", "c"]
ExportFormat = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig(OfCheckpoint, OnTasks, OfPart, ToOutput, WithObservations):
    """Write the policy or the whole planner for an engine, once it acts as torch does."""

    target: ExportTarget = "onnx"
    """Kind of file: ONNX, which OpenVINO reads too, ExecuTorch's .pte, or C99 source, for which
    the output is a folder."""
    format: ExportFormat = "fp32"
    """fp16 halves the file and computes in fp32; int8 computes the large products in int8."""
    preset: str | None = None
    """Planner budget by name; none means the full published budget."""
    result: Path | None = None
    """`tdmpc-opt evaluate` result of this checkpoint, whose score the file is to tell."""
    opset: int = 18
    """Operator set of an ONNX file, 18 to 20. 18 runs in onnxruntime from 1.15 on."""
    ir_version: int = 8
    """Version of an ONNX file's own format, 8 to 10. 8 runs in onnxruntime from 1.15 on."""
    tolerance: float | None = None
    """Largest difference from torch's actions that is written; of planned, fp16 and int8 ones
    9 of 10 have to keep it. None means for fp32 1e-4, or thrice the error of torch's own fp32
    where that is more (plans: 0.005); for fp16 0.02 (plans: 0.2); for int8 0.3 (plans: 1.0)."""

    def __post_init__(self) -> None:
        """Refuse what no file can be."""
        if self.tolerance is not None and not self.tolerance > 0:
            raise InputError(f"tolerance must be above 0, got {self.tolerance}")
        if not (18 <= self.opset <= 20 and 8 <= self.ir_version <= 10):
            raise InputError(
                f"opset must be in 18..20 and ir_version in 8..10, got {self.opset} and "
                f"{self.ir_version}"
            )
        if self.target != "onnx" and not self.policy_only:
            raise InputError(f"{self.target} files hold the policy; add --policy-only")
        if self.policy_only and self.preset is not None:
            raise InputError("a policy has no planner preset; leave out one of the two options")
