"""Solutions of notebook 07, by exercise: checker -> answer; and wrong answers that the checkers must refuse."""


def gap(attribution_map, value, start):
    """What the map leaves unexplained, as a share of the change."""
    change = value - start
    return abs(float(attribution_map.sum()) - change) / abs(change)


def streak_ratio(heat, mask):
    """1 for a map that knows nothing."""
    return (heat[mask].sum() / heat.sum()) / mask.float().mean()


SOLUTIONS = {"check_path": 2.0, "check_gap": gap, "check_ratio": streak_ratio}
WRONG = {
    "check_path": [4, 5, 1, "two"],
    "check_gap": [
        lambda maps, value, start: (float(maps.sum()) - (value - start)) / (value - start),
        lambda maps, value, start: abs(float(maps.sum()) - (value - start)),
        lambda maps, value, start: abs(float(maps.abs().sum()) - (value - start)) / abs(value - start),
        lambda maps, value, start: maps,
        lambda maps, value, start: 0.0,
    ],
    "check_ratio": [
        lambda heat, mask: heat[mask].sum() / heat.sum(),
        lambda heat, mask: mask.float().mean() / (heat[mask].sum() / heat.sum()),
        lambda heat, mask: heat[mask].mean(),
        lambda heat, mask: heat / 0,
    ],
}
