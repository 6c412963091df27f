"""Solutions of notebook 03, by exercise: checker -> answer; and wrong answers that the checkers must refuse."""

import torch


def unshuffle(x):
    """(C, H, W) -> (C, H/2, 2, W/2, 2) -> (C, 2, 2, H/2, W/2) -> (4C, H/2, W/2)."""
    channels, height, width = x.shape
    x = x.reshape(channels, height // 2, 2, width // 2, 2)
    return x.permute(0, 2, 4, 1, 3).reshape(4 * channels, height // 2, width // 2)


def _channels_turned(x):
    channels, height, width = x.shape
    x = x.reshape(channels, height // 2, 2, width // 2, 2)
    return x.permute(2, 4, 0, 1, 3).reshape(4 * channels, height // 2, width // 2)


def _square_turned(x):
    channels, height, width = x.shape
    x = x.reshape(channels, height // 2, 2, width // 2, 2)
    return x.permute(0, 4, 2, 1, 3).reshape(4 * channels, height // 2, width // 2)


C, H, HEADS = 32, 64, 2
BLOCK = 3 * C**2 + 27 * C + HEADS + 2 + C**2 + 4 * C + 6 * H * C + 9 * H + 20

SOLUTIONS = {
    "check_block": BLOCK,
    "check_unshuffle": unshuffle,
    "check_growth": (4, 1, 1),
    "check_field": lambda n: 2 * n + 1,
}
WRONG = {
    "check_block": [BLOCK + 18 * H, BLOCK - 4 * C, BLOCK - 2, 5000, "many"],
    "check_unshuffle": [
        lambda x: x.reshape(4 * x.shape[0], x.shape[1] // 2, x.shape[2] // 2),
        _channels_turned,
        _square_turned,
        lambda x: x[:, ::2, ::2].repeat(4, 1, 1),
        lambda x: x.flip(0),
        lambda x: torch.zeros(4 * x.shape[0], x.shape[1] // 2, x.shape[2] // 2),
    ],
    "check_growth": [(2, 1, 1), (4, 4, 1), (4, 1, 16), 4],
    "check_field": [lambda n: 3**n, lambda n: (2 * n + 1) ** 2, lambda n: 3 * n, lambda n: None],
}
