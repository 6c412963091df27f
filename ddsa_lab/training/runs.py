"""One run of a study: taken by one process at a time, trained, scored, and marked as done."""

import csv
import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddsa_lab.errors import LabError
from ddsa_lab.files import atomic_write, write_json
from ddsa_lab.model.cost import count_macs, count_parameters
from ddsa_lab.model.restore import derain
from ddsa_lab.training.learner import rgb_psnr
from ddsa_lab.training.lock import RunLock
from ddsa_lab.training.loop import FitResult, Recorder, fit
from ddsa_lab.training.schedule import used
from ddsa_lab.training.state import software
from ddsa_lab.training.study_config import Run

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Scorer = Callable[
    [Tensor, Tensor], Iterable[Mapping[str, Any]]
]  # (restored, clean) -> rows such as {"psnr": 30.1}
MakeRecorder = Callable[[Sequence[Any]], Recorder]  # validation pairs -> what `fit` calls for sparsity.csv

SCORES, RESULT, FAILURE, CLAIM = "scores.csv", "result.json", "failure.txt", ".claim"
COST_SIDE = 256  # pixels a side of the image whose multiply-adds are stated, as in the papers' tables


def plain_psnr(restored: Tensor, clean: Tensor) -> list[dict[str, Any]]:
    """Score by RGB PSNR in dB, not rounded to 8 bits; what a study does unless it is given a better scorer."""
    return [{"protocol": "rgb_float", "psnr": rgb_psnr(restored, clean).item()}]


@dataclass(frozen=True)
class Work:
    """How each run of a study is done; the functions must be importable by name to reach other processes."""

    score: Scorer = plain_psnr
    make_recorder: MakeRecorder | None = None
    accelerator: str = "auto"


def is_done(folder: Path) -> bool:
    """Say whether the run in `folder` is finished and scored."""
    return (folder / RESULT).exists()


def failure(folder: Path) -> str | None:
    """Return why the run in `folder` failed, if it did."""
    try:
        return (folder / FAILURE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def claim(folder: Path) -> RunLock | None:
    """Take a run that is to be done; None if it is done, has failed, or another process is at it."""
    if is_done(folder) or failure(folder) is not None:
        return None
    lock = RunLock(folder, CLAIM)
    if not lock.acquire():
        return None
    if is_done(folder) or failure(folder) is not None:  # ended while we asked
        lock.release()
        return None
    return lock


def finish(run: Run, folder: Path, work: Work, pairs: Sequence[tuple[str, str, Any]], **how: Any) -> None:
    """Train, or go on training, a claimed run; score it and mark it as done, or note why it failed.

    Args:
        run: what to train.
        folder: where.
        work: scorer, recorder and accelerator.
        pairs: (name, scene, pair) to score on.
        how: `fabric` and `progress` of `fit`.
    """
    validation = [(name, pair) for name, _, pair in pairs]
    record = work.make_recorder([pair for _, pair in validation]) if work.make_recorder else None
    fabric: Fabric | None = how.get("fabric")
    leader = fabric is None or fabric.is_global_zero
    try:
        result = fit(run.config, folder, resume=True, validation=validation, record=record, label=run.name,
                     accelerator=work.accelerator, **how)  # fmt: skip
        if leader:
            _write_scores(result, folder, work, pairs)
            write_json(folder / RESULT, _facts(run, result))
    except LabError as error:
        if fabric is not None and fabric.world_size > 1:
            raise  # the others may not know, and would wait for this one for ever
        with atomic_write(folder / FAILURE) as temporary:
            temporary.write_text(f"{error}", encoding="utf-8")


def _write_scores(result: FitResult, folder: Path, work: Work, pairs: Sequence[tuple[str, str, Any]]) -> None:
    on_gpu = work.accelerator != "cpu" and torch.cuda.is_available()
    model = result.model.to("cuda" if on_gpu else "cpu")
    rows = []
    for name, scene, pair in pairs:
        before = work.score(pair.rainy, pair.clean)
        after = work.score(derain(model, pair.rainy), pair.clean)
        for ours, untouched in zip(after, before):
            inputs = {f"input_{key}": value for key, value in untouched.items() if key != "protocol"}
            rows.append({"image": name, "scene": scene, **ours, **inputs})
    with (
        atomic_write(folder / SCORES) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _facts(run: Run, result: FitResult) -> dict[str, Any]:
    network = run.config.network
    return {
        "variant": run.variant,
        "seed": run.seed,
        "changes": dict(run.changes),
        "parameters": count_parameters(network),
        f"macs_{COST_SIDE}": count_macs(network, COST_SIDE, COST_SIDE, "ours"),
        "steps": result.steps,
        "seconds": round(result.seconds, 3),
        "machine": platform.machine(),
        "software": software(),
    }


def share_done(run: Run, folder: Path) -> float:
    """Return how much of a run's budget is used, in [0, 1], as its rows on disk tell."""
    if is_done(folder):
        return 1.0
    try:
        with open(folder / "timing.csv", encoding="utf-8") as file:
            step, seconds, *_ = file.readlines()[-1].split(",")
        return used(run.config, int(step), float(seconds))
    except (OSError, ValueError, IndexError):
        return 0.0


def read_result(folder: Path) -> dict[str, Any]:
    """Return the facts of a finished run.

    Raises:
        LabError: they are damaged.
    """
    try:
        return json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LabError(
            f"{folder / RESULT} cannot be read ({error}): delete it to score this run again"
        ) from error
