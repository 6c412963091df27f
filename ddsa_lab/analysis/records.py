"""What a recording holds: logits and a few scalars of each layer and pass, and all that follows from them.

Dense, sparse and fused weights are derived from the logits when asked for. So recording costs next to
nothing, and a record stays right whatever happens to the network later.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddsa_lab.errors import LabError, choose
from ddsa_lab.model.attention import ChannelAttention, dense_weights, keep_count
from ddsa_lab.model.network import DerainTransformer


def top_masks(z: Tensor, counts: Sequence[int]) -> tuple[Tensor, ...]:
    """True at the k largest entries of each row of z (..., C, C), one mask for each k of `counts`.

    One top-k serves all, as in `AttentionWeights`: where logits tie, the keys are those that the network kept.
    """
    if not counts:
        return ()
    strongest = z.topk(max(counts), dim=-1).indices
    nothing = torch.zeros_like(z, dtype=torch.bool)
    return tuple(nothing.scatter(-1, strongest[..., :k], True) for k in counts)


def softmax_over(z: Tensor, mask: Tensor) -> Tensor:
    """softmax(z) by rows over the keys where `mask` is True, 0 elsewhere."""
    return z.masked_fill(~mask, -torch.inf).softmax(dim=-1)


def fuse(z: Tensor, a: Any, bs: Sequence[Any], masks: Sequence[Tensor]) -> Tensor:
    """a * dense + sum of b_i * softmax over mask i, (..., C, C); a is None where there is no dense branch."""
    fused = torch.zeros_like(z) if a is None else a * dense_weights(z)
    for b, mask in zip(bs, masks):
        fused = fused + b * softmax_over(z, mask)
    return fused


def mix(weights: Tensor, values: Tensor) -> Tensor:
    """A v: weights (B, heads, c, c) applied to an image per channel (B, heads * c, H, W)."""
    v = values.flatten(2).unflatten(1, (weights.shape[1], -1))  # (B, heads, c, HW)
    return (weights.to(v.dtype) @ v).flatten(1, 2).unflatten(2, values.shape[2:])


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """One attention layer in one forward pass. Shapes: B images, `heads` heads, C channels a head."""

    name: str  # "encoder.0.0": stage and block
    stage: str
    depth: int  # place among all attention layers of the network, from 0
    logits: Tensor  # z, (B, heads, C, C); rows are queries, columns keys
    a: float | None  # dense weight in force; None: no dense branch
    branches: tuple[tuple[float, float], ...]  # (keep, b) of each sparse branch in force
    temperature: Tensor  # (heads,)
    marks: tuple[float, ...] = ()  # of the layer's parameters, to notice later changes; see `marks`
    forced: tuple[Tensor, ...] | None = None  # masks that surgery put in place of the top-k
    values: Tensor | None = None  # v, an image per channel (B, heads * C, H, W); likewise q and k
    queries: Tensor | None = None
    keys: Tensor | None = None
    gate: Tensor | None = None  # spatial gate of the block's feed-forward network, (B, 1, H, W)

    def need(self, what: str) -> Tensor:
        """Return the `values`, `queries`, `keys` or `gate` of this layer.

        Raises:
            LabError: they were not recorded, saying how to record them.
        """
        found = getattr(self, what)
        if found is None:
            option = {"keys": "queries", "gate": "gates"}.get(what, what)
            none = " (only SEFN has gates)" if what == "gate" else ""
            raise LabError(
                f"{what} of {self.name} were not recorded{none}: use record(model, keep=({option!r},))"
            )
        return found

    @property
    def channels(self) -> int:
        """C, channels a head."""
        return self.logits.shape[-1]

    @property
    def dense(self) -> Tensor:
        """p = softmax(z), (B, heads, C, C)."""
        return dense_weights(self.logits)

    @property
    def masks(self) -> tuple[Tensor, ...]:
        """Keys kept by each sparse branch, bool (B, heads, C, C); empty for dense attention."""
        if self.forced is not None:
            return self.forced
        return top_masks(self.logits, [keep_count(keep, self.channels) for keep, _ in self.branches])

    @property
    def mask(self) -> Tensor:
        """Keys kept by the branch that keeps most, bool (B, heads, C, C); all of them for dense attention."""
        everything = torch.ones_like(self.logits, dtype=torch.bool)
        return max(self.masks, key=lambda mask: int(mask.sum()), default=everything)

    @property
    def keep(self) -> float:
        """Share of the keys kept by the branch that keeps most; 1 for dense attention."""
        return max((keep for keep, _ in self.branches), default=1.0)

    @property
    def b(self) -> float:
        """Weight of all sparse branches together; 0 for dense attention."""
        return sum(b for _, b in self.branches)

    @property
    def sparse(self) -> Tensor:
        """p / m on `mask` and 0 elsewhere, (B, heads, C, C)."""
        return softmax_over(self.logits, self.mask)

    @property
    def fused(self) -> Tensor:
        """The weights that the network applied to v: a * dense + b * sparse, (B, heads, C, C)."""
        return fuse(self.logits, self.a, [b for _, b in self.branches], self.masks)

    @property
    def mass(self) -> Tensor:
        """m, the sum of p over `mask`, in (0, 1], (B, heads, C)."""
        return (self.dense * self.mask).sum(dim=-1)

    @property
    def gain(self) -> Tensor:
        """g = 1 + b / (a m), by how much kept keys are raised above dropped ones, (B, heads, C).

        1 where there is no sparse branch, infinite where there is no dense one. Derived in notebook 02, section 4.
        """
        m = self.mass
        if not self.b:
            return torch.ones_like(m)
        return 1 + self.b / (self.a * m) if self.a else torch.full_like(m, torch.inf)

    @property
    def output(self) -> Tensor:
        """Fused weights applied to v, before the projection, (B, heads * C, H, W); needs `values`."""
        return mix(self.fused, self.need("values"))


class Record(Mapping[str, list[LayerRecord]]):
    """What `record` collected: layer name -> one `LayerRecord` for each forward pass, layers in forward order.

    A batch is one pass; a tiled image is as many passes as it has tiles.

    Attributes:
        features: stage name -> its output (B, C, H, W) for each pass, if features were kept.
    """

    def __init__(self, model: DerainTransformer, names: Sequence[str]):
        self.model = model
        self.features: dict[str, list[Tensor]] = {}
        self._layers = model.attention_layers()
        self._passes: dict[str, list[LayerRecord]] = {name: [] for name in names}

    def __getitem__(self, name: str) -> list[LayerRecord]:
        return self._passes[choose("recorded layer", name, self._passes)]

    def __contains__(self, name: object) -> bool:
        return name in self._passes

    def __iter__(self) -> Iterator[str]:
        return iter(self._passes)

    def __len__(self) -> int:
        return len(self._passes)

    def __repr__(self) -> str:
        passes = max(map(len, self._passes.values()))
        changed = self.changed()
        since = f"; {len(changed)} layers have changed since ({', '.join(changed[:3])})" if changed else ""
        return f"Record({len(self)} layers, {passes} passes, {self.nbytes / 1e6:.1f} MB{since})"

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held."""
        held = [
            value for entries in self._passes.values() for entry in entries for value in vars(entry).values()
        ]
        held += [mask for value in held if isinstance(value, tuple) for mask in value]
        held += [feature for features in self.features.values() for feature in features]
        storages = [value.untyped_storage() for value in held if isinstance(value, Tensor)]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def entries(self) -> list[LayerRecord]:
        """All layers in forward order, all passes of one after another.

        Raises:
            LabError: the network was not run while it was recorded.
        """
        found = [entry for entries in self._passes.values() for entry in entries]
        if not found:
            raise LabError("the record is empty: run the model inside `with record(model) as rec:`")
        return found

    def changed(self) -> list[str]:
        """Layers whose weights are no longer those recorded. Mode, keep and a, b are in the record itself."""
        return [name for name, entries in self._passes.items() if entries and self._is_changed(entries[-1])]

    def layer(self, name: str, index: int = -1) -> ChannelAttention:
        """Return the live attention layer behind a record, for what needs its weights.

        Args:
            name: a recorded layer.
            index: which pass it must agree with.

        Raises:
            LabError: unknown name, no such pass, or the layer's weights have changed since they were recorded.
        """
        entry = pick(self, name, index)
        if self._is_changed(entry):
            raise LabError(
                f"the weights of {name} have changed since they were recorded: record the model again"
            )
        return self._layers[name]

    def _is_changed(self, entry: LayerRecord) -> bool:
        now = marks(self._layers[entry.name])
        return not all(math.isclose(one, other, rel_tol=1e-9) for one, other in zip(entry.marks, now))


def pick(rec: Record, layer: str, index: int = 0) -> LayerRecord:
    """Return one pass of one layer.

    Raises:
        LabError: unknown layer, or it has no such pass.
    """
    entries = rec[layer]
    if not -len(entries) <= index < len(entries):
        raise LabError(f"{layer} has {len(entries)} recorded passes, so there is no pass {index}")
    return entries[index]


def marks(layer: ChannelAttention) -> tuple[float, ...]:
    """One number for each parameter whose values a record does not hold, to notice that it has changed.

    Sums of values rather than torch's version counters: those miss `.data` edits, and count moves between
    devices and changes that were taken back. Rows count 1, 2, 3, ... so that exchanged rows show too.
    """
    sums = []
    for parameter in (layer.qkv.weight, layer.depthwise.weight, layer.project.weight):
        rows = parameter.detach().flatten(1).sum(dim=1, dtype=torch.float64)
        sums.append(rows @ torch.arange(1, len(rows) + 1, dtype=torch.float64, device=rows.device))
    return tuple(torch.stack(sums).tolist())
