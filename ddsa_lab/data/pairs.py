"""Benchmark folders: rainy and clean photos found and paired, whichever layout they come in."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from ddsa_lab.data.images import IMAGE_SUFFIXES, list_images, load_image, natural_key, shown
from ddsa_lab.errors import LabError

INPUT_FOLDERS = ("input", "rain", "rainy", "rainy_image", "rainy_images", "rain_image", "data", "lq")
TARGET_FOLDERS = ("target", "norain", "no_rain", "ground_truth", "groundtruth", "clean", "gt", "hq")
LAYOUTS = (
    "input/target, rain/norain, rainy_image/ground_truth, rainy/clean or data/gt folders; "
    "rain-001/norain-001 or 001_rain/001_clean names in one folder; files with both halves side by side; "
    "or a .txt list with two columns of paths"
)
_ROLE = r"(norain|no_rain|ground_truth|clean|target|gt|rainy|rain|input|in)"
_TARGET_ROLES = {"norain", "no_rain", "ground_truth", "clean", "target", "gt"}
_HALVES_SAMPLED = 9


class SizeMismatch(LabError):
    """The two photos of a pair have different sizes."""


@dataclass(frozen=True)
class Pair:
    """A rainy photo and its clean counterpart.

    Attributes:
        name: short and unique in its folder.
        input: file of the rainy photo.
        target: file of the clean photo; the same file when it holds both halves side by side.
        rainy_half: which half is rainy, for a file that holds both; None for two files.
    """

    name: str
    input: Path
    target: Path
    rainy_half: Literal["left", "right"] | None = None

    def load(self) -> tuple[Tensor, Tensor]:
        """The rainy and the clean photo, each (3, H, W) float32 RGB in [0, 1].

        Raises:
            LabError: a file cannot be read; SizeMismatch, a kind of it: the two have different sizes.
        """
        rainy = load_image(self.input)
        if self.rainy_half is not None:
            left, right = _halves(rainy, self.input)
            return (left, right) if self.rainy_half == "left" else (right, left)
        clean = load_image(self.target)
        if rainy.shape != clean.shape:
            raise SizeMismatch(
                f"{shown(self.input)} has {_size(rainy)} pixels and its clean photo {shown(self.target)} "
                f"{_size(clean)}: the two of a pair must have one size"
            )
        return rainy, clean

    def load_clean(self) -> Tensor:
        """Only the clean photo, (3, H, W) float32 RGB in [0, 1]."""
        return load_image(self.target) if self.rainy_half is None else self.load()[1]


@dataclass(frozen=True)
class PairScan:
    """What was found in a folder.

    Attributes:
        folder: where the pairs are: the folder given, or the one nested folder that holds them.
        layout: the layout recognised, in a few words.
        pairs: in natural order of their names.
        lonely_inputs: rainy photos without a clean one.
        lonely_targets: clean photos without a rainy one.
    """

    folder: Path
    layout: str
    pairs: list[Pair]
    lonely_inputs: list[Path] = field(default_factory=list)
    lonely_targets: list[Path] = field(default_factory=list)


def find_pairs(folder: str | Path) -> list[Pair]:
    """The rainy/clean pairs of a benchmark folder in any layout of `LAYOUTS`.

    A folder that holds one nested folder with pairs (`test`, say) stands for that folder. Photos without a
    partner are left out here; `scan_pairs` lists them.

    Raises:
        LabError: no pairs, several nested folders with pairs, or a list that names files outside the folder.
    """
    return scan_pairs(folder).pairs


def scan_pairs(folder: str | Path) -> PairScan:
    """Pairs of a folder and the photos that lack a partner. Arguments and errors as for `find_pairs`."""
    folder = Path(folder)
    if not folder.is_dir():
        list_images(folder)  # says whether it is missing or a file
    scan = _scan_here(folder)
    if scan is not None and scan.pairs:
        return scan
    nested = [_scan_here(path) for path in _subfolders(folder)]
    nested = [inner for inner in nested if inner is not None and inner.pairs]
    if len(nested) == 1:
        return nested[0]
    if nested:
        names = ", ".join(shown(inner.folder) for inner in nested[:8]) + (", ..." if len(nested) > 8 else "")
        raise LabError(f"{shown(folder)} holds several folders with pairs: give one of {names}")
    if scan is not None:
        raise LabError(
            f"no pairs in {shown(folder)}: it has the layout {scan.layout}, with {len(scan.lonely_inputs)} rainy and "
            f"{len(scan.lonely_targets)} clean photos, and none of their names belong together"
        )
    raise LabError(f"no pairs of rainy and clean photos in {shown(folder)}; layouts known: {LAYOUTS}")


def _scan_here(folder: Path) -> PairScan | None:
    """Try the layouts in turn; the most explicit ones first."""
    return _two_folders(folder) or _text_list(folder) or _by_role(folder) or _side_by_side(folder)


# The layouts --------------------------------------------------------------------------------------------


def _two_folders(folder: Path) -> PairScan | None:
    present = {path.name.casefold(): path for path in _subfolders(folder)}
    inputs = next((present[name] for name in INPUT_FOLDERS if name in present), None)
    targets = next((present[name] for name in TARGET_FOLDERS if name in present), None)
    if inputs is None or targets is None:
        return None
    return _match(folder, f"{inputs.name}/{targets.name}", _all_images(inputs), _all_images(targets))


def _text_list(folder: Path) -> PairScan | None:
    lists = [path for path in sorted(folder.glob("*.txt"), key=natural_key) if path.is_file()]
    rows = {path: _read_list(path) for path in lists}
    rows = {path: pairs for path, pairs in rows.items() if pairs}
    if not rows:
        return None
    if len(rows) > 1:
        names = ", ".join(shown(path.name) for path in rows)
        raise LabError(f"{shown(folder)} holds several lists of pairs ({names}): keep one of them there")
    ((path, columns),) = rows.items()
    found = [(_inside(folder, rainy, path), _inside(folder, clean, path)) for rainy, clean in columns]
    return PairScan(folder, f"list {path.name}", _named(found))


def _by_role(folder: Path) -> PairScan | None:
    images = list_images(folder)
    roles = [_role(path.stem) for path in images]
    inputs = [path for path, role in zip(images, roles) if role and role not in _TARGET_ROLES]
    targets = [path for path, role in zip(images, roles) if role in _TARGET_ROLES]
    if not inputs or not targets or len(inputs) + len(targets) < len(images):
        return None
    return _match(folder, "names in one folder", inputs, targets)


def _side_by_side(folder: Path) -> PairScan | None:
    images = list_images(folder)
    step = max(1, len(images) // _HALVES_SAMPLED)
    sampled = []
    for path in images[::step]:
        try:
            sampled.append(_compare_halves(load_image(path)))
        except LabError:
            continue  # a damaged file says nothing about the layout; `load` and the check name it
    if not sampled or np.median([alike for alike, _ in sampled]) < 0.7:
        return None
    rainy_half = "left" if np.median([tilt for _, tilt in sampled]) > 0 else "right"
    pairs = [Pair(name, path, path, rainy_half) for name, path in zip(_names(images), images)]
    return PairScan(folder, f"side by side, the {rainy_half} half rainy", pairs)


# Matching names -----------------------------------------------------------------------------------------


def _match(folder: Path, layout: str, inputs: list[Path], targets: list[Path]) -> PairScan:
    exact = {path.stem: path for path in targets}
    plain: dict[str, Path] = {}
    for path in targets:
        plain.setdefault(_plain(path.stem), path)
    found, lonely = [], []
    for path in inputs:
        key = _plain(path.stem)
        # 901_1 ... 901_14 are one clean photo, 901, under different rain.
        target = exact.get(path.stem) or plain.get(key) or plain.get(re.sub(r"_[0-9]+$", "", key))
        if target is None:
            lonely.append(path)
        else:
            found.append((path, target))
    used = {target for _, target in found}
    return PairScan(folder, layout, _named(found), lonely, [path for path in targets if path not in used])


def _plain(stem: str) -> str:
    """A name without what tells rainy from clean: rain-001 and norain-001x2 are both 1."""
    key = stem.casefold()
    key = re.sub(rf"^{_ROLE}[-_]?(?=[0-9])", "", key)
    key = re.sub(rf"(?<=[0-9])x[0-9]$|[-_]{_ROLE}$|(?<=[0-9]){_ROLE}$", "", key)
    return re.sub(r"0*([0-9]+)", r"\1", key)


def _role(stem: str) -> str | None:
    found = re.match(rf"{_ROLE}[-_]?[0-9]", stem.casefold()) or re.search(
        rf"[-_0-9]{_ROLE}$", stem.casefold()
    )
    return found.group(1) if found else None


def _names(paths: Iterable[Path]) -> list[str]:
    paths = list(paths)
    common = Counter(path.stem for path in paths)
    return [path.stem if common[path.stem] == 1 else f"{path.parent.name}/{path.name}" for path in paths]


def _named(found: list[tuple[Path, Path]]) -> list[Pair]:
    names = _names(rainy for rainy, _ in found)
    pairs = [Pair(name, rainy, clean) for name, (rainy, clean) in zip(names, found)]
    return sorted(pairs, key=lambda pair: natural_key(pair.name))


# Files ----------------------------------------------------------------------------------------------------


def _subfolders(folder: Path) -> list[Path]:
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise LabError(f"{shown(folder)} cannot be read: {error.strerror}") from error
    return sorted((p for p in entries if p.is_dir() and not p.name.startswith(".")), key=natural_key)


def _all_images(folder: Path) -> list[Path]:
    return list_images(folder) or list_images(folder, recursive=True)


def _read_list(path: Path) -> list[tuple[str, str]]:
    """Rows of a list of pairs; nothing when the file is another kind of text."""
    if path.stat().st_size > 64e6:
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [re.split(r"\t|,|\s+(?=\S+$)", line.strip()) for line in lines if line.strip()]
    good = all(
        len(row) == 2 and all(Path(p.strip()).suffix.lower() in IMAGE_SUFFIXES for p in row) for row in rows
    )
    return [(rainy.strip(), clean.strip()) for rainy, clean in rows] if good else []


def _inside(folder: Path, name: str, source: Path) -> Path:
    """The file that a list names. A leading slash means the folder, as in SPA-Data's lists."""
    relative = os.path.normpath(name.replace("\\", "/").lstrip("/"))
    if relative.startswith("..") or os.path.isabs(relative) or ":" in relative.split("/")[0]:
        raise LabError(f"{shown(source)} names {shown(name)}, which lies outside of its folder: not read")
    path = folder / relative
    # SPA-Data's lists begin with the name of the folder that they stand in.
    inner = folder.joinpath(*Path(relative).parts[1:])
    return inner if not path.exists() and inner.is_file() else path


