"""Dense layers in a row, of which the first sees an input, a task's embedding and an action."""

from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tdmpc_opt.model.layers import Activation, Dense

ROWS_PER_TASK = 4
"""From so many rows a task on, what tasks add is computed once per task and not per row."""


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
    actions = 0 if action is None else action.shape[-1]
    widths = [x.shape[-1], tasks.table.shape[-1], actions]
    of_x, of_task, of_action = first.weight.split(widths, dim=-1)
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
