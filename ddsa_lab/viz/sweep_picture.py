"""The picture of `ddsa-lab sweep`: scores over the share of keys kept, a row a layer."""

from pathlib import Path
from typing import TYPE_CHECKING

from ddsa_lab.files import atomic_write
from ddsa_lab.viz.style import DOUBLE, SELECT_STYLES, style

if TYPE_CHECKING:
    from pandas import DataFrame

SCORES = {"psnr": "PSNR (dB)", "ssim": "SSIM"}


def draw_sweep(table: "DataFrame", path: Path) -> None:
    """Draw a table of `surgery.sweep` into a PNG file: means over images, with 95 % bootstrap intervals."""
    import seaborn
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(table["layer"]))
    with style():
        figure = Figure(figsize=(DOUBLE, 0.4 + 2.2 * len(layers)), layout="constrained")
        for layer, axes in zip(layers, figure.subplots(len(layers), len(SCORES), squeeze=False)):
            rows = table[table["layer"] == layer]
            for (score, label), ax in zip(SCORES.items(), axes):
                for select, part in rows.groupby("select", sort=False):
                    look = SELECT_STYLES[select]
                    seaborn.lineplot(part, x="keep", y=score, ax=ax, label=f"{select} k", seed=0, **look)
                ax.set(
                    xlabel="share of keys kept",
                    ylabel=label,
                    title=f"layer {layer}" if layer != "all" else "all layers",
                )
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=200)
