"""Solutions of notebook 00, by exercise: checker -> answer."""

SOLUTIONS = {
    "check_kept_key": "larger",  # p / m with m < 1
    "check_k": int(0.7 * 16),
    "check_worse_than_nothing": (0.07, "bottom"),
}
WRONG = {
    "check_kept_key": ["smaller", "equal", 1],
    "check_k": [12, 11.2, "many"],
    "check_worse_than_nothing": [(0.7, "top"), (0.4, "random"), (2, "top"), (0.5, "middle"), 0.1],
}
