"""Damaged images: each is read, or refused in one sentence, quickly and within bounds of memory."""

import io
import multiprocessing
import random
import resource
import struct
import time
import zlib

import numpy as np
import psutil
import pytest
import tifffile
from PIL import Image

from ddsa_lab.data.images import read_photo
from ddsa_lab.errors import LabError

SECONDS = 10
BYTES = 2 * 2**30
VARIANTS = 16  # of each source: with 20 sources, 320 files


def _encoded(image, kind, **options):
    buffer = io.BytesIO()
    if (
        "append_images" in options
    ):  # copies, since Pillow keeps one format's settings on an image for the next
        options["append_images"] = [frame.copy() for frame in options["append_images"]]
    image.copy().save(buffer, kind, **options)
    return buffer.getvalue()


def sources():
    """(suffix, bytes) of sound files of all formats and kinds."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)).resize((112, 80))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    frames = [colour.rotate(angle) for angle in (0, 20, 40)]
    deep = io.BytesIO()
    tifffile.imwrite(deep, rng.integers(0, 65536, (40, 56, 3), dtype=np.uint16), photometric="rgb")
    planar = io.BytesIO()
    tifffile.imwrite(
        planar,
        rng.integers(0, 65536, (3, 40, 56), dtype=np.uint16),
        photometric="rgb",
        planarconfig="separate",
    )
    several = {"save_all": True, "append_images": frames[1:]}
    return [
        (".png", _encoded(colour, "PNG")),
        (".png", _encoded(colour.convert("RGBA"), "PNG", exif=exif)),
        (".png", _encoded(colour.quantize(32), "PNG", transparency=3)),
        (".png", _encoded(colour.convert("L"), "PNG", icc_profile=bytes(400))),
        (".png", _encoded(frames[0], "PNG", **several)),
        (".png", _encoded(Image.fromarray(rng.integers(0, 65536, (40, 56), dtype=np.uint16)), "PNG")),
        (".jpg", _encoded(colour, "JPEG", exif=exif)),
        (".jpg", _encoded(colour, "JPEG", progressive=True, icc_profile=bytes(400))),
        (".jpg", _encoded(colour.convert("CMYK"), "JPEG")),
        (".jpg", _encoded(frames[0], "MPO", **several)),
        (".webp", _encoded(colour, "WEBP", exif=exif)),
        (".webp", _encoded(colour.convert("RGBA"), "WEBP", lossless=True)),
        (".webp", _encoded(frames[0], "WEBP", **several)),
        (".tif", _encoded(colour, "TIFF", exif=exif)),
        (".tif", _encoded(colour, "TIFF", compression="tiff_lzw")),
        (".tif", _encoded(frames[0], "TIFF", compression="tiff_deflate", **several)),
        (".tif", deep.getvalue()),
        (".tif", planar.getvalue()),
        (".bmp", _encoded(colour, "BMP")),
        (".gif", _encoded(frames[0], "GIF", **several)),
    ]


def damaged(data, variant, rng):
    """One of `VARIANTS` ways to break a file."""
    broken = bytearray(data)
    if variant < 5:  # truncated, from a few bytes to almost whole
        return data[: max(1, int(len(data) * (0.01, 0.1, 0.4, 0.8, 0.99)[variant]))]
    if variant < 9:  # flipped bits, anywhere
        for _ in range(4 ** (variant - 4)):
            broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif variant < 13:  # flipped bytes in the header
        for _ in range(1 + variant % 4):
            broken[rng.randrange(4, min(64, len(data)))] = rng.randrange(256)
    elif variant == 13:  # wrong magic
        broken[:4] = b"LAB!"
    elif variant == 14:  # a piece doubled
        cut = rng.randrange(len(data))
        return data[:cut] + data[cut // 2 :]
    else:  # zeros in the middle
        middle = len(data) // 3
        broken[middle : 2 * middle] = bytes(middle)
    return bytes(broken)


def bombs():
    """(suffix, bytes) whose headers declare giant images."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for width, height in ((2**31 - 1, 2**31 - 1), (60000, 60000), (15000, 16000), (1, 2**31 - 1), (0, 0)):
        header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
        body = chunk(b"IDAT", zlib.compress(bytes(1000)))
        yield ".png", b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")
    jpeg = bytearray(_encoded(Image.new("RGB", (8, 8)), "JPEG"))
    start = jpeg.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = struct.pack(">HH", 65500, 65500)
    yield ".jpg", bytes(jpeg)
    bmp = bytearray(_encoded(Image.new("RGB", (8, 8)), "BMP"))
    bmp[18:26] = struct.pack("<ii", 50000, 50000)
    yield ".bmp", bytes(bmp)
    gif = bytearray(_encoded(Image.new("P", (8, 8)), "GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    yield ".gif", bytes(gif)
    tiff = bytearray(_encoded(Image.new("RGB", (8, 8)), "TIFF"))
    for tag in (256, 257):
        at = tiff.index(struct.pack("<HHI", tag, 4 if struct.pack("<HHI", tag, 4, 1) in tiff else 3, 1))
        tiff[at + 2 : at + 12] = struct.pack("<HII", 4, 1, 400000)
    yield ".tif", bytes(tiff)
    webp = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16382).to_bytes(3, "little") * 2
    yield ".webp", b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp


def corpus():
    rng = random.Random(0)
    files = [(s, damaged(data, v, rng)) for s, data in sources() for v in range(VARIANTS)]
    return files + list(bombs())


def _read_all(folder, results):
    """In a process of its own, whose address space is bounded: exceeding it is a failure, not a dead machine."""
    start = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (start + BYTES, start + BYTES))
    for path in sorted(folder.iterdir()):
        before = time.monotonic()
        try:
            photo = read_photo(path)
            outcome = "read" if bool(photo.pixels.isfinite().all()) else "not finite"
        except LabError as error:
            text = str(error)
            outcome = "refused" if path.name in text and "\n" not in text else f"unclear: {text}"
            outcome = "memory" if "memory" in text else outcome
        except BaseException as error:
            outcome = repr(error)
        results.send((path.name, outcome, time.monotonic() - before))
    results.close()


def test_damaged_images(tmp_path):
    files = corpus()
    assert len(files) >= 300
    for number, (suffix, data) in enumerate(files):
        (tmp_path / f"{number:03d}{suffix}").write_bytes(data)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_read_all, args=(tmp_path, sender))
    process.start()
    sender.close()
    outcomes = []
    try:
        while True:
            assert receiver.poll(SECONDS * 3), f"no answer for the file after {outcomes[-1:]}"
            outcomes.append(receiver.recv())
    except EOFError:
        pass  # all read, or the process died: the count tells
    finally:
        process.kill()
        process.join()
    assert len(outcomes) == len(files), f"reading died at the file after {outcomes[-1:]}"
    bad = [(name, what) for name, what, _ in outcomes if what not in ("read", "refused")]
    assert not bad
    assert max(seconds for _, _, seconds in outcomes) < SECONDS
    counts = [what for _, what, _ in outcomes]
    assert (
        counts.count("read") > 30 and counts.count("refused") > 150
    )  # the corpus is neither sound nor hopeless


@pytest.mark.parametrize("variant", [2, 3])
@pytest.mark.parametrize("number", range(20))
def test_truncated_files_are_refused_not_half_read(tmp_path, number, variant):
    suffix, data = sources()[number]
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(damaged(data, variant, random.Random(1)))
    try:
        photo = read_photo(path)
    except LabError:
        return
    # Formats with frames behind one another lose the later ones only.
    assert number in (4, 9, 12, 15, 19) and photo.pixels.isfinite().all()
