"""A run's folder: settings, rows of numbers, weights, and the state from which it goes on."""

import csv
import json
import pickle
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ddsa_lab.errors import LabError
from ddsa_lab.files import atomic_write, write_json
from ddsa_lab.model.checkpoints import save
from ddsa_lab.training.config import TrainConfig

CONFIG, STATE, WEIGHTS = "config.json", "state.pt", "model.safetensors"
# Apart from the clock (timing.csv), the rows of equal settings and seeds are equal on one machine.
TABLES = ("metrics.csv", "timing.csv", "sparsity.csv")


class RunFolder:
    """Reads and writes one run's files; use it while holding the folder's RunLock.

    Args:
        path: the folder; made if absent.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def prepare(self, config: TrainConfig, resume: bool) -> dict[str, Any] | None:
        """Write the settings, or compare them and return the state to go on from.

        Returns:
            The last checkpoint's state, or None where there is none yet.

        Raises:
            LabError: the folder holds a run and `resume` is False, or one of other settings, or a broken one.
        """
        ours = (self.path / CONFIG).exists()
        foreign = [name for name in (STATE, WEIGHTS, *TABLES) if not ours and (self.path / name).exists()]
        if foreign:
            raise LabError(f"{self.path} holds {foreign[0]} but no {CONFIG} of a run: choose another folder")
        before = read_config(self.path) if ours else config
        started = (self.path / STATE).exists()
        if started and not resume:
            raise LabError(f"{self.path} holds a run already: resume it (--resume) or choose another folder")
        if started and (changed := config.differences(before)):
            raise LabError(
                f"{self.path} was made with other settings ({'; '.join(changed)}): repeat them or choose another folder"
            )
        state = self.read_state()
        if state is None:  # new, or it ended before its first checkpoint: nothing to lose
            write_json(self.path / CONFIG, config.to_dict() | {"software": software()})
        for name in TABLES:
            self._cut_table(name, state["step"] if state else 0)
        return state

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint once the new one is complete on disk."""
        with atomic_write(self.path / STATE) as temporary:
            try:
                torch.save(dict(state), temporary)
            except RuntimeError as error:  # how torch's file writer reports a full disk
                raise LabError(
                    f"cannot write {self.path / STATE} (is the disk full?); it was left as it was"
                ) from error

    def read_state(self) -> dict[str, Any] | None:
        """Return the last checkpoint, or None.

        Raises:
            LabError: it is truncated or no checkpoint of ours.
        """
        path = self.path / STATE
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise LabError(
                f"{path} is damaged or no checkpoint of ours: delete it to start this run anew"
            ) from error

    def write_weights(self, net: torch.nn.Module, step: int) -> None:
        """Write the network for use, float32, with its settings inside."""
        save(net, self.path / WEIGHTS, {"step": str(step)})

    def add_rows(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to a CSV table; each goes to the system at once, so that a kill leaves none half-written."""
        rows, path = list(rows), self.path / table
        if not rows:
            return
        try:
            with open(path, "a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerows(rows)
        except OSError as error:
            raise LabError(
                f"cannot write {path}: {error.strerror or error}; the last checkpoint is intact"
            ) from error

    def history(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.csv joined by step with those of timing.csv, numbers as numbers."""
        timing = {row["step"]: row for row in read_table(self.path / "timing.csv")}
        return [row | timing.get(row["step"], {}) for row in read_table(self.path / "metrics.csv")]

    def _cut_table(self, name: str, step: int) -> None:
        path = self.path / name
        if not path.exists():
            return
        head, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
        kept = [line for line in lines if line.endswith("\n") and int(line.split(",", 1)[0]) <= step]
        with atomic_write(path) as temporary:
            temporary.write_text(head + "".join(kept) if kept else "", encoding="utf-8")


def read_config(folder: Path) -> TrainConfig:
    """Return the settings of the run in `folder`.

    Raises:
        LabError: config.json is absent, damaged, or of another version.
    """
    path = Path(folder) / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LabError(
            f"{path} cannot be read as a run's settings ({error}): choose another folder"
        ) from error
    if not isinstance(values, dict):
        raise LabError(f"{path} holds no run's settings: choose another folder")
    return TrainConfig.from_dict({name: value for name, value in values.items() if name != "software"})


def read_table(path: Path) -> list[dict[str, Any]]:
    """Return a CSV's rows, numbers as numbers and empty cells as None; no rows where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]


def software() -> dict[str, str]:
    """Return the versions that a result depends on."""
    from importlib.metadata import version

    names = ("ddsa-lab", "torch", "lightning-fabric", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None
