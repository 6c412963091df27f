"""Solutions of notebook 01, by exercise: checker -> answer; and wrong answers that the checkers must refuse."""

import math

import torch


def psnr(restored, clean):
    """-10 log10 of the mean squared error."""
    return -10 * math.log10((restored - clean).square().mean())


def bluish(photo):
    """More blue, and less green by as much as keeps luma."""
    t = 0.2
    return photo + torch.tensor([0.0, -t * 0.114 / 0.587, t]).view(3, 1, 1)


SOLUTIONS = {
    "check_constant_error": 20 * math.log10(255 / 10),
    "check_psnr": psnr,
    "check_unseen_by_luma": bluish,
    "check_two_papers": "A",
}
WRONG = {
    "check_constant_error": [10 * math.log10(255 / 10), 20 * math.log(25.5), 20.0, "much"],
    "check_psnr": [
        lambda x, y: 10 * math.log10((x - y).square().mean()),
        lambda x, y: 10 * math.log10(255**2 / (x - y).square().mean()),
        lambda x, y: -10 * math.log((x - y).square().mean()),
        lambda x, y: -10 * math.log10((x - y).abs().mean()),
        lambda x, y: x - y,
        lambda x, y: x / 0 + missing,  # noqa: F821
    ],
    "check_unseen_by_luma": [
        lambda photo: photo,
        lambda photo: photo + torch.tensor([0.1, -0.1, 0.0]).view(3, 1, 1),
        lambda photo: photo.flip(0),
        lambda photo: bluish(photo)[:2],
        lambda photo: photo + 9 * (bluish(photo) - photo),
    ],
    "check_two_papers": ["B", "both"],
}
