"""Clean photos without a download: what scikit-image and scikit-learn ship, and endless "dead leaves".

| name | licence, as its package states it | used for |
|---|---|---|
| china | CC BY 2.0, photo by danielbuechele | held out |
| coffee, chelsea | CC0 | held out |
| rocket | public domain, SpaceX | held out |
| flower | CC BY 2.0, photo by vultilion | training |
| astronaut | public domain, NASA | training |
| brick, camera, grass, gravel (grey) | CC0 | training |
| immunohistochemistry, motorcycle | none stated: never drawn in a figure | training |

The packages' other photos (stars, a retina, the Moon) are too unlike rainy scenes to train on.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ddsa_lab.errors import LabError, choose

TRAIN_PHOTOS: tuple[str, ...] = (
    "flower", "astronaut", "motorcycle", "immunohistochemistry", "grass", "gravel", "brick", "camera",
)  # fmt: skip
HELD_OUT_PHOTOS: tuple[str, ...] = ("china", "coffee", "chelsea", "rocket")
PHOTOS: tuple[str, ...] = HELD_OUT_PHOTOS + TRAIN_PHOTOS

SMALLEST_LEAF = 2.5  # pixels; radii follow r^-3 from here, which makes the image look alike at every scale


def sample_photo(name: str) -> Tensor:
    """Return a bundled photo as (3, H, W) float32 RGB in [0, 1]; grey photos have three equal channels.

    Raises:
        LabError: no bundled photo of this name.
    """
    pixels = torch.from_numpy(_load(choose("bundled photo", name, PHOTOS)))
    if pixels.ndim == 2:
        pixels = pixels[..., None].expand(-1, -1, 3)
    return pixels.permute(2, 0, 1).float().div_(255).contiguous()


def _load(name: str) -> np.ndarray:
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        return np.array(load_sample_image(f"{name}.jpg"))
    from skimage import data

    # Of the stereo pair only one photo is used: the other is nearly the same.
    load: Callable[[], np.ndarray] = (
        (lambda: data.stereo_motorcycle()[0]) if name == "motorcycle" else getattr(data, name)
    )
    return np.array(load())


def dead_leaves(height: int, width: int, seed: int) -> Tensor:
    """Paint a colour image of overlapping shapes with the statistics of natural photos.

    Shapes of many sizes hide one another, as things do in a scene; each has its own colour, shading and
    texture. The power spectrum falls about as 1/frequency^2.

    Args:
        height, width: pixels.
        seed: not negative; the image depends on nothing else.

    Returns:
        (3, H, W) float32 in [0, 1].

    Raises:
        LabError: sizes below 1 or a negative seed.

    Source: Lee, Mumford and Huang, "Occlusion models for natural images", IJCV 41 (2001).
    """
    if min(height, width) < 1 or seed < 0:
        raise LabError(
            f"dead_leaves needs positive sizes and a seed of 0 or more, not {height} x {width}, {seed}"
        )
    rng = np.random.default_rng(seed)
    texture = _texture(max(height, width), rng)
    palette = _colours(int(rng.integers(3, 12)), rng)
    image = np.empty((3, height, width), np.float32)
    image[:] = palette[0][:, None, None] + 0.1 * texture[:height, :width]
    largest = max(2 * SMALLEST_LEAF, 0.4 * max(height, width))
    # Mean area of an r^-3 disc, for about three layers of leaves; leaves reach in from outside too.
    mean_area = 2 * math.pi * SMALLEST_LEAF**2 * math.log(largest / SMALLEST_LEAF)
    margin = 0.25 * largest
    count = int(2.5 * (height + 2 * margin) * (width + 2 * margin) / mean_area) + 1
    for leaf in _leaves(count, largest, margin, height, width, rng):
        _paint(image, leaf, palette[int(leaf[9] * len(palette))], texture)
    return torch.from_numpy(image.clip(0, 1))


def _colours(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 3): mostly muted, as the channels of natural photos go together."""
    light = rng.beta(1.2, 1.6, (count, 1))
    chroma = rng.normal(0, 1, (count, 3)) * rng.gamma(1.5, 0.08, (count, 1))
    return (light + chroma).clip(0, 1).astype(np.float32)


def _texture(side: int, rng: np.random.Generator) -> np.ndarray:
    """(side, side) noise with amplitude 1/frequency, standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) / frequency, (side, side))
    return (noise / max(noise.std(), 1e-12)).astype(np.float32)


def _leaves(
    count: int, largest: float, margin: float, height: int, width: int, rng: np.random.Generator
) -> list[list[float]]:
    """Rows of (x, y, half axes a, b, turn, exponent, softness, shading x, shading y, colour, texture)."""
    share = rng.random(count)
    low, high = SMALLEST_LEAF**-2, largest**-2
    radius = (low + share * (high - low)) ** -0.5  # inverse of the cumulative distribution of r^-3
    aspect = np.exp(rng.normal(0, 0.4, count))
    columns = (
        rng.uniform(-margin, width + margin, count),
        rng.uniform(-margin, height + margin, count),
        radius * aspect,
        radius / aspect,
        rng.uniform(0, math.pi, count),
        np.exp(rng.uniform(0, math.log(8), count)),  # 1 a diamond, 2 an ellipse, 8 nearly a box
        np.exp(rng.uniform(math.log(0.8), math.log(2.5), count)),
        rng.normal(0, 0.08, count),
        rng.normal(0, 0.08, count),
        rng.random(count),
        rng.gamma(1.0, 0.05, count),
    )
    return np.stack(columns, 1).tolist()


def _paint(image: np.ndarray, leaf: list[float], colour: np.ndarray, texture: np.ndarray) -> None:
    """Paint one superellipse |u|^n + |v|^n <= 1, its edge softened, over what is there."""
    x, y, a, b, turn, exponent, softness, shade_u, shade_v, dice, rough = leaf
    reach = 1.42 * max(a, b) + 2
    top, bottom = max(0, int(y - reach)), min(image.shape[1], int(y + reach) + 1)
    left, right = max(0, int(x - reach)), min(image.shape[2], int(x + reach) + 1)
    if top >= bottom or left >= right:
        return
    down = np.arange(top, bottom, dtype=np.float32)[:, None] - y
    across = np.arange(left, right, dtype=np.float32)[None] - x
    u = (math.cos(turn) * across + math.sin(turn) * down) / a
    v = (math.cos(turn) * down - math.sin(turn) * across) / b
    distance = (np.abs(u) ** exponent + np.abs(v) ** exponent) ** (1 / exponent) - 1
    cover = (0.5 - distance * (min(a, b) / softness)).clip(0, 1)
    varied = 0.25 * (dice * 7919 % 1 - 0.5)  # leaves of one colour differ in lightness
    light = varied + shade_u * u + shade_v * v + rough * texture[top:bottom, left:right]
    region = image[:, top:bottom, left:right]
    region += cover * (colour[:, None, None] + light - region)
