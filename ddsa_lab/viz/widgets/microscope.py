"""Top-k microscope: one row of one attention matrix, and what its kept keys do to the restored picture."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import torch
from torch import Tensor

from ddsa_lab.analysis.probe import LayerRecord, pick, record
from ddsa_lab.analysis.surgery import surgery
from ddsa_lab.data.images import to_uint8
from ddsa_lab.data.rain import RainyPair
from ddsa_lab.errors import LabError
from ddsa_lab.evaluation.metrics import score
from ddsa_lab.model.network import DerainTransformer
from ddsa_lab.viz.style import style
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
from ddsa_lab.viz.widgets.panels import MicroscopePanels
from ddsa_lab.viz.widgets.rerun import Rerun
from ddsa_lab.viz.widgets.scene import (
    bundled_pair,
    network,
    photo_names,
    rain_names,
    rained,
    weights_names,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 128
ERROR_GAIN = 5
KEEP_STEP = 0.05
OWN = "your own"


@dataclass(frozen=True)
class MicroscopeState:
    """What the controls of the microscope say."""

    layer: str
    head: int
    row: int
    keep: float
    a: float
    b: float
    everywhere: bool = False  # change all layers, not only the one looked at


@dataclass(frozen=True, eq=False)
class Subject:
    """A network over a rainy picture, with all that no slider changes."""

    model: DerainTransformer
    pair: RainyPair
    rerun: Rerun
    untouched: dict[str, float]  # scores of the rainy picture

    @classmethod
    def of(cls, model: DerainTransformer, pair: RainyPair) -> "Subject":
        """Run the network once, as trained.

        Raises:
            LabError: a network with four branches.
        """
        if model.built_with.mode == "multi":
            raise LabError("these weights have four sparse branches: choose a dense, sparse or dual network")
        return cls(model, pair, Rerun(model, pair.rainy), score(pair.rainy, pair.clean))


@dataclass(frozen=True, eq=False)
class MicroscopeView:
    """What the microscope shows of one state."""

    state: MicroscopeState
    entry: LayerRecord  # of the layer, with the settings of the state
    code: Tensor  # fused weights as the network's own code computed them, (heads, C, C)
    restored: Tensor  # (3, H, W)
    scores: dict[str, float]

    @property
    def identity(self) -> Tensor:
        """p (a + b/m) on the kept keys and a p on the others, (heads, C, C). Derived in notebook 02, section 4."""
        entry, a = self.entry, self.entry.a or 0.0
        return (entry.dense * torch.where(entry.mask, a + entry.b / entry.mass[..., None], a))[0]

    @property
    def difference(self) -> float:
        """Largest difference between code and identity, over all rows and heads of the layer."""
        return float((self.code - self.identity).abs().max())

    def rows(self) -> dict[str, Tensor]:
        """The row looked at, (C,) each: logits, mask, dense, sparse, fused (code) and identity."""
        place = (self.state.head, self.state.row)
        found = {name: getattr(self.entry, name)[0] for name in ("logits", "mask", "dense", "sparse")}
        found |= {"fused": self.code, "identity": self.identity}
        return {name: values[place] for name, values in found.items()}

    def facts(self) -> list[tuple[str, str]]:
        """Names and values for the table beside the pictures."""
        entry, place = self.entry, (0, self.state.head, self.state.row)
        kept = int(entry.mask[place].sum())
        return [
            ("k, keys kept", f"{kept} of {entry.channels}"),
            ("m, their dense weight", f"{float(entry.mass[place]):.4f}"),
            ("g = 1 + b/(a m), their gain", f"{float(entry.gain[place]):.3f}"),
            ("PSNR (luma)", f"{self.scores['psnr']:.2f} dB"),
            ("SSIM (luma)", f"{self.scores['ssim']:.4f}"),
        ]


def settings(model: DerainTransformer, state: MicroscopeState) -> dict[str, Any]:
    """What `surgery` is asked to change for a state; a dense network becomes sparse where keep is below 1."""
    mode = model.built_with.mode
    if mode == "dense":
        return {"mode": "sparse", "keep": state.keep} if state.keep < 1 else {}
    return {"keep": state.keep} | ({"branch": (state.a, state.b)} if mode == "dual" else {})


def compute(subject: Subject, state: MicroscopeState) -> MicroscopeView:
    """Run the network with the settings of a state, from the changed layer on."""
    model, taken = subject.model, []
    weights = model.attention_layers()[state.layer].weights
    with (
        surgery(model, layers=None if state.everywhere else state.layer, **settings(model, state)),
        record(model, layers=state.layer) as rec,
    ):
        hook = weights.register_forward_hook(lambda _module, _inputs, fused: taken.append(fused))
        try:
            restored = subject.rerun.run(subject.rerun.layers[0] if state.everywhere else state.layer)
        finally:
            hook.remove()
    return MicroscopeView(
        state, pick(rec, state.layer), taken[0][0], restored, score(restored, subject.pair.clean)
    )


def as_trained(subject: Subject, state: MicroscopeState, layer: str) -> MicroscopeState:
    """The state for looking at another layer, with that layer's own keep, a and b."""
    attention = subject.model.attention_layers()[layer]
    weights, heads = attention.weights, attention.heads
    channels = attention.project.weight.shape[0] // heads
    a, b = weights.branch.detach().tolist()
    mode = weights.mode
    return replace(
        state, layer=layer, head=min(state.head, heads - 1), row=min(state.row, channels - 1),
        keep=1.0 if mode == "dense" else weights.keep,
        a=0.0 if mode == "sparse" else a, b=0.0 if mode == "dense" else b,
    )  # fmt: skip


