"""Figures: restored photos side by side, and the table of scores."""

from typing import Any

from ddsa_lab.analysis.targets import Window
from ddsa_lab.evaluation.metrics import psnr, score
from ddsa_lab.evaluation.tables import to_latex, to_markdown
from ddsa_lab.model.cost import count_macs, count_parameters
from ddsa_lab.viz.builders.workbench import HELD_OUT, Drawing, Workbench
from ddsa_lab.viz.images import BOX_COLOURS, box, error_map, show_image, zoom
from ddsa_lab.viz.style import DOUBLE, FAINT, new_figure, subplots

PROTOCOL = "y_uint8"
ERROR_LIMIT = 0.15
CASES = (("coffee", "light", 0), ("china", "heavy", 3))  # photo, rain, seed
ZOOMS = {
    "coffee": (Window(70, 330, 64, 64), Window(205, 215, 64, 64)),
    "china": (Window(110, 290, 64, 64), Window(250, 60, 64, 64)),
}


def comparison(bench: Workbench) -> Drawing:
    """Draw a light and a heavy rain: photo with boxes, two zooms, error map, PSNR."""
    names = bench.siblings()
    figure = new_figure((DOUBLE, len(CASES) * (DOUBLE / (len(names) + 2) * 1.85 + 0.25)))
    parts = figure.subfigures(len(CASES), 1, hspace=0.02, squeeze=False).flat
    numbers = [_case(bench, part, names, *case) for part, case in zip(parts, CASES)]
    settings = {"protocol": PROTOCOL, "error_map": f"mean |error| of channels, 0 to {ERROR_LIMIT}"}
    return Drawing(figure, {"panels": numbers}, settings)


def _case(bench: Workbench, part: Any, names: list[str], photo: str, rain: str, seed: int) -> dict[str, Any]:
    pair = bench.pair(photo, rain, None, seed)
    images = {"rainy": pair.rainy, **{name: bench.restored(photo, rain, None, seed, name) for name in names}}
    images["clean"] = pair.clean
    height, width = pair.clean.shape[-2:]
    # Photo, two zooms beside each other, error map: heights that give all of them the column's width.
    grid = part.add_gridspec(
        3, 2 * len(images), height_ratios=(height / width, 0.5, height / width), hspace=0.03, wspace=0.03
    )
    scores, drawn = {}, None
    for i, (title, image) in enumerate(images.items()):
        whole = part.add_subplot(grid[0, 2 * i : 2 * i + 2])
        show_image(
            image, whole, f"clean ({photo})" if title == "clean" else f"{rain} rain" if i == 0 else title
        )
        error = part.add_subplot(grid[2, 2 * i : 2 * i + 2])
        for j, (window, colour) in enumerate(zip(ZOOMS[photo], BOX_COLOURS)):
            box(whole, window, colour, 0.8)
            zoom(image, part.add_subplot(grid[1, 2 * i + j]), window, colour)
        if title == "clean":
            _scale(part, error, drawn)
        else:
            scores[title] = psnr(image, pair.clean, PROTOCOL)
            drawn = error_map(image, pair.clean, error, ERROR_LIMIT, below=f"{scores[title]:.2f} dB").images[
                0
            ]
    return {"photo": photo, "rain": rain, "seed": seed, "psnr": scores}


def _scale(part: Any, ax: Any, drawn: Any) -> None:
    """The colour scale of the error maps, where the clean image has none."""
    ax.axis("off")
    inset = ax.inset_axes((0.1, 0.55, 0.8, 0.1))
    scale = part.colorbar(drawn, cax=inset, orientation="horizontal", ticks=(0, ERROR_LIMIT / 2, ERROR_LIMIT))
    scale.ax.tick_params(labelsize=6, length=2)
    scale.ax.set_title("|error|", fontsize=6.5, pad=2, color=FAINT)


def table(bench: Workbench) -> Drawing:
    """Score the networks on all held-out photos under light and heavy rain; as picture, LaTeX, Markdown and CSV."""
    import pandas as pd

    names, size, seeds = bench.siblings(), 256, (0, 1)
    rows = [_scores(bench, "input", size, seeds)] + [_scores(bench, name, size, seeds) for name in names]
    frame = pd.DataFrame(rows)
    formats = {"parameters (k)": ".0f", "GMAC": ".2f", "light PSNR": ".2f", "light SSIM": ".4f"}
    formats |= {"heavy PSNR": ".2f", "heavy SSIM": ".4f"}
    caption = (
        f"PSNR (dB) and SSIM under protocol {PROTOCOL} on {len(HELD_OUT) * len(seeds)} synthetic rainy crops of "
        f"{size} x {size} pixels for each rain, from {len(HELD_OUT)} photos not trained on; multiply-adds at that size."
    )
    files = {
        ".tex": to_latex(frame, formats, caption, "tab:ddsa-lab"),
        ".md": to_markdown(frame, formats) + f"\n{caption}\n",
        ".csv": frame.to_csv(index=False, lineterminator="\n", float_format="%.6g"),
    }
    settings = {"protocol": PROTOCOL, "size": size, "photos": HELD_OUT, "rain_seeds": seeds}
    return Drawing(_table_picture(frame, formats), {"rows": frame}, settings, files)


def _scores(bench: Workbench, name: str, size: int, seeds: tuple[int, ...]) -> dict[str, Any]:
    row: dict[str, Any] = {"network": name, "parameters (k)": float("nan"), "GMAC": float("nan")}
    if name != "input":
        config = bench.model(name).config
        row |= {
            "parameters (k)": count_parameters(config) / 1e3,
            "GMAC": count_macs(config, size, size) / 1e9,
        }
    for rain in ("light", "heavy"):
        found = []
        for photo in HELD_OUT:
            for seed in seeds:
                pair = bench.pair(photo, rain, size, seed)
                image = pair.rainy if name == "input" else bench.restored(photo, rain, size, seed, name)
                found.append(score(image, pair.clean, PROTOCOL))
        row |= {
            f"{rain} {key.upper()}": sum(one[key] for one in found) / len(found) for key in ("psnr", "ssim")
        }
    return row


def _table_picture(frame: Any, formats: dict[str, str]) -> Any:
    """The table as a picture in the manner of booktabs: three rules, numbers to the right."""
    lines = 1 + len(frame)
    figure, ax = subplots((DOUBLE, 0.26 * lines + 0.22))
    ax.set(xlim=(0, 1), ylim=(lines + 0.1, -0.1))
    ax.axis("off")
    edges = [0.01, *(0.315 + 0.135 * i for i in range(len(frame.columns) - 1))]
    for edge, name in zip(edges, frame.columns):
        number = name != "network"
        cells = [name, *(_cell(value, formats.get(name)) for value in frame[name])]
        best = max(frame[name].dropna()) if number and name.split()[-1] in ("PSNR", "SSIM") else None
        for i, text in enumerate(cells):
            bold = best is not None and i > 0 and text == _cell(best, formats[name])
            ax.text(
                edge,
                i + 0.5,
                text,
                ha="right" if number else "left",
                va="center",
                fontweight="bold" if bold else None,
            )
    for height, width in ((0, 1.1), (1, 0.6), (lines, 1.1)):
        ax.axhline(height, color="black", linewidth=width)
    return figure


def _cell(value: Any, specification: str | None) -> str:
    if isinstance(value, str):
        return value
    return "–" if value != value else format(value, specification or "g")
