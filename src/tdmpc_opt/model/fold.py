"""A world model's networks as acting and planning compute them.

The inputs of a first layer are [input, task embedding, action]. The share of each task in its
product is computed once, as a bias per task; the share of the latent from which all sequences
of a plan start becomes part of the bias as well. The results equal those of `WorldModel` up to
rounding.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tdmpc_opt.model.layers import (
    Dense,
    layer_norm,
    norm_mish,
    simnorm,
    split_inputs,
    task_biases,
)
from tdmpc_opt.model.two_hot import mean_value
from tdmpc_opt.model.world_model import WorldModel, log_std_of

Task = Int[Tensor, " batch"] | None


class Layer(NamedTuple):
    """Weights of a linear layer; those of an ensemble have a leading axis."""

    weight: Tensor
    bias: Tensor
    """[out], or [tasks, out] of a first layer."""
    norm: tuple[Tensor, Tensor] | None
    """Gain and shift of the LayerNorm after it."""


class FoldedNetwork(NamedTuple):
    """Linear layers, all but the last followed by LayerNorm and Mish."""

    layers: tuple[Layer, ...]
    """Of the first, the inputs are [input, action]."""
    of_input: Tensor
    """Columns of the first layer's weight."""
    of_action: Tensor
    """Columns of the first layer's weight."""
    group: int
    """Length of a simplex of SimNorm, which follows where the last layer has a LayerNorm."""

    def bias_of(self, task: Task) -> Float[Tensor, "*members #batch hidden"]:
        """Return the first layer's bias of each row; one for all where there is one task."""
        table = self.layers[0].bias
        return table if task is None or table.shape[-2] == 1 else table.index_select(-2, task)

    def run(
        self, x: Float[Tensor, "*batch in_dim"], bias: Float[Tensor, "rows hidden"]
    ) -> Float[Tensor, "n out"]:
        """Apply the network to [input, action], or to actions where `bias` includes the input.

        The last axis of `x` before the features is that of the rows, of which each has its bias
        of the first layer. The leading axes of the outputs have become one.
        """
        weight = self.layers[0].weight
        weight = weight if x.shape[-1] == weight.shape[-1] else self.of_action
        flat = x.flatten(0, -2)
        if bias.shape[0] == 1:  # the product adds it at no cost
            return self.finish(functional.linear(flat, weight, bias[0]))
        product = functional.linear(flat, weight)
        return self.finish((product.unflatten(0, x.shape[:-1]) + bias).flatten(0, -2))

    def finish(self, x: Float[Tensor, "n hidden"]) -> Float[Tensor, "n out"]:
        """Apply everything after the first product."""
        for before, layer in zip(self.layers, self.layers[1:], strict=False):
            assert before.norm is not None, "the last layer alone may lack a LayerNorm"
            x = functional.linear(norm_mish(x, *before.norm), layer.weight, layer.bias)
        norm = self.layers[-1].norm
        return x if norm is None else simnorm(layer_norm(x, *norm), self.group)

    def member(self, index: int | Int[Tensor, "1"]) -> "FoldedNetwork":
        """Return one member of an ensemble."""

        def pick(stacked: Tensor) -> Tensor:
            if isinstance(index, int):
                return stacked[index]
            return stacked.index_select(0, index)[0]

        layers = []
        for weight, bias, norm in self.layers:
            picked = None if norm is None else (pick(norm[0]), pick(norm[1]))
            layers.append(Layer(pick(weight), pick(bias), picked))
        parts = pick(self.of_input), pick(self.of_action)
        return FoldedNetwork(tuple(layers), *parts, self.group)

    def first_outputs(self, count: int) -> "FoldedNetwork":
        """Return the network without the outputs after the first ones."""
        *before, last = self.layers
        short = Layer(last.weight[:count].clone(), last.bias[:count].clone(), last.norm)
        return self._replace(layers=(*before, short))


