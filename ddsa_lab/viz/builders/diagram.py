"""Figure: the two halves of a DDSA block."""

from ddsa_lab.viz.builders.workbench import Drawing, Workbench
from ddsa_lab.viz.diagram import dual_attention, spatial_feed_forward
from ddsa_lab.viz.style import DOUBLE, subplots


def diagram(_: Workbench) -> Drawing:
    """Draw dual self-attention above the spatial-enhanced feed-forward network."""
    figure, axes = subplots((DOUBLE, 4.75), 2, 1)
    dual_attention(axes[0]).set_title("(a) dual self-attention over channels", loc="left")
    spatial_feed_forward(axes[1]).set_title("(b) spatial-enhanced feed-forward network", loc="left")
    return Drawing(figure, {}, {"source": "arXiv 2308.07781 and its released code; ddsa_lab.model"})
