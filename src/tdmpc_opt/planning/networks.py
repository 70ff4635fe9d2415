"""A world model's heads as planning calls them: what stays the same is computed once.

A head's first layer sees [z, e, a]. The task embedding's share of it becomes part of its bias,
and so does that of the latent that all sequences start from. The policy gives its action and
no density, and of a large Q ensemble only the members that were drawn are computed. The numbers
are those of `WorldModel`, up to rounding.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tdmpc_opt.model.layers import Dense, mish, simnorm
from tdmpc_opt.model.two_hot import symexp
from tdmpc_opt.model.world_model import WorldModel, log_std_of

Hidden = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Applies LayerNorm with a gain and a shift, then Mish."""
Part = Literal["z", "action", "z_action"]
"""Which of a head's inputs are multiplied; the others' share is in the bias."""


def norm_mish(
    x: Float[Tensor, "n dim"], gain: Float[Tensor, " dim"], shift: Float[Tensor, " dim"]
) -> Float[Tensor, "n dim"]:
    """Apply LayerNorm and Mish as torch runs them fastest."""
    return mish(functional.layer_norm(x, x.shape[-1:], gain, shift))


def norm_mish_by_sigmoid(
    x: Float[Tensor, "n dim"], gain: Float[Tensor, " dim"], shift: Float[Tensor, " dim"]
) -> Float[Tensor, "n dim"]:
    """Apply them in the fewest passes, for engines whose Mish is slow or not fused.

    With y = -x and q = sigmoid(y)^2, which is 1 / (1 + exp(x))^2, it is y (q - 1) / (q + 1).
    """
    y = functional.layer_norm(x, x.shape[-1:], -gain, -shift)
    root = torch.sigmoid(y)
    q = root * root
    return y * ((q - 1) / (q + 1))


class Shares(NamedTuple):
    """Biases of the heads' first layers for each row: those of dynamics, reward and policy.

    `at_start` includes the share of the latent that planning starts from.
    """

    later: tuple[Float[Tensor, "batch hidden"], ...]
    at_start: tuple[Float[Tensor, "batch hidden"], ...]
    q: Float[Tensor, "members batch hidden"]


class PlannerNetworks:
    """The heads of a world model, their weights shared with it or copied.

    Quantised weights are copied as floats: each is used hundreds of times a plan. The model
    itself keeps them small.

    Args:
        model: World model in eval mode. Later changes of its weights may not show here.
        hidden: How LayerNorm and Mish of the hidden layers are computed.
    """

    def __init__(self, model: WorldModel, hidden: Hidden | None = None) -> None:
        self.model = model
        self._hidden = hidden or norm_mish
        sizes = (model.config.latent_dim, model.config.task_dim)
        self._dynamics = _split(model.dynamics, sizes, "latent")
        self._reward = _split(model.reward_head, sizes, "value")
        self._policy = _split(model.policy_head, sizes, "action")
        self._ensemble = _split(model.q_ensemble, sizes, "value")
        self._members = [self._ensemble.member(i) for i in range(model.config.num_q)]

    def shares(
        self, z: Float[Tensor, "batch latent"], task: Int[Tensor, " batch"] | None
    ) -> Shares:
        """Compute what the task and the first latent add in the heads' first layers."""
        embedding = self.model.embed(task, z)
        heads = (self._dynamics, self._reward, self._policy)
        later = tuple(head.of_task(embedding) for head in heads)
        at_start = tuple(
            functional.linear(z, head.z) + bias for head, bias in zip(heads, later, strict=True)
        )
        q = torch.stack([member.of_task(embedding) for member in self._members])
        return Shares(later, at_start, q)

    def step(
        self,
        shares: Shares,
        z: Float[Tensor, "samples batch latent"] | None,
        action: Float[Tensor, "samples batch action"],
    ) -> tuple[Float[Tensor, "samples batch latent"], Float[Tensor, "samples batch"]]:
        """Return the next latents, and the rewards in environment units.

        Args:
            shares: First-layer biases.
            z: Latents; None where all samples of a row are at its first latent.
            action: Actions of each sample.
        """
        part: Part = "action" if z is None else "z_action"
        biases = shares.at_start if z is None else shares.later
        x = action if z is None else torch.cat([z, action], dim=-1)
        next_z = self._run(self._dynamics, x, part, biases[0])
        reward = symexp(self._run(self._reward, x, part, biases[1]))
        shape = action.shape[:2]
        return next_z.unflatten(0, shape), reward.unflatten(0, shape)

    def act(
        self,
        shares: Shares,
        z: Float[Tensor, "samples batch latent"] | None,
        noise: Float[Tensor, "samples batch action"],
        mask: Float[Tensor, "batch action"],
    ) -> Float[Tensor, "samples batch action"]:
        """Sample the policy at latents; None is each row's first latent."""
        if z is None:
            raw = self._policy.finish(shares.at_start[2], self._hidden)
        else:
            raw = self._run(self._policy, z, "z", shares.later[2])
        mean, log_std = raw.unflatten(0, (-1, mask.shape[0])).chunk(2, dim=-1)
        return torch.tanh(mean + noise * log_std_of(log_std).exp()) * mask

    def q_mean(
        self,
        shares: Shares,
        z: Float[Tensor, "samples batch latent"],
        action: Float[Tensor, "samples batch action"],
        heads: Int[Tensor, "2 #batch"],
    ) -> Float[Tensor, "samples batch"]:
        """Average the returns that two members of the ensemble predict for each row."""
        x = torch.cat([z, action], dim=-1)
        drawn, biases = self._drawn(shares, heads)
        values = [
            symexp(self._run(head, x, "z_action", bias))
            for head, bias in zip(drawn, biases, strict=True)
        ]
        q = torch.stack(values).unflatten(1, action.shape[:2])
        if len(values) > 2:
            q = q.gather(0, heads.unsqueeze(1).expand(-1, q.shape[1], -1))
        return q.mean(0)

    def _drawn(
        self, shares: Shares, heads: Int[Tensor, "2 #batch"]
    ) -> tuple[list["Head"], list[Tensor]]:
        """Return those members that were drawn, or all where rows differ, and their biases."""
        if len(self._members) > 2 and heads.shape[1] == 1:
            drawn = [self._ensemble.member(index) for index in heads]
            return drawn, [shares.q.index_select(0, index)[0] for index in heads]
        return self._members, list(shares.q.unbind(0))

    def _run(
        self,
        head: "Head",
        x: Float[Tensor, "samples batch in_dim"],
        part: Part,
        bias: Float[Tensor, "batch hidden"],
    ) -> Tensor:
        """Return what a head gives, samples and rows as one axis."""
        raw = head.finish(_linear(x, getattr(head, part), bias), self._hidden)
        if head.gives == "latent":
            gain, shift = head.layers[-1].norm
            normed = functional.layer_norm(raw, raw.shape[-1:], gain, shift)
            return simnorm(normed, self.model.config.simnorm_dim)
        if head.gives == "value":
            # A sum of products: as one with a vector it took ONNX Runtime five times as long.
            return (torch.softmax(raw, dim=-1) * self.model.bins).sum(-1)
        return raw