def _size(image: Tensor) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"


def _halves(image: Tensor, path: Path) -> tuple[Tensor, Tensor]:
    width = image.shape[2]
    if width % 2:
        raise SizeMismatch(f"{shown(path)} should hold two halves side by side, and its width {width} is odd")
    return image[..., : width // 2].contiguous(), image[..., width // 2 :].contiguous()


def _compare_halves(image: Tensor) -> tuple[float, float]:
    """How alike the halves are (-1 to 1), and whether the left (> 0) or the right (< 0) is the rainy one.

    Rain is sparse and bright: the third moment of the difference has the sign of the rainy side, and a veil
    over the whole photo, which has no sparse part, does not decide it.
    """
    height, width = image.shape[1], image.shape[2] // 2
    if image.shape[2] % 2 or min(height, width) < 8:
        return -1.0, 0.0
    luma = image.mean(0).numpy()
    left, right = luma[:, :width], luma[:, width:]
    rows, columns = height // 8 * 8, width // 8 * 8
    small = [
        half[:rows, :columns].reshape(rows // 8, 8, -1, 8).mean((1, 3)).ravel() for half in (left, right)
    ]
    if min(part.std() for part in small) < 1e-4:
        return -1.0, 0.0
    difference = left - right
    alike = float(np.corrcoef(*small)[0, 1])
    return alike, float(((difference - np.median(difference)) ** 3).mean())
