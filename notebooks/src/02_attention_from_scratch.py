# %% [markdown]
# # 02 · Attention from scratch: dense, sparse, dual
#
# **What you will be able to do** after this notebook:
#
# - write channel attention as a loop, as a matrix product, and as one call, and show that the three agree;
# - say why dropped keys are filled with minus infinity and not with zero;
# - derive the *two-level gain* that dual attention is, and predict its size: 2.45 at the start, 2 in the limit;
# - say what dual attention costs, and how sparsemax and entmax differ from top-k.
#
# **Time:** 1 minute to run on 2 cores of an Intel Xeon (Sapphire Rapids class), no GPU; about 35 to read.
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
import math

import torch

from ddsa_lab import course
from ddsa_lab.analysis.probe import record
from ddsa_lab.course import nb02
from ddsa_lab.course.entmax import entmax15, sparsemax
from ddsa_lab.model.attention import (
    dense_weights,
    dual_weights,
    keep_count,
    similarity,
    sparse_weights,
    topk_mask,
)
from ddsa_lab.model.cost import count_macs

course.start()
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. Who looks at whom
#
# In most transformers *pixels* (or words) attend to each other. Here *channels* do. A network for images holds C feature maps, each a grey image;
# channel attention asks, for every pair of them, how alike they are over the whole image. Why not pixels? Count the entries of the matrix:

# %%
print(f"pixels attend: {(256 * 256) ** 2:>13,} entries for an image of 256 x 256")
print(f"channels attend: {48**2:>11,} entries for 48 channels, whatever the size of the image")

# %% [markdown]
# In words: each channel makes a query image $q_i$ and a key image $k_j$. Their similarity is the cosine of the angle between them, as vectors of
# HW pixels, times a learned temperature $t$:
#
# $$z_{ij} = t\,\frac{\langle q_i, k_j\rangle}{\lVert q_i\rVert\,\lVert k_j\rVert}.$$
#
# A tiny example to check by hand: three channels of four pixels. Each has length √2, and two neighbours share one pixel, so their cosine is 1/2.

# %%
q = k = torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]])  # (C, HW) = (3, 4)
t = torch.ones(1, 1)  # the temperature, for now 1

# %% [markdown]
# **As a loop.** The plainest way to say it, and the slowest:

# %%
z_loop = torch.zeros(3, 3)
for i in range(3):
    for j in range(3):
        z_loop[i, j] = (q[i] * k[j]).sum() / (q[i].norm() * k[j].norm())
print(z_loop)

# %% [markdown]
# **As a matrix product.** Make all rows unit vectors, then one product holds all cosines. **As one call.** The package says the same in one line:

# %%
unit_q, unit_k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
z_matrix = unit_q @ unit_k.T
z = similarity(q, k, t)
assert torch.allclose(z_loop, z_matrix) and torch.allclose(z_matrix, z)

# %% [markdown]
# The network itself goes one step further: it never normalises the rows, it divides the small C x C product by the row lengths. Same numbers, and no
# normalised copies of two stacks of images (`ChannelAttention.logits`).
#
# ## 2. Softmax: similarities become shares
#
# $$p_{ij} = \frac{e^{z_{ij}}}{\sum_l e^{z_{il}}}$$
#
# Every share is positive, and each row sums to 1. The temperature says how picky a row is: cosines never exceed 1, so without it a row could
# never be sharp.

# %%
for temperature in (0.1, 1, 10):
    print(f"t = {temperature:>4}:", dense_weights(temperature * z)[0])

# %% [markdown]
# Channel 0 and channel 2 share no pixel (cosine 0), and still exchange something (even at t = 10, where the 0.000 is 0.00005 in full):
# **dense attention never says no.** Hence the idea to keep only the $k$ strongest keys of each row.
#
# ## 3. Top-k, and why minus infinity
#
# > **Predict.** We want the third key of a row to count for nothing. Three ways come to mind:
# > (a) set its *logit* to 0, then softmax; (b) softmax, then set its *share* to 0; (c) set its logit to minus infinity, then softmax.
# > Which of them really remove it, and which leave a row that sums to 1?

# %%
row = torch.tensor([1.0, 0.5, -1.0])
kept = torch.tensor([True, True, False])
fillings = {
    "dense, for comparison": row.softmax(0),
    "(a) logit = 0": row.masked_fill(~kept, 0).softmax(0),
    "(b) share = 0": row.softmax(0) * kept,
    "(c) logit = -inf": row.masked_fill(~kept, -math.inf).softmax(0),
}
for name, weights in fillings.items():
    print(f"{name:>22}: {weights}, sum {weights.sum():.3f}")

