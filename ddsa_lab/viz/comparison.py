"""The demo's picture: photo strips with a zoomed inset, and the training curves below."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ddsa_lab.evaluation.metrics import psnr
from ddsa_lab.files import atomic_write

ZOOM = 64  # side of the magnified square, pixels
PANEL = 2.3  # inches


def comparison(
    path: Path,
    rows: Sequence[Mapping[str, Tensor]],
    histories: Mapping[str, list[dict[str, Any]]],
    clean: str,
) -> None:
    """Draw strips and curves into a PNG file.

    Args:
        path: the file.
        rows: a strip each: images (3, H, W) in [0, 1] by title, in drawing order; PSNRs (rgb) are against `clean`.
        histories: rows of metrics.csv by network.
        clean: title of the reference among the images.
    """
    import matplotlib
    from matplotlib.figure import Figure

    from ddsa_lab.viz import plots

    with matplotlib.rc_context():
        matplotlib.style.use(str(plots.STYLE))
        columns = len(rows[0])
        figure = Figure(figsize=(PANEL * columns, PANEL * (len(rows) + 1.25)), layout="constrained")
        strips, curves = figure.subfigures(2, 1, height_ratios=(len(rows), 1.2))
        axes = strips.subplots(len(rows), columns, squeeze=False)
        for row, panels in zip(rows, axes):
            corner = _busiest(row[next(iter(row))] - row[clean])
            for ax, (title, image) in zip(panels, row.items()):
                score = "" if title == clean else f"  {psnr(image, row[clean], 'rgb'):.2f} dB"
                _panel(ax, image, corner, title + score)
        plots.training_curves(histories, ax=curves.subplots())
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=150)


def _panel(ax, image: Tensor, corner: tuple[int, int], title: str) -> None:
    """One image with a box around the magnified square, and that square at its lower right."""
    pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
    top, left = corner
    ax.imshow(pixels, interpolation="nearest")
    ax.set_title(title, fontsize=9)
    ax.set_axis_off()
    inset = ax.inset_axes((0.52, 0.0, 0.48, 0.48))
    inset.imshow(pixels[top : top + ZOOM, left : left + ZOOM], interpolation="nearest")
    inset.set(xticks=[], yticks=[])
    for spine in inset.spines.values():
        spine.set(visible=True, color="white", linewidth=1.5)
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((left, top), ZOOM, ZOOM, fill=False, edgecolor="white", linewidth=1.2))


def _busiest(rain: Tensor) -> tuple[int, int]:
    """Corner of the square with most rain, among those that the inset does not hide."""
    energy = rain.abs().mean(dim=0)
    height, width = energy.shape
    sums = np.asarray(energy.cumsum(0).cumsum(1))
    best, corner = -1.0, (0, 0)
    for top in range(0, height // 2 - ZOOM, 8):
        for left in range(0, width - ZOOM, 8):
            total = (
                sums[top + ZOOM, left + ZOOM]
                - sums[top, left + ZOOM]
                - sums[top + ZOOM, left]
                + sums[top, left]
            )
            if total > best:
                best, corner = float(total), (top, left)
    return corner
