"""The demo's picture: photo strips with a zoomed inset, and the training curves below."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ddsa_lab.analysis.targets import Window
from ddsa_lab.evaluation.metrics import psnr
from ddsa_lab.files import atomic_write
from ddsa_lab.viz.images import BOX_COLOURS, box, show_image, zoom
from ddsa_lab.viz.plots import training_curves
from ddsa_lab.viz.style import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ZOOM = 56  # side of the magnified square, pixels
PANEL = 1.75  # inches


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
    from matplotlib.figure import Figure

    columns = len(rows[0])
    with style():
        figure = Figure(figsize=(PANEL * columns, PANEL * 1.12 * len(rows) + 2.2), layout="constrained")
        strips, curves = figure.subfigures(2, 1, height_ratios=(PANEL * 1.12 * len(rows), 2.2))
        for row, panels in zip(rows, strips.subplots(len(rows), columns, squeeze=False)):
            window = _rainiest((next(iter(row.values())) - row[clean]).abs().mean(dim=0))
            for ax, (title, image) in zip(panels, row.items()):
                score = "" if title == clean else f"  {psnr(image, row[clean], 'rgb'):.2f} dB"
                _panel(ax, image, window, title + score)
        training_curves(histories, curves.subplots())
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=200)


def _panel(ax: "Axes", image: Tensor, window: Window, title: str) -> None:
    """One image, a box around the magnified square, and that square at its lower right."""
    show_image(image, ax, title)
    box(ax, window)
    inset = ax.inset_axes((0.55, 0.0, 0.45, 0.45))
    zoom(image, inset, window, BOX_COLOURS[0])


def _rainiest(rain: Tensor) -> Window:
    """The square with most rain in the upper half of (H, W), which the inset leaves free."""
    height, width = rain.shape
    side = min(ZOOM, height // 2, width)
    sums = np.pad(np.asarray(rain.double().cumsum(0).cumsum(1)), ((1, 0), (1, 0)))
    totals = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    totals = totals[: height // 2 - side + 1]
    top, left = np.unravel_index(int(totals.argmax()), totals.shape)
    return Window(int(top), int(left), side, side)
