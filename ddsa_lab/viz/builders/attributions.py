"""Figure: which pixels removed the rain, by three methods and a local attribution map, scored against the truth."""

from ddsa_lab.analysis.attribution import Attribution, attribute, rain_removed
from ddsa_lab.analysis.local_attribution import local_attribution
from ddsa_lab.analysis.streak_scores import VISIBLE, pointing_game, residual_share, share_inside
from ddsa_lab.analysis.targets import Window
from ddsa_lab.viz.builders.workbench import Drawing, Workbench
from ddsa_lab.viz.images import BOX_COLOURS, box, heat_map, show_image
from ddsa_lab.viz.style import DOUBLE, subplots

SIZE, STEPS, CHUNK = 96, 64, 8  # a fixed chunk: results must not depend on free memory
WINDOW = Window(36, 36, 24, 24)
NAMES = {
    "integrated_gradients": "integrated gradients",
    "gradient_x_input": "gradient × input",
    "occlusion": "occlusion (8 × 8)",
    "local attribution": "local attribution",
}


def attribution(bench: Workbench) -> Drawing:
    """Draw rainy, restored and streaks above four maps for one window, with gaps and shares inside streaks."""
    photo, rain, seed = "chelsea", "heavy", 1
    model, pair = bench.model(), bench.pair(photo, rain, SIZE, seed)
    restored, target = bench.restored(photo, rain, SIZE, seed), rain_removed(WINDOW)
    maps = [
        attribute(model, pair.rainy, target, "integrated_gradients", steps=STEPS, chunk=CHUNK),
        attribute(model, pair.rainy, target, "gradient_x_input"),
        attribute(model, pair.rainy, target, "occlusion", patch=8, chunk=CHUNK),
        local_attribution(model, pair.rainy, WINDOW, steps=STEPS, chunk=CHUNK),
    ]
    figure, axes = subplots((DOUBLE, 4.35), 2, 4)
    left = residual_share(restored, pair.clean, pair.streaks)
    show_image(pair.rainy, axes[0, 0], f"{rain} rain", "explained: the window")
    show_image(restored, axes[0, 1], "restored", f"{left['share']:.0%} of the error in streaks")
    show_image(pair.clean, axes[0, 2], "clean")
    area = float((pair.streaks > VISIBLE).float().mean())
    show_image(
        pair.streaks[0] / pair.streaks.max(), axes[0, 3], "streaks, as generated", f"{area:.0%} of all pixels"
    )
    scores = []
    for ax, found in zip(axes[1], maps):
        scores.append(_scores(found, pair.streaks))
        heat_map(found.heat, ax, pair.rainy, NAMES[found.method], _below(found, scores[-1]))
    for ax in (axes[0, 0], axes[0, 1], *axes[1]):
        box(ax, WINDOW, BOX_COLOURS[1], 0.8)
    settings = {
        "network": bench.name, "photo": photo, "rain": rain, "size": SIZE, "rain_seed": seed, "window": str(WINDOW), "steps": STEPS,
        "target": str(target), "target_of_local_attribution": maps[-1].target, "streak_threshold": VISIBLE,
    }  # fmt: skip
    return Drawing(figure, {"maps": scores, "residual": left, "streak_area": area}, settings)


def _scores(found: Attribution, streaks) -> dict:
    row = {"method": found.method, "gap": found.gap, "change": found.change, "choice_of_keys": found.choice}
    row["diffusion_index"] = getattr(found, "diffusion", None)
    near = Window(WINDOW.top - 12, WINDOW.left - 12, WINDOW.height + 24, WINDOW.width + 24)
    return row | {
        "pointing_game": pointing_game(found.heat, streaks),
        "inside_streaks": share_inside(found.heat, streaks, window=near),
    }


def _below(found: Attribution, row: dict) -> str:
    inside = row["inside_streaks"]
    first = f"{inside['share']:.0%} in streaks (chance {inside['area']:.0%})"
    if row["diffusion_index"] is not None:
        return f"{first}\ngap {found.gap:.1%}, diffusion {row['diffusion_index']:.0f}"
    if found.method == "integrated_gradients":
        return f"{first}\ncompleteness gap {found.gap:.1%}"
    return f"{first}\ngap {found.gap:.0%} (none is promised)"
