"""Checks of notebook 00: kept keys, how many they are, and a setting that does harm."""

from typing import Any

from ddsa_lab.course import ExerciseError, NotSolved, exercise, number


@exercise
def check_kept_key(answer: Any) -> str:
    """Is a kept entry of the sparse matrix larger, smaller or equal?"""
    if answer not in ("larger", "smaller", "equal"):
        raise ExerciseError(f"answer with 'larger', 'smaller' or 'equal', not {answer!r}")
    if answer == "smaller":
        raise ExerciseError(
            "the dropped keys give their share to the kept ones, so a kept key cannot get less than before"
        )
    if answer == "equal":
        raise ExerciseError(
            "if kept keys stayed as they were, the row would no longer sum to 1 once others are 0"
        )
    return "Each kept key is divided by m, the sum of the kept keys, and m is below 1 unless all are kept."


@exercise
def check_k(answer: Any) -> str:
    """How many of 16 keys are kept at 0.7?"""
    k = number(answer, "the number of keys")
    if k != int(k):
        raise ExerciseError(f"{k:g} keys cannot be kept: the number must be whole")
    if k == 12:
        raise ExerciseError("0.7 * 16 is 11.2, and the released int(7 * C / 10) rounds down, not up")
    if k != 11:
        raise ExerciseError(
            f"{k:g} is not floor(0.7 * 16): multiply the share by the 16 channels and round down"
        )
    return "k = floor(0.7 * 16) = 11, and never less than 1."


@exercise
def check_worse_than_nothing(answer: Any) -> str:
    """Is there a keep and a selection with which the network does harm?"""
    import ddsa_lab as lab
    from ddsa_lab.analysis.surgery import surgery
    from ddsa_lab.errors import LabError

    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise ExerciseError('give two values, such as (0.5, "random")')
    keep, select = answer
    if keep is ... or select is ...:
        raise NotSolved
    pair = lab.rainy_pair("coffee", rain="light", seed=0, size=192)
    model = lab.load("dual-tiny")
    try:
        with surgery(model, keep=number(keep, "keep"), select=str(select)):
            after = lab.psnr(lab.derain(model, pair.rainy), pair.clean)
    except LabError as error:
        raise ExerciseError(str(error)) from error
    before = lab.psnr(pair.rainy, pair.clean)
    if after >= before:
        raise ExerciseError(
            f"with keep={keep} and select={select!r} the result has {after:.2f} dB, still no less than "
            f"the rainy photo's {before:.2f} dB: which keys would do the most harm?"
        )
    return f"The result has {after:.2f} dB, the rainy photo had {before:.2f} dB: attention to the wrong channels does harm."
