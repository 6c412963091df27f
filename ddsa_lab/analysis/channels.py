"""What does top-k drop, and what is a channel? Attention over channels moves images, so both can be looked at.

An attention matrix over channels mixes one image per channel (v) into another. Splitting the matrix into
kept and dropped entries splits the output into two images for each channel; and every entry of the matrix is
the agreement of two images, a query channel and a key channel.

All images have the size that the layer works at: the (padded) input's, halved once for each level down.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, normalize

from ddsa_lab.analysis.probe import LayerRecord, Record, pick
from ddsa_lab.analysis.records import mix
from ddsa_lab.errors import LabError, choose


@dataclass(frozen=True, eq=False)
class Parts:
    """An attention output in two parts, each (B, C, H, W): kept + dropped = whole."""

    kept: Tensor
    dropped: Tensor
    whole: Tensor

    @property
    def dropped_share(self) -> Tensor:
        """Norm of the dropped part against the norms of both, (B, C), in [0, 1]."""
        kept, dropped = (part.flatten(2).norm(dim=-1) for part in (self.kept, self.dropped))
        return dropped / (kept + dropped).clamp_min(torch.finfo(kept.dtype).tiny)


def kept_and_dropped(
    rec: Record, layer: str, index: int = 0, of: str = "fused", projected: bool = False
) -> Parts:
    """Split one layer's attention output into what comes from kept keys and what comes from dropped ones.

    Args:
        rec: from `record(model, keep=("values",))`.
        layer: a recorded layer.
        index: which pass.
        of: "fused": the output of the network, where dropped keys still pass through the dense branch with weight a;
            "dense": p v, where dropped is all that a purely sparse layer would lose.
        projected: apply the layer's output projection, which gives what is added to the network's features.

    Returns:
        Parts; without projection channel i is an image mixed for query channel i.

    Raises:
        LabError: values were not recorded, an unknown name; or, if projected, the layer changed since.
    """
    choose("kind of weights", of, ("fused", "dense"))
    entry = pick(rec, layer, index)
    values, mask = entry.need("values"), entry.mask
    weights = getattr(entry, of)
    images = [mix(part, values) for part in (weights * mask, weights * ~mask, weights)]
    if projected:
        projection = rec.layer(layer, index).project.weight.detach()
        images = [conv2d(image, projection.to(image)) for image in images]
    return Parts(*images)


@dataclass(frozen=True, eq=False)
class EntryImages:
    """The images behind one entry of the logits; query and key are scaled to unit length over the pixels."""

    query: Tensor  # (H, W), q_i
    key: Tensor  # (H, W), k_j
    product: Tensor  # (H, W): its sum times the temperature is the logit
    temperature: float
    logit: float  # z_ij, as the network computed it
    dense: float  # p_ij
    fused: float
    kept: bool


def entry_images(
    rec: Record, layer: str, i: int, j: int, head: int = 0, image: int = 0, index: int = 0
) -> EntryImages:
    """Return what query channel i and key channel j of a head look like, and where in the picture they agree.

    z_ij = t sum over pixels of q_i k_j, both of unit length: bright places of the product map argue for
    mixing channel j into channel i, dark ones against it.

    Args:
        rec: from `record(model, keep=("queries",))`.
        layer: a recorded layer.
        i, j: query (row) and key (column), counted within the head.
        head, image, index: which head, image of the batch, and pass.

    Raises:
        LabError: queries were not recorded, or a number out of range.
    """
    entry = pick(rec, layer, index)
    queries, keys = entry.need("queries"), entry.need("keys")
    _check(entry, image=image, head=head, i=i, j=j)
    start = head * entry.channels
    q, k = (images[image, start + n] for images, n in ((queries, i), (keys, j)))
    q, k = (normalize(channel.float(), dim=(0, 1)) for channel in (q, k))
    place = (image, head, i, j)
    return EntryImages(
        q, k, q * k,
        temperature=float(entry.temperature[head]), logit=float(entry.logits[place]),
        dense=float(entry.dense[place]), fused=float(entry.fused[place]), kept=bool(entry.mask[place]),
    )  # fmt: skip


def _check(entry: LayerRecord, **places: int) -> None:
    for (name, number), size in zip(places.items(), entry.logits.shape):
        if not 0 <= number < size:
            raise LabError(f"{name} is {number}, but {entry.name} has {size}: choose from 0 to {size - 1}")
