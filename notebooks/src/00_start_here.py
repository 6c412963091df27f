# %% [markdown]
# # 00 · Start here: one photo, one matrix, one slider
#
# **What you will be able to do** after this page:
#
# - take the rain off a photo in three lines of Python, and say by how much it got better;
# - look at one attention matrix of the network that did it, and read its rows and columns;
# - move *k*, the number of keys that each query may look at, and predict what happens to matrix and photo.
#
# **Time:** 1 minute to run on 2 cores of an Intel Xeon (Sapphire Rapids class), no GPU; about 5 to read.
# **Memory:** under 1 GB. GPU: not measured yet.
#
# Nothing is downloaded: the photos come with scikit-image and scikit-learn, the rain is made on the spot, the weights come with the package.

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
import torch
from IPython.display import display

from ddsa_lab import course
from ddsa_lab.analysis.probe import record
from ddsa_lab.analysis.surgery import surgery
from ddsa_lab.course import nb00
from ddsa_lab.model.attention import sparse_weights
from ddsa_lab.viz.widgets import topk_microscope

course.start()
torch.set_printoptions(precision=2)

# %% [markdown]
# ## 1. A photo in the rain
#
# `rainy_pair` takes a clean photo and makes a rainy one of it: it draws a layer of streaks and adds it. Because we made the rain ourselves
# we know the right answer, pixel by pixel. That is what makes this a laboratory.

# %%
pair = lab.rainy_pair("coffee", rain="light", seed=0, size=192)
course.show({"clean": pair.clean, "rainy": pair.rainy, "streaks (x 3)": 3 * pair.streaks}, clean=pair.clean)

# %% [markdown]
# *The number under a title is the PSNR in decibels (dB): how close an image is to the clean one. Higher is better, and 10 dB more means
# a tenth of the squared error. SSIM is 1 for equal structure. Notebook 01 looks at what both of them miss.*
#
# ## 2. Take the rain off
#
# > **Predict.** The network below has 0.89 million parameters, one of the smallest of the lab, and never saw this photo.
# > How many dB will it gain: 1, 5 or 10?

# %%
model = lab.load("dual-tiny")
restored = lab.derain(model, pair.rainy)
course.show(
    {"rainy": pair.rainy, "restored": restored, "error (x 5)": 5 * (restored - pair.clean).abs().mean(0)},
    clean=pair.clean,
)

# %%
gain = lab.psnr(restored, pair.clean) - lab.psnr(pair.rainy, pair.clean)
print(f"gained {gain:.1f} dB: the squared error is {10 ** (gain / 10):.0f} times smaller")
assert gain > 3

# %% [markdown]
# The error image shows where the rest of the error sits: under the brightest streaks, which leave bluish traces in the restored photo, and on the spoon, where a
# streak and a reflection look alike.
#
# ## 3. One attention matrix
#
# Inside the network the photo is no longer three images (red, green, blue) but a stack of many *channels*, each a grey image that shows some feature.
# Attention lets the channels talk to each other. Each channel is a **query** that asks: *which other channels look like me?* Each is also a
# **key** that can be looked at. In numbers, with $z_{ij}$ the similarity of query $i$ and key $j$:
#
# $$p_{ij} = \frac{e^{z_{ij}}}{\sum_l e^{z_{il}}}, \qquad \text{new channel } i = \sum_j p_{ij}\, v_j .$$
#
# Here $v_j$ is what channel $j$ has to give, an image too. The matrix $p$ has one row for each query and one column for each key, and every row
# sums to 1. This is *dense* attention: every key gets something.
#
# The **sparse** branch keeps only the $k$ largest entries of a row and shares the whole 1 among them. **Dual** attention adds the two
# with learned weights $a$ and $b$: $a \cdot \text{dense} + b \cdot \text{sparse}$.
#
# > **Paper:** this is DDSA, *dynamic dual self-attention* (Fan, Chen and Li, arXiv 2308.07781). **Released code:** it keeps 70 % of the keys, rounded down.
# > **This lab** follows the released code; notebook 03 lists where the two differ.
#
# A tiny example to check by hand, one query and three keys: $e^1 = 2.72$, $e^{0.5} = 1.65$ and $e^{-1} = 0.37$ sum to 4.74. So the dense shares are
# 2.72/4.74 = 0.57, 0.35 and 0.08. With $k = 2$ the last one goes, the sum is 4.37, and the shares are 0.62, 0.38 and 0:

# %%
row = torch.tensor([1.0, 0.5, -1.0])  # similarities of one query with three keys
print("dense: ", row.softmax(0))
print("sparse:", sparse_weights(row, k=2))

# %% [markdown]
# Now the real thing. `record` watches a network at work and gives us these matrices.

# %%
with record(model) as rec:
    lab.derain(model, pair.rainy)
