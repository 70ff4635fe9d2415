"""The policy of an agent as an ONNX graph for the browser."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tdmpc_opt.planning.graph import OPSET, quantized
from tdmpc_opt.world_model.model import WorldModel


def policy_graph(model: WorldModel, *, quantize: bool = False) -> onnx.ModelProto:
    """Trace the policy: `obs` [1, obs] and `task` [1] to `action` [1, action], all padded.

    Args:
        model: World model in eval mode, or its encoder and policy alone.
        quantize: Compute the large products in int8.
    """
    obs = torch.zeros(1, model.config.obs_dim)
    task = torch.zeros(1, dtype=torch.int64)
    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            _Policy(model).eval(),
            (obs, task),
            input_names=["obs", "task"],
            output_names=["action"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "the exporter returns a program where no file is named"
    graph = program.model_proto
    return quantized(graph) if quantize else graph


class _Policy(nn.Module):
    def __init__(self, model: WorldModel) -> None:
        super().__init__()
        self._model = model

    def forward(
        self, obs: Float[Tensor, "batch obs"], task: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch action"]:
        z = self._model.encode(obs, task)
        noise = z.new_zeros(len(z), self._model.config.action_dim)
        return self._model.policy(z, task, noise).mean


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter from reporting that it lacks operators no policy has."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
