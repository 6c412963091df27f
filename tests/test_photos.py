"""Bundled photos and painted ones."""

import itertools
import time

import numpy as np
import pytest
import torch

from ddsa_lab.data.photos import (
    HELD_OUT_PHOTOS,
    PHOTOS,
    SMALLEST_LEAF,
    TRAIN_PHOTOS,
    _leaves,
    dead_leaves,
    sample_photo,
)
from ddsa_lab.errors import LabError


def slope(image):
    """Exponent of the radial power spectrum between 0.02 and 0.35 cycles a pixel."""
    grey = image.mean(0).double().numpy()
    side = min(grey.shape)
    window = np.hanning(side)[:, None] * np.hanning(side)
    power = np.abs(np.fft.fft2((grey[:side, :side] - grey.mean()) * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    edges = np.geomspace(0.02, 0.35, 14)
    mean = [power[(frequency >= low) & (frequency < high)].mean() for low, high in itertools.pairwise(edges)]
    return np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), np.log(mean), 1)[0]


def test_no_photo_is_both_trained_on_and_held_out():
    assert len(HELD_OUT_PHOTOS) >= 4 and "coffee" in HELD_OUT_PHOTOS
    assert len(set(PHOTOS)) == len(TRAIN_PHOTOS) + len(HELD_OUT_PHOTOS)
    # Nor a near-duplicate, mirrored or not: coarse thumbnails must not go together.
    small = {}
    for name in PHOTOS:
        thumbnail = torch.nn.functional.interpolate(sample_photo(name)[None], (8, 8), mode="area")[0]
        thumbnail = thumbnail - thumbnail.mean((1, 2), keepdim=True)
        small[name] = thumbnail / thumbnail.norm()
    for held_out in HELD_OUT_PHOTOS:
        for name in set(PHOTOS) - {held_out}:
            for other in (small[name], small[name].flip(2)):
                assert float((small[held_out] * other).sum()) < 0.8, (held_out, name)


@pytest.mark.parametrize("name", PHOTOS)
def test_a_bundled_photo_is_rgb_in_0_1(name):
    photo = sample_photo(name)
    assert photo.dtype == torch.float32 and photo.shape[0] == 3 and min(photo.shape[1:]) >= 300
    assert photo.min() >= 0 and 0.5 < photo.max() - photo.min() <= 1


def test_held_out_photos_are_in_colour():
    for name in HELD_OUT_PHOTOS:
        assert float((sample_photo(name).amax(0) - sample_photo(name).amin(0)).mean()) > 0.05


def test_unknown_photo():
    with pytest.raises(LabError, match="did you mean 'coffee'"):
        sample_photo("cofee")


def test_dead_leaves_have_the_spectrum_of_photos():
    made = [slope(dead_leaves(256, 256, seed)) for seed in range(6)]
    real = [slope(sample_photo(name)) for name in PHOTOS]
    assert -3.0 < np.mean(made) < -1.9
    assert abs(np.mean(made) - np.mean(real)) < 0.5
    # White noise has slope 0, a smooth gradient below -4: the measure can tell.
    assert abs(slope(torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(0)))) < 0.2


def test_dead_leaves_are_varied_colourful_and_within_range():
    images = torch.stack([dead_leaves(128, 128, seed) for seed in range(12)])
    assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1
    assert float(images.std((1, 2, 3)).min()) > 0.05
    assert float(images.mean((1, 2, 3)).std()) > 0.05
    assert float((images.amax(1) - images.amin(1)).mean()) > 0.05


def test_leaves_of_twice_the_size_are_a_quarter_as_many():
    leaves = np.array(_leaves(20000, 100.0, 10.0, 256, 256, np.random.default_rng(0)))
    radius = np.sqrt(leaves[:, 2] * leaves[:, 3])
    assert radius.min() > SMALLEST_LEAF * 0.999 and radius.max() < 100.1
    for factor in (2, 4, 8):
        assert (radius > factor * SMALLEST_LEAF).mean() == pytest.approx(factor**-2, rel=0.15)


def test_dead_leaves_depend_on_the_seed_alone():
    assert torch.equal(dead_leaves(64, 96, 3), dead_leaves(64, 96, 3))
    assert not torch.equal(dead_leaves(64, 96, 3), dead_leaves(64, 96, 4))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (300, 17)])
def test_dead_leaves_of_odd_sizes(height, width):
    image = dead_leaves(height, width, 0)
    assert image.shape == (3, height, width) and image.isfinite().all()


def test_dead_leaves_are_painted_quickly():
    spent = []
    for seed in range(3):
        start = time.process_time()
        dead_leaves(256, 256, seed)
        spent.append(time.process_time() - start)
    assert min(spent) < 0.3


@pytest.mark.parametrize("arguments", [(0, 5, 0), (5, -1, 0), (5, 5, -1)])
def test_dead_leaves_of_impossible_sizes(arguments):
    with pytest.raises(LabError, match="positive sizes"):
        dead_leaves(*arguments)
