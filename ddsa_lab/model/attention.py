"""Channel attention that keeps all keys (dense), the strongest ones (sparse), or both (dual, multi).

The textbook form stands first: five short functions, one line of mathematics each. The network runs the
same mathematics with less work: one softmax, one top-k and one product with v (`AttentionWeights`,
`ChannelAttention`). tests/test_attention.py holds the two forms together.

Attention acts on channels: with q, k in R^(C x HW), z = t q k^T is C x C, rows are queries, columns keys.
"""

import math

import torch
from torch import Tensor, nn

from ddsa_lab.errors import LabError, choose
from ddsa_lab.model.layers import Depthwise, Pointwise, to_image, to_tokens

MODES = ("dense", "sparse", "dual", "multi")
MULTI_KEEP = (1 / 2, 2 / 3, 3 / 4, 4 / 5)  # DRSformer's four nested branches


def keep_count(keep: float, channels: int) -> int:
    """Number of keys that a share `keep` of `channels` keys leaves: k = max(1, floor(keep * channels)).

    The product is rounded at 1e-9 first: 0.7 * 90 is 62.99... in floating point and must give 63, as the
    released `int(7 * C / 10)` does.

    Raises:
        LabError: `keep` is outside (0, 1].
    """
    if not 0.0 < keep <= 1.0:
        raise LabError(f"keep is {keep}, but the share of keys to keep must lie in (0, 1]")
    return max(1, math.floor(round(keep * channels, 9)))


def similarity(q: Tensor, k: Tensor, temperature: Tensor) -> Tensor:
    """z = t q k^T of q, k (..., C, HW) with rows scaled to unit length. Source: arXiv 2308.07781, section 2.2."""
    q, k = nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1)
    return (q @ k.transpose(-2, -1)) * temperature


def dense_weights(z: Tensor) -> Tensor:
    """softmax(z) by rows, (..., C, C)."""
    return z.softmax(dim=-1)


def topk_mask(z: Tensor, k: int) -> Tensor:
    """True at the k largest entries of each row of z (..., C, C): exactly k a row, ties broken arbitrarily."""
    mask = torch.zeros_like(z, dtype=torch.bool)
    return mask.scatter(-1, z.topk(k, dim=-1).indices, True)


def sparse_weights(z: Tensor, k: int) -> Tensor:
    """softmax over the k largest entries of each row, 0 elsewhere: exp(-inf) is 0, so the others vanish."""
    return z.masked_fill(~topk_mask(z, k), -math.inf).softmax(dim=-1)


def dual_weights(z: Tensor, k: int, a: float | Tensor, b: float | Tensor) -> Tensor:
    """a * dense + b * sparse, the fusion of DDSA in its textbook form. Source: arXiv 2308.07781, section 2.2."""
    return a * dense_weights(z) + b * sparse_weights(z, k)


class AttentionWeights(nn.Module):
    """Logits (B, heads, C, C) -> fused weights (B, heads, C, C), in the fast form.

    With p = softmax(z), S the kept keys of a row and m = sum of p over S, the sparse weights are p / m on S.
    So every mode is p times a gain: a on all keys, plus b_i / m_i on the keys that branch i keeps.

        dense: a = 1                         sparse: b = 1
        dual:  a, b learned, from 0.2        multi:  a = 0, four learned b_i (DRSformer)

    Mode, keep and branch weights can be changed on a built model. Nothing is stored by a forward pass.

    Args:
        mode: one of `MODES`.
        keep: share of the keys that the sparse branch keeps, in (0, 1]; `multi` takes one for each branch.
    """

    def __init__(self, mode: str = "dual", keep: float | tuple[float, ...] = 0.7):
        super().__init__()
        self.built_as = choose("attention mode", mode, MODES)
        self._mode = mode
        self.keep = MULTI_KEEP if mode == "multi" else keep
        if mode in ("dual", "multi"):
            count = 2 if mode == "dual" else len(self._keep)
            # 0.2 each is where the released code starts (notebook 03, section 5). [a, b] for dual, [b1..b4] for multi.
            self.branch = nn.Parameter(torch.full((count,), 0.2))
        else:
            self.register_buffer("branch", torch.ones(2), persistent=False)

    @property
    def mode(self) -> str:
        """Which branches count: `dense` a only, `sparse` b only, `dual` both, `multi` its four."""
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        choose("attention mode", mode, MODES)
        if (mode == "multi") != (self.built_as == "multi"):
            raise LabError(
                f"a layer built as {self.built_as!r} cannot become {mode!r}: its branch weights differ in number"
            )
        self._mode = mode

    @property
    def keep(self) -> float | tuple[float, ...]:
        """Share of the keys kept, in (0, 1]; a tuple, one for each branch, in mode `multi`."""
        return self._keep if self.built_as == "multi" else self._keep[0]

    @keep.setter
    def keep(self, keep: float | tuple[float, ...]) -> None:
        values = tuple(keep) if isinstance(keep, tuple | list) else (float(keep),)
        wanted = len(MULTI_KEEP) if self.built_as == "multi" else 1
        if len(values) != wanted:
            raise LabError(f"keep has {len(values)} values, but a {self.built_as!r} layer takes {wanted}")
        for value in values:
            keep_count(value, 1)  # refuses values outside (0, 1]
        self._keep = values

    def branches(self) -> tuple[Tensor | None, list[tuple[float, Tensor]]]:
        """The weights in force: dense weight a (None: no dense branch), and (keep, b) of each sparse branch."""
        if self._mode == "multi":
            return None, list(zip(self._keep, self.branch))
        dense = self.branch[0] if self._mode in ("dense", "dual") else None
        sparse = [(self._keep[0], self.branch[1])] if self._mode in ("sparse", "dual") else []
        return dense, sparse

    def forward(self, logits: Tensor) -> Tensor:
        p = logits.softmax(dim=-1)
        a, sparse = self.branches()
        if not sparse:
            return p if self.built_as == "dense" else a * p
        counts = [keep_count(keep, logits.shape[-1]) for keep, _ in sparse]
        # Descending order makes the branches prefixes of one another: one top-k serves all.
        strongest = logits.detach().topk(max(counts), dim=-1).indices
        gain = torch.zeros_like(p) if a is None else a.expand_as(p)
        for k, (_, b) in zip(counts, sparse):
            kept = strongest[..., :k]
            mass = p.gather(-1, kept).sum(dim=-1, keepdim=True)  # m, in (k/C, 1]
            gain = gain.scatter_add(-1, kept, (b / mass).expand(kept.shape))
        return p * gain

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}, keep={self.keep}"


