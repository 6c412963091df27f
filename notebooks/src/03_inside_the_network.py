# %% [markdown]
# # 03 · Inside the network
#
# **What you will be able to do** after this notebook:
#
# - run the feed-forward network SEFN by hand, line by line, and get the network's own output;
# - follow an image through the U by its shapes, and say where parameters and where multiply-adds live;
# - count both by hand and confirm the count by measuring;
# - say in which points the paper's text and its released code tell different stories.
#
# **Time:** 1 minute to run on 2 cores of an Intel Xeon (Sapphire Rapids class), no GPU; about 30 to read.
# **Memory:** under 1 GB. GPU: not measured yet, and not needed.

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
import copy

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import display
from torch.nn.functional import conv2d, pixel_shuffle, pixel_unshuffle

from ddsa_lab import course
from ddsa_lab.analysis.probe import record
from ddsa_lab.course import nb03
from ddsa_lab.course.instruments import measured_macs, rainiest_channel
from ddsa_lab.model.cost import count_macs, count_parameters
from ddsa_lab.viz.diagram import spatial_feed_forward

course.start()
pair = lab.rainy_pair("coffee", rain="light", seed=0, size=192)
model = lab.load("dual-tiny")
config = model.config

# %% [markdown]
# ## 1. A block: look around, then think
#
# Every block of the network does two things, and *adds* each to what it got:
#
# $$x \leftarrow x + \text{attention}(\text{norm}(x)), \qquad x \leftarrow x + \text{SEFN}(\text{norm}(x)).$$
#
# Attention (notebook 02) mixes channels, with weights that depend on the image. The feed-forward network looks at the neighbourhood of each pixel. Since
# both are added, a block that outputs zero does no harm, and gradients have a free road to the front.
#
# ## 2. SEFN, line by line
#
# SEFN is the *spatial-enhanced feed-forward network*. Words first: a 1x1 convolution makes three stacks of hidden channels, $x_1$, $x_2$ and $x_3$. They go
# through three branches that feed one another, with *one shared* 3 x 3 filter $d$ for each channel (*depth-wise*: no channel sees another). A second 1x1,
# $W$, joins the branches; then a gate opens or closes for each *pixel*.
#
# $$y_1 = \text{relu}\,d(x_1), \quad y_2 = \text{relu}\,d(y_1 + x_2), \quad y_3 = \text{relu}\,d(y_2 + x_3), \quad
# \text{out} = y \cdot \text{gate}(y),\;\; y = W[y_1, y_2, y_3].$$

# %%
spatial_feed_forward(plt.figure(figsize=(8, 2.6), dpi=115).subplots())
plt.show()

# %% [markdown]
# *SEFN as the released code computes it. The same filter d appears three times.*
#
# > **Predict.** One bright pixel enters the first branch. How many pixels does it reach in $y_1$, in $y_2$, in $y_3$? The filter is 3 x 3 each time.

# %%
dot = torch.zeros(1, 1, 11, 11)
dot[..., 5, 5] = 1
box = torch.ones(1, 1, 3, 3)  # a filter of ones, so that nothing cancels
y1 = conv2d(dot, box, padding=1).relu()
y2 = conv2d(y1, box, padding=1).relu()
y3 = conv2d(y2, box, padding=1).relu()
print([int((y > 0).sum()) for y in (y1, y2, y3)])

# %% [markdown]
# 9, 25, 49: fields of 3 x 3, 5 x 5 and 7 x 7 pixels, out of a single 3 x 3 filter. That is SEFN's bargain: three scales for nine weights a channel.
#
# Now on real features (`encoder.0.0` is block 0 of the encoder's stage 0): the output of the first stage, sent through the first block's SEFN by hand.

# %%
with record(model, keep=("features", "gates")) as rec:
    restored = lab.derain(model, pair.rainy)
x = rec.features["encoder.0"][0]
ffn = model.encoder[0][0].ffn
print("x", tuple(x.shape), " hidden channels:", ffn.depthwise.weight.shape[0])

# %%
with torch.inference_mode():
    x1, x2, x3 = ffn.expand(x).chunk(3, dim=1)
    y1 = ffn.depthwise(x1).relu()
    y2 = ffn.depthwise(y1 + x2).relu()
    y3 = ffn.depthwise(y2 + x3).relu()
    y = ffn.project(torch.cat([y1, y2, y3], dim=1))
    by_hand = y * ffn.gate(y)
    assert torch.allclose(by_hand, ffn(x), atol=1e-5)

