"""The block diagram: dual attention and the spatial-enhanced feed-forward network, drawn by code.

What is drawn is what `ddsa_lab.model` computes, the shared convolution and the order of sums included.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddsa_lab.viz.style import FAINT, INK, MODE_STYLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]
LAYER, NORM, ACTION, SHARED = "#E3EAF4", "#EFEFEF", "#FFFFFF", "#FBE7C6"


@dataclass(frozen=True)
class Part:
    """A box or circle of the diagram, by its centre and size; its sides are where arrows end."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> Point:
        return self.x - self.width / 2, self.y

    @property
    def right(self) -> Point:
        return self.x + self.width / 2, self.y

    @property
    def top(self) -> Point:
        return self.x, self.y + self.height / 2

    @property
    def bottom(self) -> Point:
        return self.x, self.y - self.height / 2


def part(
    ax: "Axes", x: float, y: float, text: str, width: float, colour: str = LAYER, height: float = 0.62
) -> Part:
    """Draw a box with text."""
    from matplotlib.patches import FancyBboxPatch

    ax.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=0.12", facecolor=colour,
            edgecolor=INK, linewidth=0.7, zorder=2,
        )
    )  # fmt: skip
    ax.text(x, y, text, ha="center", va="center", fontsize=7, zorder=3, linespacing=1.1)
    return Part(x, y, width, height)


def sign(ax: "Axes", x: float, y: float, text: str) -> Part:
    """Draw a small circle with a sign: a sum or a product."""
    from matplotlib.patches import Circle

    ax.add_patch(Circle((x, y), 0.19, facecolor=ACTION, edgecolor=INK, linewidth=0.7, zorder=2))
    ax.text(x, y - 0.01, text, ha="center", va="center", fontsize=8, zorder=3)
    return Part(x, y, 0.38, 0.38)


def arrow(ax: "Axes", *points: Point, text: str = "", colour: str = INK, shift: Point = (0.0, 0.16)) -> None:
    """Draw a line through points with an arrow head at the last, and text beside its middle."""
    xs, ys = zip(*points)
    if len(points) > 2:
        ax.plot(xs[:-1], ys[:-1], color=colour, linewidth=0.8, solid_capstyle="round", zorder=1)
    ax.annotate(
        "", points[-1], points[-2], zorder=1,
        arrowprops={
            "arrowstyle": "-|>,head_length=0.28,head_width=0.14", "color": colour, "linewidth": 0.8,
            "shrinkA": 0, "shrinkB": 0,
        },
    )  # fmt: skip
    if text:
        middle = ((xs[0] + xs[1]) / 2 + shift[0], (ys[0] + ys[1]) / 2 + shift[1])
        ax.text(*middle, text, ha="center", va="center", fontsize=6.5, color=FAINT)


def dual_attention(ax: "Axes") -> "Axes":
    """Draw dual self-attention, left to right, in a field of 17.2 x 5.2 units."""
    start = (0.0, 2.6)
    norm = part(ax, 1.25, 2.6, "layer\nnorm", 1.1, NORM, 0.8)
    mix = part(ax, 3.12, 2.6, "1×1, then\n3×3 depth-wise", 2.15, LAYER, 0.8)
    q, k, v = (part(ax, 4.95, y, name, 0.6, ACTION) for y, name in ((3.9, "Q"), (2.6, "K"), (0.75, "V")))
    dot = part(ax, 6.75, 3.25, "$t\\,\\hat{Q}\\hat{K}^{\\top}$", 1.25, ACTION, 0.8)
    dense = part(ax, 10.55, 4.1, "softmax", 1.35, "#D6E0EE", 0.62)
    top = part(ax, 8.85, 2.4, "top-$k$", 1.05, "#F8E7BD")
    sparse = part(ax, 10.55, 2.4, "softmax", 1.35, "#F8E7BD")
    total, product = sign(ax, 12.7, 3.25, "+"), sign(ax, 13.8, 0.75, "×")
    out, added = part(ax, 15.2, 0.75, "1×1", 0.8), sign(ax, 16.4, 2.6, "+")
    arrow(ax, start, norm.left)
    arrow(ax, norm.right, mix.left)
    for one in (q, k, v):
        arrow(ax, mix.right, (4.35, 2.6), (4.35, one.y), one.left)
    arrow(ax, q.right, (5.6, 3.9), (5.6, 3.4), (dot.left[0], 3.4))
    arrow(ax, k.right, (5.6, 2.6), (5.6, 3.1), (dot.left[0], 3.1))
    arrow(ax, dot.right, (7.85, 3.25), (7.85, 4.1), dense.left)
    arrow(ax, dot.right, (7.85, 3.25), (7.85, 2.4), top.left)
    arrow(ax, top.right, sparse.left)
    arrow(ax, dense.right, (12.7, 4.1), total.top, text="× $a$", colour=MODE_STYLES["dense"]["color"])
    arrow(ax, sparse.right, (12.7, 2.4), total.bottom, text="× $b$", colour="#A87F12")
    arrow(ax, total.right, (13.8, 3.25), product.top, text="$C \\times C$", shift=(0.35, 0.16))
    arrow(ax, v.right, product.left)
    arrow(ax, product.right, out.left)
    arrow(ax, out.right, (16.4, 0.75), added.bottom)
    arrow(ax, (0.35, 2.6), (0.35, 4.95), (16.4, 4.95), added.top)
    arrow(ax, added.right, (17.2, 2.6))
    _note(ax, 10.55, 4.6, "dense: all $C$ keys", MODE_STYLES["dense"]["color"])
    _note(ax, 9.75, 1.86, "sparse: the $k$ strongest keys of each row", "#A87F12")
    _note(ax, 6.75, 2.6, "$C \\times C$ logits", FAINT)
    return _field(ax, 17.2, 5.2)


