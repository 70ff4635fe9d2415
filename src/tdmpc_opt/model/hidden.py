"""What follows the product of a hidden layer on a CPU: dropout, LayerNorm and Mish as one.

On one core these passes over memory cost as much as the products. Mish takes one exponential
and two more passes; the slope is made on the way, so that the way back is one pass and
LayerNorm's own kernel. Dropout draws the few that it drops, not a number for each it keeps.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

EPS = 1e-5
"""LayerNorm's, as torch has it."""


def layer_norm(
    x: Float[Tensor, "*batch dim"],
    gain: Float[Tensor, "*heads dim"],
    shift: Float[Tensor, "*heads dim"],
) -> Float[Tensor, "*batch dim"]:
    """Normalise the last axis; where gain and shift have an axis of heads, x begins with it."""
    width = (x.shape[-1],)
    if gain.ndim == 1:
        return functional.layer_norm(x, width, gain, shift, EPS)
    plain = functional.layer_norm(x, width, eps=EPS)
    return torch.addcmul(shift.unsqueeze(1), plain, gain.unsqueeze(1))


def norm_mish(
    x: Float[Tensor, "*batch dim"],
    gain: Float[Tensor, "*heads dim"],
    shift: Float[Tensor, "*heads dim"],
    rate: float = 0.0,
) -> Float[Tensor, "*batch dim"]:
    """Apply dropout, LayerNorm and Mish, `x * tanh(log(1 + exp(x)))`.

    Traced for an engine it is written in operators that every engine has.

    Args:
        x: Where gain and shift have an axis of heads, it is the first here as well.
        gain: LayerNorm's weight.
        shift: LayerNorm's bias.
        rate: Of dropout.

    Source:
        Mish, arXiv:1908.08681.
    """
    if x.device.type != "cpu" or not x.dtype == gain.dtype == torch.float32:
        kept = functional.dropout(x, rate, True) if rate else x
        return functional.mish(layer_norm(kept, gain, shift))
    dropped = draw_positions(x.numel(), rate) if rate else None
    # Instead of enlarging what is kept: LayerNorm divides by it again, but for eps.
    eps = EPS * (1 - rate) ** 2
    if torch.is_grad_enabled() and (x.requires_grad or gain.requires_grad):
        result: Tensor = _NormMish.apply(x, gain, shift, dropped, eps)  # type: ignore[no-untyped-call]
        return result
    x = _without(x, dropped)
    if gain.ndim == 1:
        return _mish_of_norm(x, gain.neg(), shift.neg(), eps)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for rows, into, g, s in zip(x, out, *_parameters(gain, shift), strict=True):
        _mish_of_norm(rows, g, s, eps, into)
    return out


def _mish_of_norm(
    x: Tensor, gain: Tensor, shift: Tensor, eps: float, out: Tensor | None = None
) -> Tensor:
    """Return LayerNorm and Mish, given LayerNorm's negated weights."""
    v = functional.layer_norm(x, x.shape[-1:], gain, shift, eps)
    share = torch.sigmoid(v)
    share = torch.addcmul(_one(x), share, share, out=share)
    return torch.addcdiv(v, v, share, value=-2, out=v if out is None else out)


def draw_positions(count: int, rate: float) -> Int[Tensor, " dropped"]:
    """Draw which of `count` numbers are dropped, in ascending order, by torch's generator.

    The gaps between them are drawn, of which there are few at the rates that are in use.
    """
    parts, last = [], -1
    expected = count * rate
    while last < count:
        gaps = torch.empty(int(expected + 6 * expected**0.5) + 16, dtype=torch.int64)
        positions = gaps.geometric_(rate).cumsum_(0).add_(last)
        parts.append(positions)
        last = int(positions[-1])
    drawn = torch.cat(parts)
    return drawn[drawn < count]


class _NormMish(torch.autograd.Function):
    """The three with their gradient; the positions that are dropped are given."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, dropped: Tensor | None, eps: float
    ) -> Tensor:
        # LayerNorm gives v = -x. With s = sigmoid(v) = 1 / (1 + exp(x)) and d = 1 + s^2, which
        # lies between 1 and 2, Mish is v - 2 v / d, and its slope 2 c - 1 where
        # c = (1 - 2 v s (1 - s) s / d) / d.
        x = _without(x, dropped)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        kept = []
        heads = _heads(x, gain), _heads(out, gain)
        for rows, into, g, s in zip(*heads, *_parameters(gain, shift), strict=True):
            v, mean, rstd = torch.native_layer_norm(rows, rows.shape[-1:], g, s, eps)
            share = torch.sigmoid(v)
            d = torch.addcmul(_one(x), share, share)
            torch.addcdiv(v, v, d, value=-2, out=into)
            c = torch.ops.aten.sigmoid_backward.grad_input(v, share, grad_input=v)
            c = torch.addcmul(_one(x), c, share.div_(d), value=-2, out=c).div_(d)
            kept += [c, mean, rstd]
        ctx.save_for_backward(x, gain, shift, dropped, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, shift, dropped, *kept = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[:3])
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        heads = _heads(x, gain), _heads(gradient, gain)
        for index, (rows, upstream, g, s) in enumerate(
            zip(*heads, *_parameters(gain, shift), strict=True)
        ):
            c, mean, rstd = kept[3 * index : 3 * index + 3]
            by_v = torch.addcmul(upstream, upstream, c, value=-2)
            found.append(
                torch.ops.aten.native_layer_norm_backward(
                    by_v, rows, rows.shape[-1:], mean, rstd, g, s, needed
                )
            )
        by_x, by_gain, by_shift = (
            _joined(parts) if wanted else None
            for parts, wanted in zip(zip(*found, strict=True), needed, strict=True)
        )
        if by_x is not None:
            by_x = by_x.view(x.shape)
            if dropped is not None:
                by_x.view(-1).index_fill_(0, dropped, 0.0)
        if by_gain is not None:
            by_gain = by_gain.neg_().view(gain.shape)
        if by_shift is not None:
            by_shift = by_shift.neg_().view(shift.shape)
        return by_x, by_gain, by_shift, None, None


def _heads(x: Tensor, gain: Tensor) -> tuple[Tensor, ...]:
    """Return the rows of each head."""
    return x.unbind(0) if gain.ndim > 1 else (x,)


def _parameters(gain: Tensor, shift: Tensor) -> tuple[tuple[Tensor, ...], ...]:
    # Of the opposite sign: LayerNorm then gives -x, of which the sigmoid is wanted.
    return _heads(gain.neg(), gain), _heads(shift.neg(), gain)


def _without(x: Tensor, dropped: Tensor | None) -> Tensor:
    if dropped is None:
        return x
    return x.reshape(-1).index_fill(0, dropped, 0.0).view(x.shape)


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts)


def _one(x: Tensor) -> Tensor:
    return x.new_ones(())
