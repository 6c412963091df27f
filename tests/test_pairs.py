"""Benchmark folders: every layout in use is recognised and paired, and nothing else is."""

import numpy as np
import pytest
import torch
from PIL import Image

from ddsa_lab.data.pairs import Pair, SizeMismatch, find_pairs, scan_pairs
from ddsa_lab.errors import LabError


@pytest.fixture(scope="module")
def scene():
    """A smooth scene and the same under sparse bright streaks, (H, W, 3) uint8."""
    y, x = np.mgrid[:48, :64]
    clean = np.stack([90 + 60 * np.sin(x / 9), 90 + 60 * np.cos(y / 7), 90 + 40 * np.sin((x + y) / 11)], -1)
    rain = np.zeros_like(clean)
    rain[:, ::13] = 80
    return clean.astype(np.uint8), (clean + rain).clip(0, 255).astype(np.uint8)


def write(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(samples).save(path)


def fill(folder, scene, names):
    for rainy, clean in names:
        write(folder / rainy, scene[1])
        write(folder / clean, scene[0])


LAYOUTS = {
    "input/target": [(f"input/{n}.png", f"target/{n}.png") for n in ("1", "2", "10")],
    "rain/norain": [(f"rain/rain-{n}.png", f"norain/norain-{n}.png") for n in ("001", "002", "010")],
    "scaled names": [(f"rain/norain-{n}x2.png", f"norain/norain-{n}.png") for n in ("1", "2", "10")],
    "short scaled names": [(f"input/{n}x2.png", f"target/{n}.png") for n in ("001", "002", "010")],
    "nested rain/X2": [(f"rain/X2/norain-{n}x2.png", f"norain/norain-{n}.png") for n in ("1", "2", "10")],
    "rain/gt": [(f"rain/{n}.png", f"gt/{n}gt.png") for n in ("001", "002", "010")],
    "data/gt": [(f"data/{n}_rain.png", f"gt/{n}_clean.png") for n in ("1", "2", "10")],
    "capitals, other suffix": [(f"Rain/{n}.jpg", f"NoRain/{n}.png") for n in ("1", "2", "10")],
    "one folder": [(f"rain-{n}.png", f"norain-{n}.png") for n in ("001", "002", "010")],
    "one folder, marks behind": [(f"{n}_in.png", f"{n}_GT.png") for n in ("001", "002", "010")],
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("nested", [False, True])
def test_layouts(tmp_path, scene, layout, nested):
    inner = tmp_path / "test" if nested else tmp_path
    fill(inner, scene, LAYOUTS[layout])
    (tmp_path / "readme.txt").write_text("Rain removal data.\nSee the paper.\n")
    pairs = find_pairs(tmp_path)
    expected = {inner / rainy: inner / clean for rainy, clean in LAYOUTS[layout]}
    assert {pair.input: pair.target for pair in pairs} == expected
    assert [pair.input.stem for pair in pairs] == [(inner / rainy).stem for rainy, _ in LAYOUTS[layout]]
    rainy, clean = pairs[0].load()
    assert rainy.shape == (3, 48, 64) and rainy.mean() > clean.mean()


def test_many_rains_over_one_clean_photo(tmp_path, scene):
    for n in ("901", "902"):
        write(tmp_path / "ground_truth" / f"{n}.png", scene[0])
        for i in range(1, 15):
            write(tmp_path / "rainy_image" / f"{n}_{i}.png", scene[1])
    pairs = find_pairs(tmp_path)
    assert len(pairs) == 28
    assert all(pair.target.stem == pair.name.split("_")[0] for pair in pairs)
    assert [pair.name for pair in pairs[:3]] == ["901_1", "901_2", "901_3"]


def test_an_exact_name_wins_over_a_shared_clean_photo(tmp_path, scene):
    names = ("5_1", "5", "7", "007", "rain-5")
    fill(tmp_path, scene, [(f"input/{name}.png", f"target/{name}.png") for name in names])
    assert all(pair.input.stem == pair.target.stem for pair in find_pairs(tmp_path))


@pytest.mark.parametrize("rainy_half", ["left", "right"])
@pytest.mark.parametrize("veil", [0, 60])
def test_side_by_side_files_know_their_rainy_half(tmp_path, scene, rainy_half, veil):
    clean, rainy = scene
    # A dark or bright veil must not be taken for rain.
    rainy = (rainy.astype(int) - veil).clip(0, 255).astype(np.uint8)
    halves = [rainy, clean] if rainy_half == "left" else [clean, rainy]
    for n in range(3):
        write(tmp_path / f"{n}.png", np.concatenate(halves, 1))
    pairs = find_pairs(tmp_path)
    assert [pair.rainy_half for pair in pairs] == [rainy_half] * 3
    loaded = pairs[1].load()
    for tensor, samples in zip(loaded, (rainy, clean)):
        np.testing.assert_array_equal((tensor.permute(1, 2, 0) * 255).round().numpy(), samples)
    torch.testing.assert_close(pairs[1].load_clean(), loaded[1])


def test_plain_photos_are_no_pairs(tmp_path):
    rng = np.random.default_rng(0)
    for n in range(5):
        low = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(low).resize((80, 60), Image.Resampling.BICUBIC).save(tmp_path / f"{n}.png")
    with pytest.raises(LabError, match="layouts known: input/target"):
        find_pairs(tmp_path)


def test_text_list(tmp_path, scene):
    fill(tmp_path, scene, [("a/1 wet.png", "b/1.png"), ("a/2 wet.png", "b/2.png")])
    (tmp_path / "test.txt").write_text("a/1 wet.png\tb/1.png\na\\2 wet.png\tb\\2.png\n")
    pairs = find_pairs(tmp_path)
    assert [(p.input.name, p.target.name) for p in pairs] == [("1 wet.png", "1.png"), ("2 wet.png", "2.png")]
    assert pairs[0].load()[0].shape == (3, 48, 64)


def test_text_list_that_begins_with_its_folder(tmp_path, scene):
    root = tmp_path / "real_test"
    fill(root, scene, [("x/001.png", "y/001gt.png")])
    (root / "list.txt").write_text("/real_test/x/001.png /real_test/y/001gt.png\n")
    (pair,) = find_pairs(root)
    assert (pair.input, pair.target) == (root / "x/001.png", root / "y/001gt.png")


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "a/../../secret.png", "..\\secret.png", "a\\..\\..\\secret.png", "C:/secret.png"],
)
def test_a_list_cannot_leave_its_folder(tmp_path, scene, name):
    write(tmp_path / "secret.png", scene[0])
    fill(tmp_path / "set", scene, [("a/1.png", "b/1.png")])
    (tmp_path / "set" / "list.txt").write_text(f"a/1.png\tb/1.png\n{name}\tb/1.png\n")
    with pytest.raises(LabError, match="outside of its folder"):
        find_pairs(tmp_path / "set")


