"""Curves that grow while networks train, in one picture that is redrawn in place."""

import io
import time
from collections.abc import Callable
from typing import Any

from ddsa_lab.viz.style import style


class LiveCurves:
    """One picture for several trainings; `fit(..., callbacks=[curves.of("dual")])` adds to it.

    Args:
        column: what is drawn, a column of the training's rows: "psnr" or "loss".
        label: what the y axis says.
        smooth: rows in the running mean.
        every: seconds between two drawings, so that drawing never slows the training much.
    """

    def __init__(
        self,
        column: str = "psnr",
        label: str = "PSNR of training patches (dB)",
        smooth: int = 5,
        every: float = 3.0,
    ):
        self.column, self.label, self.smooth, self.every = column, label, smooth, every
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.drawn = -every
        self.shown: Any = None  # the display in the notebook, once there is one

    def of(self, name: str) -> Callable[[int, dict[str, Any]], None]:
        """Return the callback of one training, whose curve is called `name` (its beginning is its attention mode)."""
        rows = self.rows[name] = []

        def add(_step: int, row: dict[str, Any]) -> None:
            rows.append(row)
            if time.monotonic() - self.drawn > self.every:
                self.draw()

        return add

    def draw(self) -> None:
        """Show the picture as it is now."""
        from IPython.display import Image, display

        picture = Image(self.picture(), format="png")
        if self.shown is None:
            self.shown = display(picture, display_id=True)
        else:
            self.shown.update(picture)
        self.drawn = time.monotonic()

    def picture(self) -> bytes:
        """The curves as a PNG file."""
        import pandas as pd
        from matplotlib.figure import Figure

        from ddsa_lab.viz.plots import training_curves

        frames = {name: pd.DataFrame(rows) for name, rows in self.rows.items() if rows}
        with style():
            figure = Figure(figsize=(4.6, 2.2))
            training_curves(frames, figure.subplots(), self.column, self.label, self.smooth)
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=150)
        return file.getvalue()
