"""PSNR and SSIM against reference values, slow loops and closed forms."""

import csv
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from ddsa_lab.errors import LabError
from ddsa_lab.evaluation import metrics
from ddsa_lab.evaluation.metrics import PROTOCOLS, psnr, score, ssim


def photo(height=24, width=19, seed=0):
    """A smooth random image on 8-bit levels: something SSIM can see structure in."""
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)[0]
    return (smooth * 255).round() / 255


def disturbed(image, strength, seed=1):
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return ((image + strength * noise).clamp(0, 1) * 255).round() / 255


def read(path):
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) / 255


def slow_planes(image, protocol):
    """The compared planes, pixel by pixel, as the protocols are worded."""
    height, width = image.shape[1:]
    planes = [[[0.0] * width for _ in range(height)] for _ in range(3 if protocol == "rgb" else 1)]
    for row in range(height):
        for column in range(width):
            red, green, blue = (round(float(image[c, row, column]) * 255) for c in range(3))
            studio = 16 + 65.481 * red / 255 + 128.553 * green / 255 + 24.966 * blue / 255
            values = {
                "y_uint8": [math.floor(studio + 0.5)],
                "y_double": [studio],
                "y_full": [0.299 * red + 0.587 * green + 0.114 * blue],
                "rgb": [red, green, blue],
            }[protocol]
            for plane, value in enumerate(values):
                planes[plane][row][column] = float(value)
    return planes


def slow_ssim(first, second):
    """Wang's SSIM of two planes with four nested loops."""
    weights = [[math.exp(-(i**2 + j**2) / (2 * 1.5**2)) for j in range(-5, 6)] for i in range(-5, 6)]
    total = sum(map(sum, weights))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for top in range(len(first) - 10):
        for left in range(len(first[0]) - 10):
            x = y = xx = yy = xy = 0.0
            for i in range(11):
                for j in range(11):
                    weight = weights[i][j] / total
                    a, b = first[top + i][left + j], second[top + i][left + j]
                    x, y = x + weight * a, y + weight * b
                    xx, yy, xy = xx + weight * a * a, yy + weight * b * b, xy + weight * a * b
            luminance = (2 * x * y + c1) / (x * x + y * y + c1)
            values.append(luminance * (2 * (xy - x * y) + c2) / (xx - x * x + yy - y * y + c2))
    return sum(values) / len(values)


@pytest.mark.parametrize("protocol", ["y_uint8", "y_double"])
def test_reproduces_the_published_matlab_code(golden, shared_data, protocol):
    rows = list(csv.DictReader((golden / "metrics.csv").open()))
    assert len(rows) == 10
    for row in rows:
        ours = score(read(shared_data / row["restored"]), read(shared_data / row["target"]), protocol)
        assert ours["psnr"] == pytest.approx(float(row[f"psnr_{protocol}"]), abs=1e-3), row["pair"]
        assert ours["ssim"] == pytest.approx(float(row[f"ssim_{protocol}"]), abs=1e-5), row["pair"]


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_agrees_with_slow_loops(protocol):
    clean = photo()
    rainy = disturbed(clean, 0.08)
    first, second = slow_planes(rainy, protocol), slow_planes(clean, protocol)
    squares = [
        (a - b) ** 2
        for plane, other in zip(first, second)
        for row, line in zip(plane, other)
        for a, b in zip(row, line)
    ]
    expected = 10 * math.log10(255**2 / (sum(squares) / len(squares)))
    assert psnr(rainy, clean, protocol) == pytest.approx(expected, abs=1e-10)
    expected = sum(slow_ssim(a, b) for a, b in zip(first, second)) / len(first)
    assert ssim(rainy, clean, protocol) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_worse_images_score_worse(protocol):
    clean = photo(40, 50)
    scores = [score(disturbed(clean, strength), clean, protocol) for strength in (0.01, 0.03, 0.1, 0.3)]
    for better, worse in pairwise(scores):
        assert better["psnr"] > worse["psnr"] + 3
        assert better["ssim"] > worse["ssim"]


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_identical_images_are_perfect(protocol):
    result = score(photo(), photo(), protocol)
    assert result == {"psnr": math.inf, "ssim": 1.0}
    assert all(type(value) is float for value in result.values())


def test_matlab_luma_adds_132_hundredths_of_a_decibel():
    clean = photo(40, 50)
    rainy = disturbed(clean, 0.1)
    gap = psnr(rainy, clean, "y_double") - psnr(rainy, clean, "y_full")
    assert gap == pytest.approx(20 * math.log10(255 / 219), abs=1e-9)
    assert gap == pytest.approx(1.32, abs=0.005)


def test_luma_of_black_white_and_the_primaries():
    colours = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]).T[:, None]
    studio = [16, 235, 81.481, 144.553, 40.966]
    assert metrics.matlab_luma(colours, rounded=False)[0] == pytest.approx(studio, abs=1e-9)
    assert metrics.matlab_luma(colours, rounded=True)[0].tolist() == [16, 235, 81, 145, 41]
    assert metrics.full_luma(colours)[0] == pytest.approx([0, 255, 76.245, 149.685, 29.07], abs=1e-9)


def test_scores_what_a_saved_file_would_hold(tmp_path):
    clean = photo(16, 16)
    restored = 6 * clean - 2.5 + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    assert float(restored.min()) < 0
    assert float(restored.max()) > 1
    array = (restored.clamp(0, 1).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    Image.fromarray(array).save(tmp_path / "saved.png")
    for protocol in PROTOCOLS:
        assert score(restored, clean, protocol) == score(read(tmp_path / "saved.png"), clean, protocol)


def test_numpy_and_other_float_types_are_taken():
    clean, rainy = photo(), disturbed(photo(), 0.1)
    assert score(rainy.numpy(), clean.double()) == score(rainy, clean)


@pytest.mark.parametrize("size", [(1, 1), (10, 40), (40, 10), (11, 11)])
def test_small_images_have_psnr_and_only_room_for_a_window_gives_ssim(size):
    clean = torch.full((3, *size), 0.5)
    result = score(clean + 0.1, clean)
    assert math.isfinite(result["psnr"])
    assert math.isnan(result["ssim"]) == (min(size) < 11)


@pytest.mark.parametrize(
    ("restored", "clean", "sentence"),
    [
        (torch.zeros(3, 12, 13), torch.zeros(3, 12, 14), r"\(3, 12, 13\).*\(3, 12, 14\)"),
        (torch.zeros(1, 3, 12, 12), torch.zeros(1, 3, 12, 12), r"restored has shape \(1, 3, 12, 12\)"),
        (torch.zeros(1, 12, 12), torch.zeros(1, 12, 12), r"\(3, height, width\)"),
        (torch.zeros(3, 0, 12), torch.zeros(3, 0, 12), r"\(3, 0, 12\)"),
        (torch.zeros(3, 12, 12, dtype=torch.uint8),) * 2 + ("uint8",),
        (torch.full((3, 12, 12), math.nan), torch.zeros(3, 12, 12), "restored holds NaN"),
        (torch.zeros(3, 12, 12), torch.full((3, 12, 12), 200.0), "clean has values from 200 to 200"),
    ],
)
def test_what_cannot_be_compared_is_refused(restored, clean, sentence):
    for function in (psnr, ssim, score):
        with pytest.raises(LabError, match=sentence):
            function(restored, clean)


def test_unknown_protocol_names_the_nearest():
    with pytest.raises(LabError, match="did you mean 'y_uint8'"):
        score(photo(), photo(), "y_uint")