# %% [markdown]
# Six lines of arithmetic, and the network's own output to within 0.00001. (The package never makes the concatenation: a product with three stacked parts is the sum of three products.)
#
# **The gate** looks at two numbers of each pixel, the largest and the mean of its channels, through a 3 x 3 filter, and ends in a number from 0 to 1. What has it learned?

# %%
gates = {name: rec[name][0].need("gate")[0, 0] for name in ("encoder.0.0", "encoder.1.0", "decoder.0.0")}
scaled = {
    f"gate of {name}\n{g.min():.2f} to {g.max():.2f}": (g - g.min()) / (g.max() - g.min())
    for name, g in gates.items()
}
course.show({"rainy\n": pair.rainy} | scaled)

# %% [markdown]
# *Each gate from its smallest (black) to its largest value (white); its true range stands in the title. In the first stages the gates follow edges and
# texture. In the last one the streaks themselves are bright: it opens where something is to be taken away.*
#
# ## 3. The U, by its shapes
#
# The network makes the image smaller and the channels more, three times, and then goes back. On the way back it joins what it put aside on the way down.
# Smaller maps see further: at the bottom one pixel stands for 8 x 8.
#
# Sizes change without losing a number: *pixel unshuffle* moves each 2 x 2 square into four channels. (A convolution before it halves the channels, so that
# C become 2C and not 4C.) By hand on a 2 x 4 image:

# %%
tiny = torch.arange(8.0).view(1, 1, 2, 4)
folded = pixel_unshuffle(tiny, 2)
print(tiny[0, 0], "becomes", folded[0], sep="\n")
assert torch.equal(pixel_shuffle(folded, 2), tiny)

# %% [markdown]
# > **Predict.** A 192 x 192 photo enters, with 16 channels after the first convolution. What is the shape at the bottom of the U, after three halvings that each double
# > the channels?

# %%
rows = []
for name, blocks, channels, heads, level in config.stages():
    if blocks:
        rows.append(
            {
                "stage": name,
                "level": level,
                "shape (C, H, W)": tuple(rec.features[name][0].shape[1:]),
                "heads": heads,
                "channels a head": channels // heads,
            }
        )
display(pd.DataFrame(rows))

# %% [markdown]
# The last decoder stage has 32 channels where the first encoder stage has 16: it joins two maps and, unlike the others, does not squeeze them. In the published network this
# is why attention there has 96 channels a head and keeps 67, against 33 of 48 elsewhere.
#
# What do these maps show? For every stage, the one channel that looks most like the rain (by correlation with the streaks that we added):

# %%
found = {name: rainiest_channel(passes[0][0], pair.streaks) for name, passes in rec.features.items()}
maps = {f"{name}, channel {i}\ncorrelation {r:+.2f}": image for name, (i, r, image) in found.items()}
course.show({"streaks (x 3)\n": 3 * pair.streaks} | maps, columns=4)

# %% [markdown]
# *Maps are turned round where the correlation is negative, so that rain is bright. It is found in the first stage already, among edges; becomes coarse on the way
# down; and is drawn sharply and almost alone at the end.*
#
# ### What the network adds
#
# The network never draws the photo: a *global residual* adds the input at the end. All it has to produce is minus the rain.

# %%
added = restored - pair.rainy
wanted = pair.clean - pair.rainy
correlation = float(torch.corrcoef(torch.stack([added.flatten(), wanted.flatten()]))[0, 1])
course.show(
    {
        "what it takes away (x 3)": -3 * added.mean(0),
        "what it should (x 3)": -3 * wanted.mean(0),
        "difference (x 3)": 3 * (added - wanted).abs().mean(0),
    }
)
print(f"correlation of what it adds with what it should add: {correlation:.3f}")
assert correlation > 0.8