# %% [markdown]
# - (a) is worse than nothing: the weakest key, with logit -1, was *raised* to 0, since $e^0 = 1$. (The masks of zeros in released code are no such
#   bug: they mark places, and the fill is minus infinity.)
# - (b) removes it, but the row no longer sums to 1.
# - (c) does both: $e^{-\infty} = 0$ exactly, and softmax shares the whole among those that are left.
#
# (b) and (c) differ only by a factor. With $m$ the sum of the kept shares, **(c) = (b) / m**. Remember this $m$.

# %%
m = fillings["(b) share = 0"].sum()
assert torch.allclose(fillings["(c) logit = -inf"], fillings["(b) share = 0"] / m)
assert torch.allclose(fillings["(c) logit = -inf"], sparse_weights(row, k=2))
print(f"m = {m:.3f}")

# %% [markdown]
# Now on the real thing: the logits of the first layer of a trained network, looking at a rainy cup of coffee.

# %%
pair = lab.rainy_pair("coffee", rain="light", seed=0, size=128)
model = lab.load("dual-tiny")
with record(model) as rec:
    lab.derain(model, pair.rainy)
entry = rec["encoder.0.0"][0]
z, k = entry.logits[0, 0], keep_count(0.7, 16)
course.show_matrices(
    {"logits z": z, f"kept: {k} of 16 a row": topk_mask(z, k), "sparse weights": sparse_weights(z, k)}
)

# %% [markdown]
# *Left: similarities, between -1 and 1 times the temperature. Middle: dark squares are kept. Right: the white squares of the mask have become exact zeros.*
#
# ## 4. Dual attention is dense attention with a two-level gain
#
# DDSA adds both, with two learned numbers:
#
# $$A = a \cdot \text{dense} + b \cdot \text{sparse}.$$
#
# Put in what we know: dense is $p$, and sparse is $p/m$ on the kept keys $S$ and 0 elsewhere. Then
#
# $$A_{ij} = \begin{cases} p_{ij}\,(a + b/m_i) & j \in S_i \\ p_{ij}\; a & \text{otherwise.}\end{cases}$$
#
# So each share is multiplied by one of *two* numbers. Their ratio says what the sparse branch does:
#
# $$\boxed{\;g_i = \frac{a + b/m_i}{a} = 1 + \frac{b}{a\,m_i}\;}$$
#
# > **Predict.** Draw, for one row of the trained layer, the fused weight of each key against its dense weight. What will you see: a curve, a cloud, two lines?

# %%
a, b = entry.a, entry.b
p, fused = dense_weights(z), dual_weights(z, k, a, b)
kept, m = topk_mask(z, k), (p * topk_mask(z, k)).sum(-1, keepdim=True)
nb02.draw_gain(p[0], fused[0], kept[0], a, b)

# %% [markdown]
# *Two straight lines, and every key on one of them. Dropped keys are not gone in dual attention; they are only passed over.*

# %%
identity = p * torch.where(kept, a + b / m, torch.tensor(a))
print(
    f"largest difference between a dense + b sparse and p times its gain: {(fused - identity).abs().max():.1e}"
)
assert torch.allclose(fused, identity, atol=1e-7)

# %% [markdown]
# This is also why the network needs *one* softmax and *one* product with v, where the formula suggests two of each.
#
# ### How large is the gain?
#
# At the start of a training $a = b = 0.2$, and all logits are near 0, so that $p$ is almost uniform. Then $m = k/C$, the share of keys kept. DDSA keeps
# 33 of 48:
#
# $$g = 1 + \frac{0.2}{0.2 \cdot 33/48} = 1 + \frac{48}{33} = 2.45.$$
#
# At the other end the row is peaked, the kept keys hold everything, $m = 1$, and $g = 1 + b/a = 2$. With $a = b$ the gain has nowhere else to go: it lies
# between 2 and 2.45, however the logits turn out. We let random logits grow, and watch:

# %%
logits = torch.randn(200, 48, generator=torch.Generator().manual_seed(0))
scales = torch.logspace(-2, 1.5, 30)
gains = torch.stack(
    [1 + 1 / (dense_weights(s * logits) * topk_mask(logits, 33)).sum(-1).mean() for s in scales]
)
ends = {"uniform rows: 1 + 48/33": 1 + 48 / 33, "peaked rows: 1 + b/a": 2}
nb02.draw_curves(scales, {"gain": gains}, "scale of the logits", "gain g", log=True, levels=ends)

