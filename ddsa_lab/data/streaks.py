"""Drawing one layer of streaks: each streak has its own place, lean, length, width and brightness."""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddsa_lab.errors import LabError, choose

MAX_ANGLE = 60.0  # degrees; streaks are drawn row by row, which fails for lines that lie flat
WIDTH_SPREAD = 0.25  # logarithmic; drops differ in size even at one distance
BUMP = 1.2535  # where `_bump` ends, in full widths at half height
BEADS = (12.0, 48.0)  # pixels from bead to bead, seen on the training pairs of Rain200L
THICK = 1.35  # at 1, beads make the width vary from 1/2 to (1 + this) / 2 of the streak's own
POINTS_AT_ONCE = 2_000_000  # bounds the memory of a storm over a large photo


@dataclass(frozen=True)
class RainLayer:
    """One population of streaks that share a direction, a distance and a look."""

    angle: float  # degrees from vertical, positive leans towards the lower right
    angle_spread: float  # degrees, standard deviation of single streaks
    length: float  # pixels, median
    length_spread: float  # logarithmic standard deviation
    width: float  # pixels, full width at half brightness, median
    cover: float  # summed area of all streaks (length times width) over the area of the image
    brightness: float  # of the median streak at its brightest, 1 is white
    contrast: float  # logarithmic standard deviation of brightness among streaks
    cluster: float  # streaks that hang together in a chain, mean
    profile: str = "drop"  # "drop" (soft) or "line" (hard edges)
    faint: float = 0.4  # drop: brightness of the long dim part over that of the bright stretch
    edge: float = 1.0  # line: slope of the edges, 1 is anti-aliased, 8 shows stairs
    ceiling: float = 1.0  # streaks of this layer never add up to more
    beads: float = (
        0.0  # how much a streak varies along its length, 0 to 1 (dark and half as wide between beads)
    )
    sway: float = 0.0  # pixels to either side that a streak strays from a straight line


