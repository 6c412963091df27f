"""Rain studio: every parameter of synthetic rain under a slider, with the streaks, a histogram and the scores."""

import dataclasses
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np
import torch
from torch import Tensor

from ddsa_lab.data.images import to_uint8
from ddsa_lab.data.rain import RainLayer, RainParams, RainyPair, add_rain, render_rain, sample_rain
from ddsa_lab.data.streaks import MAX_ANGLE
from ddsa_lab.evaluation.metrics import score
from ddsa_lab.viz.style import INK, MODE_STYLES, style
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
from ddsa_lab.viz.widgets.scene import NO_RAIN, bundled_pair, photo_names, rain_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 256
MOST_LAYERS = 5

# Field of RainLayer -> label, least, most, step.
RANGES: dict[str, tuple[str, float, float, float]] = {
    "angle": ("angle (deg)", -MAX_ANGLE, MAX_ANGLE, 1),
    "angle_spread": ("angle spread", 0, 15, 0.1),
    "length": ("length (px)", 2, 150, 1),
    "length_spread": ("length spread", 0, 1, 0.05),
    "width": ("width (px)", 0.5, 6, 0.1),
    "cover": ("cover", 0, 3, 0.01),
    "brightness": ("brightness", 0, 0.6, 0.005),
    "contrast": ("contrast", 0, 1.2, 0.05),
    "cluster": ("chain length", 1, 10, 0.5),
    "faint": ("dim part", 0, 1, 0.05),
    "edge": ("edge slope", 0.5, 10, 0.5),
    "ceiling": ("ceiling", 0.02, 1, 0.01),
    "beads": ("beads", 0, 1, 0.05),
    "sway": ("sway (px)", 0, 3, 0.1),
}


@dataclass(frozen=True)
class RainState:
    """A photo, a rain, and the seed that places its streaks."""

    photo: str
    params: RainParams
    seed: int


@dataclass(frozen=True, eq=False)
class RainView:
    """What the studio shows of one state."""

    pair: RainyPair
    scores: dict[str, float]
    levels: np.ndarray  # edges of the histogram's bins, grey levels in [0, 1]
    counts: dict[str, np.ndarray]  # share of pixels in each bin, clean and rainy


def compute(state: RainState, size: int = SIDE) -> RainView:
    """Draw the rain of a state over its photo."""
    clean = bundled_pair(state.photo, NO_RAIN, 0, size).clean
    generator = torch.Generator().manual_seed(state.seed)
    streaks = render_rain(state.params, *clean.shape[-2:], generator)
    pair = RainyPair(clean, add_rain(clean, streaks, state.params.veil), streaks)
    levels = np.linspace(0, 1, 65)
    counts = {name: histogram(getattr(pair, name), levels) for name in ("clean", "rainy")}
    return RainView(pair, score(pair.rainy, clean), levels, counts)


def histogram(image: Tensor, levels: np.ndarray) -> np.ndarray:
    """Share of pixels whose mean of the channels falls into each bin."""
    grey = image.mean(0).numpy()
    return np.histogram(grey, levels)[0] / grey.size


def streak_picture(streaks: Tensor) -> np.ndarray:
    """(H, W, 3) uint8 of a streak layer (1, H, W): white is the brightest it holds, at least 0.2."""
    return to_uint8((streaks / max(0.2, float(streaks.max()))).expand(3, -1, -1))


class HistogramPanel:
    """Grey levels of the clean and the rainy picture; `show` moves the lines."""

    def __init__(self, figure: "Figure", moving: bool):
        self.ax = ax = figure.subplots()
        still = {"animated": moving}
        (self.clean,) = ax.plot(
            [], [], color=MODE_STYLES["dense"]["color"], linestyle="--", label="clean", **still
        )
        (self.rainy,) = ax.plot([], [], color=INK, label="rainy", **still)
        ax.set(xlim=(0, 1), xlabel="grey level", ylabel="share of pixels")
        ax.legend(loc="upper right")
        self.top = 0.0

    def show(self, view: RainView) -> bool:
        """Move the lines; returns whether the axis has changed."""
        centres = (view.levels[:-1] + view.levels[1:]) / 2
        self.clean.set_data(centres, view.counts["clean"])
        self.rainy.set_data(centres, view.counts["rainy"])
        high = max(float(counts.max()) for counts in view.counts.values())
        if 0.5 * self.top < 1.05 * high <= self.top:
            return False
        self.top = 1.3 * high
        self.ax.set_ylim(0, self.top)
        return True


