"""The policy as an ExecuTorch program for XNNPACK, the engine of phones and small boards."""

import importlib.util
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tdmpc_opt.errors import MissingDependencyError
from tdmpc_opt.export.metadata import Facts, metadata
from tdmpc_opt.model.fold import FoldedModel
from tdmpc_opt.model.world_model import WorldModel

Array = NDArray[np.float32]
Inputs = dict[str, NDArray[Any]]


class ExecutorchPolicy:
    """A program whose `forward` maps padded `obs` [1, obs] and `task` [1] to actions.

    Method `metadata` returns what the file says of itself as JSON.

    Args:
        model: World model in eval mode, or its encoder and policy alone.
        facts: What the file is to say of itself.

    Raises:
        MissingDependencyError: ExecuTorch is not installed.
    """

    def __init__(self, model: WorldModel, facts: Facts) -> None:
        if importlib.util.find_spec("executorch") is None:
            raise MissingDependencyError(
                'target executorch needs executorch: pip install "tdmpc-opt[executorch]"'
            )
        self._facts, self._width = facts, model.config.obs_dim
        self._names = ["obs"] if model.task_embedding is None else ["obs", "task"]
        zeros = {
            "obs": torch.zeros(1, model.config.obs_dim),
            "task": torch.zeros(1, dtype=torch.int64),
        }
        self._network = FoldedModel(model, centred=True).eval()
        self._example = tuple(zeros[name] for name in self._names)
        from executorch.runtime import Runtime

        # The method reads from the program, and that from the bytes: both have to live on.
        self._loaded = self.content({})
        self._read = Runtime.get().load_program(self._loaded)
        self._method = self._read.load_method("forward")

    def content(self, check: Mapping[str, Any]) -> bytes:
        """Return the file's bytes, with what the check found in it."""
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        says = json.dumps(metadata(self._facts, check))
        with torch.no_grad():
            program = torch.export.export(self._network, self._example)
        lowered = to_edge_transform_and_lower(  # it changes the program it is given
            program,
            partitioner=[XnnpackPartitioner()],
            constant_methods={"metadata": says},
        )
        content: bytes = lowered.to_executorch().buffer
        return content

    def run(self, inputs: Inputs) -> dict[str, Array]:
        """Run the program row by row."""
        short = self._width - inputs["obs"].shape[1]
        padded = inputs | {"obs": np.pad(inputs["obs"], ((0, 0), (0, short)))}
        columns = [torch.from_numpy(padded[name]) for name in self._names]
        rows = [
            self._method.execute([column[i : i + 1] for column in columns])[0].numpy().copy()
            for i in range(len(columns[0]))
        ]
        return {"action": np.concatenate(rows)}
