"""Encoder and policy as a device runs them: the task is a row of biases, nothing is sampled."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tdmpc_opt.model.layers import Dense, simnorm
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.planning.networks import Hidden

Task = Int[Tensor, " batch"] | None


class PolicyNetwork(nn.Module):
    """The mean action of the policy prior.

    The task embedding's share of each first layer is computed once for every task, and becomes
    a bias that the task selects; the outputs for standard deviations are left out. The numbers
    are those of `WorldModel`, up to rounding.

    Args:
        model: World model in eval mode, or its encoder and policy alone.
        hidden: How LayerNorm and Mish of the hidden layers are computed.

    Source:
        TD-MPC2, arXiv:2310.16828, section 3.
    """

    def __init__(self, model: WorldModel, hidden: Hidden) -> None:
        super().__init__()
        config = model.config
        self._obs_dim, self._group, self._hidden = config.obs_dim, config.simnorm_dim, hidden
        self._encoder = _layers(model.encoder, config.obs_dim, model)
        self._head = _layers(model.policy_head, config.latent_dim, model)
        self._head[-1].keep_outputs(config.action_dim)
        self._mask = model.action_mask.clone()

    def encode(
        self, obs: Float[Tensor, "batch width"], task: Task
    ) -> Float[Tensor, "batch latent"]:
        """Map observations, padded or not, to latents."""
        x = functional.pad(obs, (0, self._obs_dim - obs.shape[1]))
        *hidden, last = self._encoder
        for layer in hidden:
            x = self._hidden(layer(x, task), layer.gain, layer.shift)
        normed = functional.layer_norm(last(x, task), last.gain.shape, last.gain, last.shift)
        return simnorm(normed, self._group)

    def forward(
        self, obs: Float[Tensor, "batch width"], task: Task = None
    ) -> Float[Tensor, "batch action"]:
        """Map observations, padded or not, to actions in [-1, 1]; 0 in padded dimensions."""
        x = self.encode(obs, task)
        *hidden, last = self._head
        for layer in hidden:
            x = self._hidden(layer(x, task), layer.gain, layer.shift)
        mean = last(x, None)
        if task is not None:
            mean = mean * self._mask[task]
        return torch.tanh(mean)


class _Layer:
    """The linear part of a layer, and gain and shift of its norm, 1 and 0 where it has none.

    With a norm behind it, its outputs are centred: the norm would do it too, but an average
    that is large beside what matters costs digits.
    """

    def __init__(self, dense: Dense, inputs: int, embedding: Tensor | None) -> None:
        weight, biases = dense.weight.detach().double(), dense.bias.detach().double()[None]
        if embedding is not None:
            biases = biases + embedding.double() @ weight[:, inputs:].T
        weight = weight[:, :inputs]
        self.gain, self.shift = torch.ones(1), torch.zeros(1)
        if dense.norm is not None:
            weight = weight - weight.mean(0)
            biases = biases - biases.mean(1, keepdim=True)
            self.gain = dense.norm.weight.detach().clone()
            self.shift = dense.norm.bias.detach().clone()
        self.weight = weight.to(dense.weight.dtype)
        self.biases = biases.to(dense.weight.dtype)

    def keep_outputs(self, count: int) -> None:
        """Drop the outputs behind the first ones."""
        self.weight, self.biases = self.weight[:count].clone(), self.biases[:, :count].clone()

    def __call__(
        self, x: Float[Tensor, "batch inputs"], task: Task
    ) -> Float[Tensor, "batch out"]:
        if task is None or len(self.biases) == 1:
            return functional.linear(x, self.weight, self.biases[0])
        return functional.linear(x, self.weight) + self.biases[task]


def _layers(network: nn.Sequential, inputs: int, model: WorldModel) -> list[_Layer]:
    layers: list[_Layer] = []
    embedding = model.task_embedding.weight.detach() if model.task_embedding else None
    for dense in network:
        assert isinstance(dense, Dense), "heads are made of Dense"
        first = not layers
        width = inputs if first else dense.weight.shape[1]
        layers.append(_Layer(dense, width, embedding if first else None))
    return layers
