"""A study by several processes on one machine, each taking the next run that is free."""

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

from ddsa_lab.errors import LabError
from ddsa_lab.training.runs import Work
from ddsa_lab.training.study import unfinished, watch, work_through
from ddsa_lab.training.study_config import StudyConfig

_START = "from ddsa_lab.training.crew import member; member()"
_PATIENCE = 60  # seconds that interrupted members have for a checkpoint


def run_by_crew(config: StudyConfig, out: Path, work: Work, workers: int, progress: bool) -> None:
    """Start `workers` processes and wait until they have done all runs.

    A member that dies leaves its run, at its last checkpoint, to the others.

    Raises:
        LabError: functions that cannot be sent to another process, or all members have died.
    """
    runs = config.runs()
    try:
        task = pickle.dumps((config, out, work))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise LabError(
            f"score and make_recorder must be importable by name for several workers: {error}"
        ) from error
    # Threads that together exceed the cores spin, and slow one another down many times over.
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"} | os.environ
    members = [_started(task, environment) for _ in range(min(workers, len(runs)))]
    try:
        watch(runs, out, progress, alive=lambda: any(member.poll() is None for member in members))
    except KeyboardInterrupt:
        for member in members:
            member.terminate()
        for member in members:
            with contextlib.suppress(subprocess.TimeoutExpired):
                member.wait(_PATIENCE)
        raise
    finally:
        for member in members:
            member.stdin.close()  # tells a member that is still there to end
        codes = [member.wait() for member in members]
    if unfinished(runs, out):
        raise LabError(
            f"all worker processes ended (exit codes {codes}) before the study was done: start it again"
        )


def _started(task: bytes, environment: dict[str, str]) -> subprocess.Popen:
    # In a session of its own, Ctrl-C doesn't reach it twice: from the terminal and from its parent.
    command = [sys.executable, "-c", _START]
    member = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)
    with contextlib.suppress(BrokenPipeError):  # it died at once; its exit code tells
        member.stdin.write(len(task).to_bytes(8, "big") + task)
        member.stdin.flush()
    return member


def member() -> None:
    """Do what a crew member does, as told on standard input; end when that is closed, as it is if the parent dies."""
    size = int.from_bytes(sys.stdin.buffer.read(8), "big")
    config, out, work = pickle.loads(sys.stdin.buffer.read(size))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work_through(config, config.runs(), out, work)
    except KeyboardInterrupt:
        sys.exit(130)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)
