"""Built figures shown on a notebook page: smaller than for print, so that ten of them fit into one notebook."""

import io
from pathlib import Path

WIDTH = 860  # pixels: about what a page shows
FIGURES = Path(__file__).resolve().parents[2] / "figures"


def show_figure(name: str, folder: str | Path | None = None, width: int = WIDTH) -> None:
    """Display NAME.png of a folder of built figures, or say how to build it where it is not there.

    Args:
        name: of a figure, see `ddsa_lab.viz.figures.FIGURES`.
        folder: where it was built; the project's `figures/` by default.
        width: pixels at most; the height follows.
    """
    from IPython.display import Image, display

    path = Path(folder or FIGURES) / f"{name}.png"
    if path.is_file():
        display(Image(small_png(path, width), format="png"))
    else:
        print(f"{path.name} is not built yet: run `ddsa-lab figures {name}` in the project's folder")


def small_png(path: Path, width: int = WIDTH) -> bytes:
    """Return a PNG at most `width` pixels wide, in 128 colours."""
    from PIL import Image

    with Image.open(path) as file:
        image = file.convert("RGB")
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    return packed.getvalue()
