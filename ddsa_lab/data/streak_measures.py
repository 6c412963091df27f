"""Measures of a streak layer, by which made rain is compared with a benchmark's."""

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

from ddsa_lab.errors import LabError

BLUR = 1.2  # pixels, standard deviation of the Gaussian under the structure tensor
VISIBLE = 10 / 255  # a streak pixel this bright is counted as rain


def streak_statistics(streaks: Tensor) -> dict[str, float]:
    """Describe a streak layer, for instance rainy minus clean of a benchmark pair.

    Args:
        streaks: (1, H, W) or (H, W), brightness added, 1 is white; at least 16 x 16 pixels.

    Returns:
        `mean`, `p99`: mean and 99th percentile of brightness; `visible`: share of pixels above 10/255;
        `psnr`: of a photo to which just this was added, dB;
        `direction`: degrees from vertical, positive leans towards the lower right, from the structure tensor;
        `direction_spread`: degrees, circular standard deviation of local direction, weighted by gradient energy;
        `coherence`: 0 (no direction) to 1 (one direction everywhere);
        `width`, `length`: pixels, full width at half height of the autocorrelation across and along `direction`.

    Raises:
        LabError: not one channel, or too small.
    """
    layer = streaks.detach().float()
    layer = layer[0] if layer.ndim == 3 and layer.shape[0] == 1 else layer
    if layer.ndim != 2 or min(layer.shape) < 16:
        raise LabError(f"streaks must be (1, H, W) of at least 16 x 16 pixels, not {tuple(streaks.shape)}")
    direction, spread, coherence = _direction(layer)
    energy = float(layer.square().mean())
    return {
        "mean": float(layer.mean()),
        "p99": float(layer.flatten().kthvalue(max(1, round(0.99 * layer.numel()))).values),
        "visible": float((layer > VISIBLE).float().mean()),
        "psnr": -10 * math.log10(energy) if energy > 0 else math.inf,
        "direction": math.degrees(direction),
        "direction_spread": math.degrees(spread),
        "coherence": coherence,
        **_extent(layer, direction),
    }


def _direction(layer: Tensor) -> tuple[float, float, float]:
    """Direction, its spread (both radians) and coherence of the structure tensor."""
    # Derivatives of a Gaussian favour no direction, as plain differences of pixel-sharp lines do.
    reach = torch.arange(-4.0, 5.0)
    bell = torch.exp(-0.5 * (reach / BLUR) ** 2)
    slope = reach * bell
    dx = conv2d(conv2d(layer[None, None], bell.view(1, 1, -1, 1)), slope.view(1, 1, 1, -1))[0]
    dy = conv2d(conv2d(layer[None, None], slope.view(1, 1, -1, 1)), bell.view(1, 1, 1, -1))[0]
    products = torch.cat((dx * dx, dy * dy, dx * dy))
    window = min(17, *products.shape[1:])
    xx, yy, xy = avg_pool2d(products, window, stride=max(1, window // 2))
    energy = (xx + yy).sum().clamp(min=1e-20)
    # Doubled angles: a direction and its opposite are the same streak.
    local = torch.atan2(2 * xy, xx - yy)
    weight = (xx + yy) / energy
    cosine, sine = float((weight * local.cos()).sum()), float((weight * local.sin()).sum())
    resultant = min(1.0, max(1e-9, math.hypot(cosine, sine)))
    total = math.hypot(float((xx - yy).sum()), float(2 * xy.sum())) / float(energy)
    # The gradient points across the streak, and rows grow downwards.
    return -0.5 * math.atan2(sine, cosine), 0.5 * math.sqrt(-2 * math.log(resultant)), total


def _extent(layer: Tensor, direction: float) -> dict[str, float]:
    """Full widths at half height of the autocorrelation, across and along."""
    height, width = layer.shape
    spectrum = torch.fft.rfft2(layer - layer.mean(), s=(2 * height, 2 * width)).abs().square()
    correlation = torch.fft.fftshift(torch.fft.irfft2(spectrum, s=(2 * height, 2 * width)))
    correlation = correlation / correlation.max().clamp(min=1e-20)
    across = (math.cos(direction), -math.sin(direction))
    along = (math.sin(direction), math.cos(direction))
    return {"width": _half_width(correlation, across), "length": _half_width(correlation, along)}


def _half_width(correlation: Tensor, step: tuple[float, float]) -> float:
    """Distance from the centre to where the correlation first falls below a half, twice."""
    height, width = correlation.shape
    distance = torch.arange(0, min(height, width) // 2 - 1, 0.25)
    x, y = width // 2 + distance * step[0], height // 2 + distance * step[1]
    left, top = x.floor().long(), y.floor().long()
    fx, fy = x - left, y - top
    upper = correlation[top, left] * (1 - fx) + correlation[top, left + 1] * fx
    lower = correlation[top + 1, left] * (1 - fx) + correlation[top + 1, left + 1] * fx
    below = torch.nonzero((upper * (1 - fy) + lower * fy) < 0.5).flatten()
    return 2 * float(distance[below[0]]) if len(below) else 2 * float(distance[-1])
