"""The attention part of the microscope as a figure: five matrices above, one row of them below."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ddsa_lab.viz.style import FAINT, INK, MODE_STYLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ddsa_lab.viz.widgets.microscope import MicroscopeView

MATRICES = ("logits", "kept keys", "dense", "sparse", "fused")
DENSE, SPARSE, FUSED = (MODE_STYLES[mode]["color"] for mode in ("dense", "sparse", "dual"))


class MicroscopePanels:
    """Axes and artists, made once; `show` moves the artists.

    Args:
        figure: a figure or part of one.
        moving: artists are redrawn alone (see `common.Canvas`).
    """

    def __init__(self, figure: "Figure", moving: bool):
        above, below = figure.subfigures(2, 1, height_ratios=(1, 1.25))
        self.moving = {"animated": moving}
        self.matrices = dict(zip(MATRICES, above.subplots(1, len(MATRICES))))
        self.scores, self.weights = below.subplots(1, 2, width_ratios=(1, 1.9))
        self.images: dict[str, Any] = {}
        self.marks: dict[str, Any] = {}
        self.shape: tuple[Any, ...] = ()
        for name, ax in self.matrices.items():
            paint = {"logits": "PuOr_r", "kept keys": "Greys"}.get(name, "viridis")
            self.images[name] = ax.imshow(np.zeros((2, 2)), cmap=paint, interpolation="none", **self.moving)
            (self.marks[name],) = ax.plot([], [], color=FUSED, linewidth=1.6, clip_on=False, **self.moving)
            ax.set(xticks=[], yticks=[])
            ax.set_title(name)
            ax.title.set_animated(moving)
            ax.spines[:].set_visible(False)
        self.matrices["logits"].set(ylabel="query (row)", xlabel="key")
        self._row_artists()

    def _row_artists(self) -> None:
        scores, weights, moving = self.scores, self.weights, self.moving
        self.kept_sticks = scores.vlines([], 0, [], color=INK, **moving)
        self.dropped_sticks = scores.vlines([], 0, [], color="#BBBBBB", **moving)
        (self.kept,) = scores.plot([], [], "o", color=INK, label="kept", **moving)
        (self.dropped,) = scores.plot([], [], "o", mfc="white", mec=FAINT, label="dropped", **moving)
        self.threshold = scores.axhline(0, color=FAINT, linestyle="--", linewidth=0.9, **moving)
        scores.set(xlabel="key", ylabel="logit z")
        scores.axhline(0, color=FAINT, linewidth=0.6)
        self.bars = weights.vlines(
            [], 0, [], color=FUSED, alpha=0.45, linewidth=7, label="fused, from the code", **moving
        )
        (self.dense,) = weights.plot([], [], "s", color=DENSE, ms=3.5, label="dense p", **moving)
        (self.sparse,) = weights.plot(
            [], [], "^", color=SPARSE, ms=4.5, mec=INK, mew=0.4, label="sparse p/m", **moving
        )
        (self.identity,) = weights.plot(
            [], [], "o", mfc="none", mec=INK, ms=6, mew=1.1, label="fused, from p (a + b/m)", **moving
        )
        weights.set(xlabel="key")
        weights.set_ylabel("weight", labelpad=6)
        for ax in (scores, weights):
            # A legend over animated artists would vanish with them; its own copies stay.
            ax.legend(
                loc="lower left",
                bbox_to_anchor=(0, 1),
                ncols=2,
                columnspacing=1.2,
                handletextpad=0.4,
                labelspacing=0.25,
            )

    def show(self, view: "MicroscopeView", by_logit: bool) -> bool:
        """Move the artists; returns whether parts that are not redrawn alone (axes, limits) have changed."""
        entry, head, row = view.entry, view.state.head, view.state.row
        named = {"logits": entry.logits[0], "kept keys": entry.mask[0], "dense": entry.dense[0]}
        named |= {"sparse": entry.sparse[0], "fused": view.code}
        rows = {name: values.float().cpu().numpy() for name, values in view.rows().items()}
        for name, values in named.items():
            self._show_matrix(name, values[head].float().cpu().numpy(), row)
        self._show_row(rows, by_logit)
        high = max(float(rows[name].max()) for name in ("dense", "sparse", "fused"))
        limit = float(entry.logits[0, head].abs().max())
        before = self.shape[2:] if self.shape[:2] == (entry.channels, by_logit) else (0.0, 0.0)
        shape = (entry.channels, by_logit, *map(roomy, (1.08 * high, 1.08 * limit), before))
        changed, self.shape = shape != self.shape, shape
        if changed:
            self._fit(*shape)
        return changed

    def _show_matrix(self, name: str, values: np.ndarray, row: int) -> None:
        image, count = self.images[name], len(values)
        low, high = float(values.min()), float(values.max())
        image.set_data(values)
        image.set_extent((-0.5, count - 0.5, count - 0.5, -0.5))
        if name == "logits":
            low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
        elif name == "kept keys":
            low, high = 0.0, 1.6
        else:
            low = 0.0
        image.set_clim(low, high or 1.0)
        ax = self.matrices[name]
        if name == "kept keys":
            # Not `set_title`, which would take the size of whoever's style is in force.
            ax.title.set_text(f"kept: {int(values[row].sum())} of {count}")
        else:
            ax.title.set_text(f"{name}, up to {high:.2g}")
        left, right, top, bottom = -0.5, count - 0.5, row - 0.5, row + 0.5
        self.marks[name].set_data([left, right, right, left, left], [top, top, bottom, bottom, top])

    def _show_row(self, rows: dict[str, np.ndarray], by_logit: bool) -> None:
        order = np.argsort(-rows["logits"], kind="stable") if by_logit else slice(None)
        rows = {name: values[order] for name, values in rows.items()}
        x, kept = np.arange(len(rows["logits"])), rows["mask"] > 0.5
        for sticks, dots, where in (
            (self.kept_sticks, self.kept, kept),
            (self.dropped_sticks, self.dropped, ~kept),
        ):
            sticks.set_segments(_sticks(x[where], rows["logits"][where]))
            dots.set_data(x[where], rows["logits"][where])
        least = rows["logits"][kept].min()
        self.threshold.set_ydata([least, least])
        self.bars.set_segments(_sticks(x, rows["fused"]))
        self.bars.set_linewidth(170 / len(x))
        for line, name in ((self.dense, "dense"), (self.identity, "identity")):
            line.set_data(x, rows[name])
        self.sparse.set_data(x[kept], rows["sparse"][kept])

    def _fit(self, count: int, by_logit: bool, high: float, limit: float) -> None:
        for ax in (self.scores, self.weights):
            ax.set_xlim(-0.7, count - 0.3)
            ax.set_xlabel("keys, strongest first" if by_logit else "key")
        self.weights.set_ylim(0, high)
        self.scores.set_ylim(-limit, limit)
        for ax in self.matrices.values():
            ax.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))


def _sticks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Segments from (x, 0) to (x, y), (N, 2, 2)."""
    return np.stack([np.stack([x, np.zeros(len(x))], 1), np.stack([x, y], 1)], 1)


def roomy(value: float, before: float) -> float:
    """The limit of an axis: as before while the values fill a good part of it, else the next round number."""
    return before if 0.4 * before <= value <= before else nice(value)


def nice(value: float) -> float:
    """The next round number upwards, so that axes change seldom."""
    if not value > 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(step * power for step in (1, 1.5, 2, 3, 4, 5, 7.5, 10) if step * power >= value))
