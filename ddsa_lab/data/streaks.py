"""Drawing one layer of streaks: each streak has its own place, lean, length, width and brightness."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddsa_lab.errors import LabError, choose

MAX_ANGLE = 60.0  # degrees; streaks are drawn row by row, which fails for lines that lie flat
WIDTH_SPREAD = 0.25  # logarithmic; drops differ in size even at one distance
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


def _check_layer(layer: RainLayer) -> None:
    if abs(layer.angle) > MAX_ANGLE:
        raise LabError(
            f"a rain layer's angle must be within {MAX_ANGLE:g} degrees of vertical, not {layer.angle:g}"
        )
    for name in ("length", "width", "cluster"):
        if not getattr(layer, name) > 0:
            raise LabError(f"a rain layer's {name} must be above 0, not {getattr(layer, name):g}")
    choose("streak profile", layer.profile, ("drop", "line"))


def render_layer(layer: RainLayer, height: int, width: int, generator: torch.Generator) -> Tensor:
    _check_layer(layer)
    streaks = _place_streaks(layer, height, width, generator)
    first = (streaks.y - streaks.half).ceil().clamp(min=0).long()
    last = (streaks.y + streaks.half).floor().clamp(max=height - 1).long()
    rows = (last - first + 1).clamp(min=0)
    reach = math.ceil(_reach(layer) * float(streaks.spread.max())) if len(rows) else 1
    columns = torch.arange(-reach, reach + 2)
    canvas = torch.zeros(height * width)
    ends = rows.cumsum(0)
    # Whole streaks at a time: as many as fit into the bound on points.
    batch = (ends * len(columns)).div(POINTS_AT_ONCE, rounding_mode="floor")
    for number in range(int(batch[-1]) + 1 if len(batch) else 0):
        chosen = torch.nonzero(batch == number).flatten()
        _splat(canvas, layer, streaks.pick(chosen), first[chosen], rows[chosen], columns, height, width)
    return canvas.clamp_(max=layer.ceiling).view(height, width)


class _Streaks(NamedTuple):
    """Single streaks, each field (N,): centre, half height, slope, horizontal width, and looks."""

    x: Tensor
    y: Tensor
    half: Tensor  # pixels, half the vertical extent
    slope: Tensor  # pixels to the right for each row down
    spread: Tensor  # pixels, full width at half brightness along a row
    light: Tensor  # brightness
    bright_at: Tensor  # where the bright stretch lies, -1 (upper end) to 1
    bright_long: Tensor  # its extent, as a share of `half`

    def pick(self, chosen: Tensor) -> "_Streaks":
        return _Streaks(*(field[chosen] for field in self))


def _place_streaks(layer: RainLayer, height: int, width: int, generator: torch.Generator) -> _Streaks:
    """Scatter streaks over the image and a margin from which they can reach into it."""
    lean = math.radians(layer.angle)
    margin_y = 0.5 * layer.length * math.exp(layer.length_spread) * math.cos(lean)
    margin_x = margin_y * abs(math.tan(lean)) + 2 * layer.width
    area = (height + 2 * margin_y) * (width + 2 * margin_x)
    expected = layer.cover * area / (layer.length * layer.width)
    rolls = torch.rand(8, generator=generator).tolist()
    count = int(expected + rolls[0])
    if count == 0:
        return _Streaks(*torch.zeros(8, 0))
    uniform = torch.rand(5, count, generator=generator)
    normal = torch.randn(6, count, generator=generator)
    parents = max(1, round(count / layer.cluster))
    places = torch.rand(2, parents, generator=generator)[:, (uniform[0] * parents).long()]
    alone = uniform[1] * layer.cluster < 1
    # A chain's members stand behind and beside one another along the direction of the rain.
    behind, beside = normal[0] * layer.length, normal[1] * 2.5 * layer.width
    x = torch.where(alone, uniform[2], places[0]) * (width + 2 * margin_x) - margin_x
    y = torch.where(alone, uniform[3], places[1]) * (height + 2 * margin_y) - margin_y
    x = torch.where(alone, x, x + behind * math.sin(lean) + beside * math.cos(lean))
    y = torch.where(alone, y, y + behind * math.cos(lean) - beside * math.sin(lean))
    angle = (lean + normal[2] * math.radians(layer.angle_spread)).clamp(-1.3, 1.3)
    length = layer.length * (normal[3] * layer.length_spread).clamp(max=1.5).exp()
    thick = layer.width * (normal[4] * WIDTH_SPREAD).clamp(-0.5, 0.5).exp()
    light = layer.brightness * (normal[5] * layer.contrast).clamp(max=2.2).exp()
    bright_at = 1.6 * uniform[4] - 0.8
    bright_long = 0.15 + 0.5 * uniform[1]
    cosine = angle.cos()
    return _Streaks(x, y, 0.5 * length * cosine, angle.tan(), thick / cosine, light, bright_at, bright_long)


def _reach(layer: RainLayer) -> float:
    """Columns to either side of the centre line that a streak touches, over its width."""
    return 1.2 if layer.profile == "drop" else 0.5 + 0.5 / (layer.edge * layer.width)


def _splat(canvas: Tensor, layer: RainLayer, streaks: _Streaks, first: Tensor, rows: Tensor, columns: Tensor,
           height: int, width: int) -> None:  # fmt: skip
    """Add streaks to the flat canvas row by row; P rows of all streaks together, K columns about each."""
    which = torch.repeat_interleave(rows)  # (P,) streak of each row
    row = torch.arange(len(which)) - (rows.cumsum(0) - rows)[which] + first[which]
    below = row - streaks.y[which]
    x = streaks.x[which] + streaks.slope[which] * below
    along = below / streaks.half[which]  # -1 to 1
    value = streaks.light[which] * _along(layer, along, streaks.bright_at[which], streaks.bright_long[which])
    column = x.floor().long()[:, None] + columns  # (P, K)
    across = (column - x[:, None]) / streaks.spread[which][:, None]  # in widths
    if layer.profile == "drop":
        shape = torch.exp2(-4.0 * across * across)
    else:
        shape = (0.5 + layer.edge * layer.width * (0.5 - across.abs())).clamp_(0, 1)
    shape = shape * value[:, None]
    inside = (column >= 0) & (column < width)
    index = (row * width)[:, None] + column
    canvas.index_add_(0, index[inside], shape[inside])


def _along(layer: RainLayer, along: Tensor, bright_at: Tensor, bright_long: Tensor) -> Tensor:
    """Brightness along a streak in [0, 1]: a dim arch with one brighter stretch, or a constant."""
    if layer.profile == "line":
        return torch.ones_like(along)
    arch = 1.0 - along * along
    stretch = torch.exp(-0.5 * ((along - bright_at) / (0.5 * bright_long)) ** 2)
    return arch * (layer.faint + (1.0 - layer.faint) * stretch)
