"""A CSV of scores that survives interruption: rows are appended whole, and read again to go on.

Beside `scores.csv` stands `scores.settings.json` with what the rows depend on. Scores made under other
settings are never continued: they are refused with the difference.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ddsa_lab.data.decode import shown
from ddsa_lab.errors import LabError
from ddsa_lab.files import write_json
from ddsa_lab.training.lock import RunLock


class Row(NamedTuple):
    """One image's scores by one model under one protocol."""

    image: str
    model: str
    protocol: str
    psnr: float
    ssim: float


class Settings(NamedTuple):
    """What scores depend on.

    `common` holds for every row. `models` and `pairs` hold a fingerprint by name and count only for the rows
    of that name, so that models and images can be added later.
    """

    common: Mapping[str, Any]
    models: Mapping[str, str]
    pairs: Mapping[str, str]


class Ledger:
    """Scores already made, and room for more; to be used in a `with` block.

    Args:
        path: the CSV; None keeps the rows in memory only.
        settings: what the rows to come depend on.

    Raises:
        LabError: on entering, when the CSV is not such a table, was made under other settings, is being
            written by another process, or cannot be written.
    """

    def __init__(self, path: Path | None, settings: Settings) -> None:
        self.path, self.settings = path, settings
        self.rows: dict[tuple[str, str, str], Row] = {}
        self._lock, self._file = None, None

    def __enter__(self) -> "Ledger":
        if self.path is None:
            return self
        lock = RunLock(self.path.parent)
        lock.path = lock.path.with_name(f".{self.path.name}.lock")
        if not lock.acquire():
            raise LabError(f"{shown(self.path)} is being written by another evaluation: wait for it to end")
        self._lock = lock
        try:
            self._open(self.path)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._file is not None:
            os.close(self._file)
        if self._lock is not None:
            self._lock.release()
        self._file = self._lock = None

    def append(self, rows: Iterable[Row]) -> None:
        """Keep rows, in one write: an interruption leaves whole lines or at most one broken last line.

        Raises:
            LabError: they cannot be written; the rows before them are safe.
        """
        rows = list(rows)
        if self._file is not None and rows:
            try:
                _write(self._file, _lines(rows))
            except OSError as error:
                raise LabError(
                    f"cannot write {shown(self.path)}: {error.strerror or error}; the scores before are kept, "
                    "and the same evaluation will go on after them"
                ) from error
        self.rows.update({row[:3]: row for row in rows})

    def _open(self, path: Path) -> None:
        beside = path.with_suffix(".settings.json")
        try:
            text = _whole_lines(path) if path.exists() else b""
            if text:
                self.rows = {row[:3]: row for row in _parse(text, path)}
                self._compare(beside)
            write_json(beside, self._described(_read_settings(beside) if self.rows else None))
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            os.ftruncate(self._file, len(text))
            if not text:
                _write(self._file, _lines([Row._fields]))
        except OSError as error:
            raise LabError(f"cannot write {shown(path)}: {error.strerror or error}") from error

    def _described(self, before: dict[str, Any] | None) -> dict[str, Any]:
        """The settings to store: with those of rows that are there already."""
        now = self.settings
        before = before or {"models": {}, "pairs": {}}
        return {
            "made by": "ddsa_lab evaluation",
            **now.common,
            "models": {**before["models"], **now.models},
            "pairs": {**before["pairs"], **now.pairs},
        }

    def _compare(self, beside: Path) -> None:
        if not self.rows:
            return
        before, now = _read_settings(beside), self.settings
        differences = [
            f"{key} was {before.get(key)!r} and is now {value!r}"
            for key, value in now.common.items()
            if before.get(key) != value
        ]
        for kind, index, names in (("models", 1, now.models), ("pairs", 0, now.pairs)):
            scored = dict.fromkeys(key[index] for key in self.rows)
            changed = [name for name in scored if name in names and before[kind].get(name) != names[name]]
            if changed:
                listed = ", ".join(map(shown, changed[:5])) + (", ..." if len(changed) > 5 else "")
                differences.append(f"other content under the same name: {kind[:-1]} {listed}")
        if differences:
            raise LabError(
                f"{shown(self.path)} holds scores made under other settings ({'; '.join(differences)}): "
                "write to another file, or remove this one"
            )


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _parse(text: bytes, path: Path) -> list[Row]:
    lines = list(csv.reader(io.StringIO(text.decode("utf-8", "surrogateescape"), newline="")))
    if tuple(lines[0]) != Row._fields:
        header = ",".join(lines[0])[:80]
        raise LabError(
            f"{shown(path)} is not a table of scores: its first line is {header!r} instead of "
            f"{','.join(Row._fields)!r}; write to another file"
        )
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            *key, psnr, ssim = line
            rows.append(Row(*key, float(psnr), float(ssim)))
        except (ValueError, TypeError):
            raise LabError(f"{shown(path)} is damaged in row {number}: remove that row to go on") from None
    return rows


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(settings["models"], dict) and isinstance(settings["pairs"], dict):
            return settings
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise LabError(
        f"{shown(path)}, which says how the scores beside it were made, is missing or damaged: "
        "write to another file"
    )


def _lines(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _write(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]
