"""Checks of notebook 08: the size of a figure, a cut axis, and numbers read from a figure's JSON."""

from typing import Any

from ddsa_lab.course import ExerciseError, ask, exercise, number


@exercise
def check_pixels(answer: Any) -> str:
    """Pixels of a column at 300 dpi."""
    found = number(answer, "the width")
    if abs(found - 300 / 3.5) < 1:
        raise ExerciseError("dots per inch times inches, not divided by them")
    if abs(found - 7.16 * 300) < 1:
        raise ExerciseError("this is the width of two columns")
    if found != 1050:
        raise ExerciseError(f"{found:g} is not 3.5 inches with 300 dots in each")
    return "3.5 x 300 = 1050 pixels."


@exercise
def check_cut_axis(answer: Any) -> str:
    """How much longer a bar looks on a cut axis."""
    found = number(answer, "the factor")
    if abs(found - 30.5 / 30.2) < 0.002:
        raise ExerciseError(
            "this is the ratio of the values, as an axis from 0 shows it; this axis starts at 30"
        )
    if abs(found - 0.3) < 1e-6:
        raise ExerciseError("this is the difference in dB; how do the two lengths above 30 compare")
    if abs(found - 0.4) < 1e-6:
        raise ExerciseError("upside down: the second bar is the longer one")
    if abs(found - 2.5) > 0.01:
        raise ExerciseError(f"{found:g} is not (30.5 - 30) / (30.2 - 30)")
    return "0.5 / 0.2 = 2.5 times as long, for 0.3 dB."


@exercise
def check_gain(answer: Any) -> str:
    """Gain in dB from a figure's numbers."""
    numbers = {
        "scores": {"rgb": {"psnr": 31.5, "ssim": 0.93}, "y_uint8": {"psnr": 34.0, "ssim": 0.95}},
        "psnr_of_the_rainy_input": {"rgb": 27.25, "y_uint8": 28.0},
    }
    for protocol, right in (("rgb", 4.25), ("y_uint8", 6.0)):
        found = number(ask(answer, numbers, protocol), "what your function returns")
        if abs(found + right) < 1e-9:
            raise ExerciseError("the sign is turned round: restored minus rainy is the gain")
        if abs(found - numbers["scores"][protocol]["psnr"]) < 1e-9:
            raise ExerciseError("this is the score itself: take off what the rainy input had")
        if abs(found - right) > 1e-9:
            raise ExerciseError(
                f"under {protocol} the gain is {right:g} dB and not {found:g}: both scores must be of that protocol"
            )
    return "Two scores of one protocol, from the figure's own file."
