"""Does a restoration blur? Edges and fine texture measured against the clean image, beside and under streaks.

Each measure is 1 (or an infinite PSNR) for a perfect restoration. Blur lowers every one of them; left-over
rain and noise can raise what counts energy, so the `coherent` forms count only detail that is the clean image's own.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from ddsa_lab.errors import LabError, choose
from ddsa_lab.evaluation.metrics import PEAK, PROTOCOLS

EDGE_SHARE = 0.1
STREAK_LEVEL = 0.02  # about 5 of 255: what the eye begins to see
SIGMA = 1.5  # pixels; finer than this counts as high frequency


def luma(image: Tensor) -> Tensor:
    """Full-range luma (H, W) float64 of RGB (3, H, W). Source: ITU-R BT.601."""
    return torch.einsum(
        "c,chw->hw", torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64), image.double().cpu()
    )


def gradients(image: Tensor) -> Tensor:
    """Horizontal and vertical slope of luma by Sobel's filter, (2, H, W), in units of luma per pixel."""
    smooth, slope = torch.tensor([1.0, 2.0, 1.0]) / 4, torch.tensor([-1.0, 0.0, 1.0]) / 2
    kernels = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)]).double()
    padded = pad(luma(image)[None, None], (1, 1, 1, 1), mode="replicate")
    return conv2d(padded, kernels[:, None])[0]


def edge_mask(clean: Tensor, share: float = EDGE_SHARE) -> Tensor:
    """The `share` of pixels of a clean image with the steepest luma, bool (H, W); flat pixels are never edges.

    Raises:
        LabError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise LabError(f"share is {share}, but the share of pixels that count as edges must lie in (0, 1]")
    steepness = gradients(clean).norm(dim=0)
    rank = max(1, math.ceil((1 - share) * steepness.numel()))  # torch's `quantile` refuses large images
    return (steepness >= steepness.flatten().kthvalue(rank).values) & (steepness > 1e-6)


def gradient_ratio(
    restored: Tensor, clean: Tensor, where: Tensor | None = None, coherent: bool = False
) -> float:
    """How steep the restored image is against the clean one, on the clean image's edges.

    Args:
        restored, clean: (3, H, W) RGB in [0, 1].
        where: bool (H, W), pixels to look at; by default `edge_mask(clean)`.
        coherent: count only slopes along the clean image's own: <g_r, g_c> / <g_c, g_c>, which left-over rain does
            not raise; otherwise sum |g_r| / sum |g_c|.

    Returns:
        1 for equal steepness, below 1 for blur; NaN where the clean image has no edges.

    Raises:
        LabError: images of different sizes.
    """
    _check(restored, clean)
    where = edge_mask(clean) if where is None else where.cpu()
    ours, theirs = gradients(restored)[:, where], gradients(clean)[:, where]  # (2, pixels)
    if coherent:
        return _ratio((ours * theirs).sum(), theirs.square().sum())
    return _ratio(ours.norm(dim=0).sum(), theirs.norm(dim=0).sum())


def edge_psnr(
    restored: Tensor, clean: Tensor, where: Tensor | None = None, protocol: str = "y_uint8"
) -> float:
    """PSNR in dB on the clean image's edges only; infinite for equal pixels, NaN without edges.

    Args:
        restored, clean: (3, H, W) RGB in [0, 1].
        where: bool (H, W), pixels to look at; by default `edge_mask(clean)`.
        protocol: see `metrics.PROTOCOLS`.

    Raises:
        LabError: images of different sizes, an unknown protocol.
    """
    _check(restored, clean)
    where = (edge_mask(clean) if where is None else where).cpu().numpy()
    chosen = PROTOCOLS[choose("protocol", protocol, PROTOCOLS)]
    errors = (chosen.planes(restored, "restored") - chosen.planes(clean, "clean"))[:, where]
    if not errors.size:
        return math.nan
    error = float((errors**2).mean())
    return math.inf if error == 0 else 10 * math.log10(PEAK**2 / error)


def high_pass(image: Tensor, sigma: float = SIGMA) -> Tensor:
    """What a Gaussian blur of luma takes away, (H, W)."""
    y = luma(image)
    radius = math.ceil(4 * sigma)
    kernel = torch.exp(-torch.arange(-radius, radius + 1, dtype=torch.float64).square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = pad(y[None, None], (radius,) * 4, mode="replicate")
    return y - conv2d(conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[0, 0]


def high_frequency_kept(
    restored: Tensor,
    clean: Tensor,
    streaks: Tensor | None = None,
    sigma: float = SIGMA,
    coherent: bool = False,
) -> dict[str, float]:
    """Energy of fine detail in the restored image against the clean one: everywhere, under and beside streaks.

    Args:
        restored, clean: (3, H, W) RGB in [0, 1].
        streaks: (1, H, W) streak layer; with it, "inside" covers pixels where it exceeds 0.02, "outside" the others.
        sigma: detail finer than a Gaussian of this many pixels counts.
        coherent: count only detail that is the clean image's own: <h_r, h_c> / <h_c, h_c>; otherwise sum h_r^2 /
            sum h_c^2, which left-over rain raises above 1.

    Returns:
        {"all": ..} and, with streaks, "inside" and "outside"; 1 is all of it, NaN where there is none to keep.

    Raises:
        LabError: images or streaks of different sizes.
    """
    _check(restored, clean)
    ours, theirs = high_pass(restored, sigma), high_pass(clean, sigma)
    regions = {"all": torch.ones_like(ours, dtype=torch.bool)}
    if streaks is not None:
        if streaks.shape[-2:] != clean.shape[-2:]:
            raise LabError(
                f"streaks have {tuple(streaks.shape[-2:])} pixels, but the images {tuple(clean.shape[-2:])}"
            )
        inside = streaks.reshape(clean.shape[-2:]).cpu() > STREAK_LEVEL
        regions |= {"inside": inside, "outside": ~inside}
    product = ours * theirs if coherent else ours.square()
    return {
        name: _ratio(product[where].sum(), theirs[where].square().sum()) for name, where in regions.items()
    }


def detail_measures(restored: Tensor, clean: Tensor, streaks: Tensor | None = None) -> dict[str, float]:
    """All measures of this module as one row of a table, (3, H, W) images in [0, 1].

    Returns:
        gradient_ratio, gradient_coherent, edge_psnr (y_uint8), and high_frequency_<region> and
        coherent_<region> for the regions of `high_frequency_kept`.
    """
    edges = edge_mask(clean)
    row = {
        "gradient_ratio": gradient_ratio(restored, clean, edges),
        "gradient_coherent": gradient_ratio(restored, clean, edges, coherent=True),
        "edge_psnr": edge_psnr(restored, clean, edges),
    }
    for prefix, coherent in (("high_frequency", False), ("coherent", True)):
        kept = high_frequency_kept(restored, clean, streaks, coherent=coherent)
        row |= {f"{prefix}_{region}": value for region, value in kept.items()}
    return row


def _check(restored: Tensor, clean: Tensor) -> None:
    if restored.dim() != 3 or restored.shape[0] != 3 or restored.shape != clean.shape:
        raise LabError(
            f"restored has shape {tuple(restored.shape)} and clean {tuple(clean.shape)}: give two (3, H, W) images"
        )


def _ratio(part: Tensor, whole: Tensor) -> float:
    # Rounding leaves about 1e-30 of energy in a flat image, which is none.
    return float(part / whole) if float(whole) > 1e-20 else math.nan
