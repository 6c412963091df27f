"""Intervals that cover what they promise, pairing, clusters and verdicts."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ddsa_lab.errors import LabError
from ddsa_lab.evaluation import statistics
from ddsa_lab.evaluation.bootstrap import hierarchical_bootstrap, interval
from ddsa_lab.evaluation.statistics import compare, paired_differences, rain100l_clusters, verdict

RAIN100L = np.r_[np.full(9, 2), np.ones(82)]  # images of each of the 91 scenes


def simulate(repetitions, seeds, images_of, spread, truth, generator):
    """Scores' differences (repetitions, seeds, scenes) with random seeds, scenes and seed x image noise."""
    of_seed, of_scene, of_noise = spread
    scenes = len(images_of)
    return (
        truth
        + of_seed * generator.standard_normal((repetitions, seeds, 1))
        + of_scene * generator.standard_normal((repetitions, 1, scenes))
        + of_noise * generator.standard_normal((repetitions, seeds, scenes)) / np.sqrt(images_of)
    )


def coverage(repetitions, seeds, images_of, spread, truth, number=0):
    """Share of repetitions whose 95 % interval covers `truth`."""
    generator = np.random.default_rng([number, seeds, len(images_of)])
    hits = 0
    for chunk in range(repetitions // 250):  # chunks keep memory small and draw other resamples
        values = simulate(250, seeds, images_of, spread, truth, generator)
        found = interval(values, images_of, resamples=1000, seed=chunk)
        hits += int(((found.low <= truth) & (truth <= found.high)).sum())
    return hits / repetitions


SMALL, EVEN, LARGE = (0.01, 0.3, 0.1), (0.05, 0.3, 0.1), (0.3, 0.3, 0.1)


@pytest.mark.parametrize(
    ("seeds", "images_of", "spread"),
    [(3, np.ones(20), SMALL), (3, RAIN100L, EVEN), (3, np.ones(50), LARGE), (5, np.ones(50), EVEN)],
)
@pytest.mark.parametrize("truth", [0.0, 0.2])
def test_intervals_cover_the_truth(seeds, images_of, spread, truth):
    assert 0.93 <= coverage(1000, seeds, images_of, spread, truth) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 4, 5, 8])
@pytest.mark.parametrize("images_of", [np.ones(20), np.ones(50), RAIN100L], ids=["20", "50", "rain100l"])
@pytest.mark.parametrize("spread", [(0, 0.3, 0.1), EVEN, LARGE, (0, 0.1, 0.3), (0.3, 0, 0.05)])
@pytest.mark.parametrize("truth", [0.0, 0.2])
def test_intervals_cover_the_truth_everywhere(seeds, images_of, spread, truth):
    # 3,000 repetitions: the bar is the true coverage, and 1,000 would blur it by 0.7 % either way.
    assert 0.93 <= coverage(3000, seeds, images_of, spread, truth) <= 0.97


def test_plain_percentiles_would_not_cover():
    """The reason for `interval`: the textbook bootstrap misses the bar with three seeds."""
    values = simulate(500, 3, np.ones(50), (0.1, 0.3, 0.1), 0.0, np.random.default_rng(0))
    draws = hierarchical_bootstrap(values, resamples=500).both + values.mean((1, 2))[:, None]
    low, high = np.quantile(draws, [0.025, 0.975], axis=1)
    assert np.mean((low <= 0) & (high >= 0)) < 0.90


def test_one_level_alone_gives_students_t():
    generator = np.random.default_rng(1)
    by_seed = generator.standard_normal((5, 1)) * np.ones((1, 30))
    by_scene = generator.standard_normal((1, 30)) * np.ones((4, 1))
    for values, sample in ((by_seed, by_seed[:, 0]), (by_scene, by_scene[0])):
        found = interval(values, resamples=50_000)
        expected = stats.t.interval(0.95, len(sample) - 1, sample.mean(), stats.sem(sample))
        width = expected[1] - expected[0]
        assert (found.low, found.high) == pytest.approx(expected, abs=0.005 * width)
    assert interval(by_seed).seed_share == pytest.approx(1)
    assert interval(by_scene).seed_share == pytest.approx(0)


