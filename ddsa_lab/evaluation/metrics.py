"""How close a restored image is to the clean one: PSNR and SSIM under protocols that have names.

The same pair of images gets a PSNR that differs by more than 1 dB from one paper's protocol to the next,
so a score never travels without its protocol. Every protocol here scores what a saved 8-bit file would
hold: values are clipped to [0, 1] and rounded to 8 bits first, so a tensor and its PNG score alike.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch

from ddsa_lab.errors import LabError, choose

PEAK = 255.0
WINDOW = 11  # Wang's SSIM: an 11 x 11 Gaussian window with standard deviation 1.5
SIGMA = 1.5

Image = torch.Tensor | np.ndarray


@dataclass(frozen=True)
class Protocol:
    """One way of turning two RGB images into PSNR and SSIM.

    `luma` is the channel compared: "matlab" (16 to 235), "full" (0 to 255) or None for all of RGB.
    `rounded` says whether luma itself is rounded to 8 bits before it is compared.
    """

    name: str
    description: str
    source: str
    luma: Literal["matlab", "full"] | None
    rounded: bool = False

    def planes(self, image: Image, what: str = "image") -> np.ndarray:
        """Return what this protocol compares: (planes, H, W) float64 in units of 0 to 255.

        Args:
            image: (3, H, W) floating point RGB in [0, 1].
            what: the image's name in error messages.

        Raises:
            LabError: not a floating point (3, H, W) image, empty, or not finite.
        """
        rgb = eight_bits(image, what)
        if self.luma == "matlab":
            return matlab_luma(rgb, self.rounded)[None]
        if self.luma == "full":
            return full_luma(rgb)[None]
        return rgb.astype(np.float64)


PROTOCOLS = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            Protocol(
                "y_uint8",
                "MATLAB luma of the 8-bit image (16 to 235), rounded to 8 bits, against a peak of 255",
                "the deraining papers' MATLAB scripts for Rain100L/H, Rain200L/H and SPA-Data "
                "(rgb2ycbcr on uint8, Wang's ssim_index.m)",
                "matlab",
                rounded=True,
            ),
            Protocol(
                "y_double",
                "MATLAB luma (16/255 to 235/255) in double precision, peak 1; SSIM on 255 times it",
                "the MATLAB scripts for DID-Data and DDN-Data (im2double, then rgb2ycbcr)",
                "matlab",
            ),
            Protocol(
                "y_full",
                "full-range luma 0.299 R + 0.587 G + 0.114 B (0 to 255), not rounded, peak 255",
                "ITU-R BT.601 luma at full range, as JPEG/JFIF and most Python libraries define it",
                "full",
            ),
            Protocol(
                "rgb",
                "all three colour channels, peak 255; SSIM is the mean of the channels' SSIM",
                "PSNR over RGB as in general image restoration; SSIM with Wang's window for each channel",
                None,
            ),
        )
    }
)


def eight_bits(image: Image, what: str = "image") -> np.ndarray:
    """Return the (3, H, W) uint8 values that saving `image` to an 8-bit file would store.

    Args:
        image: (3, H, W) floating point RGB in [0, 1]; values outside are clipped.
        what: the image's name in error messages.

    Raises:
        LabError: not a floating point (3, H, W) image, empty, or not finite.
    """
    if not isinstance(image, torch.Tensor):
        image = torch.from_numpy(np.ascontiguousarray(image))
    shape = tuple(image.shape)
    if image.ndim != 3 or shape[0] != 3 or image.numel() == 0:
        raise LabError(f"{what} has shape {shape}: give one RGB image of shape (3, height, width)")
    if not image.is_floating_point():
        raise LabError(f"{what} has type {image.dtype}: give floating point RGB in [0, 1]")
    values = image.detach().float().cpu()
    if not bool(torch.isfinite(values).all()):
        raise LabError(f"{what} holds NaN or infinite values, which no file can hold: check what made it")
    return (values.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def matlab_luma(rgb: np.ndarray, rounded: bool) -> np.ndarray:
    """Return MATLAB's Y (`rgb2ycbcr`) of 0-to-255 RGB: (H, W) float64, 16 for black, 235 for white.

    Args:
        rgb: (3, H, W) in units of 0 to 255.
        rounded: round to whole numbers, halves up, as MATLAB does for uint8 images.

    Source: ITU-R BT.601 studio range: Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255.
    """
    red, green, blue = rgb.astype(np.float64)
    # The whole-number sum is exact, so a half stays exactly a half and rounds the same way everywhere.
    luma = (65481 * red + 128553 * green + 24966 * blue) / 255000 + 16
    return np.floor(luma + 0.5) if rounded else luma


def full_luma(rgb: np.ndarray) -> np.ndarray:
    """Return full-range luma of 0-to-255 RGB: (H, W) float64, 0 for black, 255 for white.

    MATLAB's Y is 16 + 219/255 of this, so against the same peak of 255 it scores
    20 log10(255/219) = 1.32 dB more PSNR.

    Source: ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B.
    """
    red, green, blue = rgb.astype(np.float64)
    return (299 * red + 587 * green + 114 * blue) / 1000


def psnr(restored: Image, clean: Image, protocol: str = "y_uint8") -> float:
    """Return the peak signal-to-noise ratio in dB; infinite where the two are equal after 8-bit rounding.

    Args:
        restored, clean: (3, H, W) floating point RGB in [0, 1], of equal size.
        protocol: a name in PROTOCOLS.

    Raises:
        LabError: images that cannot be compared, or an unknown protocol.
    """
    return _psnr(*_planes(restored, clean, protocol))


def ssim(restored: Image, clean: Image, protocol: str = "y_uint8") -> float:
    """Return the structural similarity, 1 for equal images; NaN where a side is below 11 pixels.

    The windowed statistics exist only where the 11 x 11 window fits (Wang's "valid" region), so an
    image without room for one window has no SSIM; a smaller window would be another measure.

    Args:
        restored, clean: (3, H, W) floating point RGB in [0, 1], of equal size.
        protocol: a name in PROTOCOLS.

    Raises:
        LabError: images that cannot be compared, or an unknown protocol.

    Source: Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to
    structural similarity", 2004; K = (0.01, 0.03), L = 255, no down-sampling.
    """
    return _ssim(*_planes(restored, clean, protocol))


def score(restored: Image, clean: Image, protocol: str = "y_uint8") -> dict[str, float]:
    """Return {'psnr': dB, 'ssim': 0..1} of one restored image under one protocol.

    Args:
        restored, clean: (3, H, W) floating point RGB in [0, 1], of equal size.
        protocol: a name in PROTOCOLS.

    Raises:
        LabError: images that cannot be compared, or an unknown protocol.
    """
    planes = _planes(restored, clean, protocol)
    return {"psnr": _psnr(*planes), "ssim": _ssim(*planes)}


def _planes(restored: Image, clean: Image, protocol: str) -> tuple[np.ndarray, np.ndarray]:
    if tuple(restored.shape) != tuple(clean.shape):
        raise LabError(
            f"restored has shape {tuple(restored.shape)} but clean has {tuple(clean.shape)}: "
            "score images of equal size"
        )
    chosen = PROTOCOLS[choose("protocol", protocol, PROTOCOLS)]
    planes = chosen.planes(restored, "restored"), chosen.planes(clean, "clean")
    # A network may overshoot, but a ground truth that does is in other units, and clipping would hide it.
    low, high = float(clean.min()), float(clean.max())
    if low < -0.01 or high > 1.01:
        raise LabError(f"clean has values from {low:g} to {high:g}: give RGB in [0, 1]")
    return planes


def _psnr(restored: np.ndarray, clean: np.ndarray) -> float:
    error = float(np.mean((restored - clean) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(PEAK**2 / error))


def _ssim(restored: np.ndarray, clean: np.ndarray) -> float:
    from skimage.metrics import structural_similarity

    if min(clean.shape[1:]) < WINDOW:
        return float("nan")
    # Gaussian weights cut at 3.5 sigma make the 11-pixel window; the mean skips the 5 pixels of border
    # that it cannot cover; covariance without n - 1 is Wang's.
    values = [
        structural_similarity(
            one, other, data_range=PEAK, gaussian_weights=True, sigma=SIGMA, use_sample_covariance=False
        )
        for one, other in zip(restored, clean)
    ]
    return float(np.mean(values))
