"""`ddsa-lab evaluate`: networks on a benchmark folder, their table, and the published scores beside it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddsa_lab.data.benchmarks import Guess, guess_benchmark
from ddsa_lab.data.decode import opened, shown
from ddsa_lab.data.pairs import PairScan, scan_pairs
from ddsa_lab.errors import LabError, choose
from ddsa_lab.evaluation.benchmark import INPUT, beside_published, crop_size, evaluate_folder, summary
from ddsa_lab.evaluation.metrics import PROTOCOLS
from ddsa_lab.evaluation.published import BENCHMARK_PROTOCOLS
from ddsa_lab.evaluation.strips import save_strips
from ddsa_lab.evaluation.tables import to_latex, to_markdown
from ddsa_lab.files import atomic_write
from ddsa_lab.memory import keep_freed_memory
from ddsa_lab.model.checkpoints import find_weights, load

if TYPE_CHECKING:
    import pandas as pd

# Benchmarks that the tables of published scores call by another name.
_PUBLISHED_AS = {"SPA-Data": "SPA"}


def evaluate_report(
    data: str | Path,
    weights: Sequence[str | Path],
    protocols: Sequence[str] = ("y_uint8", "rgb"),
    crop: str | None = None,
    out: str | Path | None = None,
    strips: int = 3,
    device: str = "cpu",
) -> int:
    """Score networks and the untouched input on a benchmark folder; print and keep the tables.

    Args:
        data: benchmark folder in any layout that `find_pairs` knows.
        weights: networks, each a shipped name or a file.
        protocols: names in PROTOCOLS; the protocol under which the folder's benchmark is published is added.
        crop: None for whole images, or as "480x320" the top-left part.
        out: folder for scores.csv, table.md, table.tex and strips; an interrupted evaluation goes on there.
        strips: how many worst and best images of each network to draw.
        device: where to run.

    Returns:
        0, or 1 when some images could not be scored.

    Raises:
        LabError: as `evaluate_folder` and `load`, before anything is scored where that is possible.
    """
    for protocol in protocols:
        choose("protocol", protocol, PROTOCOLS)
    crop_size(crop)  # refuses what is no size
    if strips < 0:
        raise LabError(f"strips is {strips}: give the number of worst and best images to draw, 0 for none")
    names = model_names(weights)
    scan = scan_pairs(data)
    sizes = _sizes(scan)
    protocols = _with_published(protocols, _guesses(scan, sizes, None))
    models = {name: load(path, device) for name, path in names.items()}
    keep_freed_memory()  # a fifth of the time
    scores = None if out is None else Path(out) / "scores.csv"
    frame = evaluate_folder(models, scan.pairs, protocols, crop, scores, device=device)
    means = summary(frame)
    guesses = _guesses(scan, sizes, _input_psnr(means))
    title, tables = _title(data, scan, guesses, crop), _tables(means, guesses)
    text = "\n".join([title, "", *(f"{caption}\n\n{to_markdown(t, _formats(t))}" for caption, t in tables)])
    print(text)
    if out is not None:
        latex = "\n".join(to_latex(t, _formats(t), caption=f"{title}. {c}") for c, t in tables)
        _write(Path(out) / "table.md", text)
        _write(Path(out) / "table.tex", latex)
        if strips:
            save_strips(frame, models, scan.pairs, Path(out) / "strips", protocols[0], strips, crop)
        print(f"scores.csv, table.md, table.tex{' and strips' if strips else ''}: {shown(out)}")
    return 1 if frame.attrs["failed"] else 0


def model_names(weights: Sequence[str | Path]) -> dict[str, Path]:
    """A short and distinct name for each network, with its file.

    A file's name without its suffix; runs/dual/model.safetensors, as training names it, is "dual". Where that is
    not distinct, folders are put before it.

    Raises:
        LabError: one of them is not there, or is given twice.
    """
    files = [find_weights(name) for name in weights]
    parts = []
    for given, file in zip(weights, files):
        if files.count(file) > 1:
            raise LabError(f"the weights {shown(str(given))} are given twice")
        whole = file.resolve().with_suffix("").parts
        parts.append(whole[:-1] if whole[-1] == "model" and len(whole) > 2 else whole)
    names = {}
    for mine, file in zip(parts, files):
        depth = 1
        while depth < len(mine) and sum(other[-depth:] == mine[-depth:] for other in parts) > 1:
            depth += 1
        name = "/".join(mine[-depth:])
        names[file.name if name == INPUT or name in names else name] = file
    return names


def _sizes(scan: PairScan) -> Counter[tuple[int, int]]:
    """How many rainy photos have each (width, height), from their headers."""
    sizes: Counter[tuple[int, int]] = Counter()
    for pair in scan.pairs:
        try:
            with opened(pair.input) as image:
                width, height = image.size
        except Exception:  # damaged in any way: scoring will name it
            continue
        sizes[width if pair.rainy_half is None else width // 2, height] += 1
    return sizes


def _guesses(scan: PairScan, sizes: Counter, psnr: float | None) -> list[Guess]:
    return guess_benchmark(scan.folder, len(scan.pairs) + len(scan.lonely_inputs), sizes, psnr)


def _published_name(guesses: Sequence[Guess]) -> str | None:
    """The benchmark whose published scores compare with this folder's, if it is one test set."""
    names = {guess.benchmark for guess in guesses if guess.split == "test"}
    if len(names) != 1:
        return None
    (name,) = names
    name = _PUBLISHED_AS.get(name, name)
    return name if name in BENCHMARK_PROTOCOLS else None


def _with_published(protocols: Sequence[str], guesses: Sequence[Guess]) -> list[str]:
    name = _published_name(guesses)
    return list(dict.fromkeys([*protocols, *([BENCHMARK_PROTOCOLS[name]] if name else [])]))


def _input_psnr(means: "pd.DataFrame") -> float | None:
    row = means[(means["model"] == INPUT) & (means["protocol"] == "y_uint8")]
    return float(row["psnr"].iloc[0]) if len(row) else None


def _title(data: str | Path, scan: PairScan, guesses: Sequence[Guess], crop: str | None) -> str:
    looks = " or ".join(f"{guess.benchmark} ({guess.split})" for guess in guesses)
    which = f"Looks like {looks}" if looks else "No benchmark known here"
    expected = {guess.count for guess in guesses}
    count = len(scan.pairs)
    whole = "" if not expected or count in expected else f" of {' or '.join(map(str, sorted(expected)))}"
    part = "whole images" if crop_size(crop) is None else f"the top-left {crop} of each image"
    return f"{shown(data)}: {which}, {count}{whole} pairs, {part}"


def _tables(means: "pd.DataFrame", guesses: Sequence[Guess]) -> list[tuple[str, "pd.DataFrame"]]:
    """(caption, table): our means, and the published scores with ours among them."""
    means = means.copy()
    means.loc[means["model"] == INPUT, "gain"] = float("nan")
    tables = [("Means over images (PSNR in dB; gain: above the untouched input)", means)]
    if name := _published_name(guesses):
        count = next(guess.count for guess in guesses)
        whole = means["images"].eq(count).all()
        warning = "" if whole else f"; those are means over all {count} images of it, ours are not"
        caption = f"Beside scores published on {name}, under {BENCHMARK_PROTOCOLS[name]}{warning}"
        tables.append((caption, beside_published(means[means["images"] > 0], name)))
    return tables


def _formats(table: "pd.DataFrame") -> dict[str, str]:
    return {"gain": "+.2f"} if "gain" in table else {}


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