class TopkMicroscope(Explorer):
    """The shell: controls, pictures, and nothing that computes."""

    def __init__(
        self, pair: RainyPair | None, model: DerainTransformer | None, photo: str, rain: str, weights: str
    ):
        super().__init__("Top-k microscope")
        self.own_pair, self.own_model = pair, model
        self.photo = menu("photo", ([OWN] if pair else []) + photo_names(), OWN if pair else photo)
        self.rain = menu("rain", rain_names(), rain)
        self.rain.disabled = pair is not None
        names = ([OWN] if model else []) + weights_names()
        self.weights = menu(
            "weights", names if weights in names or model else [*names, weights], OWN if model else weights
        )
        self.layer = menu("layer", ["-"], "-")
        self.head = slider(widgets.IntSlider, "head", 0, 0, 0, 1)
        self.row = slider(widgets.IntSlider, "row (query)", 0, 0, 0, 1)
        self.keep = slider(widgets.FloatSlider, "keep", 0.7, KEEP_STEP, 1, KEEP_STEP, readout_format=".2f")
        self.a = slider(widgets.FloatSlider, "a (dense)", 0.2, 0, 1, 0.001, readout_format=".3f")
        self.b = slider(widgets.FloatSlider, "b (sparse)", 0.2, 0, 1, 0.001, readout_format=".3f")
        self.where = menu("change", ["this layer", "all layers"], "this layer")
        self.sort = widgets.Checkbox(description="sort keys by logit", indent=False)
        self.reset = widgets.Button(description="as trained", tooltip="keep, a and b as the network has them")
        self.facts = widgets.HTML(layout=widgets.Layout(**CONTROL))
        self.pictures = [picture(pixelated=True) for _ in range(4)]
        self.captions = [caption() for _ in self.pictures]
        self.board = picture()
        self.subject: Subject | None = None
        self.view: MicroscopeView | None = None
        self._canvas: Canvas | None = None
        self._listen()
        self.assemble(self._controls(), [self._strip(), self.board])

    def _controls(self) -> list[widgets.Widget]:
        return [
            self.photo, self.rain, self.weights, self.layer, self.head, self.row, self.keep, self.a, self.b,
            self.where, widgets.HBox([self.reset, self.sort]), self.facts,
        ]  # fmt: skip

    def _strip(self) -> widgets.Widget:
        cell = widgets.Layout(flex="1 1 120px", min_width="110px", max_width="230px", padding="0 4px")
        cells = [
            widgets.VBox([image, text], layout=cell) for image, text in zip(self.pictures, self.captions)
        ]
        return widgets.Box(cells, layout=widgets.Layout(display="flex", flex_flow="row wrap", width="100%"))

    def _listen(self) -> None:
        for control in (self.photo, self.rain, self.weights):
            control.observe(self._new_subject, "value")
        self.layer.observe(self._new_layer, "value")
        for control in (self.head, self.row, self.keep, self.a, self.b, self.where, self.sort):
            control.observe(self.refresh, "value")
        self.reset.on_click(self._new_layer)

    def _new_subject(self, _change: Any = None) -> None:
        self.subject = None
        self.refresh()

    def _new_layer(self, _change: Any = None) -> None:
        if self.subject is not None:
            with self.refresh.hold():
                self._show_layer()

    def state(self) -> MicroscopeState:
        """What the controls say now."""
        return MicroscopeState(
            self.layer.value, self.head.value, self.row.value, self.keep.value, self.a.value, self.b.value,
            self.where.value == "all layers",
        )  # fmt: skip

    def _prepare(self) -> Subject:
        """The network over the picture, made anew where photo, rain or weights have changed."""
        if self.subject is None:
            model = self.own_model if self.weights.value == OWN else network(self.weights.value)
            pair = (
                self.own_pair
                if self.photo.value == OWN
                else bundled_pair(self.photo.value, self.rain.value, 0, SIDE)
            )
            subject = Subject.of(model, pair)
            same = self.layer.value in subject.rerun.layers
            with self.refresh.hold():
                self.subject = subject
                before = self.layer.value
                self.layer.options = subject.rerun.layers
                self.layer.value = before if same else subject.rerun.layers[-1]
                self._show_layer()
            self._show_fixed()
        return self.subject

    def _show_layer(self) -> None:
        """Set the sliders to what the layer has, within its ranges."""
        state = as_trained(self.subject, self.state(), self.layer.value)
        attention = self.subject.model.attention_layers()[state.layer]
        self.head.max, self.row.max = (
            attention.heads - 1,
            attention.project.weight.shape[0] // attention.heads - 1,
        )
        for name in ("head", "row", "keep", "a", "b"):
            getattr(self, name).value = getattr(state, name)
        self.a.disabled = self.b.disabled = attention.weights.built_as != "dual"

    def _show_fixed(self) -> None:
        pair, untouched = self.subject.pair, self.subject.untouched
        self.pictures[0].value, self.pictures[2].value = png(to_uint8(pair.rainy)), png(to_uint8(pair.clean))
        self.captions[0].value = f"rainy<br>{untouched['psnr']:.2f} dB, {untouched['ssim']:.4f}"
        self.captions[2].value = "clean"
        self.captions[3].value = f"|error| x {ERROR_GAIN}"

    def update(self) -> str:
        subject = self._prepare()
        self.view = view = compute(subject, self.state())
        if self._canvas is None:
            self._canvas, self._panels = new_board()
        if self._panels.show(view, self.sort.value):
            self._canvas.settle()
        shown = [to_uint8(view.restored), error_picture(view.restored, subject.pair.clean)]
        files = [png(pixels) for pixels in shown]
        # All at once, so that numbers and pictures never disagree for longer than a message takes.
        self.board.value = self._canvas.png()
        self.pictures[1].value, self.pictures[3].value = files
        self.captions[1].value = f"restored<br>{view.scores['psnr']:.2f} dB, {view.scores['ssim']:.4f}"
        self.facts.value = numbers(view.facts())
        return status(subject.model, view)

    def figure(self) -> "Figure":
        return static_figure(self.subject, self.view, self.sort.value)


