"""Small instruments of the course: counted multiply-adds, channels that look like the rain, scores as a table."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ddsa_lab.data.rain import RainyPair
from ddsa_lab.evaluation.metrics import psnr
from ddsa_lab.model.restore import derain

if TYPE_CHECKING:
    from pandas import DataFrame


def measured_macs(model: nn.Module, height: int, width: int) -> dict[str, int]:
    """Run a network once on an empty image and count its multiply-adds, as torch sees them.

    Returns:
        Multiply-adds of the whole network (""), and of every module in it by name ("encoder.0"); modules without any
        are left out.
    """
    from torch.utils.flop_counter import FlopCounterMode

    # torch counts 2 for each multiply-add, and knows addmm only in the form that makes a new tensor.
    in_place = {torch.ops.aten.addmm_: lambda total, a, b, **_: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter, torch.no_grad():
        model(torch.zeros(1, 3, height, width))
    counts = {name: sum(found.values()) // 2 for name, found in counter.get_flop_counts().items()}
    inner = {name.partition(".")[2]: count for name, count in counts.items() if "." in name}
    return {"": counts["Global"]} | inner


def rainiest_channel(features: Tensor, streaks: Tensor) -> tuple[int, float, Tensor]:
    """Find the feature map that looks most like the rain.

    Args:
        features: (C, h, w), of any level of the network.
        streaks: (1, H, W), shrunk to the features' size for the comparison.

    Returns:
        Its number, its correlation with the streaks (from -1 to 1, the largest in size), and the map (h, w) scaled to
        [0, 1], turned round where the correlation is negative, so that rain is bright.
    """
    small = interpolate(streaks[None], features.shape[-2:], mode="area").flatten()
    maps = features.flatten(1)
    maps, small = maps - maps.mean(dim=1, keepdim=True), small - small.mean()
    norms = (maps.norm(dim=1) * small.norm()).clamp_min(torch.finfo(maps.dtype).tiny)
    correlation = maps @ small / norms
    best = int(correlation.abs().argmax())
    image = features[best] * correlation[best].sign()
    low, high = image.quantile(0.005), image.quantile(0.995)
    return best, float(correlation[best]), ((image - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)


def held_out_scores(
    models: Mapping[tuple[str, int], nn.Module], pairs: Sequence[tuple[str, RainyPair]], protocol: str = "rgb"
) -> "DataFrame":
    """Score trained networks on named pairs: columns model, seed, image, psnr.

    Args:
        models: network by (name, seed of its training).
        pairs: from `held_out_pairs`.
        protocol: see `ddsa_lab.evaluation.metrics.PROTOCOLS`.
    """
    import pandas as pd

    return pd.DataFrame(
        {
            "model": model,
            "seed": seed,
            "image": image,
            "psnr": psnr(derain(net, pair.rainy), pair.clean, protocol),
        }
        for (model, seed), net in models.items()
        for image, pair in pairs
    )
