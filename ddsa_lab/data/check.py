"""The check of a benchmark folder: what it is, whether it is whole, and whether training photos leaked into it."""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ddsa_lab.data.benchmarks import Guess, guess_benchmark
from ddsa_lab.data.images import list_images, load_image, shown
from ddsa_lab.data.leaks import Fingerprint, find_scenes, fingerprint, group_scenes
from ddsa_lab.data.pairs import Pair, PairScan, SizeMismatch, scan_pairs
from ddsa_lab.errors import LabError

PROTOCOLS = ("y_uint8", "rgb")
_SHOWN = 10  # entries of a list that the text shows
Psnr = Callable[[Tensor, Tensor, str], float]


@dataclass(frozen=True)
class Leak:
    """A training photo that shows a scene of the checked folder.

    Attributes:
        scene: name of the pair whose clean photo it shows.
        photo: the training photo.
        kind: "exact" (same pixels), "copy" (recompressed or rescaled) or "crop" (a part of one or the other).
        similarity: correlation of what both show, up to 1.
    """

    scene: str
    photo: Path
    kind: str
    similarity: float


@dataclass
class CheckReport:
    """What was found in a benchmark folder.

    Attributes:
        folder, layout: where the pairs are, and in which layout.
        pairs: number of pairs found.
        guesses: the benchmarks that it looks like: one, several that cannot be told apart, or none.
        sizes: how many readable pairs have each (width, height).
        psnr: mean PSNR of the untouched input by protocol, dB; empty when no score was asked for.
        lonely_inputs, lonely_targets: photos whose partner is missing.
        unreadable, mismatched: a sentence for each pair that cannot be read, or has two sizes.
        identical: pairs whose input is the clean photo itself.
        scenes: names of the pairs that show each distinct scene.
        against, against_count: the training folder compared with, and its number of photos.
        against_unreadable: a sentence for each of its photos that cannot be read.
        leaks: training photos that show a scene of this folder.
    """

    folder: Path
    layout: str
    pairs: int
    guesses: list[Guess] = field(default_factory=list)
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    psnr: dict[str, float] = field(default_factory=dict)
    lonely_inputs: list[Path] = field(default_factory=list)
    lonely_targets: list[Path] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    identical: list[str] = field(default_factory=list)
    scenes: list[list[str]] = field(default_factory=list)
    against: Path | None = None
    against_count: int = 0
    against_unreadable: list[str] = field(default_factory=list)
    leaks: list[Leak] = field(default_factory=list)

    @property
    def benchmark(self) -> str | None:
        """Name of the one benchmark that it looks like, or None."""
        names = {guess.benchmark for guess in self.guesses}
        return names.pop() if len(names) == 1 else None

    @property
    def complete(self) -> bool:
        """Whether it has the number of pairs that its benchmark has, all of them sound."""
        return not self.problems and any(guess.count == self.pairs for guess in self.guesses)

    @property
    def problems(self) -> int:
        """Number of photos and pairs that something is wrong with; scenes that occur twice are none."""
        lists = (self.lonely_inputs, self.lonely_targets, self.unreadable, self.mismatched, self.identical)
        return sum(len(entries) for entries in lists)

    @property
    def ok(self) -> bool:
        """No problem, no leak, and no pair fewer than the benchmark has."""
        return not self.problems and not self.leaks and (self.complete or not self.guesses)

    def text(self) -> str:
        """The report for people, several lines."""
        lines = [shown(self.folder)]
        for title, entries in _sections(self):
            lines += [f"  {title if i == 0 else '':<16} {entry}" for i, entry in enumerate(entries)]
        return "\n".join(lines)


