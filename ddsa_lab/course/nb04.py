"""Checks of notebook 04: luck among seeds, verdicts, fair comparisons, paired differences."""

from dataclasses import replace
from typing import Any

import numpy as np

from ddsa_lab.course import ExerciseError, NotSolved, ask, exercise, number
from ddsa_lab.evaluation.statistics import verdict
from ddsa_lab.model.network import NetworkConfig
from ddsa_lab.training.config import TrainConfig


@exercise
def check_best_of_five(answer: Any) -> str:
    """P(best of 5 > single one)."""
    share = number(answer, "the share")
    if share > 1:
        raise ExerciseError(f"a share lies between 0 and 1: {share:g} % would be {share / 100:g}")
    if abs(share - 0.5) < 1e-3:
        raise ExerciseError("a half would be right for one run against one: ours has five chances")
    if abs(share - 0.8) < 1e-3:
        raise ExerciseError("this is 4 of 5: how many runs are there in all, and how many are ours?")
    if abs(share - 1 / 6) < 1e-3:
        raise ExerciseError("this is how often the single run wins: the other way round was asked for")
    if abs(share - 5 / 6) > 5e-3:
        raise ExerciseError(
            f"not {share:g}: each of the six runs is the best equally often, and five of them are ours"
        )
    return "5 of 6: each of six equal runs is the best equally often."


@exercise
def check_verdicts(answer: Any) -> str:
    """Three intervals and their verdicts."""
    if not isinstance(answer, tuple | list) or len(answer) != 3:
        raise ExerciseError("give three verdicts, for (a), (b) and (c)")
    if any(value is ... for value in answer):
        raise NotSolved
    cases = {"a": (-0.05, 0.21, 5), "b": (0.10, 0.30, 2), "c": (-0.40, -0.02, 3)}
    why = {
        "a": "the interval holds 0, so that either may be better",
        "b": "two seeds are fewer than three, however far from 0 the interval lies",
        "c": "three seeds suffice, and the whole interval lies below 0",
    }
    for (name, case), given in zip(cases.items(), answer):
        if given != verdict(*case):
            raise ExerciseError(f"({name}) is not {given!r}: {why[name]}")
    return "Zero inside: undecided. Fewer than three seeds: no claim. Otherwise the side of zero decides."


def _configs() -> dict[str, tuple[TrainConfig, TrainConfig, bool]]:
    tiny = {"width": 8, "blocks": (1, 1), "heads": (1, 2)}
    dense = TrainConfig(network=NetworkConfig.preset("tiny", mode="dense", **tiny), steps=100)
    dual = replace(dense, network=NetworkConfig.preset("tiny", mode="dual", **tiny))
    wider = replace(dense, network=NetworkConfig.preset("tiny", mode="dual", **(tiny | {"width": 16})))
    return {
        "dense against dual, all else equal": (dense, dual, True),
        "dual against dense, all else equal": (dual, dense, True),
        "100 steps against 200": (dense, replace(dual, steps=200), False),
        "light rain against heavy rain": (dense, replace(dual, rain="heavy"), False),
        "seed 0 against seed 1": (dense, replace(dual, seed=1), False),
        "the same attention with seed 0 and seed 1": (dense, replace(dense, seed=1), False),
        "8 channels against 16": (dense, wider, False),
        "two equal configurations (no difference in attention to speak of)": (dense, dense, False),
    }


@exercise
def check_referee(answer: Any) -> str:
    """Is a comparison fair?"""
    for what, (one, other, fair) in _configs().items():
        found = ask(answer, one, other)
        if not isinstance(found, bool):
            raise ExerciseError(
                f"answer True or False; for {what} your function returns {type(found).__name__}"
            )
        if found != fair:
            raise ExerciseError(
                f"{what}: your referee says {found}, and it is {'fair' if fair else 'not fair'}"
            )
    return f"{len(_configs())} comparisons judged rightly."


@exercise
def check_by_image(answer: Any) -> str:
    """Mean paired difference of each image."""
    rng = np.random.default_rng(0)
    theirs = rng.normal(30, 2, (3, 6))
    ours = theirs + rng.normal(0.3, 0.1, (3, 6))
    found = ask(answer, ours.copy(), theirs.copy())
    right = (ours - theirs).mean(axis=0)
    try:
        found = np.asarray(found, dtype=float)
    except (TypeError, ValueError):
        raise ExerciseError(f"numbers are needed, one for each image, not {type(found).__name__}") from None
    if found.shape != right.shape:
        hint = ": average over seeds (axis 0), not over images" if found.shape == (3,) else ""
        raise ExerciseError(
            f"one number for each of the 6 images is needed, and yours has shape {found.shape}{hint}"
        )
    if np.allclose(found, -right):
        raise ExerciseError("ours minus theirs was asked for, and this is theirs minus ours")
    if np.allclose(found, ours.max(axis=0) - theirs.max(axis=0)):
        raise ExerciseError("this compares the best seeds: section 5 says what that does")
    if not np.allclose(found, right):
        raise ExerciseError(
            f"for the first image your function gives {found[0]:.3f} and not {right[0]:.3f}: subtract seed by seed, then average over the seeds"
        )
    return "Photos differ by many decibels, differences by few: that is why one pairs."
