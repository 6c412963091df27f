"""Training data: the same item for the same seed and index, whatever happened before."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from ddsa_lab.data import datasets
from ddsa_lab.data.datasets import (
    PairPatches,
    RainyPatches,
    held_out_pairs,
    item_seed,
    training_photos,
)
from ddsa_lab.data.images import save_image
from ddsa_lab.data.pairs import Pair
from ddsa_lab.data.photos import HELD_OUT_PHOTOS, TRAIN_PHOTOS
from ddsa_lab.errors import LabError


def noise(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).byte()


PHOTOS = [noise(80, 60), noise(50, 90, 1)]


def patches(**changes):
    settings = {
        "photos": PHOTOS,
        "rain": "light+heavy",
        "patch": 32,
        "length": 50,
        "seed": 0,
        "dead_leaves": 0.3,
    }
    return RainyPatches(**{**settings, **changes})


@pytest.fixture
def pairs(tmp_path):
    """Three pairs; a target says where its pixels come from, its input is the negative."""
    found = []
    for number in range(3):
        rows, columns = torch.meshgrid(torch.arange(40), torch.arange(50), indexing="ij")
        target = torch.stack((rows, columns, torch.full_like(rows, 80 * number))).float() / 255
        paths = [tmp_path / f"{kind}{number}.png" for kind in ("input", "target")]
        save_image(1 - target, paths[0])
        save_image(target, paths[1])
        found.append(Pair(f"pair{number}", *paths))
    return found


def test_items_depend_on_seed_and_index_only():
    forward, backward = patches(), patches(length=200)
    late = {i: backward[i] for i in reversed(range(12))}
    for i in range(12):
        for first, second in zip(forward[i], late[i]):
            assert torch.equal(first, second)
    assert not torch.equal(forward[0][1], forward[1][1])
    assert not torch.equal(forward[0][0], patches(seed=1)[0][0])


def test_loading_processes_change_nothing():
    alone = [patches()[i] for i in range(8)]
    loader = DataLoader(patches(length=8), batch_size=None, num_workers=2)
    for (rainy, clean), (rainy_2, clean_2) in zip(alone, loader):
        assert torch.equal(rainy, rainy_2) and torch.equal(clean, clean_2)


def test_items_are_patches_of_the_photos_turned_and_rained_on():
    dataset = patches(dead_leaves=0.0)
    for index in range(20):
        rainy, clean = dataset[index]
        assert rainy.shape == clean.shape == (3, 32, 32) and rainy.dtype == clean.dtype == torch.float32
        assert clean.is_contiguous() and rainy.min() >= 0 and rainy.max() <= 1
        assert (rainy >= clean).all() and not torch.equal(rainy, clean)
        turned = [torch.rot90(side, k, (1, 2)) for k in range(4) for side in (clean, clean.flip(2))]
        assert any(_holds(photo.float() / 255, piece) for photo in PHOTOS for piece in turned)


def _holds(photo, piece):
    """Whether the photo contains exactly this piece (found by its first pixel)."""
    corners = torch.nonzero((photo[:, :-31, :-31] == piece[:, :1, :1]).all(0))
    return any(torch.equal(photo[:, y : y + 32, x : x + 32], piece) for y, x in corners.tolist())


def test_every_flip_turn_photo_and_corner_occurs():
    corner = torch.zeros(3, 32, 32, dtype=torch.uint8)
    corner[:, 0, 1] = 255
    places = {int(patches(photos=[corner], dead_leaves=0.0)[i][1][0].argmax()) for i in range(50)}
    assert places == {1, 30, 32, 63, 30 * 32, 31 * 32 + 1, 31 * 32 + 30, 30 * 32 + 31}
    flat = [torch.full((3, 40, 40), value, dtype=torch.uint8) for value in (10, 20, 30)]
    assert {round(255 * float(patches(photos=flat, dead_leaves=0.0)[i][1].max())) for i in range(30)} == {
        10,
        20,
        30,
    }
    ramp = torch.arange(40).expand(3, 40, 40).byte()
    for photo in (ramp, ramp.mT.contiguous()):
        lowest = {round(255 * float(patches(photos=[photo], dead_leaves=0.0)[i][1].min())) for i in range(50)}
        assert {0, 8} <= lowest <= set(range(9))


def test_rain_falls_downwards_however_the_photo_was_turned():
    black = [torch.zeros(3, 64, 64, dtype=torch.uint8)]
    vertical = 0
    for index in range(20):
        rain = patches(photos=black, patch=64, rain="drizzle", dead_leaves=0.0)[index][0][0]
        vertical += rain.diff(dim=1).square().sum() > rain.diff(dim=0).square().sum()
    assert vertical == 20


def test_share_of_dead_leaves(monkeypatch):
    monkeypatch.setattr(datasets, "LEAVES_SIDE", 16)
    white = [torch.full((3, 40, 40), 255, dtype=torch.uint8)]
    for share, low, high in ((0.0, 0, 0), (0.3, 9, 28), (1.0, 60, 60)):
        dataset = patches(photos=white, length=60, dead_leaves=share, patch=8)
        painted = sum(bool((dataset[i][1] < 1).any()) for i in range(60))
        assert low <= painted <= high
    assert patches(photos=[], dead_leaves=1.0, patch=50)[0][0].shape == (3, 50, 50)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 40), (20, 31)])
def test_photos_smaller_than_a_patch_are_mirrored(height, width):
    small = noise(height, width)
    clean = patches(photos=[small], dead_leaves=0.0)[0][1]
    assert clean.shape == (3, 32, 32)
    assert set(clean.mul(255).round().flatten().tolist()) <= set(small.flatten().float().tolist())
    assert datasets._mirrored(0, 7, 3).tolist() == [0, 1, 2, 1, 0, 1, 2]


def test_bundled_training_photos():
    photos = training_photos()
    assert len(photos) == len(TRAIN_PHOTOS) and all(photo.dtype == torch.uint8 for photo in photos)
    assert len(training_photos(limit=3)) == 3


def test_photos_of_a_folder(tmp_path):
    (tmp_path / "more").mkdir()
    for number, folder in enumerate((tmp_path, tmp_path, tmp_path / "more")):
        save_image(torch.full((3, 30, 60), number / 10), folder / f"{number}.png")
    photos = training_photos(tmp_path)
    assert sorted(int(photo.max()) for photo in photos) == [0, 26, 51]
    assert [tuple(photo.shape) for photo in training_photos(tmp_path, limit=2, longest=20)] == [
        (3, 10, 20)
    ] * 2


def test_pairs_are_cut_and_turned_together(pairs):
    dataset = PairPatches(pairs, patch=16, length=40, seed=0)
    seen = set()
    for index in range(40):
        rainy, clean = dataset[index]
        assert rainy.shape == clean.shape == (3, 16, 16)
        torch.testing.assert_close(rainy, 1 - clean)
        seen.add(round(float(clean[2].max()) * 255))
        again = PairPatches(pairs, patch=16, length=50, seed=0)[index]
        assert torch.equal(rainy, again[0])
    assert seen == {0, 80, 160}


def test_cache_of_pairs_is_bounded(pairs, monkeypatch):
    monkeypatch.setattr(datasets, "CACHE_BYTES", 2 * 2 * 3 * 40 * 50)
    dataset = PairPatches(pairs, patch=16, length=40, seed=0)
    free = PairPatches(pairs, patch=16, length=40, seed=0)
    for index in range(40):
        assert torch.equal(dataset[index][0], free[index][0])
        assert dataset._cached == 12000 * len(dataset._cache) <= datasets.CACHE_BYTES
    assert len(dataset._cache) == 2


def test_held_out_pairs_are_fixed_and_independent_of_one_another(tmp_path):
    pairs = held_out_pairs("light", seed=3, size=64)
    assert [name for name, _ in pairs] == list(HELD_OUT_PHOTOS)
    for name, pair in pairs:
        assert pair.clean.shape == (3, 64, 64) and not torch.equal(pair.clean, pair.rainy)
        ((_, alone),) = held_out_pairs("light", seed=3, size=64, photos=[name])
        assert torch.equal(alone.rainy, pair.rainy)
    save_image(torch.rand(3, 20, 90, generator=torch.Generator().manual_seed(0)), tmp_path / "narrow.png")
    ((name, pair),) = held_out_pairs("storm", size=64, photos=tmp_path)
    assert name == "narrow" and pair.rainy.shape == (3, 20, 64)


def test_a_dataset_can_be_sent_to_another_process():
    dataset = pickle.loads(pickle.dumps(patches()))
    assert torch.equal(dataset[3][0], patches()[3][0])


def test_item_seeds_are_spread():
    seeds = {item_seed(seed, item) for seed in range(50) for item in range(50)}
    assert len(seeds) == 2500 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: patches(rain="ligt"), "did you mean 'light'"),
        (lambda: patches(rain="light+fog"), "rain preset 'fog'"),
        (lambda: patches(patch=0), "at least 1"),
        (lambda: patches(length=0), "at least 1"),
        (lambda: patches(dead_leaves=1.5), "dead_leaves"),
        (lambda: patches(photos=[]), "no photos"),
        (lambda: patches(photos=[torch.zeros(3, 4, 4)]), "uint8"),
        (lambda: patches(photos=[torch.zeros(4, 4, 4, dtype=torch.uint8)]), r"\(4, 4, 4\)"),
        (lambda: PairPatches([], 8, 8, 0), "no pairs"),
        (lambda: training_photos(limit=0), "limit"),
        (lambda: held_out_pairs(size=0), "size"),
        (lambda: held_out_pairs(photos=("chna",)), "did you mean 'china'"),
    ],
)
def test_wrong_settings_are_said_at_once(call, words):
    with pytest.raises(LabError, match=words):
        call()


def test_wrong_folders_and_pairs(tmp_path, pairs):
    (tmp_path / "empty").mkdir()
    for call in (training_photos, lambda folder: held_out_pairs(photos=folder)):
        with pytest.raises(LabError, match="no images in"):
            call(tmp_path / "empty")
        with pytest.raises(LabError, match="missing"):
            call(tmp_path / "missing")
    save_image(torch.zeros(3, 8, 9), pairs[0].input)
    with pytest.raises(LabError, match="must have one size"):
        PairPatches(pairs[:1], 8, 8, 0)[0]
    with pytest.raises(IndexError):
        patches()[50]
