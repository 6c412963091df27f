"""The folder check: what it is, what is wrong with it, which scenes occur twice, and planted leaks."""

import argparse
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddsa_lab.data.benchmarks import guess_benchmark
from ddsa_lab.data.check import add_arguments, check_folder, run
from ddsa_lab.data.images import load_image, save_image, to_uint8
from ddsa_lab.data.leaks import SceneMatch, find_scenes, fingerprint, group_scenes
from ddsa_lab.data.photos import dead_leaves, sample_photo
from ddsa_lab.errors import LabError
from ddsa_lab.evaluation.metrics import psnr

BSDS = {(481, 321): 66, (321, 481): 34}
SCENES = ("astronaut", "chelsea", "coffee", "rocket", "china", "leaves 1")
DECOYS = ("flower", "camera", "grass", "brick", "leaves 2", "leaves 3")


def photo(name, width=300):
    """A bundled or painted photo, (3, H, width)."""
    leaves = name.startswith("leaves")
    image = dead_leaves(200, width, seed=int(name[-1])) if leaves else sample_photo(name)
    height = round(image.shape[1] * width / image.shape[2])
    return torch.nn.functional.interpolate(image[None], (height, width), mode="area")[0]


def rained(clean, period=13):
    rainy = clean.clone()
    rainy[:, :, ::period] = (rainy[:, :, ::period] + 0.4).clamp(max=1)
    return rainy


def resized(image, factor):
    samples = Image.fromarray(to_uint8(image))
    size = (round(samples.width * factor), round(samples.height * factor))
    return torch.from_numpy(np.array(samples.resize(size, Image.Resampling.LANCZOS))).permute(2, 0, 1) / 255


def recompressed(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1) / 255


def part(image, share, x=0.3, y=0.4):
    height, width = (int(side * share) for side in image.shape[1:])
    top, left = int((image.shape[1] - height) * y), int((image.shape[2] - width) * x)
    return image[:, top : top + height, left : left + width]


