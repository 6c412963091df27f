"""Sweep explorer: how the picture suffers when one layer, or all, keep fewer keys; choose a point, see its image."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np
from torch import Tensor

from ddsa_lab.analysis.surgery import surgery
from ddsa_lab.data.images import to_uint8
from ddsa_lab.evaluation.metrics import score
from ddsa_lab.viz.style import ACCENT, FAINT, INK, style
from ddsa_lab.viz.widgets.click import ClickPicture
from ddsa_lab.viz.widgets.common import CONTROL, Canvas, Explorer, caption, menu, picture, png, running_loop
from ddsa_lab.viz.widgets.microscope import SIDE, Subject, error_picture
from ddsa_lab.viz.widgets.scene import bundled_pair, network, photo_names, rain_names, weights_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALL = "all layers"
KEEPS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CURVE = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # measured for every layer; the points between, when they are chosen
MARKERS = "os^vDP<>Xd*h"


@dataclass(frozen=True)
class SweepState:
    """A point of the sweep."""

    layer: str  # or "all layers"
    keep: float


def restore(subject: Subject, state: SweepState) -> Tensor:
    """The picture (3, H, W) restored with one layer, or all, keeping another share of the keys."""
    layers = None if state.layer == ALL else state.layer
    # A network trained dense keeps all keys at keep = 1, and only its strongest below, without retraining.
    mode = "sparse" if subject.model.built_with.mode == "dense" else None
    with surgery(subject.model, keep=state.keep, mode=mode, layers=layers):
        return subject.rerun.run(subject.rerun.layers[0] if state.layer == ALL else state.layer)


def measure(subject: Subject, state: SweepState) -> float:
    """PSNR on luma in dB of `restore`."""
    return score(restore(subject, state), subject.pair.clean)["psnr"]


class SweepPanel:
    """PSNR over keep, a line for each layer; `show` moves the lines."""

    def __init__(self, figure: "Figure", layers: list[str], moving: bool):
        import matplotlib

        self.figure, self.ax = figure, figure.subplots()
        paint = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(1, len(layers))))
        self.lines, still = {}, {"animated": moving}
        for i, layer in enumerate([*layers, ALL]):
            look = (
                {"color": INK, "linestyle": "--", "marker": "s"}
                if layer == ALL
                else {"color": paint[i], "marker": MARKERS[i % len(MARKERS)]}
            )
            (self.lines[layer],) = self.ax.plot([], [], label=layer, **look, **still)
        self.trained = self.ax.axhline(0, color=FAINT, linewidth=0.9, linestyle=":", **still)
        (self.ring,) = self.ax.plot([], [], "o", mfc="none", mec=ACCENT, ms=13, mew=2.2, **still)
        self.ax.set(xlim=(0.05, 1.03), xlabel="keep (share of the keys kept)", ylabel="PSNR, luma (dB)")
        self.ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        self.span = (0.0, 0.0)

    def show(self, points: dict[SweepState, float], state: SweepState, psnr: float, trained: float) -> bool:
        """Move the lines; returns whether the axis has changed."""
        for layer, line in self.lines.items():
            found = sorted((point.keep, value) for point, value in points.items() if point.layer == layer)
            line.set_data(*zip(*found) if found else ([], []))
            line.set_linewidth(2.4 if layer == state.layer else 0.9)
        self.trained.set_ydata([trained, trained])
        self.ring.set_data([state.keep], [psnr])
        values = [*points.values(), psnr, trained]
        low, high = min(values), max(values)
        margin = max(0.2, 0.06 * (high - low))
        if self.span[0] <= low - 0.3 * margin and high + 0.3 * margin <= self.span[1]:
            return False
        self.span = (low - margin, high + margin)
        self.ax.set_ylim(*self.span)
        return True

    def nearest(self, points: dict[SweepState, float], across: float, down: float) -> SweepState | None:
        """The measured point nearest to a place in the figure, given as shares of its width and height."""
        width, height = self.figure.bbox.size
        place = np.array([across * width, (1 - down) * height])
        shown = {point: self.ax.transData.transform((point.keep, value)) for point, value in points.items()}
        return min(shown, key=lambda point: np.hypot(*(shown[point] - place)), default=None)


class SweepExplorer(Explorer):
    """The shell: curves appear one after the other while everything stays usable."""

    def __init__(self, photo: str, rain: str, weights: str):
        super().__init__("Sweep explorer")
        self.photo = menu("photo", photo_names(), photo)
        self.rain = menu("rain", rain_names(), rain)
        names = weights_names()
        self.weights = menu("weights", names if weights in names else [*names, weights], weights)
        self.layer = menu("layer", [ALL], ALL)
        self.keep = widgets.SelectionSlider(
            options=KEEPS,
            value=0.3,
            description="keep",
            style={"description_width": "92px"},
            layout=widgets.Layout(**CONTROL),
        )
        self.plot = ClickPicture(alt="PSNR over keep for each layer; the ring is the point chosen")
        self.pictures = [picture(pixelated=True) for _ in range(3)]
        self.captions = [caption() for _ in self.pictures]
        self.points: dict[SweepState, float] = {}
        self.subject: Subject | None = None
        self.waiting: Iterator[SweepState] = iter(())
        for control in (self.photo, self.rain, self.weights):
            control.observe(self._new_subject, "value")
        for control in (self.layer, self.keep):
            control.observe(self.refresh, "value")
        self.plot.observe(self._take_click, "click")
        hint = widgets.HTML(
            "Click a point of a curve, or choose layer and keep.", layout=widgets.Layout(**CONTROL)
        )
        self.assemble(
            [self.photo, self.rain, self.weights, self.layer, self.keep, hint], [self.plot, self._strip()]
        )
        self._measure_later()

    def _strip(self) -> widgets.Widget:
        cell = widgets.Layout(flex="1 1 140px", min_width="120px", max_width="260px", padding="0 4px")
        cells = [
            widgets.VBox([image, text], layout=cell) for image, text in zip(self.pictures, self.captions)
        ]
        return widgets.Box(cells, layout=widgets.Layout(display="flex", flex_flow="row wrap", width="100%"))

    def _new_subject(self, _change: Any = None) -> None:
        self.subject = None
        self.refresh()
        self._measure_later()

    def _prepare(self) -> Subject:
        if self.subject is None:
            pair = bundled_pair(self.photo.value, self.rain.value, 0, SIDE)
            subject = Subject.of(network(self.weights.value), pair)
            self.points, self.trained = {}, score(subject.rerun.base, pair.clean)["psnr"]
            with self.refresh.hold():
                self.subject = subject
                if list(self.layer.options) != [ALL, *subject.rerun.layers]:
                    self.layer.options = [ALL, *subject.rerun.layers]
            with style():
                self._canvas, self._panel = new_plot(subject.rerun.layers)
            self.pictures[0].value = png(to_uint8(subject.rerun.base))
            self.captions[0].value = f"as trained<br>{self.trained:.2f} dB"
            self.waiting = self._all_points(subject)
        return self.subject

    def _all_points(self, subject: Subject) -> Iterator[SweepState]:
        """Measure the curves that are not yet known, a point at a time."""
        for layer in [ALL, *subject.rerun.layers]:
            for keep in CURVE:
                state = SweepState(layer, keep)
                if state not in self.points:
                    self.points[state] = measure(subject, state)
                    yield state
            self.attempt(self._draw)

    def _measure_later(self) -> None:
        """Measure a point at a time between the user's own wishes; all at once where no kernel listens."""
        waiting = self.waiting
        if (loop := running_loop()) is None:
            self.finish()
            return

        def one() -> None:
            if waiting is self.waiting and next(waiting, None) is not None:
                loop.call_later(0.005, one)

        loop.call_later(0.05, one)

    def finish(self) -> None:
        """Measure all curves now."""
        for _ in self.waiting:
            pass

    def missing(self) -> int:
        """Points of the curves that are not measured yet."""
        layers = [ALL, *self.subject.rerun.layers]
        return sum(SweepState(layer, keep) not in self.points for layer in layers for keep in CURVE)

    def _take_click(self, change: dict[str, Any]) -> None:
        across, down = change["new"][:2]
        found = self._panel.nearest(self.points, across, down)
        if found is not None:
            with self.refresh.hold():
                self.layer.value, self.keep.value = found.layer, found.keep

    def state(self) -> SweepState:
        """What the controls say now."""
        return SweepState(self.layer.value, self.keep.value)

    def update(self) -> str:
        subject = self._prepare()
        self.restored = restored = restore(subject, self.state())
        self.points[self.state()] = psnr = score(restored, subject.pair.clean)["psnr"]
        self.pictures[1].value = png(to_uint8(restored))
        self.pictures[2].value = png(error_picture(restored, subject.rerun.base))
        self.captions[1].value = f"{self.layer.value}, keep {self.keep.value:g}<br>{psnr:.2f} dB"
        self.captions[2].value = "difference of the two x 5"
        return self._draw()

    def _draw(self) -> str:
        state = self.state()
        if self._panel.show(self.points, state, self.points[state], self.trained):
            self._canvas.settle()
        self.plot.value = self._canvas.png()
        loss = self.points[state] - self.trained
        left = f" Still measuring: {self.missing()} points left." if self.missing() else ""
        return f"{state.layer} at keep {state.keep:g}: {loss:+.2f} dB against the network as trained.{left}"

    def figure(self) -> "Figure":
        from matplotlib.figure import Figure

        from ddsa_lab.viz.images import show_image

        self.finish()  # a still picture cannot be completed later
        figure = Figure(figsize=(8.6, 5.4))
        above, below = figure.subfigures(2, 1, height_ratios=(1.5, 1))
        state = self.state()
        SweepPanel(above, self.subject.rerun.layers, moving=False).show(
            self.points, state, self.points[state], self.trained
        )
        trained, point, difference = below.subplots(1, 3)
        show_image(self.subject.rerun.base, trained, f"as trained: {self.trained:.2f} dB")
        show_image(self.restored, point, f"{state.layer}, keep {state.keep:g}: {self.points[state]:.2f} dB")
        difference.imshow(error_picture(self.restored, self.subject.rerun.base))
        difference.set(xticks=[], yticks=[], title="difference of the two x 5")
        return figure


def new_plot(layers: list[str]) -> tuple[Canvas, SweepPanel]:
    """The figure of the curves, to be redrawn in place."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 3.0), dpi=130)
    return Canvas(figure), SweepPanel(figure, layers, moving=True)


def sweep_explorer(photo: str = "coffee", rain: str = "light", weights: str = "dual-tiny") -> SweepExplorer:
    """See PSNR over keep for every layer of a trained network, and the image behind every point.

    Args:
        photo: bundled photo to begin with.
        rain: preset.
        weights: shipped name, file, or "untrained".

    Returns:
        A widget; `.points` holds the PSNRs measured so far, `.picture()` is its static twin.
    """
    return SweepExplorer(photo, rain, weights)
