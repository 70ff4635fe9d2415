"""Encoder and policy as a device runs them: the task is a row of biases, nothing is sampled."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tdmpc_opt.planning.networks import Hidden
from tdmpc_opt.world_model.layers import Dense, simnorm
from tdmpc_opt.world_model.model import WorldModel


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
        self._encoder, self._head = _dense(model.encoder), _dense(model.policy_head)
        self._first = _Folded(self._encoder[0], config.obs_dim, model)
        self._second = _Folded(self._head[0], config.latent_dim, model)
        last = self._head[-1]
        self.register_buffer("_weight", last.weight[: config.action_dim].detach().clone())
        self.register_buffer("_bias", last.bias[: config.action_dim].detach().clone())
        self.register_buffer("_mask", model.action_mask.clone())

    def encode(
        self, obs: Float[Tensor, "batch width"], task: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch latent"]:
        """Map observations, padded or not, to latents."""
        obs = functional.pad(obs, (0, self._obs_dim - obs.shape[1]))
        x = self._norm_mish(self._encoder[0], self._first(obs, task))
        for dense in self._encoder[1:-1]:
            x = self._norm_mish(dense, functional.linear(x, dense.weight, dense.bias))
        last = self._encoder[-1]
        assert last.norm is not None, "latents are normalised"
        return simnorm(last.norm(functional.linear(x, last.weight, last.bias)), self._group)

    def forward(
        self, obs: Float[Tensor, "batch width"], task: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch action"]:
        """Map observations, padded or not, to actions in [-1, 1]; 0 in padded dimensions."""
        x = self._norm_mish(self._head[0], self._second(self.encode(obs, task), task))
        for dense in self._head[1:-1]:
            x = self._norm_mish(dense, functional.linear(x, dense.weight, dense.bias))
        mean = functional.linear(x, self.get_buffer("_weight"), self.get_buffer("_bias"))
        if task is not None:
            mean = mean * self.get_buffer("_mask")[task]
        return torch.tanh(mean)

    def _norm_mish(
        self, dense: Dense, x: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch dim"]:
        assert dense.norm is not None, "hidden layers are normalised"
        return self._hidden(x, dense.norm.weight, dense.norm.bias)


class _Folded(nn.Module):
    """A first layer of [state, task embedding] with a bias for each task."""

    def __init__(self, dense: Dense, state: int, model: WorldModel) -> None:
        super().__init__()
        weight, bias = dense.weight.detach(), dense.bias.detach()
        if model.task_embedding is None:
            biases = bias.unsqueeze(0)
        else:
            embedding = model.task_embedding.weight.detach().double()
            biases = embedding @ weight[:, state:].double().T + bias.double()
        self.register_buffer("_weight", weight[:, :state].clone())
        self.register_buffer("_biases", biases.to(weight.dtype))

    def forward(
        self, x: Float[Tensor, "batch state"], task: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch out"]:
        weight, biases = self.get_buffer("_weight"), self.get_buffer("_biases")
        if task is None:
            return functional.linear(x, weight, biases[0])
        return functional.linear(x, weight) + biases[task]


def _dense(network: nn.Sequential) -> list[Dense]:
    layers = [layer for layer in network if isinstance(layer, Dense)]
    assert len(layers) == len(network), "heads are made of Dense"
    return layers
