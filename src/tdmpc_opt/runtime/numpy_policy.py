"""Encoder and policy in numpy, for one task at a time."""

import math

import numpy as np
from numpy.typing import NDArray

from tdmpc_opt.runtime.weights import Weights

Array = NDArray[np.float32]
_EPS = np.float32(1e-5)  # of torch's LayerNorm
_SAFE = 40.0  # up to here the square of an exponential is finite in fp32


class NumpyPolicy:
    """The mean action of the policy prior in one task.

    The embedding's share of each first layer is part of its bias, and padding is left out, so
    that an action costs what the task's own network costs. Weights are float32 whatever the
    file holds: numpy multiplies integers slower than it would turn them to floats, and that
    takes longer than the product. A call writes to arrays of its own alone, so that threads
    may share a policy.

    Args:
        weights: The agent.
        task: Task id.

    Source:
        TD-MPC2, arXiv:2310.16828, section 3.
    """

    def __init__(self, weights: Weights, task: int) -> None:
        own = weights.tasks.tasks[task]
        table = weights.full("task_embedding.weight")
        embedding = np.zeros(0, np.float32) if table is None else _unit(table[task])
        self._encoder = _layers("encoder", weights, own.obs_dim, embedding)
        self._head = _layers("policy_head", weights, weights.latent_dim, embedding)
        self._group = weights.simnorm_dim
        self._head[-1].keep_outputs(own.action_dim)

    def __call__(self, obs: Array) -> Array:
        """Map observations [obs] or [B, obs] of the task to mean actions in [-1, 1]."""
        x = obs
        for layer in self._encoder[:-1]:
            x = layer.mish(layer.normed(x))
        x = self._encoder[-1].normed(x)
        # LayerNorm bounds the inputs, so their exponentials do not overflow.
        groups = np.exp(x).reshape(-1, self._group)
        groups /= np.add.reduce(groups, 1, keepdims=True)
        x = groups.reshape(x.shape)
        for layer in self._head[:-1]:
            x = layer.mish(layer.normed(x))
        action: Array = np.tanh(self._head[-1].product(x))
        return action


class _Layer:
    """Linear layer, and LayerNorm where it has one."""

    def __init__(self, weight: Array, bias: Array, norm: tuple[Array, Array] | None) -> None:
        self._norm = norm
        self._bounded = norm is not None and _bound(*norm) < _SAFE
        # Centred over the outputs, the product has mean 0 and LayerNorm need not subtract it.
        if norm is not None:
            weight, bias = weight - weight.mean(0), bias - bias.mean()
        self._weight, self._bias = np.ascontiguousarray(weight.T), bias
        self._share = np.float32(1 / len(bias))

    def keep_outputs(self, count: int) -> None:
        """Drop the outputs after the first ones."""
        self._weight = np.ascontiguousarray(self._weight[:, :count])
        self._bias = self._bias[:count]

    def product(self, x: Array) -> Array:
        """Return the linear part."""
        y: Array = x @ self._weight
        y += self._bias
        return y

    def normed(self, x: Array) -> Array:
        """Return the linear part through LayerNorm."""
        assert self._norm is not None, "the last layer of the policy alone has none"
        scale, shift = self._norm
        y = self.product(x)
        if y.ndim == 1:  # of one row, a call into numpy costs more than the arithmetic
            y *= 1 / math.sqrt(y.dot(y) * self._share + _EPS)
        else:
            power = np.einsum("...i,...i->...", y, y) * self._share
            y *= (1 / np.sqrt(power + _EPS))[..., None]
        y *= scale
        y += shift
        return y

    def mish(self, y: Array) -> Array:
        """Apply Mish to what `normed` returned, in its place."""
        # With e = exp(y) and n = e (e + 2): y n / (n + 2); beyond 20 that is y in fp32.
        e = np.exp(y if self._bounded else np.minimum(y, np.float32(20)))
        n = e + np.float32(2)
        n *= e
        y *= n
        n += np.float32(2)
        y /= n
        return y


def _layers(part: str, weights: Weights, columns: int, embedding: Array) -> list[_Layer]:
    """Return the layers of a network, with the task's share in the first one's bias."""
    layers: list[_Layer] = []
    while (weight := weights.full(name := f"{part}.{len(layers)}.weight")) is not None:
        name = name.removesuffix("weight")
        bias, scale, shift = (
            weights.full(name + kind) for kind in ("bias", "norm.weight", "norm.bias")
        )
        assert bias is not None, "read_weights checks that it is there"
        if not layers:
            of_task = weight[:, weight.shape[1] - len(embedding) :]
            bias = bias + of_task @ embedding
            weight = weight[:, :columns]
        norm = None if scale is None or shift is None else (scale, shift)
        layers.append(_Layer(weight, bias, norm))
    return layers


def _bound(scale: Array, shift: Array) -> float:
    """Return what no output of a LayerNorm exceeds."""
    return float(np.max(np.abs(scale) * math.sqrt(len(scale)) + np.abs(shift)))


def _unit(row: Array) -> Array:
    norm = np.linalg.norm(row)
    return row / (norm + np.float32(1e-7)) if norm > 1 else row
