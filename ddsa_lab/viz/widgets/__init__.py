"""Explorers: sliders and pictures that answer at once. Each is one call that returns a widget.

    topk_microscope(photo="coffee", rain="light", weights="dual-tiny", layer=None, head=0, row=0, keep=.., a=.., b=..)
    side_by_side(photo="coffee", rain="light")
    rain_studio(photo="coffee", rain="light", seed=0)
    sweep_explorer(photo="coffee", rain="light", weights="dual-tiny")
    channel_viewer(photo="coffee", rain="light", weights="dual-tiny", layer=None)
    training_theatre(mode="dual", photo="coffee", rain="heavy", steps=150)

Static twins: a displayed explorer carries a PNG of itself in its output (`image/png` beside the widget), which viewers
without widgets show: code-hosting sites, and any viewer once a build drops `application/vnd.jupyter.widget-view+json`
from saved outputs. `static_twin(explorer)` gives the same picture as an object to display elsewhere.
"""

from typing import TYPE_CHECKING

from ddsa_lab.viz.widgets.channels import channel_viewer
from ddsa_lab.viz.widgets.microscope import topk_microscope
from ddsa_lab.viz.widgets.rain_studio import rain_studio
from ddsa_lab.viz.widgets.side_by_side import side_by_side
from ddsa_lab.viz.widgets.sweep import sweep_explorer
from ddsa_lab.viz.widgets.theatre import training_theatre

if TYPE_CHECKING:
    from IPython.display import Image

    from ddsa_lab.viz.widgets.common import Explorer

__all__ = [
    "channel_viewer",
    "rain_studio",
    "side_by_side",
    "static_twin",
    "sweep_explorer",
    "topk_microscope",
    "training_theatre",
]


def static_twin(explorer: "Explorer") -> "Image":
    """The present state of an explorer as a still picture, for pages where no kernel runs."""
    from IPython.display import Image

    return Image(explorer.picture(), format="png")