class Shares(NamedTuple):
    """Biases of the first layers for each row: those of dynamics, reward and policy.

    `at_start` includes the share of the latent that planning starts from. `later` has that of
    the termination head as well, where there is one: what it looks at comes after an action.
    """

    later: tuple[Float[Tensor, "batch hidden"], ...]
    at_start: tuple[Float[Tensor, "batch hidden"], ...]
    q: Float[Tensor, "members batch hidden"]


class FoldedModel(nn.Module):
    """A world model for acting and planning, its weights shared with it or copied.

    Quantised weights are copied as floats, since a plan uses each hundreds of times. Of a large
    Q ensemble only the members that are drawn are computed.

    Args:
        model: World model in eval mode, or its encoder and policy alone. Later changes of its
            weights may not show here.
        centred: Subtract the mean over the outputs from weights and biases before a LayerNorm.
            Results stay equal, but engines whose LayerNorm subtracts two averages lose fewer
            digits. All weights are copied.

    Source:
        TD-MPC2, arXiv:2310.16828, section 3.
    """

    def __init__(self, model: WorldModel, *, centred: bool = False) -> None:
        super().__init__()
        config = model.config
        self._obs_dim = config.obs_dim
        self.episodic = config.episodic
        """Whether states that end an episode are predicted."""
        self._bins, self._mask, self._discount = model.bins, model.action_mask, model.discount
        embedding = None if model.task_embedding is None else model.task_embedding.weight

        def folded(network: nn.Sequential, inputs: int) -> FoldedNetwork:
            layers = [_layer(dense, centred=centred) for dense in network]
            first = layers[0]
            width = 0 if embedding is None else embedding.shape[1]
            of_input, of_task, of_action = split_inputs(first.weight, inputs, width)
            weight, table = of_input, first.bias.unsqueeze(-2)
            if of_action.shape[-1]:
                weight = torch.cat([of_input, of_action], dim=-1)
            if embedding is not None:
                parts = (first.bias, of_task, embedding.detach())
                table = task_biases(*(part.double() for part in parts)).to(weight.dtype)
            layers[0] = Layer(weight, table, first.norm)
            return FoldedNetwork(tuple(layers), of_input, of_action, config.simnorm_dim)

        self._encoder = folded(model.encoder, config.obs_dim)
        self._policy = folded(model.policy_head, config.latent_dim)
        self._mean = self._policy.first_outputs(config.action_dim)
        if model.can_plan:
            self._dynamics = folded(model.dynamics, config.latent_dim)
            self._reward = folded(model.reward_head, config.latent_dim)
            if config.episodic:
                self._termination = folded(model.termination_head, config.latent_dim)
            self._ensemble = folded(model.q_ensemble, config.latent_dim)
            self._members = [self._ensemble.member(index) for index in range(config.num_q)]

    def forward(
        self, obs: Float[Tensor, "batch width"], task: Task = None
    ) -> Float[Tensor, "batch action"]:
        """Return the policy's mean action in [-1, 1]; 0 in padded dimensions."""
        mean = self._mean.run(self.encode(obs, task), self._mean.bias_of(task))
        return torch.tanh(mean if task is None else mean * self._mask[task])

    def encode(
        self, obs: Float[Tensor, "batch width"], task: Task
    ) -> Float[Tensor, "batch latent"]:
        """Map observations, padded or not, to latents."""
        padded = functional.pad(obs, (0, self._obs_dim - obs.shape[1]))
        return self._encoder.run(padded, self._encoder.bias_of(task))

    def mask(self, task: Task) -> Float[Tensor, "#batch action"]:
        """Return 1 for real action dimensions and 0 for padded ones; one row without ids."""
        return self._mask[:1] if task is None else self._mask[task]

    def discount(self, task: Task) -> Float[Tensor, " #batch"]:
        """Return the discount per step; one number without ids."""
        return self._discount[:1] if task is None else self._discount[task]

    def shares(self, z: Float[Tensor, "batch latent"], task: Task) -> Shares:
        """Compute the shares of the task and of the first latent in the first layers."""
        heads = (self._dynamics, self._reward, self._policy)
        every = (*heads, self._termination) if self.episodic else heads
        later = tuple(head.bias_of(task).expand(z.shape[0], -1) for head in every)
        at_start = tuple(
            functional.linear(z, head.of_input) + bias
            for head, bias in zip(heads, later, strict=False)
        )
        return Shares(later, at_start, self._ensemble.bias_of(task).expand(-1, z.shape[0], -1))

    def step(
        self,
        shares: Shares,
        z: Float[Tensor, "samples batch latent"] | None,
        action: Float[Tensor, "samples batch action"],
    ) -> tuple[Float[Tensor, "samples batch latent"], Float[Tensor, "samples batch"]]:
        """Return the next latents, and the rewards in environment units.

        `z` is None where all samples of a row are at its first latent.
        """
        biases = shares.at_start if z is None else shares.later
        x = action if z is None else torch.cat([z, action], dim=-1)
        next_z = self._dynamics.run(x, biases[0])
        reward = mean_value(self._reward.run(x, biases[1]), self._bins)
        return next_z.unflatten(0, action.shape[:2]), reward.unflatten(0, action.shape[:2])

    def goes_on(
        self, shares: Shares, z: Float[Tensor, "samples batch latent"]
    ) -> Float[Tensor, "samples batch"]:
        """Return 1 where a latent after an action does not end the episode, by prediction.

        Elsewhere it is 0.
        """
        logit = self._termination.run(z, shares.later[3])
        return (logit <= 0).to(z.dtype).view(z.shape[:2])

    def act(
        self,
        shares: Shares,
        z: Float[Tensor, "samples batch latent"] | None,
        noise: Float[Tensor, "samples batch action"],
        mask: Float[Tensor, "batch action"],
    ) -> Float[Tensor, "samples batch action"]:
        """Sample the policy's actions in [-1, 1] by standard normal noise.

        `z` is None where all samples of a row are at its first latent. The mask is 0 for padded
        action dimensions.
        """
        if z is None:
            raw = self._policy.finish(shares.at_start[2])
        else:
            raw = self._policy.run(z, shares.later[2])
        mean, log_std = raw.unflatten(0, (-1, mask.shape[0])).chunk(2, dim=-1)
        return torch.tanh(mean + noise * log_std_of(log_std).exp()) * mask

    def q_mean(
        self,
        shares: Shares,
        z: Float[Tensor, "samples batch latent"],
        action: Float[Tensor, "samples batch action"],
        heads: Int[Tensor, "2 #batch"],
    ) -> Float[Tensor, "samples batch"]:
        """Average the returns that two members of the ensemble predict, in environment units.

        `heads` are their numbers for each row; one column is for all rows.
        """
        x = torch.cat([z, action], dim=-1)
        members, biases = self._members, list(shares.q.unbind(0))
        if len(members) > 2 and heads.shape[1] == 1:  # all rows have the same two
            members = [self._ensemble.member(index) for index in heads]
            biases = [shares.q.index_select(0, index)[0] for index in heads]
        values = [
            mean_value(member.run(x, bias), self._bins)
            for member, bias in zip(members, biases, strict=True)
        ]
        q = torch.stack(values).unflatten(1, action.shape[:2])
        if len(values) > 2:
            q = q.gather(0, heads.unsqueeze(1).expand(-1, q.shape[1], -1))
        return q.mean(0)


def _layer(dense: nn.Module, *, centred: bool) -> Layer:
    assert isinstance(dense, Dense), "networks consist of Dense"
    weight, bias = dense.weight.detach(), dense.bias.detach()
    if dense.norm is None:
        return Layer(weight, bias, None)
    if centred:
        exact, shift = weight.double(), bias.double()
        weight = (exact - exact.mean(-2, keepdim=True)).to(weight.dtype)
        bias = (shift - shift.mean(-1, keepdim=True)).to(bias.dtype)
    return Layer(weight, bias, (dense.norm.weight.detach(), dense.norm.bias.detach()))
