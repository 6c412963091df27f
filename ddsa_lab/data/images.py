"""Photos in and out: any common format, size, depth and orientation, as RGB in [0, 1]."""

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddsa_lab.data.decode import (
    exif_of,
    has_more_frames,
    opened,
    orientation,
    register_heif,
    samples_of,
    shown,
    unreadable,
    upright,
)
from ddsa_lab.data.deep import write_deep
from ddsa_lab.errors import LabError, choose
from ddsa_lab.files import atomic_write

_WRITERS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP",
    ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP", ".heic": "HEIF", ".heif": "HEIF",
}  # fmt: skip
IMAGE_SUFFIXES: tuple[str, ...] = (*_WRITERS, ".gif")
_LARGEST_SIDE = {"JPEG": 65500, "WEBP": 16383}


@dataclass(frozen=True)
class Photo:
    """A photo as read from a file, with what its pixels alone don't say.

    Attributes:
        pixels: (3, H, W) float32 RGB in [0, 1], upright.
        alpha: (1, H, W) float32 in [0, 1], or None.
        grey: the file has one colour channel; `pixels` repeats it.
        bits: 8 or 16 bits a sample in the file.
        format: "PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF" or "HEIF".
        icc: the colour profile of `pixels`, or None.
        exif: EXIF block without the orientation (which `pixels` already follows), or None.
        notes: what was done to the content of the file, in plain words.
    """

    pixels: Tensor
    alpha: Tensor | None
    grey: bool
    bits: int
    format: str
    icc: bytes | None = None
    exif: bytes | None = None
    notes: tuple[str, ...] = ()


def read_photo(path: str | Path, megapixels: float = 250.0) -> Photo:
    """Read a photo of any supported kind.

    Args:
        path: PNG, JPEG, WebP, TIFF, BMP or GIF, recognised by content; HEIC with the extra `heic`.
        megapixels: largest accepted size in 10^6 pixels. It is compared with the size that the header
            declares, before any pixel is decoded.

    Returns:
        The first frame, rotated as its EXIF says; CMYK and palette colours converted to RGB.

    Raises:
        LabError: the file is missing, too large, damaged or of no known kind.
    """
    path = Path(path)
    try:
        with opened(path) as image:
            width, height = image.size
            if width * height > megapixels * 1e6:
                raise LabError(
                    f"{shown(path)} declares {width}x{height} pixels ({width * height / 1e6:.0f} megapixels), "
                    f"more than the {megapixels:g} accepted: crop or shrink it, or raise the limit"
                )
            return _decode(image, path)
    except LabError:
        raise
    except Exception as error:  # decoders fail on damaged files with any kind of error
        raise LabError(unreadable(path, error)) from error


def load_image(path: str | Path) -> Tensor:
    """The pixels of a photo: (3, H, W) float32 RGB in [0, 1]. See `read_photo`."""
    return read_photo(path).pixels


def save_image(image: Tensor, path: str | Path, like: Photo | None = None) -> None:
    """Write an image; the format follows the suffix, and the file appears whole or not at all.

    Args:
        image: (3, H, W), clamped to [0, 1].
        path: ends in one of `IMAGE_SUFFIXES` except .gif. JPEG is written at quality 95 without chroma
            subsampling, WebP at quality 95.
        like: the photo that the image was made from. Its colour profile, EXIF, alpha, greyness and 16 bits
            are kept where the format can hold them (alpha: PNG, WebP, TIFF, HEIF; 16 bits: PNG, TIFF, and
            there TIFF goes without EXIF).

    Raises:
        LabError: no such format, an image of another shape, with values that are no numbers or too large for
            the format, or a file that cannot be written.
    """
    path = Path(path)
    suffix = choose(f"image suffix (of {shown(path)})", path.suffix.lower(), _WRITERS)
    kind = _WRITERS[suffix]
    samples = _samples(image, like, kind)
    icc, exif = (like.icc, like.exif) if like else (None, None)
    if icc and (icc[16:20] == b"GRAY") != (samples.shape[2] < 3):
        icc = None  # a grey profile on colour samples, or the reverse, is worse than none
    if max(image.shape[1:]) > _LARGEST_SIDE.get(kind, 1 << 30):
        raise LabError(
            f"cannot write {shown(path)}: {kind} holds at most {_LARGEST_SIDE[kind]} pixels a side, and the image "
            f"has {image.shape[2]}x{image.shape[1]}; use .png or .tif"
        )
    with atomic_write(path) as temporary:
        if samples.dtype == np.uint16:
            write_deep(samples, temporary, icc, exif)
        else:
            _encode(samples, temporary, kind, icc, exif)


