"""Feed-forward networks of restoration transformers: SEFN (DDSA), GDFN (Restormer), MSFN (DRSformer)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu

from ddsa_lab.errors import choose
from ddsa_lab.model.layers import Depthwise, Pairwise, Pointwise, add_pointwise, widen


class SpatialGate(nn.Module):
    """sigmoid(BN(conv3x3([max_c x, mean_c x]))): one weight in (0, 1) for each pixel, (B, 1, H, W).

    Source: arXiv 2308.07781, section 2.3; its BatchNorm makes training and evaluation differ.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        # Both branches compute the same. amax is faster, but its gradient looks for ties; max knows where it was.
        largest = x.max(dim=1, keepdim=True).values if x.requires_grad else x.amax(dim=1, keepdim=True)
        mean = x.sum(dim=1, keepdim=True) * (1 / x.shape[1])
        return self.norm(self.conv(torch.cat([largest, mean], dim=1))).sigmoid()


class SEFN(nn.Module):
    """Spatial-enhanced feed-forward network. Source: arXiv 2308.07781, section 2.3, and its released code.

        x1, x2, x3 = split(expand(x))
        y1 = relu(d(x1));  y2 = relu(d(y1 + x2));  y3 = relu(d(y2 + x3))      one shared depth-wise 3x3 d
        y = project([y1, y2, y3]);  return y * gate(y)

    The three parts are never joined: y1 + x2 grows on y1, and the projection of the concatenation is a sum of
    three. Where no gradient is recorded, hidden channels are filled up with zeros to a multiple of 8, because
    products with rows of 255 numbers run at half the speed of those with 256.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.expand = Pointwise(channels, 3 * hidden)
        self.depthwise = Depthwise(hidden, 3)
        self.project = Pointwise(3 * hidden, channels)
        self.gate = SpatialGate()

    def forward(self, x: Tensor) -> Tensor:
        extra = 0 if torch.is_grad_enabled() else -(self.expand.out_channels // 3) % 8
        out, y = None, None
        for into, out_of in zip(self.expand.weight.chunk(3, dim=0), self.project.weight.chunk(3, dim=1)):
            into, out_of = widen(into, 0, extra), widen(out_of, 1, extra)
            part = conv2d(x, into) if y is None else add_pointwise(y, x, into)  # x1, y1 + x2, y2 + x3
            y = self.depthwise(part).relu_()
            out = conv2d(y, out_of) if out is None else add_pointwise(out, y, out_of)
        return out * self.gate(out)


class GDFN(nn.Module):
    """Gated depth-wise feed-forward network: gelu(x1) * x2 after a 3x3. Source: arXiv 2111.09881, equation 3."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.expand = Pointwise(channels, 2 * hidden)
        self.depthwise = Depthwise(2 * hidden, 3)
        self.project = Pointwise(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = self.depthwise(self.expand(x)).chunk(2, dim=1)
        return self.project(gelu(x1) * x2)


class MSFN(nn.Module):
    """Mixed-scale feed-forward network: 3x3 and 5x5 paths that exchange halves. Source: arXiv 2303.11950, section 3.3."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.expand = Pointwise(channels, 2 * hidden)
        self.depthwise3 = Depthwise(2 * hidden, 3)
        self.depthwise5 = Depthwise(2 * hidden, 5)
        self.mix3 = Pairwise(2 * hidden, 3)
        self.mix5 = Pairwise(2 * hidden, 5)
        self.project = Pointwise(2 * hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        a3, b3 = self.depthwise3(x).relu().chunk(2, dim=1)
        a5, b5 = self.depthwise5(x).relu().chunk(2, dim=1)
        y3 = self.mix3(torch.cat([a3, a5], dim=1)).relu()
        y5 = self.mix5(torch.cat([b3, b5], dim=1)).relu()
        return self.project(torch.cat([y3, y5], dim=1))


FEED_FORWARDS = {"sefn": SEFN, "gdfn": GDFN, "msfn": MSFN}


def feed_forward(name: str, channels: int, factor: float) -> nn.Module:
    """The feed-forward network `name` with int(factor * channels) hidden channels."""
    return FEED_FORWARDS[choose("feed-forward network", name, FEED_FORWARDS)](
        channels, int(factor * channels)
    )
