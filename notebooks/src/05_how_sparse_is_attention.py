# %% [markdown]
# # 05 · How sparse is attention?
#
# **What you will be able to do** after this notebook:
#
# - measure how spread out a row of attention is (entropy, effective k, Gini), and check each measure by hand;
# - read kept mass and gain, the two numbers that say what top-k does to a layer;
# - follow them over depth, heads, images and training, and look for channels that nobody uses.
#
# **Time:** 1 minute to run on 2 cores of an Intel Xeon (Sapphire Rapids class), no GPU; about 25 to read.
# **Memory:** under 1 GB. GPU: not measured yet.

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
import pandas as pd
import torch

from ddsa_lab import course
from ddsa_lab.analysis import sparsity
from ddsa_lab.analysis.probe import record
from ddsa_lab.course import nb05
from ddsa_lab.viz import plots

course.start()

# %% [markdown]
# ## 1. Three matrices to check by hand
#
# In words: a row of attention hands out a whole 1 among C keys. If one key gets all, the row is as sparse as can be; if all get the same, it is
# not sparse at all. **Entropy** measures what lies between, and **effective k** turns it into a number of keys:
#
# $$H = -\sum_j p_j \log p_j, \qquad k_\text{eff} = e^H .$$
#
# For a uniform row of C keys H = log C and $k_\text{eff}$ = C. For a row with one key H = 0 and $k_\text{eff}$ = 1. For two keys with 1/2 each: 2.
# So effective k is *the number of equal keys that would be as spread out*.
#
# The **Gini coefficient** compares every key with every other: $\sum_i \sum_j |p_i - p_j| \,/\, (2C)$, which is 0 for a uniform row and 1 - 1/C for a
# row with one key. For (0.7, 0.1, 0.1, 0.1) six ordered pairs differ, by 0.6 each: 3.6 / 8 = 0.45.

# %%
uniform = torch.full((4,), 0.25)
one_key = torch.tensor([0.0, 0.0, 1.0, 0.0])
two_keys = torch.tensor([0.5, 0.0, 0.5, 0.0])
skewed = torch.tensor([0.7, 0.1, 0.1, 0.1])
rows = torch.stack([uniform, one_key, two_keys, skewed])
pd.DataFrame(
    {
        "entropy": sparsity.entropy(rows).tolist(),
        "effective k": sparsity.effective_k(rows).tolist(),
        "Gini": sparsity.gini(rows).tolist(),
    },
    index=["uniform", "one key", "two keys", "skewed"],
).round(3)

# %%
assert torch.allclose(sparsity.effective_k(rows[:3]), torch.tensor([4.0, 1.0, 2.0]))
assert torch.allclose(sparsity.gini(rows), torch.tensor([0.0, 0.75, 0.5, 0.45]), atol=1e-6)

# %% [markdown]
# ## 2. What top-k adds: kept mass and gain
#
# Let S be the k largest entries of a row, and **m** their sum, the *kept mass*. The sparse branch shares the whole 1 among S, so each kept entry grows
# from p to p/m. Dual attention adds both, $a \cdot \text{dense} + b \cdot \text{sparse}$, which has two levels only:
#
# $$p\,(a + b/m)\ \text{on } S, \qquad a\,p\ \text{off } S, \qquad\text{and their ratio is the gain } g = 1 + \frac{b}{a\,m}.$$
#
# By hand, for the skewed row with k = 1: m = 0.7, and with a = b: g = 1 + 1/0.7 = 2.43. With k = 4 of 4 keys m = 1 and g = 2, but nothing is dropped,
# so there is no second level.
#
# One inequality to keep: the k largest of C numbers hold at least the share k/C of the sum, so **m ≥ k/C**, with equality for uniform rows.
#
# ## 3. The real thing
#
# Four photos that the network never saw, each in light rain, recorded layer by layer.
#
# > **Predict.** Each row of the first layer has 16 keys, and the sparse branch keeps 11. What is the effective k of its *dense* row: about 3, 8 or 14?

# %%
model = lab.load("dual-tiny")
size = course.fast(128, 64)
photos = ("coffee", "china", "chelsea", "rocket")
pairs = [lab.rainy_pair(name, rain="light", seed=i, size=size) for i, name in enumerate(photos)]
with record(model) as rec:
    for pair in pairs:
        lab.derain(model, pair.rainy)

# %%
table = sparsity.sparsity_table(rec)
columns = ["channels", "k", "effective_k", "gini", "kept_mass", "gain", "a", "b"]
layers = table.groupby("layer", sort=False)[columns].mean()
layers.round(3)

# %% [markdown]
# Each line is a mean over queries, heads and photos. `effective_k` stands close to `channels`: this attention is spread over nearly *all* keys.

# %%
spread = layers.effective_k / layers.channels
print(
    f"effective k is {spread.min():.0%} to {spread.max():.0%} of all keys, the mean over {len(layers)} layers {spread.mean():.0%}"
)
assert (spread > 0.8).all()
assert (table.kept_mass >= table.k / table.channels - 1e-5).all()