class Layer(NamedTuple):
    """Weights of a dense layer; those of an ensemble have a leading axis."""

    weight: Tensor
    bias: Tensor
    norm: tuple[Tensor, ...]
    """Gain and shift of its LayerNorm; empty where it has none."""


class Head(NamedTuple):
    """A head's layers, and the first one's weights by what they multiply."""

    z: Tensor
    task: Tensor
    action: Tensor
    z_action: Tensor
    layers: tuple[Layer, ...]
    gives: Literal["latent", "value", "action"]
    """What its last product becomes: SimNorm's latent, the mean of its bins in symlog space, or
    the policy's mean and spread as they are."""

    def of_task(self, embedding: Float[Tensor, "batch task"]) -> Tensor:
        """Return the first layer's bias with the task embedding's share in it."""
        if not self.task.shape[-1]:  # ONNX Runtime before 1.18 refuses a product of no columns
            return self.layers[0].bias.expand(embedding.shape[0], -1)
        return functional.linear(embedding, self.task, self.layers[0].bias)

    def finish(self, x: Float[Tensor, "n hidden"], hidden: Hidden) -> Float[Tensor, "n out"]:
        """Apply what follows the first product, up to the last one."""
        x = hidden(x, *self.layers[0].norm)
        for layer in self.layers[1:-1]:
            x = hidden(functional.linear(x, layer.weight, layer.bias), *layer.norm)
        return functional.linear(x, self.layers[-1].weight, self.layers[-1].bias)

    def member(self, index: int | Int[Tensor, "1"]) -> "Head":
        """Return one head of an ensemble."""
        layers = tuple(
            Layer(
                _pick(layer.weight, index),
                _pick(layer.bias, index),
                tuple(_pick(part, index) for part in layer.norm),
            )
            for layer in self.layers
        )
        z, task = _pick(self.z, index), _pick(self.task, index)
        action, z_action = _pick(self.action, index), _pick(self.z_action, index)
        return Head(z, task, action, z_action, layers, self.gives)


def _pick(stacked: Tensor, index: int | Int[Tensor, "1"]) -> Tensor:
    return stacked[index] if isinstance(index, int) else stacked.index_select(0, index)[0]


def _split(
    network: nn.Sequential, sizes: tuple[int, int], gives: Literal["latent", "value", "action"]
) -> Head:
    layers = tuple(_layer(dense) for dense in network)
    weight = layers[0].weight
    latent, task = sizes
    z, of_task, action = weight.tensor_split([latent, latent + task], dim=-1)
    return Head(z, of_task, action, torch.cat([z, action], dim=-1), layers, gives)


def _layer(dense: nn.Module) -> Layer:
    assert isinstance(dense, Dense)
    norm = () if dense.norm is None else (dense.norm.weight, dense.norm.bias)
    return Layer(
        dense.weight.detach(), dense.bias.detach(), tuple(part.detach() for part in norm)
    )


def _linear(
    x: Float[Tensor, "samples batch in_dim"],
    weight: Float[Tensor, "out in_dim"],
    bias: Float[Tensor, "batch out"],
) -> Float[Tensor, "n out"]:
    """Multiply and add a bias of each row's own; samples and rows become one axis."""
    if bias.shape[0] == 1:  # one row to plan for: the product adds it for free
        return functional.linear(x.flatten(0, 1), weight, bias[0])
    product = functional.linear(x.flatten(0, 1), weight)
    return (product.unflatten(0, x.shape[:2]) + bias).flatten(0, 1)
