"""Attribution scored against the truth that the rain generator knows: where the streaks are.

Each share comes with the share of pixels that streaks cover: a map that knew nothing would score that.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ddsa_lab.analysis.attribution import Attribution
from ddsa_lab.analysis.targets import Window
from ddsa_lab.errors import LabError

VISIBLE = 0.03  # streak brightness from which an 8-bit photo shows it (about 8 of 255)


def streak_mask(streaks: Tensor, threshold: float = VISIBLE) -> Tensor:
    """Return where rain is: bool (H, W) of a streak layer (1, H, W)."""
    if streaks.dim() != 3 or streaks.shape[0] != 1:
        raise LabError(f"a streak layer is (1, H, W), found shape {tuple(streaks.shape)}")
    return streaks[0] > threshold


def pointing_game(
    heat: Tensor, streaks: Tensor, threshold: float = VISIBLE, tolerance: int = 0
) -> dict[str, float]:
    """Does the strongest pixel of a map lie on a streak?

    Args:
        heat: (H, W), such as `Attribution.heat`.
        streaks: (1, H, W).
        threshold: brightness from which a streak counts.
        tolerance: pixels by which streaks are widened.

    Returns:
        hit: 1 or 0; chance: the share of pixels that would be hits.

    Source: Zhang et al., "Top-down neural attention by excitation backprop", IJCV 2018, section 4.1.
    """
    mask = streak_mask(streaks, threshold)
    _same_size(heat, mask)
    if tolerance:
        side = 2 * tolerance + 1
        mask = nn.functional.max_pool2d(mask.float()[None], side, stride=1, padding=tolerance)[0] > 0
    hit = mask.flatten()[heat.flatten().argmax()]
    return {"hit": float(hit), "chance": float(mask.float().mean())}


def pointing_rate(
    maps: Iterable[Attribution], streaks: Tensor, threshold: float = VISIBLE, tolerance: int = 0
) -> dict[str, float]:
    """Return hit and chance of the pointing game, averaged over maps of one image."""
    games = [pointing_game(one.heat, streaks, threshold, tolerance) for one in maps]
    if not games:
        raise LabError("the pointing game needs at least one map")
    return {name: sum(game[name] for game in games) / len(games) for name in ("hit", "chance")}


def share_inside(
    amount: Tensor, streaks: Tensor, threshold: float = VISIBLE, window: Window | None = None
) -> dict[str, float]:
    """How much of something lies inside streaks?

    Args:
        amount: (H, W), >= 0: `Attribution.heat`, or squared error.
        streaks: (1, H, W).
        threshold: brightness from which a streak counts.
        window: only pixels in it count. A map of a small target lives near its window, so the share of
            streaks there is the fair chance.

    Returns:
        share: of the amount inside streaks, 0 to 1 (NaN if there is none at all); area: share of the pixels;
        ratio: share / area, 1 for a map that knows nothing (NaN without streaks).
    """
    mask = streak_mask(streaks, threshold)
    _same_size(amount, mask)
    if window is not None:
        window.check(amount)
        mask, amount = window.cut(mask), window.cut(amount)
    amount = amount.double()
    share = float((amount * mask).sum() / amount.sum())
    area = float(mask.double().mean())
    return {"share": share, "area": area, "ratio": share / area if area else float("nan")}


def residual_share(
    restored: Tensor,
    clean: Tensor,
    streaks: Tensor,
    threshold: float = VISIBLE,
    window: Window | None = None,
) -> dict[str, float]:
    """How much of the squared error that is left lies inside streaks? Images (3, H, W); see `share_inside`."""
    if restored.shape != clean.shape:
        raise LabError(f"restored is {tuple(restored.shape)}, but clean is {tuple(clean.shape)}")
    return share_inside((restored - clean).square().sum(0), streaks, threshold, window)


def _same_size(amount: Tensor, mask: Tensor) -> None:
    if amount.shape != mask.shape:
        raise LabError(
            f"the map is {tuple(amount.shape)} pixels, but the streak layer is {tuple(mask.shape)}"
        )
    if not bool(torch.isfinite(amount).all()):
        raise LabError("the map holds NaN or infinite values: look at what made it")
