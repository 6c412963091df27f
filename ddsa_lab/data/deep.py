"""Sixteen-bit colour, which Pillow reads and writes at eight bits only."""

import struct
import sys
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from PIL import Image

# Pillow's 16-bit unpackers keep the first byte of a big-endian sample and the last of a little-endian one.
# Reading the same file a second time under the other byte order therefore gives the byte that was dropped.
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_PLANAR = 284  # TIFF tag PlanarConfiguration: 1 interleaved, 2 one plane a channel


def is_deep(image: Image.Image) -> bool:
    """Whether an opened, not yet loaded, image has 16 bits a sample in its file."""
    bits = getattr(image, "tag_v2", {}).get(258, (8,)) if image.format == "TIFF" else (8,)
    return image.mode.startswith("I;16") or _raw_mode(image)[-4:-1] == ";16" or set(bits) == {16}


def read_deep(
    image: Image.Image, path: Path, reopen: Callable[[Path], AbstractContextManager[Image.Image]]
) -> np.ndarray | None:
    """Samples of a 16-bit colour or grey image.

    Args:
        image: opened by Pillow from `path`, not loaded.
        path: the file.
        reopen: opens it once more in the same way.

    Returns:
        uint16 (H, W, C), C = 1 to 4, or None for a 16-bit kind that only 8 bits can be had of.
    """
    mode = _raw_mode(image)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[..., None]
    if image.format == "TIFF" and image.tag_v2.get(_PLANAR) == 2:
        return _read_planar(path, image.size)
    if mode == "LA;16B":  # PNG grey with alpha: its four bytes a pixel are what RGBA holds
        image.tile = [tile._replace(args="RGBA") for tile in image.tile]
        return np.ascontiguousarray(np.asarray(image)).view(">u2").astype(np.uint16)
    if mode[:-1] not in ("RGB;16", "RGBA;16"):
        return None
    with reopen(path) as again:
        again.tile = [tile._replace(args=_swapped(tile.args)) for tile in again.tile]
        low = np.asarray(again)
    samples = np.asarray(image).astype(np.uint16)
    samples <<= 8
    samples |= low
    return samples


def _raw_mode(image: Image.Image) -> str:
    tiles = getattr(image, "tile", None)
    args = tiles[0].args if tiles else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _swapped(args: str | tuple) -> str | tuple:
    if isinstance(args, tuple):
        return (_swapped(args[0]), *args[1:])
    return args[:-1] + _OTHER_BYTE[args[-1]]


def _read_planar(path: Path, size: tuple[int, int]) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        # The size that was checked against the limit is Pillow's: nothing larger may be decoded.
        if page.size > size[0] * size[1] * 4 or page.dtype != np.uint16 or page.axes != "SYX":
            raise ValueError("planar TIFF of an unknown kind")
        return np.moveaxis(page.asarray(), 0, -1)


def write_deep(samples: np.ndarray, path: Path, icc: bytes | None, exif: bytes | None) -> None:
    """Write a 16-bit PNG or TIFF, chosen by the suffix.

    Args:
        samples: uint16 (H, W, C), C = 1 grey, 2 grey and alpha (in a TIFF it becomes 4), 3 RGB, 4 RGB and alpha.
        path: ends in .png, .tif or .tiff.
        icc: colour profile, or None.
        exif: EXIF block as Pillow gives it, or None. TIFF at 16 bits is written without.
    """
    if path.suffix.lower() == ".png":
        path.write_bytes(_png(samples, icc, exif))
        return
    import tifffile

    if samples.shape[2] == 2:  # Pillow, and many others, know no 16-bit grey TIFF with alpha
        samples = samples[..., [0, 0, 0, 1]]
    colour = samples.shape[2] >= 3
    tifffile.imwrite(
        path,
        samples if colour else samples[..., 0],
        photometric="rgb" if colour else "minisblack",
        planarconfig="contig" if colour else None,
        extrasamples=["unassalpha"] if samples.shape[2] == 4 else None,
        compression="zlib",
        predictor=True,
        iccprofile=icc,
        metadata=None,
    )


def _png(samples: np.ndarray, icc: bytes | None, exif: bytes | None) -> bytes:
    height, width, channels = samples.shape
    rows = samples.astype(">u2").view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = 2  # filter "up": each row as its difference from the one above
    filtered[0, 1:] = rows[0]
    filtered[1:, 1:] = rows[1:] - rows[:-1]
    header = struct.pack(">IIBBBBB", width, height, 16, (0, 4, 2, 6)[channels - 1], 0, 0, 0)
    chunks = [_chunk(b"IHDR", header)]
    if icc:
        chunks.append(_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc)))
    if exif:
        chunks.append(_chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
    chunks.append(_chunk(b"IDAT", zlib.compress(filtered.data, 6)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
