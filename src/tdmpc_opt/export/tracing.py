"""Torch modules as ONNX graphs."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import nn

OPSET = 18
"""Operator set of a graph that names no other, for the oldest engines."""


def traced(
    module: nn.Module,
    inputs: tuple[Any, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic: dict[str, Any] | None = None,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Trace a module, with its weights in the graph.

    Args:
        module: What the graph computes.
        inputs: Arguments whose shapes the graph takes and whose values do not matter.
        input_names: Names of the graph's inputs, tuples of tensors taken apart.
        output_names: Names of its outputs.
        dynamic: Axes that stay open, by the names of the module's arguments, in the form of
            `torch.export`.
        opset: Operator set of the graph.
    """
    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            module.eval(),
            inputs,
            input_names=list(input_names),
            output_names=list(output_names),
            opset_version=opset,
            dynamic_shapes=dynamic,
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "the exporter returns a program where no file is named"
    return program.model_proto


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress the exporter's messages that a user cannot act on.

    It lists operators that no planner has, copies a deprecated class of torch itself, and names
    an axis that several inputs share twice and then warns that the second name is unused.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
            warnings.filterwarnings("ignore", ".*axis name", UserWarning)
            yield
    finally:
        logger.setLevel(level)
