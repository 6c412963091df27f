"""Rainy and clean patches to train on: rain made on the fly over clean photos, or pairs on disk.

Item i of a set depends only on the seed, i and the settings, never on what was asked before: a resumed
run and any number of loading processes see the same data.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ddsa_lab.data.images import list_images, load_image
from ddsa_lab.data.pairs import Pair
from ddsa_lab.data.photos import HELD_OUT_PHOTOS, TRAIN_PHOTOS, dead_leaves, sample_photo
from ddsa_lab.data.rain import RainyPair, find_presets, rain_on
from ddsa_lab.errors import LabError

LEAVES_POOL = 24  # dead-leaves images a training run cuts patches from; each takes about 0.1 s to paint
LEAVES_SIDE = 256
CACHE_BYTES = 512 * 2**20  # decoded pairs kept in memory


def item_seed(seed: int, item: int | str) -> int:
    """Seed of one item, in [0, 2^63): neighbouring seeds and items give unrelated numbers."""
    digest = hashlib.blake2b(f"{seed}/{item}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _check(patch: int, length: int) -> None:
    if patch < 1 or length < 1:
        raise LabError(f"patch and length must be at least 1, not {patch} and {length}")


class RainyPatches(Dataset):
    """Endless variety from clean photos: patches cut, turned, then rained on."""

    def __init__(
        self,
        photos: Sequence[Tensor],
        rain: str,
        patch: int,
        length: int,
        seed: int,
        dead_leaves: float = 0.2,
    ) -> None:
        """Set up `length` items.

        Args:
            photos: uint8 (3, H, W) each, of any size; photos smaller than a patch are mirrored at their edges.
            rain: preset, or several joined by plus ("light+heavy"), of which each item draws one.
            patch: side of the square patches, pixels.
            length: number of items.
            seed: with the index, decides everything about an item.
            dead_leaves: share of items cut from painted images instead of photos, in [0, 1].

        Raises:
            LabError: unknown preset, sizes below 1, a share outside [0, 1], or no photos (but for a share of 1).
        """
        _check(patch, length)
        if not 0 <= dead_leaves <= 1:
            raise LabError(f"dead_leaves is a share and must be in [0, 1], not {dead_leaves}")
        if not photos and dead_leaves < 1:
            raise LabError("there are no photos to put rain on: give some, or set dead_leaves to 1")
        for photo in photos:
            if photo.dtype != torch.uint8 or photo.ndim != 3 or photo.shape[0] != 3 or photo.numel() == 0:
                raise LabError(f"photos must be uint8 (3, H, W), not {photo.dtype} {tuple(photo.shape)}")
        find_presets(rain)
        self.photos, self.rain, self.patch, self.length, self.seed = list(photos), rain, patch, length, seed
        self.dead_leaves = dead_leaves
        self._leaves: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Item `index` as (rainy, clean), each (3, patch, patch) float32 in [0, 1]."""
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} of {self.length}")
        generator = torch.Generator().manual_seed(item_seed(self.seed, index))
        (clean,) = _cut([self._choose_image(generator)], self.patch, generator)
        # The photo was turned before it rains: rain itself keeps falling downwards.
        clean, rainy, _ = rain_on(clean.float().div_(255), self.rain, generator)
        return rainy, clean

    def _choose_image(self, generator: torch.Generator) -> Tensor:
        share, which = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        if share >= self.dead_leaves:
            return self.photos[int(which * len(self.photos))]
        number = int(which * LEAVES_POOL)
        if number not in self._leaves:
            side = max(LEAVES_SIDE, self.patch)
            painted = dead_leaves(side, side, item_seed(self.seed, f"leaves {number}"))
            self._leaves[number] = painted.mul_(255).round_().byte()
        return self._leaves[number]


def _cut(images: list[Tensor], patch: int, generator: torch.Generator) -> list[Tensor]:
    """The same random square, flip and quarter turn of every (3, H, W) image."""
    height, width = images[0].shape[-2:]
    draws = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    rows = _mirrored(int(draws[0] * max(1, height - patch + 1)), patch, height)
    columns = _mirrored(int(draws[1] * max(1, width - patch + 1)), patch, width)
    turned = []
    for image in images:
        piece = image[:, rows][:, :, columns]
        piece = torch.rot90(piece, int(draws[2] * 4), (1, 2))
        turned.append((piece.flip(2) if draws[3] < 0.5 else piece).contiguous())
    return turned


