"""The course of notebooks: exercises that check themselves, and the few helpers that the notebooks share.

An exercise has a placeholder `...` that runs, and a checker: `nb01.check_streak_energy(answer)`. A checker prints
praise, or "not solved yet" for an untouched placeholder, or raises `ExerciseError` with a sentence that helps.
"""

import os
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

Budget = TypeVar("Budget")

WIDTH = 9.0  # inches; what a notebook page shows without scrolling


class ExerciseError(AssertionError):
    """A wrong answer. The message is one sentence that says what is wrong and helps on."""

    def _render_traceback_(self) -> list[str]:
        # IPython asks for this: the sentence alone, since the lines of the checker help nobody.
        return [f"Not yet: {self}"]


class NotSolved(Exception):
    """The answer is still the placeholder `...`."""


def exercise(check: Callable[[Any], str]) -> Callable[[Any], None]:
    """Make a checker from a function that returns praise for a right answer and raises ExerciseError for a wrong one.

    The untouched placeholder `...`, as answer or returned by an answer's function, prints "not solved yet".
    """

    @wraps(check)
    def checked(answer: Any) -> None:
        try:
            if answer is ...:
                raise NotSolved
            print(f"Right. {check(answer)}")
        except NotSolved:
            print(f"Not solved yet: replace the dots (...) and run the cell again. [{check.__name__}]")

    return checked


def ask(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a reader's function; what it raises becomes an ExerciseError, `...` means that it is not written yet."""
    if not callable(function):
        raise ExerciseError(f"a function is needed here, but the answer is {_shown(function)}")
    try:
        result = function(*arguments)
    except Exception as error:
        raise ExerciseError(
            f"your function stopped with {type(error).__name__}: {str(error).rstrip('.')}"
        ) from error
    if result is ...:
        raise NotSolved
    return result


def number(answer: Any, what: str = "the answer") -> float:
    """Return `answer` as a number, or say that it is none."""
    try:
        return float(answer)
    except (TypeError, ValueError, RuntimeError):
        raise ExerciseError(f"{what} must be one number, and {_shown(answer)} is none") from None


def tensor(answer: Any, shape: tuple[int, ...], what: str = "the answer") -> Tensor:
    """Return `answer` as a tensor of `shape`, or say what it is instead."""
    if not isinstance(answer, Tensor):
        raise ExerciseError(f"{what} must be a tensor of shape {shape}, and {_shown(answer)} is none")
    if tuple(answer.shape) != shape:
        raise ExerciseError(f"{what} has shape {tuple(answer.shape)}, but {shape} is needed")
    if not bool(torch.isfinite(answer).all()):
        raise ExerciseError(f"{what} holds NaN or infinite values: look for a 0/0, or a row with no key left")
    return answer


def _shown(answer: Any) -> str:
    text = f"{type(answer).__name__} {answer!r}"
    return text if len(text) <= 60 else type(answer).__name__


def fast(full: Budget, quick: Budget) -> Budget:
    """Return `full`, or `quick` where the notebooks are only tested (environment DDSA_LAB_FAST=1)."""
    return quick if os.environ.get("DDSA_LAB_FAST") == "1" else full


def start() -> None:
    """Give the figures of a notebook the lab's style, at a size that suits a screen."""
    import matplotlib.pyplot as plt

    from ddsa_lab import viz

    plt.style.use(str(Path(viz.__file__).with_name("ddsa.mplstyle")))
    plt.rcParams.update(SCREEN)


# The style file is made for a paper's column; a screen is read from further away.
SCREEN = {
    "figure.dpi": 90,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
}


def show(
    images: Mapping[str, Tensor], clean: Tensor | None = None, protocol: str = "y_uint8", columns: int = 4
) -> None:
    """Draw images side by side, with PSNR and SSIM against `clean` below their titles.

    Args:
        images: (3, H, W) or (1, H, W) or (H, W) in [0, 1] by title.
        clean: the reference; None writes no scores. The reference itself gets none either.
        protocol: see `ddsa_lab.evaluation.metrics.PROTOCOLS`.
        columns: images in a row.
    """
    import matplotlib.pyplot as plt

    from ddsa_lab.evaluation.metrics import score

    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height, width = next(iter(images.values())).shape[-2:]
    panel = WIDTH / max(columns, 3)
    _, axes = plt.subplots(
        rows, columns, figsize=(panel * columns, rows * (panel * height / width + 0.45)), squeeze=False
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (title, image) in zip(axes.flat, images.items()):
        if clean is not None and image.shape == clean.shape and not torch.equal(image, clean):
            scores = score(image, clean, protocol)
            title += f"\n{scores['psnr']:.2f} dB, SSIM {scores['ssim']:.3f}"
        ax.imshow(picture(image), cmap="gray", vmin=0, vmax=1, interpolation="auto")
        ax.set_title(title)
    plt.show()


def show_matrices(matrices: Mapping[str, Tensor], limits: tuple[float, float] | None = None) -> None:
    """Draw matrices (C, C) side by side by title: queries down, keys across.

    Args:
        matrices: logits, weights, gains, or bool masks (dark: kept).
        limits: values of the lowest and highest colour, for all alike; each matrix's own where None.
    """
    import matplotlib.pyplot as plt

    from ddsa_lab.viz import plots

    count = max(len(matrices), 3)
    _, axes = plt.subplots(
        1, len(matrices), figsize=(WIDTH * len(matrices) / count, WIDTH / count), squeeze=False
    )
    for ax, (title, matrix) in zip(axes.flat, matrices.items()):
        if matrix.dtype == torch.bool:
            plots.kept_mask(matrix, ax, title)
        else:
            plots.attention_matrix(matrix, ax, title, limits=limits)
            ax.collections[0].colorbar.ax.tick_params(labelsize=9)
        ax.set_xlabel("key")
    axes[0, 0].set_ylabel("query")
    plt.show()


def picture(image: Tensor) -> Any:
    """Return (3, H, W), (1, H, W) or (H, W) in [0, 1] as the array that `imshow` draws."""
    image = image.detach().float().clamp(0, 1).cpu()
    return (image.permute(1, 2, 0) if image.dim() == 3 and len(image) == 3 else image.squeeze()).numpy()


def crop(image: Tensor, top: int, left: int, size: int) -> Tensor:
    """Return the square of `size` pixels whose upper left corner is (top, left)."""
    return image[..., top : top + size, left : left + size]
