"""Layers of the world model and networks of them, alone or as an ensemble."""

from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tdmpc_opt.model.hidden import layer_norm, norm_mish

Activation = Literal["mish", "simnorm", "none"]

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
    """Of each row: of the last axis before the features, whatever is ahead of it."""


class Network(nn.Sequential):
    """Dense layers; the first one's inputs are [input, task embedding, action].

    Of an ensemble all members see the same, and their outputs are stacked on a first axis.
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
            action: None for networks that see none.
        """
        first, *rest = (cast(Dense, layer) for layer in self)
        lead = x.shape[:-1]
        if tasks is None or lead.numel() < ROWS_PER_TASK * len(tasks.table):
            y = first.product(_shared(_joined(x, tasks, action), first))
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


def _joined(x: Tensor, tasks: Tasks | None, action: Tensor | None) -> Float[Tensor, "n in_dim"]:
    parts = [x]
    if tasks is not None:
        parts.append(tasks.table[tasks.ids].expand(*x.shape[:-1], -1))
    if action is not None:
        parts.append(action)
    return torch.cat(parts, dim=-1).flatten(0, -2)


def _shared(rows: Float[Tensor, "n in_dim"], dense: Dense) -> Float[Tensor, "*heads n in_dim"]:
    """Give the rows to each head of a layer, where it has heads."""
    return rows if dense.bias.ndim == 1 else rows.expand(len(dense.bias), -1, -1)


def _folded(
    first: Dense, x: Tensor, tasks: Tasks, action: Tensor | None
) -> Float[Tensor, "*heads n hidden"]:
    """Multiply; what the embeddings add is computed once per task, as a bias of its rows."""
    of_x, of_task, of_action = split_inputs(first.weight, x.shape[-1], tasks.table.shape[-1])
    of_table = _product(_shared(tasks.table, first), of_task) + first.bias.unsqueeze(-2)
    bias = of_table.index_select(-2, tasks.ids)
    sums = torch.cat([bias] * x.shape[:-2].numel(), dim=-2)  # the products are added to it
    sums = _add_product(sums, _shared(x.flatten(0, -2), first), of_x)
    if action is not None:  # on its own: widths that are no multiple of 8 are slow to multiply
        sums = _add_product(sums, _shared(action.flatten(0, -2), first), of_action)
    return sums


def _product(
    rows: Float[Tensor, "*heads n in_dim"], weight: Float[Tensor, "*heads out in_dim"]
) -> Float[Tensor, "*heads n out"]:
    if weight.ndim == 2:
        return functional.linear(rows, weight)
    return torch.bmm(rows, weight.transpose(1, 2))


def _add_product(
    sums: Float[Tensor, "*heads n out"],
    rows: Float[Tensor, "*heads n in_dim"],
    weight: Float[Tensor, "*heads out in_dim"],
) -> Float[Tensor, "*heads n out"]:
    """Add a product to the sums, in place where that can be."""
    if torch.is_autocast_enabled(rows.device.type):  # it knows no products in place
        return sums + _product(rows, weight)
    if weight.ndim == 2:
        return sums.addmm_(rows, weight.t())
    return sums.baddbmm_(rows, weight.transpose(1, 2))
