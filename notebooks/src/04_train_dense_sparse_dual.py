# %% [markdown]
# # 04 · Train dense, sparse and dual
#
# **What you will be able to do** after this notebook:
#
# - train three networks that differ in their attention and in nothing else, and check that this is so;
# - read a training curve, and say how much of it is noise;
# - read an interval, and tell a difference that would come again from one that would not;
# - spot the commonest way in which comparisons go wrong without anyone cheating: picking seeds.
#
# **Time:** 5 minutes to run on 2 cores of an Intel Xeon (Sapphire Rapids class), no GPU; about 25 to read.
# **Memory:** 1 GB. GPU: used if there is one; not measured yet.

# %%
try:
    import ddsa_lab as lab
except ModuleNotFoundError:  # a fresh machine, such as Colab: from this repository's folder if we are in it
    from pathlib import Path
    from subprocess import check_call
    from sys import executable

    source = ".." if Path("../pyproject.toml").exists() else "ddsa-lab"
    check_call([executable, "-m", "pip", "install", "-q", source])
    import ddsa_lab as lab

# %%
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display

from ddsa_lab import course
from ddsa_lab.course import nb04
from ddsa_lab.course.instruments import held_out_scores
from ddsa_lab.course.live import LiveCurves
from ddsa_lab.data.datasets import held_out_pairs
from ddsa_lab.evaluation.bootstrap import interval
from ddsa_lab.evaluation.statistics import NO_CLAIM, compare
from ddsa_lab.model.cost import count_parameters
from ddsa_lab.viz.style import MODE_STYLES

course.start()

# %% [markdown]
# ## 1. What is equal, and what differs
#
# A comparison is fair if *one* thing differs. Here it is the word `mode`. The budget, the photos, the rain, the order of the patches, the initial weights, the
# optimiser and the scoring must all be equal. We use the smallest network that still has a U: 8 channels, three levels.
#
# In the settings below, `lr` is the learning rate, reached after `warmup` steps, and `ema=0.98` means that not the last weights are scored but a running mean of
# them, which jumps less.

# %%
MODES = ("dense", "sparse", "dual")
steps = course.fast(100, 4)  # with a GPU or more patience, try 2000
networks = {
    mode: lab.NetworkConfig.preset("tiny", mode=mode, width=8, blocks=(1, 1, 1), heads=(1, 2, 4))
    for mode in MODES
}
settings = {
    "rain": "heavy",
    "steps": steps,
    "patch": 48,
    "batch": 4,
    "lr": 2e-3,
    "ema": 0.98,
    "warmup": 10,
    "log_every": 2,
}
configs = {mode: lab.TrainConfig(network=networks[mode], **settings) for mode in MODES}
print({mode: count_parameters(network) for mode, network in networks.items()})

# %% [markdown]
# Dual has 10 parameters more: a and b in each of five blocks. That is all that sets them apart. Settings can be compared by machine:

# %%
print("dual against dense: ", configs["dual"].differences(configs["dense"]))
assert configs["dual"].differences(configs["dense"]) == ["network.mode 'dense' -> 'dual'"]

# %% [markdown]
# **Equal starts.** Every tensor draws its initial values from a generator of its own, seeded by (seed, name, shape). So networks that share a tensor start equal in it:

# %%
starts = {mode: lab.DerainTransformer(networks[mode], seed=0).state_dict() for mode in MODES}
shared = starts["dense"].keys() & starts["dual"].keys()
assert all(torch.equal(starts["dense"][name], starts["dual"][name]) for name in shared)
print(
    f"{len(shared)} tensors equal at the start; only dual has {sorted(starts['dual'].keys() - shared)[0]} and its like"
)

# %% [markdown]
# ## 2. Watch them learn
#
# > **Predict.** Heavy rain leaves these photos at about 18 dB. After so short a training, how far apart will the three curves be: 0.1 dB, 1 dB, 5 dB? And how far will
# > each jump from one point to the next?
#
# The picture grows while the networks train, one after the other.

# %%
folder = tempfile.mkdtemp()
curves, results = LiveCurves(), {}
for mode in MODES:
    results[mode, 0] = lab.fit(
        configs[mode], f"{folder}/{mode}-0", progress=False, callbacks=[curves.of(mode)]
    )
curves.draw()

# %% [markdown]
# *PSNR of the training patches; the faint lines are single readings, the strong ones running means. All three see the same patches, so they rise and fall
# together: an easy patch is easy for all.*
#
# The curves jump by decibels because patches differ, and differ from each other by much less. So a training curve cannot rank the three. That needs fixed
# photos that were never trained on. All scores on this page are PSNR of all three colours (`rgb` in notebook 01), in dB.

