"""Every notebook runs from top to bottom with small budgets, and its own assertions hold."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
SOURCES = sorted((NOTEBOOKS / "src").glob("[0-9]*.py"))
# A browser or kernel is not needed for a percent source: it is a script.
QUICK = {"DDSA_LAB_FAST": "1", "MPLBACKEND": "agg", "OMP_WAIT_POLICY": "passive"}


def run(*command: str) -> None:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=NOTEBOOKS,
        env={**os.environ, **QUICK},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, f"{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_notebook_runs_as_a_script(path):
    run(str(path))


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_notebook_builds_in_a_kernel(path):
    run("build.py", "--fast", path.stem)
