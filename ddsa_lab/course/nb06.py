"""Checks of notebook 06: a fused weight by hand, the weakest keys as a control, and what a control says."""

from typing import Any

import torch

from ddsa_lab.course import ExerciseError, ask, exercise, number, tensor

CONCLUSIONS = (
    "the strongest keys matter",
    "which keys are kept does not matter here",
    "attention does not matter",
)


@exercise
def check_fused(answer: Any) -> str:
    """Fused weight of the third of four keys."""
    found, right = number(answer, "the fused weight"), 0.2 * (0.2 + 0.9 / 0.9)
    if abs(found - 0.04) < 1e-4:
        raise ExerciseError("this is a p, the weight of a dropped key, but k = 3 keeps the third one")
    if abs(found - 0.2 * (0.2 + 0.9)) < 1e-4:
        raise ExerciseError("the sparse branch is shared among kept keys only: divide by their mass m")
    if abs(found - right) > 1e-3:
        raise ExerciseError(f"{found:g} is not p (a + b/m), with m the sum of the three kept weights")
    return "m = 0.9, so p (a + b/m) = 0.2 (0.2 + 1) = 0.24."


@exercise
def check_weakest(answer: Any) -> str:
    """A mask of the k smallest entries of each row."""
    p = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(3)).softmax(dim=-1)
    for k in (1, 4, 6):
        mask = tensor(ask(answer, p, k), (2, 5, 6), "the mask")
        if mask.dtype != torch.bool:
            raise ExerciseError(f"the mask must hold bools, and yours holds {mask.dtype}")
        counts = mask.sum(dim=-1)
        if not bool((counts == k).all()):
            raise ExerciseError(
                f"each row must keep k = {k} keys, and yours keep {counts.min()} to {counts.max()}"
            )
        if torch.equal(mask, p >= p.topk(k, dim=-1).values[..., -1:]) and k < 6:
            raise ExerciseError("these are the strongest keys: the weakest are the largest of -p")
        if not torch.equal(mask, p <= p.sort(dim=-1).values[..., k - 1 : k]):
            raise ExerciseError("some key in your mask is stronger than one outside it, in the same row")
    return "The worst keys there are, and as many as in the real thing: a control."


@exercise
def check_control(answer: Any) -> str:
    """What equal losses of strongest and random keys say."""
    if answer not in CONCLUSIONS:
        raise ExerciseError(f"choose one of {', '.join(map(repr, CONCLUSIONS))}")
    if answer == CONCLUSIONS[0]:
        raise ExerciseError(
            "keys drawn by lot do as well, so being strong is not what matters: that is the control's word"
        )
    if answer == CONCLUSIONS[2]:
        raise ExerciseError("attention was still at work, with other keys amplified; nobody took it away")
    return "Without the control, the small loss would have looked like a success of top-k."
