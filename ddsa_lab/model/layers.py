"""The small layers that every block is made of, in a layout that suits processors: channels last.

Images are (B, C, H, W) by name and stand in memory pixel after pixel, all channels of a pixel together.
Then a pixel is a token, a 1x1 convolution is one matrix product, and the layer norm reads straight through.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, layer_norm, pad


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C): a view where memory is channels-last, as it is inside the network."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_image(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, H*W, C) -> (B, C, H, W) in channels-last memory, without a copy."""
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def add_pointwise(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """total (B, out, H, W) + the 1x1 convolution of x (B, C, H, W) with weight (out, C, 1, 1).

    Written into `total` where no gradient is recorded, so nothing else may need that.
    """
    if torch.is_grad_enabled():
        return conv2d(x, weight).add_(total)
    matrix = weight.flatten(1).t().to(total.dtype)  # in-place products are outside autocast's reach
    flat = to_tokens(total).flatten(0, 1).addmm_(to_tokens(x.to(total.dtype)).flatten(0, 1), matrix)
    return to_image(flat.unflatten(0, (len(x), -1)), *x.shape[2:])


def widen(weight: Tensor, dim: int, extra: int) -> Tensor:
    """A convolution's weight (out, in, h, w) with `extra` channels of zeros behind the others of `dim`, 0 or 1."""
    # `pad` counts the dimensions from the last one.
    return pad(weight, [0, 0] * (3 - dim) + [0, extra]) if extra else weight


class Pointwise(nn.Conv2d):
    """1x1 convolution without bias."""

    def __init__(self, channels: int, out: int):
        super().__init__(channels, out, 1, bias=False)


class Depthwise(nn.Conv2d):
    """size x size convolution of each channel for itself, without bias, that keeps the image size.

    Of an image with more channels than the layer has, the further ones become 0 (SEFN fills rows of memory so).
    """

    def __init__(self, channels: int, size: int):
        super().__init__(channels, channels, size, padding=size // 2, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = widen(self.weight, 0, x.shape[1] - self.in_channels)
        return conv2d(x, weight, padding=self.padding, groups=len(weight))


class Pairwise(nn.Conv2d):
    """size x size convolution without bias of channels 2i and 2i + 1 to channel i: (B, 2C, H, W) -> (B, C, H, W).

    Computed for each channel for itself, and then added in pairs: on a CPU the grouped convolution takes five
    times as long.
    """

    def __init__(self, channels: int, size: int):
        super().__init__(channels, channels // 2, size, padding=size // 2, groups=channels // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        single = self.weight.flatten(0, 1).unsqueeze(1)  # (C, 2, h, w) -> (2C, 1, h, w)
        y = to_tokens(conv2d(x, single, padding=self.padding, groups=len(single)))
        even, odd = y.unflatten(-1, (-1, 2)).unbind(-1)
        return to_image(even + odd, *x.shape[2:])


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel, (B, C, H, W) -> (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        x = layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)
