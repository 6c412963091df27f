# %% [markdown]
# # 06 · The top-k explorer: sliders, surgery and controls
#
# **What you will be able to do** after this notebook:
#
# - move k, a and b of any layer of a trained network, and see row, matrix and photo change;
# - measure what a smaller k costs, and compare with random and weakest keys: the control that tells whether *which* keys matters;
# - say what such an intervention can show about a network, and what it cannot.
#
# **Time:** 1 minute to run on 2 cores of an Intel Xeon (Sapphire Rapids class), no GPU; about 25 to read, longer if you play.
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
import matplotlib.pyplot as plt
import torch
from IPython.display import display

from ddsa_lab import course
from ddsa_lab.analysis.probe import record
from ddsa_lab.analysis.surgery import surgery, swap_masks, sweep
from ddsa_lab.course import nb06
from ddsa_lab.viz import plots
from ddsa_lab.viz.widgets import sweep_explorer, topk_microscope

course.start()

# %% [markdown]
# ## 1. One row by hand
#
# Four keys, weights p = (0.4, 0.3, 0.2, 0.1), k = 2. Kept are the first two, with mass m = 0.7. The sparse row is (0.4/0.7, 0.3/0.7, 0, 0) =
# (0.571, 0.429, 0, 0). With a = 0.5 and b = 0.35 the fused row $a \cdot \text{dense} + b \cdot \text{sparse}$ is
#
# $$(0.2 + 0.2,\ 0.15 + 0.15,\ 0.1,\ 0.05) = (0.4, 0.3, 0.1, 0.05).$$
#
# Now the same from the identity: on kept keys p (a + b/m) = p (0.5 + 0.5) = p, on dropped ones a p = p/2. The sliders below draw both, and they coincide.

# %%
p, kept = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([True, True, False, False])
a, b, m = 0.5, 0.35, 0.7
textbook = a * p + b * p * kept / m
identity = p * torch.where(kept, a + b / m, a)
print(textbook, identity)
assert torch.allclose(textbook, identity)

# %% [markdown]
# ## 2. The microscope
#
# One photo, one layer, one row. Move `keep`, `a` and `b` with mouse or arrow keys. The picture below shows it without a kernel.
#
# > **Predict** before you move: which happens to the *fused* row when b goes to 0? When keep goes to 1?

# %%
microscope = topk_microscope(photo="coffee", rain="light", weights="dual-tiny")
display(microscope)

# %% [markdown]
# With b = 0 no second level is left: the row is a times the dense one. With keep = 1 it is (a + b) times the dense one. Both are *dense* attention with
# another factor, and the code must agree with that to the last digits:

# %%
model = lab.load("dual-tiny")
size = course.fast(128, 64)
photos = ("coffee", "china", "chelsea", "rocket")[: course.fast(4, 2)]
pairs = [(name, lab.rainy_pair(name, rain="light", seed=i, size=size)) for i, name in enumerate(photos)]
with record(model) as rec, surgery(model, keep=1.0):
    lab.derain(model, pairs[0][1].rainy)
for entry in rec.entries():
    assert torch.allclose(entry.fused, (entry.a + entry.b) * entry.dense, atol=1e-5)
print(f"keep = 1 is (a + b) times dense attention in all {len(rec)} layers")

# %% [markdown]
# ## 3. What does a smaller k cost?
#
# The network was trained with 70 % of the keys. `surgery` changes that for the length of a `with` block; `sweep` does it for many values and photos.
# A number alone would say little: maybe *any* keys would do. So there are two controls of equal k: keys drawn by lot, and the weakest ones.
#
# > **Predict.** At 30 % of the keys, how do *strongest*, *random* and *weakest* rank? Will the network still beat the rainy input with the weakest?

# %%
keeps = course.fast((0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0), (0.3, 1.0))
table = sweep(model, pairs, keeps, progress=False)
means = table.pivot_table(index="keep", columns="select", values="psnr")[["top", "random", "bottom"]]
means.round(2)

# %%
curves = table.groupby(["keep", "select"], as_index=False).psnr.agg(mean="mean", low="min", high="max")
ax = plots.sweep_curves(curves, plt.figure(figsize=(7, 3.6)).subplots(), trained_at=0.7, legend=False)
untouched = sum(lab.psnr(pair.rainy, pair.clean) for _, pair in pairs) / len(pairs)
ax.axhline(untouched, color="grey", linestyle=":", label="rainy input")
ax.figure.legend(loc="outside upper center", ncols=4)
plt.show()

# %% [markdown]
# *Mean over the photos; the bands run from the worst to the best photo. The vertical line: the share that the network was trained with.*

# %%
print(
    f"rainy input {untouched:.2f} dB; at keep 0.3: "
    + ", ".join(f"{n} {v:.2f}" for n, v in means.loc[0.3].items())
)
assert means.loc[0.3, "top"] > means.loc[0.3, "random"] > means.loc[0.3, "bottom"]
assert means.loc[1.0].max() - means.loc[1.0].min() < 1e-3  # every key is kept, however it is chosen

# %% [markdown]
# > **Paper:** keeping the top k removes attention that does harm.
# >
# > **Released code:** k is a constant of the code; it is the same in training and in use, and no control with other keys is run.
# >
# > **Measured here:** with few keys the strongest beat random ones, and the weakest are worst: at 30 % they hardly improve on the rainy input, and with
# > fewer they do harm. From half of the keys on, random ones cost little. In the dense rows a kept key weighs only about twice as much as a dropped one
# > (notebook 05). A likely reason for the large difference all the same, not tested here: the network was trained with *these* keys amplified, and every
# > later layer counts on it.
#
# ## 4. One layer at a time
#
# > **Predict.** Which layer minds most if it keeps only one key in ten: the first, the deepest, or the last?

