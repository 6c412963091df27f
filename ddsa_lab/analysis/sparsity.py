"""How sparse attention is: entropy, effective k, kept mass, gain and overlap, as tidy tables of records.

Every measure is a small function of weights or masks; the tables apply them to each layer and head. An
"image" in a table is one element of a batch of one recorded pass, counted through all passes: a tile, where
an image was run in tiles.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ddsa_lab.analysis.probe import LayerRecord, Record, record
from ddsa_lab.errors import LabError, choose

if TYPE_CHECKING:
    from pandas import DataFrame

LEVELS = ("layer", "head", "row")
WEIGHTS = ("dense", "sparse", "fused")
FACTS = ("channels", "keep", "k", "a", "b")  # the same for every query of a layer
MEASURES = ("entropy", "effective_k", "gini", "kept_mass", "gain")


def entropy(p: Tensor) -> Tensor:
    """-sum p log p of each row of p (..., C), in nats: log C for uniform rows, 0 for one-hot ones."""
    return torch.special.entr(p).sum(dim=-1)


def effective_k(p: Tensor) -> Tensor:
    """exp(entropy) of each row of p (..., C): how many equal keys would be as spread out, in [1, C]."""
    return entropy(p).exp()


def gini(p: Tensor) -> Tensor:
    """Gini coefficient of each row of p (..., C): 0 for uniform rows, 1 - 1/C for one-hot ones."""
    ascending, n = p.sort(dim=-1).values, p.shape[-1]
    rank = torch.arange(1, n + 1, dtype=p.dtype, device=p.device)
    return ((2 * rank - n - 1) * ascending).sum(dim=-1) / (n * p.sum(dim=-1))


def jaccard(mask: Tensor, other: Tensor) -> Tensor:
    """|A and B| / |A or B| of the key sets in each row of two masks (..., C): 1 for equal sets, 0 for disjoint."""
    return (mask & other).sum(dim=-1) / (mask | other).sum(dim=-1).clamp_min(1)


def chance_overlap(k: int, channels: int) -> float:
    """Mean Jaccard overlap of two sets of k keys drawn at random from `channels` keys."""
    from scipy.stats import hypergeom

    shared = range(max(0, 2 * k - channels), k + 1)
    return float(sum(hypergeom.pmf(x, channels, k, k) * x / (2 * k - x) for x in shared))


def sparsity_table(rec: Record, level: str = "head", of: str = "dense") -> "DataFrame":
    """Return how sparse every recorded attention matrix is.

    Args:
        rec: from `record`.
        level: "row" (one table row for each query), "head" or "layer" (means over queries, over heads too).
        of: the weights whose spread is measured: "dense", "sparse", or "fused" (scaled to sum 1, without sign).

    Returns:
        Columns layer, stage, depth, image, [head, [row]], channels, keep, k, a, b, temperature, entropy (nats),
        effective_k, gini, kept_mass (m), gain (g = 1 + b / (a m), infinite without a dense branch). With several
        sparse branches keep, k and m are those of the widest and b is the sum.

    Raises:
        LabError: an empty record, an unknown level or kind of weights.
    """
    import pandas as pd

    choose("level", level, LEVELS)
    choose("kind of weights", of, WEIGHTS)
    keys = ["layer", "stage", "depth", "image", "head", "row"][: 4 + LEVELS.index(level)]
    tables = []
    for entry, first in _numbered(rec):
        table = pd.DataFrame(_columns(entry, first, of))
        if level != "row":
            table = table.groupby([*keys, *FACTS], sort=False, as_index=False, dropna=False).mean()
        tables.append(table[[*keys, *FACTS, "temperature", *MEASURES]])
    return pd.concat(tables, ignore_index=True)


def _numbered(rec: Record) -> Iterable[tuple[LayerRecord, int]]:
    """All entries, each with the number of its first image."""
    first: dict[str, int] = {}
    for entry in rec.entries():
        yield entry, first.get(entry.name, 0)
        first[entry.name] = first.get(entry.name, 0) + len(entry.logits)


def _columns(entry: LayerRecord, first: int, of: str) -> dict[str, Any]:
    """One table row for each query of each head of each image of a pass."""
    images, heads, channels, _ = entry.logits.shape
    weights = getattr(entry, of).double().abs()
    weights = weights / weights.sum(dim=-1, keepdim=True)
    image, head, row = torch.meshgrid(*map(torch.arange, (images, heads, channels)), indexing="ij")
    measures = {
        "temperature": entry.temperature.view(-1, 1).expand(images, heads, channels),
        "entropy": entropy(weights), "effective_k": effective_k(weights), "gini": gini(weights),
        "kept_mass": entry.mass, "gain": entry.gain,
    }  # fmt: skip
    columns = {name: value.flatten().double().cpu().numpy() for name, value in measures.items()}
    numbers = {"image": image + first, "head": head, "row": row}
    columns |= {name: value.flatten().numpy() for name, value in numbers.items()}
    facts = {"layer": entry.name, "stage": entry.stage, "depth": entry.depth, "channels": channels}
    facts |= {"keep": entry.keep, "k": _kept(entry), "a": entry.a or 0.0, "b": entry.b}
    return facts | columns


def _kept(entry: LayerRecord) -> int:
    return int(entry.mask[0, 0, 0].sum())


def overlap_table(rec: Record, between: str = "images", other: Record | None = None) -> "DataFrame":
    """Return how far the kept key sets agree, as Jaccard overlap averaged over queries.

    Args:
        rec: from `record`.
        between: "images" (each pair of images; shows whether the choice depends on the image at all), "heads"
            (each pair of heads of a layer; key j is the j-th channel of either head), or "records".
        other: for "records": the same layers and images at another time, such as another training step.

    Returns:
        Columns layer, stage, depth, then head, image, other (between images), image, head, other (between heads)
        or head, image (between records); overlap, and chance: what random sets of that size would give.

    Raises:
        LabError: nothing to compare, or records that don't match.
    """
    import pandas as pd

    choose("comparison", between, ("images", "heads", "records"))
    if (between == "records") != (other is not None):
        raise LabError("give `other`, a second record, together with between='records' and only then")
    masks = _masks(rec)
    if between == "records":
        rows = _between_records(masks, _masks(other))
    else:
        rows = _between_pairs(masks, dimension=0 if between == "images" else 1)
    if not rows:
        raise LabError(
            f"there is nothing to compare between {between}: the record holds only one in each layer"
        )
    facts = {
        entry.name: {"layer": entry.name, "stage": entry.stage, "depth": entry.depth}
        for entry in rec.entries()
    }
    chances = {name: chance_overlap(int(mask[0, 0, 0].sum()), mask.shape[-1]) for name, mask in masks.items()}
    return pd.DataFrame([facts[name] | row | {"chance": chances[name]} for name, row in rows])


def _masks(rec: Record) -> dict[str, Tensor]:
    """Layer name -> masks of all images of all passes, (images, heads, C, C)."""
    found: dict[str, list[Tensor]] = {}
    for entry in rec.entries():
        found.setdefault(entry.name, []).append(entry.mask.cpu())
    return {name: torch.cat(masks) for name, masks in found.items()}


def _between_pairs(masks: dict[str, Tensor], dimension: int) -> list[tuple[str, dict[str, Any]]]:
    what, along = ("image", "head") if dimension == 0 else ("head", "image")
    rows = []
    for name, mask in masks.items():
        for i, j in combinations(range(mask.shape[dimension]), 2):
            overlaps = jaccard(mask.select(dimension, i), mask.select(dimension, j)).mean(dim=-1)
            rows += [
                (name, {along: n, what: i, "other": j, "overlap": value})
                for n, value in enumerate(overlaps.tolist())
            ]
    return rows


def _between_records(masks: dict[str, Tensor], others: dict[str, Tensor]) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    for name, mask in masks.items():
        if name not in others or others[name].shape != mask.shape:
            found = tuple(others[name].shape) if name in others else "absent"
            raise LabError(
                f"the records don't match: {name} has masks {tuple(mask.shape)} in one, {found} in the other"
            )
        for image, heads in enumerate(jaccard(mask, others[name]).mean(dim=-1).tolist()):
            rows += [
                (name, {"head": head, "image": image, "overlap": value}) for head, value in enumerate(heads)
            ]
    return rows


def dead_keys(rec: Record) -> "DataFrame":
    """Return how often each key is kept, over all queries and recorded images.

    Returns:
        One row for each layer, head and key: kept (share of queries and images that keep it), always and never (share
        of queries that keep it for every image, for no image), dead (kept by no query of any image).

    Raises:
        LabError: an empty record.
    """
    import pandas as pd

    facts = {entry.name: (entry.stage, entry.depth) for entry in rec.entries()}
    tables = []
    for name, mask in _masks(rec).items():
        heads, channels = mask.shape[1:3]
        share = mask.double().mean(dim=0)  # (heads, queries, keys), over images
        head, key = torch.meshgrid(torch.arange(heads), torch.arange(channels), indexing="ij")
        columns = {
            "head": head, "key": key, "kept": share.mean(dim=1), "always": (share == 1).double().mean(dim=1),
            "never": (share == 0).double().mean(dim=1), "dead": (share == 0).all(dim=1),
        }  # fmt: skip
        columns = {column: value.flatten().numpy() for column, value in columns.items()}
        stage, depth = facts[name]
        tables.append(pd.DataFrame({"layer": name, "stage": stage, "depth": depth} | columns))
    return pd.concat(tables, ignore_index=True)


def recorder(pairs: Sequence[Any]) -> Callable[[nn.Module, int], list[dict[str, Any]]]:
    """Return a function for `fit(..., record=...)` that measures sparsity while a network trains.

    Its rows, one for each layer and head, hold the columns of `sparsity_table` averaged over the pairs, and
    overlap_images (between the pairs' kept sets; None for one pair), overlap_before (with the kept sets at
    the call before; None at first), chance, and dead (keys that no query of any pair keeps). The loop adds the step.

    Args:
        pairs: what to run the network on: objects with .rainy, (name, such an object), or images (3, H, W).
    """
    images = [_rainy(pair) for pair in pairs]
    if not images:
        raise LabError("recorder needs at least one pair to run the network on")
    before: Record | None = None

    def rows(model: nn.Module, step: int) -> list[dict[str, Any]]:
        nonlocal before
        with torch.no_grad(), record(model) as rec:
            for image in images:
                model(image[None].to(next(model.parameters()).device))
        found = _training_rows(rec, before)
        before = rec
        return found

    return rows


def _rainy(pair: Any) -> Tensor:
    # A RainyPair is a tuple too, so the attribute decides.
    pair = pair if isinstance(pair, Tensor) or hasattr(pair, "rainy") else pair[1]
    return getattr(pair, "rainy", pair)


def _training_rows(rec: Record, before: Record | None) -> list[dict[str, Any]]:
    keys = ["layer", "head"]
    table = sparsity_table(rec).drop(columns="image")
    table = table.groupby(["layer", "stage", "depth", "head", *FACTS], sort=False, as_index=False).mean()
    masks = _masks(rec)
    several = len(next(iter(masks.values()))) > 1
    images = overlap_table(rec).groupby(keys).overlap.mean() if several else {}
    earlier = overlap_table(rec, "records", before).groupby(keys).overlap.mean() if before is not None else {}
    dead = dead_keys(rec).groupby(keys).dead.sum()
    rows = table.to_dict("records")
    for row in rows:
        place = (row["layer"], row["head"])
        row["overlap_images"], row["overlap_before"] = images.get(place), earlier.get(place)
        row["chance"] = chance_overlap(row["k"], row["channels"])
        row["dead"] = int(dead[place])
    return rows
