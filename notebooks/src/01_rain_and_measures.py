# %% [markdown]
# # 01 · Rain, and how to measure that it is gone
#
# **What you will be able to do** after this notebook:
#
# - make rain of any kind, and say which of its parameters costs how many decibels;
# - compute PSNR by hand, and say what PSNR and SSIM see and what they miss;
# - explain why two papers that report the same network can differ by 1.32 dB without either being wrong.
#
# **Time:** 1 minute to run on 2 cores of an Intel Xeon (Sapphire Rapids class), no GPU; about 25 to read.
# **Memory:** under 1 GB. GPU: not measured yet, and of no use here.

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
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from scipy.ndimage import gaussian_filter

from ddsa_lab import course
from ddsa_lab.analysis.detail import gradient_ratio
from ddsa_lab.course import nb01
from ddsa_lab.data.rain import PRESETS
from ddsa_lab.evaluation.metrics import PROTOCOLS
from ddsa_lab.viz import plots

course.start()

# %% [markdown]
# ## 1. What rain does to a photo
#
# While the shutter is open a falling drop draws a bright line: the drop is out of focus, it moves, and it sends light from the sky to the camera.
# So rain *adds* light. In a storm, the many far drops that nobody sees one by one also lie over everything like mist, the *veil*.
#
# $$\text{rainy} = \operatorname{clip}\bigl(\text{clean}\,(1 - \text{veil}) + 0.75\,\text{veil} + \text{streaks},\; 0,\; 1\bigr)$$
#
# The veil is a number from 0 (none) to 1, and 0.75 is the grey of the mist. The clip at 1 matters: where the photo is white already, rain has nothing to add. Four pixels, to check in your head:

# %%
clean = torch.tensor([0.2, 0.5, 0.9, 1.0]).expand(3, 1, 4)
streaks = torch.tensor([[[0.1, 0.0, 0.3, 0.3]]])
print(lab.add_rain(clean, streaks)[0])

# %% [markdown]
# 0.2 + 0.1 = 0.3; nothing added to 0.5; and both bright pixels end at 1, so that 0.9 has lost for good how bright it was. Rain that saturates
# destroys information; rain that does not merely hides it.
#
# ## 2. Three functions: sample, render, add
#
# `sample_rain` draws the *parameters* of one rain from a preset, `render_rain` draws its streaks, `add_rain` puts them on a photo. All chance
# comes from the generator that you pass: the same seed gives the same rain again.

# %%
generator = torch.Generator().manual_seed(7)
params = lab.sample_rain("light", generator)
for name, value in list(vars(params.layers[0]).items())[:7]:
    print(f"{name:>15} {value:8.3f}")

# %%
photo = lab.sample_photo("chelsea")[:, 40:232, 120:312]
streaks = lab.render_rain(params, 192, 192, generator)
rainy = lab.add_rain(photo, streaks, params.veil)
course.show({"photo": photo, "streaks (x 3)": 3 * streaks, "sum": rainy}, clean=photo, protocol="rgb")

# %% [markdown]
# *One light rain. `angle` is in degrees from the vertical, `length` and `width` are in pixels, `cover` is the summed area of all streaks over the
# area of the image, and `brightness` is that of the median streak, where 1 is white. The two spreads say how much single streaks differ: `angle_spread` in
# degrees, `length_spread` as a share of the length. The scores are of all three colours (`protocol="rgb"`); section 7 has other ways to count.*
#
# The five presets, with the same photo and seed. `light` and `heavy` are made to look like the benchmarks Rain200L and Rain200H; `beaded` is light rain whose streaks
# vary in brightness and width along their length and sway a little, as the benchmark's do when you look closely:

# %%
rains = {name: lab.rainy_pair(photo, rain=name, seed=3).rainy for name in PRESETS}
course.show({"clean": photo} | rains, clean=photo, protocol="rgb", columns=3)

# %% [markdown]
# > **Predict.** Take the light rain above and change one number at a time: twice the `length`, twice the `cover`, twice the `brightness`.
# > Which change costs most decibels? One of them costs almost nothing. Which?

# %%
layer = params.layers[0]
changes = {"as it is": {}} | {
    name: {name: 2 * getattr(layer, name)} for name in ("length", "cover", "brightness")
}
for name, change in changes.items():
    changed = replace(params, layers=(replace(layer, **change),))
    again = lab.render_rain(changed, 192, 192, torch.Generator().manual_seed(1))
    dB = lab.psnr(lab.add_rain(photo, again), photo, protocol="rgb")
    print(f"{name:>12}: {dB:5.2f} dB, mean streak {again.mean():.4f}")

