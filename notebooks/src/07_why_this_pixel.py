# %% [markdown]
# # 07 · Why this pixel? Explaining a network whose output is an image
#
# **What you will be able to do** after this notebook:
#
# - turn "why did it do that?" into one number of the output, and explain that number by input pixels with three methods;
# - say how far a map can be trusted: completeness, a score against the *known* streaks, and a control with random weights;
# - read a local attribution map and its diffusion index.
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
import matplotlib.pyplot as plt
import pandas as pd
import torch

from ddsa_lab import course
from ddsa_lab.analysis.attribution import REFUSED, Window, attribute, patch_error, patch_sum, rain_removed
from ddsa_lab.analysis.local_attribution import local_attribution
from ddsa_lab.analysis.sanity import randomised_check
from ddsa_lab.analysis.streak_scores import pointing_game, share_inside, streak_mask
from ddsa_lab.course import nb07
from ddsa_lab.viz.images import box, heat_map, show_image, signed_map

course.start()

# %% [markdown]
# ## 1. One number, and who made it
#
# A classifier has a score for each class. A deraining network has an image of outputs, so we must first say *which number* we ask about: the brightness of
# a window, its error, or the rain taken out of it. Call it F(x). An attribution spreads the change of F from a baseline x' to the image x over the input
# values, and a **complete** one accounts for all of it:
#
# $$\sum_n A_n = F(x) - F(x'), \qquad \text{integrated gradients:}\quad A_n = (x_n - x'_n) \int_0^1 \frac{\partial F}{\partial x_n}\bigl(x' + s(x - x')\bigr)\, ds .$$
#
# A network to check by hand: each output pixel is the mean of the 3 x 3 input pixels around it. We ask for one output pixel, three channels. Then
# exactly nine pixels count, each with a ninth of its value.

# %%
blur = torch.nn.AvgPool2d(3, stride=1, padding=1)
image = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(0))
found = attribute(blur, image, patch_sum((3, 3, 1, 1)), "integrated_gradients", baseline="black", steps=4)
(found.map[0] * 9 / image[0]).round(decimals=3)

# %%
inside = torch.zeros(7, 7, dtype=torch.bool)
inside[2:5, 2:5] = True
assert torch.allclose(found.map[:, inside], image[:, inside] / 9, atol=1e-6)
assert found.map[:, ~inside].abs().max() == 0 and found.gap < 1e-5
print(found)

# %% [markdown]
# ## 2. The real thing
#
# Heavy rain, and a window in the middle. The target: how much was taken out of the window, the sum of input minus output there.
#
# > **Predict.** Which input pixels decide how much rain is removed in the window: only those inside it, only the streaks, or the whole photo?

