"""Layers of the world model and networks of them, alone or as an ensemble.

On one core of a CPU the passes over memory after the product of a hidden layer cost as much as
the product. Dropout, LayerNorm and Mish are therefore one function with its own gradient: Mish
takes one exponential and two more passes, its slope is computed on the way, so that the
backward pass is one pass and LayerNorm's own kernel, and dropout draws only the few positions
that it drops.
"""

from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

Activation = Literal["mish", "simnorm", "none"]

_EPS = 1e-5  # of torch's LayerNorm
ROWS_PER_TASK = 4
"""From this many rows per task on, the tasks' share is computed once per task, not per row."""


class Norm(nn.Module):
    """LayerNorm over the last axis, with one set of weights per ensemble head."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Normalise `x`; with heads, its first axis is theirs: [heads, batch, dim]."""
        return layer_norm(x, self.weight, self.bias)


class Dense(nn.Module):
    """Linear layer, then dropout, LayerNorm and activation if configured.

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
            return norm_mish(x, self.norm.weight, self.norm.bias, rate)
        if rate:
            x = functional.dropout(x, rate, True)
        if self.norm is not None:
            x = self.norm(x)
        return simnorm(x, self.simnorm_dim) if self.activation == "simnorm" else x


def simnorm(x: Float[Tensor, "*batch dim"], group: int) -> Float[Tensor, "*batch dim"]:
    """Project each group of neighbours onto a simplex by a softmax."""
    grouped = x.unflatten(-1, (-1, group))
    return torch.softmax(grouped, dim=-1).flatten(-2)


class Tasks(NamedTuple):
    """Which task each row belongs to."""

    table: Float[Tensor, "tasks dim"]
    """Embeddings of all tasks."""
    ids: Int[Tensor, " batch"]
    """Task of each row: of the last axis before the features; further axes may precede it."""


class Network(nn.Sequential):
    """Dense layers; the first one's inputs are [input, task embedding, action].

    All members of an ensemble get the same input; their outputs are stacked on a first axis.
    """

    def forward(
        self,
        x: Float[Tensor, "*batch in_dim"],
        tasks: Tasks | None = None,
        action: Float[Tensor, "*batch action"] | None = None,
    ) -> Float[Tensor, "*out out_dim"]:
        """Map inputs to outputs, of an ensemble to [heads, *batch, out].

        Args:
            x: Observations or latents.
            tasks: None where there is one task without an embedding.
            action: None for networks without an action input.
        """
        first, *rest = (cast(Dense, layer) for layer in self)
        lead = x.shape[:-1]
        if tasks is None or lead.numel() < ROWS_PER_TASK * len(tasks.table):
            y = first.product(for_heads(join_inputs(x, tasks, action), first))
        else:
            y = _folded(first, x, tasks, action)
        y = first.finish(y)
        for layer in rest:
            y = layer(y)
        return y.unflatten(-2, lead)


def mlp(
    in_dim: int,
    hidden: int,
    out_dim: int,
    *,
    heads: int | None = None,
    dropout: float = 0.0,
    last: Activation = "none",
    simnorm_dim: int = 8,
) -> Network:
    """Build two hidden layers and an output layer; dropout follows the first linear only."""
    return Network(
        Dense(in_dim, hidden, heads=heads, dropout=dropout),
        Dense(hidden, hidden, heads=heads),
        Dense(hidden, out_dim, heads=heads, activation=last, simnorm_dim=simnorm_dim),
    )


def split_inputs(
    weight: Float[Tensor, "*heads out in_dim"], inputs: int, task_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a first layer's columns of the input, of the task embedding and of the action."""
    of_input, of_task, of_action = weight.tensor_split([inputs, inputs + task_dim], dim=-1)
    return of_input, of_task, of_action


def join_inputs(
    x: Tensor, tasks: Tasks | None, action: Tensor | None
) -> Float[Tensor, "n in_dim"]:
    """Return the rows [input, task embedding, action] that a first layer multiplies."""
    parts = [x]
    if tasks is not None:
        parts.append(tasks.table[tasks.ids].expand(*x.shape[:-1], -1))
    if action is not None:
        parts.append(action)
    return torch.cat(parts, dim=-1).flatten(0, -2)


