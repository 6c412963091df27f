"""Checks of notebook 09: how long a study takes, a split by scenes, and a paired mean."""

from typing import Any

from ddsa_lab.course import ExerciseError, ask, exercise, number

SCENES = {"a1": "park", "a2": "park", "b1": "bridge", "c1": "street", "c2": "street", "d1": "roof"}


@exercise
def check_minutes(answer: Any) -> str:
    """15 runs of 20 minutes on 4 GPUs."""
    found = number(answer, "the time")
    if found == 75:
        raise ExerciseError(
            "15 runs do not divide evenly among 4 GPUs, and a run is not cut in pieces: round up"
        )
    if found == 300:
        raise ExerciseError("this is one GPU's time for all 15 runs")
    if found in (60, 100):
        raise ExerciseError("each variant is trained from each seed: that makes 3 x 5 runs")
    if found != 80:
        raise ExerciseError(f"{found:g} minutes is not ceil(3 x 5 / 4) rounds of 20 minutes")
    return "15 runs, four at a time: four rounds of 20 minutes, and one GPU rests in the last."


@exercise
def check_split(answer: Any) -> str:
    """Training and test without a common scene."""
    for scenes in (SCENES, {"x": "one", "y": "two"}):
        found = ask(answer, dict(scenes))
        try:
            train, test = (list(part) for part in found)
        except (TypeError, ValueError):
            raise ExerciseError("your function must return two lists of names: training and test") from None
        if not train or not test:
            raise ExerciseError("one of the two lists is empty")
        if unknown := [name for name in train + test if name not in scenes]:
            raise ExerciseError(f"{unknown[0]!r} is no name of a photo: return names, not scenes")
        if sorted(train + test) != sorted(scenes):
            raise ExerciseError("every name must be in exactly one of the two lists")
        if shared := {scenes[name] for name in train} & {scenes[name] for name in test}:
            raise ExerciseError(
                f"the scene {sorted(shared)[0]!r} is in training and in test: split scenes, not photos"
            )
    return "Whoever is tested on a scene has never seen it, under whichever rain."


@exercise
def check_paired(answer: Any) -> str:
    """Mean difference over the images that both have."""
    ours = {"easy": 40.0, "middle": 31.0, "hard": 22.0}
    theirs = {"middle": 30.0, "hard": 21.5, "other": 20.0}
    found = number(ask(answer, dict(ours), dict(theirs)), "what your function returns")
    if abs(found - (93 / 3 - 71.5 / 3)) < 1e-6:
        raise ExerciseError(
            "these are means over different images: one side has the easy photo, the other has not"
        )
    if abs(found + 0.75) < 1e-6:
        raise ExerciseError("the sign is turned round: ours minus theirs")
    if abs(found - 1.5) < 1e-6 or abs(found - 0.5) < 1e-6:
        raise ExerciseError(
            "divide the sum of differences by the number of images that both have, which is 2"
        )
    if abs(found - 0.75) > 1e-6:
        raise ExerciseError(
            f"on the images that both have, the differences are 1.0 and 0.5, and their mean is not {found:g}"
        )
    return "1.0 and 0.5, on the same images: 0.75 dB."
