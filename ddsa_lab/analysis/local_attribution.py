"""Local attribution maps: which pixels a restoration network used to draw one small window.

The path leads from a blurred image to the image by blurring less and less, so that details arrive
everywhere at once; the target is the edge content of the window. The diffusion index says in one number how
far over the image the used pixels spread.

Source: Gu and Dong, "Interpreting super-resolution networks with local attribution maps", CVPR 2021.
"""

import torch
from torch import Tensor, nn

from ddsa_lab.analysis.attribution import (
    Attribution,
    Target,
    Window,
    affordable_chunk,
    edge_content,
    evaluate,
    frozen,
    gaussian_blur,
    held_keys,
)
from ddsa_lab.analysis.sparsity import gini
from ddsa_lab.analysis.targets import one_image, scalar
from ddsa_lab.errors import LabError


class LocalAttribution(Attribution):
    """A local attribution map; `diffusion` is its diffusion index."""

    @property
    def diffusion(self) -> float:
        """100 (1 - Gini coefficient of the map's absolute values): near 0 for one pixel, 100 for all alike.

        NaN for a map of zeros.
        """
        return 100 * (1 - float(gini(self.heat.double().flatten())))

    def __str__(self) -> str:
        return f"{super().__str__()}, diffusion index {self.diffusion:.1f}"


def local_attribution(
    model: nn.Module,
    image: Tensor,
    window: Window | tuple[int, int, int, int],
    sigma: float = 1.2,
    steps: int = 64,
    target: Target | None = None,
    chunk: int | None = None,
    hold_keys: bool = True,
) -> LocalAttribution:
    """Map the input pixels that a window of the output was made of.

    Args:
        model: maps (B, 3, H, W) to the same shape; used in evaluation mode and left as it was.
        image: (3, H, W) in [0, 1].
        window: (top, left, height, width) of the output.
        sigma: blur at the start of the path, in pixels; 1.2 is the paper's.
        steps: parts of the path.
        target: what is explained instead of the window's edge content.
        chunk: images that pass through the network at a time; None follows from the free memory.
        hold_keys: keep the image's own keys along the path, as in `attribute`.

    Returns:
        LocalAttribution with a (3, H, W) map on the CPU.

    Raises:
        LabError: a window outside the image, or a blur or number of steps that is not positive.
    """
    if sigma <= 0 or steps < 1 or (chunk or 1) < 1:
        raise LabError(f"sigma {sigma}, steps {steps} and chunk {chunk} must be positive")
    target = target or edge_content(window)
    x = one_image(image, target, next(model.parameters(), image))
    function, chunk = scalar(model, target), chunk or affordable_chunk(model, x)
    total = torch.zeros_like(x)
    with frozen(model):
        with held_keys(model, x if hold_keys else None) as held:
            for first in range(0, steps, chunk):
                total += _along(function, x, sigma, steps, range(first, min(first + chunk, steps)))
            start = gaussian_blur(x, sigma)
            value, base = evaluate(function, x), evaluate(function, start)
        choice = evaluate(function, start) - base if held else None
    return LocalAttribution(
        total[0].cpu(), "local attribution", str(target), target.window, value, base, steps, choice
    )


def _along(function, x: Tensor, sigma: float, steps: int, parts: range) -> Tensor:
    """Sum over parts of the path: gradient in the middle of each, times the image's change along it."""
    blurs = [[sigma * (1 - (i + shift) / steps) for i in parts] for shift in (0.0, 0.5, 1.0)]
    before, middle, after = (torch.cat([gaussian_blur(x, s) for s in row]) for row in blurs)
    middle.requires_grad_()
    (gradient,) = torch.autograd.grad(function(middle).sum(), middle)
    return (gradient * (after - before)).sum(0, keepdim=True)
