"""Solutions of notebook 05, by exercise: checker -> answer; and wrong answers that the checkers must refuse."""

import math

import torch


def kept_mass(p, k):
    """The k largest of each row, summed."""
    return p.topk(k, dim=-1).values.sum(dim=-1)


def mask(*keys):
    """Bools with True at `keys`."""
    return torch.tensor([key in keys for key in range(8)])


SOLUTIONS = {
    "check_effective_k": 2**1.5,
    "check_kept_mass": kept_mass,
    "check_overlap": (mask(0, 1, 2, 3), mask(2, 3, 4, 5)),
}
WRONG = {
    "check_effective_k": [3, 1.5, 1.5 * math.log(2), math.exp(1.5), 4, "three"],
    "check_kept_mass": [
        lambda p, k: p[..., :k].sum(dim=-1),
        lambda p, k: p.sort(dim=-1).values[..., :k].sum(dim=-1),
        lambda p, k: p.topk(k, dim=-1).values.mean(dim=-1),
        lambda p, k: p.topk(k, dim=-1).values,
        lambda p, k: p.sum(dim=-1),
    ],
    "check_overlap": [
        (mask(0, 1, 2, 3), mask(0, 1, 2, 3)),
        (mask(0, 1, 2, 3), mask(3, 4, 5, 6)),
        (mask(0, 1, 2), mask(1, 2, 3)),
        ([1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0]),
        mask(0, 1, 2, 3),
    ],
}
