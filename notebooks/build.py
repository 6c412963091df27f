"""Build the notebooks: percent sources in src/ become executed .ipynb files with their outputs.

    python notebooks/build.py [NAMES] [--fast | --text | --check]

The sources are the only place where notebooks are edited. NAMES are beginnings ("02", "02_attention"); all by default.
"""

import argparse
import base64
import io
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "src"
LARGEST = 1_500_000  # bytes of a built notebook; more is slow to open and to review
LIGHT = 100_000  # bytes of a picture that is kept as it is
SLOWEST = 3.0  # times the minutes that the first cell states
STATED = re.compile(r"([\d.]+) minutes? to run")
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"},
}
THREADS = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "PYTHONWARNINGS": "ignore"}


def sources(names: list[str]) -> list[Path]:
    """Return the percent sources whose names begin with one of `names`, all if there are none, in order."""
    found = sorted(SOURCES.glob("[0-9]*.py"))
    unknown = [name for name in names if not any(path.stem.startswith(name) for path in found)]
    if unknown:
        raise SystemExit(f"no notebook begins with {unknown[0]!r}: {', '.join(path.stem for path in found)}")
    return [path for path in found if not names or any(path.stem.startswith(name) for name in names)]


def read(path: Path):
    """Return the notebook of a percent source, without outputs and always the same."""
    import jupytext

    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    notebook.metadata = METADATA
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02d}", {}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def cells(notebook) -> list[tuple[str, str]]:
    """Return kind and text of every cell: what a source and its built notebook must share."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def stale(path: Path) -> str | None:
    """Say why the built notebook of a source is not up to date, or return None."""
    import nbformat

    built = HERE / f"{path.stem}.ipynb"
    if not built.exists():
        return f"{built.name} is not built"
    notebook = nbformat.read(built, as_version=4)
    if cells(notebook) != cells(read(path)):
        return f"{built.name} differs from src/{path.name}"
    if built.stat().st_size > LARGEST:
        return f"{built.name} has {built.stat().st_size:,} bytes, more than {LARGEST:,}"
    if any(cell.cell_type == "code" and cell.execution_count is None for cell in notebook.cells):
        return f"{built.name} holds cells that were never executed"
    return None


def execute(notebook, fast: bool) -> float:
    """Run all cells in a fresh kernel in notebooks/, and return the seconds that took."""
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        extra_arguments=["--log-level=40"],  # errors only
        resources={"metadata": {"path": str(HERE)}},
        store_widget_state=False,  # a widget without its kernel shows nothing; its static twin does
    )
    environment = {**THREADS, **os.environ, "DDSA_LAB_FAST": "1" if fast else "0"}
    environment.pop("MPLBACKEND", None)  # the kernel's own draws into the notebook
    started = time.monotonic()
    client.execute(env=environment)
    return time.monotonic() - started


def tidy(notebook) -> None:
    """Leave of the outputs what a page without a kernel can show, the same from build to build."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_tidied, _joined(cell.outputs)) if output is not None]


def _joined(outputs: list) -> list:
    """Outputs with neighbouring pieces of one stream as one: where a kernel cuts them is chance."""
    joined: list = []
    for output in outputs:
        before = joined[-1] if joined else None
        if before is not None and output.output_type == "stream" and before.get("name") == output.name:
            before.text += output.text
        else:
            joined.append(output)
    return joined


def _tidied(output):
    if output.output_type == "stream":
        # A progress bar writes over its own line: only what stood there last is of use.
        lines = [line.rstrip("\r").rpartition("\r")[2] for line in output.text.split("\n")]
        output.text = "\n".join(lines)
        return output if output.text.strip() else None
    data = output.get("data", {})
    is_widget = data.pop(WIDGET, None) is not None
    if is_widget and "image/png" not in data:
        return None
    if "image/png" in data:
        data["image/png"] = _squeezed(data["image/png"])
        data.pop("text/plain", None)  # <Figure size 900x300 with 3 Axes>
        data.pop("text/html", None) if is_widget else None
    output.metadata = {}
    return output