entry = rec["encoder.0.0"][0]  # first layer, first (and only) pass
dense, sparse, fused = entry.dense[0, 0], entry.sparse[0, 0], entry.fused[0, 0]
course.show_matrices(
    {"dense: softmax of all": dense, "sparse: the k largest": sparse, "dual: a dense + b sparse": fused}
)

# %% [markdown]
# *The 16 channels of the first layer. A bright square in row i, column j: channel i takes much from channel j. In the sparse matrix, the darkest
# squares are exactly 0. Each matrix has its own colour scale.*
#
# Count the kept keys and check the claim that the network's own matrix is what the formula says:

# %%
k = int(entry.mask[0, 0, 0].sum())
print(f"each query keeps k = {k} of {entry.channels} keys;  a = {entry.a:.3f}, b = {entry.b:.3f}")
assert torch.allclose(fused, entry.a * dense + entry.b * sparse)
assert torch.allclose(dense.sum(-1), torch.ones(16)) and torch.allclose(sparse.sum(-1), torch.ones(16))

# %% [markdown]
# ## 4. Move k
#
# > **Predict.** The network was trained with 70 % of the keys. What will happen to the PSNR if each query keeps only 1 key of 16 (2 of 32 in the
# > last layer)? And if it keeps all?
# > And: does it matter *which* keys are kept?
#
# `surgery` changes a trained network for the length of a `with` block, and puts everything back.

# %%
for keep in (0.07, 0.2, 0.4, 0.7, 1.0):
    for select in ("top", "random", "bottom"):
        with surgery(model, keep=keep, select=select):
            dB = lab.psnr(lab.derain(model, pair.rainy), pair.clean)
        print(f"{select:>8} {keep:4.0%}: {dB:5.2f} dB", end="   " if select != "bottom" else "\n")

# %% [markdown]
# Read the table by columns. Keeping the *strongest* keys, the result hardly changes from 40 % on, and 70 % (as trained) is best. Keeping the
# *weakest* keys costs 6 dB even at 70 %, and ruins the photo at 7 %. But look at *random*: keys drawn by lot do about as well as the
# strongest ones, within half a decibel from 20 % on. Only with a single key does it pay to take the best.
#
# > **Measured here:** on this photo, which keys the sparse branch keeps matters little, as long as they are several and not the worst ones. Whether that
# > holds for other layers, photos and networks is what the rest of the course is about. One photo is no evidence yet.
#
# Now with your own hands. With a running kernel you get sliders; the picture below them shows the same without one.

# %%
display(topk_microscope(photo="coffee", rain="light", weights="dual-tiny"))

# %% [markdown]
# *Top: a smaller crop of the same photo. Middle: one head of the last layer, from logits (the similarities) to fused weights; below, the row in the
# red frame, key by key. Among the numbers, $m$ is the share of the dense weight that the kept keys hold, and $g$ says how many times more a kept key counts
# than it would if dropped: notebook 02 derives both.*
#
# ## 5. Where it fails
#
# This network was trained on *light* rain. Heavy rain is something else:

# %%
heavy = lab.rainy_pair("coffee", rain="heavy", seed=0, size=192)
course.show(
    {"heavy rain": heavy.rainy, "restored": lab.derain(model, heavy.rainy), "clean": heavy.clean},
    clean=heavy.clean,
)

# %% [markdown]
# It gains 6 dB, and yet hard streaks stay all over the photo, some of them tinted green. A network knows the rain that it was shown, and nothing in the matrix warns us.
#
# ## 6. Exercises
#
# Each has a placeholder `...`. Replace it, run the cell, and the checker answers with a sentence. Solutions are in `notebooks/solutions/`.
#
# **Exercise 1 (predict, then look).** A row of the *sparse* matrix sums to 1, as a row of the dense matrix does. So a kept key of the sparse matrix
# is always ... than the same key of the dense matrix: `"larger"`, `"smaller"` or `"equal"`?

# %%
answer_1 = ...
nb00.check_kept_key(answer_1)

# %% [markdown]
# **Exercise 2.** How many of the 16 keys does a query keep at `keep=0.7`? Compute it the way the released code does, and mind the rounding.

# %%
answer_2 = ...
nb00.check_k(answer_2)

# %% [markdown]
# **Exercise 3.** Find a setting of `keep` and `select` in which the network does *worse than nothing*: its result is further from the clean photo than the
# rainy photo was. Give the two values.

# %%
answer_3 = ..., ...  # keep, select
nb00.check_worse_than_nothing(answer_3)

# %% [markdown]
# ## Where to go on
#
# - **01 Rain and measures**: how the rain is made, and what PSNR and SSIM see and miss.
# - **02 Attention from scratch**: the matrix above, from a loop over pixels to one line.
# - **06 Top-k explorer**: all the sliders, all the layers, and the random-keys control done properly.