class RainStudio(Explorer):
    """The shell: a preset fills the sliders, sliders change one layer of streaks at a time."""

    def __init__(self, photo: str, rain: str, seed: int):
        super().__init__("Rain studio")
        self.photo = menu("photo", photo_names(), photo)
        self.preset = menu("preset", rain_names(), rain)
        self.draw = widgets.BoundedIntText(
            value=seed,
            min=0,
            max=9999,
            description="draw",
            style={"description_width": "92px"},
            layout=widgets.Layout(**CONTROL),
        )
        self.count = slider(widgets.IntSlider, "layers", 1, 1, MOST_LAYERS, 1)
        self.layer = slider(widgets.IntSlider, "edit layer", 1, 1, 1, 1)
        self.veil = slider(widgets.FloatSlider, "veil (mist)", 0, 0, 0.5, 0.01)
        self.profile = menu("profile", ["drop", "line"], "drop")
        self.sliders = {
            name: slider(widgets.FloatSlider, label, least, least, most, step)
            for name, (label, least, most, step) in RANGES.items()
        }
        self.layers: list[RainLayer] = []
        self.view: RainView | None = None
        self.pictures = [picture() for _ in range(3)]
        self.captions = [caption() for _ in self.pictures]
        self.histogram = picture()
        self.facts = widgets.HTML()
        self._canvas: Canvas | None = None
        self._listen()
        self._fill()
        edit = [self.layer, self.profile, *self.sliders.values()]
        below = widgets.HBox([self.histogram, self.facts], layout=widgets.Layout(flex_flow="row wrap"))
        top = [self.photo, self.preset, self.draw, self.count, self.veil, *edit]
        self.assemble(top, [self._strip(), below])

    def _strip(self) -> widgets.Widget:
        cell = widgets.Layout(flex="1 1 170px", min_width="150px", max_width="320px", padding="0 4px 8px")
        cells = [
            widgets.VBox([text, image], layout=cell) for image, text in zip(self.pictures, self.captions)
        ]
        return widgets.Box(cells, layout=widgets.Layout(display="flex", flex_flow="row wrap", width="100%"))

    def _listen(self) -> None:
        self.photo.observe(self.refresh, "value")
        self.veil.observe(self.refresh, "value")
        for control in (self.preset, self.draw):
            control.observe(self._fill, "value")
        self.count.observe(self._new_count, "value")
        self.layer.observe(self._show_layer, "value")
        for control in (self.profile, *self.sliders.values()):
            control.observe(self._change_layer, "value")

    def _fill(self, _change: Any = None) -> None:
        """Draw a rain from the preset and set all sliders to it."""
        params = sample_rain(self.preset.value, torch.Generator().manual_seed(self.draw.value))
        with self.refresh.hold():
            self.layers = list(params.layers)
            self.veil.value, self.count.value = params.veil, len(self.layers)
            self._show_layer()

    def _new_count(self, _change: Any) -> None:
        """More layers are copies of the last one, turned a little."""
        with self.refresh.hold():
            while len(self.layers) < self.count.value:
                last = self.layers[-1]
                self.layers.append(replace(last, angle=max(-MAX_ANGLE, last.angle - 8)))
            del self.layers[self.count.value :]
            self._show_layer()

    def _show_layer(self, _change: Any = None) -> None:
        with self.refresh.hold():
            self.layer.max = len(self.layers)
            layer = self.layers[self.layer.value - 1]
            self.profile.value = layer.profile
            for name, control in self.sliders.items():
                control.value = getattr(layer, name)

    def _change_layer(self, change: dict[str, Any]) -> None:
        name = next((name for name, control in self.sliders.items() if control is change["owner"]), "profile")
        place = self.layer.value - 1
        if getattr(self.layers[place], name) != change["new"] and not self.refresh.held:
            self.layers[place] = dataclasses.replace(self.layers[place], **{name: change["new"]})
            self.refresh()

    def state(self) -> RainState:
        """What the controls say now."""
        return RainState(self.photo.value, RainParams(tuple(self.layers), self.veil.value), self.draw.value)

    def update(self) -> str:
        self.view = view = compute(self.state())
        shown = (to_uint8(view.pair.clean), streak_picture(view.pair.streaks), to_uint8(view.pair.rainy))
        for image, pixels in zip(self.pictures, shown):
            image.value = png(pixels)
        for text, name in zip(self.captions, ("clean", "streaks", "rainy")):
            text.value = name
        if self._canvas is None:
            self._canvas, self._panel = new_histogram()
        if self._panel.show(view):
            self._canvas.settle()
        self.histogram.value = self._canvas.png()
        self.facts.value = numbers(self.rows())
        return f"The sliders from profile down change layer {self.layer.value} of {len(self.layers)} alone."

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for the table."""
        view = self.view
        covered = float((view.pair.streaks > 0.02).float().mean())
        return [
            ("PSNR of rainy (luma)", f"{view.scores['psnr']:.2f} dB"),
            ("SSIM of rainy (luma)", f"{view.scores['ssim']:.4f}"),
            ("pixels under streaks", f"{covered:.0%}"),
            ("brightest streak", f"{float(view.pair.streaks.max()):.2f}"),
        ]

    def figure(self) -> "Figure":
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.6, 4.6))
        above, below = figure.subfigures(2, 1, height_ratios=(1.7, 1))
        shown = (
            to_uint8(self.view.pair.clean),
            streak_picture(self.view.pair.streaks),
            to_uint8(self.view.pair.rainy),
        )
        for ax, name, pixels in zip(above.subplots(1, 3), ("clean", "streaks", "rainy"), shown):
            ax.imshow(pixels)
            ax.set(xticks=[], yticks=[], title=name)
        HistogramPanel(below, moving=False).show(self.view)
        above.suptitle(", ".join(f"{name}: {value}" for name, value in self.rows()))
        return figure


def new_histogram() -> tuple[Canvas, HistogramPanel]:
    """The histogram's figure, to be redrawn in place."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(4.2, 1.9), dpi=100)
        return Canvas(figure), HistogramPanel(figure, moving=True)


def rain_studio(photo: str = "coffee", rain: str = "light", seed: int = 0) -> RainStudio:
    """Make rain by hand: start from a preset, move every parameter, see streaks, histogram and scores.

    Args:
        photo: bundled photo to begin with.
        rain: preset to begin with.
        seed: of the draw from the preset and of the places of the streaks.

    Returns:
        A widget; `.state().params` are the RainParams made, `.picture()` is its static twin.
    """
    return RainStudio(photo, rain, seed)