def test_resampled_variances_match_closed_forms():
    values = np.random.default_rng(2).standard_normal((4, 12))
    weights = np.arange(1, 13) / 78
    draws = hierarchical_bootstrap(values, resamples=100_000)
    assert draws.seeds.var() == pytest.approx(values.mean(1).var() / 4, rel=0.03)
    assert draws.scenes.var() == pytest.approx(values.mean(0).var() / 12, rel=0.03)
    for part in draws:
        assert part.mean() == pytest.approx(0, abs=0.01)
    found = interval(values, weights)
    assert found.mean == pytest.approx((values.mean(0) * weights).sum())


def test_width_is_that_of_the_two_way_analysis_of_variance():
    seeds, scenes = 4, 12
    generator = np.random.default_rng(4)
    values = generator.standard_normal((1, scenes)) + 0.8 * generator.standard_normal((seeds, scenes))
    values += np.array([[-0.5], [0.0], [0.1], [0.6]])
    residuals = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    noise = (residuals**2).sum() / ((seeds - 1) * (scenes - 1)) / (seeds * scenes)
    of_seeds = values.mean(1).var(ddof=1) / seeds
    of_scenes = values.mean(0).var(ddof=1) / scenes - noise
    assert min(of_seeds, of_scenes, noise) > 0.05 * (of_seeds + of_scenes)
    share = of_seeds / (of_seeds + of_scenes)
    freedom = 1 / (share / (seeds - 1) + (1 - share) ** 2 / (scenes - 1))
    reach = stats.t.ppf(0.95, freedom) * math.sqrt(of_seeds + of_scenes)
    found = interval(values, level=0.9, resamples=200_000)
    assert found.high - found.mean == pytest.approx(reach, rel=0.01)
    assert found.mean - found.low == pytest.approx(reach, rel=0.01)
    assert found.seed_share == pytest.approx(share, rel=0.03)


def test_scenes_weigh_as_many_images_as_they_have():
    generator = np.random.default_rng(5)
    values, weights = generator.standard_normal((1, 200)), generator.integers(1, 9, 200)
    mean = (values[0] * weights).sum() / weights.sum()
    error = math.sqrt((((values[0] - mean) * weights / weights.sum()) ** 2).sum())
    found = interval(values, weights, resamples=50_000)
    assert found.mean == pytest.approx(mean)
    assert (found.high - found.low) / 2 == pytest.approx(1.972 * error, rel=0.02)
    # The mean difference stays the mean over images when scenes hold one, two or three of them.
    frame = scores({"dense": 0.0, "dual": 0.1}, of_image=0.5)
    clusters = {"000": "x", "001": "x", "002": "y", "003": "y", "004": "y"}
    row = compare(frame, "dense", clusters=clusters).iloc[0]
    means = frame.groupby("model")["psnr"].mean()
    assert row["scenes"] == 27
    assert row["difference"] == pytest.approx(means["dual"] - means["dense"])


def test_leading_axes_are_separate_problems():
    values = np.random.default_rng(3).standard_normal((2, 3, 4, 15))
    together = interval(values)
    for index in np.ndindex(2, 3):
        alone = interval(values[index])
        for all_of, one in zip(together, alone):
            assert all_of[index] == pytest.approx(float(one), abs=1e-12)


def test_doubling_images_of_a_scene_adds_no_certainty():
    frame = scores({"dense": 0.0, "dual": 0.1}, seeds=4, images=24, of_image=0.3)
    twins = frame.assign(image=frame["image"] + "-again")
    scene = {name: name[:3] for name in [*frame["image"], *twins["image"]]}
    once = compare(frame, "dense").iloc[0]
    blind = compare(pd.concat([frame, twins]), "dense").iloc[0]
    aware = compare(pd.concat([frame, twins]), "dense", clusters=scene).iloc[0]
    assert (aware["images"], aware["scenes"], blind["scenes"]) == (48, 24, 48)
    assert aware["high"] - aware["low"] == pytest.approx(once["high"] - once["low"], rel=1e-9)
    assert blind["high"] - blind["low"] < 0.85 * (once["high"] - once["low"])


