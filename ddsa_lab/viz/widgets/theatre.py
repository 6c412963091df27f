"""Training theatre: start, pause and stop a small training, and watch it learn while the kernel stays free."""

import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import torch
from torch import Tensor, nn

from ddsa_lab.data.images import to_uint8
from ddsa_lab.data.rain import RainyPair
from ddsa_lab.errors import LabError
from ddsa_lab.evaluation.metrics import score
from ddsa_lab.model.network import NetworkConfig
from ddsa_lab.training.config import TrainConfig
from ddsa_lab.training.loop import FitResult, fit
from ddsa_lab.viz.style import INK, MODE_STYLES, style
from ddsa_lab.viz.widgets.common import (
    CONTROL,
    Canvas,
    Explorer,
    caption,
    menu,
    picture,
    png,
    running_loop,
    slider,
)
from ddsa_lab.viz.widgets.scene import bundled_pair, photo_names, rain_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 128
EVERY = 5  # steps between points of the curves
MODES = ("dense", "sparse", "dual")


@dataclass
class Stage:
    """What a training shows: rows of its history, and the newest restored picture."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    shown: Tensor | None = None  # (3, H, W)
    step: int = 0  # of that picture


class Training:
    """A training in a thread of its own that can be paused and stopped.

    Args:
        config: what to train.
        pair: the picture on which its progress is shown.
        changed: called after each new row or picture, from the training's thread.
    """

    def __init__(self, config: TrainConfig, pair: RainyPair, changed: Callable[[], None]):
        self.config, self.pair, self.changed = config, pair, changed
        self.stage = Stage()
        self.result: FitResult | None = None
        self.error: Exception | None = None
        self.going, self.stopped, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.going.set()
        self.thread = threading.Thread(target=self._run, name="ddsa-lab training", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self.thread.start()

    def pause(self) -> None:
        """Wait after the step under way until `go_on`."""
        self.going.clear()

    def go_on(self) -> None:
        """Leave a pause."""
        self.going.set()

    def stop(self, wait: float | None = None) -> None:
        """End after the step under way; waits up to `wait` seconds for it."""
        self.stopped.set()
        self.going.set()
        if wait is not None and self.thread.ident is not None:
            self.thread.join(wait)

    @property
    def running(self) -> bool:
        """It was started and has not ended, pausing or not."""
        return self.thread.ident is not None and not self.ended.is_set()

    def _run(self) -> None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                self.result = fit(
                    self.config, folder, progress=False, callbacks=[self._take_row],
                    record=self._take_picture, should_stop=self._asked,
                )  # fmt: skip
        except Exception as error:  # shown in the status line: a thread's traceback would go nowhere
            self.error = error
        finally:
            self.ended.set()
            self.changed()

    def _asked(self) -> bool:
        self.going.wait()  # pauses here: time outside of steps does not count
        return self.stopped.is_set()

    def _take_row(self, _step: int, row: dict[str, Any]) -> None:
        self.stage.rows.append(row)
        self.changed()

    def _take_picture(self, model: nn.Module, step: int) -> list[dict[str, Any]]:
        with torch.inference_mode():
            self.stage.shown = model(self.pair.rainy[None])[0].clamp(0, 1)
        self.stage.step = step
        return []


class CurvePanel:
    """Loss and PSNR over steps, a line for each training so far; `show` redraws them."""

    def __init__(self, figure: "Figure"):
        self.loss, self.psnr = figure.subplots(1, 2)

    def show(self, stages: list[tuple[str, Stage]], steps: int) -> None:
        """Draw all trainings, the newest last and boldest."""
        for ax, name, label in (
            (self.loss, "loss", "loss (L1)"),
            (self.psnr, "psnr", "PSNR of patches, RGB (dB)"),
        ):
            ax.clear()
            for mode, stage in stages:
                newest = stage is stages[-1][1]
                look = {"color": MODE_STYLES[mode]["color"], "linestyle": MODE_STYLES[mode]["linestyle"]}
                ax.plot(
                    [row["step"] for row in stage.rows], [row[name] for row in stage.rows], **look,
                    linewidth=1.8 if newest else 0.9, alpha=1 if newest else 0.6, label=mode if newest or len(stages) > 1 else None,
                )  # fmt: skip
            ax.set(xlim=(0, steps), xlabel="step", ylabel=label)
        if stages:
            self.psnr.legend(loc="lower right")
        highest = max((row["loss"] for _, stage in stages for row in stage.rows), default=1.0)
        self.loss.set_ylim(0, 1.1 * highest)


class TrainingTheatre(Explorer):
    """The shell: buttons, curves and the picture as the network restores it now."""

    def __init__(self, mode: str, photo: str, rain: str, steps: int):
        super().__init__("Training theatre")
        self.mode = menu("attention", list(MODES), mode)
        self.photo = menu("watch on", photo_names(), photo)
        self.rain = menu("rain", rain_names(), rain)
        self.steps = slider(widgets.IntSlider, "steps", steps, 20, 600, 10)
        self.seed = slider(widgets.IntSlider, "seed", 0, 0, 9, 1)
        self.rate = menu(
            "learning rate", [("0.0005", 5e-4), ("0.001", 1e-3), ("0.002", 2e-3), ("0.005", 5e-3)], 2e-3
        )
        self.start, self.pause, self.stop, self.clear = (
            widgets.Button(description=name, layout=widgets.Layout(width="auto"))
            for name in ("start", "pause", "stop", "clear")
        )
        self.bar = widgets.IntProgress(description="step", layout=widgets.Layout(**CONTROL))
        self.pictures = [picture(pixelated=True) for _ in range(3)]
        self.captions = [caption() for _ in self.pictures]
        self.curves = picture()
        self._loop, self._called = running_loop(), False
        self.training: Training | None = None
        self.stages: list[tuple[str, Stage]] = []
        self.start.on_click(self._start)
        self.pause.on_click(self._pause)
        self.stop.on_click(lambda _: self.training and self.training.stop())
        self.clear.on_click(self._clear)
        for control in (self.photo, self.rain, self.steps):
            control.observe(self.refresh, "value")
        buttons = widgets.HBox(
            [self.start, self.pause, self.stop, self.clear],
            layout=widgets.Layout(flex_flow="row wrap", **CONTROL),
        )
        controls = [self.mode, self.rain, self.photo, self.steps, self.rate, self.seed, buttons, self.bar]
        self.assemble(controls, [self.curves, self._strip()])

    def _strip(self) -> widgets.Widget:
        cell = widgets.Layout(flex="1 1 130px", min_width="120px", max_width="240px", padding="0 4px")
        cells = [
            widgets.VBox([image, text], layout=cell) for image, text in zip(self.pictures, self.captions)
        ]
        return widgets.Box(cells, layout=widgets.Layout(display="flex", flex_flow="row wrap", width="100%"))

    def config(self) -> TrainConfig:
        """What the controls say now."""
        return TrainConfig(
            network=NetworkConfig.preset("tiny", mode=self.mode.value), rain=self.rain.value, steps=self.steps.value,
            patch=48, batch=4, lr=self.rate.value, warmup=10, ema=0.9, seed=self.seed.value, log_every=EVERY,
            record_every=4 * EVERY, workers=0,
        )  # fmt: skip

    def pair(self) -> RainyPair:
        """The picture watched."""
        return bundled_pair(self.photo.value, self.rain.value, 0, SIDE)

    def _start(self, _button: Any = None) -> None:
        def begin() -> None:
            if self.training and self.training.running:
                raise LabError("a training is under way: stop it first, or wait until it is done")
            self.training = Training(self.config(), self.pair(), self._hear_of_news)
            self.stages.append((self.mode.value, self.training.stage))
            self.training.start()

        if self.attempt(begin):
            self.refresh()

    def _hear_of_news(self) -> None:
        """Let the kernel's own thread draw, once for all news until then; where there is no kernel, draw at once."""
        if self._loop is None:
            self.refresh()
        elif not self._called:
            self._called = True
            self._loop.call_soon_threadsafe(self._draw_news)

    def _draw_news(self) -> None:
        self._called = False
        self.refresh()

    def _pause(self, _button: Any = None) -> None:
        if self.training and self.training.running:
            (self.training.pause if self.training.going.is_set() else self.training.go_on)()
            self.refresh()

    def _clear(self, _button: Any = None) -> None:
        self.stages = self.stages[-1:] if self.training and self.training.running else []
        self.refresh()

    def update(self) -> str:
        training = self.training
        pair = training.pair if training else self.pair()
        rows = training.stage.rows if training else []
        self._show_pictures(pair, training.stage if training else Stage())
        self._show_curves(pair)
        self.bar.max = training.config.steps if training else self.steps.value
        self.bar.value = rows[-1]["step"] if rows else 0
        paused = bool(training and training.running and not training.going.is_set())
        self.pause.description = "go on" if paused else "pause"
        self.start.disabled = bool(training and training.running)
        self.pause.disabled = self.stop.disabled = not self.start.disabled
        return self._sentence(training, paused)

    def _show_pictures(self, pair: RainyPair, stage: Stage) -> None:
        shown = pair.rainy if stage.shown is None else stage.shown
        for image, pixels in zip(self.pictures, (pair.rainy, shown, pair.clean)):
            image.value = png(to_uint8(pixels))
        self.captions[0].value = f"rainy<br>{score(pair.rainy, pair.clean)['psnr']:.2f} dB (luma)"
        self.captions[
            1
        ].value = f"restored at step {stage.step}<br>{score(shown, pair.clean)['psnr']:.2f} dB (luma)"
        self.captions[2].value = "clean"

    def _show_curves(self, pair: RainyPair) -> None:
        if not hasattr(self, "_canvas"):
            self._canvas, self._panel = new_curves()
        with style():
            self._panel.show(self.stages, self.steps.value)
        self._canvas.settle(layout=True)
        self.curves.value = self._canvas.png()

    def _sentence(self, training: Training | None, paused: bool) -> str:
        if training is None:
            return "Press start: a tiny network learns from nothing, on 48-pixel patches under rain made on the fly."
        if training.error is not None:
            raise training.error
        step = training.stage.rows[-1]["step"] if training.stage.rows else 0
        if training.running and training.result is None:
            return (
                f"Paused at step {step}."
                if paused
                else f"Training {training.config.network.mode} attention: step {step}."
            )
        ended = "done" if training.result and training.result.finished else "stopped"
        return f"Training {training.config.network.mode} attention {ended} at step {step}."

    def figure(self) -> "Figure":
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.6, 2.8))
        CurvePanel(figure).show(self.stages, self.steps.value)
        if not self.stages:
            figure.suptitle("Training theatre: the curves appear when a training is started", color=INK)
        return figure


def new_curves() -> tuple[Canvas, CurvePanel]:
    """The figure of the curves."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(6.6, 2.4), dpi=130)
        return Canvas(figure), CurvePanel(figure)


def training_theatre(
    mode: str = "dual", photo: str = "coffee", rain: str = "heavy", steps: int = 150
) -> TrainingTheatre:
    """Train a tiny network before your eyes; start, pause, go on and stop as you like.

    Args:
        mode: "dense", "sparse" or "dual" to begin with.
        photo: bundled photo on which the progress is shown; no network here trains on it.
        rain: preset.
        steps: length of the training.

    Returns:
        A widget. `.training` is the training under way, `.training.result` what it gave.
    """
    return TrainingTheatre(mode, photo, rain, steps)
