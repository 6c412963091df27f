"""Checks of notebook 07: integrated gradients by hand, the completeness gap, and the streak score."""

from typing import Any

import torch

from ddsa_lab.course import ExerciseError, ask, exercise, number


@exercise
def check_path(answer: Any) -> str:
    """Integrated gradients of a linear function."""
    found = number(answer, "the contribution of x2")
    if found == 4:
        raise ExerciseError(
            "this is gradient times x2; the path starts at the baseline, so x2 changes by 1 only"
        )
    if found == 5:
        raise ExerciseError("this is the whole change of F, and x1 has its share of it")
    if abs(found - 2) > 1e-6:
        raise ExerciseError(
            f"{found:g} is not (x2 - x2') times the gradient with respect to x2, which is 2 everywhere"
        )
    return "2 (2 - 1) = 2, x1 gets 3, and together they are the change of 5: complete."


@exercise
def check_gap(answer: Any) -> str:
    """The completeness gap as a function."""
    generator = torch.Generator().manual_seed(0)
    for value, start in ((3.0, 1.0), (-2.0, 2.0)):
        maps = torch.randn(3, 4, 5, generator=generator)
        found = number(ask(answer, maps, value, start), "what your function returns")
        change, total = value - start, float(maps.sum())
        right = abs(total - change) / abs(change)
        if abs(found - right) < 1e-4:
            continue
        if abs(found - (total - change) / change) < 1e-4 or abs(found - abs(total - change) / change) < 1e-4:
            raise ExerciseError("a gap has no sign: take absolute values above and below the line")
        if abs(found - abs(total - change)) < 1e-4:
            raise ExerciseError("this is what is missing; divide it by the absolute change")
        if abs(found - abs(float(maps.abs().sum()) - change) / abs(change)) < 1e-4:
            raise ExerciseError(
                "contributions of either sign cancel in the sum: add them up with their signs"
            )
        raise ExerciseError(
            f"for a map of sum {total:.2f} and a change of {change:g} the gap is {right:.3f}, not {found:.3f}"
        )
    return "0 says that nothing is left unexplained; it does not say that the map is right."


@exercise
def check_ratio(answer: Any) -> str:
    """Share of heat inside a mask over the share of pixels in it."""
    generator = torch.Generator().manual_seed(1)
    heat = torch.rand(6, 8, generator=generator)
    mask = torch.rand(6, 8, generator=generator) > 0.7
    for one in (heat, torch.ones(6, 8), mask.float()):
        found = number(ask(answer, one, mask), "what your function returns")
        share, area = float(one[mask].sum() / one.sum()), float(mask.float().mean())
        if abs(found - share / area) < 1e-4:
            continue
        if abs(found - share) < 1e-4:
            raise ExerciseError(
                "this is the share of the heat alone: compare it with the share of the pixels"
            )
        if abs(found - area / share) < 1e-4:
            raise ExerciseError("upside down: the share of the heat comes above the line")
        raise ExerciseError(
            f"with {share:.0%} of the heat on {area:.0%} of the pixels the ratio is {share / area:.2f}, not {found:.2f}"
        )
    return "1 for even heat, and 1 over the area for a perfect map."
