"""What configs of several commands share."""

from typing import Literal

Mode = Literal["planner", "policy"]
Device = Literal["auto", "cpu", "cuda", "mps"]
EngineName = Literal["eager", "compile", "onnxruntime", "openvino"]
EnginePrecision = Literal["fp32", "int8"]

COLLECTION_SEED = 1_000_000
"""First environment seed of experts, collection and relabelling; evaluation stays below."""
