"""Models over a folder of pairs: one row an image, model and protocol, and the tables made of them."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from ddsa_lab.data.decode import shown
from ddsa_lab.data.pairs import find_pairs
from ddsa_lab.errors import LabError, choose
from ddsa_lab.evaluation.fingerprints import model_print, pair_print
from ddsa_lab.evaluation.ledger import Ledger, Row, Settings
from ddsa_lab.evaluation.metrics import PROTOCOLS, score
from ddsa_lab.evaluation.published import BENCHMARK_PROTOCOLS, published
from ddsa_lab.model.restore import derain

if TYPE_CHECKING:
    import pandas as pd

INPUT = "input"  # the untouched rainy image, scored beside the models
WHOLE = "whole"

Model = nn.Module | Callable[[Tensor], Tensor]


class LoadablePair(Protocol):
    """What is scored: `ddsa_lab.data.pairs.Pair`, `MemoryPair`, or anything with these two."""

    @property
    def name(self) -> str: ...

    def load(self) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class MemoryPair:
    """A pair that is no file: rainy and clean, each (3, H, W) in [0, 1]."""

    name: str
    rainy: Tensor
    clean: Tensor

    def load(self) -> tuple[Tensor, Tensor]:
        """Return (rainy, clean)."""
        return self.rainy, self.clean


def evaluate_folder(
    models: Mapping[str, Model],
    pairs: str | Path | Sequence[LoadablePair],
    protocols: Sequence[str] = ("y_uint8", "rgb"),
    crop: str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    device: str | torch.device | None = None,
    tile: int | None = 0,
    overlap: int = 32,
) -> "pd.DataFrame":
    """Score models, and the untouched input, on every pair.

    With `out`, each row is appended to that CSV as soon as it is known. An evaluation that was interrupted,
    even killed, goes on after the last row when it is called again; models, pairs and protocols may be added.

    A pair that cannot be read, or a result that cannot be scored, is reported and left out, and the rest
    goes on: `frame.attrs["failed"]` lists (image, model, reason), model "" standing for the pair itself.

    Args:
        models: by name; networks (used through `derain`, in eval mode), or functions from a rainy image
            (3, H, W) to a restored one.
        pairs: a benchmark folder, or the pairs.
        protocols: names in PROTOCOLS.
        crop: None for whole images; "480x320" for the top-left 480x320 (upright images: 320x480), as much
            published code has it. The crop is what the models see.
        out: CSV file for the rows.
        progress: show a bar, and name on stderr what was left out.
        device: where networks and images are moved; None leaves networks where they are.
        tile, overlap: see `derain`. By default networks see whole images, since a tile size that follows the
            free memory would make scores depend on the machine.

    Returns:
        Columns image, model, protocol, psnr, ssim; pairs, models (input first) and protocols in given order.

    Raises:
        LabError: unknown protocols, a bad crop, names that occur twice, an `out` that is not this
            evaluation's, or nothing that could be scored.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    pairs = find_pairs(pairs) if isinstance(pairs, str | Path) else list(pairs)
    _check(models, pairs, protocols)
    size = crop_size(crop)
    if device is not None:
        models = {n: m.to(device) if isinstance(m, nn.Module) else m for n, m in models.items()}
    restorers = {INPUT: _untouched, **{n: restorer(m, device, tile, overlap) for n, m in models.items()}}
    path = None if out is None else Path(out)
    settings = Settings({}, {}, {}) if out is None else _settings(models, pairs, size, device, tile, overlap)
    failed: list[tuple[str, str, str]] = []
    with Ledger(path, settings) as ledger, evaluating(models.values()):
        for pair in tqdm(pairs, desc="evaluate", unit="image", disable=not progress):
            failed += _score_pair(pair, restorers, protocols, size, ledger, progress)
    wanted = [(pair.name, name, protocol) for pair in pairs for name in restorers for protocol in protocols]
    frame = pd.DataFrame([ledger.rows[key] for key in wanted if key in ledger.rows], columns=Row._fields)
    if frame.empty:
        raise LabError(f"none of {len(pairs)} pairs could be scored; the first: {failed[0][2]}")
    frame.attrs["failed"] = failed
    if failed and progress:
        print(failures(failed), file=sys.stderr)
    return frame


def failures(failed: Sequence[tuple[str, str, str]]) -> str:
    """Return a paragraph that lists what an evaluation left out, from `frame.attrs["failed"]`."""
    images = dict.fromkeys(image for image, _, _ in failed)
    lines = [f"  {shown(image)}{f', {model}' if model else ''}: {reason}" for image, model, reason in failed]
    return "\n".join([f"{len(images)} pairs could not be scored in full:", *lines])


