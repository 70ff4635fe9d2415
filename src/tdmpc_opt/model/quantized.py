"""Weights of few bits, and the layer that computes with them as they are stored.

A weight is an integer code times a scale, of which each output has one or, for 4 bits, one per
group of inputs. Weights stay in memory as they are in the file. A product converts
the codes of its layer to floats and discards these: on a CPU without VNNI that took less
time than torch's integer kernels, which also round the inputs
(results/bench-integer-kernels.json).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float16, Int8, Shaped
from torch import Tensor, nn
from torch.nn import functional

from tdmpc_opt.model.layers import Dense
from tdmpc_opt.schema import INT4_ZERO, int4_halves

IntFormat = Literal["int8", "int4"]


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedWeight:
    """A weight matrix, or a stack of them, in integers."""

    codes: Shaped[Tensor, "*heads out stored"]
    """int8, one code per weight; or uint8, two codes of 4 bits: the low half contains the first
    half of a row, the high half the second, each 8 above its value."""
    scale: Float16[Tensor, "*heads out groups"]
    """Value of one step of the codes of a group of inputs."""
    columns: int
    """Number of inputs."""
    group: int
    """Neighbouring inputs that share a scale; the last group may be shorter."""

    @property
    def format(self) -> IntFormat:
        """Number format of the codes."""
        return "int8" if self.codes.dtype == torch.int8 else "int4"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return (*self.codes.shape[:-1], self.columns)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self.codes.shape[:-1].numel() * self.columns

    @property
    def size_bytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scale.nbytes

    def dense(self) -> Float[Tensor, "*heads out in_dim"]:
        """Return the weight in float32."""
        return dequantize(self.codes, self.scale.float(), self.columns, self.group)


def quantized_weight(
    codes: Int8[Tensor, "*heads out in_dim"],
    scale: Float16[Tensor, "*heads out groups"],
    kind: IntFormat,
    group: int,
) -> QuantizedWeight:
    """Store codes, of which those of int4 lie in [-8, 7], two in a byte.

    As many neighbouring inputs as `group` says share a scale, the value of a step of a code.
    """
    columns = codes.shape[-1]
    if kind == "int8":
        return QuantizedWeight(codes, scale, columns, group)
    # A row of odd length gets a zero at its end.
    shifted = functional.pad(codes, (0, columns % 2)).add(INT4_ZERO).to(torch.uint8)
    low, high = shifted.chunk(2, dim=-1)
    return QuantizedWeight(low | (high << 4), scale, columns, group)


def dequantize(
    codes: Shaped[Tensor, "*rows stored"],
    scale: Float[Tensor, "*rows groups"],
    columns: int,
    group: int,
) -> Float[Tensor, "*rows in_dim"]:
    """Return codes times scales, in the number format of the scales."""
    if codes.dtype == torch.int8:
        values = codes.to(scale.dtype)
    else:
        halves = torch.cat(int4_halves(codes), dim=-1)[..., :columns]
        values = halves.to(scale.dtype).sub_(INT4_ZERO)
    if scale.shape[-1] == 1:
        return values * scale
    # Padded to whole groups, since the last one may be short.
    values = functional.pad(values, (0, scale.shape[-1] * group - columns))
    scaled = values.unflatten(-1, (-1, group)) * scale.unsqueeze(-1)
    return scaled.flatten(-2)[..., :columns]


class QuantizedDense(Dense):
    """A dense layer whose weight stays in integers; LayerNorm and bias are floats."""

    codes: Tensor
    scale: Tensor

    def __init__(self, dense: Dense, weight: QuantizedWeight) -> None:
        """Take over all but the weight of a layer."""
        nn.Module.__init__(self)
        self.norm, self.activation = dense.norm, dense.activation
        self.dropout, self.simnorm_dim = dense.dropout, dense.simnorm_dim
        self.bias = dense.bias
        self.columns, self.group = weight.columns, weight.group
        self.register_buffer("codes", weight.codes)
        self.register_buffer("scale", weight.scale)

    @property
    def weight(self) -> Float[Tensor, "*heads out in_dim"]:  # type: ignore[override]
        """The weight in floats: a new copy each time, four or eight times the size."""
        return dequantize(self.codes, self.scale, self.columns, self.group)

    def product(self, x: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*out out_dim"]:
        """Multiply and add the bias."""
        if self.codes.dtype != torch.int8 or self.scale.shape[-1] > 1 or self.bias.ndim > 1:
            return super().product(x)
        # One scale per output: it is cheaper on the outputs than on the weights.
        raw = functional.linear(x, self.codes.to(x.dtype))
        return torch.addcmul(self.bias, raw, self.scale.squeeze(-1))
