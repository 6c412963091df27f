"""Solutions of notebook 02, by exercise: checker -> answer; and wrong answers that the checkers must refuse."""

import math

import torch


def sparse(z, k):
    """Minus infinity where not kept, then softmax."""
    kept = torch.zeros_like(z, dtype=torch.bool).scatter(-1, z.topk(k, dim=-1).indices, True)
    return z.masked_fill(~kept, -math.inf).softmax(dim=-1)


def fused(p, mask, a, b):
    """The two-level gain."""
    m = (p * mask).sum(dim=-1, keepdim=True)
    return p * (a + b / m * mask)


def _zero_filled(z, k):
    kept = sparse(z, k) > 0
    return z.masked_fill(~kept, 0.0).softmax(dim=-1)


def _of_columns(z, k):
    return sparse(z.T, k)


SOLUTIONS = {
    "check_sparse": sparse,
    "check_gain": 6.0,
    "check_fused": fused,
    "check_sparsemax": (1, 0, 0),
}
WRONG = {
    "check_sparse": [
        _zero_filled,
        _of_columns,
        lambda z, k: z.softmax(-1) * (sparse(z, k) > 0),
        lambda z, k: sparse(-z, k),
        lambda z, k: (sparse(z, k) > 0) / k,
        lambda z, k: sparse(z, k)[0],
        lambda z: z,
    ],
    "check_gain": [5, 4, 2.45, "large"],
    "check_fused": [
        lambda p, mask, a, b: p * (a + b * mask),
        lambda p, mask, a, b: fused(p, mask, a, b) * mask,
        lambda p, mask, a, b: fused(p, mask, b, a),
        lambda p, mask, a, b: p * (a + b / (p * mask).sum() * mask),
    ],
    "check_sparsemax": [(0.79, 0.105, 0.105), (2, 0, 0), (0.5, 0.25, 0.25), 1],
}