def status(model: DerainTransformer, view: MicroscopeView) -> str:
    """One or two sentences on what is seen, with the check of the identity."""
    text = f"Fused weights from the code and from p (a + b/m) differ by at most {view.difference:.1e}."
    if model.built_with.mode == "dense":
        return text + " A dense network: below keep = 1 its weakest keys are dropped without retraining."
    return text + (" A sparse network has no a and b." if model.built_with.mode == "sparse" else "")


def error_picture(restored: Tensor, clean: Tensor) -> Any:
    """(H, W) uint8: the mean absolute error of the channels, times `ERROR_GAIN`."""
    return to_uint8((restored - clean).abs().mean(0, keepdim=True).mul(ERROR_GAIN).expand(3, -1, -1))


def new_board() -> "tuple[Canvas, MicroscopePanels]":
    """The figure of the attention part, to be redrawn in place."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(6.6, 4.0), dpi=130)
        return Canvas(figure), MicroscopePanels(figure, moving=True)


def static_figure(subject: Subject, view: MicroscopeView, by_logit: bool = False) -> "Figure":
    """Pictures above, attention below: what the widget shows, as one figure for a page without a kernel."""
    from matplotlib.figure import Figure

    from ddsa_lab.viz.images import show_image

    figure = Figure(figsize=(8.6, 7.2))
    above, below = figure.subfigures(2, 1, height_ratios=(2.4, 4.5))
    rainy, restored, clean, error = above.subplots(1, 4)
    show_image(subject.pair.rainy, rainy, f"rainy: {subject.untouched['psnr']:.2f} dB")
    show_image(
        view.restored, restored, f"restored: {view.scores['psnr']:.2f} dB, SSIM {view.scores['ssim']:.4f}"
    )
    show_image(subject.pair.clean, clean, "clean")
    error.imshow(error_picture(view.restored, subject.pair.clean))
    error.set(xticks=[], yticks=[], title=f"|restored - clean| x {ERROR_GAIN}")
    state, facts = view.state, ", ".join(f"{name[0]} {value}" for name, value in view.facts()[:3])
    above.suptitle(
        f"{state.layer}, head {state.head}, row {state.row}: keep {state.keep:.2f}, a {state.a:.2f}, b {state.b:.2f}: {facts}"
    )
    MicroscopePanels(below, moving=False).show(view, by_logit)
    return figure


def topk_microscope(
    photo: str | Tensor | RainyPair = "coffee",
    rain: str = "light",
    weights: str | Path | DerainTransformer = "dual-tiny",
    layer: str | None = None,
    **start: float,
) -> TopkMicroscope:
    """Move keep, a and b of a layer and see its attention and the restored picture change.

    Args:
        photo: bundled photo, a clean photo (3, H, W) in [0, 1], or a pair with .clean and .rainy; of large ones a
            square of 128 pixels is shown.
        rain: preset.
        weights: shipped name, file, "untrained", or a network.
        layer: attention layer to begin with; the last one by default.
        start: head, row, keep, a, b to begin with.

    Returns:
        A widget. `.state()` says what its controls say, `.view` holds what is shown, `.picture()` is its static twin.

    Raises:
        LabError: an unknown name in `start`.
    """
    pair = None
    if not isinstance(photo, str):
        pair = crop(rained(photo, rain, 0) if isinstance(photo, Tensor) else photo)
    own = weights if isinstance(weights, DerainTransformer) else None
    known = pair is not None or photo in photo_names()
    shell = TopkMicroscope(pair, own, photo if known else "coffee", rain, str(weights))
    with shell.refresh.hold():
        if layer is not None and shell.subject is not None:
            shell.layer.value = layer
        for name, value in start.items():
            if name not in ("head", "row", "keep", "a", "b"):
                raise LabError(f"unknown start value {name!r}: choose head, row, keep, a or b")
            getattr(shell, name).value = value
    return shell


def crop(pair: RainyPair) -> RainyPair:
    """The middle of a pair, at most `SIDE` pixels a side."""
    height, width = pair.clean.shape[-2:]
    top, left = max(0, (height - SIDE) // 2), max(0, (width - SIDE) // 2)
    return RainyPair(*(part[..., top : top + SIDE, left : left + SIDE].contiguous() for part in pair))