def check_folder(
    folder: str | Path, against: str | Path | None = None, score: Psnr | None = None, progress: bool = True
) -> CheckReport:
    """Check a folder of rainy/clean pairs, and with `against` for scenes that a training folder has too.

    Args:
        folder: pairs in any layout that `find_pairs` knows.
        against: training folder: pairs (their clean photos count) or clean photos, nested folders included.
        score: PSNR in dB of (rainy, clean, protocol): `ddsa_lab.evaluation.metrics.psnr`; None leaves
            the input's own PSNR out.
        progress: show progress bars with the time left.

    Raises:
        LabError: no pairs in `folder`, or no photos in `against`.
    """
    photos = None if against is None else _training_photos(Path(against))
    scan = scan_pairs(folder)
    report = CheckReport(
        scan.folder, scan.layout, len(scan.pairs),
        lonely_inputs=scan.lonely_inputs, lonely_targets=scan.lonely_targets,
    )  # fmt: skip
    names, prints = _read_pairs(scan, report, score, progress)
    total = len(scan.pairs) + len(scan.lonely_inputs)
    report.guesses = guess_benchmark(
        Path(folder) / scan.folder, total, report.sizes, report.psnr.get(PROTOCOLS[0])
    )
    groups = group_scenes(len(prints), find_scenes(prints))
    report.scenes = [[name for i in group for name in names[i]] for group in groups]
    if photos is not None:
        report.against, report.against_count = Path(against), len(photos)
        _find_leaks(photos, names, prints, report, progress)
    return report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `ddsa-lab data check` takes."""
    parser.add_argument("folder", type=Path, help="benchmark folder, in any of the usual layouts")
    parser.add_argument(
        "--against", type=Path, metavar="FOLDER", help="training photos or pairs: name scenes that both have"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace, score: Psnr | None = None) -> int:
    """Print the report; return 0 if all is well and 1 if something is missing, damaged or leaking."""
    report = check_folder(args.folder, args.against, score, progress=not args.quiet)
    print(report.text())
    return 0 if report.ok else 1


# Measuring ------------------------------------------------------------------------------------------------


def _bar(items: Sequence, title: str, progress: bool) -> Iterable:
    from tqdm import tqdm

    return tqdm(items, desc=title, unit="image", disable=not progress, leave=False)


def _read_pairs(
    scan: PairScan, report: CheckReport, score: Psnr | None, progress: bool
) -> tuple[list[list[str]], list[Fingerprint]]:
    """Load every pair once; fill the report. Returns the clean photos: pair names of each, fingerprints."""
    sizes: Counter[tuple[int, int]] = Counter()
    scores: dict[str, list[float]] = {protocol: [] for protocol in PROTOCOLS if score is not None}
    names: dict[Path, list[str]] = {}
    prints: list[Fingerprint] = []
    for pair in _bar(scan.pairs, "pairs", progress):
        try:
            rainy, clean = pair.load()
        except SizeMismatch as error:
            report.mismatched.append(str(error))
            continue
        except LabError as error:
            report.unreadable.append(str(error))
            continue
        sizes[clean.shape[2], clean.shape[1]] += 1
        if torch.equal(rainy, clean):
            report.identical.append(pair.name)
        else:
            for protocol, values in scores.items():
                values.append(score(rainy, clean, protocol))
        if pair.target not in names:
            prints.append(fingerprint(clean))
        names.setdefault(pair.target, []).append(pair.name)
    report.sizes = dict(sizes.most_common())
    report.psnr = {protocol: sum(values) / len(values) for protocol, values in scores.items() if values}
    return list(names.values()), prints


def _training_photos(folder: Path) -> list[Path] | list[Pair]:
    try:
        return scan_pairs(folder).pairs
    except LabError:
        photos = list_images(folder, recursive=True)
    if not photos:
        raise LabError(f"no photos in {shown(folder)} to compare with")
    return photos


def _find_leaks(
    photos: Sequence[Path | Pair],
    names: list[list[str]],
    prints: list[Fingerprint],
    report: CheckReport,
    progress: bool,
) -> None:
    seen: list[Path] = []

    def training_prints() -> Iterator[Fingerprint]:
        unique = {photo.target if isinstance(photo, Pair) else photo: photo for photo in photos}
        report.against_count = len(unique)
        for path, photo in _bar(list(unique.items()), "training photos", progress):
            try:
                image = photo.load_clean() if isinstance(photo, Pair) else load_image(photo)
            except LabError as error:
                report.against_unreadable.append(str(error))
                continue
            seen.append(path)
            yield fingerprint(image)

    for match in find_scenes(training_prints(), prints):
        name = names[match.second][0]
        report.leaks.append(Leak(name, seen[match.first], match.kind, match.similarity))


# The text -------------------------------------------------------------------------------------------------


def _sections(report: CheckReport) -> Iterator[tuple[str, list[str]]]:
    yield "looks like", [_looks_like(report.guesses)]
    yield "layout", [report.layout]
    yield "pairs", [_completeness(report)]
    yield (
        "sizes",
        [", ".join(f"{w}x{h} ({n})" for (w, h), n in list(report.sizes.items())[:6]) or "none readable"],
    )
    if report.psnr:
        yield "untouched input", [_input_scores(report)]
    yield "scenes", _scene_lines(report)
    for title, entries in (
        ("no clean photo", [shown(path.name) for path in report.lonely_inputs]),
        ("no rainy photo", [shown(path.name) for path in report.lonely_targets]),
        ("unreadable", report.unreadable),
        ("other size", report.mismatched),
        ("identical", report.identical),
    ):
        if entries:
            yield title, _some(entries)
    if report.against is not None:
        yield "leaks", _leak_lines(report)


def _some(entries: list[str]) -> list[str]:
    more = len(entries) - _SHOWN
    return entries[:_SHOWN] + ([f"and {more} more"] if more > 0 else [])


def _looks_like(guesses: list[Guess]) -> str:
    return " or ".join(f"{guess.benchmark} ({guess.split})" for guess in guesses) or "no benchmark known here"


def _completeness(report: CheckReport) -> str:
    if not report.guesses:
        return f"{report.pairs}"
    expected = " or ".join(str(count) for count in sorted({guess.count for guess in report.guesses}))
    if report.complete:
        return f"{report.pairs}, complete"
    return f"{report.pairs} of {expected}, {report.problems} with a problem: not complete"


def _input_scores(report: CheckReport) -> str:
    published = {guess.published_psnr for guess in report.guesses} - {None}
    parts = []
    for protocol, value in report.psnr.items():
        beside = (
            f"; published {published.pop():.2f}" if protocol == PROTOCOLS[0] and len(published) == 1 else ""
        )
        parts.append(f"{value:.2f} dB ({protocol}{beside})")
    return ", ".join(parts)


def _scene_lines(report: CheckReport) -> list[str]:
    repeated = [group for group in report.scenes if len(group) > 1]
    if not repeated:
        return [f"{len(report.scenes)} distinct, each once"]
    groups = [
        " = ".join(group[:4]) + (f" = ... ({len(group)})" if len(group) > 4 else "") for group in repeated
    ]
    return [
        f"{len(report.scenes)} distinct; {len(repeated)} occur more than once: treat each as one cluster",
        *_some(groups),
    ]


def _leak_lines(report: CheckReport) -> list[str]:
    where = f"the {report.against_count} photos of {shown(report.against)}"
    lines = [f"{shown(sentence)}" for sentence in report.against_unreadable]
    if not report.leaks:
        return [f"none: no scene in common with {where}", *_some(lines)]
    scenes = len({leak.scene for leak in report.leaks})
    kinds = {"exact": "the same pixels", "copy": "recompressed or rescaled", "crop": "cropped"}
    named = [f"{leak.scene}: {shown(leak.photo.name)} ({kinds[leak.kind]})" for leak in report.leaks]
    return [f"{scenes} scenes are also among {where}", *named, *_some(lines)]
