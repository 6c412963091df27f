"""Training that is killed at random moments, or whose disk runs full, goes on as if nothing had been."""

import multiprocessing
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

from ddsa_lab.errors import LabError
from ddsa_lab.model.checkpoints import load
from ddsa_lab.model.network import NetworkConfig
from ddsa_lab.training.config import TrainConfig
from ddsa_lab.training.loop import fit
from ddsa_lab.training.state import STATE, WEIGHTS, RunFolder, read_table

NETWORK = NetworkConfig(
    width=8, blocks=(1,), heads=(2,), refinement=0, ffn_factor=1.0
)  # one block: a step takes milliseconds
EVERY = 3
CONFIG = TrainConfig(
    NETWORK, dead_leaves=0.0, steps=60, patch=16, batch=2, log_every=1, checkpoint_every=EVERY, ema=0.9
)


def train(out: Path, **options):
    return fit(CONFIG, out, resume=True, progress=False, accelerator="cpu", **options)


def started(out: Path) -> multiprocessing.Process:
    context = multiprocessing.get_context("forkserver")  # forks from a process that holds the imports already
    context.set_forkserver_preload(["ddsa_lab.training.loop", "lightning_fabric"])
    child = context.Process(target=train, args=(out,))
    child.start()
    return child


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    return train(tmp_path_factory.mktemp("unbroken") / "run")


def assert_same_run(first, second):
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    assert (first.out / "metrics.csv").read_bytes() == (second.out / "metrics.csv").read_bytes()


def wait_for_checkpoint(child, folder: RunFolder, after: int) -> None:
    """Return once `folder` holds a checkpoint beyond step `after`, or `child` has ended."""
    until = time.monotonic() + 120
    while child.is_alive() and time.monotonic() < until:
        state = folder.read_state()  # never half-written, whenever it is read
        if state and state["step"] > after:
            return
        time.sleep(0.005)


@pytest.mark.parametrize("seed", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in range(5, 10))])
def test_killed_at_random_moments(unbroken, tmp_path, seed):
    """Five times each; with the slow ones thirty times."""
    chance, folder, done = random.Random(seed), RunFolder(tmp_path / "run"), 0
    for _ in range(5):
        child = started(folder.path)
        wait_for_checkpoint(child, folder, done + EVERY * chance.randrange(2))
        time.sleep(chance.random() * 0.1)
        child.kill()
        child.join()
        done, rows = folder.read_state()["step"], read_table(folder.path / "metrics.csv")
        assert done % EVERY == 0 and 0 <= rows[-1]["step"] - done <= EVERY
    assert done < CONFIG.steps  # otherwise nothing was broken off
    assert_same_run(unbroken, train(folder.path))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("spare", ["nothing", "half a checkpoint"])
def test_full_disk_keeps_the_last_checkpoint(unbroken, small_disk, spare):
    run = small_disk / "run"
    asked = iter([False] * (4 * EVERY) + [True])
    train(run, should_stop=lambda: next(asked))
    step, size = RunFolder(run).read_state()["step"], (run / STATE).stat().st_size
    left = size // 2 if spare == "half a checkpoint" else 0
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "filler").write_bytes(bytes(free - left))
    with pytest.raises(LabError, match="cannot write"):
        train(run)
    assert RunFolder(run).read_state()["step"] >= step
    assert load(run / WEIGHTS) is not None
    assert not [path for path in run.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    (small_disk / "filler").unlink()
    assert_same_run(unbroken, train(run))
