"""Rain made to order: sample its parameters, render the streaks, add them to a clean photo.

Two kinds of streak cover what Rain100/200 L and H show (seen on their training pairs): `drop` streaks
are soft across and along, mostly dim with a few bright stretches, come in loose chains, and may have
beads and sway; `line` streaks are hard-edged, equally bright, and do not add up where they overlap. Both
are neutral grey and only ever brighten the photo. A light image holds drops of one direction, a heavy one up to five layers.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddsa_lab.data.streak_measures import streak_statistics
from ddsa_lab.data.streaks import MAX_ANGLE, RainLayer, render_layer
from ddsa_lab.errors import LabError, choose

__all__ = [
    "PRESETS",
    "RainLayer",
    "RainParams",
    "RainPreset",
    "RainyPair",
    "add_rain",
    "find_presets",
    "rain_on",
    "rainy_pair",
    "render_rain",
    "sample_rain",
    "streak_statistics",
]

AIRLIGHT = 0.75  # grey level of the mist that a veil mixes in

Range = tuple[float, float]


@dataclass(frozen=True)
class RainParams:
    """Everything about one rain but the places of its streaks: layers, and a veil of mist in [0, 1)."""

    layers: tuple[RainLayer, ...]
    veil: float = 0.0


@dataclass(frozen=True)
class RainPreset:
    """Ranges from which `sample_rain` draws; lengths, widths, covers and brightnesses log-uniformly."""

    layers: tuple[int, int]
    angle: Range  # degrees, direction of the rain
    fan: Range  # degrees, how far single layers turn away from it (either side)
    length: Range
    width: Range
    cover: Range  # of all layers together
    brightness: Range
    contrast: Range = (0.5, 0.9)
    cluster: Range = (1.0, 5.0)
    lines: float = 0.0  # chance that a layer consists of hard lines
    line_brightness: Range = (0.2, 0.5)
    line_cover: Range = (0.2, 0.7)  # of each such layer
    veil: Range = (0.0, 0.0)
    beads: Range = (0.0, 0.0)
    sway: Range = (0.0, 0.0)


PRESETS: dict[str, RainPreset] = {  # lightest first
    "drizzle": RainPreset(
        layers=(1, 2), angle=(-20, 20), fan=(0, 4), length=(8, 20), width=(1.0, 1.6), cover=(0.15, 0.4),
        brightness=(0.05, 0.14), cluster=(1.0, 2.0), veil=(0.0, 0.12),
    ),
    "light": RainPreset(
        layers=(1, 2), angle=(-40, 40), fan=(0, 2), length=(25, 100), width=(1.2, 2.3), cover=(0.25, 0.8),
        brightness=(0.055, 0.15), lines=0.05, line_brightness=(0.06, 0.2), line_cover=(0.05, 0.2),
    ),
    "beaded": RainPreset(
        layers=(1, 2), angle=(-30, 30), fan=(0, 2), length=(25, 100), width=(1.2, 2.5), cover=(0.25, 0.8),
        brightness=(0.065, 0.19), cluster=(1.0, 4.0), beads=(0.3, 1.0), sway=(0.0, 0.6),
    ),
    "heavy": RainPreset(
        layers=(1, 5), angle=(-35, 35), fan=(0, 20), length=(25, 100), width=(1.2, 2.6), cover=(0.4, 1.8),
        brightness=(0.08, 0.25), lines=0.35, line_brightness=(0.12, 0.4), line_cover=(0.1, 0.5),
    ),
    "storm": RainPreset(
        layers=(2, 4), angle=(-35, 35), fan=(2, 20), length=(25, 100), width=(1.3, 3.0), cover=(0.7, 1.4),
        brightness=(0.14, 0.26), lines=0.4, line_brightness=(0.15, 0.35), line_cover=(0.2, 0.5),
        veil=(0.03, 0.12),
    ),
}  # fmt: skip


class RainyPair(NamedTuple):
    """A clean photo, the same under rain, and the streaks between them."""

    clean: Tensor  # (3, H, W) in [0, 1]
    rainy: Tensor  # (3, H, W) in [0, 1]
    streaks: Tensor  # (1, H, W), >= 0


def find_presets(rain: str) -> list[RainPreset]:
    """Return the presets of one name, or of several joined by plus ("light+heavy").

    Raises:
        LabError: no preset of one of the names.
    """
    return [PRESETS[choose("rain preset", name.strip(), PRESETS)] for name in str(rain).split("+")]


class _Draw:
    """Scalar draws from one generator, made in one call because small tensor operations cost most."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self._values = iter(torch.rand(count, generator=generator, dtype=torch.float64).tolist())

    def unit(self) -> float:
        return next(self._values)

    def uniform(self, limits: Range) -> float:
        return limits[0] + (limits[1] - limits[0]) * self.unit()

    def log_uniform(self, limits: Range) -> float:
        return math.exp(self.uniform((math.log(limits[0]), math.log(limits[1]))))

    def whole(self, limits: tuple[int, int]) -> int:
        return limits[0] + int(self.unit() * (limits[1] - limits[0] + 1))


def sample_rain(preset: str | RainPreset, generator: torch.Generator) -> RainParams:
    """Draw one rain from a preset.

    Args:
        preset: "light" and "beaded" (like Rain200L), "heavy" (like Rain200H), "drizzle", "storm", or ranges of your own.
        generator: CPU generator; its state alone decides the draw.

    Raises:
        LabError: unknown preset name.
    """
    if not isinstance(preset, RainPreset):
        preset = PRESETS[choose("rain preset", preset, PRESETS)]
    # Without beads as many numbers as ever: a seed stands for the same rain.
    draw = _Draw(4 + (18 if preset.beads[1] or preset.sway[1] else 16) * preset.layers[1], generator)
    count = draw.whole(preset.layers)
    angle = draw.uniform(preset.angle)
    cover = draw.log_uniform(preset.cover) / count
    veil = draw.uniform(preset.veil)
    return RainParams(tuple(_sample_layer(preset, draw, angle, cover) for _ in range(count)), veil)


