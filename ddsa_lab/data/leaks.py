"""Finding the same scene in two photos: exact copies, recompressed, rescaled and cropped ones."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ddsa_lab.data.images import to_uint8

LONGEST = 320  # photos are compared at this longest side, pixels: detail enough, and quick
_STEP = 2 ** (1 / 3)  # between pyramid levels; a descriptor bears half a step (12 %) of scale error
_LEVELS = 8
_FIRST_LEVEL_POINTS = 96
_PATCH = 16  # pixels of a level that one descriptor covers, averaged 2x2 to 8x8 values
_ALIKE = 0.92  # correlation of two descriptors that may show one thing
_RANK = 5  # a descriptor votes for the photos that hold its best partners: edges look alike everywhere
_VOTES = 4  # before two photos are compared at all
_COMPARED = 12  # photos with the most votes that are compared with one
_BLOCK = 256  # photos in one product of descriptors, which bounds the memory
_THUMB = 0.95  # correlation of whole photos at 32x32 that may be one photo
_MATCHES = 60  # best matched corners of two photos that are tried
_INLIERS = 6  # matches that one shift and scale must explain
_SAME = 0.9  # correlation of the overlap's pixels
_SAME_DETAIL = 0.6  # and of their fine part, which two different skies or meadows do not share
_SMALLEST_OVERLAP = 40  # pixels a side at the compared size


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of a photo for comparing it.

    Attributes:
        digest: hash of the pixels at full size.
        luma: (h, w) uint8, longest side at most `LONGEST`.
        thumb: (1024,) float32, the photo as 32x32, zero mean and unit length (zeros for a flat photo).
        points: (n, 2) x, y of its corners in pixels of `luma`.
        scales: (n,) size of a pyramid level's pixel in pixels of `luma`.
        descriptors: (n, 64) float16, zero mean and unit length.
    """

    digest: str
    luma: np.ndarray
    thumb: np.ndarray
    points: np.ndarray
    scales: np.ndarray
    descriptors: np.ndarray


class SceneMatch(NamedTuple):
    """Two photos that show one scene: indices into the sequences compared, how, and how alike (0 to 1)."""

    first: int
    second: int
    kind: Literal["exact", "copy", "crop"]
    similarity: float


class _Mapping(NamedTuple):
    """x2 = scale * x1 + shift for each axis, from one photo's luma pixels to the other's."""

    scale: np.ndarray
    shift: np.ndarray


def fingerprint(image: Tensor) -> Fingerprint:
    """Measure a photo for `find_scenes`.

    Args:
        image: (3, H, W) RGB in [0, 1].
    """
    pixels = to_uint8(image)
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(pixels)
    small = Image.fromarray(pixels).convert("L")
    small.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    luma = np.asarray(small)  # bytes here and halves below: sets can be large
    small = Image.fromarray(luma.astype(np.float32) / 255)
    points, scales, descriptors = _features(small)
    thumb = _normalised(np.asarray(small.resize((32, 32), Image.Resampling.BOX)).reshape(1, -1))[0]
    return Fingerprint(digest.hexdigest(), luma, thumb, points, scales, descriptors.astype(np.float16))


def find_scenes(
    first: Iterable[Fingerprint], second: Sequence[Fingerprint] | None = None
) -> Iterator[SceneMatch]:
    """Yield the pairs of photos that show one scene.

    Copies are found whatever their compression and size; crops of half the photo's side nearly always, of a
    third most of the time, and less the less texture they have. Mirrored and rotated copies are not.

    Args:
        first: photos, taken one by one, so that a large set need not fit into memory.
        second: the photos to compare them with; None compares `first` with itself, each pair once.
    """
    if second is None:
        first = list(first)
    others = first if second is None else second
    if not others:
        return
    index = _Index(others)
    for i, photo in enumerate(first):
        for j in index.candidates(photo, start=i + 1 if second is None else 0):
            match = _compare(photo, others[j])
            if match is not None:
                yield SceneMatch(i, int(j), *match)


def group_scenes(count: int, matches: Iterable[SceneMatch]) -> list[list[int]]:
    """Groups of the indices 0 to count - 1 that show one scene, by matches of a set with itself."""
    groups = {i: [i] for i in range(count)}
    for match in matches:
        one, other = groups[match.first], groups[match.second]
        if one is not other:
            one += other
            groups.update(dict.fromkeys(other, one))
    return sorted({id(group): sorted(group) for group in groups.values()}.values())


# Features: corners on a pyramid, each described by the patch around it ------------------------------------