def render_layer(layer: RainLayer, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw one layer: (H, W) float32, at most `layer.ceiling`. See `ddsa_lab.data.rain.render_rain`."""
    _check_layer(layer)
    streaks = _place_streaks(layer, height, width, generator)
    if len(streaks.x) == 0:
        return torch.zeros(height, width)
    first = (streaks.y - streaks.half).ceil().clamp_(min=0)
    rows = (streaks.y + streaks.half).floor_().clamp_(max=height - 1).sub_(first).add_(1).clamp_(min=0).long()
    thickest = float(streaks.spread.max()) * (1 + 0.5 * (THICK - 1) * layer.beads)
    reach = math.ceil(_reach(layer) * thickest)
    border = 2 * (reach + 1)  # takes what falls beside the image, so that no point needs a test
    canvas = torch.zeros(height * (width + 2 * border))
    table = torch.stack((*streaks, first))
    # Whole streaks at a time, as many as fit into the bound on points.
    batch = rows.cumsum(0).mul_(2 * reach + 2).div_(POINTS_AT_ONCE, rounding_mode="floor")
    stops = [0, *batch.bincount().cumsum(0).tolist()]
    for start, stop in itertools.pairwise(stops):
        _splat(canvas, layer, table[:, start:stop], rows[start:stop], width, reach)
    return canvas.view(height, -1)[:, border : border + width].clamp(max=layer.ceiling)


def _check_layer(layer: RainLayer) -> None:
    if not abs(layer.angle) <= MAX_ANGLE:
        raise LabError(
            f"a rain layer must lean at most {MAX_ANGLE:g} degrees from vertical, not {layer.angle:g}"
        )
    for name in ("length", "width", "cluster", "edge"):
        if not 0 < getattr(layer, name) < math.inf:
            raise LabError(f"a rain layer's {name} must be above 0, not {getattr(layer, name):g}")
    for name in ("angle_spread", "length_spread", "cover", "brightness", "contrast", "ceiling", "sway"):
        if not 0 <= getattr(layer, name) < math.inf:
            raise LabError(f"a rain layer's {name} must be 0 or more, not {getattr(layer, name):g}")
    if not 0 <= layer.beads <= 1:
        raise LabError(f"a rain layer's beads must be in [0, 1], not {layer.beads:g}")
    choose("streak profile", layer.profile, ("drop", "line"))


class _Streaks(NamedTuple):
    """Single streaks, each field (N,)."""

    x: Tensor  # centre, pixels
    y: Tensor
    half: Tensor  # half the vertical extent, pixels
    slope: Tensor  # pixels to the right for each row down
    spread: Tensor  # full width at half brightness along a row, pixels
    light: Tensor  # brightness
    bright_at: Tensor  # where the bright stretch lies, -1 (upper end) to 1
    bright_long: Tensor  # its extent to either side, as a share of `half`
    bead_long: Tensor  # pixels from bead to bead
    bead_at: Tensor  # where the first one lies, in such steps


def _place_streaks(layer: RainLayer, height: int, width: int, generator: torch.Generator) -> _Streaks:
    """Scatter streaks over the image and a margin from which they can reach into it."""
    lean = math.radians(layer.angle)
    sine, cosine = math.sin(lean), math.cos(lean)
    margin_y = 0.5 * layer.length * math.exp(layer.length_spread) * cosine
    margin_x = margin_y * abs(sine / cosine) + 2 * layer.width + layer.sway
    area = (height + 2 * margin_y) * (width + 2 * margin_x)
    count = int(
        layer.cover * area / (layer.length * layer.width) + float(torch.rand((), generator=generator))
    )
    uniform = torch.rand(6, count, generator=generator)
    normal = torch.randn(6, count, generator=generator)
    # A chain's members stand behind and beside its head along the direction of the rain.
    heads = max(1, round(count / layer.cluster))
    head = torch.where(uniform[0] * layer.cluster < 1, torch.arange(count), (uniform[1] * heads).long())
    follows = (head != torch.arange(count)).float()
    behind, beside = normal[0] * layer.length * follows, normal[1] * 2.5 * layer.width * follows
    x = uniform[2][head] * (width + 2 * margin_x) - margin_x + behind * sine + beside * cosine
    y = uniform[3][head] * (height + 2 * margin_y) - margin_y + behind * cosine - beside * sine
    angle = (lean + normal[2] * math.radians(layer.angle_spread)).clamp_(-1.3, 1.3)
    length = layer.length * (normal[3] * layer.length_spread).clamp_(max=1.5).exp_()
    thick = layer.width * (normal[4] * WIDTH_SPREAD).clamp_(-0.5, 0.5).exp_()
    light = layer.brightness * (normal[5] * layer.contrast).clamp_(max=2.2).exp_()
    cosines = angle.cos()
    # Drawn last, and only where they count: rain without beads stays what it was.
    beaded = torch.rand(2, count, generator=generator) if layer.beads or layer.sway else torch.zeros(2, count)
    return _Streaks(
        x, y, (0.5 * length * cosines).clamp_(min=0.5), angle.tan(), thick / cosines, light,
        1.6 * uniform[4] - 0.8, 0.25 + 0.75 * uniform[5], BEADS[0] + (BEADS[1] - BEADS[0]) * beaded[0], beaded[1],
    )  # fmt: skip


def _reach(layer: RainLayer) -> float:
    """Columns to either side of the centre line that a streak touches, over its width."""
    return BUMP if layer.profile == "drop" else 0.5 + 0.5 / (layer.edge * layer.width)


def _bump(distance: Tensor) -> Tensor:
    """Soft hill of height 1 that ends at distance 1; overwrites its argument.

    Much like a Gaussian, but made of products only: exp differs in the last bit between the ends of the
    portions that threads work on and the rest, and rain must not depend on the number of threads.
    """
    return distance.square_().neg_().add_(1).clamp_(min=0).square_().square_()


def _wave(turns: Tensor) -> Tensor:
    """Periodic smooth hills of height 1, one for each turn; made of products only, as `_bump` is."""
    part = turns - turns.floor()
    return (4 * part * (1 - part)).square_()


def _splat(canvas: Tensor, layer: RainLayer, table: Tensor, rows: Tensor, width: int, reach: int) -> None:
    """Add streaks to the flat canvas row by row: P rows of all streaks together, K columns about each."""
    border = 2 * (reach + 1)
    which = torch.repeat_interleave(rows)  # (P,) the streak that each row belongs to
    steps = torch.arange(len(which)) - (rows.cumsum(0) - rows)[which]
    x, y, half, slope, spread, light, bright_at, bright_long, bead_long, bead_at, first = table[:, which]
    row = first + steps
    below = row - y
    x = x + slope * below
    value = light * _along(layer, below / half, bright_at, bright_long)
    if layer.beads or layer.sway:
        turns = below / bead_long + bead_at
        # Two waves whose lengths have no common multiple: no bead repeats another.
        bead = _wave(turns).maximum(_wave(0.618 * turns + bead_at))
        value = value * (1 - layer.beads * (1 - bead))
        spread = spread * (1 + layer.beads * (THICK * bead - 1) * 0.5) if layer.beads else spread
        x = x + layer.sway * (2 * _wave(0.382 * turns) - 1)
    column = x.floor()
    offsets = torch.arange(-reach, reach + 2)  # (K,)
    across = (offsets - (x - column)[:, None]) / spread[:, None]  # (P, K) in widths
    if layer.profile == "drop":
        shape = _bump(across.div_(BUMP))
    else:
        shape = across.abs_().sub_(0.5).mul_(-layer.edge * layer.width).add_(0.5).clamp_(0, 1)
    column = column.clamp_(-reach - 2, width + reach).long() + border
    index = (row.long() * (width + 2 * border) + column)[:, None] + offsets
    canvas.index_add_(0, index.view(-1), shape.mul_(value[:, None]).view(-1))


def _along(layer: RainLayer, along: Tensor, bright_at: Tensor, bright_long: Tensor) -> Tensor:
    """Brightness along a streak in [0, 1]: a dim arch with one brighter stretch, or a constant."""
    if layer.profile == "line":
        return torch.ones_like(along)
    arch = (1.0 - along.square()).clamp_(min=0)
    stretch = _bump((along - bright_at) / bright_long)
    return arch * (layer.faint + (1.0 - layer.faint) * stretch)
