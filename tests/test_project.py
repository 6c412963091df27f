"""The project's own promises: one place for dependencies, a readable house, honest files."""

import re
import tomllib
from pathlib import Path

import pytest

from ddsa_lab import __version__
from ddsa_lab.model.checkpoints import load, shipped_weights

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_environment_follows_pyproject():
    lines = [line.strip() for line in (ROOT / "environment.yml").read_text().splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    assert lines == [
        "name: ddsa-lab",
        "channels:",
        "- conda-forge",
        "dependencies:",
        f"- python {PROJECT['requires-python']}",
        "- pip",
        "- pip:",
        "- -e .",
    ]


def test_constraints_are_within_what_is_declared():
    from packaging.requirements import Requirement

    declared = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert pins
    for pin in pins:
        name, version = pin.split("==")
        assert version in declared[name]


def test_version_is_the_same_everywhere():
    assert PROJECT["version"] == __version__
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_commands_of_the_readme_exist():
    from ddsa_lab.cli import COMMANDS

    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"^ddsa-lab (\w+)", text, flags=re.M)) | set(re.findall(r"`ddsa-lab (\w+)", text))
    assert named and named <= {name for name, *_ in COMMANDS}
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert (
        set(re.findall(r"^make (\w+)", text, flags=re.M)) | set(re.findall(r"`make ([\w-]+)", text))
        <= targets
    )


def test_local_links_of_the_documents_lead_somewhere():
    documents = [
        ROOT / "README.md",
        *ROOT.glob("*/README.md"),
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("ddsa_lab/weights/*.md"),
    ]
    for document in documents:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
            assert "://" in target or (document.parent / target).exists(), f"{document.name}: {target}"


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 50


@pytest.mark.parametrize("name", shipped_weights())
def test_shipped_weights_load_and_are_small(name):
    model = load(name)
    assert model.config.mode == name.split("-")[0]
    assert (ROOT / "ddsa_lab" / "weights" / f"{name}.safetensors").stat().st_size < 6e6


def test_shipped_weights_stay_small_together():
    assert sum(p.stat().st_size for p in (ROOT / "ddsa_lab" / "weights").iterdir()) < 25e6
