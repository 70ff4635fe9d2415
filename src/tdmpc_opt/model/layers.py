"""Layers of the world model: linear, LayerNorm and activation, alone or as an ensemble."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tdmpc_opt.model.hidden import is_fused, norm_mish

Activation = Literal["mish", "simnorm", "none"]


class Norm(nn.Module):
    """LayerNorm over the last axis, with one set of weights per ensemble head."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Normalise `x`; with heads, its first axis is theirs: [heads, batch, dim]."""
        width = (x.shape[-1],)
        if self.weight.ndim == 1:
            return functional.layer_norm(x, width, self.weight, self.bias)
        plain = functional.layer_norm(x, width)
        return torch.addcmul(self.bias.unsqueeze(1), plain, self.weight.unsqueeze(1))


class Dense(nn.Module):
    """Linear layer, then dropout, LayerNorm and activation where asked for.

    With `heads`, weights get a leading axis and all heads run as one batched product.

    Source:
        TD-MPC2, arXiv:2310.16828, section 3.1; SimNorm groups as in its equation 5.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        activation: Activation = "mish",
        heads: int | None = None,
        dropout: float = 0.0,
        simnorm_dim: int = 8,
    ) -> None:
        super().__init__()
        lead = () if heads is None else (heads,)
        self.weight = nn.Parameter(torch.empty(*lead, out_dim, in_dim))
        self.bias = nn.Parameter(torch.empty(*lead, out_dim))
        self.norm = None if activation == "none" else Norm((*lead, out_dim))
        self.activation = activation
        self.dropout = dropout
        self.simnorm_dim = simnorm_dim

    def initialize(self, generator: torch.Generator | None, *, zero: bool = False) -> None:
        """Draw the weights (truncated normal, std 0.02) or zero them; zero the bias."""
        nn.init.zeros_(self.bias)
        if zero:
            nn.init.zeros_(self.weight)
        else:
            nn.init.trunc_normal_(self.weight, std=0.02, generator=generator)

    def forward(self, x: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*out out_dim"]:
        """Map [*batch, in] to [*batch, out]; with heads, [heads, batch, in] to the same."""
        return self.finish(self.product(x))

    def product(self, x: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*out out_dim"]:
        """Multiply and add the bias."""
        if self.bias.ndim == 1:
            return functional.linear(x, self.weight, self.bias)
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.transpose(1, 2))

    def finish(self, x: Float[Tensor, "*batch out_dim"]) -> Float[Tensor, "*batch out_dim"]:
        """Apply what follows the product: dropout, LayerNorm and activation."""
        rate = self.dropout if self.training else 0.0
        if self.activation == "mish" and self.norm is not None:
            gain, shift = self.norm.weight, self.norm.bias
            if is_fused(x, gain):
                return norm_mish(x, gain, shift, rate)
        if rate:
            x = functional.dropout(x, rate, True)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation == "mish":
            return mish(x)
        if self.activation == "simnorm":
            return simnorm(x, self.simnorm_dim)
        return x


def mish(x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Return `x * tanh(log(1 + exp(x)))`.

    Without gradients on a CPU it is written with one exponential, which took under half the
    time of torch's kernel here and differs from it by rounding only.

    Source:
        Mish, arXiv:1908.08681.
    """
    graph = torch.is_grad_enabled() and x.requires_grad
    if x.device.type != "cpu" or x.dtype != torch.float32 or graph:
        return functional.mish(x)
    # tanh(log(t)) = 1 - 2 / (t * t + 1) with t = 1 + exp(x); an infinite t * t gives x itself.
    t = x.exp().add_(1.0)
    return torch.addcdiv(x, x, t.mul_(t).add_(1.0), value=-2)


def simnorm(x: Float[Tensor, "*batch dim"], group: int) -> Float[Tensor, "*batch dim"]:
    """Project each group of neighbours onto a simplex by a softmax."""
    grouped = x.unflatten(-1, (-1, group))
    return torch.softmax(grouped, dim=-1).flatten(-2)