def spatial_feed_forward(ax: "Axes") -> "Axes":
    """Draw the spatial-enhanced feed-forward network, left to right, in a field of 17.2 x 5.2 units."""
    norm = part(ax, 1.25, 2.6, "layer\nnorm", 1.1, NORM, 0.8)
    expand = part(ax, 2.75, 2.6, "1×1", 0.8)
    arrow(ax, (0.0, 2.6), norm.left)
    arrow(ax, norm.right, expand.left)
    join = part(ax, 9.2, 2.6, "1×1", 0.8)
    above = None
    for i, y in enumerate((4.2, 2.6, 1.0), start=1):
        entry = (3.55, y)
        before = sign(ax, 4.75, y, "+") if above else None
        shared = part(ax, 6.2, y, "3×3 depth-wise", 2.1, SHARED)
        relu = part(ax, 7.85, y, "ReLU", 0.75, ACTION, 0.5)
        arrow(ax, expand.right, (3.55, 2.6), entry, (before or shared).left, text="")
        ax.text(4.0, y + 0.2, f"$x_{i}$", ha="center", fontsize=7, color=FAINT)
        if before and above:
            arrow(ax, before.right, shared.left)
            arrow(ax, above.bottom, (7.85, y + 0.82), (4.75, y + 0.82), before.top)
        arrow(ax, shared.right, relu.left)
        arrow(ax, relu.right, (8.62, y), (8.62, 2.6), join.left)
        ax.text(8.43, y + 0.2, f"$y_{i}$", ha="center", fontsize=7, color=FAINT)
        above = relu
    squeeze = part(ax, 10.75, 1.0, "max, mean\nof channels", 1.5, ACTION, 0.8)
    conv = part(ax, 12.3, 1.0, "3×3", 0.8)
    batch = part(ax, 13.5, 1.0, "batch\nnorm", 0.85, NORM, 0.8)
    sigmoid = part(ax, 14.55, 1.0, "σ", 0.55, ACTION)
    gate, added = sign(ax, 14.55, 2.6, "×"), sign(ax, 16.1, 2.6, "+")
    arrow(ax, join.right, gate.left)
    arrow(ax, join.right, (9.85, 2.6), (9.85, 1.0), squeeze.left)
    for one, other in ((squeeze, conv), (conv, batch), (batch, sigmoid)):
        arrow(ax, one.right, other.left)
    arrow(ax, sigmoid.top, gate.bottom)
    arrow(ax, gate.right, added.left)
    arrow(ax, (0.35, 2.6), (0.35, 4.95), (16.1, 4.95), added.top)
    arrow(ax, added.right, (17.2, 2.6))
    _note(ax, 6.2, 0.42, "one set of weights, used three times", "#A87F12")
    _note(ax, 12.5, 0.42, "spatial gate: one weight for each pixel", FAINT)
    return _field(ax, 17.2, 5.2)


def _note(ax: "Axes", x: float, y: float, text: str, colour: str) -> None:
    ax.text(x, y, text, ha="center", va="center", fontsize=6.5, color=colour, style="italic")


def _field(ax: "Axes", width: float, height: float) -> "Axes":
    ax.set(xlim=(-0.1, width + 0.1), ylim=(0.1, height), aspect="equal")
    ax.axis("off")
    return ax