def for_heads(
    rows: Float[Tensor, "*own n in_dim"], dense: Dense
) -> Float[Tensor, "*heads n in_dim"]:
    """Repeat rows for each head of a layer, where it has heads and they share the rows."""
    return rows if dense.bias.ndim == 1 else rows.expand(len(dense.bias), -1, -1)


def task_biases(
    bias: Float[Tensor, "*heads out"],
    of_task: Float[Tensor, "*heads out dim"],
    embeddings: Float[Tensor, "tasks dim"],
) -> Float[Tensor, "*heads tasks out"]:
    """Return a first layer's bias in each task: with the share of the task's embedding.

    `of_task` are the columns of its weight for that.
    """
    rows = embeddings if of_task.ndim == 2 else embeddings.expand(len(of_task), -1, -1)
    return rows @ of_task.mT + bias.unsqueeze(-2)


def _folded(
    first: Dense, x: Tensor, tasks: Tasks, action: Tensor | None
) -> Float[Tensor, "*heads n hidden"]:
    """Multiply; the embeddings' share is computed once per task, as a bias of its rows."""
    of_x, of_task, of_action = split_inputs(first.weight, x.shape[-1], tasks.table.shape[-1])
    bias = task_biases(first.bias, of_task, tasks.table).index_select(-2, tasks.ids)
    sums = torch.cat([bias] * x.shape[:-2].numel(), dim=-2)
    parts = [(x, of_x)]
    if action is not None:  # on its own: widths that are no multiple of 8 are slow to multiply
        parts.append((action, of_action))
    for inputs, weight in parts:
        rows = for_heads(inputs.flatten(0, -2), first)
        sums = (sums.addmm_ if weight.ndim == 2 else sums.baddbmm_)(rows, weight.mT)
    return sums


def layer_norm(
    x: Float[Tensor, "*batch dim"],
    gain: Float[Tensor, "*heads dim"],
    shift: Float[Tensor, "*heads dim"],
) -> Float[Tensor, "*batch dim"]:
    """Normalise the last axis; where gain and shift have an axis of heads, x begins with it."""
    width = (x.shape[-1],)
    if gain.ndim == 1:
        return functional.layer_norm(x, width, gain, shift, _EPS)
    plain = functional.layer_norm(x, width, eps=_EPS)
    return torch.addcmul(shift.unsqueeze(1), plain, gain.unsqueeze(1))


def norm_mish(
    x: Float[Tensor, "*batch dim"],
    gain: Float[Tensor, "*heads dim"],
    shift: Float[Tensor, "*heads dim"],
    rate: float = 0.0,
) -> Float[Tensor, "*batch dim"]:
    """Apply dropout at a rate, LayerNorm and Mish, `x * tanh(log(1 + exp(x)))`.

    Where gain and shift have an axis of heads, it is the first one of `x` too. Without
    gradients it consists of operators that every inference engine has.

    Source:
        Mish, arXiv:1908.08681.
    """
    if x.device.type != "cpu" or not x.dtype == gain.dtype == torch.float32:
        kept = functional.dropout(x, rate, True) if rate else x
        return functional.mish(layer_norm(kept, gain, shift))
    dropped = draw_positions(x.numel(), rate) if rate else None
    # Instead of enlarging what is kept: LayerNorm divides by it again, but for eps.
    eps = _EPS * (1 - rate) ** 2
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
    """Draw the positions that are dropped of `count`, ascending, by torch's generator.

    Only the gaps between them are drawn, which are few at small rates.
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
    """Dropout at given positions, LayerNorm and Mish, with their gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, dropped: Tensor | None, eps: float
    ) -> Tensor:
        # LayerNorm yields v = -x. With s = sigmoid(v) = 1 / (1 + exp(x)) and d = 1 + s^2, which
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
            (parts[0] if len(parts) == 1 else torch.stack(parts)) if wanted else None
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
    # Of the opposite sign: LayerNorm then returns -x, whose sigmoid is needed.
    return _heads(gain.neg(), gain), _heads(shift.neg(), gain)


def _without(x: Tensor, dropped: Tensor | None) -> Tensor:
    if dropped is None:
        return x
    return x.reshape(-1).index_fill(0, dropped, 0.0).view(x.shape)


def _one(x: Tensor) -> Tensor:
    return x.new_ones(())
