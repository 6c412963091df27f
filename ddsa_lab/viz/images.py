"""Images on axes: whole, with boxed zooms, as error maps, and with heat over them."""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ddsa_lab.analysis.targets import Window
from ddsa_lab.data.images import to_uint8
from ddsa_lab.errors import LabError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BOX_COLOURS = ("#FFD23F", "#3CE0E6", "#FF6FB5")


def show_image(image: Tensor, ax: "Axes", title: str = "", below: str = "") -> "Axes":
    """Draw an image (3, H, W) in [0, 1] or (H, W) without axes, a title above and a line below."""
    if image.dim() == 2:
        ax.imshow(image.detach().cpu().numpy(), cmap="gray")
    else:
        ax.imshow(to_uint8(image.detach().cpu()))
    return bare(ax, title, below)


def bare(ax: "Axes", title: str = "", below: str = "") -> "Axes":
    """Take ticks and spines away, keeping room for a title and a line below."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_title(title)
    if below:
        ax.set_xlabel(below, fontsize=7)
    return ax


def box(ax: "Axes", window: Window, colour: str = BOX_COLOURS[0], width: float = 1.0) -> "Axes":
    """Outline a window on an image."""
    from matplotlib.patches import Rectangle

    corner = (window.left - 0.5, window.top - 0.5)
    # Dark beneath bright, so that the line is seen on every photo.
    for line, paint in ((2.2 * width, "black"), (width, colour)):
        ax.add_patch(
            Rectangle(corner, window.width, window.height, fill=False, edgecolor=paint, linewidth=line)
        )
    return ax


def zoom(image: Tensor, ax: "Axes", window: Window, colour: str = BOX_COLOURS[0]) -> "Axes":
    """Draw the part of an image (3, H, W) inside a window, framed in the window's colour."""
    window.check(image)
    show_image(window.cut(image), ax)
    for spine in ax.spines.values():
        spine.set(visible=True, edgecolor=colour, linewidth=1.4)
    return ax


def error_map(
    restored: Tensor, clean: Tensor, ax: "Axes", limit: float = 0.2, title: str = "", below: str = ""
) -> "Axes":
    """Draw |restored - clean|, averaged over channels, from 0 (black) to `limit` (bright).

    Returns the Axes, whose `images[0]` can carry a colour scale.
    """
    if restored.shape != clean.shape:
        raise LabError(f"restored is {tuple(restored.shape)}, but clean is {tuple(clean.shape)}")
    error = (restored.clamp(0, 1) - clean).abs().mean(0)
    ax.imshow(error.detach().cpu().numpy(), cmap="magma", vmin=0, vmax=limit)
    return bare(ax, title, below)


def heat_map(
    heat: Tensor,
    ax: "Axes",
    under: Tensor | None = None,
    title: str = "",
    below: str = "",
    share: float = 0.995,
) -> "Axes":
    """Draw where an attribution is strong, as colour over a faint grey photo.

    Args:
        heat: (H, W), >= 0.
        under: photo (3, H, W) of the same size.
        share: quantile of the heat that gets the strongest colour, since single pixels outshine all others.
    """
    values = heat.detach().cpu().double().numpy()
    top = float(np.quantile(values, share)) or float(values.max()) or 1.0
    strength = np.clip(values / top, 0, 1)
    if under is not None:
        ax.imshow(1 - 0.45 * (1 - under.mean(0).cpu().numpy()), cmap="gray", vmin=0, vmax=1)
    ax.imshow(
        strength, cmap="inferno", vmin=0, vmax=1, alpha=np.sqrt(strength) if under is not None else None
    )
    return bare(ax, title, below)


def signed_map(values: Tensor, ax: "Axes", title: str = "", below: str = "", share: float = 0.995) -> "Axes":
    """Draw a signed map (H, W): red adds, blue takes away, white is nothing."""
    array = values.detach().cpu().double().numpy()
    top = float(np.quantile(np.abs(array), share)) or float(np.abs(array).max()) or 1.0
    ax.imshow(array, cmap="RdBu_r", vmin=-top, vmax=top)
    return bare(ax, title, below)
