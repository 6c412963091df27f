"""Measures of detail: 1 for the clean image itself, lower the more it is blurred, and known for known images."""

import math

import pytest
import torch
from torch.nn.functional import avg_pool2d, conv2d, pad

from ddsa_lab.analysis import detail
from ddsa_lab.data.photos import dead_leaves
from ddsa_lab.data.rain import rainy_pair
from ddsa_lab.errors import LabError
from ddsa_lab.evaluation.metrics import psnr

MEASURES = ("gradient_ratio", "gradient_coherent", "edge_psnr", "high_frequency_all", "coherent_all")


def blur(image, sigma):
    radius = math.ceil(3 * sigma)
    kernel = torch.exp(-(torch.arange(-radius, radius + 1.0) ** 2) / (2 * sigma**2))
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    return conv2d(pad(image[:, None], (radius,) * 4, mode="reflect"), kernel[None, None])[:, 0]


@pytest.fixture(scope="module")
def pair():
    return rainy_pair(dead_leaves(96, 112, 0), "heavy", seed=1)


def grey(values):
    return values.expand(3, *values.shape[-2:]).clone()


def test_a_perfect_restoration_scores_one(pair):
    row = detail.detail_measures(pair.clean, pair.clean, pair.streaks)
    assert row.pop("edge_psnr") == math.inf
    assert set(row) == {
        f"{kind}_{where}" for kind in ("high_frequency", "coherent") for where in ("all", "inside", "outside")
    } | {"gradient_ratio", "gradient_coherent"}
    assert all(value == pytest.approx(1, abs=1e-12) for value in row.values())


@pytest.mark.parametrize("measure", MEASURES)
def test_the_more_blur_the_lower(pair, measure):
    values = [
        detail.detail_measures(blur(pair.clean, sigma), pair.clean)[measure] for sigma in (0.4, 0.8, 1.6, 3.2)
    ]
    assert values == sorted(values, reverse=True) and values[0] > values[-1] + 0.1
    if measure != "edge_psnr":
        assert values[-1] >= 0 and values[0] < 1


def test_left_over_rain_raises_energy_but_not_what_is_the_images_own(pair):
    row = detail.detail_measures(pair.rainy, pair.clean, pair.streaks)
    assert row["high_frequency_inside"] > 1.5
    assert row["high_frequency_inside"] > row["high_frequency_outside"] + 0.3
    assert abs(row["coherent_all"] - 1) < 0.5 * (row["high_frequency_all"] - 1)
    assert row["gradient_ratio"] > row["gradient_coherent"]


def test_blur_under_the_streaks_is_found_under_the_streaks(pair):
    inside = pair.streaks > detail.STREAK_LEVEL
    patched = torch.where(inside, blur(pair.clean, 2.0), pair.clean)
    kept = detail.high_frequency_kept(patched, pair.clean, pair.streaks, coherent=True)
    assert kept["inside"] < 0.6 and kept["outside"] > 0.75 and kept["inside"] < kept["all"] < kept["outside"]


def test_regions_share_the_energy_of_the_whole(pair):
    restored = blur(pair.clean, 1.0)
    kept = detail.high_frequency_kept(restored, pair.clean, pair.streaks)
    energy = detail.high_pass(pair.clean).square()
    inside = (pair.streaks > detail.STREAK_LEVEL)[0]
    share = float(energy[inside].sum() / energy.sum())
    assert kept["all"] == pytest.approx(share * kept["inside"] + (1 - share) * kept["outside"])


def test_a_ramp_has_its_slope_everywhere():
    slope = torch.arange(20.0).expand(12, 20) / 100
    gradient = detail.gradients(grey(slope))[:, 1:-1, 1:-1]
    assert torch.allclose(gradient[0], torch.full_like(gradient[0], 0.01)) and gradient[1].abs().max() < 1e-9
    half = detail.gradient_ratio(grey(slope / 2), grey(slope), torch.ones(12, 20, dtype=torch.bool))
    assert half == pytest.approx(0.5)
    turned = detail.gradient_ratio(grey(slope.flip(1)), grey(slope), coherent=True)
    assert turned == pytest.approx(-1)


def test_edges_of_a_step_are_its_two_columns():
    step = torch.zeros(10, 20)
    step[:, 10:] = 0.5
    mask = detail.edge_mask(grey(step), share=0.1)
    assert mask[:, 9:11].all() and int(mask.sum()) == 20
    assert int(detail.edge_mask(grey(step), share=1.0).sum()) == 20  # flat pixels are never edges


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_edges_are_the_steepest_share_of_pixels(share):
    noisy = blur(
        torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0)), 1.0
    )  # no two slopes are equal
    mask, steepness = detail.edge_mask(noisy, share), detail.gradients(noisy).norm(dim=0)
    assert int(mask.sum()) == pytest.approx(share * 2000, abs=1)
    assert steepness[mask].min() > steepness[~mask].max()


def test_edge_psnr_sees_only_edges(pair):
    step = torch.zeros(16, 40)
    step[:, 20:] = 0.5
    spoilt = step.clone()
    spoilt[:, :5] = 0.3
    assert detail.edge_psnr(grey(spoilt), grey(step)) == math.inf
    spoilt = step.clone()
    spoilt[:, 19:21] += 0.1 * 255 / 255
    # 0.1 of 255 is 25.5, which 8 bits round to 26 (0.1) and from 127.5 -> 128 to 153
    expected = 10 * math.log10(255**2 / ((26**2 + 25**2) / 2))
    assert detail.edge_psnr(grey(spoilt), grey(step), protocol="rgb") == pytest.approx(expected)
    everywhere = torch.ones(96, 112, dtype=torch.bool)
    blurred = blur(pair.clean, 1.0)
    assert detail.edge_psnr(blurred, pair.clean, everywhere) == pytest.approx(psnr(blurred, pair.clean))
    assert detail.edge_psnr(blurred, pair.clean) < psnr(blurred, pair.clean)


def test_high_pass_takes_away_slow_waves_and_lets_fast_ones_through():
    x = torch.arange(64.0).expand(32, 64)
    slow, fast = (0.5 + 0.4 * torch.cos(2 * math.pi * x / period) for period in (32, 2))
    # a Gaussian of sigma s leaves exp(-2 (pi s / period)^2) of a wave
    for wave, period in ((slow, 32), (fast, 2)):
        passed = 1 - math.exp(-2 * (math.pi * detail.SIGMA / period) ** 2)
        high = detail.high_pass(grey(wave))[8:-8, 16:-16]
        assert high.norm() / (wave - 0.5).double()[8:-8, 16:-16].norm() == pytest.approx(passed, rel=2e-3)


def test_flat_images_have_nothing_to_keep():
    flat = torch.full((3, 12, 12), 0.5)
    assert math.isnan(detail.gradient_ratio(flat, flat)) and math.isnan(detail.edge_psnr(flat, flat))
    assert math.isnan(detail.high_frequency_kept(flat, flat)["all"])


def test_mistakes_are_named(pair):
    with pytest.raises(LabError, match="two \\(3, H, W\\) images"):
        detail.gradient_ratio(avg_pool2d(pair.clean, 2), pair.clean)
    with pytest.raises(LabError, match=r"streaks have \(96, 100\)"):
        detail.high_frequency_kept(pair.clean, pair.clean, pair.streaks[..., :100])
    with pytest.raises(LabError, match=r"lie in \(0, 1\]"):
        detail.edge_mask(pair.clean, 0)
    with pytest.raises(LabError, match="unknown protocol"):
        detail.edge_psnr(pair.clean, pair.clean, protocol="y")
