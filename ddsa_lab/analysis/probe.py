"""Looking inside a running network: attention, kept keys, values, gates and features, recorded by hooks.

    with record(model) as rec:
        derain(model, image)
    rec["latent.0"][0].fused        # (B, heads, C, C), of the first forward pass

Hooks are removed when the block ends, also after an exception; no output bit changes.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from ddsa_lab.analysis.records import LayerRecord, Record, marks, pick
from ddsa_lab.errors import LabError, choose
from ddsa_lab.model.feedforward import SpatialGate
from ddsa_lab.model.network import DerainTransformer

__all__ = ["KEEPABLE", "LayerRecord", "Record", "estimate_mb", "pick", "record", "select_layers"]

KEEPABLE = ("attention", "values", "queries", "gates", "features")


def select_layers(model: DerainTransformer, layers: str | Sequence[str] | None = None) -> list[str]:
    """Return the names of attention layers in forward order.

    Args:
        model: the network.
        layers: None for all, or one or several of: a name ("encoder.0.0"), the beginning of names ("encoder",
            "encoder.0"), a pattern ("*.0").

    Raises:
        LabError: something that matches no layer, naming the near ones; no layers at all; or no network of ours.
    """
    if not isinstance(model, DerainTransformer):
        raise LabError(
            f"a DerainTransformer is needed, found {type(model).__name__}: give the network itself, unwrapped"
        )
    names = list(model.attention_layers())
    if layers is None:
        return names
    wanted = [layers] if isinstance(layers, str) else list(layers)
    if not wanted:
        raise LabError("no layers are named: give None for all layers")
    chosen: set[str] = set()
    for text in wanted:
        found = [
            name for name in names if name == text or name.startswith(f"{text}.") or fnmatchcase(name, text)
        ]
        chosen.update(found or [choose("layer", text, names)])
    return [name for name in names if name in chosen]


def estimate_mb(
    model: DerainTransformer,
    height: int,
    width: int,
    layers: str | Sequence[str] | None = None,
    keep: Sequence[str] = ("attention",),
    batch: int = 1,
) -> float:
    """Return the memory in MB (1e6 bytes) that recording one forward pass takes.

    Args:
        model: the network.
        height, width: pixels of the image or tile.
        layers: see `select_layers`.
        keep: see `record`.
        batch: images in the pass.
    """
    names, keep = select_layers(model, layers), _what(keep)
    multiple, size = model.built_with.multiple, next(model.parameters()).element_size()
    total = 0
    for stage, _, channels, heads, level in model.built_with.stages():
        count = sum(name.rpartition(".")[0] == stage for name in names)
        pixels = (-height % multiple + height) * (-width % multiple + width) // 4**level
        maps = count * (("values" in keep) + 2 * ("queries" in keep)) * channels
        maps += count * ("gates" in keep and model.built_with.ffn == "sefn")
        maps += bool(count and "features" in keep) * channels
        logits = count * channels**2 // heads * max(4, size)
        total += batch * (logits + maps * pixels * size) + count * heads * size  # and temperatures
    return total / 1e6


def _what(keep: Sequence[str]) -> set[str]:
    return {choose("thing to keep", what, KEEPABLE) for what in ([keep] if isinstance(keep, str) else keep)}


@contextmanager
def record(
    model: DerainTransformer,
    layers: str | Sequence[str] | None = None,
    keep: Sequence[str] = ("attention",),
    limit_mb: float | None = 1000,
) -> Iterator[Record]:
    """Record what the network does inside the `with` block, without changing it or its output.

    Args:
        model: any network of ours or a loaded published one, on any device; what is recorded stays there.
        layers: which attention layers; None for all, or names, beginnings, patterns (see `select_layers`).
        keep: what to keep beside attention, which is always kept: "values" (v), "queries" (q and k), "gates"
            (the spatial gates of SEFN), "features" (output of each stage).
        limit_mb: memory in MB that the record may take; None for no limit.

    Yields:
        Record, filled by every forward pass.

    Raises:
        LabError: unknown layers or things to keep; or, before memory is spent, a pass that would exceed `limit_mb`.
    """
    names, what = select_layers(model, layers), _what(keep)
    rec, depths = Record(model, names), list(model.attention_layers())
    with ExitStack() as hooks:
        guard = _Guard(names, what, limit_mb)
        hooks.callback(model.register_forward_pre_hook(guard, with_kwargs=True).remove)
        for name in names:
            taker = _Taker(rec, name, depths.index(name), what)
            for module, hook in taker.hooks():
                hooks.callback(module.register_forward_hook(hook).remove)
        stages = dict.fromkeys(name.rpartition(".")[0] for name in names) if "features" in what else ()
        for stage in stages:
            passes = rec.features[stage] = []
            module = model.get_submodule(stage)
            hooks.callback(module.register_forward_hook(_keeper(passes)).remove)
        yield rec


def _keeper(passes: list[Tensor]):
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        passes.append(output.detach())

    return hook


class _Guard:
    """Refuses a forward pass whose record would not fit, before it begins."""

    def __init__(self, names: Sequence[str], what: set[str], limit_mb: float | None):
        self.names, self.what, self.limit_mb, self.used = names, what, limit_mb, 0.0

    def __call__(self, model: DerainTransformer, inputs: tuple, named: dict[str, Any]) -> None:
        image = inputs[0] if inputs else named["image"]
        batch, _, height, width = image.shape
        self.used += estimate_mb(model, height, width, self.names, tuple(self.what), batch)
        if self.limit_mb is not None and self.used > self.limit_mb:
            raise LabError(
                f"recording would take {self.used:,.0f} MB with this {height} x {width} pass, above limit_mb="
                f"{self.limit_mb:g}: choose fewer layers, keep less, or raise limit_mb"
            )


class _Taker:
    """Collects the passes of one layer."""

    def __init__(self, rec: Record, name: str, depth: int, what: set[str]):
        self.layer, self.passes, self.what = rec._layers[name], rec._passes[name], what
        self.block = rec.model.get_submodule(name)
        self.fixed = {"name": name, "stage": name.rpartition(".")[0], "depth": depth}
        self.images: dict[str, Tensor] = {}

    def hooks(self) -> list[tuple[nn.Module, Any]]:
        found = [(self.layer.weights, self.take_weights)]
        if self.what & {"values", "queries"}:
            found.append((self.layer.depthwise, self.take_images))
        if "gates" in self.what:
            found += [(m, self.take_gate) for m in self.block.modules() if isinstance(m, SpatialGate)]
        return found

    def take_images(self, _module: nn.Module, _inputs: Any, qkv: Tensor) -> None:
        q, k, v = qkv.detach().chunk(3, dim=1)
        wanted = {"values": v} if "values" in self.what else {}
        wanted |= {"queries": q, "keys": k} if "queries" in self.what else {}
        # A view would keep all three alive.
        self.images = {name: part.clone() for name, part in wanted.items()}

    def take_weights(self, module: nn.Module, inputs: tuple[Tensor], _output: Tensor) -> None:
        a, sparse = module.branches()
        self.passes.append(
            LayerRecord(
                **self.fixed,
                logits=inputs[0].detach(),
                a=None if a is None else a.item(),
                branches=tuple((keep, b.item()) for keep, b in sparse),
                temperature=self.layer.temperature.detach().flatten().clone(),
                marks=marks(self.layer),
                forced=module.__dict__.get("forced_masks"),
                **self.images,
            )
        )
        self.images = {}

    def take_gate(self, _module: nn.Module, _inputs: Any, gate: Tensor) -> None:
        if self.passes:
            self.passes[-1] = replace(self.passes[-1], gate=gate.detach())
