"""Explorers: sliders and pictures that answer at once. Each is one call that returns a widget.

    topk_microscope(photo="coffee", rain="light", weights="dual-tiny", layer=None, head=0, row=0, keep=.., a=.., b=..)

Static twins: a displayed explorer carries a PNG of itself in its output (`image/png` beside the widget), which viewers
without widgets show: code-hosting sites, and any viewer once a build drops `application/vnd.jupyter.widget-view+json`
from saved outputs. `static_twin(explorer)` gives the same picture as an object to display elsewhere.
"""

from typing import TYPE_CHECKING

from ddsa_lab.viz.widgets.microscope import topk_microscope

if TYPE_CHECKING:
    from IPython.display import Image

    from ddsa_lab.viz.widgets.common import Explorer

__all__ = ["static_twin", "topk_microscope"]


def static_twin(explorer: "Explorer") -> "Image":
    """The present state of an explorer as a still picture, for pages where no kernel runs."""
    from IPython.display import Image

    return Image(explorer.picture(), format="png")