def _mirrored(start: int, count: int, size: int) -> slice | Tensor:
    """`count` positions from `start` within `size`, going back and forth where the image is too small."""
    if count <= size:
        return slice(start, start + count)
    period = max(1, 2 * (size - 1))
    position = torch.arange(count) % period
    return torch.minimum(position, period - position).clamp(max=size - 1)


def training_photos(
    folder: str | Path | None = None, limit: int | None = None, longest: int = 2048
) -> list[Tensor]:
    """Clean photos to make rain on, as uint8 (3, H, W).

    Args:
        folder: photos of your own, sub-folders included; the bundled training photos when None.
        limit: at most so many, spread evenly over the folder.
        longest: photos with a longer side than this are shrunk, to bound memory.

    Raises:
        LabError: the folder is missing or holds no images, an image cannot be read, or limit is below 1.
    """
    if limit is not None and limit < 1:
        raise LabError(f"limit must be at least 1, not {limit}")
    sources: Sequence[str | Path] = TRAIN_PHOTOS if folder is None else list_images(folder, recursive=True)
    if not sources:
        raise LabError(f"no images in {folder}: give a folder with clean photos (PNG, JPEG, ...)")
    if limit is not None and limit < len(sources):
        sources = [sources[i * len(sources) // limit] for i in range(limit)]
    return [_bytes(sample_photo(s) if folder is None else load_image(s), longest) for s in sources]


def _bytes(image: Tensor, longest: int) -> Tensor:
    scale = longest / max(image.shape[-2:])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in image.shape[-2:]]
        image = torch.nn.functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    return image.clamp(0, 1).mul(255).round_().byte()


class PairPatches(Dataset):
    """Patches from pairs on disk: the same square of both images, flipped and turned together."""

    def __init__(self, pairs: Sequence[Pair], patch: int, length: int, seed: int) -> None:
        """Set up `length` items.

        Args:
            pairs: from `ddsa_lab.data.pairs.find_pairs`.
            patch, length, seed: as for `RainyPatches`.

        Raises:
            LabError: no pairs, or sizes below 1; on access, images that cannot be read or differ in size.
        """
        _check(patch, length)
        if not pairs:
            raise LabError("there are no pairs to train on: find_pairs(folder) lists those of a folder")
        self.pairs, self.patch, self.length, self.seed = list(pairs), patch, length, seed
        self._cache: OrderedDict[int, list[Tensor]] = OrderedDict()
        self._cached = 0  # bytes

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Item `index` as (rainy, clean), each (3, patch, patch) float32 in [0, 1]."""
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} of {self.length}")
        generator = torch.Generator().manual_seed(item_seed(self.seed, index))
        number = int(torch.randint(len(self.pairs), (), generator=generator))
        rainy, clean = _cut(self._load(number), self.patch, generator)
        return rainy.float().div_(255), clean.float().div_(255)

    def _load(self, number: int) -> list[Tensor]:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        images = [_bytes(image, longest=1 << 30) for image in self.pairs[number].load()]
        self._cache[number] = images
        self._cached += 2 * images[0].numel()
        while self._cached > CACHE_BYTES and len(self._cache) > 1:
            _, old = self._cache.popitem(last=False)
            self._cached -= 2 * old[0].numel()
        return images


def held_out_pairs(
    rain: str = "light", seed: int = 0, size: int = 256, photos: Sequence[str] | str | Path = HELD_OUT_PHOTOS
) -> list[tuple[str, RainyPair]]:
    """A fixed set to validate on or to show: each photo's middle under its own rain.

    Args:
        rain: preset, or several joined by plus.
        seed: with a photo's name, decides its rain, so adding photos changes no other pair.
        size: longest side of the middle part, pixels.
        photos: names of bundled photos, or a folder.

    Raises:
        LabError: unknown preset or photo, size below 1, or a folder without images.
    """
    if size < 1:
        raise LabError(f"size must be at least 1, not {size}")
    if isinstance(photos, (str, Path)):
        paths = list_images(photos)
        if not paths:
            raise LabError(f"no images in {photos}: give a folder with clean photos (PNG, JPEG, ...)")
        named = [(path.stem, load_image(path)) for path in paths]
    else:
        named = [(name, sample_photo(name)) for name in photos]
    pairs = []
    for name, photo in named:
        top, left = (max(0, (side - size) // 2) for side in photo.shape[-2:])
        clean = photo[:, top : top + size, left : left + size].contiguous()
        generator = torch.Generator().manual_seed(item_seed(seed, name))
        pairs.append((name, rain_on(clean, rain, generator)))
    return pairs