# %%
where = sweep(model, pairs[:2], (0.1,), ("top", "random"), per_layer=True, progress=False)
as_trained = sum(lab.psnr(lab.derain(model, pair.rainy), pair.clean) for _, pair in pairs[:2]) / 2
loss = where.pivot_table(index="layer", columns="select", values="psnr", sort=False) - as_trained
names = {"top": "strongest keys", "random": "random keys"}
loss[list(names)].rename(columns=names).rename_axis(columns=None).plot.barh(
    figsize=(7, 3), xlabel="change of PSNR (dB), one layer at keep = 0.1"
).invert_yaxis()
plt.show()

# %%
together = sweep(model, pairs[:2], (0.1,), ("top",), progress=False).psnr.mean() - as_trained
print(f"all layers together {together:+.2f} dB; the layers one by one add up to {loss.top.sum():+.2f} dB")
print(f"the layer that minds most: {loss.top.idxmin()} ({loss.top.min():+.2f} dB)")
assert together < 0 and loss.top.min() < loss.top.max()

# %% [markdown]
# The losses need not add up: what one layer spoils, a later one may mend, or make worse. Where random keys cost much more than the strongest, the choice
# matters; where both cost alike, it is their number. And a layer whose b is small (notebook 05 prints them) hardly notices what its sparse branch keeps.
# All this from two photos and one draw of keys: `figures/sweep.png` has more of both, with intervals.
#
# The same as an explorer: choose a point of any curve and see its photo.

# %%
explorer = sweep_explorer(photo="coffee", rain="light", weights="dual-tiny")
if course.fast(True, False):
    explorer.finish()  # all points now, for the still picture
display(explorer)

# %% [markdown]
# ## 5. Which branch does the work?
#
# Surgery can silence a branch, or hand it other keys. `swap_masks` derains a photo with the keys that the network keeps for *another* photo.

# %%
name, pair = pairs[0]
scores = {"as trained": lab.psnr(lab.derain(model, pair.rainy), pair.clean)}
for label, branch in {"no sparse branch (b = 0)": (None, 0), "no dense branch (a = 0)": (0, None)}.items():
    with surgery(model, branch=branch):
        scores[label] = lab.psnr(lab.derain(model, pair.rainy), pair.clean)
scores[f"keys of {pairs[1][0]}"] = lab.psnr(swap_masks(model, pairs[1][1].rainy, pair.rainy), pair.clean)
for label, dB in scores.items():
    print(f"{label:>26}: {dB:5.2f} dB ({dB - scores['as trained']:+.2f})")

# %% [markdown]
# Keys of another photo cost something, though most of them are the same keys (notebook 05): on this photo, the part of the choice that belongs to the
# photo matters. The two lines above it need more care. Silencing a branch changes two things: *which* keys count, and *how much* comes out of the
# layer at all. A fair test keeps the amount and changes the keys, as the random control and the swapped keys do. The amount is what a row of fused weights
# sums to:

# %%
with record(model) as rec:
    lab.derain(model, pair.rainy)
amount = {key: entry[0].fused.sum(-1).mean() for key, entry in rec.items()}
first = rec["encoder.0.0"][0]
print(f"rows sum to a + b: {amount['encoder.0.0']:.4f} and {first.a + first.b:.4f} in the first layer")
assert abs(amount["encoder.0.0"] - (first.a + first.b)) < 1e-4

# %% [markdown]
# Every row sums to a + b, whatever k is. So changing k moves weight from key to key and adds none: that is why section 3 is a fair comparison.
#
# ## 6. A failure case: surgery is not training
#
# A network that was trained with all keys can be *cut* to the strongest, but that tells how much it depends on the others, not how well a network
# could do without them. Here are both: dense weights cut to sparse, and weights that were trained sparse.

# %%
for weights in ("dense-tiny", "sparse-tiny"):
    net = lab.load(weights)
    for keep in (1.0, 0.7, 0.3):
        with surgery(net, keep=keep, mode="sparse"):
            dB = sum(lab.psnr(lab.derain(net, pair.rainy), pair.clean) for _, pair in pairs) / len(pairs)
        print(f"{weights:>12} at keep {keep:.0%}: {dB:5.2f} dB")

# %% [markdown]
# Each does best near what it was trained for. From the cut dense network alone you might conclude that giving up 30 % of the keys costs a lot; the network
# that was *trained* with 70 % stands closer to the uncut dense one. And one network of each kind is no comparison yet. *To compare k fairly, train with
# each k, from several seeds* (`ddsa-lab study studies/attention.json`, notebook 09).
#
# ## 7. Exercises
#
# **Exercise 1 (predict).** p = (0.4, 0.3, 0.2, 0.1), k = 3, a = 0.2 and b = 0.9. What is the fused weight of the *third* key?

# %%
answer_1 = ...
nb06.check_fused(answer_1)


# %% [markdown]
# **Exercise 2.** Write the control yourself: a bool mask of the shape of p (..., C) that keeps the k *weakest* keys of each row.


# %%
def weakest(p, k):
    return ...


nb06.check_weakest(weakest)

# %% [markdown]
# **Exercise 3.** A network loses 0.1 dB when it keeps the strongest 30 % of its keys instead of 70 %, and 0.1 dB too when it keeps 30 % drawn by lot.
# What follows: `"the strongest keys matter"`, `"which keys are kept does not matter here"` or `"attention does not matter"`?

# %%
answer_3 = ...
nb06.check_control(answer_3)

# %% [markdown]
# ## Where to go on
#
# - **07 Why this pixel?** asks which pixels of the *input* an output was made of.
# - **09 Your own data**: the same sweep over your photos, and studies that train for each k. On the command line: `ddsa-lab sweep --help`.