# %%
held_out = held_out_pairs("heavy", seed=1000, size=128)
untouched = sum(lab.psnr(pair.rainy, pair.clean, "rgb") for _, pair in held_out) / len(held_out)
one_seed = held_out_scores({key: result.model for key, result in results.items()}, held_out)
display(one_seed.pivot(index="image", columns="model", values="psnr")[list(MODES)].round(2))
print(f"untouched: {untouched:.2f} dB, restored: {one_seed['psnr'].mean():.2f} dB on average")

# %%
pair = held_out[1][1]
restored = {mode: lab.derain(results[mode, 0].model, pair.rainy) for mode in MODES}
course.show({"rainy": pair.rainy} | restored, clean=pair.clean, protocol="rgb")

# %% [markdown]
# *After so few steps all three have learned the same first lesson: what is brighter than its surroundings is probably rain. Streaks are dimmed rather than removed, and the
# white rim of the cup pays for it. Compare with notebook 00, whose network was trained far longer.*
#
# ## 3. Is one of them better?
#
# Photos differ by many decibels, methods by few. So we pair: each photo is compared with itself. With scores $x_{si}$ of a method and $y_{si}$ of dense, for seed
# $s$ of $S$ and photo $i$ of $I$, the mean difference is
#
# $$\bar d = \frac{1}{S I} \sum_{s,i} \,(x_{si} - y_{si}).$$
#
# A tiny example, one seed and two photos: 25.2 and 35.1 dB against 25.0 and 35.0 dB. The photos lie 10 dB apart, the differences are 0.2 and 0.1 dB, and
# their mean is 0.15 dB.
#
# `compare` computes this, and asks how certain it is. `low` and `high` are the ends of its 95 % interval (section 4 says what
# that promises); `scenes` counts photos, where several photos of one place would count once. All differences are in dB, the method's minus dense's.

# %%
verdicts = compare(one_seed, baseline="dense")
display(verdicts[["model", "seeds", "scenes", "difference", "low", "high", "verdict"]].round(3))
assert (verdicts["verdict"] == NO_CLAIM).all()

# %% [markdown]
# "No claim is supported", whatever the numbers say. With one training of each we compared two *trainings*, not two *methods*: another seed gives other
# initial weights and other patches, and might turn the order round. The package refuses verdicts below three seeds.
#
# > **Predict.** Train all three again from other seeds. Will the best of the three stay the best?

# %%
for seed in (1, 2):
    for mode in MODES:
        config = lab.TrainConfig(network=networks[mode], seed=seed, **settings)
        results[mode, seed] = lab.fit(config, f"{folder}/{mode}-{seed}", progress=False)
assert {result.steps for result in results.values()} == {steps}  # equal budgets

# %%
scores = held_out_scores({key: result.model for key, result in results.items()}, held_out)
table = scores.pivot_table(index="seed", columns="model", values="psnr")[list(MODES)]
display(table.round(2))
print("best of each seed:", table.idxmax(axis=1).to_dict())

# %% [markdown]
# *Rows are seeds, columns are methods, each number the mean PSNR over the held-out photos.* Compare how much a column changes from row to row (seeds) with how much a row changes
# from column to column (methods).
#
# In the next table `seed_share` is the share of the uncertainty that comes from the seeds; the rest comes from the photos.

# %%
verdicts = compare(scores, baseline="dense")
display(verdicts[["model", "seeds", "scenes", "difference", "low", "high", "seed_share", "verdict"]].round(3))

# %%
differences = table.sub(table["dense"], axis=0)
fig, ax = plt.subplots(figsize=(6, 2.2))
for y, row in enumerate(verdicts.itertuples()):
    ax.plot([row.low, row.high], [y, y], color=MODE_STYLES[row.model]["color"], linewidth=2.5)
    ax.scatter(differences[row.model], [y] * len(differences), color="0.3", marker="|", s=120, zorder=3)
ax.axvline(0, color="0.5", linestyle=":")
ax.set(
    yticks=range(len(verdicts)),
    yticklabels=verdicts["model"],
    xlabel="PSNR minus that of dense (dB)",
    ylim=(-0.6, 1.6),
)
plt.show()

