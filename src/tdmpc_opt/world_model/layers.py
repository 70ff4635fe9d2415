"""Layers of the world model: linear, LayerNorm and activation, alone or as an ensemble."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

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
        if self.dropout:
            x = functional.dropout(x, self.dropout, self.training)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation == "mish":
            return mish(x)
        if self.activation == "simnorm":
            return simnorm(x, self.simnorm_dim)
        return x


def mish(x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Return `x * tanh(log(1 + exp(x)))`.

    On a CPU it is written with one exponential for value and slope together, which took under
    half the time of torch's kernels here and differs from them by rounding only.

    Source:
        Mish, arXiv:1908.08681.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return functional.mish(x)
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = _Mish.apply(x)  # type: ignore[no-untyped-call]
        return result
    # tanh(log(t)) = 1 - 2 / (t * t + 1) with t = 1 + exp(x); an infinite t * t gives x itself.
    t = x.exp().add_(1.0)
    return torch.addcdiv(x, x, t.mul_(t).add_(1.0), value=-2)


class _Mish(torch.autograd.Function):
    """Mish that computes its slope on the way forward, from the same exponential."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # With e = exp(x), n = e (e + 2) and r = 1 / (n + 2): y = x n r, and
        # dy/dx = r (n + 4 (n - e) x r). Beyond 20 both are those of x in fp32.
        e = x.clamp(max=20.0).exp_()
        n = torch.add(e, 2.0).mul_(e)
        r = torch.add(n, 2.0).reciprocal_()
        xr = x * r
        slope = e.sub_(n).mul_(xr).mul_(-4.0).add_(n).mul_(r)
        ctx.save_for_backward(slope)
        return xr.mul_(n)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        product: Tensor = gradient * slope
        return product


def simnorm(x: Float[Tensor, "*batch dim"], group: int) -> Float[Tensor, "*batch dim"]:
    """Project each group of neighbours onto a simplex by a softmax."""
    grouped = x.unflatten(-1, (-1, group))
    return torch.softmax(grouped, dim=-1).flatten(-2)


def mlp(
    in_dim: int,
    hidden: int,
    out_dim: int,
    *,
    heads: int | None = None,
    dropout: float = 0.0,
    last: Activation = "none",
    simnorm_dim: int = 8,
) -> nn.Sequential:
    """Build two hidden layers and an output layer; dropout follows the first linear only."""
    return nn.Sequential(
        Dense(in_dim, hidden, heads=heads, dropout=dropout),
        Dense(hidden, hidden, heads=heads),
        Dense(hidden, out_dim, heads=heads, activation=last, simnorm_dim=simnorm_dim),
    )
