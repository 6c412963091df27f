"""What a study compares: variants of one network, under equal budgets, seeds, data and rain."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ddsa_lab.data.datasets import held_out_pairs
from ddsa_lab.data.photos import HELD_OUT_PHOTOS
from ddsa_lab.data.rain import RainyPair, find_presets
from ddsa_lab.errors import LabError, choose
from ddsa_lab.model.network import NetworkConfig
from ddsa_lab.training.config import TrainConfig, check_fields

_VARIED = ("network", "seed")  # what a study sets itself, run by run


@dataclass(frozen=True)
class HeldOut:
    """The fixed pairs that every run is scored on, never trained on.

    The same photo under several rains is one scene: its scores belong together in the statistics.
    """

    photos: str | None = None  # folder of clean photos; None: the bundled held-out ones
    rain: tuple[str, ...] = ("light",)
    size: int = 128  # longest side of the middle part, pixels: scoring stays short beside training
    count: int | None = None  # at most so many photos, spread evenly over the folder
    seed: int = 1000  # of the rain; apart from the seeds that runs are trained with

    def __post_init__(self) -> None:
        rain = (self.rain,) if isinstance(self.rain, str) else self.rain
        object.__setattr__(self, "rain", _several("validation.rain", rain, str, "names"))
        for name in self.rain:
            find_presets(name)
        if not isinstance(self.photos, str | Path | None):
            raise LabError(f"validation.photos must name a folder, found {self.photos!r}")
        for name, least in (("size", 1), ("count", 1), ("seed", 0)):
            value = getattr(self, name)
            if not (value is None and name == "count") and not (_whole(value) and value >= least):
                raise LabError(
                    f"validation.{name} must be a whole number of at least {least}, found {value!r}"
                )

    def pairs(self) -> list[tuple[str, str, RainyPair]]:
        """Return (name, scene, pair) of each.

        Raises:
            LabError: no such folder or photos, an unknown rain, or a size below 1.
        """
        found = []
        for rain in self.rain:
            named = held_out_pairs(rain, self.seed, self.size, self.photos or HELD_OUT_PHOTOS)
            count = min(self.count or len(named), len(named))
            chosen = [named[i * len(named) // count] for i in range(count)]
            found += [(f"{scene}-{rain}", scene, pair) for scene, pair in chosen]
        return found


@dataclass(frozen=True)
class Run:
    """One training of a study: a variant from one seed."""

    variant: str
    seed: int
    changes: Mapping[str, Any]  # the variant's NetworkConfig fields
    config: TrainConfig

    @property
    def name(self) -> str:
        """Its folder within the study's, and what the progress bar calls it."""
        return f"{self.variant}/seed-{self.seed}"


