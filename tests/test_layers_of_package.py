"""The house: imports run only leftwards, and importing the package is cheap."""

import ast
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ddsa_lab"
ROOMS = ["data", "model", "training", "evaluation", "analysis", "viz", "course", "cli"]
FOUNDATIONS = ["errors", "files", "memory"]  # below every room
COMMANDS = ["demo", "bench"]  # stand beside the command line
HEAVY = ["matplotlib", "seaborn", "pandas", "captum", "ipywidgets", "lightning", "skimage", "sklearn"]


def rank(module: str) -> int:
    """Place of ddsa_lab.MODULE..., from left to right."""
    room = module.split(".")[1] if "." in module else "__init__"
    if room in FOUNDATIONS:
        return -1
    if room == "__init__":  # names everything, lazily
        return len(ROOMS)
    return ROOMS.index("cli" if room in COMMANDS else room)


def imported(path: Path) -> set[str]:
    """Modules of ddsa_lab that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} - {"ddsa_lab"}
    return {name for name in names if name.startswith("ddsa_lab.") and in_package(name)}


def in_package(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def test_imports_run_only_leftwards():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 40
    wrong = []
    for path in files:
        here = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        wrong += [f"{here} imports {name}" for name in imported(path) if rank(name) > rank(here)]
    assert not wrong


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "code", ["import ddsa_lab", "import ddsa_lab as lab; lab.load, lab.save, lab.derain, lab.record"]
)
def test_heavy_libraries_wait_until_they_are_used(code):
    found = run(f"{code}\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules])").split()
    assert found == []


def test_import_adds_little_to_that_of_torch():
    """Processor time, which other processes' load does not change."""
    code = "import time, torch; t = time.process_time(); import ddsa_lab; print(time.process_time() - t)"
    assert median(float(run(code)) for _ in range(3)) < 0.3