# %% [markdown]
# Spread over nearly all keys is not the same as *equal* keys: entropy forgives factors of two. Compare what a kept key and a dropped key weigh on average,
# m/k and (1 - m)/(C - k):

# %%
kept, dropped = layers.kept_mass / layers.k, (1 - layers.kept_mass) / (layers.channels - layers.k)
times = kept / dropped
print(
    f"{layers.k.sum() / layers.channels.sum():.0%} of the keys hold {layers.kept_mass.mean():.0%} of the mass"
)
print(f"a kept key weighs {times.min():.1f} to {times.max():.1f} times as much as a dropped one")
assert (times > 1).all() and (times < 4).all()

# %% [markdown]
# > **Paper:** the top-k branch is there to keep the attention that matters most.
# >
# > **Released code:** keeps `int(7*C/10)` keys in every layer, whatever the row looks like; both branch weights start at 0.2.
# >
# > **Measured here:** this small network's dense rows are close to flat. The kept keys hold about a sixth more of the mass than they would in a
# > flat row, and there is no small group of strong keys to be found. A wide network trained for long may differ; that has to be measured, not assumed.

# %%
_, axes = plt.subplots(1, 3, figsize=(course.WIDTH, 2.9))
table["share"] = table.effective_k / table.channels
labels = {"share": "effective k / C", "kept_mass": "kept mass m", "gain": "gain g"}
for ax, (measure, label) in zip(axes, labels.items()):
    plots.sparsity_over_depth(table, ax, measure, label)
    ax.tick_params(axis="x", labelrotation=60)
plt.show()

# %% [markdown]
# *Over depth, from the first layer to the last. Small marks are heads, the line joins the layers' means. The last layer has 32 keys for each head, the
# others 16, so effective k is drawn as a share of them. Mind the axes: none of them starts at 0.*
#
# The gain is not a matter of the mass alone: it depends on b/a too, which training chose for each layer.
#
# ## 4. Heads
#
# The deepest layer has eight heads. Do they differ in how sparse they are, and do they keep the same keys?

# %%
latent = table[table.layer == "latent.0"].groupby("head")[["effective_k", "kept_mass", "gain"]].mean()
between_heads = (
    sparsity.overlap_table(rec, "heads").groupby("layer", sort=False)[["overlap", "chance"]].mean()
)
print(latent.round(3).to_string(), "", between_heads.round(3).to_string(), sep="\n")

# %% [markdown]
# In how sparse they are the heads hardly differ. The *overlap* of two key sets is the share of their union that both hold (Jaccard): 1 for the same set, 0
# for disjoint sets. Two sets drawn by lot overlap too, by `chance`. Between heads we find chance, and must: key 3 of one head and key 3 of another are
# different channels.
#
# ## 5. Overlap between images
#
# > **Predict.** Does a query keep the same keys for a cup of coffee as for a rocket? Overlap near chance (0.53), near 1, or between?

# %%
between = sparsity.overlap_table(rec, "images")
overlap = between.groupby("layer", sort=False)[["overlap", "chance"]].mean()
overlap.plot.barh(
    figsize=(7, 2.8), xlim=(0, 1), xlabel="Jaccard overlap of kept keys, between photos"
).invert_yaxis()
plt.show()
assert (overlap.overlap > overlap.chance + 0.05).all() and (overlap.overlap < 0.98).all()

# %% [markdown]
# Between. A good part of the choice belongs to the *network* (these keys go with that query, whatever the photo), the rest to the photo. "Dynamic"
# selection is partly static. Notebook 06 asks what it costs to use the keys of another photo.
#
# ## 6. Dead channels
#
# A key that no query keeps for any photo is *dead* for the sparse branch. A key that a query keeps for every photo is wired in.

# %%
keys = sparsity.dead_keys(rec)
print(f"{int(keys.dead.sum())} of {len(keys)} keys are dead over {len(pairs)} photos")
keys.groupby("layer", sort=False)[["kept", "always", "never"]].mean().round(3)

# %%
rarest = keys.nsmallest(3, "kept")[["layer", "head", "key", "kept", "always", "never"]]
assert keys.dead.mean() < 0.05 and abs(keys.kept.mean() - (table.k / table.channels).mean()) < 0.02
rarest.round(3)

# %% [markdown]
# `kept` must average k/C, since every query keeps exactly k keys: that is arithmetic, and a check of our tool. `always` and `never` are shares of queries.
# With few photos "never" is easy: more photos can only lower both.
#
# ## 7. Before, during and after training
#
# A network of the same shape with fresh weights, as every training starts with:

# %%
fresh = lab.DerainTransformer(model.config).eval()
with record(fresh) as untrained:
    lab.derain(fresh, pairs[0].rainy)
before = sparsity.sparsity_table(untrained).groupby("layer", sort=False)[columns].mean()
pd.DataFrame(
    {
        "gain before": before.gain,
        "gain after": layers.gain,
        "b/a before": before.b / before.a,
        "b/a after": layers.b / layers.a,
    }
).round(2)