# %% [markdown]
# *The gain of the kept keys over the dropped ones, for a = b and 33 of 48 keys, from nearly uniform rows (left) to peaked ones (right).*

# %%
assert abs(gains[0] - (1 + 48 / 33)) < 0.02 and abs(gains[-1] - 2) < 0.001
print(f"uniform: g = {gains[0]:.3f}; peaked: g = {gains[-1]:.3f}")

# %% [markdown]
# A trained network can only leave this range by moving $b/a$. Has it?

# %%
for name, passes in rec.items():
    layer = passes[0]
    print(
        f"{name}: a = {layer.a:6.3f}, b = {layer.b:6.3f}, b/a = {layer.b / layer.a:5.2f}, mean m = {layer.mass.mean():.3f}, mean g = {layer.gain.mean():.2f}"
    )

# %% [markdown]
# > **Released code:** a and b are two plain numbers for each block, both from 0.2, free to take any sign.
# >
# > **Measured here:** in this small network they stay positive in every layer, b/a moves away from 1 in some of them, and m lies between the 0.69 of uniform
# > rows and the 1 of peaked ones: attention over channels is only mildly peaked. Notebook 05 measures this layer by layer.
#
# ## 5. What it costs
#
# > **Predict.** Sparse attention is often sold as cheaper. Dual attention drops 30 % of the keys in one branch. Is it cheaper than dense attention,
# > equal, or dearer?

# %%
for mode in ("dense", "sparse", "dual"):
    config = lab.NetworkConfig.preset("idt_ddsa", mode=mode)
    released, ours = (count_macs(config, 256, 256, order) / 1e9 for order in ("released", "ours"))
    print(
        f"{mode:>7}: released order of operations {released:.1f}, ours {ours:.1f} billion multiply-adds at 256 x 256"
    )

# %% [markdown]
# In the released order dual costs *more*: a second product with v. Zeros in a dense matrix save nothing, because the product multiplies by them all the same;
# and finding the k largest comes on top. In our order all modes cost the same, since the two-level gain is applied to the small C x C matrix before it meets v.
#
# The counts lie close together all the same, because ours multiplies q and k of *all* heads at once and then uses each head's own block. It is faster by more than
# that on a CPU, because it makes fewer and larger steps (the README has the times); multiply-adds are not seconds.
#
# ## 6. Letting the logits decide: sparsemax and entmax
#
# Top-k fixes *how many* keys survive. Two relatives of softmax reach exact zeros by themselves, and let the row decide:
#
# $$p_i = \max\bigl(0, (\alpha - 1) z_i - \tau\bigr)^{1/(\alpha - 1)}, \qquad \tau \text{ such that } \textstyle\sum_i p_i = 1.$$
#
# The threshold $\tau$ is found for each row; what lies below it gets exactly 0. $\alpha = 2$ is **sparsemax**, $\alpha = 1.5$ is **1.5-entmax**, and $\alpha \to 1$ is softmax.
#
# By hand, sparsemax of (1, 0.5, -1): try two survivors,
# $\tau = (1 + 0.5 - 1)/2 = 0.25$, which gives (0.75, 0.25, 0), and indeed -1 lies below 0.25.

# %%
row = torch.tensor([1.0, 0.5, -1.0])
for name, weights in {
    "softmax": row.softmax(0),
    "entmax 1.5": entmax15(row),
    "sparsemax": sparsemax(row),
}.items():
    print(f"{name:>10}: {weights}")
assert torch.allclose(sparsemax(row), torch.tensor([0.75, 0.25, 0.0]))

# %% [markdown]
# > **Predict.** Let the logits of a row of 48 grow. How many keys survive under top-k (33 of 48), under sparsemax, under entmax?

# %%
rows = logits[:50]
counts = {
    "top-k": [float((sparse_weights(s * rows, 33) > 0).sum(-1).float().mean()) for s in scales],
    "1.5-entmax": [float((entmax15(s * rows) > 0).sum(-1).float().mean()) for s in scales],
    "sparsemax": [float((sparsemax(s * rows) > 0).sum(-1).float().mean()) for s in scales],
}
nb02.draw_curves(scales, counts, "scale of the logits", "keys that survive, of 48", log=True)

# %% [markdown]
# *Top-k keeps 33 whatever the row looks like (at the far right the smallest of them underflow to 0). Entmax and sparsemax keep all, or nearly, where the row is
# flat, and little more than one where it is peaked.*
#
# And the logits of the trained network, at the scale that they have?