@dataclass(frozen=True)
class StudyConfig:
    """A fair comparison; `runs()` lists its trainings.

    Runs of one seed see the same patches and rain in the same order, and start equal in all tensors that they share.

    Args:
        name: a few words.
        variants: name of each variant -> the NetworkConfig fields that make it ({} for the network as it is).
        network: NetworkConfig fields common to all, "preset" among them.
        train: TrainConfig fields common to all, with exactly one of "steps" and "seconds". "{variant}" and "{seed}" in
            "start_from" stand for the run's own: a study can go on from the runs of another.
        seeds: at least three, or the statistics will support no claim.
        validation: what every run is scored on.

    Raises:
        LabError: an unknown field (the valid ones are named) or a bad value, in any variant.
    """

    name: str
    variants: Mapping[str, Mapping[str, Any]]
    network: Mapping[str, Any] = field(default_factory=lambda: {"preset": "tiny"})
    train: Mapping[str, Any] = field(default_factory=lambda: {"steps": 300})
    seeds: tuple[int, ...] = (0, 1, 2)
    validation: HeldOut = field(default_factory=HeldOut)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", _several("seeds", self.seeds, int, "whole numbers"))
        if not self.variants:
            raise LabError("a study needs at least one variant")
        for name, changes in self.variants.items():
            if not isinstance(changes, Mapping):
                raise LabError(f"variant {name!r} must be a table of network settings, found {changes!r}")
        if not isinstance(self.validation, HeldOut):
            raise LabError(f"a study's validation must be a table of settings, found {self.validation!r}")
        if len(set(self.seeds)) < len(self.seeds):
            raise LabError(f"each seed counts once, found {list(self.seeds)}")
        if taken := [name for name in _VARIED if name in self.train]:
            raise LabError(f"train must not hold {taken[0]!r}: a study sets it run by run")
        for name in self.variants:
            if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", name):
                raise LabError(f"variant {name!r} names a folder: use letters, digits and . _ + - only")
        self.runs()

    def runs(self) -> list[Run]:
        """Return all trainings, seed by seed, so that a study broken off has compared all variants on some."""
        return [
            Run(name, seed, dict(self.variants[name]), self._settings(name, seed))
            for seed in self.seeds
            for name in self.variants
        ]

    def _settings(self, variant: str, seed: int) -> TrainConfig:
        changes = {"preset": None} | {**self.network, **self.variants[variant]}
        preset = changes.pop("preset")
        try:
            network = NetworkConfig.preset(preset, **changes) if preset else NetworkConfig.from_dict(changes)
            train = {**self.train, "network": network, "seed": seed}
            if isinstance(train.get("start_from"), str):
                train["start_from"] = (
                    train["start_from"].replace("{variant}", variant).replace("{seed}", str(seed))
                )
            return TrainConfig.from_dict(train)
        except LabError as error:
            raise LabError(f"variant {variant!r}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; `from_dict` turns them back."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "StudyConfig":
        """Build a study from plain values.

        Beside the fields, "grid" may hold a list of {field: [values]}: every combination within an entry is a variant,
        named by its values ("dual-keep0.3").

        Raises:
            LabError: an unknown or missing field, or a bad value.
        """
        values = dict(values)
        grid = values.pop("grid", [])
        values = check_fields("study setting (or grid)", values, cls)
        if "name" not in values:
            raise LabError("a study needs a 'name'")
        for name in ("network", "train", "variants"):
            if not isinstance(values.get(name, {}), Mapping):
                raise LabError(f"a study's {name} must be a table of fields, found {values[name]!r}")
        values["variants"] = {**expand_grid(grid), **values.get("variants", {})}
        if isinstance(values.get("validation"), Mapping):
            values["validation"] = HeldOut(
                **check_fields("validation setting", values["validation"], HeldOut)
            )
        return cls(**values)

    @classmethod
    def read(cls, path: str | Path) -> "StudyConfig":
        """Read a study from a JSON file.

        Raises:
            LabError: the file cannot be read, is no JSON, or no study.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LabError(f"{path} cannot be read as a study in JSON: {error}") from error
        if not isinstance(values, dict):
            raise LabError(f"{path} holds no study: it must be one JSON object")
        try:
            return cls.from_dict(values)
        except LabError as error:
            raise LabError(f"{path}: {error}") from error

    def obstacles(self, before: "StudyConfig") -> list[str]:
        """Say what keeps this study from going on in a folder made for `before`; more variants or seeds don't."""
        found = []
        for name in ("network", "train", "validation"):
            old, new = ({**_plain(getattr(study, name))} for study in (before, self))
            found += [
                f"{name}.{key} {old.get(key)!r} -> {new.get(key)!r}"
                for key in old | new
                if old.get(key) != new.get(key)
            ]
        ours = _plain(self.variants)
        for name, changes in _plain(before.variants).items():
            if ours.get(name) != changes:
                found.append(f"variant {name} {changes} -> {ours.get(name, 'absent')}")
        return found + [f"seed {seed} -> absent" for seed in before.seeds if seed not in self.seeds]


def expand_grid(grid: Sequence[Mapping[str, Sequence[Any]]]) -> dict[str, dict[str, Any]]:
    """Return the variants of a grid: for each entry, every combination of its fields' values.

    Raises:
        LabError: an entry that is no table of lists, an unknown field, or two variants of one name.
    """
    variants: dict[str, dict[str, Any]] = {}
    for entry in _several("grid", grid, Mapping, "tables", least=0):
        if not all(isinstance(options, list | tuple) for options in entry.values()):
            raise LabError(f"each entry of a grid must give lists of values by field, found {entry!r}")
        for name in entry:
            choose("network setting", name, [item.name for item in fields(NetworkConfig)])
        for combination in itertools.product(*entry.values()):
            changes = dict(zip(entry, combination))
            name = "-".join(_label(key, value) for key, value in changes.items())
            if name in variants:
                raise LabError(f"the grid gives variant {name!r} twice")
            variants[name] = changes
    return variants


def _several(name: str, values: Any, kind: type, what: str, least: int = 1) -> tuple[Any, ...]:
    """`values` as a tuple, if it is a list of things of one kind."""
    if (
        not isinstance(values, list | tuple)
        or len(values) < least
        or not all(_whole(value) if kind is int else isinstance(value, kind) for value in values)
    ):
        raise LabError(f"{name} must be a list of {what}, found {values!r}")
    return tuple(values)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _label(name: str, value: Any) -> str:
    text = "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if name in ("mode", "ffn") else f"{name}{text}"


def _plain(value: Any) -> dict[str, Any]:
    plain = asdict(value) if isinstance(value, HeldOut) else dict(value)
    return json.loads(json.dumps(plain))