def scores(means, seeds=3, images=30, of_seed=0.01, of_image=0.0, noise=0.1, number=0):
    generator = np.random.default_rng(number)
    difficulty = 30 + 3 * generator.standard_normal(images)
    tables = []
    for name, mean in means.items():
        gain = of_image * generator.standard_normal(images)
        for seed in range(seeds):
            luck = of_seed * generator.standard_normal()
            psnr = difficulty + mean + gain + luck + noise * generator.standard_normal(images)
            image = [f"{number:03d}" for number in range(images)]
            tables.append(pd.DataFrame({"model": name, "seed": seed, "image": image, "psnr": psnr}))
    return pd.concat(tables, ignore_index=True)


def test_compare_gives_one_row_a_variant():
    frame = scores({"dense": 0.0, "same": 0.0, "dual": 0.3, "sparse": -0.3})
    table = compare(frame, "dense").set_index("model")
    assert list(table.index) == ["same", "dual", "sparse"]
    assert table["verdict"].to_dict() == {"same": "undecided", "dual": "better", "sparse": "worse"}
    for name, row in table.iterrows():
        ours, theirs = (frame[frame["model"] == model]["psnr"].to_numpy() for model in (name, "dense"))
        assert row["difference"] == pytest.approx((ours - theirs).mean(), abs=1e-9)
        images = (ours - theirs).reshape(3, 30).mean(0)
        assert row["effect"] == pytest.approx(images.mean() / images.std(ddof=1))
        assert row["low"] < row["difference"] < row["high"]
        assert (row["seeds"], row["images"], row["scenes"]) == (3, 30, 30)
    flipped = compare(frame, "dense", higher_is_better=False).set_index("model")["verdict"]
    assert flipped.to_dict() == {"same": "undecided", "dual": "worse", "sparse": "better"}


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_support_no_claim(seeds):
    row = compare(scores({"dense": 0.0, "dual": 5.0}, seeds=seeds), "dense").iloc[0]
    assert row["verdict"] == "no claim is supported"
    assert row["low"] < row["difference"] < row["high"]


def test_verdict_at_the_borders():
    assert verdict(0.0, 1.0, 3) == "undecided"
    assert verdict(-1.0, 0.0, 3) == "undecided"
    assert verdict(1e-9, 1.0, 3) == "better"
    assert verdict(-1.0, -1e-9, 3) == "worse"
    assert verdict(math.nan, math.nan, 3) == "undecided"


def test_rows_are_paired_by_seed_and_image_whatever_their_order():
    frame = scores({"dense": 0.0, "dual": 0.3}, seeds=4)
    shuffled = frame.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(compare(frame, "dense"), compare(shuffled, "dense"), check_exact=False)
    # Seed effects that both share cancel: pairing makes the interval narrow.
    shared = frame.assign(psnr=frame["psnr"] + 5 * frame["seed"])
    assert compare(shared, "dense")["high"][0] == pytest.approx(compare(frame, "dense")["high"][0], abs=1e-9)


def test_an_untrained_side_is_paired_with_every_seed():
    frame = scores({"dual": 3.0})
    still = frame[frame["seed"] == 0].assign(model="input", seed=np.nan, psnr=28.0)
    row = compare(pd.concat([frame, still]), "input").iloc[0]
    assert row["seeds"] == 3
    assert row["difference"] == pytest.approx(frame["psnr"].mean() - 28.0)
    reverse = compare(pd.concat([still, frame]), "dual").iloc[0]
    assert reverse["difference"] == pytest.approx(-row["difference"])
    both = pd.concat([still, still.assign(model="median", psnr=29.0 + np.arange(30) / 100)])
    for seedless in (both, both.drop(columns="seed")):
        row = compare(seedless, "input").iloc[0]
        assert (row["seeds"], row["verdict"]) == (0, "no claim is supported")


