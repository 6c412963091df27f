"""Notebook 02: its two pictures, and checks of the sparse branch, the two-level gain and sparsemax by hand."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddsa_lab.course import ExerciseError, ask, exercise, number, tensor
from ddsa_lab.model.attention import dense_weights, dual_weights, sparse_weights, topk_mask


def draw_gain(p: Tensor, fused: Tensor, kept: Tensor, a: float, b: float) -> None:
    """Draw the fused weight of each key of a row over its dense weight, and the two lines p (a + b/m) and p a.

    Args:
        p, fused: dense and fused weights of one row, (C,).
        kept: bool (C,), the keys that the sparse branch keeps.
        a, b: weights of the branches.
    """
    import matplotlib.pyplot as plt

    from ddsa_lab.viz.style import MODE_STYLES

    _, ax = plt.subplots(figsize=(6, 3))
    ends = torch.tensor([0.0, float(p.max())])
    ax.plot(ends, ends * float(a + b / p[kept].sum()), color="0.7", label="p (a + b/m)")
    ax.plot(ends, ends * float(a), color="0.7", linestyle="--", label="p a")
    for name, keys, mode in (("kept keys", kept, "dual"), ("dropped keys", ~kept, "dense")):
        look = MODE_STYLES[mode]
        ax.scatter(p[keys], fused[keys], color=look["color"], marker=look["marker"], label=name, zorder=3)
    ax.set(xlabel="dense weight p of the key", ylabel="fused weight")
    ax.legend()
    plt.show()


def draw_curves(
    x: Tensor,
    curves: Mapping[str, Tensor],
    xlabel: str,
    ylabel: str,
    log: bool = False,
    levels: Mapping[str, float] | None = None,
) -> None:
    """Draw curves over x, told apart by colour and line, and named levels as grey lines.

    Args:
        x: (N,).
        curves: (N,) by name; a single one gets no legend.
        log: a logarithmic x axis.
        levels: heights by what is written on them.
    """
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(6, 3))
    for (name, values), line in zip(curves.items(), ("-", "--", ":")):
        ax.plot(x, values, line, label=name)
    for (name, height), line in zip((levels or {}).items(), ("--", ":")):
        ax.axhline(height, color="0.6", linestyle=line)
        ax.annotate(name, (float(x[0]), height), (4, 5), textcoords="offset points")
    if log:
        ax.set_xscale("log")
    if levels:
        ax.margins(y=0.15)  # room for what is written on the highest
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if len(curves) > 1:
        ax.legend()
    plt.show()


def _logits(channels: int, seed: int) -> torch.Tensor:
    # Some rows lie wholly below 0: there a dropped key filled with 0 would win.
    z = torch.randn(channels, channels, generator=torch.Generator().manual_seed(seed))
    return z - 3 * (torch.arange(channels) % 2 == 0).float()[:, None]


@exercise
def check_sparse(answer: Any) -> str:
    """The sparse branch as a function of z and k."""
    for channels, k in ((6, 3), (9, 1), (5, 5)):
        z = _logits(channels, seed=k)
        found = tensor(ask(answer, z.clone(), k), (channels, channels), "what your function returns")
        right = sparse_weights(z, k)
        kept = (found.abs() > 1e-12).sum(dim=-1)
        if not (kept == k).all():
            most = int(kept[(kept != k).nonzero()[0, 0]])
            hint = ": is a dropped logit set to 0 instead of minus infinity?" if most > k else ""
            raise ExerciseError(f"with k = {k} a row of yours has {most} entries that are not 0{hint}")
        sums = found.sum(dim=-1)
        if not torch.allclose(sums, torch.ones(channels), atol=1e-5):
            raise ExerciseError(
                f"a row of yours sums to {sums[(sums - 1).abs().argmax()]:.3f} and not to 1: divide by m, "
                "or fill with minus infinity before the softmax"
            )
        if not torch.equal(found.abs() > 1e-12, right > 0):
            raise ExerciseError(
                "you keep k keys a row, but not the k largest: look at torch.topk along dim=-1"
            )
        if not torch.allclose(found, right, atol=1e-5):
            raise ExerciseError("the right keys are kept, but their shares are not a softmax of their logits")
    return "The k largest of each row, their softmax, and exact zeros elsewhere."


@exercise
def check_gain(answer: Any) -> str:
    """g for a = 0.1, b = 0.3, m = 0.6."""
    g = number(answer, "the gain")
    if abs(g - 5) < 1e-6:
        raise ExerciseError("this is b / (a m) = 5: the dense branch itself adds 1")
    if abs(g - 4) < 1e-6:
        raise ExerciseError("this is 1 + b / a = 4, the limit of a peaked row: m = 0.6 is missing")
    if abs(g - 6) > 0.01:
        raise ExerciseError(f"{g:g} is not 1 + b / (a m): put in a = 0.1, b = 0.3, m = 0.6")
    return "g = 1 + 0.3 / (0.1 * 0.6) = 6: kept keys count six times as much as dropped ones."


@exercise
def check_fused(answer: Any) -> str:
    """Fused weights from p, the mask, a and b."""
    for k, a, b in ((4, 0.2, 0.2), (2, 0.5, -0.1), (6, 0.3, 0.7)):
        z = _logits(6, seed=10 * k)
        p, mask = dense_weights(z), topk_mask(z, k)
        found = tensor(ask(answer, p.clone(), mask.clone(), a, b), (6, 6), "what your function returns")
        if torch.allclose(found, dual_weights(z, k, a, b), atol=1e-5):
            continue
        if torch.allclose(found, p * (a + b * mask), atol=1e-5):
            raise ExerciseError("the sparse branch is p / m on the kept keys, and your b is not divided by m")
        if torch.allclose(found[mask], dual_weights(z, k, a, b)[mask], atol=1e-5):
            raise ExerciseError("the kept keys are right; the dropped ones must be a times p")
        raise ExerciseError(
            f"with k = {k}, a = {a}, b = {b} your weights are off by up to "
            f"{(found - dual_weights(z, k, a, b)).abs().max():.3f}: p (a + b/m) where kept, p a elsewhere, m by rows"
        )
    return "One softmax is enough, and so is one product with v."


@exercise
def check_sparsemax(answer: Any) -> str:
    """sparsemax of (2, 0, 0)."""
    if not isinstance(answer, tuple | list | torch.Tensor) or len(answer) != 3:
        raise ExerciseError("give three numbers, such as (0.5, 0.3, 0.2)")
    values = [number(value, "each of the three") for value in answer]
    if abs(sum(values) - 1) > 1e-3:
        raise ExerciseError(f"your numbers sum to {sum(values):g}; sparsemax gives shares that sum to 1")
    if abs(values[0] - 1) > 1e-3:
        raise ExerciseError(
            "try a single survivor: tau = 2 - 1 = 1; are the other two logits above or below that?"
        )
    return "(1, 0, 0): the first key leads by 1 or more, and sparsemax gives it everything. Softmax would give it 0.79."
