"""How certain a difference between two models is: paired differences, intervals over seeds and scenes, verdicts.

A model is a draw of a random seed, and a benchmark is a draw of scenes. A difference between two variants
counts only if it would come again with other seeds and other scenes, so both are resampled. Images that
show the same scene are one draw, not two.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ddsa_lab.errors import LabError, choose
from ddsa_lab.evaluation.bootstrap import interval

if TYPE_CHECKING:
    import pandas as pd

NO_CLAIM = "no claim is supported"
UNDECIDED = "undecided"
BETTER = "better"
WORSE = "worse"
FEWEST_SEEDS = 3

# Numbers of the Rain100L test images that show one scene under different rain: 100 images, 91 scenes.
RAIN100L_TWINS = ((3, 4), (5, 14), (6, 25), (7, 36), (8, 47), (9, 58), (10, 69), (11, 80), (12, 91))


def rain100l_clusters(images: Iterable[str]) -> dict[str, str]:
    """Return the scene of each Rain100L test image, for `compare(clusters=...)`.

    Args:
        images: names that end in the image's number: "003", "003.png", "norain-003.png".

    Raises:
        LabError: a name without such a number, or one outside 1 to 100.
    """
    first_of = {twin: first for first, twin in RAIN100L_TWINS}
    scenes = {}
    for name in images:
        found = re.search(r"(\d+)(?:\.\w+)?$", name)
        if found is None or not 1 <= int(found[1]) <= 100:
            raise LabError(f"image {name!r} is none of Rain100L, whose names end in a number from 1 to 100")
        number = int(found[1])
        scenes[name] = f"scene-{first_of.get(number, number):03d}"
    return scenes


def paired_differences(
    frame: "pd.DataFrame",
    variant: str,
    baseline: str,
    metric: str = "psnr",
    by: str = "model",
    protocol: str | None = None,
) -> "pd.DataFrame":
    """Return variant minus baseline for each seed (rows) and image (columns).

    Rows of one seed are paired with the baseline's rows of the same seed. A side without seeds (no `seed`
    column, or empty in it: the untouched input, a filter) is paired with every seed of the other. Images
    that lack a finite score anywhere are left out, so that all seeds are compared on the same images.

    Args:
        frame: one row a model, image and (if any) seed and protocol, as `evaluate_folder` returns.
        variant, baseline: names in column `by`.
        metric: the column compared.
        by: the column that names the models or variants.
        protocol: which protocol's rows; needed where the frame holds several.

    Raises:
        LabError: an unknown name or column, rows that occur twice, or nothing to pair.
    """
    choose("column", by, frame.columns)
    choose("column", metric, frame.columns)
    choose("column", "image", frame.columns)
    frame = _one_protocol(frame, protocol)
    ours, theirs = (_score_table(frame, by, name, metric) for name in (variant, baseline))
    if _seedless(ours) and not _seedless(theirs):
        ours = _repeated(ours, theirs.index)
    elif _seedless(theirs) and not _seedless(ours):
        theirs = _repeated(theirs, ours.index)
    seeds = ours.index.intersection(theirs.index)
    images = ours.columns.intersection(theirs.columns)
    if seeds.empty or images.empty:
        what = "seed" if seeds.empty else "image"
        raise LabError(f"{variant!r} and {baseline!r} have no {what} in common: score both on the same ones")
    with np.errstate(invalid="ignore"):  # infinite minus infinite: two perfect images
        differences = ours.loc[seeds, images] - theirs.loc[seeds, images]
    finite = np.isfinite(differences.to_numpy()).all(axis=0)
    if not finite.any():
        raise LabError(f"{variant!r} and {baseline!r} have no image with finite {metric} for every seed")
    return differences.loc[:, finite]


def compare(
    frame: "pd.DataFrame",
    baseline: str,
    metric: str = "psnr",
    by: str = "model",
    protocol: str | None = None,
    clusters: Mapping[str, str] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    higher_is_better: bool = True,
) -> "pd.DataFrame":
    """Compare every variant with the baseline: one row each, with interval, effect size and verdict.

    Columns: `by`, seeds, images, scenes, difference (mean of variant minus baseline over images and seeds),
    low and high (`interval`), effect (paired Cohen's d: the mean difference over the standard deviation of
    the images' differences, each averaged over seeds), seed_share, verdict. The verdict is "no claim is
    supported" with fewer than three seeds, "undecided" when the interval holds zero, else "better" or
    "worse". Each interval stands alone: of twenty variants that change nothing, one will look decided.

    Args:
        frame: one row a model, image and (if any) seed and protocol.
        baseline: the model that all others are compared with.
        metric, by, protocol: see `paired_differences`.
        clusters: scene of each image; images it does not name are scenes of their own.
        level, resamples, seed: see `interval`.
        higher_is_better: False for errors and seconds.

    Raises:
        LabError: see `paired_differences` and `interval`; no other variant; clusters for other images.
    """
    import pandas as pd

    choose("column", by, frame.columns)
    names = list(dict.fromkeys(frame[by]))
    choose(by, baseline, names)
    if len(names) < 2:
        raise LabError(f"only {baseline!r} is in column {by!r}: there is nothing to compare it with")
    if clusters is not None and not set(clusters) & set(frame["image"]):
        example = next(iter(clusters), "nothing")
        raise LabError(f"clusters name {example!r} and others, but no image of these scores: use their names")
    rows = []
    for name in names:
        if name == baseline:
            continue
        differences = paired_differences(frame, name, baseline, metric, by, protocol)
        values, weights = _scene_means(differences, clusters or {})
        estimate = interval(values, weights, level, resamples, seed)
        seeds = 0 if _seedless(differences) else len(differences)
        mean, low, high, share = (float(value) for value in estimate)
        rows.append(
            {
                by: name,
                "seeds": seeds,
                "images": differences.shape[1],
                "scenes": values.shape[1],
                "difference": mean,
                "low": low,
                "high": high,
                "effect": _cohens_d(differences.to_numpy()),
                "seed_share": share,
                "verdict": verdict(low, high, seeds, higher_is_better),
            }
        )
    return pd.DataFrame(rows)


def verdict(low: float, high: float, seeds: int, higher_is_better: bool = True) -> str:
    """Say in words what an interval from `low` to `high` supports."""
    if seeds < FEWEST_SEEDS:
        return NO_CLAIM
    if not (low > 0 or high < 0):  # also where there is no interval
        return UNDECIDED
    return BETTER if (low > 0) == higher_is_better else WORSE


def _one_protocol(frame: "pd.DataFrame", protocol: str | None) -> "pd.DataFrame":
    if "protocol" not in frame.columns:
        return frame
    names = list(dict.fromkeys(frame["protocol"]))
    if protocol is None and len(names) > 1:
        raise LabError(f"the scores are under several protocols ({', '.join(names)}): name one of them")
    return frame if protocol is None else frame[frame["protocol"] == choose("protocol", protocol, names)]


def _score_table(frame: "pd.DataFrame", by: str, name: str, metric: str) -> "pd.DataFrame":
    """One model's scores, seeds x images; the index is [-1] where it has no seed."""
    rows = frame[frame[by] == choose(by, name, dict.fromkeys(frame[by]))]
    seeds = rows["seed"] if "seed" in rows.columns else rows["image"].map(lambda _: None)
    rows = rows.assign(seed=seeds.astype(float).fillna(-1).astype(int))
    twice = rows[rows.duplicated(["seed", "image"])]
    if len(twice):
        image = twice["image"].iloc[0]
        raise LabError(f"{name!r} has two scores for image {image!r} and one seed: keep one row of each")
    return rows.pivot(index="seed", columns="image", values=metric)


def _seedless(table: "pd.DataFrame") -> bool:
    return list(table.index) == [-1]


def _repeated(table: "pd.DataFrame", seeds: "pd.Index") -> "pd.DataFrame":
    return table.loc[[-1] * len(seeds)].set_axis(seeds, axis=0)


def _scene_means(differences: "pd.DataFrame", clusters: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Return (seeds, scenes) means over the images of each scene, and how many images each has."""
    # A scene never shares its label with an image that the mapping leaves out.
    labels = [("scene", clusters[name]) if name in clusters else ("image", name) for name in differences]
    order = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    member = np.zeros((len(labels), len(order)))
    member[np.arange(len(labels)), [order[label] for label in labels]] = 1
    counts = member.sum(0)
    return differences.to_numpy() @ member / counts, counts


def _cohens_d(differences: np.ndarray) -> float:
    images = differences.mean(0)
    spread = images.std(ddof=1) if len(images) > 1 else 0.0
    return float(images.mean() / spread) if spread > 0 else float("nan")
