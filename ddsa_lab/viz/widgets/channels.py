"""Channel viewer: the feature maps behind one entry of an attention matrix, and what top-k drops of a channel."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np
from torch import Tensor

from ddsa_lab.analysis.channels import EntryImages, Parts, entry_images, kept_and_dropped
from ddsa_lab.analysis.probe import Record, pick, record
from ddsa_lab.data.images import to_uint8
from ddsa_lab.model.network import DerainTransformer
from ddsa_lab.model.restore import derain
from ddsa_lab.viz.style import ACCENT, style
from ddsa_lab.viz.widgets.common import (
    CONTROL,
    Canvas,
    Explorer,
    caption,
    menu,
    numbers,
    picture,
    png,
    slider,
)
from ddsa_lab.viz.widgets.microscope import SIDE
from ddsa_lab.viz.widgets.scene import bundled_pair, network, photo_names, rain_names, weights_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = (
    "logits: query i, key j",
    "query q_i",
    "key k_j",
    "product q_i k_j",
    "value v_j",
    "kept part of i",
    "dropped part of i",
    "whole output i",
)


@dataclass(frozen=True)
class ChannelState:
    """One entry of one attention matrix."""

    layer: str
    head: int
    i: int  # query, row
    j: int  # key, column


@dataclass(frozen=True, eq=False)
class ChannelView:
    """The images behind an entry."""

    state: ChannelState
    entry: EntryImages
    logits: Tensor  # (C, C) of the head
    value: Tensor  # (H, W), v of key channel j
    parts: Parts
    channel: int  # of the query, among all heads

    def images(self) -> dict[str, np.ndarray]:
        """What is drawn, by title."""
        kept, dropped, whole = (
            getattr(self.parts, name)[0, self.channel] for name in ("kept", "dropped", "whole")
        )
        shown = (
            self.logits,
            self.entry.query,
            self.entry.key,
            self.entry.product,
            self.value,
            kept,
            dropped,
            whole,
        )
        return {title: values.float().numpy() for title, values in zip(TITLES, shown)}

    def facts(self) -> list[tuple[str, str]]:
        """Names and values for the table."""
        entry, dropped = self.entry, float(self.parts.dropped_share[0, self.channel])
        return [
            ("sum of the product", f"{float(entry.product.sum()):+.4f}"),
            ("times temperature", f"{entry.temperature:.4f}"),
            ("is the logit z_ij", f"{entry.logit:+.4f}"),
            ("dense weight", f"{entry.dense:.4f}"),
            ("fused weight", f"{entry.fused:.4f}"),
            ("this key is", "kept" if entry.kept else "dropped"),
            ("dropped part", f"{dropped:.1%} of the norms"),
        ]


def look(model: DerainTransformer, rainy: Tensor, layer: str) -> tuple[Record, Parts]:
    """Run the network once and keep what one layer saw."""
    with record(model, layers=layer, keep=("queries", "values")) as rec:
        derain(model, rainy, tile=0)
    return rec, kept_and_dropped(rec, layer)


def compute(rec: Record, parts: Parts, state: ChannelState) -> ChannelView:
    """The images of one entry of a recorded layer."""
    entry = pick(rec, state.layer)
    start = state.head * entry.channels
    return ChannelView(
        state, entry_images(rec, state.layer, state.i, state.j, state.head), entry.logits[0, state.head],
        entry.need("values")[0, start + state.j], parts, start + state.i,
    )  # fmt: skip


class ChannelPanels:
    """Eight panels; `show` moves their contents."""

    def __init__(self, figure: "Figure", moving: bool):
        self.axes = dict(zip(TITLES, figure.subplots(2, 4).flat))
        still = {"animated": moving}
        self.images = {
            name: ax.imshow(np.zeros((2, 2)), cmap="PuOr_r", **still) for name, ax in self.axes.items()
        }
        for name, ax in self.axes.items():
            ax.set(xticks=[], yticks=[])
            ax.set_title(name)
            ax.title.set_animated(moving)
            ax.spines[:].set_visible(False)
        (self.mark,) = self.axes[TITLES[0]].plot([], [], color=ACCENT, linewidth=1.8, **still)
        self.sizes: tuple[Any, ...] = ()

    def show(self, view: ChannelView) -> bool:
        """Put the images of a view in place; returns whether axes have changed."""
        images, state = view.images(), view.state
        together = max(float(np.abs(images[name]).max()) for name in TITLES[5:])
        for name, values in images.items():
            image = self.images[name]
            image.set_data(values)
            height, width = values.shape
            image.set_extent((-0.5, width - 0.5, height - 0.5, -0.5))
            top = together if name in TITLES[5:] else float(np.abs(values).max())
            image.set_clim(-(top or 1.0), top or 1.0)
        i, j = state.i, state.j
        self.mark.set_data(
            [j - 0.5, j + 0.5, j + 0.5, j - 0.5, j - 0.5], [i - 0.5, i - 0.5, i + 0.5, i + 0.5, i - 0.5]
        )
        dropped = float(view.parts.dropped_share[0, view.channel])
        self.axes["dropped part of i"].title.set_text(f"dropped part of i: {dropped:.0%}")
        sizes = tuple(values.shape for values in images.values())
        changed, self.sizes = sizes != self.sizes, sizes
        if changed:
            for (height, width), ax in zip(sizes, self.axes.values()):
                ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        return changed


class ChannelViewer(Explorer):
    """The shell."""

    def __init__(self, photo: str, rain: str, weights: str, layer: str | None):
        super().__init__("Channel viewer")
        self.photo = menu("photo", photo_names(), photo)
        self.rain = menu("rain", rain_names(), rain)
        names = weights_names()
        self.weights = menu("weights", names if weights in names else [*names, weights], weights)
        self.layer = menu("layer", [layer or "-"], layer or "-")
        self.head = slider(widgets.IntSlider, "head", 0, 0, 0, 1)
        self.i = slider(widgets.IntSlider, "query i", 0, 0, 0, 1)
        self.j = slider(widgets.IntSlider, "key j", 0, 0, 0, 1)
        self.facts = widgets.HTML(layout=widgets.Layout(**CONTROL))
        self.input = picture(pixelated=True, width=160)
        self.caption = caption()
        self.board = picture()
        self.rec: Record | None = None
        self._canvas: Canvas | None = None
        for control in (self.photo, self.rain, self.weights, self.layer):
            control.observe(self._new_record, "value")
        for control in (self.head, self.i, self.j):
            control.observe(self.refresh, "value")
        controls = [
            self.photo,
            self.rain,
            self.weights,
            self.layer,
            self.head,
            self.i,
            self.j,
            self.facts,
            self.input,
        ]
        self.assemble(controls, [self.board])

    def _new_record(self, _change: Any = None) -> None:
        self.rec = None
        self.refresh()

    def _prepare(self) -> None:
        if self.rec is not None:
            return
        model = network(self.weights.value)
        names = list(model.attention_layers())
        pair = bundled_pair(self.photo.value, self.rain.value, 0, SIDE)
        with self.refresh.hold():
            before = self.layer.value
            if list(self.layer.options) != names:
                self.layer.options = names
            self.layer.value = before if before in names else names[-1]
            self.rec, self.parts = look(model, pair.rainy, self.layer.value)
            entry = pick(self.rec, self.layer.value)
            self.head.max, self.i.max, self.j.max = (size - 1 for size in entry.logits.shape[1:])
        self.input.value = png(to_uint8(pair.rainy))

    def state(self) -> ChannelState:
        """What the controls say now."""
        return ChannelState(self.layer.value, self.head.value, self.i.value, self.j.value)

    def update(self) -> str:
        self._prepare()
        self.view = view = compute(self.rec, self.parts, self.state())
        if self._canvas is None:
            self._canvas, self._panels = new_board()
        if self._panels.show(view):
            self._canvas.settle()
        self.board.value = self._canvas.png()
        self.facts.value = numbers(view.facts())
        height, width = view.value.shape
        return (
            f"Purple is negative, orange positive. Maps of {self.layer.value} have {width} x {height} pixels; "
            "kept, dropped and whole share one scale."
        )

    def figure(self) -> "Figure":
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.6, 4.8))
        ChannelPanels(figure, moving=False).show(self.view)
        state = self.view.state
        figure.suptitle(
            f"{state.layer}, head {state.head}, query {state.i}, key {state.j} ({self.view.facts()[5][1]})"
        )
        return figure


def new_board() -> tuple[Canvas, ChannelPanels]:
    """The figure of the maps, to be redrawn in place."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(6.6, 3.6), dpi=130)
        return Canvas(figure), ChannelPanels(figure, moving=True)


def channel_viewer(
    photo: str = "coffee", rain: str = "light", weights: str = "dual-tiny", layer: str | None = None
) -> ChannelViewer:
    """Look at the images behind an entry of an attention matrix, and at what dropped keys would have added.

    Args:
        photo: bundled photo to begin with.
        rain: preset.
        weights: shipped name, file, or "untrained".
        layer: attention layer to begin with; the last one by default.

    Returns:
        A widget; `.view` holds what is shown, `.picture()` is its static twin.
    """
    return ChannelViewer(photo, rain, weights, layer)
