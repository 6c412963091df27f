"""Surgery on a trained network, without retraining: other k, one branch only, other keys, and back again.

    with surgery(model, keep=0.3, mode="sparse", layers="latent"):
        restored = derain(model, image)

Everything is put back when the block ends, also after an exception. Whether a result comes from keeping the
*strongest* keys is shown by controls that keep as many at random, or the weakest.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ddsa_lab.analysis.probe import Record, pick, record, select_layers
from ddsa_lab.analysis.records import fuse, top_masks
from ddsa_lab.errors import LabError, choose
from ddsa_lab.evaluation.metrics import PROTOCOLS, score
from ddsa_lab.model.attention import AttentionWeights, keep_count
from ddsa_lab.model.network import DerainTransformer
from ddsa_lab.model.restore import derain

if TYPE_CHECKING:
    from pandas import DataFrame

SELECTS = ("top", "random", "bottom")
Keep = float | tuple[float, ...]


@contextmanager
def surgery(
    model: DerainTransformer,
    keep: Keep | None = None,
    mode: str | None = None,
    branch: Sequence[float | None] | None = None,
    select: str = "top",
    layers: str | Sequence[str] | None = None,
    seed: int = 0,
    masks: Record | None = None,
) -> Iterator[DerainTransformer]:
    """Change the attention of a network inside the `with` block. Blocks can be nested.

    Args:
        model: the network, changed in place and restored on exit.
        keep: share of the keys to keep, in (0, 1]; for "multi" one for all branches, or one for each.
        mode: "dense" (no sparse branch), "sparse" (no dense branch) or "dual".
        branch: branch weights to use, (a, b) or four; None leaves one as it is: (None, 0) silences the sparse branch.
        select: which keys the sparse branches keep: the "top" k, k "random" ones (the same for every image), or the
            "bottom" k.
        layers: which layers; None for all, or names, beginnings, patterns (see `probe.select_layers`).
        seed: of the random keys.
        masks: keep the keys that another image kept: a record of one pass over it.

    Yields:
        The model.

    Raises:
        LabError: settings that don't suit the network, naming what would do.
    """
    choose("selection", select, SELECTS)
    if masks is not None and (keep is not None or select != "top"):
        raise LabError("masks bring their own kept keys: give them without keep and select")
    names = select_layers(model, layers)
    with ExitStack() as undo:
        for name in names:
            weights = model.attention_layers()[name].weights
            if mode is not None:
                undo.callback(setattr, weights, "mode", weights.mode)
                weights.mode = mode
            if keep is not None:
                undo.callback(setattr, weights, "keep", weights.keep)
                weights.keep = _keep_for(weights, keep)
            if branch is not None:
                undo.callback(setattr, weights, "branch", weights.branch)
                weights.branch = _branch_for(name, weights, branch)
            if keep is not None or select != "top" or masks is not None:
                _require_sparse_branch(name, weights)
            if select != "top" or masks is not None:
                given = None if masks is None else _recorded_masks(model, name, weights, masks)
                _Selection(weights, select, _seed(seed, name), given).install(undo)
        yield model


def _keep_for(weights: AttentionWeights, keep: Keep) -> Keep:
    several = weights.keep if isinstance(weights.keep, tuple) else None
    return (keep,) * len(several) if several and not isinstance(keep, tuple | list) else keep


def _branch_for(name: str, weights: AttentionWeights, branch: Sequence[float | None]) -> nn.Parameter:
    """A parameter to stand in for the layer's own, which stays untouched and comes back afterwards."""
    if weights.built_as not in ("dual", "multi"):
        raise LabError(f"{name} was built as {weights.built_as!r}, which has no branch weights to change")
    own = weights.branch
    if len(branch) != len(own):
        raise LabError(f"branch has {len(branch)} values, but {name} has {len(own)} branch weights")
    values = [old if new is None else float(new) for old, new in zip(own.tolist(), branch)]
    return nn.Parameter(torch.tensor(values).to(own), requires_grad=own.requires_grad)


def _require_sparse_branch(name: str, weights: AttentionWeights) -> None:
    if not weights.branches()[1]:
        raise LabError(
            f"{name} has no sparse branch, so there are no kept keys to change: switch it to mode sparse, or choose other layers"
        )


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little") % 2**63


def _recorded_masks(
    model: DerainTransformer, name: str, weights: AttentionWeights, rec: Record
) -> tuple[Tensor, ...]:
    """The masks of a layer's only recorded pass, (1, heads, C, C) for each branch."""
    if len(rec[name]) != 1 or len(rec[name][0].logits) != 1:
        raise LabError(
            f"masks must come from one pass over one image, but {name} was run {len(rec[name])} times"
        )
    if rec.model is model:
        rec.layer(name)  # refuses a record of former weights
    masks = pick(rec, name).masks
    temperature, count = model.attention_layers()[name].temperature, len(weights.branches()[1])
    heads, channels = (
        len(temperature),
        model.attention_layers()[name].project.weight.shape[0] // len(temperature),
    )
    found = [tuple(mask.shape[1:]) for mask in masks]
    if found != [(heads, channels, channels)] * count:
        raise LabError(
            f"the recorded masks don't fit {name}: found {found}, needed {count} of {(heads, channels, channels)}"
        )
    return masks


