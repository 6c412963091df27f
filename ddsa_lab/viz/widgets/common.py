"""Shared pieces of the explorers: the frame with its status line, pictures as PNG, figures redrawn in place.

An explorer is a state (frozen dataclass), a pure function from the state to arrays, and a thin shell of controls.
Every change of a control goes through `Newest`, which never does the same work twice nor queues it.
"""

import asyncio
import html
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np

from ddsa_lab.errors import LabError
from ddsa_lab.viz.style import style
from ddsa_lab.viz.widgets.pulse import Pulse

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Side by side from about 800 pixels on, one below the other on half a screen.
WRAP = widgets.Layout(display="flex", flex_flow="row wrap", align_items="flex-start", width="100%")
# On half a screen the controls stand two in a row, so that the pictures stay in sight.
CONTROLS = widgets.Layout(
    display="flex",
    flex_flow="row wrap",
    align_content="flex-start",
    flex="1 1 250px",
    min_width="240px",
    padding="0 12px 0 0",
)
CONTROL = {"flex": "1 1 230px", "width": "auto", "min_width": "0"}
PICTURES = widgets.Layout(flex="3 1 480px", min_width="0", width="auto")

CSS = """<style>
.ddsa-picture img, img.ddsa-picture {max-width: 100%; height: auto; object-fit: contain}
.ddsa-pixels img, img.ddsa-pixels {image-rendering: pixelated}
.ddsa-title {font-size: 1.15em; font-weight: 600; margin: 0}
.ddsa-status .widget-html-content, .ddsa-caption .widget-html-content {line-height: 1.35}
.ddsa-status {min-height: 1.5em}
.ddsa-status .bad {color: #8a1c1c; background: #fdeceb; padding: 2px 6px; border-left: 4px solid #8a1c1c; display: inline-block}
.ddsa-numbers table {border-collapse: collapse; line-height: 1.3}
.ddsa-numbers td {padding: 0 10px 0 0; vertical-align: baseline; white-space: nowrap}
.ddsa-numbers td.n {font-variant-numeric: tabular-nums; font-weight: 600}
.ddsa-caption {font-size: 0.92em; text-align: center; height: auto}
</style>"""


class Newest:
    """Does the work for the newest state only.

    Asking while the work is under way, which controls that change one another do, leads to one more pass
    afterwards and not to one for each time that was asked. (From the page, ipywidgets itself sends the next value
    of a slider only after the last one was dealt with, and then the newest.)
    """

    def __init__(self, work: Callable[[], None]):
        self.work, self.asked, self.done, self.busy, self.held = work, 0, 0, False, 0
        self._lock = threading.Lock()  # a training asks from its own thread

    def __call__(self, *_change: Any) -> None:
        with self._lock:
            self.asked += 1
            if self.busy or self.held:
                return
            self.busy = True
        try:
            while self._is_behind():
                self.work()
        except BaseException:
            self.busy = False
            raise

    def _is_behind(self) -> bool:
        with self._lock:
            self.busy = self.done != self.asked
            self.done = self.asked
            return self.busy

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Change several controls inside; the work is done once, afterwards."""
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1
        if not self.held:
            self()


class Explorer(widgets.VBox):
    """Frame of every explorer: title, body, and a status line where errors appear as a sentence.

    A page that cannot run widgets (a code-hosting site, a notebook without kernel) shows `picture()` instead.
    """

    def __init__(self, title: str):
        super().__init__(layout=widgets.Layout(width="100%", max_width="1200px"))
        self.add_class("ddsa-explorer")
        self.heading = widgets.HTML(f'{CSS}<p class="ddsa-title">{html.escape(title)}</p>')
        self.status = widgets.HTML().add_class("ddsa-status")
        self.refresh = Newest(self._work)
        self.refresh.held = 1  # until `assemble`
        self.seconds = 0.0  # the last update took

    def assemble(self, controls: list[widgets.Widget], pictures: list[widgets.Widget]) -> None:
        """Put the controls beside the pictures, and draw for the first time."""
        left, right = widgets.Box(controls, layout=CONTROLS), widgets.VBox(pictures, layout=PICTURES)
        self.children = (self.heading, Pulse(), self.status, widgets.Box([left, right], layout=WRAP))
        self.refresh.held = 0
        self.refresh()

    def update(self) -> str:
        """Compute and show the present state; returns what the status line says."""
        raise NotImplementedError

    def figure(self) -> "Figure":
        """The present state as one figure, the static twin of the controls and pictures."""
        raise NotImplementedError

    def picture(self) -> bytes:
        """The static twin as a PNG file."""
        with style():
            return figure_png(self.figure())

    def say(self, text: str, bad: bool = False) -> None:
        """Show a sentence in the status line."""
        text = html.escape(text)
        self.status.value = f'<span class="bad" role="alert">{text}</span>' if bad else f"<span>{text}</span>"

    def attempt(self, action: Callable[[], str | None]) -> bool:
        """Run an action whose errors belong into the status line; returns whether it went well."""
        try:
            if (text := action()) is not None:
                self.say(text)
            return True
        except LabError as error:
            self.say(f"{error}.".replace("..", "."), bad=True)
        except Exception as error:  # a traceback helps nobody who moves sliders
            self.say(f"That did not work: {type(error).__name__}: {error}"[:400], bad=True)
        return False

    def _work(self) -> None:
        self.attempt(self.update)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**options)
        with_picture: list[bytes] = []
        if self.attempt(lambda: with_picture.append(self.picture())):
            bundle["image/png"] = with_picture[0]
        return bundle


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The kernel's event loop, or None where none is running (a script, a test)."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def png(pixels: np.ndarray, scale: int = 1) -> bytes:
    """PNG file of (H, W, 3) or (H, W) uint8, each pixel repeated `scale` times; packed fast rather than small."""
    from PIL import Image

    if scale > 1:
        pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def figure_png(figure: "Figure", dpi: int = 92) -> bytes:
    """PNG file of a whole figure, small rather than fast, without date and version."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None}, pil_kwargs={"compress_level": 6})
    return file.getvalue()


