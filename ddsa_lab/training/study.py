"""A study: many runs of a fair comparison, each in its own folder, going on wherever it was stopped."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddsa_lab.errors import LabError
from ddsa_lab.files import write_json
from ddsa_lab.training.devices import make_fabric, together
from ddsa_lab.training.lock import RunLock
from ddsa_lab.training.runs import (
    FAILURE,
    MakeRecorder,
    Scorer,
    Work,
    claim,
    failure,
    finish,
    is_done,
    plain_psnr,
    share_done,
)
from ddsa_lab.training.study_config import Run, StudyConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric

STUDY = "study.json"
_WAIT = 0.5  # seconds between looks at what other processes have done


def run_study(
    config: StudyConfig,
    out: str | Path,
    *,
    workers: int = 1,
    cluster: str | None = None,
    progress: bool = True,
    score: Scorer = plain_psnr,
    make_recorder: MakeRecorder | None = None,
    devices: int = 1,
    nodes: int = 1,
    accelerator: str = "auto",
) -> Path:
    """Do all runs of a study that are not done yet.

    The folder holds study.json and, for each run, VARIANT/seed-N with config.json, metrics.csv, model.safetensors,
    scores.csv (a row an image) and result.json, whose presence means done. Several calls, on one machine or on
    many that share the folder, help one another: no run is taken twice.

    Args:
        config: what to compare.
        out: the study's folder; that of the same study goes on, with more variants or seeds if there are more.
        workers: processes on this machine, each doing run after run.
        cluster: address of a dask scheduler ("tcp://host:8786") whose workers share the folder.
        progress: show a bar for the whole, and one for each run where they are done one by one.
        score: called with (restored, clean), (3, H, W) in [0, 1]; gives rows of metrics for scores.csv. For other
            processes it and the next must be importable by name.
        make_recorder: called with the validation pairs, gives `fit`'s recorder of sparsity.
        devices: processes or GPUs on each machine that share each run's batches (started by torchrun or SLURM, or here).
        nodes: machines that share each run's batches.
        accelerator: "cpu", "cuda" or "auto".

    Returns:
        `out`.

    Raises:
        LabError: the folder holds another study, some runs failed (the others are done), or the cluster cannot be reached.
        KeyboardInterrupt: after Ctrl-C; the same call goes on later.
    """
    out, runs = Path(out).resolve(), config.runs()
    work = Work(score, make_recorder, accelerator)
    if workers < 1:
        raise LabError(f"workers must be at least 1, found {workers}")
    if (workers > 1) + (cluster is not None) + (devices * nodes > 1) > 1:
        raise LabError(
            "use one of workers, cluster and devices or nodes: they are different ways to spread a study"
        )
    if cluster is not None:
        from ddsa_lab.training.cluster import run_on_cluster

        _prepare(config, runs, out)
        run_on_cluster(config, out, work, cluster, progress)
    elif workers > 1:
        from ddsa_lab.training.crew import run_by_crew

        _prepare(config, runs, out)
        run_by_crew(config, out, work, workers, progress)
    else:
        _run_here(config, runs, out, work, devices, nodes, progress)
    failed = {run.name: failure(out / run.name) for run in runs if failure(out / run.name)}
    if failed:
        listed = "; ".join(f"{name}: {message}" for name, message in failed.items())
        raise LabError(f"{len(failed)} of {len(runs)} runs in {out} failed, the others are done: {listed}")
    return out


def _prepare(config: StudyConfig, runs: Sequence[Run], out: Path) -> None:
    """Check that `out` is this study's, write study.json, and give runs that failed before another chance.

    Raises:
        LabError: it is another study's, or no study's.
    """
    config.validation.pairs()  # what is wrong with them should be known before anything is trained
    lock = RunLock(out)
    while not lock.acquire():
        time.sleep(0.05)  # another process is at these few lines
    try:
        path = out / STUDY
        if path.exists():
            obstacles = config.obstacles(StudyConfig.read(path))
            if obstacles:
                raise LabError(
                    f"{out} holds a study with other settings ({'; '.join(obstacles)}): repeat them or choose another folder"
                )
        elif others := [entry.name for entry in out.iterdir() if entry.name != lock.path.name]:
            raise LabError(f"{out} holds {others[0]!r} and others but no {STUDY}: choose an empty folder")
        write_json(path, config.to_dict())
        for run in runs:
            (out / run.name / FAILURE).unlink(missing_ok=True)
    finally:
        lock.release()


def _run_here(
    config: StudyConfig, runs: Sequence[Run], out: Path, work: Work, devices: int, nodes: int, progress: bool
) -> None:
    """Do the runs in this process, each of them together with other devices if there are any."""
    fabric = make_fabric(runs[0].config, devices, nodes, work.accelerator)
    together(fabric, lambda: _prepare(config, runs, out))
    with whole_bar(runs, out, progress and fabric.is_global_zero) as show:
        work_through(config, runs, out, work, fabric, progress, show)


def work_through(
    config: StudyConfig,
    runs: Sequence[Run],
    out: Path,
    work: Work,
    fabric: "Fabric | None" = None,
    progress: bool = False,
    show: Callable[[], None] = lambda: None,
) -> None:
    """Do run after run, until none is left that this or another process has still to do."""
    pairs = config.validation.pairs()
    held: list[RunLock] = []
    leader = fabric is None or fabric.is_global_zero
    while True:
        number = _take(runs, out, held) if leader else None
        if fabric is not None and fabric.world_size > 1:
            number = fabric.broadcast(number)
        if number is None:
            return
        try:
            if number < 0:
                time.sleep(_WAIT)
            else:
                finish(runs[number], out / runs[number].name, work, pairs, fabric=fabric, progress=progress)
        finally:
            while held:
                held.pop().release()
        show()


def _take(runs: Sequence[Run], out: Path, held: list[RunLock]) -> int | None:
    """Claim a run and return its number; -1 if others are at all that are left, None if none is left."""
    for number, run in enumerate(runs):
        lock = claim(out / run.name)
        if lock is not None:
            held.append(lock)
            return number
    return -1 if unfinished(runs, out) else None


def unfinished(runs: Sequence[Run], out: Path) -> list[Run]:
    """Return the runs that are neither done nor failed."""
    return [run for run in runs if not is_done(out / run.name) and failure(out / run.name) is None]


@contextlib.contextmanager
def whole_bar(runs: Sequence[Run], out: Path, shown: bool) -> Iterator[Callable[[], None]]:
    """Yield a function that brings the bar over the whole study up to date from the run folders."""
    if not shown:
        yield lambda: None
        return
    from tqdm.auto import tqdm

    layout = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"
    shares = [share_done(run, out / run.name) for run in runs]
    with tqdm(total=len(runs), initial=sum(shares), desc="study", bar_format=layout) as bar:

        def show() -> None:
            shares = {run.name: share_done(run, out / run.name) for run in runs}
            active = [f"{name} {share:.0%}" for name, share in shares.items() if 0 < share < 1]
            done = sum(is_done(out / run.name) for run in runs)
            bar.set_postfix_str(", ".join([f"{done}/{len(runs)} runs", *active[:3]]), refresh=False)
            bar.update(sum(shares.values()) - bar.n)
            bar.refresh()

        show()
        yield show


def watch(runs: Sequence[Run], out: Path, progress: bool, alive: Callable[[], Any]) -> None:
    """Keep the bar up to date while other processes work: until all is done, or `alive()` is false."""
    with whole_bar(runs, out, progress) as show:
        while unfinished(runs, out) and alive():
            time.sleep(_WAIT)
            show()