# %% [markdown]
# ## 4. Parameters and multiply-adds by hand
#
# One block at C channels, with $h = 2C$ hidden channels (this network's factor) and two branch weights a and b. The released code and this package
# compute the same in another order, so that their multiply-adds differ (notebook 02, section 5):
#
# | part | parameters | multiply-adds for each pixel, released | ours |
# |---|---|---|---|
# | 1x1 to q, k, v | 3C² | 3C² | 3C² |
# | depth-wise 3x3 on q, k, v | 27C | 27C | 27C |
# | q kᵀ; ours: for all heads at once, of which each uses its own block | - | C²/heads | C² |
# | product with v; released: dense and sparse | - | 2C²/heads | C² |
# | projection; ours: folded into the matrix, once for an image | C² | C² | C³/heads for *all* pixels |
# | temperature, a, b | heads + 2 | - | - |
# | two norms | 4C | not counted | not counted |
# | SEFN 1x1 in and out | 6hC | 6hC | 6hC |
# | SEFN 3x3, shared, used three times | 9h | **27h** | **27h** |
# | gate 3x3 on 2 maps, and its BatchNorm | 18 + 2 | 18 | 18 |
#
# The first block, C = 16 with one head:

# %%
C, h, heads = 16, 32, 1
attention = 3 * C**2 + 27 * C + heads + 2 + C**2
block = attention + 4 * C + 6 * h * C + 9 * h + 18 + 2
measured = sum(p.numel() for p in model.encoder[0][0].parameters())
print(f"by hand {block:,}, measured {measured:,}")
assert block == measured

# %% [markdown]
# And its multiply-adds, in our order, against torch's own counter:

# %%
counted = measured_macs(model, 256, 256)
each_pixel = 3 * C**2 + 27 * C + C**2 + C**2 + 6 * h * C + 27 * h + 18
by_hand = 256 * 256 * each_pixel + C**3 // heads
print(f"by hand {by_hand:,}, measured {counted['encoder.0.0']:,}")
assert by_hand == counted["encoder.0.0"]

# %% [markdown]
# The whole network, with `count_parameters` and `count_macs`, which do the same sum for all blocks and add the convolutions between them:

# %%
print(
    f"parameters: {count_parameters(config):,} by hand, {sum(p.numel() for p in model.parameters()):,} measured"
)
print(f"multiply-adds at 256 x 256: {count_macs(config, 256, 256):,} by hand, {counted['']:,} measured")
assert counted[""] == count_macs(config, 256, 256)

# %% [markdown]
# > **Predict.** Which stage has most parameters? Which takes most multiply-adds? (Not the same one.)

# %%
stages = [name for name, blocks, *_ in config.stages() if blocks]
parameters = [sum(p.numel() for p in model.get_submodule(name).parameters()) / 1e3 for name in stages]
macs = [counted[name] / 1e6 for name in stages]
fig, axes = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True)
for ax, values, label in zip(
    axes, (parameters, macs), ("thousand parameters", "million multiply-adds at 256 x 256")
):
    ax.barh(stages, values, color="#004488")
    ax.set_xlabel(label)
axes[0].invert_yaxis()
plt.show()

# %% [markdown]
# *Halving the size divides the pixels by 4 and doubling the channels multiplies the weights by 4. So every level costs about the same work, and parameters pile up at
# the bottom. The last decoder stage works at full size with twice the channels, and pays for it.*

# %%
assert stages[parameters.index(max(parameters))] == "latent" and stages[macs.index(max(macs))] == "decoder.0"
published = lab.NetworkConfig.preset("idt_ddsa")
print(
    f"published DDSA: {count_parameters(published) / 1e6:.2f} M parameters, {count_macs(published, 256, 256, 'released') / 1e9:.0f} billion multiply-adds at 256 x 256"
)

# %% [markdown]
# ## 5. Paper and released code
#
# Reproducing a network means choosing whom to believe. The two differ, or one is silent, in these points:
#
# | matter | **Paper:** the text says | **Released code:** what it does |
# |---|---|---|
# | k | "top-k approximate calculation" | `int(7*C/10)`: 33 of 48 channels per head in the encoder and latent, 67 of 96 in decoder level 1 and refinement |
# | fusion | dense and sparse combined | two unconstrained scalars a block, both starting at 0.2 |
# | SEFN | spatial-enhanced | three branches with **one shared** 3x3 depth-wise filter, concatenation, 1x1 back, then a spatial gate: conv 3x3 over [max, mean] of channels, BatchNorm (momentum 0.01), sigmoid |
# | network | an encoder-decoder | width 48, blocks 4,6,6,8, heads 1,2,4,8, factor 2.66, plus an extra full-resolution stage before level 1; refinement 2 by default, 4 in its settings; global residual |
# | cost | - | 40.62 M parameters, 261 billion multiply-adds at 256x256 (settings with 4+4 blocks) |
# | training | - | Rain100L, patch 128, mini-batch 2, 300k steps, AdamW 3e-4, L1, 92k steps flat, then cosine to 1e-6, clip 0.01, flips |
# | weights | - | none of its own were released |
#
# > **Measured here:** this package follows the released code. Its count agrees with the published parameters to the last digit given.
#
# A fraction of the keys with a rounding down hides a trap. 0.7 · 90 is 63, but not for a computer:

