"""Two relatives of softmax that reach exact zeros by themselves: sparsemax and 1.5-entmax.

Top-k attention decides beforehand how many keys survive; these let the logits decide. Both are
p_i = max(0, (alpha - 1) z_i - tau)^(1 / (alpha - 1)), with tau such that p sums to 1; softmax is alpha -> 1.
"""

import torch
from torch import Tensor


def sparsemax(z: Tensor) -> Tensor:
    """Nearest point of the probability simplex to each row of z (..., C): alpha = 2.

    Source: Martins and Astudillo, "From softmax to sparsemax", arXiv 1602.02068.
    """
    ordered = z.sort(dim=-1, descending=True).values
    rank = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
    excess = ordered.cumsum(dim=-1) - 1
    # The support is a prefix of the ordered row: the keys that stay above the threshold of their own prefix.
    size = (rank * ordered > excess).sum(dim=-1, keepdim=True)
    tau = excess.gather(-1, size - 1) / size
    return (z - tau).clamp_min(0)


def entmax15(z: Tensor) -> Tensor:
    """1.5-entmax of each row of z (..., C), half way between softmax and sparsemax.

    Source: Peters, Niculae and Martins, "Sparse sequence-to-sequence models", arXiv 1905.05702, algorithm 2.
    """
    z = (z - z.amax(dim=-1, keepdim=True)) / 2  # a shift changes nothing, and keeps the squares small
    ordered = z.sort(dim=-1, descending=True).values
    rank = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
    mean = ordered.cumsum(dim=-1) / rank
    scatter = (
        ordered.square().cumsum(dim=-1) - rank * mean.square()
    )  # squared distances from the prefix's mean
    # sum over the prefix of (z - tau)^2 = 1, solved for tau; past the support the root may be imaginary
    tau = mean - ((1 - scatter) / rank).clamp_min(0).sqrt()
    size = (tau <= ordered).sum(dim=-1, keepdim=True)
    return (z - tau.gather(-1, size - 1)).clamp_min(0).square()
