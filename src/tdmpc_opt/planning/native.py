"""The heads of a world model as compiled code of our own, in float32 or in 8-bit integers.

Source:
    Packed weights, and the tile of outputs that stays in registers: Anatomy of high-performance
    matrix multiplication, Goto and van de Geijn, ACM TOMS 34(3), 2008.
"""

import ctypes

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from tdmpc_opt.configs import EnginePrecision
from tdmpc_opt.errors import InputError
from tdmpc_opt.planning.native_library import library
from tdmpc_opt.planning.networks import (
    SMALLEST_INT8,
    Head,
    Layer,
    Part,
    PlannerNetworks,
    Shares,
)
from tdmpc_opt.world_model.model import WorldModel

_LEVELS = 84
"""Largest number of an 8-bit weight; see `heads.cpp`."""
_IN, _OUT, _GROUP = 8, 16, 8
"""What inputs and outputs are padded to multiples of, and the groups of SimNorm."""
_NO_SHARE = -1e30
"""Bias of padded bins."""


class NativeNetworks(PlannerNetworks):
    """Planner networks whose heads are compiled code, on as many threads as torch has.

    Args:
        model: World model in eval mode, in float32 on a CPU.
        precision: Number format of the large products.

    Raises:
        InputError: Layers of other widths than multiples of 16, or a CPU without AVX2.
        MissingDependencyError: No compiler.
    """

    def __init__(self, model: WorldModel, precision: EnginePrecision) -> None:
        super().__init__(model)
        c = model.config
        if c.simnorm_dim != _GROUP or c.mlp_dim % _OUT or c.latent_dim % _OUT:
            raise InputError(
                f"engine native needs layers of multiples of {_OUT} and SimNorm of {_GROUP}; "
                f"this model has {c.mlp_dim}, {c.latent_dim} and {c.simnorm_dim}"
            )
        int8 = precision == "int8"
        parts: tuple[Part, ...] = ("action", "z_action")
        read = {id(self._dynamics): parts, id(self._reward): parts, id(self._policy): ("z",)}
        self._compiled = {
            (id(head), part): _Compiled(head, part, model.bins, int8=int8)
            for head in (self._dynamics, self._reward, self._policy, *self._members)
            for part in read.get(id(head), parts[1:])
        }

    def _run(
        self,
        head: Head,
        x: Float[Tensor, "samples batch in_dim"],
        part: Part,
        bias: Float[Tensor, "batch hidden"],
    ) -> Tensor:
        return self._compiled[id(head), part](x, bias)

    def _drawn(
        self, shares: Shares, heads: Int[Tensor, "2 #batch"]
    ) -> tuple[list[Head], list[Tensor]]:
        if heads.shape[1] > 1:
            return super()._drawn(shares, heads)
        drawn = heads[:, 0].tolist()
        return [self._members[i] for i in drawn], [shares.q[i] for i in drawn]


class _CLayer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "scale", "sum", "bias")),
        *((name, ctypes.c_void_p) for name in ("gain", "shift")),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs")),
    ]


class _CHead(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("layers", "bins")),
        *((name, ctypes.c_int64) for name in ("count", "width", "out_width")),
    ]


class _Compiled:
    """A head whose weights lie as the compiled code reads them."""

    def __init__(self, head: Head, part: Part, bins: Tensor, *, int8: bool) -> None:
        first = head.layers[0]._replace(weight=getattr(head, part))
        layers = [first, *head.layers[1:]]
        fill = _NO_SHARE if head.gives == "value" else 0.0
        packed = [_packed(layer, fill, int8=int8) for layer in layers]
        self._kept = [tensor for tensors, _ in packed for tensor in tensors.values()]
        self._layers = (_CLayer * len(layers))(
            *(
                _CLayer(**{name: each.data_ptr() for name, each in tensors.items()}, **sizes)
                for tensors, sizes in packed
            )
        )
        last = len(layers[-1].bias)
        self._out_width = 1 if head.gives == "value" else last
        padded = functional.pad(bins, (0, -last % _OUT)).contiguous()
        self._kept.append(padded)
        self._head = _CHead(
            layers=ctypes.addressof(self._layers),
            bins=padded.data_ptr() if head.gives == "value" else None,
            count=len(layers),
            width=first.weight.shape[1],
            out_width=self._out_width,
        )
        self._address = ctypes.addressof(self._head)
        self._run = library().run_head

    def __call__(
        self, x: Float[Tensor, "samples batch in_dim"], bias: Float[Tensor, "batch hidden"]
    ) -> Tensor:
        x, bias = x.contiguous(), bias.contiguous()
        rows = x.shape[0] * x.shape[1]
        out = x.new_empty(rows, self._out_width)
        self._layers[0].bias = bias.data_ptr()
        threads = torch.get_num_threads()
        self._run(self._address, x.data_ptr(), rows, len(bias), out.data_ptr(), threads)
        return out.squeeze(1) if self._head.bins else out


def _packed(
    layer: Layer, fill: float, *, int8: bool
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return a layer's tensors by the names of the compiled code's, and its padded sizes."""
    outputs, inputs = layer.weight.shape
    padding = (0, -inputs % _IN, 0, -outputs % _OUT)
    weight = functional.pad(layer.weight.float(), padding)
    bias = functional.pad(layer.bias.float(), (0, padding[3]), value=fill)
    found = {"bias": bias} | dict(zip(("gain", "shift"), layer.norm, strict=False))
    if int8 and min(outputs, inputs) >= SMALLEST_INT8:
        scale = weight.abs().amax(1) / _LEVELS
        scale = torch.where(scale > 0, scale, 1.0)
        numbers = (weight / scale.unsqueeze(1)).round()
        found |= {"scale": scale, "sum": numbers.sum(1) * scale}
        blocks = numbers.to(torch.int8).unflatten(1, (-1, 2, 4)).unflatten(0, (-1, _OUT))
        found["weight"] = blocks.permute(0, 2, 3, 1, 4)
    else:
        found["weight"] = weight.unflatten(0, (-1, _OUT)).transpose(1, 2)
    tensors = {name: each.contiguous() for name, each in found.items()}
    return tensors, {"inputs": weight.shape[1], "outputs": weight.shape[0]}
