"""How every figure looks: the style file, column widths, and one colour, marker and line for each kind of thing.

Nothing here changes matplotlib's settings for good: `style()` is a context.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("ddsa.mplstyle")

SINGLE, DOUBLE = 3.5, 7.16  # column widths of IEEE journals, in inches

# Paul Tol's high-contrast colours: told apart by colour-blind readers, and in grey by their lightness. Markers
# and lines differ too, so that a photocopy still works.
MODE_STYLES: dict[str, dict[str, Any]] = {
    "dense": {"color": "#004488", "marker": "s", "linestyle": "--"},
    "sparse": {"color": "#DDAA33", "marker": "^", "linestyle": ":"},
    "dual": {"color": "#BB5566", "marker": "o", "linestyle": "-"},
    "multi": {"color": "#44AA99", "marker": "D", "linestyle": "-."},
    "input": {"color": "#777777", "marker": "x", "linestyle": (0, (1, 1))},
}
SELECT_STYLES: dict[str, dict[str, Any]] = {
    "top": {"color": "#222222", "marker": "o", "linestyle": "-"},
    "random": {"color": "#AAAAAA", "marker": "s", "linestyle": "--"},
    "bottom": {"color": "#228877", "marker": "v", "linestyle": ":"},
}
INK, FAINT, ACCENT = "#222222", "#777777", "#BB5566"


@contextmanager
def style() -> Iterator[None]:
    """Draw in the package's style inside the `with` block, whatever the user's own settings are.

    Settings are as they were afterwards, also after an exception.
    """
    from matplotlib import style as mpl_style

    with mpl_style.context(["default", str(STYLE)]):
        yield


def mode_of(name: str) -> str:
    """Return the attention mode that a network's name begins with ("dual-tiny": "dual"), else "input"."""
    mode = name.partition("-")[0]
    return mode if mode in MODE_STYLES else "input"


def new_figure(size: tuple[float, float]) -> "Figure":
    """Return a figure of (width, height) inches that no window and no notebook knows of, so that none shows it."""
    from matplotlib.figure import Figure

    return Figure(figsize=size)


def subplots(
    size: tuple[float, float],
    rows: int = 1,
    columns: int = 1,
    width_ratios: Sequence[float] | None = None,
    height_ratios: Sequence[float] | None = None,
    sharex: bool = False,
) -> "tuple[Figure, Any]":
    """Return a new figure and its Axes: one, or an array of them."""
    figure = new_figure(size)
    return figure, figure.subplots(
        rows, columns, width_ratios=width_ratios, height_ratios=height_ratios, sharex=sharex
    )
