"""The figures of the laboratory: `build("all", "figures")` writes each as PDF, PNG and JSON.

A figure's JSON says how it was made (command, settings, seeds, versions, weights, licences of photos) and holds
every number drawn. Built twice on one machine, all files are equal byte for byte: no dates, no host names.
"""

import io
import json
import platform
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

import ddsa_lab
from ddsa_lab.errors import LabError, choose
from ddsa_lab.files import atomic_write
from ddsa_lab.viz.builders.workbench import Drawing, Missing, Workbench
from ddsa_lab.viz.style import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PNG_LIMIT = 400_000  # bytes above which a PNG is reduced to a palette
_HOME = {
    "diagram": "diagram",
    "comparison": "comparison",
    "table": "comparison",
    "attention": "attention",
    "sparsity": "attention",
    "sweep": "sweeps",
    "training": "training",
    "cost": "cost",
    "attribution": "attributions",
    "metrics": "metrics",
}


def _builder(name: str) -> Callable[[Workbench], Drawing]:
    def build_one(bench: Workbench) -> Drawing:
        module = import_module(f"ddsa_lab.viz.builders.{_HOME[name]}")
        return getattr(module, name)(bench)

    return build_one


FIGURES: dict[str, Callable[[Workbench], Drawing]] = {name: _builder(name) for name in _HOME}


@dataclass
class Built:
    """What `build` wrote, and which figures it left out and why."""

    paths: list[Path] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def build(
    names: str | Sequence[str] = "all",
    out: str | Path = "figures",
    progress: bool = True,
    weights: str = "dual-tiny",
    history: str | Path | None = None,
) -> Built:
    """Build figures into a folder, each as NAME.pdf, NAME.png and NAME.json; the table as .tex, .md and .csv too.

    Args:
        names: "all", or names in FIGURES.
        out: folder, made if it is not there.
        progress: show a bar, and name on stderr what was left out.
        weights: shipped name or checkpoint of the network that figures are about.
        history: folder of a training run (metrics.csv, sparsity.csv), or a history table, for "training"; the
            histories shipped with the weights by default.

    Returns:
        Paths written; among "all", figures that lack something are left out with the reason.

    Raises:
        LabError: an unknown name, a figure asked for by name that lacks something, weights that cannot be loaded,
            or a folder that cannot be written.
    """
    from tqdm.auto import tqdm

    chosen = list(FIGURES) if names == "all" else [names] if isinstance(names, str) else list(names)
    for name in chosen:
        choose("figure", name, FIGURES)
    built, bench = Built(), Workbench(weights, history)
    bar = tqdm(chosen, desc="figures", unit="figure", disable=not progress)
    for name in bar:
        bar.set_postfix_str(name)
        try:
            built.paths += build_one(name, bench, Path(out))
        except Missing as reason:
            if names != "all":
                raise LabError(f"figure {name!r} cannot be built: {reason}") from reason
            built.left_out[name] = str(reason)
    for name, reason in built.left_out.items() if progress else ():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    return built


def build_one(name: str, bench: Workbench, out: Path) -> list[Path]:
    """Build one figure; return the paths written."""
    for used in bench.used.values():
        used.clear()
    with style():
        drawing = FIGURES[choose("figure", name, FIGURES)](bench)
        paths = [save_pdf(drawing.figure, out / f"{name}.pdf"), save_png(drawing.figure, out / f"{name}.png")]
    for suffix, text in drawing.files.items():
        with atomic_write(out / f"{name}{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
        paths.append(out / f"{name}{suffix}")
    facts = {
        "figure": name,
        "command": f"ddsa-lab figures {name}",
        "settings": drawing.settings,
        **bench.used,
        "versions": versions(),
        "numbers": drawing.numbers,
    }
    return [*paths, save_json(facts, out / f"{name}.json")]


def save_pdf(figure: "Figure", path: Path) -> Path:
    """Save a figure as PDF with embedded fonts and without dates."""
    with atomic_write(path) as temporary:
        figure.savefig(
            temporary, format="pdf", metadata={"CreationDate": None, "Producer": None, "Creator": "ddsa-lab"}
        )
    return path


def save_png(figure: "Figure", path: Path) -> Path:
    """Save a figure as PNG; one of more than 400 kB is reduced to 256 colours, which photos bear well."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    image = Image.open(buffer).convert("RGB")
    small = io.BytesIO()
    image.save(small, format="png", optimize=True)
    if small.tell() > PNG_LIMIT:
        small = io.BytesIO()
        reduced = image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)
        reduced.save(small, format="png", optimize=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(small.getvalue())
    return path


def save_json(value: Any, path: Path) -> Path:
    """Save facts and numbers as JSON: six significant digits, short lists on one line."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False)
    text = re.sub(r"\[([^\[\]{}]*)\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8", newline="\n")
    return path


def plain(value: Any) -> Any:
    """Return `value` as what JSON knows: tensors and tables as lists, NaN as null, floats with 6 digits."""
    if isinstance(value, Tensor | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None if np.isnan(value) else str(value)
    if hasattr(value, "columns"):  # a data frame; a long one by columns, which takes a third of the room
        return plain(value.to_dict("records" if len(value) <= 30 else "list"))
    if hasattr(value, "items"):
        return {str(key): plain(one) for key, one in value.items()}
    return [plain(one) for one in value]


def versions() -> dict[str, str]:
    """Versions of what figures are made with."""
    packages = ("torch", "numpy", "pandas", "matplotlib", "seaborn", "scikit-image", "captum")
    found = {name: metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "ddsa-lab": ddsa_lab.__version__, **found}
