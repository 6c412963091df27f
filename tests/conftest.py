"""Thread settings before torch is imported, and where reference data may stand."""

import os

# Two OpenMP threads beside another busy process spin; one passive thread makes the suite several times faster.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MPLBACKEND", "agg")

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _folder(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"no reference data at ../shared/{name}")
    return SHARED / name


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images (`../shared/data` from the project's root)."""
    return _folder("data")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Reference values computed with the published implementations (`../shared/golden`)."""
    return _folder("golden")
