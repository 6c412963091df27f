"""What figures share: networks, rainy pairs and restored images, each made once, and what a drawing consists of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ddsa_lab.data.rain import RainyPair, rainy_pair
from ddsa_lab.model.checkpoints import find_weights, load, shipped_weights
from ddsa_lab.model.network import DerainTransformer
from ddsa_lab.model.restore import derain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELD_OUT = ("coffee", "china", "chelsea", "rocket")
LICENCES = {
    "coffee": "CC0, Rachel Michetti",
    "chelsea": "CC0, Stefan van der Walt",
    "china": "CC BY 2.0, danielbuechele",
    "rocket": "public domain, SpaceX",
}


class Missing(Exception):
    """A figure cannot be drawn because something it needs is not there; the message says what would do."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """A finished figure with all that was drawn in it."""

    figure: "Figure"
    numbers: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  # further files: text by suffix (".tex", ".md")


class Workbench:
    """Networks and images by name, loaded or computed when first asked for.

    Args:
        weights: shipped name or checkpoint of the network that figures are about.
        history: folder of a training run, or a history table, for the figure of training curves.
    """

    def __init__(self, weights: str = "dual-tiny", history: str | Path | None = None):
        self.weights = weights
        self.history = None if history is None else Path(history)
        self.used: dict[str, dict[str, Any]] = {"weights": {}, "photos": {}, "seeds": {}}
        self._models: dict[str, tuple[DerainTransformer, str]] = {}  # with the file's digest
        self._pairs: dict[tuple[Any, ...], RainyPair] = {}
        self._restored: dict[tuple[Any, ...], Tensor] = {}

    @property
    def name(self) -> str:
        """What the network is called in figures."""
        return self.weights if self.weights in shipped_weights() else Path(self.weights).stem

    def siblings(self) -> list[str]:
        """Shipped names of the same size in other modes ("dense-tiny"), and this one last."""
        _, dash, size = self.name.partition("-")
        others = [f"{mode}-{size}" for mode in ("dense", "sparse", "dual")] if dash else []
        there = shipped_weights()
        return [name for name in others if name in there and name != self.name] + [self.name]

    def model(self, name: str | None = None) -> DerainTransformer:
        """Return a network in evaluation mode; the one that figures are about by default."""
        import hashlib

        name = name or self.name
        where = self.weights if name == self.name else name
        if name not in self._models:
            digest = hashlib.sha256(find_weights(where).read_bytes()).hexdigest()[:16]
            self._models[name] = load(where), digest
        model, self.used["weights"][name] = self._models[name]
        return model

    def pair(self, photo: str, rain: str, size: int | None = None, seed: int = 0) -> RainyPair:
        """Return a held-out photo under rain, and note its licence and seed."""
        key = (photo, rain, size, seed)
        if key not in self._pairs:
            self._pairs[key] = rainy_pair(photo, rain, seed, size)
        self.used["photos"][photo] = LICENCES[photo]
        self.used["seeds"]["rain"] = sorted({*self.used["seeds"].get("rain", []), seed})
        return self._pairs[key]

    def restored(
        self, photo: str, rain: str, size: int | None = None, seed: int = 0, name: str | None = None
    ) -> Tensor:
        """Return what a network makes of a pair's rainy image, whole (no tiles)."""
        key = (photo, rain, size, seed, name or self.name)
        if key not in self._restored:
            self._restored[key] = derain(self.model(name), self.pair(photo, rain, size, seed).rainy, tile=0)
        else:
            self.model(name), self.pair(photo, rain, size, seed)  # so that they are noted
        return self._restored[key]