def _squeezed(encoded: str) -> str:
    """A PNG packed as tightly as Pillow can, without loss up to `LIGHT` bytes, in 256 dithered colours above."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        is_opaque = image.mode == "RGBA" and image.getextrema()[3][0] == 255
        opaque = image.convert("RGB") if is_opaque else image.copy()  # outlives the file
    packed = _packed(opaque)
    if len(packed) > LIGHT and opaque.mode == "RGB":  # photos, whose noise no lossless packing shrinks
        packed = min(packed, _packed(opaque.quantize(256)), key=len)
    return base64.b64encode(packed).decode()


def _packed(image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def faults(notebook, text: str, seconds: float) -> list[str]:
    """What is wrong with a built notebook."""
    found = []
    stated = STATED.search(notebook.cells[0].source)
    if stated is None:
        found.append('its first cell does not say how many "minutes to run" it takes')
    elif seconds > SLOWEST * 60 * float(stated[1]):
        found.append(
            f"it took {seconds:.0f} s, more than {SLOWEST:g} times the {stated[1]} minutes that it states"
        )
    if len(text.encode()) > LARGEST:
        found.append(f"it has {len(text.encode()):,} bytes, more than {LARGEST:,}")
    outputs = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    places = {str(HERE.parent), str(Path.home()), tempfile.gettempdir()}
    found += [
        f"its outputs name the machine's path {place}" for place in sorted(places) if f"{place}/" in outputs
    ]
    if "image/svg" in outputs or "image/jpeg" in outputs:
        found.append("it holds pictures that are not PNG")
    return found


def build(path: Path, folder: Path, fast: bool) -> list[str]:
    """Build one notebook into `folder`; return what is wrong with it."""
    import nbformat

    notebook = read(path)
    seconds = execute(notebook, fast)
    tidy(notebook)
    text = nbformat.writes(notebook) + "\n"
    found = faults(notebook, text, seconds)
    _write(folder / f"{path.stem}.ipynb", text)
    print(
        f"{path.stem}: {seconds:.0f} s, {len(text.encode()) / 1e6:.2f} MB", *found, sep="\n    ", flush=True
    )
    return found


def refresh(path: Path) -> list[str]:
    """Bring the words of a built notebook up to date and keep its outputs, if no code has changed."""
    import nbformat

    target, notebook = HERE / f"{path.stem}.ipynb", read(path)
    built = [cell for cell in nbformat.read(target, as_version=4).cells if cell.cell_type == "code"]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.source for cell in built] != [cell.source for cell in code]:
        return [f"the code of src/{path.name} has changed: build it"]
    for cell, before in zip(code, built):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count
    _write(target, nbformat.writes(notebook) + "\n")
    return []


def _write(target: Path, text: str) -> None:
    temporary = target.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, target)


def main(arguments: list[str] | None = None) -> int:
    """Build or check; return 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="beginnings of notebooks' names; all by default")
    parser.add_argument("--fast", action="store_true", help="small budgets, into a temporary folder: a test")
    parser.add_argument(
        "--check", action="store_true", help="only compare the built notebooks with their sources"
    )
    parser.add_argument("--text", action="store_true", help="only the words changed: keep the outputs")
    options = parser.parse_args(arguments)
    chosen = sources(options.names)
    if options.check:
        wrong = [reason for reason in map(stale, chosen) if reason]
        print(*wrong or [f"{len(chosen)} notebooks are up to date"], sep="\n")
    elif options.text:
        wrong = [fault for path in chosen for fault in refresh(path)]
        print(*wrong, sep="\n")
    elif options.fast:
        with tempfile.TemporaryDirectory() as folder:
            wrong = [fault for path in chosen for fault in build(path, Path(folder), fast=True)]
    else:
        wrong = [fault for path in chosen for fault in build(path, HERE, fast=False)]
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
