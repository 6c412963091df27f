"""Solutions of notebook 04, by exercise: checker -> answer; and wrong answers that the checkers must refuse."""


def is_fair(one, other):
    """The mode differs, and nothing else."""
    found = one.differences(other)
    return len(found) == 1 and found[0].startswith("network.mode ")


def by_image(ours, theirs):
    """Paired, then averaged over seeds."""
    return (ours - theirs).mean(axis=0)


SOLUTIONS = {
    "check_best_of_five": 5 / 6,
    "check_verdicts": ("undecided", "no claim is supported", "worse"),
    "check_referee": is_fair,
    "check_by_image": by_image,
}
WRONG = {
    "check_best_of_five": [0.5, 0.8, 1 / 6, 83, "often"],
    "check_verdicts": [
        ("better", "no claim is supported", "worse"),
        ("undecided", "better", "worse"),
        ("undecided", "no claim is supported", "undecided"),
        "undecided",
    ],
    "check_referee": [
        lambda one, other: True,
        lambda one, other: len(one.differences(other)) == 1,
        lambda one, other: one.network.mode != other.network.mode,
        lambda one, other: one.steps == other.steps and one.network.mode != other.network.mode,
        lambda one, other: one.differences(other),
    ],
    "check_by_image": [
        lambda ours, theirs: theirs.mean(0) - ours.mean(0),
        lambda ours, theirs: (ours - theirs).mean(),
        lambda ours, theirs: (ours - theirs).mean(1),
        lambda ours, theirs: ours.max(0) - theirs.max(0),
        lambda ours, theirs: (ours / theirs).mean(0),
        lambda ours, theirs: "better",
    ],
}
