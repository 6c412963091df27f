"""Checks of notebook 05: effective k by hand, kept mass, and overlap of key sets."""

import math
from typing import Any

import torch

from ddsa_lab.course import ExerciseError, NotSolved, ask, exercise, number, tensor


@exercise
def check_effective_k(answer: Any) -> str:
    """Effective k of (1/2, 1/4, 1/4, 0)."""
    found = number(answer, "the effective k")
    right = 2**1.5
    if abs(found - 1.5 * math.log(2)) < 0.02 or abs(found - 1.5) < 1e-6:
        raise ExerciseError(
            f"{found:g} is the entropy; the effective k is its exponential, exp(H) with H in nats"
        )
    if abs(found - math.exp(1.5)) < 0.02:
        raise ExerciseError("1.5 is the entropy in bits: take 2 to its power, or use nats and exp")
    if abs(found - 3) < 1e-6:
        raise ExerciseError("three keys are used, but not equally, so the effective k is below 3")
    if abs(found - right) > 0.02:
        raise ExerciseError(
            f"{found:g} is not exp(H): H = 1/2 log 2 + 1/4 log 4 + 1/4 log 4, and a weight of 0 adds nothing"
        )
    return f"H = 1.5 log 2, so the effective k is 2 to the power 1.5 = {right:.3f}."


@exercise
def check_kept_mass(answer: Any) -> str:
    """Sum of the k largest weights of each row."""
    p = torch.rand(2, 3, 7, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    p = (p**8) / (p**8).sum(dim=-1, keepdim=True)
    for k in (1, 4, 7):
        found = tensor(ask(answer, p, k), (2, 3), f"the kept mass for p of shape (2, 3, 7) and k = {k}")
        right = p.sort(dim=-1, descending=True).values[..., :k].sum(dim=-1)
        if torch.allclose(found, right, atol=1e-5):
            continue
        if torch.allclose(found, p[..., :k].sum(dim=-1), atol=1e-5):
            raise ExerciseError("these are the first k entries of each row, and the largest k are meant")
        if torch.allclose(found, p.sort(dim=-1).values[..., :k].sum(dim=-1), atol=1e-5):
            raise ExerciseError("these are the k smallest entries: sort the other way round")
        if torch.allclose(found * k, right, atol=1e-5):
            raise ExerciseError("this is their mean, and the sum is meant")
        raise ExerciseError(
            f"for k = {k} it is not the sum of the k largest entries of each row: see torch.topk"
        )
    return "And for k = C it is 1, since nothing is dropped."


@exercise
def check_overlap(answer: Any) -> str:
    """Two masks of 4 of 8 keys that overlap by 1/3."""
    try:
        first, second = answer
    except (TypeError, ValueError):
        raise ExerciseError("two masks are needed: mask_of_one, mask_of_the_other") from None
    if first is ... or second is ...:
        raise NotSolved
    masks = [tensor(torch.as_tensor(one), (8,), "a mask") for one in (first, second)]
    if any(mask.dtype != torch.bool for mask in masks):
        raise ExerciseError("the masks must be of bools, True for a kept key")
    kept = [int(mask.sum()) for mask in masks]
    if kept != [4, 4]:
        raise ExerciseError(f"each query keeps 4 keys, and your masks keep {kept[0]} and {kept[1]}")
    shared = int((masks[0] & masks[1]).sum())
    if shared != 2:
        raise ExerciseError(
            f"they share {shared} of {8 - shared} keys in their union, an overlap of {shared / (8 - shared):.2f} and not 1/3"
        )
    return (
        "2 shared keys of 6 in the union; equal halves would be 1, and half of the keys shared is only 1/3."
    )