def _sample_layer(preset: RainPreset, draw: _Draw, angle: float, cover: float) -> RainLayer:
    is_line = draw.unit() < preset.lines
    side = 1.0 if draw.unit() < 0.5 else -1.0
    turned = angle + side * draw.uniform(preset.fan)
    brightness = draw.log_uniform(preset.line_brightness if is_line else preset.brightness)
    line_cover = draw.log_uniform(preset.line_cover)
    ceiling = draw.uniform((1.0, 1.3))
    return RainLayer(
        angle=max(-MAX_ANGLE, min(MAX_ANGLE, turned)),
        angle_spread=draw.uniform((0.0, 0.5) if is_line else (0.1, 1.2)),
        length=draw.log_uniform(preset.length),
        length_spread=draw.uniform((0.2, 0.6)),
        width=draw.log_uniform((1.0, preset.width[1]) if is_line else preset.width),
        cover=line_cover if is_line else cover,
        brightness=brightness,
        contrast=draw.uniform((0.0, 0.15) if is_line else preset.contrast),
        cluster=draw.uniform(preset.cluster),
        profile="line" if is_line else "drop",
        faint=draw.uniform((0.2, 0.7)),
        edge=draw.log_uniform((0.8, 8.0)),
        ceiling=min(1.0, brightness * ceiling) if is_line else 1.0,
        beads=draw.uniform(preset.beads) if preset.beads[1] else 0.0,
        sway=draw.uniform(preset.sway) if preset.sway[1] else 0.0,
    )


def render_rain(params: RainParams, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw the streaks of one rain.

    Args:
        params: from `sample_rain`, or written by hand.
        height, width: pixels.
        generator: CPU generator that places the streaks.

    Returns:
        (1, H, W) float32, what the rain adds to each channel, >= 0 and not clipped above.

    Raises:
        LabError: sizes below 1, or a layer whose angle or extent cannot be drawn.
    """
    if height < 1 or width < 1:
        raise LabError(f"height and width must be at least 1 pixel, not {height} x {width}")
    canvas = torch.zeros(height, width)
    for layer in params.layers:
        canvas += render_layer(layer, height, width, generator)
    return canvas[None]


def add_rain(clean: Tensor, streaks: Tensor, veil: float = 0.0) -> Tensor:
    """Return the rainy photo: mist first, then the streaks on top, clipped.

    Args:
        clean: (3, H, W) in [0, 1].
        streaks: (1, H, W), >= 0, from `render_rain`.
        veil: share of light grey mixed in, in [0, 1); it lifts blacks.

    Returns:
        (3, H, W), clip(clean (1 - veil) + 0.75 veil + streaks, 0, 1).

    Raises:
        LabError: sizes differ, or the veil is outside [0, 1).
    """
    if clean.shape[-2:] != streaks.shape[-2:]:
        raise LabError(
            f"photo is {tuple(clean.shape[-2:])} but streaks are {tuple(streaks.shape[-2:])} pixels"
        )
    if not 0 <= veil < 1:
        raise LabError(f"veil must be in [0, 1), not {veil}")
    misty = clean * (1 - veil) + AIRLIGHT * veil if veil else clean
    return (misty + streaks).clamp_(0, 1)


def rainy_pair(
    photo: str | Path | Tensor, rain: str = "light", seed: int = 0, size: int | None = None
) -> RainyPair:
    """Put rain on a photo.

    Args:
        photo: name of a bundled photo ("coffee", "china", ...), path of an image, or (3, H, W) in [0, 1].
        rain: preset, or several joined by plus ("light+heavy": one of them is drawn).
        seed: decides the rain.
        size: side of a square cut from the middle; the whole photo by default.

    Raises:
        LabError: unknown photo or preset, or a size that is not positive or larger than the photo.
    """
    clean = _find_photo(photo)
    if size is not None:
        clean = _centre_crop(clean, size)
    generator = torch.Generator().manual_seed(seed)
    return rain_on(clean, rain, generator)


def rain_on(clean: Tensor, rain: str, generator: torch.Generator) -> RainyPair:
    """Put rain from one of the presets joined by plus on a clean (3, H, W) image."""
    presets = find_presets(rain)
    pick = int(torch.randint(len(presets), (), generator=generator)) if len(presets) > 1 else 0
    params = sample_rain(presets[pick], generator)
    streaks = render_rain(params, clean.shape[-2], clean.shape[-1], generator)
    return RainyPair(clean, add_rain(clean, streaks, params.veil), streaks)


def _find_photo(photo: str | Path | Tensor) -> Tensor:
    if isinstance(photo, Tensor):
        if photo.ndim != 3 or photo.shape[0] != 3 or not photo.is_floating_point():
            raise LabError(
                f"a photo must be float (3, H, W) in [0, 1], not {photo.dtype} {tuple(photo.shape)}"
            )
        return photo
    from ddsa_lab.data.images import load_image
    from ddsa_lab.data.photos import PHOTOS, sample_photo

    if photo in PHOTOS or not (Path(photo).suffix or Path(photo).exists()):
        return sample_photo(str(photo))
    return load_image(photo)


def _centre_crop(image: Tensor, size: int) -> Tensor:
    height, width = image.shape[-2:]
    if not 1 <= size <= min(height, width):
        raise LabError(
            f"size must be from 1 to {min(height, width)} for this {height} x {width} photo, not {size}"
        )
    top, left = (height - size) // 2, (width - size) // 2
    return image[:, top : top + size, left : left + size]