# %%
model = lab.load("dual-tiny")
size = course.fast(96, 48)
pair = lab.rainy_pair("chelsea", rain="heavy", seed=1, size=size)
window = Window(size * 3 // 8, size * 3 // 8, size // 4, size // 4)
target = rain_removed(window)
restored = lab.derain(model, pair.rainy)
course.show(
    {"rainy": pair.rainy, "restored": restored, "clean": pair.clean, "streaks": pair.streaks},
    clean=pair.clean,
)

# %%
steps = course.fast(32, 4)
maps = {
    "integrated gradients": attribute(model, pair.rainy, target, steps=steps, chunk=4),
    "gradient x input": attribute(model, pair.rainy, target, "gradient_x_input"),
    "occlusion": attribute(model, pair.rainy, target, "occlusion", patch=course.fast(8, 16), chunk=4),
}
for found in maps.values():
    print(found)

# %%
_, axes = plt.subplots(1, 3, figsize=(course.WIDTH, 3.2))
for ax, (name, found) in zip(axes, maps.items()):
    heat_map(found.heat, ax, pair.rainy, name)
    box(ax, window)
plt.show()

# %% [markdown]
# *Where each method finds the reasons (absolute contributions), over the photo in grey. The box is the window that is explained.*
#
# The **completeness gap** says what part of the change a map leaves unexplained. Integrated gradients approach 0 with more steps; the other two
# promise nothing. (Gradient x input comes close where a network is nearly linear in its input.) The baseline x' is the photo, blurred until streaks are
# gone; gradient x input counts from black. For networks with top-k there is a catch: the kept keys
# jump along the path, and no gradient sees a jump. So `attribute` holds the keys that the image itself kept, and reports what their choice is worth:

# %%
paths = maps["integrated gradients"]
print(f"F(x) - F(x') = {paths.change:.3g}, and {paths.gap:.2%} of it unexplained with {steps} steps")
print(f"with keys of its own choice, F(x') would change by {paths.choice:+.3g}")
assert paths.gap < course.fast(0.05, 1.0)

# %% [markdown]
# ## 3. Scored against the truth
#
# We made the rain, so we know where it is. If removal is driven by streaks, then heat should lie on streaks more often than chance: the share of heat
# inside streaks against the share of *pixels* inside streaks, near the window (a map of a small target lives there anyway).
#
# > **Predict.** A map that knows nothing scores a ratio of 1. What ratio will a good one have: 1.2, 3, or 10?

# %%
margin = size // 8
near = Window(
    window.top - margin, window.left - margin, window.height + 2 * margin, window.width + 2 * margin
)
rows = {
    name: share_inside(found.heat, pair.streaks, window=near) | pointing_game(found.heat, pair.streaks)
    for name, found in maps.items()
}
scores = pd.DataFrame(rows).T.rename(columns={"share": "heat on streaks", "area": "streaks' area"})
scores.round(3)

# %% [markdown]
# `ratio` is heat on streaks over their area; `hit` says whether the single hottest pixel lies on a streak, with `chance` beside it.
#
# > **Paper:** shows restored images, and explains the gain by attention that is no longer spread over what does not matter.
# >
# > **Released code:** holds no tool for explanations.
# >
# > **Measured here:** the ratios in the table above, for one photo, one rain and one window. Under heavy rain streaks cover so much that no ratio can be
# > large: the largest possible is 1 over the area.

# %%
area = rows["integrated gradients"]["area"]
print(f"streaks cover {area:.0%} near the window, so that the ratio can be at most {1 / area:.2f}")
assert abs(area - float(near.cut(streak_mask(pair.streaks)).float().mean())) < 1e-6
assert all(0 <= row["ratio"] <= 1 / area + 1e-6 for row in rows.values())

# %% [markdown]
# ## 4. Other questions, other answers
#
# The same pixels, the same network, another number: how bright is the window? A network that adds its result to its input copies most of the brightness
# straight through, and the map shows the copy.

# %%
questions = {
    "rain removed": target,
    "brightness": patch_sum(window),
    "error": patch_error(window, pair.clean),
}
answers = {name: attribute(model, pair.rainy, one, "gradient_x_input") for name, one in questions.items()}
_, axes = plt.subplots(1, 3, figsize=(course.WIDTH, 3.2))
for ax, (name, found) in zip(axes, answers.items()):
    signed_map(found.map.sum(0), ax, name)
    box(ax, window)
plt.show()

# %% [markdown]
# *Red pixels add to the number, blue ones take from it. Each map has a scale of its own.*
#
# How much of each map lies inside the window?

# %%
within = {name: float(window.cut(found.heat).sum() / found.heat.sum()) for name, found in answers.items()}
print({name: f"{share:.0%} of the heat inside the window" for name, share in within.items()})

# %% [markdown]
# About the same share for all three: *where* a map is does not tell the questions apart. Ask for brightness and you learn that the output looks like the
# input. Ask for the rain removed, and the copy cancels. The streak score tells these two questions apart:

# %%
ratios = {
    name: share_inside(found.heat, pair.streaks, window=near)["ratio"] for name, found in answers.items()
}
print({name: round(ratio, 2) for name, ratio in ratios.items()})
assert ratios["rain removed"] > ratios["brightness"]

# %% [markdown]
# The map of brightness does not prefer streaks; that of the rain removed does, though by this method only a little (integrated gradients, in the table
# above, see more). The error sits on streaks as well, since most of what the network gets wrong lies there. **The question is half of the explanation.**
#
# ## 5. Local attribution: how far does it look?
#
# Channel attention weighs channels by sums over *all* pixels, so in principle every pixel can matter to every other. The local attribution map (Gu and
# Dong, 2021) starts from a slightly blurred image, so that details arrive everywhere at once, and asks for the edges in the window. Its **diffusion
# index** is 100 (1 - Gini), with the Gini coefficient of notebook 05 taken over all pixels: near 0 when one pixel does it all, 100 when all count alike.

# %%
local = local_attribution(model, pair.rainy, window, steps=course.fast(32, 4), chunk=4)
_, axes = plt.subplots(1, 2, figsize=(6.4, 3.3))
show_image(pair.rainy, axes[0], "rainy")
heat_map(local.heat, axes[1], pair.rainy, f"diffusion index {local.diffusion:.1f}")
box(axes[1], window)
plt.show()

# %%
inside_share = float(window.cut(local.heat).sum() / local.heat.sum())
area_share = window.height * window.width / size**2
print(f"{inside_share:.0%} of the heat lies inside the window, which is {area_share:.0%} of the image")
print(f"{(local.heat > 0).float().mean():.0%} of all pixels have some")
assert area_share < inside_share < 1 and 0 < local.diffusion < 100

# %% [markdown]
# Most reasons are near, and a little heat is everywhere, too little to be seen in the picture: the convolutions look around the corner, attention looks at
# sums over the image.
#
# ## 6. A failure case: an explanation of nothing
#
# Make *all* weights random. Such a network has learned nothing, so there is nothing to explain. A map that still looks the same shows the photo, not the
# network's reasons (Adebayo and others, 2018).
#
# > **Predict.** How much of the map survives, as rank correlation of |map| between trained and random: about 0, or clearly more?

# %%
survives = {
    name: randomised_check(model, pair.rainy, one, "gradient_x_input", cascade=False).iloc[-1]
    for name, one in questions.items()
}
columns = ["rank_correlation", "absolute_rank_correlation"]
pd.DataFrame(survives).T[columns].astype(float).round(2)

# %%
highest = max(float(row.absolute_rank_correlation) for row in survives.values())
print(f"largest rank correlation of |map| with that of a random network: {highest:.2f}")
assert highest > 0.1

# %% [markdown]
# Compare the two columns: the first ranks pixels with their signs, the second without. The *signs* of the map depend on what was learned; *where* it is
# large depends in good part on the distance from the window, which counts in any convolutional network, and on bright pixels. A colourful blob in the
# right place is therefore no evidence. Signed maps, the streak score, and this control are.
#
# Some methods are refused here outright, with the reason:

# %%
for method in ("deep_lift", "guided_backprop"):
    print(f"{method}: {REFUSED[method]}\n")

# %% [markdown]
# ## 7. Exercises
#
# **Exercise 1 (predict).** F = 3 x1 + 2 x2, image x = (1, 2), baseline x' = (0, 1). What do integrated gradients give x2?

# %%
answer_1 = ...
nb07.check_path(answer_1)


# %% [markdown]
# **Exercise 2.** Write the completeness gap: |sum of the map - (value - start)| / |value - start|, for a map (3, H, W) and two numbers.


# %%
def gap(attribution_map, value, start):
    return ...


nb07.check_gap(gap)


# %% [markdown]
# **Exercise 3.** Write the streak score: the share of a map's heat (H, W) that lies inside a bool mask (H, W), over the share of pixels inside it.


# %%
def streak_ratio(heat, mask):
    return ...


nb07.check_ratio(streak_ratio)

# %% [markdown]
# ## Where to go on
#
# - `ddsa_lab.analysis.layer_attribution` explains by the feature maps of a layer, `randomised_check(cascade=True)` randomises stage after stage.
# - Write your own question: `Target("red", window, lambda output, image: output[:, 0].flatten(1).sum(1))`.
# - **08 Paper figures** draws these maps, with their scores, at the width of a column.