class Products(torch.autograd.Function):
    """[q, k] (B, N, 2C) -> q^T k (B, C, C), and the squared lengths (B, 2C) of all columns of q and k.

    The rule of the gradient is written out because it needs one map of its own where autograd makes six: each
    part of it is added in place to 2 [q, k] times the gradient of the squared lengths.
    """

    @staticmethod
    def forward(ctx, qk: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(qk)
        q, k = qk.chunk(2, dim=-1)
        return q.transpose(1, 2) @ k, qk.square().sum(dim=1)

    @staticmethod
    def backward(ctx, product: Tensor, squares: Tensor) -> Tensor:
        (qk,) = ctx.saved_tensors
        q, k = qk.chunk(2, dim=-1)
        gradient, channels = qk * (2 * squares).unsqueeze(1), q.shape[-1]
        gradient[..., :channels].baddbmm_(k, product.transpose(1, 2))
        gradient[..., channels:].baddbmm_(q, product)
        return gradient


class ChannelAttention(nn.Module):
    """Multi-head attention over channels. Source: arXiv 2308.07781, section 2.2; Restormer (arXiv 2111.09881).

    Two savings over the textbook, both exact. Rows of q and k are never normalised: z_ij = t q_i k_j / |q_i| |k_j|
    divides the C x C product instead of C x HW copies. The output projection W is folded in: W (A v) = (W A) v.

    Args:
        channels: C of the input; a multiple of `heads`.
        heads: number of heads; each attends among channels / heads channels.
        mode, keep: see `AttentionWeights`.
    """

    def __init__(self, channels: int, heads: int, mode: str = "dual", keep: float | tuple[float, ...] = 0.7):
        super().__init__()
        if heads < 1 or channels % heads:
            raise LabError(f"{channels} channels cannot be split evenly among {heads} heads")
        self.heads = heads
        self.qkv = Pointwise(channels, 3 * channels)
        self.depthwise = Depthwise(3 * channels, 3)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.weights = AttentionWeights(mode, keep)
        self.project = Pointwise(channels, channels)

    def logits(self, qk: Tensor) -> Tensor:
        """z (B, heads, c, c) of qk (B, HW, 2C), in float32 whatever the precision around it.

        Ties are common in bfloat16, and a top-k among ties is arbitrary.
        """
        with torch.autocast(qk.device.type, enabled=False):
            qk = qk if qk.dtype == torch.float64 else qk.float()
            product, squares = Products.apply(qk)  # (B, C, C) of all heads, (B, 2C)
            # Never below the 1e-12 with which torch's `normalize` guards zero rows.
            q_length, k_length = squares.clamp_min(1e-24).sqrt().chunk(2, dim=1)
            z = product / q_length.unsqueeze(2) / k_length.unsqueeze(1)
            # (B, C, C) -> (B, heads, c, heads, c): a head's own block stands on the diagonal
            z = z.unflatten(2, (self.heads, -1)).unflatten(1, (self.heads, -1))
            return z.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2) * self.temperature

    def forward(self, x: Tensor, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """(B, C, H, W) -> (B, C, H, W), with the fused weights (B, heads, c, c) beside it if asked for."""
        channels, height, width = x.shape[1:]
        qkv = to_tokens(self.depthwise(self.qkv(x)))  # (B, HW, 3C)
        qk, v = qkv.split((2 * channels, channels), dim=-1)
        weights = self.weights(self.logits(qk))
        # (W A)^T for each head: (B, heads, c, c) @ (heads, c, C) -> (B, heads, c, C) -> (B, C, C)
        projection = self.project.weight.flatten(1).unflatten(1, (self.heads, -1)).permute(1, 2, 0)
        mixing = (weights.transpose(-2, -1) @ projection.to(weights.dtype)).flatten(1, 2)
        y = to_image(v @ mixing.to(v.dtype), height, width)
        return (y, weights) if return_weights else y