def summary(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return each model's means: one row a model and protocol.

    Means run over the images that every model of that protocol has scored, so that rows can be compared.
    Columns: model, protocol, images, psnr, ssim (over images that have one) and gain, the PSNR above the
    untouched input's, where that was scored.

    Args:
        frame: as `evaluate_folder` returns it.
    """
    import pandas as pd

    rows = []
    for protocol in dict.fromkeys(frame["protocol"]):
        part = frame[frame["protocol"] == protocol]
        everywhere = part.groupby("image")["model"].transform("nunique") == part["model"].nunique()
        means = part[everywhere].groupby("model", sort=False)[["psnr", "ssim"]].mean()
        untouched = means["psnr"].get(INPUT, float("nan"))
        for model in dict.fromkeys(part["model"]):
            psnr, ssim = means.loc[model] if model in means.index else (float("nan"),) * 2
            images = int(everywhere.sum()) // part["model"].nunique()
            rows.append((model, protocol, images, float(psnr), float(ssim), float(psnr - untouched)))
    return pd.DataFrame(rows, columns=["model", "protocol", "images", "psnr", "ssim", "gain"])


def beside_published(means: "pd.DataFrame", benchmark: str) -> "pd.DataFrame":
    """Return our means among the published scores of a benchmark, lowest PSNR first.

    Columns: method, psnr, ssim, source. Only the protocol of the published scores is compared.

    Args:
        means: as `summary` returns them.
        benchmark: a name in BENCHMARK_PROTOCOLS.

    Raises:
        LabError: an unknown benchmark, or means that lack its protocol.
    """
    import pandas as pd

    theirs = [(p.method, p.psnr, p.ssim, p.source) for p in published(benchmark)]
    protocol = BENCHMARK_PROTOCOLS[benchmark]
    ours = means[means["protocol"] == protocol]
    if ours.empty:
        raise LabError(
            f"published scores of {benchmark} are under {protocol}: evaluate under that protocol too"
        )
    rows = [
        (row.model, row.psnr, row.ssim, f"measured here, {protocol}, {row.images} images")
        for row in ours.itertuples()
    ]
    table = pd.DataFrame(theirs + rows, columns=["method", "psnr", "ssim", "source"])
    return table.sort_values("psnr", kind="stable", ignore_index=True)


def crop_pair(rainy: Tensor, clean: Tensor, size: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Return the top-left part of both images: `size` is (long side, short side), None the whole."""
    if size is None:
        return rainy, clean
    long, short = size
    height, width = (long, short) if rainy.shape[1] > rainy.shape[2] else (short, long)
    return rainy[:, :height, :width], clean[:, :height, :width]


def _check(models: Mapping[str, Model], pairs: Sequence[LoadablePair], protocols: Sequence[str]) -> None:
    if INPUT in models:
        raise LabError(f"a model is named {INPUT!r}, the name of the untouched input: choose another")
    for protocol in protocols:
        choose("protocol", protocol, PROTOCOLS)
    for what, names in (("protocol", list(protocols)), ("pair", [pair.name for pair in pairs])):
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice or not names:
            found = f"{what} {twice[0]!r} is given twice" if twice else f"there is no {what} to score"
            raise LabError(f"{found}: give each once")


def crop_size(crop: str | None) -> tuple[int, int] | None:
    """Return (long side, short side) of a crop such as "480x320"; None for whole images.

    Raises:
        LabError: anything else.
    """
    if crop is None or crop == WHOLE:
        return None
    sides = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", crop)
    if sides is None:
        raise LabError(f"crop is {crop!r}: give WIDTHxHEIGHT such as '480x320', or {WHOLE!r}")
    first, second = int(sides[1]), int(sides[2])
    return max(first, second), min(first, second)


def _untouched(image: Tensor) -> Tensor:
    return image


def restorer(
    model: Model, device: str | torch.device | None, tile: int | None, overlap: int
) -> Callable[[Tensor], Tensor]:
    """Return a function from a rainy image to a restored one, on the CPU where a network made it."""
    if not isinstance(model, nn.Module):
        return model
    return lambda image: derain(model, image if device is None else image.to(device), tile, overlap).cpu()


@contextmanager
def evaluating(models: Iterable[Model]) -> Iterator[None]:
    """Networks in eval mode, and as they were afterwards."""
    training = [model for model in models if isinstance(model, nn.Module) and model.training]
    try:
        for model in training:
            model.eval()
        yield
    finally:
        for model in training:
            model.train()


def _score_pair(
    pair: LoadablePair,
    restorers: Mapping[str, Callable[[Tensor], Tensor]],
    protocols: Sequence[str],
    size: tuple[int, int] | None,
    ledger: Ledger,
    progress: bool,
) -> list[tuple[str, str, str]]:
    """Add the rows of one pair that are not there yet; return what failed."""
    from tqdm.auto import tqdm

    missing = {n: [p for p in protocols if (pair.name, n, p) not in ledger.rows] for n in restorers}
    if not any(missing.values()):
        return []
    failed = []
    try:
        rainy, clean = crop_pair(*pair.load(), size)
    except (LabError, OSError) as error:
        failed.append((pair.name, "", str(error)))
        missing = {}
    for name, todo in missing.items():
        try:
            restored = restorers[name](rainy) if todo else rainy
            scores = [score(restored, clean, protocol) for protocol in todo]
        except LabError as error:
            failed.append((pair.name, name, str(error)))
            continue
        ledger.append(Row(pair.name, name, p, s["psnr"], s["ssim"]) for p, s in zip(todo, scores))
    if progress:
        for image, _, reason in failed:
            tqdm.write(f"left out: {shown(image)}: {reason}", file=sys.stderr)
    return failed


def _settings(
    models: Mapping[str, Model],
    pairs: Sequence[LoadablePair],
    size: tuple[int, int] | None,
    device: str | torch.device | None,
    tile: int | None,
    overlap: int,
) -> Settings:
    networks = [model for model in models.values() if isinstance(model, nn.Module)]
    kinds = {next(model.parameters(), torch.empty(0)).device.type for model in networks}
    common = {
        "crop": WHOLE if size is None else f"{size[0]}x{size[1]}",
        "tile": tile,
        "overlap": overlap,
        "device": torch.device(device).type if device is not None else ", ".join(sorted(kinds)) or "cpu",
    }
    prints = {INPUT: "", **{name: model_print(model) for name, model in models.items()}}
    return Settings(common, prints, {shown(pair.name): pair_print(pair) for pair in pairs})
