"""What the explorers look at: photos under rain and networks, found once and then remembered."""

import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ddsa_lab.data.images import read_photo
from ddsa_lab.data.photos import HELD_OUT_PHOTOS, sample_photo
from ddsa_lab.data.rain import PRESETS, RainyPair, rain_on
from ddsa_lab.errors import LabError
from ddsa_lab.model.checkpoints import load, shipped_weights
from ddsa_lab.model.network import DerainTransformer, NetworkConfig

UNTRAINED = "untrained"
NO_RAIN = "none (as it is)"
UPLOAD_MB, UPLOAD_MEGAPIXELS, UPLOAD_SIDE = 8.0, 60.0, 512

# Bundled photos with the place of the square that an explorer shows: something to see, and edges that can blur.
CENTRES = {"china": (0.42, 0.5), "coffee": (0.5, 0.45), "chelsea": (0.38, 0.45), "rocket": (0.45, 0.5)}


@dataclass(frozen=True, eq=False)
class Uploaded:
    """A user's own photo, small enough for the explorers."""

    pixels: Tensor  # (3, H, W) in [0, 1]
    note: str  # what it is and what was done to it, one sentence


def photo_names() -> list[str]:
    """The bundled photos that no shipped network was trained on."""
    return list(HELD_OUT_PHOTOS)


def rain_names() -> list[str]:
    """Presets of rain, lightest first."""
    return list(PRESETS)


def weights_names() -> list[str]:
    """Shipped weights, and a network that has learned nothing."""
    return [*shipped_weights(), UNTRAINED]


@lru_cache(maxsize=4)
def network(weights: str) -> DerainTransformer:
    """The network of a shipped name, a file, or "untrained" (the tiny dual network as initialised).

    Raises:
        LabError: no such weights.
    """
    if weights == UNTRAINED:
        return DerainTransformer(NetworkConfig.preset("tiny")).eval()
    return load(weights)


@lru_cache(maxsize=8)
def _square(photo: str, size: int) -> Tensor:
    pixels = sample_photo(photo)
    size = min(size, *pixels.shape[-2:])
    down, across = CENTRES.get(photo, (0.5, 0.5))
    top, left = (
        min(max(0, round(share * side - size / 2)), side - size)
        for share, side in zip((down, across), pixels.shape[-2:])
    )
    return pixels[:, top : top + size, left : left + size].contiguous()


@lru_cache(maxsize=8)
def bundled_pair(photo: str, rain: str, seed: int, size: int) -> RainyPair:
    """A square of a bundled photo under rain.

    Raises:
        LabError: unknown photo or preset.
    """
    return rained(_square(photo, size), rain, seed)


def rained(clean: Tensor, rain: str, seed: int) -> RainyPair:
    """A photo (3, H, W) under rain of a preset, or as it is (`NO_RAIN`: clean and rainy are the same)."""
    if rain == NO_RAIN:
        return RainyPair(clean, clean, torch.zeros_like(clean[:1]))
    return rain_on(clean, rain, torch.Generator().manual_seed(seed))


def read_upload(name: str, content: bytes, side: int = UPLOAD_SIDE) -> Uploaded:
    """Read an uploaded file as a photo and shrink it for the explorers.

    Args:
        name: the file's name, for messages.
        content: its bytes.
        side: the longer side is shrunk to this many pixels.

    Raises:
        LabError: the file is too large, or no photo that can be read.
    """
    name = Path(name.replace("\\", "/")).name[:80] or "the file"
    if len(content) > UPLOAD_MB * 1e6:
        raise LabError(f"{name} has {len(content) / 1e6:.0f} MB: choose a photo of at most {UPLOAD_MB:g} MB")
    with tempfile.TemporaryDirectory() as folder:
        # The name is the user's and may hold anything: the file gets one of ours.
        path = Path(folder) / "upload"
        path.write_bytes(content)
        try:
            photo = read_photo(path, megapixels=UPLOAD_MEGAPIXELS)
        except LabError as error:
            raise LabError(str(error).replace(str(path), name).replace("upload", name)) from None
    height, width = photo.pixels.shape[-2:]
    scale = side / max(height, width)
    note = f"{name}: {width} x {height} pixels"
    if scale >= 1:
        return Uploaded(photo.pixels, note)
    size = [max(1, round(length * scale)) for length in (height, width)]
    small = torch.nn.functional.interpolate(photo.pixels[None], size, mode="bilinear", antialias=True)[0]
    return Uploaded(small.clamp(0, 1), f"{note}, shrunk to {size[1]} x {size[0]} for this page")
