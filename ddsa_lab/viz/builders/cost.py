"""Figure: what networks cost, and what that buys where scores can be compared."""

from typing import Any

from ddsa_lab.evaluation.published import published
from ddsa_lab.model.cost import count_macs, count_parameters
from ddsa_lab.model.network import NetworkConfig
from ddsa_lab.viz.builders.workbench import Drawing, Workbench
from ddsa_lab.viz.plots import bubbles, label_panel, size_only
from ddsa_lab.viz.style import DOUBLE, MODE_STYLES, subplots

SIZE = 256
BENCHMARK = "Rain200L"


def cost(_: Workbench) -> Drawing:
    """Draw published networks with a score of one benchmark as bubbles, and those without one by size only."""
    import pandas as pd

    scores = {one.method: one for one in published(BENCHMARK)}
    scored = [{**_size("restormer"), "name": "Restormer", "score": scores["Restormer"].psnr}]
    scored += [{**_size("drsformer"), "name": "DRSformer*", "score": scores["DRSformer"].psnr}]
    dual = MODE_STYLES["dual"]["color"]
    rest = [
        {**_size("tiny"), "name": "tiny", "colour": dual},
        {**_size("small"), "name": "small", "colour": dual},
        {**_size("idt_ddsa"), "name": "DDSA, as released", "colour": ""},
    ]
    scored, rest = pd.DataFrame(scored), pd.DataFrame(rest)
    figure, axes = subplots((DOUBLE * 0.62, 3.5), 2, 1, height_ratios=(1.7, 1), sharex=True)
    bubbles(scored, axes[0], f"published PSNR (dB), {BENCHMARK}")
    size_only(rest, axes[1])
    axes[1].set(xscale="log", xlim=(0.4, 120), xlabel="parameters (millions)")
    ticks = (0.5, 1, 2, 5, 10, 20, 50, 100)
    axes[1].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[1].minorticks_off()
    axes[0].set_title("comparable scores: one benchmark, one protocol")
    axes[1].set_title("no score that could be compared: size only")
    _legend(axes[0])
    axes[0].text(
        0.015, 0.03, "* size without its mixture of experts", transform=axes[0].transAxes, fontsize=6.5
    )
    for ax, letter in zip(axes, "ab"):
        label_panel(ax, letter)
    settings = {
        "benchmark": BENCHMARK, "protocol": scores["Restormer"].protocol, "source": scores["Restormer"].source,
        "multiply_adds": f"one {SIZE} x {SIZE} image, order of the released code",
        "note": "the sizes are counted by ddsa_lab.model.cost; DRSformer's score is of the network with its experts, "
        "its size without; the DDSA paper's own scores were not at hand, and ours are trained on synthetic rain",
    }  # fmt: skip
    return Drawing(figure, {"scored": scored, "size_only": rest}, settings)


def _size(preset: str) -> dict[str, Any]:
    config = NetworkConfig.preset(preset)
    return {"parameters": count_parameters(config), "macs": count_macs(config, SIZE, SIZE, "released")}


def _legend(ax: Any) -> None:
    """Bubbles of known size."""
    for giga in (5, 50, 250):
        ax.scatter([], [], s=1.6 * giga, color="white", edgecolors="black", linewidths=0.6, label=f"{giga}")
    ax.legend(title="GMAC at 256 × 256", loc="upper left", labelspacing=1.3, borderpad=0.6, handletextpad=1.0)