# %%
for name in ("encoder.0.0", "latent.0", "decoder.0.0"):
    real = rec[name][0].logits
    survivors = [float((f(real) > 0).sum(-1).float().mean()) for f in (entmax15, sparsemax)]
    print(
        f"{name}: of {real.shape[-1]} keys entmax keeps {survivors[0]:.1f}, sparsemax {survivors[1]:.1f}, top-k {keep_count(0.7, real.shape[-1])}"
    )

# %% [markdown]
# > **Measured here:** for heads of 16 channels 1.5-entmax would keep about as many keys as top-k at 70 % does, but more in some rows and fewer in others;
# > sparsemax would keep half as many. The network was trained with top-k, so this says where one would start, not which is better.
# > That is a good project: CONTRIBUTING says how to add a variant.
#
# ## 7. Two failure cases
#
# **Top-k jumps.** Move one logit past another, and under top-k a share jumps from nothing to 0.43; sparsemax and softmax move smoothly.

# %%
t = torch.linspace(-1, 1, 201)
rows = torch.stack([t, torch.zeros_like(t), torch.full_like(t, 0.3), torch.full_like(t, -0.4)], dim=-1)
shares = {"top-2": sparse_weights(rows, 2), "sparsemax": sparsemax(rows), "softmax": rows.softmax(-1)}
first = {name: weights[:, 0] for name, weights in shares.items()}
nb02.draw_curves(t, first, "logit of the first key (others: 0.3, 0, -0.4)", "its weight")

# %% [markdown]
# *At 0 the first key overtakes the second strongest, and top-2 takes it up from 0 to more than 0.4 at once. A gradient cannot see such a step coming: a dropped key
# gets no gradient through the sparse branch. In dual attention it still gets one through the dense branch. That may be the better half of the idea.*
#
# **Ties in low precision.** bfloat16 keeps 8 significant bits, so that between 0.5 and 1 it can tell only 128 values apart. We round the logits of an *untrained* layer with 48 channels,
# where all are close together, and look for rows whose kept keys hang on a tie:

# %%
untrained = lab.DerainTransformer(lab.NetworkConfig(width=48, blocks=(1,), heads=(1,), refinement=0)).eval()
with record(untrained) as early:
    lab.derain(untrained, pair.rainy)
z48 = next(iter(early.values()))[0].logits[0, 0]
rounded = z48.bfloat16().float()
edge = rounded.sort(dim=-1, descending=True).values
tied = (edge[:, 32] == edge[:, 33]).float().mean()
print(f"rows whose 33rd and 34th key cannot be told apart: {tied:.0%} in bfloat16")

# %% [markdown]
# Which of two equal keys survives is then up to the machine: `torch.topk` breaks ties arbitrarily, and differently on CPU and GPU. So the package computes
# similarities and selection in float32 even where everything around them runs in bfloat16.

# %%
sorted32 = z48.sort(dim=-1, descending=True).values
assert (sorted32[:, 32] > sorted32[:, 33]).all() and tied > 0

# %% [markdown]
# ## 8. Exercises
#
# **Exercise 1.** Write the sparse branch yourself: logits z (C, C) and a whole number k in, weights (C, C) out. Each row keeps its k largest entries and sums to 1.


# %%
def my_sparse(z, k):
    return ...


nb02.check_sparse(my_sparse)

# %% [markdown]
# **Exercise 2 (by hand).** A layer has learned a = 0.1 and b = 0.3, and in one row the kept keys hold m = 0.6 of the dense weight. What is the gain g?

# %%
answer_2 = ...
nb02.check_gain(answer_2)


# %% [markdown]
# **Exercise 3.** The fast form: from p = softmax(z), the mask, a and b, compute the fused weights *without* a second softmax.


# %%
def fused_from_gain(p, mask, a, b):
    return ...


nb02.check_fused(fused_from_gain)

# %% [markdown]
# **Exercise 4 (by hand).** Sparsemax of (2, 0, 0): which three numbers?

# %%
answer_4 = ...
nb02.check_sparsemax(answer_4)

# %% [markdown]
# ## Where to go on
#
# - **03 Inside the network** puts this layer into a block, and the blocks into a U.
# - **05 How sparse is attention?** measures m, g and the effective number of keys in trained networks.
# - `ddsa_lab/model/attention.py` is this notebook as about 200 lines of code; read it now.
