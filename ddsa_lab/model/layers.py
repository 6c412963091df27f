"""The small layers that every block is made of, in a layout that suits processors: channels last.

Images are (B, C, H, W) by name and stand in memory pixel after pixel, all channels of a pixel together.
Then a pixel is a token, a 1x1 convolution is one matrix product, and the layer norm reads straight through.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C): a view where memory is channels-last, as it is inside the network."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_image(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, H*W, C) -> (B, C, H, W) in channels-last memory, without a copy."""
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total + a @ b of matrices; written into `total`, without a copy, where no gradient is recorded."""
    if torch.is_grad_enabled():
        return total.addmm(a, b)
    return total.addmm_(a.to(total.dtype), b.to(total.dtype))  # autocast does not reach in-place products


class Pointwise(nn.Conv2d):
    """1x1 convolution without bias, computed as a product over tokens."""

    def __init__(self, channels: int, out: int):
        super().__init__(channels, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return to_image(linear(to_tokens(x), self.weight.flatten(1)), *x.shape[2:])


class Depthwise(nn.Conv2d):
    """size x size convolution without bias that keeps the image size; one group for each output channel."""

    def __init__(self, channels: int, size: int, out: int | None = None):
        out = out or channels
        super().__init__(channels, out, size, padding=size // 2, groups=out, bias=False)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel, (B, C, H, W) -> (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        x = layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)
