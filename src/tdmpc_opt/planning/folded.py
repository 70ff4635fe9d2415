"""A world model's heads for one plan: what does not change while planning is computed once.

The task embedding's share of each first layer becomes part of its bias, and so does that of
the latent all sequences start from. The numbers are those of `WorldModel`, up to rounding.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tdmpc_opt.world_model.layers import Dense
from tdmpc_opt.world_model.model import WorldModel


class FoldedHead:
    """Dynamics or reward network for the tasks of a batch: [z, e, a] without the e.

    Args:
        network: Layers of the head.
        embedding: Task embedding of each row, [batch, task].
        latent: Width of z.
    """

    def __init__(
        self, network: nn.Sequential, embedding: Float[Tensor, "batch task"], latent: int
    ) -> None:
        first = network[0]
        assert isinstance(first, Dense)
        self._first, self._rest = first, network[1:]
        of_z, of_task, of_action = first.weight.split(
            [latent, embedding.shape[1], first.weight.shape[1] - latent - embedding.shape[1]], 1
        )
        self._of_z, self._of_action = of_z, of_action
        self._bias = functional.linear(embedding, of_task, first.bias)  # (batch, hidden)
        self._joint = torch.cat([of_z, of_action], dim=1)

    def __call__(
        self, z: Float[Tensor, "samples batch latent"], action: Tensor
    ) -> Float[Tensor, "samples batch out"]:
        """Map latents and actions to the head's output."""
        return self._finish(torch.cat([z, action], dim=-1), self._joint, self._bias)

    def from_start(
        self, z: Float[Tensor, "batch latent"], action: Float[Tensor, "samples batch action"]
    ) -> Float[Tensor, "samples batch out"]:
        """Map the latent that all sequences of a row share, and their first actions."""
        bias = functional.linear(z, self._of_z) + self._bias
        return self._finish(action, self._of_action, bias)

    def _finish(self, x: Tensor, weight: Tensor, bias: Float[Tensor, "batch hidden"]) -> Tensor:
        if len(bias) == 1:  # one row to plan for: the product adds it for free
            x = functional.linear(x, weight, bias[0])
        else:
            x = functional.linear(x, weight) + bias
        return self._rest(self._first.finish(x))


class FoldedModel:
    """What planning asks of a world model, for the tasks of one batch.

    Args:
        model: World model in eval mode.
        task: Task ids [batch]; None for a single-task model.
        z: Latents that are planned from.
    """

    def __init__(
        self,
        model: WorldModel,
        task: Int[Tensor, " batch"] | None,
        z: Float[Tensor, "batch latent"],
    ) -> None:
        self._model = model
        embedding = model.embed(task, z)
        latent = model.config.latent_dim
        self._dynamics = FoldedHead(model.dynamics, embedding, latent)
        self._reward = FoldedHead(model.reward_head, embedding, latent)

    def step(
        self, z: Tensor, action: Float[Tensor, "samples batch action"]
    ) -> tuple[Float[Tensor, "samples batch latent"], Float[Tensor, "samples batch"]]:
        """Return the next latents and the rewards in environment units.

        Args:
            z: Latents [samples, batch, latent], or [batch, latent] where all samples of a row
                start from the same one.
            action: Actions of each sample.
        """
        if z.ndim == 2:
            next_z = self._dynamics.from_start(z, action)
            logits = self._reward.from_start(z, action)
        else:
            next_z, logits = self._dynamics(z, action), self._reward(z, action)
        return next_z, self._model.decode(logits).squeeze(-1)
