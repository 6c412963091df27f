"""What stands between a file and its samples: safe opening, depth, colour modes, frames and metadata."""

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from ddsa_lab.data.deep import is_deep, read_deep
from ddsa_lab.errors import LabError

# What Pillow may try; the many rare readers it has beside these are a risk without a use.
_READERS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_ORIENTATION = 0x0112
# TIFF's own tags (sizes, offsets, compression, profile), which it files with the EXIF ones.
_TIFF_LAYOUT = {*range(254, 260), 262, 266, *range(273, 280), 284, 317, *range(320, 326), 338, 339, 347,
                *range(529, 533), 700, 34675}  # fmt: skip
_lock = threading.Lock()
_lifted: list[int | None] = []  # Pillow's limit, once for every photo that is being read


def shown(path: str | Path) -> str:
    """A path that can be printed, whatever bytes its name holds."""
    return os.fsencode(path).decode("utf-8", "replace")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Yield the image of a file with its header read and its pixels not yet decoded."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise LabError(
            f"{shown(path)} is a pipe or device, not an image file"
        )  # reading it could wait for ever
    with open(path, "rb") as file:
        head = file.read(32)
    readers = _READERS
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        register_heif(path)
        readers = ("HEIF",)
    with warnings.catch_warnings(), _pillow_limit_lifted():
        warnings.simplefilter("ignore")  # of odd metadata; what matters becomes an error or a note
        with Image.open(path, formats=readers) as image:
            yield image


@contextlib.contextmanager
def _pillow_limit_lifted() -> Iterator[None]:
    """Pillow's size limit is global; ours, with its own sentence, stands in for it while a photo is read."""
    with _lock:
        _lifted.append(_lifted[0] if _lifted else Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _lock:
            limit = _lifted.pop()
            if not _lifted:  # another thread may still be reading
                Image.MAX_IMAGE_PIXELS = limit


def register_heif(path: Path) -> None:
    """Make Pillow read and write HEIC.

    Raises:
        LabError: the optional reader is not installed.
    """
    try:
        import pillow_heif
    except ImportError:
        raise LabError(
            f"{shown(path)} is a HEIC photo, which needs an optional reader: pip install pillow-heif"
        ) from None
    pillow_heif.register_heif_opener()


def unreadable(path: Path, error: Exception) -> str:
    """The sentence that says why `path` could not be read."""
    if isinstance(error, FileNotFoundError):
        return f"no image at {shown(path)}"
    if isinstance(error, IsADirectoryError) or path.is_dir():
        return f"{shown(path)} is a folder, not an image"
    if isinstance(error, MemoryError):
        return f"{shown(path)} is too large for this machine's memory: shrink or crop it"
    if isinstance(error, OSError) and error.errno:
        return f"cannot read {shown(path)}: {error.strerror}"
    if path.is_file() and path.stat().st_size == 0:
        return f"{shown(path)} is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"{shown(path)} is not an image that can be read (PNG, JPEG, WebP, TIFF, BMP, GIF, HEIC)"
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return f"{shown(path)} is damaged or of an unsupported kind ({reason}): export it again as PNG or JPEG"


def samples_of(image: Image.Image, path: Path, notes: list[str]) -> tuple[np.ndarray, bytes | None]:
    """Decode the first frame as it lies in the file.

    Args:
        image: from `opened(path)`.
        notes: what was converted is added here.

    Returns:
        Samples (H, W, C), uint8 or uint16, C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha; and the
        colour profile that describes them, if any.
    """
    icc = image.info.get("icc_profile") or None
    deep = is_deep(image)
    samples = read_deep(image, path, opened) if deep else None
    if samples is not None:
        return samples, icc
    if deep:
        notes.append("read at 8 bits a sample; the file has 16")
    if image.mode in ("F", "I"):
        raise LabError(f"{shown(path)} has 32 bits a sample and no stated range: export it at 8 or 16 bits")
    image.load()
    has_alpha = image.has_transparency_data
    if image.mode in ("1", "L", "LA", "La"):
        image = image.convert("LA" if has_alpha else "L")
    elif image.mode in ("CMYK", "LAB"):
        notes.append(f"{image.mode} converted to RGB")
        image, icc = _to_srgb(image, icc), None
    else:
        if image.mode in ("P", "PA"):
            notes.append("palette colours converted to RGB")
        image = image.convert("RGBA" if has_alpha else "RGB")
    samples = np.asarray(image)
    return (samples[..., None] if samples.ndim == 2 else samples), icc


def _to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc)) if icc else None
        if profile is None and image.mode == "LAB":
            profile = ImageCms.createProfile("LAB")
        if profile is not None:
            return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation that `image` still has, 1 (upright) to 8. Pillow undoes a TIFF's while loading."""
    try:
        turn = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF raises any kind of error, and is no reason to refuse the pixels
        return 1
    return turn if turn in range(1, 9) else 1


def exif_of(image: Image.Image, notes: list[str]) -> bytes | None:
    """EXIF without the orientation and without what describes the file rather than the photo."""
    try:
        exif = image.getexif()
        for tag in [tag for tag in exif if tag == _ORIENTATION or tag in _TIFF_LAYOUT]:
            del exif[tag]
        return exif.tobytes() if len(exif) else None
    except Exception:  # see `orientation`
        notes.append("its EXIF is damaged and was left out")
        return None


def has_more_frames(image: Image.Image) -> bool:
    """Whether the file holds more than the frame that was decoded. Call it last: it may move on."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged later frame, of which nothing is wanted
        return True


def upright(samples: np.ndarray, turn: int) -> np.ndarray:
    """Undo an EXIF orientation: 2 to 4 are flips and a half turn, 5 to 8 swap the sides too."""
    if turn >= 5:
        samples = samples.swapaxes(0, 1)
        turn = {5: 1, 6: 2, 7: 3, 8: 4}[turn]
    if turn in (2, 3):
        samples = samples[:, ::-1]
    if turn in (3, 4):
        samples = samples[::-1]
    return samples