# %% [markdown]
# *Bars: the 95 % interval of the difference to dense, over seeds and scenes. Strokes: the single seeds. Where a bar holds 0, the data cannot tell the two apart.*
#
# > **Measured here:** when this page was built, with its first seed dual beat dense by almost 0.4 dB, and with the next two it lost. Over all three the difference is
# > nothing, with an interval of about 0.8 dB to either side. Sparse alone was worse than dense with every seed, and its interval stays below 0: after 100 steps of
# > a tiny network, that is. A longer training may turn it round, and another machine may give other digits.
# >
# > The width of the bars is the message: it says which differences this experiment could have seen at all. More steps, photos and seeds are one command away
# > (`ddsa-lab study`, notebook 09).
#
# ## 4. What an interval says
#
# "95 %" is a promise about the *method*: if we repeated the whole experiment many times, 95 of 100 intervals would hold the truth. We can put that promise to the test, because in
# a simulation we know the truth. Let the true difference be 0, let seeds scatter by 0.1 dB, scenes by 0.2 dB and single scores by 0.05 dB, and draw 400 experiments of
# three seeds and 20 scenes each.

# %%
rng = np.random.default_rng(0)
experiments = course.fast(400, 100)
of_seed, of_scene = rng.normal(0, 0.1, (experiments, 3, 1)), rng.normal(0, 0.2, (experiments, 1, 20))
simulated = interval(of_seed + of_scene + rng.normal(0, 0.05, (experiments, 3, 20)))
holds = (simulated.low < 0) & (simulated.high > 0)
print(f"{holds.mean():.1%} of {experiments} intervals hold the truth")
assert 0.9 < holds.mean() <= 1

# %%
fig, ax = plt.subplots(figsize=(8, 2.4))
for x in range(40):
    ax.plot(
        [x, x], [simulated.low[x], simulated.high[x]], color="#004488" if holds[x] else "#BB5566", linewidth=2
    )
ax.axhline(0, color="0.4", linewidth=0.8)
ax.set(xlabel="experiment", ylabel="difference (dB)")
plt.show()

# %% [markdown]
# *The first forty of these experiments, in which nothing differs. Blue intervals hold the true 0. A red one, wholly above or below it, would be published.* Note how wide they are: with three seeds, one seed's luck weighs a third.
#
# ## 5. A failure case: the best of three
#
# Nobody cheats. A new method is trained with three seeds, and "we report the best run, as is common". The baseline's number is taken from a paper: one run.
#
# > **Predict.** The two methods are in truth *equal*. How often does the new one win?
#
# By hand: four equally good runs, three of them ours. The best of the four is ours in 3 of 4 cases.

# %%
runs = rng.normal(30, 0.1, (100_000, 4))
wins = (runs[:, :3].max(axis=1) > runs[:, 3]).mean()
gain = (runs[:, :3].max(axis=1) - runs[:, 3]).mean()
print(f"the new method wins in {wins:.1%} of cases, by {gain:.2f} dB on average, and nothing is new about it")
assert abs(wins - 0.75) < 0.01

# %% [markdown]
# In our own table: what would the best seed of each method against the *worst* seed of dense look like?

# %%
print(
    {mode: round(float(table[mode].max() - table["dense"].min()), 2) for mode in MODES},
    "dB 'better' than dense, dense included",
)
assert table["dense"].max() - table["dense"].min() > 0

# %% [markdown]
# ## 6. Exercises
#
# **Exercise 1 (by hand).** The best of *five* equal runs against a single run of an equal method: in which share of cases does it win?

# %%
answer_1 = ...
nb04.check_best_of_five(answer_1)

# %% [markdown]
# **Exercise 2.** Three results; say for each what it supports: `"better"`, `"worse"`, `"undecided"` or `"no claim is supported"`.
# (a) 5 seeds, interval from -0.05 to 0.21 dB; (b) 2 seeds, from 0.10 to 0.30 dB; (c) 3 seeds, from -0.40 to -0.02 dB.

# %%
answer_2 = ..., ..., ...
nb04.check_verdicts(answer_2)


# %% [markdown]
# **Exercise 3.** Write a referee: given two `TrainConfig`s, is the comparison of their attention fair, that is, do they differ in `network.mode` and nothing else?
# (`config.differences(other)` lists what differs, as text.)


# %%
def is_fair(one, other):
    return ...


nb04.check_referee(is_fair)


# %% [markdown]
# **Exercise 4.** Scores of two methods, as arrays (seeds, images), seed by seed and image by image. Return the mean difference for each image, (images,), ours minus theirs, averaged over seeds.


# %%
def by_image(ours, theirs):
    return ...


nb04.check_by_image(by_image)

# %% [markdown]
# ## Where to go on
#
# - **05 How sparse is attention?** looks into networks like these, layer by layer.
# - `from ddsa_lab.viz.widgets import training_theatre` and `training_theatre()`: start, pause and stop a small training with your mouse.
# - **09 Your own data**: the same comparison as a study, that goes on where it was stopped, on several GPUs or machines.