PLANTED = {
    "exact": (lambda image: image, "exact"),
    "recompressed": (lambda image: recompressed(image, 30), "copy"),
    "smaller": (lambda image: recompressed(resized(image, 0.6), 80), "copy"),
    "squashed": (
        lambda image: torch.nn.functional.interpolate(image[None], (256, 256), mode="area")[0],
        "copy",
    ),
    "cropped": (lambda image: recompressed(part(image, 0.5), 75), "crop"),
    "cropped and enlarged": (lambda image: resized(part(image, 0.55, 0.6, 0.2), 1.6), "crop"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of six pairs, one for each of `SCENES`."""
    root = tmp_path_factory.mktemp("pairs")
    for name in SCENES:
        save_image(photo(name), root / "target" / f"{name}.png")
        save_image(rained(photo(name)), root / "input" / f"{name}.png")
    return root


def test_planted_copies_and_crops_are_found_and_nothing_else(folder, tmp_path):
    expected = {}
    for scene, (how, (change, kind)) in zip(SCENES, PLANTED.items()):
        save_image(change(photo(scene)), tmp_path / "photos" / f"{how}.png")
        expected[scene, f"{how}.png"] = kind
    for name in DECOYS:
        save_image(photo(name), tmp_path / "photos" / "others" / f"{name}.jpg")
    report = check_folder(folder, against=tmp_path / "photos", progress=False)
    assert {(leak.scene, leak.photo.name): leak.kind for leak in report.leaks} == expected
    assert report.against_count == 12 and not report.ok
    text = report.text()
    assert "6 scenes are also among the 12 photos" in text
    assert "coffee: smaller.png (recompressed or rescaled)" in text


@pytest.mark.parametrize("how", PLANTED)
@pytest.mark.parametrize("scene", ["chelsea", "leaves 2"])
def test_every_change_is_seen_through_in_both_directions(how, scene):
    change, kind = PLANTED[how]
    changed, whole = (
        fingerprint(change(photo(scene))),
        [fingerprint(photo(name)) for name in (scene, *DECOYS[:3])],
    )
    assert [(m.first, m.second, m.kind) for m in find_scenes([changed], whole)] == [(0, 0, kind)]
    assert [(m.first, m.second, m.kind) for m in find_scenes(whole, [changed])] == [(0, 0, kind)]


def test_no_leak_is_said_with_what_was_compared(folder, tmp_path):
    for name in DECOYS:
        save_image(photo(name), tmp_path / "clean" / f"{name}.jpg")
    (tmp_path / "clean" / "broken.jpg").write_bytes(b"no photo")
    report = check_folder(folder, against=tmp_path / "clean", progress=False)
    assert report.leaks == [] and report.ok
    assert "none: no scene in common with the 7 photos of" in report.text()
    assert "broken.jpg is not an image" in report.text()
    with pytest.raises(LabError, match="no photos in"):
        (tmp_path / "empty").mkdir()
        check_folder(folder, against=tmp_path / "empty", progress=False)


def test_a_training_folder_of_pairs_is_compared_by_its_clean_photos(folder, tmp_path):
    for number, name in enumerate(("flower", "coffee")):
        save_image(photo(name), tmp_path / "norain" / f"norain-{number}.png")
        save_image(rained(photo(name), 5), tmp_path / "rain" / f"rain-{number}.png")
    report = check_folder(folder, against=tmp_path, progress=False)
    assert [(leak.scene, leak.photo.name) for leak in report.leaks] == [("coffee", "norain-1.png")]
    assert report.against_count == 2


def test_flat_and_tiny_photos_are_no_scenes_in_common():
    flat = [torch.full((3, 64, 80), value) for value in (0.2, 0.8)]
    sky = torch.linspace(0.4, 0.9, 60)[None, :, None].expand(3, 60, 90)
    # Two skies that agree but for their fine detail are two photos.
    clouds = [sky + 0.02 * torch.randn(3, 60, 90, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    others = [torch.rand(3, 1, 1), photo("coffee")]
    prints = [fingerprint(image.clamp(0, 1)) for image in [*flat, sky, sky.flip(1), *clouds, *others]]
    assert list(find_scenes(prints)) == []
    assert list(find_scenes(prints, [])) == [] and list(find_scenes([], prints)) == []


def test_groups_join_through_a_third():
    matches = [SceneMatch(4, 1, "copy", 1.0), SceneMatch(2, 4, "crop", 0.9), SceneMatch(1, 2, "copy", 0.9)]
    assert group_scenes(6, matches) == [[0], [1, 2, 4], [3], [5]]


def test_a_scene_under_two_rains_is_one_scene(folder, tmp_path):
    for number, name in enumerate(("coffee", "rocket", "coffee", "china"), 1):
        save_image(photo(name), tmp_path / "target" / f"{number}.png")
        save_image(rained(photo(name), 7 + number), tmp_path / "input" / f"{number}.png")
    report = check_folder(tmp_path, progress=False)
    assert report.scenes == [["1", "3"], ["2"], ["4"]]
    assert "3 distinct; 1 occur more than once" in report.text() and "1 = 3" in report.text()
    assert report.ok


def test_what_is_wrong_is_listed(tmp_path):
    for name in ("good", "same", "broken", "short"):
        save_image(photo("coffee"), tmp_path / "target" / f"{name}.png")
        save_image(rained(photo("coffee")), tmp_path / "input" / f"{name}.png")
    save_image(photo("coffee"), tmp_path / "input" / "same.png")
    save_image(rained(photo("coffee"))[:, 1:], tmp_path / "input" / "short.png")
    content = (tmp_path / "input" / "broken.png").read_bytes()
    (tmp_path / "input" / "broken.png").write_bytes(content[: len(content) // 2])
    save_image(photo("rocket"), tmp_path / "input" / "widow.png")
    save_image(photo("rocket"), tmp_path / "target" / "orphan.png")
    report = check_folder(tmp_path, score=psnr, progress=False)
    assert (report.identical, len(report.unreadable), len(report.mismatched)) == (["same"], 1, 1)
    assert [path.name for path in report.lonely_inputs] == ["widow.png"]
    assert [path.name for path in report.lonely_targets] == ["orphan.png"]
    assert report.problems == 5 and not report.ok and not report.complete
    assert report.psnr["rgb"] == pytest.approx(
        psnr(rained(photo("coffee")), photo("coffee"), "rgb"), abs=0.05
    )
    for word in ("broken.png", "short.png has 300x199", "identical        same", "widow.png", "orphan.png"):
        assert word in report.text()


@pytest.mark.parametrize(
    "path, count, sizes, score, expected",
    [
        ("x/y", 100, BSDS, 26.9, ["Rain100L test"]),
        ("x/y", 100, BSDS, 13.6, ["Rain100H test"]),
        ("x/y", 100, {(481, 370): 50, (640, 480): 50}, 22.5, ["Rain800 test"]),
        ("x/test100", 97, {(481, 370): 50, (640, 480): 50}, 22.5, ["Rain800 test"]),
        ("x/test100", 98, {(481, 370): 50, (640, 480): 50}, 22.5, ["Rain800 test, the copy of 98"]),
        ("x/y", 12, BSDS, 30.0, ["Rain12 test"]),
        ("Rain100L/test", 97, BSDS, 26.8, ["Rain100L test"]),
        ("Rain100L/train", 200, BSDS, 26.8, ["Rain100L train"]),
        ("Rain200L/test", 200, BSDS, 26.8, ["Rain200L test"]),
        ("x/y", 200, BSDS, 26.8, ["Rain100L train", "Rain200L test"]),
        ("Rain100L/test", 100, BSDS, 13.6, ["Rain100H test"]),
        ("x/y", 1200, {(512, 512): 1200}, 23.6, ["DID test"]),
        ("x/y", 1400, {(512, 384): 700, (384, 512): 700}, 25.2, ["DDN test"]),
        ("x/y", 1000, {(512, 512): 1000}, 34.2, ["SPA-Data test"]),
        ("x/y", 13712, {(512, 384): 60, (481, 321): 40}, None, ["Rain13K train"]),
        ("x/y", 57, {(600, 400): 57}, 25.0, []),
    ],
)
def test_benchmarks_are_told_by_name_count_size_and_rain(path, count, sizes, score, expected):
    guesses = guess_benchmark(Path(path), count, sizes, score)
    assert [f"{guess.benchmark} {guess.split}" for guess in guesses] == expected


def test_command_line(folder, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args([str(folder), "--quiet"])) == 0
    assert "6 distinct, each once" in capsys.readouterr().out
    assert run(parser.parse_args([str(folder), "--against", str(folder / "target"), "--quiet"])) == 1
    assert "(the same pixels)" in capsys.readouterr().out


def test_benchmark_photos_planted_among_others(shared_data, tmp_path):
    clean = sorted((shared_data / "Rain100L/test/target").glob("*.png"))
    others = sorted((shared_data / "clean/bsds500").glob("*.jpg"))[:20]
    planted = {clean[20 + i].stem: change for i, (change, _) in enumerate(PLANTED.values())}
    prints = [fingerprint(load_image(path)) for path in clean[20:40]]
    training = [fingerprint(change(load_image(clean[int(stem) - 1]))) for stem, change in planted.items()]
    training += [fingerprint(load_image(path)) for path in others]
    found = {(match.first, clean[20 + match.second].stem) for match in find_scenes(training, prints)}
    # 025 is 006 and 036 is 007, which are not among the twenty.
    assert found == set(enumerate(planted))


@pytest.mark.slow
def test_rain100l_in_full(shared_data):
    report = check_folder(
        shared_data / "Rain100L/test", against=shared_data / "clean/bsds500", score=psnr, progress=False
    )
    assert (report.benchmark, report.pairs, report.complete, len(report.scenes)) == (
        "Rain100L",
        100,
        True,
        91,
    )
    assert {k: round(v, 2) for k, v in report.psnr.items()} == {"y_uint8": 26.90, "rgb": 25.52}
    assert report.leaks == [] and report.ok
    assert ["003", "004"] in report.scenes and ["012", "091"] in report.scenes