def test_an_absolute_path_in_a_list_means_the_folder(tmp_path, scene):
    write(tmp_path / "secret.png", scene[0])
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "list.txt").write_text(f"{tmp_path}/secret.png {tmp_path}/secret.png\n")
    for pair in find_pairs(folder):
        assert folder in pair.input.parents and folder in pair.target.parents


def test_two_lists_are_ambiguous(tmp_path, scene):
    fill(tmp_path, scene, [("a/1.png", "b/1.png")])
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text("a/1.png b/1.png\n")
    with pytest.raises(LabError, match=r"one\.txt, two\.txt"):
        find_pairs(tmp_path)


def test_photos_without_partner_are_listed_and_not_paired(tmp_path, scene):
    fill(tmp_path, scene, LAYOUTS["rain/norain"])
    write(tmp_path / "rain/rain-777.png", scene[1])
    write(tmp_path / "norain/norain-888.png", scene[0])
    scan = scan_pairs(tmp_path)
    assert len(scan.pairs) == 3
    assert [path.name for path in scan.lonely_inputs] == ["rain-777.png"]
    assert [path.name for path in scan.lonely_targets] == ["norain-888.png"]


def test_two_nested_folders_are_ambiguous(tmp_path, scene):
    for split in ("train", "test"):
        fill(tmp_path / split, scene, LAYOUTS["input/target"])
    with pytest.raises(LabError, match=r"several folders with pairs.*test.*train"):
        find_pairs(tmp_path)


def test_folders_without_pairs_say_why(tmp_path, scene):
    with pytest.raises(LabError, match="not there"):
        find_pairs(tmp_path / "missing")
    write(tmp_path / "input/a.png", scene[0])
    write(tmp_path / "target/b.png", scene[0])
    with pytest.raises(LabError, match=r"layout input/target, with 1 rainy and 1 clean"):
        find_pairs(tmp_path)


def test_sizes_must_agree(tmp_path, scene):
    write(tmp_path / "input/1.png", scene[1])
    write(tmp_path / "target/1.png", scene[0][:-3])
    with pytest.raises(SizeMismatch, match=r"input.1\.png has 64x48 .*target.1\.png 64x45"):
        find_pairs(tmp_path)[0].load()
    write(tmp_path / "odd.png", scene[0][:, :-1])
    with pytest.raises(SizeMismatch, match="width 63 is odd"):
        Pair("odd", tmp_path / "odd.png", tmp_path / "odd.png", "left").load()


def test_rain100l(shared_data):
    pairs = find_pairs(shared_data / "Rain100L")
    assert [pair.name for pair in pairs] == [f"{n:03d}" for n in range(1, 101)]
    rainy, clean = pairs[0].load()
    assert rainy.shape == clean.shape and sorted(clean.shape[1:]) == [321, 481]
