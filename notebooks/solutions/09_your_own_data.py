"""Solutions of notebook 09, by exercise: checker -> answer; and wrong answers that the checkers must refuse."""


def split(scenes):
    """The first scene is the test, all others are for training."""
    tested = next(iter(scenes.values()))
    train = [name for name, scene in scenes.items() if scene != tested]
    return train, [name for name in scenes if name not in train]


def paired_mean(ours, theirs):
    """Over the images that both have."""
    both = ours.keys() & theirs.keys()
    return sum(ours[name] - theirs[name] for name in both) / len(both)


SOLUTIONS = {"check_minutes": 80, "check_split": split, "check_paired": paired_mean}
WRONG = {
    "check_minutes": [75, 300, 100, 60, 20, "long"],
    "check_split": [
        lambda scenes: (list(scenes)[:1], list(scenes)[1:]),
        lambda scenes: (list(scenes), []),
        lambda scenes: split(scenes)[0],
        lambda scenes: (["park"], ["roof"]),
        lambda scenes: (split(scenes)[0], split(scenes)[1] * 2),
    ],
    "check_paired": [
        lambda ours, theirs: sum(ours.values()) / len(ours) - sum(theirs.values()) / len(theirs),
        lambda ours, theirs: -paired_mean(ours, theirs),
        lambda ours, theirs: 2 * paired_mean(ours, theirs),
        lambda ours, theirs: 0.0,
        lambda ours, theirs: ours["other"] - theirs["easy"],
    ],
}
