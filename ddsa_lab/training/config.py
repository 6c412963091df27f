"""The settings of one training run: one frozen dataclass, checked when made, kept as JSON beside the run."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ddsa_lab.data.rain import find_presets
from ddsa_lab.errors import LabError, choose
from ddsa_lab.model.network import NetworkConfig

PRECISIONS = ("32-true", "bf16-mixed")
OPTIMIZERS = ("adamw", "muon")

# These may change when a run is resumed: they alter when something is written, never what is learned.
_FREE_ON_RESUME = ("checkpoint_every_seconds", "checkpoint_every", "workers")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run learns.

    Raises:
        LabError: a value outside its range, or not exactly one budget.
    """

    network: NetworkConfig
    rain: str = "light"  # preset of synthetic rain; "light+heavy" draws either, patch by patch
    photos: str | None = None  # folder of clean photos; None: the bundled ones, so that nothing is downloaded
    pairs: str | None = None  # folder of rainy/clean pairs: trains on them instead of synthetic rain
    start_from: str | None = None  # weights to begin with (shipped name or file); None: seeded initialisation
    patch: int = 64  # side in pixels; attention acts on channels, so small patches still teach it
    batch: int = 8  # patches a step over all devices together, so that more devices learn the same
    steps: int | None = None  # the budget: either this ...
    seconds: float | None = None  # ... or this: time spent in steps (validation and callbacks don't count)
    # "adamw" is the paper's; "muon" leads in runs of some hundred steps (training/optimizer.py).
    optimizer: str = "adamw"
    lr: float = 1e-3  # peak. The paper's 3e-4 is for 300,000 steps; short runs of small networks want more
    weight_decay: float = 1e-4  # the released code's
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: int = 50  # steps of linear rise: Adam's second moments are unreliable in the first ones
    min_lr: float = 1e-6  # where the cosine ends (the released code's)
    # Largest gradient norm, 0 = off. The released 0.01 turns AdamW's early steps into noise.
    clip: float = 1.0
    ema: float = 0.999  # decay of the averaged weights that are validated and saved, 0 = off
    dead_leaves: float = 0.2  # share of patches from procedural images, which never run out
    precision: str = "32-true"  # "bf16-mixed" pays on GPUs with tensor cores, not on most CPUs
    compile: bool = False  # torch.compile: 20 to 60 s before the first step, worth it in long GPU runs only
    # (share of budget, patch, batch) from which on it holds: small patches first.
    patch_schedule: tuple[tuple[float, int, int], ...] = ()
    seed: int = 0  # initial weights, order and rain
    log_every: int = 10  # steps a row of metrics.csv averages over
    validate_every: int = 0  # steps; 0: once, at the end
    record_every: int = 0  # steps between sparsity records; 0: once, at the end (if a recorder is given)
    checkpoint_every_seconds: float = 60.0  # what a killed run can lose; a tiny checkpoint takes about 20 ms
    checkpoint_every: int = 0  # steps; 0: by the clock alone
    # Processes that make patches. None: 0 on CPU, where rain takes 5 % of a tiny network's step; up to 8 beside a GPU.
    workers: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.network, NetworkConfig):
            raise LabError(f"network must be a NetworkConfig, found {type(self.network).__name__}")
        for name in ("betas", "patch_schedule"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple):
                raise LabError(f"{name} must be a list, found {value!r}")
            object.__setattr__(self, name, _tuples(value))
        for name in ("photos", "pairs", "start_from"):
            if not isinstance(getattr(self, name), str | Path | None):
                raise LabError(f"{name} must be a name or path, found {getattr(self, name)!r}")
        find_presets(self.rain)
        choose("precision", self.precision, PRECISIONS)
        choose("optimizer", self.optimizer, OPTIMIZERS)
        if (self.steps is None) == (self.seconds is None):
            raise LabError("give exactly one budget: steps or seconds")
        if self.pairs is not None and self.photos is not None:
            raise LabError("give photos (rain is added to them) or pairs (rainy and clean files), not both")
        self._check_ranges()
        self._check_stages()

    def _check_ranges(self) -> None:
        whole = dict.fromkeys(("patch", "batch", "log_every"), 1)
        whole |= dict.fromkeys(("warmup", "seed", "validate_every", "record_every", "checkpoint_every"), 0)
        whole |= {
            name: least for name, least in (("steps", 1), ("workers", 0)) if getattr(self, name) is not None
        }
        for name, least in whole.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise LabError(f"{name} must be a whole number of at least {least}, found {value!r}")
        above = ("lr", "checkpoint_every_seconds") + (("seconds",) if self.seconds is not None else ())
        for name in (*above, "weight_decay", "min_lr", "clip"):
            value = getattr(self, name)
            if not _is_number(value) or value < 0 or (name in above and value == 0):
                raise LabError(
                    f"{name} must be a number {'above' if name in above else 'of at least'} 0, found {value!r}"
                )
        below_one = {"ema": self.ema} | {f"betas[{i}]": beta for i, beta in enumerate(self.betas)}
        for name, value in below_one.items():
            if not _is_number(value) or not 0 <= value < 1:
                raise LabError(f"{name} must lie in [0, 1), found {value!r}")
        if len(self.betas) != 2:
            raise LabError(f"betas must be two numbers, found {self.betas!r}")
        if not _is_number(self.dead_leaves) or not 0 <= self.dead_leaves <= 1:
            raise LabError(f"dead_leaves must lie in [0, 1], found {self.dead_leaves!r}")

    def _check_stages(self) -> None:
        stages = self.patch_schedule
        if not stages:
            return
        shaped = all(isinstance(stage, tuple) and len(stage) == 3 for stage in stages)
        if not shaped or not all(
            _is_number(s[0]) and all(type(n) is int and n > 0 for n in s[1:]) for s in stages
        ):
            raise LabError(
                f"patch_schedule must hold (share of budget, patch, batch) triples, found {stages!r}"
            )
        shares = [stage[0] for stage in stages]
        if shares[0] != 0 or shares != sorted(set(shares)) or shares[-1] >= 1:
            raise LabError(
                f"patch_schedule's shares must start at 0 and rise, staying below 1, found {shares}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; `from_dict` turns them back."""
        return _lists(dataclasses.asdict(self) | {"network": self.network.to_dict()})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Rebuild settings from `to_dict`'s values.

        Raises:
            LabError: a field that does not exist (the nearest valid names are given), or a bad value.
        """
        known = check_fields("training setting", values, cls)
        network = known.get("network")
        if isinstance(network, Mapping):
            known["network"] = NetworkConfig.from_dict(_tuples(network))
        if "network" not in known:
            raise LabError("the training settings lack 'network'")
        return cls(**known)

    def differences(self, other: "TrainConfig") -> list[str]:
        """Say which settings differ from `other`'s, those that may change on resuming left out."""
        mine, theirs = _flat(self.to_dict()), _flat(other.to_dict())
        names = [name for name in mine | theirs if name not in _FREE_ON_RESUME]
        return [
            f"{name} {theirs.get(name)!r} -> {mine.get(name)!r}"
            for name in names
            if mine.get(name) != theirs.get(name)
        ]


def check_fields(what: str, values: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Return `values` with lists as tuples, after checking that dataclass `kind` has every field named."""
    names = [field.name for field in fields(kind)]
    return {choose(what, name, names): _tuples(value) for name, value in values.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lists(item) for name, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    network = {f"network.{name}": value for name, value in values["network"].items()}
    return network | {name: value for name, value in values.items() if name != "network"}