def test_images_without_finite_scores_are_left_out_for_all_seeds():
    frame = scores({"dense": 0.0, "dual": 0.3})
    frame.loc[(frame["image"] == "004") & (frame["seed"] == 1), "psnr"] = math.inf
    frame = frame[~((frame["image"] == "007") & (frame["model"] == "dual") & (frame["seed"] == 2))]
    differences = paired_differences(frame, "dual", "dense")
    assert differences.shape == (3, 28)
    assert not {"004", "007"} & set(differences.columns)
    assert compare(frame, "dense")["images"][0] == 28


def test_protocols_are_never_mixed():
    frame = pd.concat([scores({"a": 0, "b": 1}).assign(protocol=name) for name in ("rgb", "y_uint8")])
    with pytest.raises(LabError, match=r"several protocols \(rgb, y_uint8\)"):
        compare(frame, "a")
    frame.loc[(frame["protocol"] == "rgb") & (frame["model"] == "b"), "psnr"] += 1
    gap = (
        compare(frame, "a", protocol="rgb")["difference"]
        - compare(frame, "a", protocol="y_uint8")["difference"]
    )
    assert gap[0] == pytest.approx(1)


def test_rain100l_has_91_scenes():
    names = [f"{number:03d}.png" for number in range(1, 101)]
    scenes = rain100l_clusters(names)
    assert len(set(scenes.values())) == 91
    assert scenes["012.png"] == scenes["091.png"] != scenes["090.png"]
    assert rain100l_clusters(["norain-025"])["norain-025"] == rain100l_clusters(["6"])["6"]
    for name in ("101.png", "photo"):
        with pytest.raises(LabError, match=name):
            rain100l_clusters([name])


def test_rain100l_twins_share_their_clean_image(shared_data):
    folder = shared_data / "Rain100L" / "test" / "target"
    contents = {}
    for path in sorted(folder.glob("*.png")):
        from PIL import Image

        contents.setdefault(Image.open(path).convert("RGB").tobytes(), []).append(int(path.stem))
    twins = sorted(tuple(numbers) for numbers in contents.values() if len(numbers) > 1)
    assert tuple(twins) == statistics.RAIN100L_TWINS


def test_wrong_input_is_one_sentence():
    frame = scores({"dense": 0.0, "dual": 0.3})
    for arguments, sentence in [
        ({"baseline": "dens"}, "did you mean 'dense'"),
        ({"baseline": "dense", "metric": "psnrr"}, "did you mean 'psnr'"),
        ({"baseline": "dense", "by": "modell"}, "did you mean 'model'"),
        ({"baseline": "dense", "level": 95}, "between 0 and 1"),
        ({"baseline": "dense", "clusters": {"x.png": "a"}}, "'x.png'"),
    ]:
        with pytest.raises(LabError, match=sentence):
            compare(frame, **arguments)
    with pytest.raises(LabError, match="two scores for image '000'"):
        compare(pd.concat([frame, frame.head(1)]), "dense")
    with pytest.raises(LabError, match="nothing to compare"):
        compare(frame[frame["model"] == "dense"], "dense")
    with pytest.raises(LabError, match="no seed in common"):
        compare(frame.assign(seed=frame["seed"] + 10 * (frame["model"] == "dual")), "dense")
    with pytest.raises(LabError, match="no image in common"):
        compare(frame.assign(image=frame["image"] + frame["model"]), "dense")
    with pytest.raises(LabError, match="finite"):
        compare(frame.assign(psnr=math.inf), "dense")
    with pytest.raises(LabError, match="at least 2 scenes"):
        compare(frame, "dense", clusters=dict.fromkeys(frame["image"], "one"))
