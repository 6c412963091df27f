"""Checks of notebook 01: decibels, PSNR written anew, and what luma cannot see."""

import math
from typing import Any

import torch

from ddsa_lab.course import ExerciseError, ask, exercise, number, tensor

LUMA = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)


@exercise
def check_constant_error(answer: Any) -> str:
    """PSNR of an error of 10 levels everywhere."""
    dB = number(answer, "the PSNR")
    right = 20 * math.log10(255 / 10)
    if abs(dB - right / 2) < 0.1:
        raise ExerciseError(
            "this is 10 log10(255 / 10): the error and the peak must be squared, or take 20 log10"
        )
    if abs(dB - 20 * math.log(255 / 10)) < 0.1:
        raise ExerciseError("decibels use the logarithm to base 10, and this looks like the natural one")
    if abs(dB - right) > 0.05:
        raise ExerciseError(
            f"{dB:.2f} dB is not 10 log10(255^2 / MSE): what is the MSE if every error is 10?"
        )
    return f"20 log10(255 / 10) = {right:.2f} dB."


def _images() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(3, 12, 17, generator=generator)
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=generator)
    return [(noisy, clean), (clean + torch.tensor([0.3, 0.0, 0.0]).view(3, 1, 1), clean)]


@exercise
def check_psnr(answer: Any) -> str:
    """PSNR as a function."""
    for restored, clean in _images():
        dB = number(ask(answer, restored, clean), "what your function returns")
        mse = (restored - clean).square().mean().item()
        right = -10 * math.log10(mse)
        if abs(dB + right) < 1e-3:
            raise ExerciseError("the sign is turned round: PSNR rises as the error falls")
        if abs(dB - right - 20 * math.log10(255)) < 1e-2:
            raise ExerciseError("the images lie in [0, 1], so the peak is 1 and not 255")
        if abs(dB + 10 * math.log(mse)) < 1e-3:
            raise ExerciseError("decibels use the logarithm to base 10, and this is the natural one")
        if abs(dB - right / 2) < 1e-3:
            raise ExerciseError("this is half of it: 10 log10 of the squared error, or 20 log10 of its root")
        if abs(dB - right) > 1e-3:
            raise ExerciseError(
                f"for a mean squared error of {mse:.4f} your function gives {dB:.2f} dB and not {right:.2f}: "
                "square the differences, take the mean over all values, then -10 log10"
            )
    return "The same to a thousandth of a decibel as the definition."


@exercise
def check_unseen_by_luma(answer: Any) -> str:
    """A change of colour that leaves luma as it is."""
    import ddsa_lab as lab

    photo = 0.3 + 0.4 * lab.sample_photo("coffee")[:, 100:164, 100:164]
    before = photo.clone()
    changed = tensor(ask(answer, photo), tuple(photo.shape), "the changed photo")
    if changed.min() < 0 or changed.max() > 1:
        raise ExerciseError(
            f"the changed photo runs from {changed.min():.2f} to {changed.max():.2f}, outside [0, 1]: change it less"
        )
    luma = float(((changed - before) * LUMA).sum(0).abs().max())
    if luma > 2e-3:
        raise ExerciseError(
            f"luma changes by up to {luma:.3f}: what red adds, 0.299 of it, must be taken away by the others' shares"
        )
    change = float((changed - before).abs().mean())
    if change < 0.03:
        raise ExerciseError(
            f"the colours change by {change:.3f} on average, which nobody sees: 0.03 is asked for"
        )
    rgb, y = (lab.psnr(changed, before, protocol) for protocol in ("rgb", "y_full"))
    return f"RGB sees it ({rgb:.1f} dB), luma hardly ({y:.1f} dB)."


@exercise
def check_two_papers(answer: Any) -> str:
    """Which of two scores is better, across protocols?"""
    if answer not in ("A", "B"):
        raise ExerciseError(f'answer "A" or "B", not {answer!r}')
    if answer == "B":
        raise ExerciseError("B's ruler adds 1.32 dB: take it off, and compare again")
    return "A's 31.00 dB would be 32.32 dB in B's units: A is closer by 0.32 dB."