# %% [markdown]
# At the start a = b = 0.2 in every layer. The kept mass lies between k/C = 0.69 and 1, so g lies between 2 and 1 + 1/0.69 = 2.45, for any weights and any
# photo. Trained layers have gone their own ways: some lean on the sparse branch, others on the dense one.

# %%
highest = 1 + (before.channels / before.k).max()
print(f"before: g from {before.gain.min():.2f} to {before.gain.max():.2f}, and at most {highest:.2f}")
print(f"after: g from {layers.gain.min():.2f} to {layers.gain.max():.2f}")
assert before.gain.min() >= 2 - 1e-4 and before.gain.max() <= highest + 1e-4
assert layers.gain.max() - layers.gain.min() > 0.3

# %% [markdown]
# And during training? `recorder` measures a network while `fit` trains it. Here is a very small one, for a very short time.
#
# > **Predict.** `overlap_before` compares the kept keys with those at the record before. Will it rise or fall as training goes on?

# %%
settings = lab.TrainConfig(
    network=lab.NetworkConfig.preset("tiny", width=8), steps=course.fast(60, 8), patch=32, batch=4, warmup=5,
    ema=0.0, record_every=course.fast(6, 2),
)  # fmt: skip
with tempfile.TemporaryDirectory() as folder:
    watch = sparsity.recorder([pair.rainy[:, :64, :64] for pair in pairs[:2]])
    lab.fit(settings, folder, record=watch, progress=False)
    history = pd.read_csv(f"{folder}/sparsity.csv")

# %%
_, axes = plt.subplots(1, 3, figsize=(course.WIDTH, 2.7))
for ax, measure in zip(axes, ("kept_mass", "gain", "overlap_before")):
    history.pivot_table(index="step", columns="layer", values=measure, sort=False).plot(
        ax=ax, legend=False, title=measure, colormap="viridis"
    )
plt.show()

# %% [markdown]
# *One line for each layer, from dark (first) to light (last).*
#
# It rises: the choice of keys moves most at first, while the learning rate is high. The learning rate follows its schedule down to almost nothing at the
# end, so the last values say as much about the schedule as about attention.
#
# ## 8. A failure case: the mean that describes nobody
#
# All numbers above are means over queries. A matrix of four rows with one key each and four uniform rows over 8 keys has this mean:

# %%
mixed = torch.cat([torch.eye(8)[:4], torch.full((4, 8), 1 / 8)])
each = sparsity.effective_k(mixed)
print(f"mean effective k {each.mean():.1f}; the rows have {each.round(decimals=2).tolist()}")
assert not any(abs(one - each.mean()) < 1 for one in each)

# %% [markdown]
# No row has anything like the mean. So look at rows before you believe a layer's number, with `level="row"`:

# %%
single = sparsity.sparsity_table(rec, level="row")
bins = [i / 20 for i in range(8, 21)]
shares = (single.effective_k / single.channels).groupby(single.layer, sort=False)
paint = [plt.colormaps["viridis"](i / len(shares)) for i in range(len(shares))]
plt.figure(figsize=(7, 2.6))
plt.hist([part.to_numpy() for _, part in shares], bins, stacked=True, color=paint, label=list(shares.groups))
plt.gca().set(xlabel="effective k / C of each row", ylabel="rows")
plt.legend(fontsize=8)
plt.show()

# %%
lowest = float((single.effective_k / single.channels).min())
print(f"of {len(single)} rows, the least spread has an effective k of {lowest:.0%} of its keys")
assert lowest > bins[0]  # the picture leaves no row out

# %% [markdown]
# Here the rows do lie together, and the mean describes them. Now we know; before we hoped.
#
# A second trap: sparse is not the same as *important*. A row with one strong key may belong to a channel that the next layer ignores. What a measure of
# sparsity cannot say, an intervention can: notebook 06.
#
# ## 9. Exercises
#
# **Exercise 1 (predict).** What is the effective k of the row (1/2, 1/4, 1/4, 0)? Paper and pencil first.

# %%
answer_1 = ...
nb05.check_effective_k(answer_1)


# %% [markdown]
# **Exercise 2.** Write the kept mass: for weights p (..., C) and a number k, the sum of the k largest entries of each row.


# %%
def kept_mass(p, k):
    return ...


nb05.check_kept_mass(kept_mass)

# %% [markdown]
# **Exercise 3.** Two queries keep 4 of 8 keys each. Give two masks, tensors of 8 bools, whose Jaccard overlap is exactly 1/3.

# %%
answer_3 = ..., ...
nb05.check_overlap(answer_3)

# %% [markdown]
# ## Where to go on
#
# - **06 Top-k explorer**: change k and see what it costs, with random keys as a control.
# - **04 Train dense, sparse, dual** trains networks worth recording; pass `recorder` to see theirs.
# - Your own network: `lab.load("path/to/model.safetensors")` in section 3, and run on.