# %%
print(0.7 * 90, "so int() gives", int(0.7 * 90), "and the released int(7 * 90 / 10) gives", int(7 * 90 / 10))

# %% [markdown]
# ## 6. Two failure cases
#
# **Forgetting `eval()`.** SEFN's gate holds a BatchNorm. In training mode it uses the statistics of the present batch, in evaluation mode those it has stored.
#
# > **Predict.** The same weights, the same photo, training mode instead of evaluation mode: does the output change, and does the *network* change?

# %%
careless = copy.deepcopy(model).train()
before = careless.encoder[0][0].ffn.gate.norm.running_mean.clone()
with torch.no_grad():
    in_training_mode = careless(pair.rainy[None])[0].clamp(0, 1)
after = careless.encoder[0][0].ffn.gate.norm.running_mean
print(
    f"eval mode {lab.psnr(restored, pair.clean):.2f} dB, training mode {lab.psnr(in_training_mode, pair.clean):.2f} dB"
)
print("stored statistics changed by merely looking:", not torch.equal(before, after))
assert not torch.equal(in_training_mode, restored) and not torch.equal(before, after)

# %% [markdown]
# Both. A forgotten `eval()` is a quiet bug: nothing crashes, the result merely depends on what else is in the batch, and every photo leaves a trace in what is
# stored beside the weights.
# (`lab.derain` switches to evaluation mode for its own run, whatever it is given. Calling the network yourself, as here, does not.)
#
# **A tile changes the attention.** Large photos are processed in tiles to save memory. A convolution does not care, away from the borders. Attention does: its similarities are
# sums over *all* pixels that it is shown.

# %%
tiled = lab.derain(model, pair.rainy, tile=96, overlap=32)
difference = (tiled - restored).abs()
course.show(
    {"whole image": restored, "tiles of 96": tiled, "difference (x 30)": 30 * difference.mean(0)},
    clean=pair.clean,
)
assert difference.max() > 1 / 255

# %% [markdown]
# *The two results differ by more than one grey level in places, mostly along the streaks: each tile has its own attention matrix, and judges its rain a little
# differently. Both scores are about equal here, and blending the overlaps hides the seams.*
#
# ## 7. Exercises
#
# **Exercise 1 (by hand).** How many parameters does one block have at C = 32 with 2 heads (h = 64, dual)? Use the table of section 4.

# %%
answer_1 = ...
nb03.check_block(answer_1)

# %% [markdown]
# **Exercise 2.** Write pixel unshuffle by 2 with `reshape` and `permute` only: (C, H, W) to (4C, H/2, W/2).


# %%
def my_unshuffle(x):
    return ...


nb03.check_unshuffle(my_unshuffle)

# %% [markdown]
# **Exercise 3 (predict).** The photo grows from 256 x 256 to 512 x 512. By what factor grow (a) the multiply-adds, (b) the parameters, (c) the size of one attention matrix?

# %%
answer_3 = ..., ..., ...
nb03.check_growth(answer_3)

# %% [markdown]
# **Exercise 4.** SEFN's three branches share one filter. Write the function that returns the widest field, in pixels a side, that n chained 3 x 3 filters see.


# %%
def field_of_view(n):
    return ...


nb03.check_field(field_of_view)

# %% [markdown]
# ## Where to go on
#
# - **04 Train dense, sparse, dual**: make such a network learn.
# - **07 Why this pixel?** asks which pixels of the input a single pixel of the result hangs on.
# - `ddsa_lab/model/network.py` reads like section 3; `ddsa_lab/model/textbook.py` is the same network in the released order of operations.
