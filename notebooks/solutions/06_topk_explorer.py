"""Solutions of notebook 06, by exercise: checker -> answer; and wrong answers that the checkers must refuse."""

import torch


def strongest(p, k):
    """The k largest of each row, as a mask."""
    return torch.zeros_like(p, dtype=torch.bool).scatter(-1, p.topk(k, dim=-1).indices, True)


def weakest(p, k):
    """The k smallest of each row, as a mask."""
    return strongest(-p, k)


SOLUTIONS = {
    "check_fused": 0.2 * (0.2 + 0.9 / 0.9),
    "check_weakest": weakest,
    "check_control": "which keys are kept does not matter here",
}
WRONG = {
    "check_fused": [0.04, 0.22, 0.2, 1.2, "small"],
    "check_weakest": [
        strongest,
        lambda p, k: weakest(p, k).float(),
        lambda p, k: torch.arange(p.shape[-1]).expand(p.shape) < k,
        lambda p, k: p < p.mean(),
        lambda p, k: p.topk(k, largest=False).indices,
    ],
    "check_control": ["the strongest keys matter", "attention does not matter", "nothing"],
}
