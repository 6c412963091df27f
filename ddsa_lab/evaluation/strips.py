"""Strips of the worst and best images of an evaluation: rainy, restored and clean side by side."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ddsa_lab.errors import LabError, choose
from ddsa_lab.evaluation.benchmark import (
    INPUT,
    LoadablePair,
    Model,
    crop_pair,
    crop_size,
    evaluating,
    restorer,
)
from ddsa_lab.evaluation.metrics import eight_bits
from ddsa_lab.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd

_GAP = 8
_LEAST_WIDTH = 200  # narrower panels are enlarged, so that their labels can be read
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (95, 95, 95)


def save_strips(
    frame: "pd.DataFrame",
    models: Mapping[str, Model],
    pairs: Sequence[LoadablePair],
    folder: str | Path,
    protocol: str = "y_uint8",
    count: int = 3,
    crop: str | None = None,
    tile: int | None = 0,
    overlap: int = 32,
) -> list[Path]:
    """Save each model's worst and best images by PSNR as PNG strips, and return their paths.

    A strip shows rainy | restored | clean with each PSNR, and below them the image's name, rank and protocol.
    Where there are fewer than 2 x `count` images, none is shown twice.

    Args:
        frame: as `evaluate_folder` returned it for these models and pairs.
        models, pairs, crop, tile, overlap: as given to `evaluate_folder`.
        folder: where the strips are written, as MODEL-worst-1-IMAGE.png and so on.
        protocol: whose PSNR ranks and labels.
        count: how many of the worst, and how many of the best.

    Raises:
        LabError: a protocol that was not evaluated, a pair that cannot be read, or a folder that cannot be written.
    """
    choose("protocol", protocol, dict.fromkeys(frame["protocol"]))
    part = frame[frame["protocol"] == protocol]
    by_name, size, written = {pair.name: pair for pair in pairs}, crop_size(crop), []
    untouched = part[part["model"] == INPUT].set_index("image")["psnr"]
    for name, model in models.items():
        restore = restorer(model, None, tile, overlap)
        ours = part[(part["model"] == name) & part["image"].isin(by_name)].set_index("image")["psnr"]
        for rank, image in _ranked(ours, count):
            rainy, clean = crop_pair(*by_name[image].load(), size)
            labels = [_label("rainy", untouched.get(image)), _label(name, ours[image]), "clean"]
            footer = f"{image}: {rank.replace('-', ' ')} of {len(ours)} images, PSNR under {protocol}"
            with evaluating([model]):
                strip = draw_strip([rainy, restore(rainy), clean], labels, footer)
            path = Path(folder) / f"{_plain(name)}-{rank}-{_plain(image)}.png"
            with atomic_write(path) as temporary:
                strip.save(temporary)
            written.append(path)
    return written


def draw_strip(images: Sequence[Tensor], labels: Sequence[str], footer: str) -> Image.Image:
    """Return images side by side, one label above each and a line of text below.

    Args:
        images: (3, H, W) RGB in [0, 1], of one size; enlarged by a whole factor where they are narrow.
        labels: one for each image; shrunk, then cut, where they are wider than it.
        footer: text below.

    Raises:
        LabError: images of different sizes.
    """
    if len({tuple(image.shape) for image in images}) != 1:
        raise LabError(f"a strip needs images of one size, found {[tuple(i.shape) for i in images]}")
    height, width = images[0].shape[1:]
    factor = -(-_LEAST_WIDTH // width)
    height, width = height * factor, width * factor
    letters = max(14, min(40, width // 22))
    band = letters + 12
    whole = (len(images) * (width + _GAP) + _GAP, height + 2 * band)
    strip = Image.new("RGB", whole, _PAPER)
    draw = ImageDraw.Draw(strip)
    for number, (image, label) in enumerate(zip(images, labels)):
        left = _GAP + number * (width + _GAP)
        panel = Image.fromarray(eight_bits(image).transpose(1, 2, 0)).resize((width, height), Image.NEAREST)
        strip.paste(panel, (left, band))
        text, font = _fitted(label, letters, width)
        draw.text((left + width / 2, band / 2), text, _INK, font, anchor="mm")
    text, font = _fitted(footer, max(12, letters * 3 // 4), whole[0] - 2 * _GAP)
    draw.text((_GAP, height + band * 1.5), text, _FAINT, font, anchor="lm")
    return strip


def _ranked(scores: "pd.Series", count: int) -> list[tuple[str, str]]:
    """(rank, image): worst-1, worst-2, ..., then best-1, ..."""
    order = list(scores.sort_values(kind="stable").index)
    worst = order[:count]
    best = [image for image in reversed(order) if image not in worst][:count]
    named = [(f"worst-{number}", image) for number, image in enumerate(worst, start=1)]
    return named + [(f"best-{number}", image) for number, image in enumerate(best, start=1)]


def _label(name: str, psnr: float | None) -> str:
    return name if psnr is None else f"{name}, {psnr:.2f} dB"


def _fitted(text: str, letters: int, width: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text and a font of at most `letters` pixels in which it fits."""
    for size in range(letters, 9, -1):
        font = ImageFont.load_default(size)
        if font.getlength(text) <= width:
            return text, font
    while len(text) > 1 and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…", font


def _plain(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"[^\w.-]+", "_", name)