class Canvas:
    """A figure whose moving parts are redrawn alone, in place.

    Artists made with `animated=True` move; all others are drawn once and kept as a picture until `settle`.
    """

    def __init__(self, figure: "Figure"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        self.figure, self.canvas = figure, FigureCanvasAgg(figure)
        self.still: Any = None

    def settle(self, layout: bool = False) -> None:
        """Forget the still parts, since axes or labels have changed; `layout`: make room for them anew."""
        self.still = None
        if layout:
            self.figure.set_layout_engine("constrained")

    def png(self) -> bytes:
        """The figure as it is now."""
        if self.still is None:
            with style():
                self.canvas.draw()
            self.figure.set_layout_engine("none")  # the layout stays from here on
            self.still = self.canvas.copy_from_bbox(self.figure.bbox)
        self.canvas.restore_region(self.still)
        for axes in self.figure.axes:
            for artist in axes.get_children():
                if artist.get_animated() and artist.get_visible():
                    axes.draw_artist(artist)
        return png(np.asarray(self.canvas.buffer_rgba())[..., :3])


def picture(width: int | None = None, pixelated: bool = False) -> widgets.Image:
    """An empty picture that shrinks with the page."""
    image = widgets.Image(
        format="png", layout=widgets.Layout(width=f"{width}px" if width else "auto", max_width="100%")
    )
    image.add_class("ddsa-picture")
    if pixelated:
        image.add_class("ddsa-pixels")
    return image


def caption() -> widgets.HTML:
    """An empty line for below a picture."""
    return widgets.HTML().add_class("ddsa-caption")


def slider(
    kind: type, label: str, value: float, least: float, most: float, step: float, **more: Any
) -> widgets.Widget:
    """A labelled slider that fills its column and answers while it is dragged."""
    return kind(
        value=value, min=least, max=most, step=step, description=label, continuous_update=True,
        style={"description_width": "92px"}, layout=widgets.Layout(**CONTROL), **more,
    )  # fmt: skip


def menu(label: str, options: list, value: Any) -> widgets.Dropdown:
    """A labelled list to choose from."""
    return widgets.Dropdown(
        options=options, value=value, description=label, style={"description_width": "92px"},
        layout=widgets.Layout(**CONTROL),
    )  # fmt: skip


def numbers(rows: list[tuple[str, str]]) -> str:
    """A small table of names and values as HTML."""
    cells = "".join(
        f'<tr><td>{html.escape(name)}</td><td class="n">{html.escape(value)}</td></tr>'
        for name, value in rows
    )
    return f'<div class="ddsa-numbers"><table>{cells}</table></div>'
