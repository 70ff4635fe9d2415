"""Two-hot regression: scalars as soft targets over bins in symlog space."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def symlog(x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Compress magnitudes: `sign(x) * log(1 + |x|)`.

    Source:
        DreamerV3, arXiv:2301.04104.
    """
    return torch.sign(x) * torch.log1p(x.abs())


def symexp(x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Invert `symlog`."""
    return torch.sign(x) * torch.expm1(x.abs())


def two_hot(
    x: Float[Tensor, "*batch"], bins: Float[Tensor, " bins"]
) -> Float[Tensor, "*batch bins"]:
    """Spread each scalar over the two bins it lies between.

    Args:
        x: Raw rewards or returns, in environment units (not symlog).
        bins: Bin centres in symlog space, ascending and evenly spaced.

    Returns:
        Non-negative weights that sum to 1 on the last axis; values beyond the bins are
        clamped to the first or last one. NaN gives NaN.

    Source:
        TD-MPC2, arXiv:2310.16828; bins as in DreamerV3, arXiv:2301.04104.
    """
    index, upper_weight = _place(x, bins)
    target = torch.zeros(*x.shape, bins.shape[0], device=x.device, dtype=x.dtype)
    target.scatter_(-1, index, 1 - upper_weight)
    return target.scatter_(-1, index + 1, upper_weight)


def _place(
    x: Float[Tensor, "*batch"], bins: Float[Tensor, " bins"]
) -> tuple[Int[Tensor, "*batch 1"], Float[Tensor, "*batch 1"]]:
    """Return the bin below each scalar, and the weight of the bin above it."""
    count = bins.shape[0]
    width = (bins[-1] - bins[0]) / (count - 1)
    position = (torch.clamp(symlog(x), bins[0], bins[-1]) - bins[0]) / width
    # The top value belongs to the last pair of bins: there is no bin to its right.
    lower = position.floor().clamp(max=count - 2)
    upper_weight = (position - lower).unsqueeze(-1)
    # NaN makes no index; the weights keep it.
    return lower.nan_to_num(0.0).long().unsqueeze(-1), upper_weight


def decode(
    logits: Float[Tensor, "*batch bins"], bins: Float[Tensor, " bins"]
) -> Float[Tensor, "*batch"]:
    """Turn logits over the bins into scalars in environment units, in float32.

    In bf16 the bins would be rounded by up to 0.025, and values below 2 by up to 0.02.
    """
    return mean_value(logits.float(), bins.float())


def mean_value(
    logits: Float[Tensor, "*batch bins"], bins: Float[Tensor, " bins"]
) -> Float[Tensor, "*batch"]:
    """Return the mean of the bins in environment units, in the number format of the logits."""
    # A sum of products: as one with a vector it took ONNX Runtime five times as long.
    return symexp((torch.softmax(logits, dim=-1) * bins).sum(-1))


def soft_cross_entropy(
    logits: Float[Tensor, "*batch bins"],
    x: Float[Tensor, "*batch"],
    bins: Float[Tensor, " bins"],
) -> Float[Tensor, "*batch"]:
    """Return the cross-entropy in nats between logits and the two-hot code of scalars.

    Args:
        logits: Predicted distributions over the bins.
        x: Rewards or returns in environment units.
        bins: Bin centres in symlog space, ascending and evenly spaced.
    """
    index, upper_weight = _place(x, bins)
    log_shares = functional.log_softmax(logits, dim=-1, dtype=upper_weight.dtype)
    lower, upper = (log_shares.gather(-1, index + step) for step in (0, 1))
    return -torch.lerp(lower, upper, upper_weight).squeeze(-1)
