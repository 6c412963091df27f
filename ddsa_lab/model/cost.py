"""What a network costs: parameters and multiply-adds, derived by hand and checked against counts (tests/test_cost.py).

A multiply-add is one; norms, softmax, activations and sums are left out, as in the papers' tables, and so are
the zeros that fill SEFN's hidden channels up in inference.
C channels, h hidden channels, c = C / heads channels in a head, N pixels at the block's level.
"""

from ddsa_lab.errors import choose
from ddsa_lab.model.attention import MULTI_KEEP
from ddsa_lab.model.network import NetworkConfig

ORDERS = ("released", "ours")
# Products with v in the released order: one for every branch.
_PRODUCTS = {"dense": 1, "sparse": 1, "dual": 2, "multi": len(MULTI_KEEP)}
_SCALARS = {"dense": 0, "sparse": 0, "dual": 2, "multi": len(MULTI_KEEP)}


def count_parameters(config: NetworkConfig) -> int:
    """Number of learned values; `idt_ddsa` has 40.62 M, `restormer` 26.13 M."""
    total = 0
    for _, blocks, channels, heads, _ in config.stages():
        attention = 4 * channels**2 + 27 * channels + heads + _SCALARS[config.mode]
        norms = 4 * channels
        weights, per_pixel = _feed_forward(config, channels)
        total += blocks * (attention + norms + weights + per_pixel)
    return total + _around(config, lambda weights, level: weights)


def count_macs(config: NetworkConfig, height: int, width: int, order: str = "ours") -> int:
    """Multiply-adds for one image.

    Args:
        config: the network.
        height, width: image size in pixels; padded to the multiple that the network pads to.
        order: "released": q k^T for each head and a product with v for every branch, as the published
            code computes. "ours": one product q k^T over all heads, one product with v, the projection folded into it.

    Raises:
        LabError: an unknown order.
    """
    choose("order of operations", order, ORDERS)
    m = config.multiple
    pixels = (-(-height // m) * m) * (-(-width // m) * m)
    total = 0
    for _, blocks, channels, heads, level in config.stages():
        n, c = pixels // 4**level, channels // heads
        attention = (3 * channels**2 + 27 * channels) * n
        if order == "released":
            attention += (1 + _PRODUCTS[config.mode]) * channels * c * n + channels**2 * n
        else:
            attention += (1 + 1) * channels**2 * n + channels**2 * c
        weights, gate = _feed_forward(config, channels)
        # Every weight of a feed-forward network is used once a pixel, but the shared SEFN kernel three times.
        shared = 18 * int(config.ffn_factor * channels) if config.ffn == "sefn" else 0
        total += blocks * (attention + (weights + shared + (18 if gate else 0)) * n)
    return total + _around(config, lambda weights, level: weights * (pixels // 4**level))


def _feed_forward(config: NetworkConfig, channels: int) -> tuple[int, int]:
    """(weights of the convolutions, values of SEFN's gate: an 18-weight convolution and a norm's 2)."""
    hidden = int(config.ffn_factor * channels)
    if config.ffn == "sefn":
        return 6 * hidden * channels + 9 * hidden, 18 + 2
    if config.ffn == "gdfn":
        return 3 * hidden * channels + 18 * hidden, 0
    # msfn: 3x3 and 5x5 over 2h channels, then two mixes of channel pairs (2h weights x 9 and x 25)
    return 4 * hidden * channels + 2 * (18 + 50) * hidden, 0


def _around(config: NetworkConfig, use) -> int:
    """Sum `use(weights, level)` over the convolutions between the stages: stem, down, up, reduce, head."""
    last, width = config.levels - 1, config.width
    total = use(27 * width, 0) + use(27 * (2 * width if last else width), 0)
    for level in range(last):
        channels, below = width * 2**level, width * 2 ** (level + 1)
        total += use(9 * channels * channels // 2, level) + use(18 * below**2, level + 1)
        if level:
            total += use(below * channels, level)
    return total
