"""The public deraining benchmarks: what their folders look like, and which of them a folder is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

_BSDS = frozenset({(481, 321), (321, 481)})
_BSDS_CROPPED = _BSDS | {(480, 320), (320, 480)}  # some copies lost a row and a column


@dataclass(frozen=True)
class Benchmark:
    """One public benchmark. `data/README.md` tells more of each.

    Attributes:
        counts: number of pairs of each split.
        sizes: the only (width, height) in it; empty when they vary.
        other_names: further names that its folders have.
        input_psnr: lowest and highest mean PSNR (y_uint8, dB) that its untouched input can plausibly have.
        published_psnr: the untouched input's mean in the literature (y_uint8, dB), where known.
    """

    counts: Mapping[str, int]
    sizes: frozenset[tuple[int, int]] = frozenset()
    other_names: tuple[str, ...] = ()
    input_psnr: tuple[float, float] = (5.0, 45.0)
    published_psnr: float | None = None


BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        "Rain12": Benchmark({"test": 12}, _BSDS_CROPPED, input_psnr=(24, 36)),
        "Rain100L": Benchmark(
            {"train": 200, "test": 100}, _BSDS_CROPPED, input_psnr=(21, 33), published_psnr=26.90
        ),
        "Rain100H": Benchmark(
            {"train": 1800, "test": 100}, _BSDS_CROPPED, input_psnr=(8, 19), published_psnr=13.56
        ),
        "Rain200L": Benchmark({"train": 1800, "test": 200}, _BSDS_CROPPED, input_psnr=(21, 33)),
        "Rain200H": Benchmark({"train": 1800, "test": 200}, _BSDS_CROPPED, input_psnr=(8, 19)),
        "Rain800": Benchmark(
            {"train": 700, "test": 100, "test, the copy of 98": 98},
            other_names=("test100",),
            input_psnr=(15, 32),
        ),
        "DID": Benchmark(
            {"train": 12000, "test": 1200},
            frozenset({(512, 512)}),
            ("did-data", "did-mdn", "test1200"),
            (15, 32),
        ),
        "DDN": Benchmark(
            {"train": 12600, "test": 1400}, other_names=("ddn-data", "rain1400"), input_psnr=(18, 34)
        ),
        "Test2800": Benchmark({"test": 2800}, input_psnr=(18, 34)),
        "SPA-Data": Benchmark(
            {"train": 28500, "test": 1000}, other_names=("spa", "spanet"), input_psnr=(25, 45)
        ),
        "Rain13K": Benchmark({"train": 13712}),
    }
)


@dataclass(frozen=True)
class Guess:
    """A benchmark and split that a folder looks like, with the number of pairs that it has when complete."""

    benchmark: str
    split: str
    count: int

    @property
    def published_psnr(self) -> float | None:
        """Mean PSNR (y_uint8, dB) of the untouched test input in the literature."""
        return BENCHMARKS[self.benchmark].published_psnr if self.split == "test" else None


def guess_benchmark(
    folder: Path, count: int, sizes: Mapping[tuple[int, int], int], psnr: float | None
) -> list[Guess]:
    """Which benchmark a folder looks like, judged by its name, number of pairs, sizes and input PSNR.

    Args:
        folder: where the pairs are; names in its path are a hint, never enough against the other signs.
        count: pairs, those with a missing partner included.
        sizes: how many pairs have each (width, height).
        psnr: mean PSNR of the untouched input (y_uint8, dB), if known.

    Returns:
        The best guess, several when equally good, or none.
    """
    names = {part.casefold().replace("_", "-") for part in folder.resolve().parts[-4:]}
    scores: dict[Guess, int] = {}
    for name, known in BENCHMARKS.items():
        if _contradicted(known, sizes, psnr):
            continue
        named = not names.isdisjoint({name.casefold(), *known.other_names})
        for split, expected in known.counts.items():
            if named or count == expected:
                score = 4 * named + 3 * (count == expected) + 2 * bool(known.sizes) + (split in names)
                # Of two splits of a benchmark known by name, a test set is what an incomplete folder more often is.
                scores[Guess(name, split, expected)] = score * 2 + (named and split == "test")
    best = max(scores.values(), default=0)
    return [guess for guess, score in scores.items() if score == best]


def _contradicted(known: Benchmark, sizes: Mapping[tuple[int, int], int], psnr: float | None) -> bool:
    total = sum(sizes.values())
    if known.sizes and total and sum(sizes.get(size, 0) for size in known.sizes) < 0.8 * total:
        return True
    # A benchmark of many sizes is not one where every photo has the one size of BSDS.
    if not known.sizes and total > 1 and set(sizes) <= _BSDS:
        return True
    low, high = known.input_psnr
    return psnr is not None and not low <= psnr <= high
