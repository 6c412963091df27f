"""The network in the order of operations of the released code: what the fast form is measured against.

Same parameters, same outputs, more work: NCHW memory, layer norm through two reshapes, normalised copies of
q and k, a mask of zeros with scatter and where, one softmax and one product with v for every branch,
concatenated SEFN parts. Read it beside attention.py and feedforward.py: it is also the plainest statement
of what the network computes.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, normalize, pad, pixel_shuffle, pixel_unshuffle

from ddsa_lab.model.attention import ChannelAttention, keep_count
from ddsa_lab.model.feedforward import GDFN, MSFN, SEFN
from ddsa_lab.model.layers import ChannelNorm, Pairwise, Pointwise
from ddsa_lab.model.network import Block, DerainTransformer


def conv1x1(layer: Pointwise, x: Tensor) -> Tensor:
    """A 1x1 convolution as a convolution."""
    return conv2d(x, layer.weight)


def grouped(layer: Pairwise, x: Tensor) -> Tensor:
    """A convolution of channel pairs as a grouped convolution."""
    return conv2d(x, layer.weight, padding=layer.padding, groups=layer.groups)


def norm(layer: ChannelNorm, x: Tensor) -> Tensor:
    """Layer norm over channels by way of (B, HW, C) and back."""
    height, width = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)  # (B, HW, C)
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    x = (x - mean) / torch.sqrt(variance + layer.eps) * layer.weight + layer.bias
    return x.transpose(1, 2).unflatten(2, (height, width))


def attention(layer: ChannelAttention, x: Tensor) -> Tensor:
    """Dense and sparse branches, each with its own softmax and its own product with v."""
    height, width = x.shape[2:]
    q, k, v = layer.depthwise(conv1x1(layer.qkv, x)).chunk(3, dim=1)
    q, k, v = (t.flatten(2).unflatten(1, (layer.heads, -1)) for t in (q, k, v))  # (B, heads, c, HW)
    q, k = normalize(q, dim=-1), normalize(k, dim=-1)
    z = (q @ k.transpose(-2, -1)) * layer.temperature
    a, sparse = layer.weights.branches()
    out = 0 if a is None else (z.softmax(dim=-1) @ v) * a
    for keep, b in sparse:
        mask = torch.zeros_like(z)
        mask.scatter_(-1, torch.topk(z, keep_count(keep, z.shape[-1]), dim=-1).indices, 1.0)
        kept = torch.where(mask > 0, z, torch.full_like(z, float("-inf"))).softmax(dim=-1)
        out = out + (kept @ v) * b
    return conv1x1(layer.project, out.flatten(1, 2).unflatten(2, (height, width)))


def feed_forward(layer: nn.Module, x: Tensor) -> Tensor:
    """SEFN, GDFN or MSFN with their parts concatenated."""
    if isinstance(layer, SEFN):
        x1, x2, x3 = conv1x1(layer.expand, x).chunk(3, dim=1)
        y1 = layer.depthwise(x1).relu()
        y2 = layer.depthwise(y1 + x2).relu()
        y3 = layer.depthwise(y2 + x3).relu()
        y = conv1x1(layer.project, torch.cat([y1, y2, y3], dim=1))
        statistics = torch.cat([y.max(dim=1, keepdim=True).values, y.mean(dim=1, keepdim=True)], dim=1)
        return y * layer.gate.norm(layer.gate.conv(statistics)).sigmoid()
    if isinstance(layer, GDFN):
        x1, x2 = layer.depthwise(conv1x1(layer.expand, x)).chunk(2, dim=1)
        return conv1x1(layer.project, gelu(x1) * x2)
    assert isinstance(layer, MSFN)
    x = conv1x1(layer.expand, x)
    a3, b3 = layer.depthwise3(x).relu().chunk(2, dim=1)
    a5, b5 = layer.depthwise5(x).relu().chunk(2, dim=1)
    y3 = grouped(layer.mix3, torch.cat([a3, a5], dim=1)).relu()
    y5 = grouped(layer.mix5, torch.cat([b3, b5], dim=1)).relu()
    return conv1x1(layer.project, torch.cat([y3, y5], dim=1))


def stage(blocks: nn.Sequential, x: Tensor) -> Tensor:
    block: Block
    for block in blocks:
        x = x + attention(block.attention, norm(block.norm1, x))
        x = x + feed_forward(block.ffn, norm(block.norm2, x))
    return x


class Textbook(nn.Module):
    """`model` run in the released order. Holds the very same parameters, in NCHW memory.

    Converts the memory of the model it is given, so give it a copy where both run side by side.
    """

    def __init__(self, model: DerainTransformer):
        super().__init__()
        self.model = model.to(memory_format=torch.contiguous_format)

    def forward(self, image: Tensor) -> Tensor:
        model, m = self.model, self.model.built_with.multiple
        height, width = image.shape[-2:]
        x = model.stem(pad(image, (0, -width % m, 0, -height % m), mode="replicate").contiguous())
        x, skips = stage(model.first, x), []
        for blocks, down in zip(model.encoder, model.down):
            x = stage(blocks, x)
            skips.append(x)
            x = pixel_unshuffle(down.conv(x), 2)
        x = stage(model.latent, x)
        for i in reversed(range(len(skips))):
            x = torch.cat([pixel_shuffle(model.up[i].conv(x), 2), skips[i]], dim=1)
            x = stage(model.decoder[i], conv1x1(model.reduce[i], x) if i else x)
        x = model.head(stage(model.refinement, x))
        return image + x[..., :height, :width]
