"""Figure: what a trained network loses when it keeps fewer keys, or the wrong ones."""

from typing import TYPE_CHECKING

import numpy as np

from ddsa_lab.analysis.surgery import sweep as run_sweep
from ddsa_lab.viz.builders.workbench import HELD_OUT, Drawing, Missing, Workbench
from ddsa_lab.viz.plots import SELECT_STYLES, label_panel, sweep_curves
from ddsa_lab.viz.style import DOUBLE, FAINT, subplots

if TYPE_CHECKING:
    from pandas import DataFrame

KEEPS = (0.1, 0.3, 0.5, 0.7, 0.85, 1.0)
ONE_LAYER_KEEP = 0.3


def sweep(bench: Workbench) -> Drawing:
    """Draw the change of PSNR over keep with random and weakest keys as controls, for all layers and each alone."""
    model, size, rain, seeds = bench.model(), 128, "light", (0, 1)
    trained = model.config.keep
    if not isinstance(trained, float) or model.config.mode in ("dense", "multi"):
        raise Missing(
            f"{bench.name} has no single share of kept keys to change: choose a dual or sparse network"
        )
    pairs = [(f"{photo}-{seed}", bench.pair(photo, rain, size, seed)) for photo in HELD_OUT for seed in seeds]
    common = {"tile": 0, "progress": False}
    before = run_sweep(model, pairs, (trained,), ("top",), **common).set_index("image")["psnr"]
    together = run_sweep(model, pairs, KEEPS, draws=2, **common)
    alone = run_sweep(model, pairs, (ONE_LAYER_KEEP,), per_layer=True, **common)
    figure, axes = subplots((DOUBLE, 2.75), 1, 2, width_ratios=(1, 1.05))
    curves = changes(together, before, ["keep", "select"])
    sweep_curves(curves, axes[0], trained, "change of PSNR (dB)", legend=False)
    axes[0].set_title("all layers")
    layers = changes(alone, before, ["layer", "select"])
    _dots(layers, axes[1])
    axes[1].set(
        title=f"one layer at a time, {ONE_LAYER_KEEP:g} of its keys kept", ylabel="change of PSNR (dB)"
    )
    for ax, letter in zip(axes, "ab"):
        label_panel(ax, letter)
        ax.axhline(0, color=FAINT, linewidth=0.6, zorder=0)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    numbers = {"unchanged_psnr": float(before.mean()), "all_layers": curves, "one_layer": layers}
    settings = {
        "network": bench.name, "photos": HELD_OUT, "rain": rain, "size": size, "rain_seeds": seeds,
        "random_draws": 2, "protocol": "y_uint8",
        "intervals": "95 % percentile bootstrap over images, 2000 resamples, seed 0",
    }  # fmt: skip
    return Drawing(figure, numbers, settings)


def changes(table: "DataFrame", before: "DataFrame", keys: list[str]) -> "DataFrame":
    """Return the mean change of PSNR with a bootstrap interval over images; draws are averaged first.

    Args:
        table: as `surgery.sweep` returns it.
        before: PSNR of the unchanged network by image.
        keys: columns that tell the settings apart.
    """
    import pandas as pd

    means = table.groupby([*keys, "image"], sort=False)["psnr"].mean().reset_index()
    means["change"] = means["psnr"] - means["image"].map(before)
    rng, rows = np.random.default_rng(0), []
    for values, group in means.groupby(keys, sort=False):
        change = group["change"].to_numpy()
        resampled = change[rng.integers(len(change), size=(2000, len(change)))].mean(axis=1)
        low, high = np.quantile(resampled, (0.025, 0.975))
        rows.append((*values, change.mean(), low, high))
    return pd.DataFrame(rows, columns=[*keys, "mean", "low", "high"])


def _dots(table: "DataFrame", ax) -> None:
    """One mark with an interval for each layer and way of choosing."""
    layers = list(dict.fromkeys(table["layer"]))
    for i, (select, rows) in enumerate(table.groupby("select", sort=False)):
        look = SELECT_STYLES[select]
        places = np.arange(len(layers)) + 0.2 * (i - 1)
        spread = (rows["mean"] - rows["low"], rows["high"] - rows["mean"])
        ax.errorbar(
            places,
            rows["mean"],
            yerr=spread,
            fmt=look["marker"],
            color=look["color"],
            elinewidth=0.8,
            capsize=0,
        )
    ax.set_xticks(range(len(layers)), layers, rotation=40, ha="right", rotation_mode="anchor")
    ax.grid(axis="y", visible=True)