def list_images(folder: str | Path, recursive: bool = False) -> list[Path]:
    """Image files of a folder in natural order (2.png before 10.png); hidden files are left out.

    Raises:
        LabError: `folder` is missing, not a folder, or cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LabError(f"{shown(folder)} is {'a file, not a folder' if folder.exists() else 'not there'}")

    def unreadable(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise LabError(f"{shown(folder)} cannot be read: {error.strerror}") from error

    found = []
    for root, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        found += [Path(root, name) for name in names if not name.startswith(".")]
    return sorted((path for path in found if path.suffix.lower() in IMAGE_SUFFIXES), key=natural_key)


def natural_key(path: str | Path) -> list[list[tuple[int, str | int]]]:
    """Sort key under which numbers inside names count as numbers."""
    # re.ASCII and isdecimal: other scripts' digits stay text, since int() does not take all of them.
    split = [re.split(r"([0-9]+)", part.casefold()) for part in Path(path).parts]
    return [[(0, int(p)) if i % 2 else (1, p) for i, p in enumerate(parts)] for parts in split]


def to_uint8(image: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] to (H, W, 3) uint8, clamped and rounded to nearest."""
    return (
        image.detach().cpu().float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
    )


def _decode(image: Image.Image, path: Path) -> Photo:
    notes: list[str] = []
    # Pillow turns a TIFF while loading it, so ask before; to ask a PNG would load it, which `samples_of` does.
    turned = image.format == "TIFF" and orientation(image) > 1
    samples, icc = samples_of(image, path, notes)
    turn = orientation(image)
    samples = upright(samples, turn)
    if turned or turn > 1:
        notes.append("turned upright as its EXIF orientation says")
    exif = exif_of(image, notes)
    if has_more_frames(image):
        notes.append("only the first frame of an animated or multi-page file")
    channels = samples.shape[2]
    colours = 1 if channels < 3 else 3
    return Photo(
        pixels=_unit(samples[..., :colours]).expand(3, -1, -1).contiguous(),
        alpha=_unit(samples[..., colours:]) if channels > colours else None,
        grey=colours == 1,
        bits=16 if samples.dtype == np.uint16 else 8,
        format={"MPO": "JPEG"}.get(image.format, image.format),
        icc=icc,
        exif=exif,
        notes=tuple(notes),
    )


def _unit(samples: np.ndarray) -> Tensor:
    largest = 65535 if samples.dtype == np.uint16 else 255
    planes = np.ascontiguousarray(samples.transpose(2, 0, 1))
    return torch.from_numpy(planes).float().div_(largest)


def _samples(image: Tensor, like: Photo | None, kind: str) -> np.ndarray:
    """What is written: (H, W, C) uint8 or uint16, C = 1 to 4."""
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise LabError(f"an image to save has shape (3, H, W); this one has {tuple(image.shape)}")
    image = image.detach().cpu().float()
    if not torch.isfinite(image).all():
        raise LabError("the image to save has values that are no numbers (NaN or infinite)")
    if like is not None and like.grey:
        image = image.mean(0, keepdim=True)
    if like is not None and like.alpha is not None and kind in ("PNG", "WEBP", "TIFF", "HEIF"):
        if like.alpha.shape[1:] != image.shape[1:]:
            raise LabError(
                f"the image to save has {image.shape[2]}x{image.shape[1]} pixels, the alpha of its "
                f"source {like.alpha.shape[2]}x{like.alpha.shape[1]}: pass like=None, or the same size"
            )
        image = torch.cat([image, like.alpha])
    deep = like is not None and like.bits == 16 and kind in ("PNG", "TIFF")
    values = image.clamp(0, 1).mul(65535 if deep else 255).round().permute(1, 2, 0).contiguous().numpy()
    return values.astype(np.uint16 if deep else np.uint8)


def _encode(samples: np.ndarray, path: Path, kind: str, icc: bytes | None, exif: bytes | None) -> None:
    if kind == "HEIF":
        register_heif(path)
    options = {
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"quality": 95, "exact": True},
        "TIFF": {"compression": "tiff_deflate"},
        "HEIF": {"quality": 95},
    }.get(kind, {})
    if icc:
        options["icc_profile"] = icc
    if exif and kind != "BMP":
        options["exif"] = exif
    # Not into the file itself: on a full disk Pillow's own writing can end short without an error.
    encoded = io.BytesIO()
    Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples).save(encoded, kind, **options)
    path.write_bytes(encoded.getbuffer())
