"""Independent references: the mathematics written as loops over numbers, in float64, for tests only."""

import math

import torch
from torch import Tensor


def attention_rows(z: Tensor, branches: list[tuple[float, int]]) -> Tensor:
    """Fused weights of one head: for each row, sum over (weight, k) of weight * softmax over the k largest."""
    rows = z.tolist()
    size = len(rows[0])
    fused = [[0.0] * size for _ in rows]
    for i, row in enumerate(rows):
        for weight, k in branches:
            kept = sorted(range(size), key=lambda j: -row[j])[:k]
            total = sum(math.exp(row[j] - max(row)) for j in kept)
            for j in kept:
                fused[i][j] += weight * math.exp(row[j] - max(row)) / total
    return torch.tensor(fused, dtype=torch.float64)


def convolve(x: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    """'Same' convolution of (C, H, W) by (O, C/groups, s, s), one output number after the other."""
    out_channels, per_group, size, _ = weight.shape
    height, width = x.shape[1:]
    half = size // 2
    out = torch.zeros(out_channels, height, width, dtype=torch.float64)
    for o in range(out_channels):
        first = (o // (out_channels // groups)) * per_group
        for y in range(height):
            for c in range(width):
                total = 0.0
                for i in range(per_group):
                    for dy in range(size):
                        for dx in range(size):
                            yy, xx = y + dy - half, c + dx - half
                            if 0 <= yy < height and 0 <= xx < width:
                                total += weight[o, i, dy, dx].item() * x[first + i, yy, xx].item()
                out[o, y, c] = total
    return out


def channel_attention(layer, x: Tensor, branches: list[tuple[float, float]]) -> Tensor:
    """A `ChannelAttention` on (C, H, W) from its parameters alone; branches are (weight, keep)."""
    channels, height, width = x.shape
    qkv = convolve(convolve(x, layer.qkv.weight), layer.depthwise.weight, groups=3 * channels)
    q, k, v = qkv.flatten(1).split(channels)
    per_head = channels // layer.heads
    out = torch.zeros(channels, height * width, dtype=torch.float64)
    for head in range(layer.heads):
        rows = range(head * per_head, (head + 1) * per_head)
        z = torch.tensor([[_cosine(q[i], k[j]) for j in rows] for i in rows], dtype=torch.float64)
        z = z * layer.temperature[head].item()
        counts = [(w, max(1, int(keep * per_head + 1e-9))) for w, keep in branches]
        fused = attention_rows(z, counts)
        for i in range(per_head):
            for j in range(per_head):
                out[rows[i]] += fused[i, j] * v[rows[j]]
    return convolve(out.view(channels, height, width), layer.project.weight)


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.tolist(), b.tolist()
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b)) / lengths if lengths else 0.0
