"""The resampling engine: intervals for means over crossed random seeds and scenes.

`hierarchical_bootstrap` draws seeds and scenes again; `interval` makes of the draws an interval that holds
with as few as three seeds.
"""

from typing import NamedTuple

import numpy as np

from ddsa_lab.errors import LabError


class Interval(NamedTuple):
    """Mean differences with their intervals; arrays of the leading shape that `interval` was given.

    `seed_share` is how much of the variance of the mean comes from the seeds, from 0 to 1.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seed_share: np.ndarray


class Resamples(NamedTuple):
    """Deviations of resampled means from the observed mean, shape (..., resamples).

    `seeds` with only the seeds drawn again, `scenes` with only the scenes, `both` with both at once.
    """

    seeds: np.ndarray
    scenes: np.ndarray
    both: np.ndarray


def hierarchical_bootstrap(
    values: np.ndarray, weights: np.ndarray | None = None, resamples: int = 2000, seed: int = 0
) -> Resamples:
    """Draw seeds and scenes again, with replacement and independently of each other.

    All seeds are scored on the same scenes, so a scene is drawn once for all seeds ("pigeonhole"): drawing
    scenes anew within each seed would take hard scenes for noise that more seeds average away.

    Args:
        values: (..., seeds, scenes) scores or differences, one for each seed and scene.
        weights: (scenes,) how many images each scene stands for; equal when None.
        resamples: how many draws.
        seed: of the draws; every leading index sees the same draws.

    Source: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007.
    """
    seeds, scenes = values.shape[-2:]
    weights = np.ones(scenes) if weights is None else np.asarray(weights, dtype=float)
    weights = weights / weights.sum()
    generator = np.random.default_rng(seed)
    by_seed = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
    by_scene = generator.multinomial(scenes, np.full(scenes, 1 / scenes), resamples) * weights
    by_scene = by_scene / by_scene.sum(1, keepdims=True)

    mean = (values.mean(-2) @ weights)[..., None]
    seed_means = values @ by_scene.T  # (..., seeds, resamples): each seed's mean over the scenes drawn
    return Resamples(
        seeds=(values @ weights) @ by_seed.T - mean,
        scenes=seed_means.mean(-2) - mean,
        both=np.einsum("...sr,rs->...r", seed_means, by_seed) - mean,
    )


def interval(
    values: np.ndarray,
    weights: np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the mean over seeds and scenes with an interval that holds for few seeds.

    The percentiles of resampled means are far too narrow here: with three seeds whose spread matters they
    covered the truth in 76 to 90 % of simulations instead of 95 %. Three repairs, in this order:

    1. Each level's resampled variance is stretched by n / (n - 1), which resampling n values loses.
    2. The noise of single seed-scene scores is in the variance of the seeds and in that of the scenes. It is
       counted once: var = var_seeds + max(0, var_scenes - var_noise), the variance of the mean in a two-way
       model with random seeds, random scenes and noise.
    3. Student's t replaces the normal quantile, with 1 / df = share_seeds / (seeds - 1)
       + share_scenes^2 / (scenes - 1), the shares being those of the variance. Satterthwaite's formula squares
       both shares; then three seeds that happen to lie close together pass for many degrees of freedom, and
       coverage fell to 92 %. Both are exact where seeds alone or scenes alone decide.

    With normal effects, 3 to 8 seeds and 20 to 100 scenes, 95 % intervals covered the truth in 94 to 97 % of
    simulations. With one seed the interval holds for these very weights over other scenes, and says nothing
    about training again.

    Args:
        values: (..., seeds, scenes) scores or differences; leading axes are separate problems.
        weights: (scenes,) how many images each scene stands for; equal when None.
        level: share of repetitions whose interval covers the truth, in (0, 1).
        resamples: bootstrap draws.
        seed: of the draws.

    Raises:
        LabError: fewer than two scenes, or a level outside (0, 1).

    Source: Owen 2007 for the resampling; Satterthwaite, "An approximate distribution of estimates of
    variance components", Biometrics 2, 1946, for combining degrees of freedom; the share of the seeds that
    is not squared is ours.
    """
    from scipy.stats import t

    seeds, scenes = values.shape[-2:]
    if scenes < 2:
        raise LabError(f"an interval needs scores of at least 2 scenes, and there is {scenes}")
    if not 0 < level < 1:
        raise LabError(f"level is {level}: choose one between 0 and 1, such as 0.95")
    draws = hierarchical_bootstrap(values, weights, resamples, seed)
    stretch_scenes = scenes / (scenes - 1)
    stretch_seeds = seeds / (seeds - 1) if seeds > 1 else 0.0
    from_seeds = draws.seeds.var(-1) * stretch_seeds
    noise = (draws.both - draws.seeds - draws.scenes).var(-1) * stretch_seeds * stretch_scenes
    from_scenes = np.maximum(draws.scenes.var(-1) * stretch_scenes - noise, 0)
    variance = from_seeds + from_scenes

    share = np.divide(from_seeds, variance, out=np.zeros_like(variance), where=variance > 0)
    freedom = 1 / (share / max(seeds - 1, 1) + (1 - share) ** 2 / (scenes - 1))
    reach = t.ppf((1 + level) / 2, freedom) * np.sqrt(variance)
    mean = np.average(values.mean(-2), axis=-1, weights=weights)
    return Interval(mean, mean - reach, mean + reach, share)
