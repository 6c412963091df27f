"""A study on a dask cluster: one task a run; the runs of a lost worker are done by the others."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ddsa_lab.errors import LabError
from ddsa_lab.training.runs import Work, claim, failure, finish, is_done
from ddsa_lab.training.study import unfinished, watch
from ddsa_lab.training.study_config import Run, StudyConfig

if TYPE_CHECKING:
    from distributed import Client

_PATIENCE = 10  # seconds to reach the scheduler, and for a first worker to appear


def run_on_cluster(config: StudyConfig, out: Path, work: Work, address: str, progress: bool) -> None:
    """Send every run to the workers of the scheduler at `address` and wait until they have done them.

    The workers need ddsa_lab installed and must see `out` under the same path; on a machine with several GPUs, start
    one worker for each with its own CUDA_VISIBLE_DEVICES and one thread.

    Raises:
        LabError: dask is not installed, the scheduler cannot be reached or has no workers, they don't see the folder,
            or a run was lost with every worker that tried it.
    """
    runs = config.runs()
    with _connected(address) as client:
        _check_folder(client, out)
        todo = unfinished(runs, out)
        tasks = [client.submit(do_run, config, run, out, work, pure=False, retries=2) for run in todo]
        watch(runs, out, progress, alive=lambda: not all(task.done() for task in tasks))
        lost = {run.name: task.exception() for run, task in zip(todo, tasks) if task.status == "error"}
    if lost:
        name, error = next(iter(lost.items()))
        raise LabError(
            f"{len(lost)} of {len(runs)} runs were lost, first {name} ({type(error).__name__}: {error}): start again"
        )


def do_run(config: StudyConfig, run: Run, out: Path, work: Work) -> str:
    """Do one run on a worker; if another worker, thought lost, is still at it, wait for that one."""
    folder = out / run.name
    while not is_done(folder) and failure(folder) is None:
        lock = claim(folder)
        if lock is None:
            time.sleep(0.5)
            continue
        try:
            finish(run, folder, work, config.validation.pairs(), progress=False)
        finally:
            lock.release()
    return run.name


def _connected(address: str) -> "Client":
    try:
        from distributed import Client
    except ImportError as error:
        raise LabError("a cluster needs dask.distributed: pip install 'dask[distributed]'") from error
    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise LabError(
            f"no dask scheduler answers at {address} ({error}): start one with `dask scheduler`"
        ) from error
    try:
        client.wait_for_workers(1, timeout=_PATIENCE)
    except TimeoutError as error:
        client.close()
        raise LabError(
            f"the scheduler at {address} has no workers: start some with `dask worker {address}`"
        ) from error
    return client


def _check_folder(client: "Client", out: Path) -> None:
    seen = client.run(lambda path=str(out): Path(path, "study.json").exists())
    if blind := [worker for worker, sees in seen.items() if not sees]:
        raise LabError(f"worker {blind[0]} does not see {out}: use a folder that all machines share")