class _Selection:
    """Replaces the weights of one layer by those of other kept keys, through a forward hook."""

    def __init__(self, weights: AttentionWeights, select: str, seed: int, given: tuple[Tensor, ...] | None):
        self.weights, self.select, self.seed, self.given = weights, select, seed, given

    def install(self, undo: ExitStack) -> None:
        before = self.weights.__dict__.get("selection")
        undo.callback(self.uninstall, before)
        self.weights.selection = self
        # First of all hooks, so that a record sees what the network goes on with.
        undo.callback(self.weights.register_forward_hook(self.hook, prepend=True).remove)

    def uninstall(self, before: "_Selection | None") -> None:
        self.weights.__dict__.pop("forced_masks", None)
        del self.weights.selection
        if before is not None:
            self.weights.selection = before

    def hook(self, weights: AttentionWeights, inputs: tuple[Tensor], _output: Tensor) -> Tensor | None:
        if weights.selection is not self:
            return None  # a surgery inside this one has the say
        z = inputs[0]
        a, sparse = weights.branches()
        masks = self.masks(z.detach(), [keep_count(keep, z.shape[-1]) for keep, _ in sparse])
        weights.forced_masks = masks  # for the probe
        return fuse(z, a, [b for _, b in sparse], masks)

    def masks(self, z: Tensor, counts: list[int]) -> tuple[Tensor, ...]:
        if self.given is not None:
            return tuple(mask.to(z.device).expand(z.shape) for mask in self.given[: len(counts)])
        if self.select == "bottom":
            return top_masks(-z, counts)
        # Drawn on the CPU, for the same keys on every device, image and tile.
        order = torch.rand(z.shape[1:], generator=torch.Generator().manual_seed(self.seed))
        return tuple(mask.to(z.device).expand(z.shape) for mask in top_masks(order, counts))


def swap_masks(model: DerainTransformer, source: Tensor, target: Tensor) -> Tensor:
    """Derain `target` with the keys that the network keeps for `source`, both (3, H, W) of any size.

    Raises:
        LabError: a network without sparse branch.
    """
    with record(model) as rec:
        derain(model, source, tile=0)
    with surgery(model, masks=rec):
        return derain(model, target, tile=0)


def sweep(
    model: DerainTransformer,
    pairs: Sequence[Any],
    keeps: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
    selects: Sequence[str] = SELECTS,
    layers: str | Sequence[str] | None = None,
    per_layer: bool = False,
    mode: str | None = None,
    protocol: str = "y_uint8",
    seed: int = 0,
    draws: int = 1,
    tile: int | None = None,
    progress: bool = True,
) -> "DataFrame":
    """Score a network over the share of keys kept, with random and weakest keys as controls.

    Args:
        model: a trained network in evaluation mode.
        pairs: objects with .rainy and .clean (3, H, W), or (name, such an object).
        keeps: shares of the keys, in (0, 1].
        selects: of "top", "random", "bottom".
        layers: which layers to change; None for all.
        per_layer: change one layer at a time instead of all together.
        mode: attention mode to switch to first; a network trained dense needs "sparse" here.
        protocol: see `metrics.PROTOCOLS`.
        seed: of the random keys.
        draws: how many draws of the random keys.
        tile: see `derain`.
        progress: show a bar with the time left.

    Returns:
        One row for each setting and image: keep, select, draw, layer ("all" or the layer changed; the selection if
        only some were chosen), image, psnr, ssim, protocol. All controls agree at keep = 1, where every key is kept.

    Raises:
        LabError: settings that don't suit the network, an unknown protocol, no pairs.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    choose("protocol", protocol, PROTOCOLS)
    for select in selects:
        choose("selection", select, SELECTS)
    for keep in keeps:
        keep_count(keep, 1)  # refuses values outside (0, 1] before hours are spent
    named = [pair if not hasattr(pair, "rainy") else (str(i), pair) for i, pair in enumerate(pairs)]
    if not named:
        raise LabError("sweep needs at least one pair to score")
    places = _places(model, layers, per_layer)
    settings = [
        {"keep": keep, "select": select, "draw": draw, "layer": label}
        for label in places
        for select in selects
        for keep in keeps
        for draw in range(draws if select == "random" else 1)
    ]
    rows = []
    run = partial(_score_all, model, named, mode=mode, protocol=protocol, tile=tile)
    with tqdm(total=len(settings) * len(named), desc="sweep", unit="image", disable=not progress) as bar:
        for setting in settings:
            rows += run(setting, places[setting["layer"]], seed=seed + setting["draw"])
            bar.update(len(named))
    return pd.DataFrame(rows)


def _places(
    model: DerainTransformer, layers: str | Sequence[str] | None, per_layer: bool
) -> dict[str, list[str]]:
    """Label in the table -> layers to change together."""
    names = select_layers(model, layers)
    if per_layer:
        return {name: [name] for name in names}
    label = "all" if layers is None else layers if isinstance(layers, str) else ", ".join(layers)
    return {label: names}


def _score_all(
    model: DerainTransformer,
    named: Sequence[tuple[str, Any]],
    setting: dict[str, Any],
    names: list[str],
    *,
    mode: str | None,
    protocol: str,
    tile: int | None,
    seed: int,
) -> list[dict[str, Any]]:
    rows = []
    with surgery(model, keep=setting["keep"], mode=mode, select=setting["select"], layers=names, seed=seed):
        for name, pair in named:
            scores = score(derain(model, pair.rainy, tile=tile), pair.clean, protocol)
            rows.append(setting | {"image": name} | scores | {"protocol": protocol})
    return rows
