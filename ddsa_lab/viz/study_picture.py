"""The picture of a study: each variant's difference to the baseline, with its interval."""

from pathlib import Path
from typing import TYPE_CHECKING

from ddsa_lab.files import atomic_write
from ddsa_lab.viz.plots import label_panel
from ddsa_lab.viz.style import ACCENT, DOUBLE, FAINT, INK, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


def draw_study(scores: "DataFrame", table: "DataFrame", path: Path, protocol: str) -> None:
    """Draw a study into a PNG file: gains of all seeds, and differences to the baseline.

    Args:
        scores: as `collect_runs` returns them.
        table: as `study_table` returns it; its first row is the baseline.
        path: the file.
        protocol: whose scores the table holds.
    """
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(DOUBLE, 0.9 + 0.24 * len(table)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        gains(scores[scores["protocol"] == protocol], table, left, protocol)
        differences(table, right)
        for ax, letter in zip((left, right), "ab"):
            label_panel(ax, letter)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=200)


def gains(scores: "DataFrame", table: "DataFrame", ax: "Axes", protocol: str) -> "Axes":
    """Draw each seed's mean gain above the untouched input, a point a run."""
    import seaborn

    means = scores.assign(gain=scores["psnr"] - scores["input_psnr"])
    means = means.groupby(["variant", "seed"], as_index=False)["gain"].mean()
    seaborn.stripplot(
        means, x="gain", y="variant", order=list(table["variant"]), color=INK, size=4, jitter=False, ax=ax
    )
    ax.set(xlabel=f"gain of each seed (dB, {protocol})", ylabel="")
    ax.grid(axis="x", visible=True)
    return ax


def differences(table: "DataFrame", ax: "Axes") -> "Axes":
    """Draw mean differences to the first row's variant with 95 % intervals: filled where decided, open where undecided."""
    for row, entry in enumerate(table.itertuples()):
        if row == 0 or entry.difference != entry.difference:
            continue
        decided = entry.verdict in ("better", "worse")
        colour = ACCENT if decided else INK
        ax.plot([entry.low, entry.high], [row, row], color=colour, linewidth=1.4)
        face = colour if decided else "white"
        ax.plot(entry.difference, row, "o", color=colour, markersize=4.5, markerfacecolor=face)
    ax.axvline(0, color=FAINT, linewidth=0.8)
    ax.set_title("open: undecided (the interval contains 0)")
    ax.set(xlabel=f"PSNR difference to {table['variant'].iloc[0]} (dB), 95 % interval", ylabel="")
    ax.grid(axis="x", visible=True)
    return ax
