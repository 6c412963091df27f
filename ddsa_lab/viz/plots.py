"""Charts: data and an Axes in, the Axes out. Nothing is computed here beyond where ink goes.

Use them inside `style()` for the look of the package, or outside it for your own. Images are drawn by
`ddsa_lab.viz.images`, the block diagram by `ddsa_lab.viz.diagram`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ddsa_lab.errors import LabError, choose
from ddsa_lab.viz.style import (
    DOUBLE,
    FAINT,
    INK,
    MODE_STYLES,
    SELECT_STYLES,
    SINGLE,
    STYLE,
    mode_of,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

__all__ = [
    "DOUBLE",
    "MODE_STYLES",
    "SELECT_STYLES",
    "SINGLE",
    "STYLE",
    "attention_matrix",
    "bubbles",
    "kept_mask",
    "label_panel",
    "mode_of",
    "protocol_bars",
    "size_only",
    "sparsity_over_depth",
    "style",
    "sweep_curves",
    "training_curves",
]


def attention_matrix(
    matrix: Tensor | np.ndarray,
    ax: "Axes",
    title: str = "",
    cmap: str = "viridis",
    limits: tuple[float, float] | None = None,
    colorbar: bool = True,
    centre: float | None = None,
) -> "Axes":
    """Draw one head's matrix (C, C) as a heat map: queries down, keys across.

    Args:
        matrix: logits, weights or gain.
        limits: values of the lowest and highest colour; those of the matrix by default.
        colorbar: draw a scale beside it.
        centre: value in the middle of a diverging colour map.
    """
    import seaborn as sns

    values = _matrix(matrix)
    low, high = limits if limits is not None else (float(values.min()), float(values.max()))
    sns.heatmap(
        values, ax=ax, cmap=cmap, vmin=low, vmax=high, center=centre, square=True, cbar=colorbar,
        xticklabels=False, yticklabels=False, rasterized=True, cbar_kws={"shrink": 0.8, "pad": 0.04, "aspect": 18},
    )  # fmt: skip
    if colorbar:
        scale = ax.collections[0].colorbar.ax
        scale.tick_params(labelsize=6, length=2)
        scale.yaxis.set_major_locator(_few_ticks())
    _frame(ax)
    ax.set_title(title)
    return ax


def kept_mask(mask: Tensor | np.ndarray, ax: "Axes", title: str = "", overlay: bool = False) -> "Axes":
    """Draw which keys each query keeps, bool (C, C); as an overlay, hatch what is dropped on the matrix beneath."""
    kept = _matrix(mask).astype(bool)
    if overlay:
        rows, columns = np.nonzero(~kept)
        ax.scatter(columns + 0.5, rows + 0.5, s=3, marker="x", linewidths=0.4, color="white")
        return ax
    return attention_matrix(kept.astype(float), ax, title, "Greys", (0.0, 1.3), colorbar=False)


def _matrix(values: Tensor | np.ndarray) -> np.ndarray:
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if values.ndim != 2:
        raise LabError(
            f"one matrix (C, C) is drawn at a time, found shape {values.shape}: choose image and head"
        )
    return values


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4)


def _frame(ax: "Axes") -> None:
    for spine in ax.spines.values():
        spine.set_visible(True)
    ax.set(xlabel="", ylabel="")


def sparsity_over_depth(
    table: "DataFrame", ax: "Axes", measure: str = "effective_k", label: str = "", mode: str = "dual"
) -> "Axes":
    """Draw one measure over the network's depth: a small mark for each head, a line through the layers' means.

    Args:
        table: columns layer, depth, head and the measure, one row for each layer and head (more are averaged).
        label: what the y axis shows; the measure's name by default.
        mode: whose colour and marker are used.
    """
    choose("column", measure, table.columns)
    heads = table.groupby(["layer", "depth", "head"], sort=False, as_index=False)[measure].mean()
    layers = (
        heads.groupby(["layer", "depth"], sort=False, as_index=False)[measure].mean().sort_values("depth")
    )
    look = MODE_STYLES[choose("attention mode", mode, MODE_STYLES)]
    ax.scatter(
        heads["depth"], heads[measure], s=9, facecolors="none", edgecolors=look["color"], linewidths=0.6
    )
    ax.plot(layers["depth"], layers[measure], **look)
    ax.set_xticks(layers["depth"], layers["layer"], rotation=40, ha="right", rotation_mode="anchor")
    ax.grid(axis="y", visible=True)
    ax.set_ylabel(label or measure)
    return ax


def sweep_curves(
    table: "DataFrame",
    ax: "Axes",
    trained_at: float | None = None,
    ylabel: str = "PSNR (dB)",
    legend: bool = True,
) -> "Axes":
    """Draw a score over the share of keys kept, one line for each way of choosing them, with intervals.

    Args:
        table: columns keep, select ("top", "random", "bottom"), mean, low, high.
        trained_at: the share that the network was trained with, marked by a line.
        ylabel: the score's name.
        legend: say which line is which; False where one legend serves several panels.
    """
    names = {"top": "strongest keys", "random": "random keys", "bottom": "weakest keys"}
    for select, rows in table.groupby("select", sort=False):
        rows, look = rows.sort_values("keep"), SELECT_STYLES[choose("selection", select, SELECT_STYLES)]
        ax.fill_between(rows["keep"], rows["low"], rows["high"], color=look["color"], alpha=0.15, linewidth=0)
        ax.plot(rows["keep"], rows["mean"], label=names[select], **look)
    if trained_at is not None:
        ax.axvline(trained_at, color=FAINT, linewidth=0.7, linestyle=(0, (3, 2)), zorder=0)
        ax.annotate(
            f"trained with {trained_at:g}", (trained_at, 0.02), xycoords=("data", "axes fraction"), rotation=90,
            ha="right", va="bottom", fontsize=6.5, color=FAINT, xytext=(-1.5, 0), textcoords="offset points",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )  # fmt: skip
    ax.set(xlabel="share of keys kept", ylabel=ylabel, xlim=(0, 1.02))
    ax.grid(axis="y", visible=True)
    if legend:
        ax.legend()
    return ax


def training_curves(
    curves: Mapping[str, "DataFrame | Sequence[Mapping[str, Any]]"],
    ax: "Axes",
    column: str = "psnr",
    ylabel: str = "training PSNR (dB, rgb)",
    smooth: int = 9,
) -> "Axes":
    """Draw a column of training histories over steps, each in the colour of its mode.

    Args:
        curves: by name ("dual-tiny"): rows of metrics.csv, with step and `column`; those without a value are skipped.
        smooth: rows in the running mean; the raw values stand faintly behind it. 1 draws the values themselves.
    """
    import pandas as pd

    for name, rows in curves.items():
        frame = pd.DataFrame(rows)
        choose("column", column, frame.columns)
        frame = frame.dropna(subset=[column])
        values = frame[column].astype(float)
        look = {**MODE_STYLES[mode_of(name)], "markersize": 3, "markevery": max(1, len(frame) // 8)}
        if smooth > 1:
            ax.plot(frame["step"], values, color=look["color"], alpha=0.25, linewidth=0.5)
            values = values.rolling(smooth, min_periods=1, center=True).mean()
        ax.plot(frame["step"], values, label=name, **look)
    ax.set(xlabel="training step", ylabel=ylabel)
    ax.grid(axis="y", visible=True)
    if len(curves) > 1:
        ax.legend()
    return ax


def bubbles(table: "DataFrame", ax: "Axes", ylabel: str = "PSNR (dB)", scale: float = 1.6) -> "Axes":
    """Draw networks as bubbles: parameters across, a score up, area for multiply-adds.

    Args:
        table: columns name, parameters, macs, score; one row for each network with a comparable score.
        scale: square points for each billion multiply-adds.
    """
    for i, row in enumerate(table.itertuples()):
        ax.scatter(row.parameters / 1e6, row.score, s=scale * row.macs / 1e9, color=_grey(i), **_EDGE)
        ax.annotate(
            row.name, (row.parameters / 1e6, row.score), xytext=(0, -3 - 0.5 * (scale * row.macs / 1e9) ** 0.5),
            textcoords="offset points", ha="center", va="top", fontsize=7,
        )  # fmt: skip
    ax.set(ylabel=ylabel)
    ax.margins(x=0.15, y=0.3)
    ax.grid(visible=True)
    return ax


_EDGE = {"alpha": 0.85, "edgecolors": INK, "linewidths": 0.6, "zorder": 2}


def _grey(i: int) -> str:
    return ("#B8B8B8", "#8C8C8C", "#D8D8D8", "#6E6E6E")[i % 4]


def size_only(table: "DataFrame", ax: "Axes", scale: float = 1.6) -> "Axes":
    """Draw networks without a comparable score on one line: parameters across, area for multiply-adds.

    Args:
        table: columns name, parameters, macs, and colour ("": grey).
    """
    for i, row in enumerate(table.itertuples()):
        ax.scatter(row.parameters / 1e6, 0, s=scale * row.macs / 1e9, color=row.colour or _grey(i), **_EDGE)
        ax.annotate(
            row.name, (row.parameters / 1e6, 0), xytext=(0, -4 - 0.5 * (scale * row.macs / 1e9) ** 0.5),
            textcoords="offset points", ha="center", va="top", fontsize=7,
        )  # fmt: skip
    ax.set(yticks=[], ylim=(-1, 1))
    ax.spines["left"].set_visible(False)
    return ax


def protocol_bars(scores: dict[str, float], ax: "Axes", labels: Sequence[str], unit: str = "dB") -> "Axes":
    """Draw one score under several protocols as bars from its neighbourhood up, with the numbers on them."""
    values = list(scores.values())
    heights = range(len(values))
    low = min(values) - 0.6 * (max(values) - min(values)) - 0.5
    ax.barh(heights, [value - low for value in values], left=low, height=0.62, color="#C9D3E0", edgecolor=INK)
    for height, value in zip(heights, values):
        ax.annotate(
            f"{value:.2f} {unit}", (value, height), xytext=(-3, 0), textcoords="offset points", ha="right", va="center",
            fontsize=7.5, fontweight="bold",
        )  # fmt: skip
    ax.set_yticks(heights, labels)
    ax.invert_yaxis()
    ax.set(
        xlim=(low, max(values) + 0.12 * (max(values) - low)), xlabel=f"PSNR ({unit}); bars do not start at 0"
    )
    ax.tick_params(axis="y", length=0)
    return ax


def label_panel(ax: "Axes", letter: str) -> "Axes":
    """Put a panel's letter before its title, both at the left."""
    title = ax.get_title()
    ax.set_title("")
    ax.set_title(f"({letter}) {title}".rstrip(), loc="left")
    return ax