def _features(image: Image.Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    points, scales, patches = [], [], []
    for level in range(_LEVELS):
        factor = _STEP**level
        size = (round(image.width / factor), round(image.height / factor))
        if min(size) < 2 * _PATCH:
            break
        luma = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
        y, x = _corners(luma, max(8, round(_FIRST_LEVEL_POINTS / factor)))
        exact = np.array([image.width / size[0], image.height / size[1]])
        points.append((np.stack([x, y], 1) + 0.5) * exact - 0.5)
        scales.append(np.full(len(x), factor))
        patches.append(_patches(luma, y, x))
    if not points:
        return np.zeros((0, 2)), np.zeros(0), np.zeros((0, 64), np.float32)
    descriptors = _normalised(np.concatenate(patches))
    textured = np.abs(descriptors).sum(1) > 0
    return np.concatenate(points)[textured], np.concatenate(scales)[textured], descriptors[textured]


def _corners(luma: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The strongest corners (harmonic mean of the structure tensor's eigenvalues), away from the border."""
    from scipy import ndimage

    dy, dx = (ndimage.gaussian_filter(luma, 1.0, order=order) for order in ((1, 0), (0, 1)))
    yy, xx, xy = (ndimage.gaussian_filter(product, 1.5) for product in (dy * dy, dx * dx, dx * dy))
    strength = (yy * xx - xy * xy) / (yy + xx + 1e-8)
    peaks = strength == ndimage.maximum_filter(strength, 5)
    edge = _PATCH // 2
    peaks[:edge] = peaks[-edge:] = peaks[:, :edge] = peaks[:, -edge:] = False
    y, x = np.nonzero(peaks & (strength > 1e-6))
    best = np.argsort(-strength[y, x], kind="stable")[:count]
    return y[best], x[best]


def _patches(luma: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    soft = ndimage.gaussian_filter(luma, 1.0)
    offsets = np.arange(-_PATCH // 2, _PATCH // 2)
    patch = soft[(y[:, None] + offsets)[:, :, None], (x[:, None] + offsets)[:, None, :]]
    return patch.reshape(-1, 8, 2, 8, 2).mean((2, 4)).reshape(-1, 64)


def _normalised(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.mean(1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    flat = length <= 1e-3 * rows.shape[1] ** 0.5
    return np.where(flat, 0, rows / np.maximum(length, 1e-12)).astype(np.float32)


class _Index:
    """The descriptors of many photos side by side, so that a few products compare a photo with them all."""

    def __init__(self, photos: Sequence[Fingerprint]):
        self.digests = np.array([photo.digest for photo in photos])
        self.thumbs = np.stack([photo.thumb for photo in photos])
        self.descriptors = [photo.descriptors for photo in photos]

    def candidates(self, photo: Fingerprint, start: int) -> np.ndarray:
        """Indices from `start` on that are worth comparing with `photo`."""
        votes = self._votes(photo.descriptors, start)
        ranked = np.argsort(-votes, kind="stable")[:_COMPARED]
        worth = (self.thumbs @ photo.thumb > _THUMB) | (self.digests == photo.digest)
        worth[ranked[votes[ranked] >= _VOTES]] = True
        found = np.nonzero(worth)[0]
        return found[found >= start]

    def _votes(self, descriptors: np.ndarray, start: int) -> np.ndarray:
        best = np.zeros((len(descriptors), len(self.descriptors)), np.float32)
        for low in range(start, len(self.descriptors), _BLOCK):
            block = self.descriptors[low : low + _BLOCK]
            counts = np.array([len(part) for part in block])
            filled = np.nonzero(counts)[0]  # reduceat cannot take empty groups
            if len(filled) and len(descriptors):
                alike = descriptors.astype(np.float32) @ np.concatenate(block).T.astype(np.float32)
                best[:, low + filled] = np.maximum.reduceat(
                    alike, (np.cumsum(counts) - counts)[filled], axis=1
                )
        if best.shape[1] > _RANK:
            best[best < -np.partition(-best, _RANK - 1, axis=1)[:, _RANK - 1 : _RANK]] = 0
        return (best > _ALIKE).sum(0)


# Comparing two photos -------------------------------------------------------------------------------------


def _compare(first: Fingerprint, second: Fingerprint) -> tuple[str, float] | None:
    if first.digest == second.digest:
        return "exact", 1.0
    sizes = [np.array(photo.luma.shape[::-1], float) for photo in (first, second)]
    whole = _Mapping(sizes[1] / sizes[0], (sizes[1] / sizes[0] - 1) / 2)
    for mapping in (whole if first.thumb @ second.thumb > _THUMB else None, _align(first, second)):
        similarity, covered = (0.0, 0.0) if mapping is None else _overlap(first.luma, second.luma, mapping)
        if similarity >= _SAME:
            return ("copy" if covered > 0.93 else "crop"), round(similarity, 3)
    return None


def _align(first: Fingerprint, second: Fingerprint) -> _Mapping | None:
    """The scale and shift that most matched corners agree on, if enough do."""
    if min(len(first.descriptors), len(second.descriptors)) < _INLIERS:
        return None
    alike = first.descriptors.astype(np.float32) @ second.descriptors.T.astype(np.float32)
    partner, best = alike.argmax(1), alike.max(1)
    rows = np.argsort(-best, kind="stable")
    rows = rows[best[rows] > _ALIKE - 0.04]
    a, b, sizes = first.points[rows], second.points[partner[rows]], second.scales[partner[rows]]
    best = slice(_MATCHES)
    mapping = _vote(a[best], b[best], sizes[best], (sizes / first.scales[rows])[best])
    for _ in range(2):  # the few that voted fix the mapping roughly; all that fit it, well
        mapping = mapping and (_fit(a, b, sizes, mapping.scale[None, :1], mapping.shift[None]) or mapping)
    return mapping


def _vote(a: np.ndarray, b: np.ndarray, sizes: np.ndarray, ratio: np.ndarray) -> _Mapping | None:
    """The fit of those matches a -> b that the most agreed-on scale and shift explains.

    Every two matches propose a scale and a shift; `ratio`, that of their pyramid levels, knows the scale
    roughly, which rules most out.
    """
    i, j = np.triu_indices(len(a), 1)
    apart = np.linalg.norm(a[i] - a[j], axis=1)
    scale = np.linalg.norm(b[i] - b[j], axis=1) / np.maximum(apart, 1e-6)
    likely = (apart > 10) & (scale > 0.1) & (np.abs(np.log(np.maximum(scale, 1e-6) / ratio[i])) < 0.35)
    i, scale = i[likely], scale[likely, None]
    if not len(i):
        return None
    return _fit(a, b, sizes, scale, b[i] - scale * a[i])


def _fit(
    a: np.ndarray, b: np.ndarray, sizes: np.ndarray, scale: np.ndarray, shift: np.ndarray
) -> _Mapping | None:
    """Least squares over the matches a -> b that the best of several scales (n, 1) and shifts (n, 2) explains.

    A corner is known to about a pixel of its level, `sizes`. One scale for both axes: crops are often too
    narrow to tell two apart.
    """
    dx, dy = (scale * a[:, axis] + shift[:, axis, None] - b[:, axis] for axis in (0, 1))
    inliers = dx * dx + dy * dy < (1.5 * np.maximum(1.5, sizes)) ** 2
    agreed = inliers[inliers.sum(1).argmax()]
    if agreed.sum() < _INLIERS:
        return None
    a, b = a[agreed], b[agreed]
    weights = 1 / sizes[agreed, None] ** 2
    middle_a, middle_b = ((weights * points).sum(0) / weights.sum() for points in (a, b))
    centred = a - middle_a
    spread = (weights * centred**2).sum()
    if len(np.unique(a.round(), axis=0)) < _INLIERS or spread / weights.sum() < 25:
        return None
    scale = (weights * centred * (b - middle_b)).sum() / spread
    if not 0.1 < scale < 10:
        return None
    return _Mapping(np.full(2, scale), middle_b - scale * middle_a)


def _overlap(first: np.ndarray, second: np.ndarray, mapping: _Mapping) -> tuple[float, float]:
    """Correlation of the pixels that both photos show, and the share of the less covered photo in it."""
    from scipy import ndimage

    sizes = [np.array(luma.shape[::-1], float) for luma in (first, second)]
    low = np.maximum(0, -mapping.shift / mapping.scale)
    high = np.minimum(sizes[0] - 1, (sizes[1] - 1 - mapping.shift) / mapping.scale)
    extent = high - low
    if min(extent.min(), (extent * mapping.scale).min()) < _SMALLEST_OVERLAP:
        return 0.0, 0.0
    # One sample for each pixel of the coarser photo, so that neither is sampled finer than it is.
    spacing = np.maximum(1, 1 / mapping.scale) * 1.5
    x, y = (np.arange(low[axis], high[axis], spacing[axis]) for axis in (0, 1))
    grid = np.meshgrid(y, x, indexing="ij")
    other = [grid[0] * mapping.scale[1] + mapping.shift[1], grid[1] * mapping.scale[0] + mapping.shift[0]]
    softness = [spacing / 2, spacing * mapping.scale / 2]
    samples = [
        ndimage.map_coordinates(ndimage.gaussian_filter(luma / np.float32(255), soft[::-1]), at, order=1)
        for luma, at, soft in zip((first, second), (grid, other), softness)
    ]
    # Without its border, where the filter leaves some of what is smooth.
    detail = [(sample - ndimage.gaussian_filter(sample, 3))[6:-6, 6:-6] for sample in samples]
    plain, fine = (_normalised(np.stack([part.ravel() for part in pair])) for pair in (samples, detail))
    if float(fine[0] @ fine[1]) < _SAME_DETAIL:
        return 0.0, 0.0
    areas = [np.prod(extent + 1) / np.prod(sizes[0]), np.prod(extent * mapping.scale + 1) / np.prod(sizes[1])]
    return float(plain[0] @ plain[1]), float(min(areas))