# %% [markdown]
# Twice the brightness is four times the squared error: 6 dB. Twice the cover is twice as many streaks: 3 dB at least, and more where they
# overlap, since light adds up *before* it is squared. Longer streaks at the same cover are fewer streaks: the same light on the whole, and almost
# the same score. (Single draws differ a little by chance.)
#
# ## 3. PSNR by hand
#
# In words: the mean of the squared errors, turned into decibels below the largest possible value.
#
# $$\text{MSE} = \frac1N \sum_n (x_n - y_n)^2, \qquad \text{PSNR} = 10 \log_{10} \frac{\text{peak}^2}{\text{MSE}}$$
#
# A tiny example: every value is wrong by 0.1, and the peak is 1. Then MSE = 0.01, its inverse is 100, and PSNR = 10 · 2 = 20 dB.
# An error ten times smaller (0.01) gives 40 dB. So **20 dB is a factor of ten in the error, 6 dB a factor of two.**

# %%
grey = torch.full((3, 32, 32), 0.5)
for error in (0.1, 0.05, 0.01):
    by_hand = 10 * math.log10(1 / error**2)
    print(
        f"error {error}: {by_hand:.2f} dB by hand, {lab.psnr(grey + error, grey, protocol='rgb'):.2f} dB by the package"
    )

# %% [markdown]
# The differences come from rounding: the package scores what a saved 8-bit file would hold. In the last line 0.50 and 0.51 become 128 and 130
# of 255, an error of 2 levels where 2.55 were meant. So scores above 40 dB hang on a level or two.
#
# ### A claim we can assert
#
# Where nothing clips, rainy minus clean *is* the streaks. So the PSNR of a rainy photo has nothing to do with the photo:
#
# $$\text{PSNR}(\text{rainy}) = -10 \log_{10} \operatorname{mean}(\text{streaks}^2).$$
#
# We darken the photo so that nothing clips, and compare.

# %%
dark = 0.5 * photo
from_streaks = -10 * math.log10(streaks.square().mean())
measured = lab.psnr(lab.add_rain(dark, streaks), dark, protocol="rgb")
print(f"from the streaks alone {from_streaks:.2f} dB, measured {measured:.2f} dB")
assert abs(from_streaks - measured) < 0.1

# %% [markdown]
# ## 4. What PSNR misses
#
# PSNR adds up squared errors and forgets where they were. Here are four very different kinds of damage, each scaled to *the same* mean squared error, 0.05².
#
# > **Predict.** All four have 26.0 dB. Which looks worst to you? Which will SSIM call best, which worst?

# %%
base = 0.2 + 0.6 * photo  # away from black and white, so that nothing clips
blurred = torch.from_numpy(gaussian_filter(base.numpy(), (0, 3, 3)))
noise = torch.randn(base.shape, generator=torch.Generator().manual_seed(0))
errors = {
    "brighter": torch.ones_like(base),
    "rain": streaks.expand(3, -1, -1),
    "blur": blurred - base,
    "noise": noise,
}
damaged = {name: base + 0.05 * error / error.square().mean().sqrt() for name, error in errors.items()}
course.show(damaged, clean=base, protocol="rgb")

# %%
scores = {name: lab.score(image, base, protocol="rgb") for name, image in damaged.items()}
psnrs, ssims = ([score[name] for score in scores.values()] for name in ("psnr", "ssim"))
print(f"PSNR from {min(psnrs):.2f} to {max(psnrs):.2f} dB; SSIM from {min(ssims):.2f} to {max(ssims):.2f}")
assert max(psnrs) - min(psnrs) < 0.2 < max(ssims) - min(ssims)

# %% [markdown]
# Equal PSNR, and SSIM tells them apart. SSIM compares the *local* mean, contrast and pattern in windows of 11 x 11 pixels, and multiplies the three.
# A brighter image keeps its patterns, so SSIM hardly minds. Rain spoils them in places, noise everywhere; and a blur as strong as this takes the fur away
# altogether, which SSIM minds most.
#
# ## 5. What SSIM misses, and what both miss
#
# **Colour.** Deraining papers score only luma, $Y = 0.299 R + 0.587 G + 0.114 B$. Add 0.12 to red, and take away just as much from green as leaves
# Y unchanged:

# %%
t = 0.12
cast = torch.tensor([t, -t * 0.299 / 0.587, 0.0]).view(3, 1, 1)
tinted = base + cast
for protocol in ("y_full", "rgb"):
    found = lab.score(tinted, base, protocol)
    print(f"{protocol:>8}: {found['psnr']:6.2f} dB, SSIM {found['ssim']:.4f}")
course.show({"clean": base, "tinted": tinted})

# %% [markdown]
# A visible tint, and a nearly perfect score under luma: a network that turned every photo as red as this would lose next to nothing in a benchmark.
#
# **Place.** Shift a photo by a single pixel. No eye sees it, and SSIM takes off about as much as for the rain:

# %%
shifted = base.roll(1, dims=-1)
course.show(
    {"clean": base, "shifted by 1 pixel": shifted, "rain": damaged["rain"]}, clean=base, protocol="rgb"
)
assert lab.ssim(shifted, base, "rgb") < 0.85

# %% [markdown]
# ## 6. A failure case: the blur that "derains"
#
# Heavy rain, and the laziest deraining there is: a Gaussian blur. It removes no streak, it only smears it out.
#
# > **Predict.** Will blur raise or lower PSNR? And SSIM?
#
# Beside the two we take a third measure, `gradient_ratio` (from `ddsa_lab.analysis.detail`): how steep the edges of the clean photo still are, 1 if
# nothing was lost.

