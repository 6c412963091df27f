"""Dense, sparse and dual attention over the same picture: before/after wipe, one zoom for all views, own photos."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np
import torch
from torch import Tensor

from ddsa_lab.analysis.surgery import surgery
from ddsa_lab.data.images import to_uint8
from ddsa_lab.data.rain import RainyPair
from ddsa_lab.errors import LabError
from ddsa_lab.evaluation.metrics import score
from ddsa_lab.model.checkpoints import shipped_weights
from ddsa_lab.model.network import DerainTransformer
from ddsa_lab.model.restore import derain
from ddsa_lab.viz.widgets.common import Explorer, caption, menu, picture, png, slider
from ddsa_lab.viz.widgets.scene import (
    NO_RAIN,
    Uploaded,
    bundled_pair,
    network,
    photo_names,
    rain_names,
    rained,
    read_upload,
)
from ddsa_lab.viz.widgets.upload import PhotoUpload

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODES = ("dense", "sparse", "dual")
TRAINED = "one trained for each"
SWITCHED = "dual-tiny, switched"
UPLOADED = "my photo"
SIDE = 256
VIEW = 256  # pixels a side of each picture sent to the page


@dataclass(frozen=True)
class WipeState:
    """What part is shown, and how much of it is restored."""

    wipe: float  # share of the width, from the left, that shows the picture before
    zoom: float  # 1: all of it
    across: float  # centre of the part shown, 0 to 1
    down: float
    before: str = "rainy"  # what the left part shows: "rainy" or "clean"


@dataclass(frozen=True, eq=False)
class Views:
    """A picture and what each kind of attention makes of it."""

    pair: RainyPair
    restored: dict[str, Tensor]  # by mode
    missing: dict[str, str]  # mode -> why there is none
    scores: dict[str, dict[str, float]]  # by mode, and "rainy"; empty where the clean picture is unknown


def restore_all(pair: RainyPair, networks: str, known: bool = True) -> Views:
    """Derain a picture with dense, sparse and dual attention.

    Args:
        pair: the picture.
        networks: `TRAINED` or `SWITCHED`.
        known: pair.clean is the truth; otherwise there are no scores.
    """
    restored, missing = {}, {}
    for mode in MODES:
        try:
            if networks == TRAINED:
                restored[mode] = derain(trained(mode), pair.rainy)
            else:
                with surgery(network("dual-tiny"), mode=mode) as model:
                    restored[mode] = derain(model, pair.rainy)
        except LabError as error:
            missing[mode] = str(error)
    scored = {"rainy": pair.rainy, **restored} if known else {}
    return Views(pair, restored, missing, {name: score(image, pair.clean) for name, image in scored.items()})


def trained(mode: str) -> DerainTransformer:
    """The shipped tiny network of a mode.

    Raises:
        LabError: it is not shipped.
    """
    name, shipped = f"{mode}-tiny", shipped_weights()
    if name not in shipped:
        raise LabError(f"the weights {name} are not shipped here (there are {', '.join(shipped)})")
    return network(name)


def window(height: int, width: int, state: WipeState) -> tuple[slice, slice]:
    """Rows and columns that a zoom shows, always inside the picture."""
    sizes = [max(8, round(side / state.zoom)) for side in (height, width)]
    return tuple(
        slice(start, start + size)
        for side, size, centre in zip(
            (height, width), map(min, sizes, (height, width)), (state.down, state.across)
        )
        for start in [round(min(max(centre * side - size / 2, 0), side - size))]
    )


def wiped(before: Tensor, after: Tensor, state: WipeState) -> np.ndarray:
    """One picture: `before` left of the wipe's line, `after` right of it; (h, w, 3) uint8.

    Args:
        before, after: (3, H, W) in [0, 1].
        state: wipe and zoom.
    """
    rows, columns = window(*before.shape[-2:], state)
    left, right = to_uint8(before[:, rows, columns]), to_uint8(after[:, rows, columns])
    scale = max(1, VIEW // max(left.shape[:2]))
    left, right = (part.repeat(scale, axis=0).repeat(scale, axis=1) for part in (left, right))
    line = round(state.wipe * right.shape[1])
    shown = right.copy()
    shown[:, :line] = left[:, :line]
    if 0 < line < shown.shape[1]:
        shown[:, line - 1 : line + 1] = (255, 255, 255)
        shown[::2, line - 1 : line + 1] = 0  # black and white dashes are seen on every photo
    return shown


@lru_cache(maxsize=4)
def bundled_views(photo: str, rain: str, networks: str) -> Views:
    """`restore_all` of a bundled photo."""
    return restore_all(bundled_pair(photo, rain, 0, SIDE), networks)


class SideBySide(Explorer):
    """The shell: controls and three pictures."""

    def __init__(self, photo: str, rain: str):
        super().__init__("Dense, sparse and dual side by side")
        self.photo = menu("photo", photo_names(), photo)
        self.rain = menu("rain", [NO_RAIN, *rain_names()], rain)
        self.networks = menu("networks", [TRAINED, SWITCHED], TRAINED)
        self.wipe = slider(widgets.FloatSlider, "wipe", 0.3, 0, 1, 0.02, readout_format=".0%")
        self.before = menu("left of it", ["rainy", "clean"], "rainy")
        self.zoom = slider(widgets.FloatSlider, "zoom", 1, 1, 8, 0.5, readout_format=".1f")
        self.across = slider(widgets.FloatSlider, "across", 0.5, 0, 1, 0.02, readout_format=".0%")
        self.down = slider(widgets.FloatSlider, "down", 0.5, 0, 1, 0.02, readout_format=".0%")
        self.upload = PhotoUpload()
        self.own: Uploaded | None = None
        self.views: Views | None = None
        self.pictures = {mode: picture(pixelated=True) for mode in MODES}
        self.captions = {mode: caption() for mode in MODES}
        for control in (self.photo, self.rain, self.networks):
            control.observe(self._new_views, "value")
        for control in (self.wipe, self.before, self.zoom, self.across, self.down):
            control.observe(self.refresh, "value")
        self.upload.observe(self._take_upload, "photo")
        controls = [
            self.upload, self.photo, self.rain, self.networks, self.wipe, self.before, self.zoom, self.across, self.down,
        ]  # fmt: skip
        self.assemble(controls, [self._strip()])

    def _strip(self) -> widgets.Widget:
        cell = widgets.Layout(flex="1 1 180px", min_width="160px", max_width="360px", padding="0 4px 8px")
        cells = [widgets.VBox([self.captions[mode], self.pictures[mode]], layout=cell) for mode in MODES]
        return widgets.Box(cells, layout=widgets.Layout(display="flex", flex_flow="row wrap", width="100%"))

    def _new_views(self, _change: Any = None) -> None:
        self.views = None
        self.refresh()

    def _take_upload(self, _change: Any = None) -> None:
        """Show an uploaded photo as it is: it may have rain of its own."""

        def take() -> None:
            self.own = read_upload(*self.upload.file())
            with self.refresh.hold():
                self.photo.options = [UPLOADED, *photo_names()]
                self.photo.value, self.rain.value = UPLOADED, NO_RAIN
                self.views = None

        self.attempt(take)

    def state(self) -> WipeState:
        """What the controls say now."""
        return WipeState(
            self.wipe.value, self.zoom.value, self.across.value, self.down.value, self.before.value
        )

    def _prepare(self) -> Views:
        if self.views is None:
            photo, rain, networks = self.photo.value, self.rain.value, self.networks.value
            if photo == UPLOADED:
                self.views = restore_all(rained(self.own.pixels, rain, 0), networks, known=rain != NO_RAIN)
            elif rain == NO_RAIN:
                self.views = restore_all(bundled_pair(photo, rain, 0, SIDE), networks)
            else:
                self.views = bundled_views(photo, rain, networks)
            for mode in MODES:
                self.captions[mode].value = self.label(mode).replace("\n", "<br>")
        return self.views

    def label(self, mode: str) -> str:
        """Name of a view with its scores."""
        if mode not in self.views.restored:
            return f"{mode}\nnot there"
        found = self.views.scores.get(mode)
        return f"{mode}\n" + (
            f"{found['psnr']:.2f} dB, SSIM {found['ssim']:.4f}" if found else "no clean photo known"
        )

    def update(self) -> str:
        views, state = self._prepare(), self.state()
        before = getattr(views.pair, state.before)
        for mode, image in self.pictures.items():
            after = views.restored.get(mode)
            image.value = png(wiped(before, torch.zeros_like(before) if after is None else after, state))
        return self._sentence()

    def _sentence(self) -> str:
        views = self.views
        text = f"{self.own.note}. " if self.photo.value == UPLOADED and self.own else ""
        if views.missing:
            text += f"Not shown: {'; '.join(views.missing.values())}. "
        if "rainy" in views.scores:
            text += f"The rainy picture itself: {views.scores['rainy']['psnr']:.2f} dB (luma)."
        return text

    def figure(self) -> "Figure":
        from matplotlib.figure import Figure

        state = self.state()
        before = getattr(self.views.pair, state.before)
        figure = Figure(figsize=(8.6, 3.3))
        for mode, ax in zip(MODES, figure.subplots(1, len(MODES))):
            ax.set(xticks=[], yticks=[], title=self.label(mode))
            ax.spines[:].set_visible(False)
            if mode in self.views.restored:
                ax.imshow(wiped(before, self.views.restored[mode], state))
        figure.suptitle(
            f"{self.photo.value}, rain: {self.rain.value}; left of the line {state.before}, right restored"
        )
        return figure


def side_by_side(photo: str = "coffee", rain: str = "light") -> SideBySide:
    """Compare what dense, sparse and dual attention restore, on a bundled photo or one of your own.

    Args:
        photo: bundled photo to begin with.
        rain: preset, or "none (as it is)".

    Returns:
        A widget; `.views` holds the restored pictures and scores, `.picture()` is its static twin.
    """
    return SideBySide(photo, rain)
