"""Figure: one restored photo under every protocol, and where 1.32 dB come from."""

import math

import numpy as np

from ddsa_lab.evaluation.metrics import PROTOCOLS, full_luma, matlab_luma, score
from ddsa_lab.viz.builders.workbench import Drawing, Workbench
from ddsa_lab.viz.images import error_map, show_image
from ddsa_lab.viz.plots import label_panel, protocol_bars
from ddsa_lab.viz.style import DOUBLE, FAINT, MODE_STYLES, new_figure

LABELS = {
    "y_uint8": "y_uint8\nMATLAB luma, rounded",
    "y_double": "y_double\nMATLAB luma",
    "y_full": "y_full\nfull-range luma",
    "rgb": "rgb\nall channels",
}
OFFSET = 20 * math.log10(255 / 219)


def metrics(bench: Workbench) -> Drawing:
    """Draw a pair, the two luma scales, and PSNR under every protocol."""
    photo, rain, size = "chelsea", "light", 256
    pair, restored = bench.pair(photo, rain, size), bench.restored(photo, rain, size)
    scores = {name: score(restored, pair.clean, name) for name in PROTOCOLS}
    figure = new_figure((DOUBLE, 2.55))
    left, middle, right = figure.subfigures(1, 3, width_ratios=(0.62, 1, 1.5), wspace=0.02)
    thumbs = left.subplots(2, 1)
    show_image(restored, thumbs[0], "restored")
    error_map(restored, pair.clean, thumbs[1], 0.1, "its error")
    scale, bars = middle.subplots(), right.subplots()
    _scales(scale)
    protocol_bars(
        {name: one["psnr"] for name, one in scores.items()}, bars, [LABELS[name] for name in scores]
    )
    _offset(bars, scores["y_full"]["psnr"], scores["y_double"]["psnr"])
    bars.set_title("the same pair under four protocols")
    for ax, letter in zip((thumbs[0], scale, bars), "abc"):
        label_panel(ax, letter)
    numbers = {
        "scores": scores,
        "luma_offset_db": OFFSET,
        "measured_offset_db": scores["y_double"]["psnr"] - scores["y_full"]["psnr"],
        "psnr_of_the_rainy_input": {name: score(pair.rainy, pair.clean, name)["psnr"] for name in PROTOCOLS},
    }
    return Drawing(figure, numbers, {"network": bench.name, "photo": photo, "rain": rain, "size": size})


def _scales(ax) -> None:
    """Both lumas of grey, from black to white: one error is 219/255 as large on MATLAB's scale."""
    grey = np.arange(0, 256)
    rgb = np.broadcast_to(grey, (3, 1, 256))
    full, matlab = full_luma(rgb)[0], matlab_luma(rgb, rounded=False)[0]
    ax.plot(grey, full, color=MODE_STYLES["dense"]["color"], linestyle="--", label="full range: 0 to 255")
    ax.plot(grey, matlab, color=MODE_STYLES["dual"]["color"], label="MATLAB: 16 to 235")
    ax.axhline(255, color=FAINT, linewidth=0.7, linestyle=(0, (1, 2)))
    ax.annotate(
        "peak of both: 255", (252, 255), xytext=(0, 2), textcoords="offset points", fontsize=6.5, ha="right"
    )
    ax.text(
        250, 4, f"errors shrink by 219/255:\n20 log$_{{10}}$(255/219) = {OFFSET:.2f} dB", fontsize=6.5, ha="right",
        va="bottom",
    )  # fmt: skip
    ax.set(xlabel="grey value of the image", ylabel="luma", xlim=(0, 255), ylim=(0, 275))
    ax.set_xticks((0, 64, 128, 192, 255))
    ax.set_yticks((0, 16, 128, 235, 255), ("0", "16", "128", "235", "255"))
    ax.legend(loc="upper left", bbox_to_anchor=(0.0, 0.93))
    ax.set_title("two scales, one peak")


def _offset(ax, full: float, matlab: float) -> None:
    """The step from full-range to MATLAB luma, drawn between their bars."""
    ax.plot([full, full], [1, 2], color=FAINT, linewidth=0.7, linestyle=":")
    ax.annotate(
        "",
        (matlab, 1.5),
        (full, 1.5),
        arrowprops={"arrowstyle": "<->", "color": MODE_STYLES["dual"]["color"], "lw": 0.9},
    )
    ax.annotate(
        f"{matlab - full:.2f} dB", (full, 1.5), xytext=(-4, 0), textcoords="offset points", ha="right", va="center",
        fontsize=7, color=MODE_STYLES["dual"]["color"], fontweight="bold",
    )  # fmt: skip