# %%
heavy = lab.rainy_pair("rocket", rain="heavy", seed=0, size=192)
smeared = torch.from_numpy(gaussian_filter(heavy.rainy.numpy(), (0, 2, 2)))
course.show({"heavy rain": heavy.rainy, "blurred": smeared, "clean": heavy.clean}, clean=heavy.clean)

# %%
gains = {
    name: lab.score(smeared, heavy.clean)[name] - lab.score(heavy.rainy, heavy.clean)[name]
    for name in ("psnr", "ssim")
}
steep = gradient_ratio(smeared, heavy.clean, coherent=True)
print(
    f"PSNR {gains['psnr']:+.2f} dB, SSIM {gains['ssim']:+.3f}; of the slope of the clean edges {steep:.0%} are left"
)
assert gains["psnr"] > 1 and gains["ssim"] > 0.1 and steep < 0.75

# %% [markdown]
# Both measures reward the blur. A measure that looks at edges alone sees the harm. So never
# judge a deraining network by one number, and always look at the picture.
#
# ## 7. Protocols, and the 1.32 dB
#
# "PSNR on luma" is not one measure. MATLAB's luma (`rgb2ycbcr`) runs from 16 for black to 235 for white, a range of 219 and not 255:
#
# $$Y_\text{MATLAB} = 16 + \tfrac{219}{255}\, Y_\text{full}.$$
#
# Errors shrink by 219/255, but the peak in the formula stays 255. So every score rises by the same amount, for every image:
#
# $$20 \log_{10} \tfrac{255}{219} = 1.32\ \text{dB}.$$
#
# > **Paper:** deraining papers report "PSNR/SSIM on the Y channel" and seldom say more. `ddsa_lab.evaluation.published` holds the
# > numbers that readers compare with, each with its protocol.
# >
# > **Released code:** the usual scripts are MATLAB's, so their luma spans 16 to 235; Python re-implementations often use full-range luma, or RGB.
# >
# > **Measured here:** one restored photo, scored under every protocol of this package.

# %%
light = lab.rainy_pair("coffee", rain="light", seed=0, size=192)
restored = lab.derain(lab.load("dual-tiny"), light.rainy)
by_protocol = {name: lab.psnr(restored, light.clean, name) for name in PROTOCOLS}
plots.protocol_bars(by_protocol, plt.figure(figsize=(7, 2.4)).subplots(), list(PROTOCOLS))
plt.show()

# %% [markdown]
# *The same image against the same clean photo; nothing changed but the ruler. `y_uint8`: MATLAB's luma, rounded to whole levels. `y_double`: the same
# unrounded. `y_full`: full-range luma. `rgb`: all three colours.*

# %%
difference = by_protocol["y_double"] - by_protocol["y_full"]
print(
    f"MATLAB luma minus full-range luma: {difference:.4f} dB; 20 log10(255/219) = {20 * math.log10(255 / 219):.4f} dB"
)
assert abs(difference - 20 * math.log10(255 / 219)) < 1e-6

# %% [markdown]
# Exact to the last digit shown, as it must be for a mere change of units. RGB scores are lower again, since colour noise that luma averages away
# counts in full. **A score without the name of its protocol is not a number that can be compared.**
#
# ## 8. Exercises
#
# **Exercise 1 (predict).** A restored image is wrong by exactly 10 grey levels (of 255) everywhere. What is its PSNR in dB, with peak 255?
# Use `math.log10` if your head refuses.

# %%
answer_1 = ...
nb01.check_constant_error(answer_1)


# %% [markdown]
# **Exercise 2.** Write PSNR yourself, for two images (3, H, W) in [0, 1] without any rounding.


# %%
def my_psnr(restored, clean):
    return ...


nb01.check_psnr(my_psnr)


# %% [markdown]
# **Exercise 3.** Write a function that visibly changes the colours of a photo (3, H, W) in [0, 1] (by 0.03 or more on average), and yet leaves its
# luma 0.299 R + 0.587 G + 0.114 B as it is. Section 5 has one way; use another colour.


# %%
def unseen_by_luma(photo):
    return ...


nb01.check_unseen_by_luma(unseen_by_luma)

# %% [markdown]
# **Exercise 4 (predict).** Paper A reports 31.00 dB with full-range luma, paper B 32.00 dB with MATLAB's (`y_double`), on the same images. Which network
# is closer to the clean images: `"A"` or `"B"`?

# %%
answer_4 = ...
nb01.check_two_papers(answer_4)

# %% [markdown]
# ## Where to go on
#
# - **02 Attention from scratch** builds what takes the rain off.
# - Try `lab.rainy_pair(photo, rain="light+heavy")`, or a photo of your own: any path will do in place of a name.
# - `from ddsa_lab.viz.widgets import rain_studio`, then `rain_studio()`: every parameter of a rain on a slider.
