"""Checks of notebook 03: counting a block, folding pixels into channels, growth, fields of view."""

from typing import Any

import torch
from torch.nn.functional import pixel_unshuffle

from ddsa_lab.course import ExerciseError, NotSolved, ask, exercise, number, tensor


def block_parameters(channels: int, hidden: int, heads: int) -> int:
    """Parameters of one dual block with SEFN, by the table of the notebook."""
    attention = 4 * channels**2 + 27 * channels + heads + 2
    return attention + 4 * channels + 6 * hidden * channels + 9 * hidden + 18 + 2


@exercise
def check_block(answer: Any) -> str:
    """Parameters of one block at C = 32, 2 heads, h = 64."""
    found, right = number(answer, "the number of parameters"), block_parameters(32, 64, 2)
    hints = {
        right
        + 18
        * 64: "the shared 3x3 filter has 9h weights however often it is used (27h are its multiply-adds)",
        right - 4 * 32: "the two norms are missing: a weight and a bias for each channel, twice",
        right - 32**2: "the projection of attention, C^2, is missing",
        right - 20: "the gate is missing: 18 weights and BatchNorm's 2",
        right - 4: "temperatures and branch weights are missing: heads + 2",
        right - 2: "the two branch weights a and b are missing",
        block_parameters(32, 32, 2): "h = 64 hidden channels were asked for, and this is h = 32",
    }
    if found in hints:
        raise ExerciseError(hints[int(found)])
    if found != right:
        raise ExerciseError(
            f"{found:g} is {abs(found - right):g} too {'many' if found > right else 'few'}: go through the table row by row"
        )
    return f"{right:,} parameters, and the built network has as many."


@exercise
def check_unshuffle(answer: Any) -> str:
    """Pixel unshuffle by 2."""
    for shape in ((1, 2, 4), (3, 4, 6)):
        x = torch.arange(float(torch.tensor(shape).prod())).view(shape)
        channels, height, width = shape
        wanted = (4 * channels, height // 2, width // 2)
        found = tensor(ask(answer, x.clone()), wanted, f"for {shape} your result")
        right = pixel_unshuffle(x, 2)
        if torch.equal(found, right):
            continue
        if not torch.equal(found.flatten().sort().values, right.flatten().sort().values):
            raise ExerciseError("some values are lost or doubled: every pixel must appear exactly once")
        if torch.equal(found, x.reshape(wanted)):
            raise ExerciseError(
                "reshape alone cuts the image into stretches of a row: split H and W into (H/2, 2) and (W/2, 2), then permute"
            )
        if torch.equal(found.unflatten(0, (4, channels)).transpose(0, 1).flatten(0, 1), right):
            raise ExerciseError(
                "the order of channels is turned round: the four of one input channel must stand together"
            )
        if torch.equal(found.unflatten(0, (channels, 2, 2)).transpose(1, 2).flatten(0, 2), right):
            raise ExerciseError(
                "rows and columns of the 2x2 square are exchanged: left to right first, then down"
            )
        raise ExerciseError(
            "all pixels are there, in another order than torch.nn.functional.pixel_unshuffle's"
        )
    return "The same as torch's, and nothing lost: that is why the way back up can be exact."


@exercise
def check_growth(answer: Any) -> str:
    """Factors of multiply-adds, parameters and attention size when the sides double."""
    if not isinstance(answer, tuple | list) or len(answer) != 3:
        raise ExerciseError("give three factors: of multiply-adds, parameters, attention matrix")
    if any(value is ... for value in answer):
        raise NotSolved
    macs, parameters, matrix = (number(value, "each factor") for value in answer)
    if abs(macs - 4) > 0.05:
        raise ExerciseError(
            f"multiply-adds do not grow by {macs:g}: nearly all are counted for each pixel, so how many times more pixels are there?"
        )
    if parameters != 1:
        raise ExerciseError(
            f"parameters do not grow by {parameters:g}: does a filter know how large the image is?"
        )
    if matrix != 1:
        raise ExerciseError(
            f"the matrix does not grow by {matrix:g}: it is channels x channels, not pixels x pixels"
        )
    return "4, 1, 1. Attention between pixels would have made it 16 for the matrix."


@exercise
def check_field(answer: Any) -> str:
    """Field of view of n chained 3x3 filters."""
    for n, right in ((1, 3), (2, 5), (3, 7), (10, 21), (0, 1)):
        found = number(ask(answer, n), "what your function returns")
        if found == 3**n and n > 1:
            raise ExerciseError(
                f"3^{n} = {3**n} would need filters that grow; each 3x3 adds one pixel on either side"
            )
        if found == right**2 and right > 1:
            raise ExerciseError(f"{found:g} is the area for n = {n}: the side was asked for")
        if found != right:
            raise ExerciseError(
                f"for n = {n} your function gives {found:g}: start from 1 pixel, each filter adds 2"
            )
    return "2n + 1: linear, which is why networks also shrink the image in order to see far."
