# %% [markdown]
# # 08 · Figures for a paper
#
# **What you will be able to do** after this notebook:
#
# - read every figure in `figures/`, and say what it claims and on what evidence;
# - rebuild one with a single call, get the same bytes again, and trace each number in it to how it was made;
# - make a figure of your own network, at a column's width, with its numbers beside it.
#
# **Time:** 1 minute to run on 2 cores of an Intel Xeon (Sapphire Rapids class), no GPU; about 20 to read.
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
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from ddsa_lab import course
from ddsa_lab.analysis.probe import record
from ddsa_lab.analysis.sparsity import sparsity_table
from ddsa_lab.course import nb08
from ddsa_lab.course.gallery import show_figure
from ddsa_lab.viz import plots
from ddsa_lab.viz.figures import FIGURES, build, save_json, save_pdf, save_png
from ddsa_lab.viz.style import SINGLE, style, subplots

course.start()
folder = Path(tempfile.mkdtemp())
print(", ".join(FIGURES))

# %% [markdown]
# Each name is one function from a workbench (networks, photos, rain, each made once) to a finished drawing *and its numbers*. `ddsa-lab figures all`
# writes each as `NAME.pdf` for the paper, `NAME.png` for the screen, and `NAME.json` with settings, seeds, versions and every number drawn.
#
# ## 1. Rebuild one
#
# In words: a figure that cannot be rebuilt is a picture. The smallest check there is: build it twice, and compare the files byte for byte.
#
# > **Predict.** Will all files be equal? What usually makes two builds of a PDF differ?

# %%
for attempt in ("first", "second"):
    built = build("metrics", folder / attempt, progress=False)
names = [path.name for path in built.paths]
same = [(folder / "first" / name).read_bytes() == (folder / "second" / name).read_bytes() for name in names]
print(dict(zip(names, same)))
assert all(same)

# %% [markdown]
# Equal. What usually differs is the date that a PDF carries, random jitter without a seed, and the order of a set.

# %%
show_figure("metrics", folder / "first")

# %% [markdown]
# **`metrics`: one restored photo under four rulers.** (a) the photo and its error; (b) the two luma scales, with one peak; (c) the same image scored under
# each protocol. Claim: MATLAB's luma adds 20 log10(255/219) = 1.32 dB, whatever the image. Evidence: the derivation in (b), which holds for every image; one
# image in (c) shows it. We check it from the numbers beside the figure, without any network:

# %%
facts = json.loads((folder / "first" / "metrics.json").read_text())
print({key: facts[key] for key in ("command", "settings", "seeds")})
offset = facts["numbers"]["measured_offset_db"]
print(f"measured offset {offset:.4f} dB")
assert abs(offset - 1.3218) < 1e-3

# %% [markdown]
# > **Paper:** gives scores "on the Y channel"; its own table was not at hand, so none of our figures prints a number as the paper's.
# >
# > **Released code:** no figures, no scripts for figures.
# >
# > **Measured here:** every number in every figure is in its JSON, with the digest of the weights it came from.
#
# ## 2. A second cheap one: what networks cost

# %%
cost = build("cost", folder / "first", progress=False)
show_figure("cost", folder / "first")

# %% [markdown]
# **`cost`.** Parameters across, a published score up, multiply-adds as area. Only networks with a score of *one* benchmark under *one* protocol stand
# in the upper panel; the others are shown by size alone. Claim: sizes, counted by `ddsa_lab.model.cost`. It makes no claim that size buys quality: two points
# with a score are no curve.
#
# ## 3. All the others, as they are in `figures/`
#
# > **Predict** before each: what would the picture look like if top-k did nothing at all?
#
# **`diagram`: the two halves of a block**, in the order of the released code. It shows structure and no measurement: follow each arrow in
# `ddsa_lab/model/attention.py` and `feedforward.py` to check it.

# %%
show_figure("diagram")

# %% [markdown]
# **`comparison`: restored photos side by side**, with zooms and errors. Look at the errors, not at the photos: the eye forgives what a difference map shows.
# Below each error stands its PSNR (protocol `y_uint8`). Two cases show what errors look like; which network is better they cannot say.

# %%
show_figure("comparison")

# %% [markdown]
# **`table`: mean scores** on 8 crops for each rain; PSNR in dB, protocol `y_uint8`. Also as `.tex`, `.md` and `.csv`. Bold is the highest of a column and
# no claim: there is one training seed of each network, and a mean without an interval does not say whether another seed would turn the order round.

# %%
show_figure("table")

# %% [markdown]
# **`attention`: one layer's matrices**: logits, dense weights, kept keys, fused weights. If top-k did nothing, dense and fused would differ by a factor only.

# %%
show_figure("attention")

# %% [markdown]
# **`sparsity`: measures over depth** (notebook 05): effective k, kept mass, gain. The reference is the uniform row: effective k / C = 1, m = k/C, and with
# a = b, as training starts, g = 1 + C/k. The dense network has no sparse branch, hence no kept mass, and only the dual one has a gain.

# %%
show_figure("sparsity")

# %% [markdown]
# **`sweep`: PSNR over the share of keys kept** (notebook 06), with random and weakest keys as controls. If it did not matter which keys are kept,
# the three lines would lie on each other.

# %%
show_figure("sweep")

# %% [markdown]
# **`training`: how the networks learned, and how a and b moved** from where they started, 0.2. Panel (c) is a run of its own, shorter than the others, that
# recorded them. One seed each: good for seeing, not for claiming.

# %%
show_figure("training")

# %% [markdown]
# **`attribution`: which pixels removed the rain** (notebook 07): maps by several methods, each with its gap and its share inside the known streaks, beside
# the chance level.

# %%
show_figure("attribution")

# %% [markdown]
# **`study`: variants compared fairly**, made by `ddsa-lab study studies/attention.json` (notebook 09). On the left each dot is one seed; on the right
# stands the *difference* from dense attention, with its 95 % interval. Only an interval that lies wholly on one side of 0 supports a claim, and each
# stands alone: of twenty variants that change nothing, one would look decided. Here, at the tiny size and 300 steps, sparse attention with 30 % of the keys and
# four nested branches (`multi`) are worse than dense attention; dual attention cannot be told from it. Look at the dots on the left too: one seed
# of any row would fit into nearly every other, which is why one seed shows nothing.

# %%
show_figure("study")

# %% [markdown]
# ## 4. A figure of your own network
#
# `build(..., weights="path/to/model.safetensors")` makes any of them for your checkpoint. Here the shipped sparse network stands in for yours:

# %%
build("metrics", folder / "mine", progress=False, weights="sparse-tiny")
mine = json.loads((folder / "mine" / "metrics.json").read_text())
print(list(mine["weights"]), f"{mine['numbers']['scores']['y_uint8']['psnr']:.2f} dB")
assert list(mine["weights"]) == ["sparse-tiny"]

# %% [markdown]
# And one that is not in the list. Plot functions take data and an Axes and return the Axes, so any of them goes into any figure. Here two networks' kept
# mass over depth, one column wide:

# %%
tables = {}
for name in ("sparse-tiny", "dual-tiny"):
    model = lab.load(name)
    with record(model) as rec:
        lab.derain(model, lab.rainy_pair("coffee", rain="light", seed=0, size=course.fast(96, 64)).rainy)
    tables[name] = sparsity_table(rec)

# %%
with style():
    figure, ax = subplots((SINGLE, 2.2))
    for name, table in tables.items():
        plots.sparsity_over_depth(table, ax, "kept_mass", "kept mass m", mode=name.split("-")[0])
        ax.lines[-1].set_label(name)
    ax.legend()
    save_pdf(figure, folder / "kept_mass.pdf")
    save_png(figure, folder / "kept_mass.png")
    save_json(
        {name: table.groupby("layer", sort=False).kept_mass.mean() for name, table in tables.items()},
        folder / "kept_mass.json",
    )
show_figure("kept_mass", folder)

# %% [markdown]
# *Kept mass of the sparse (triangles) and the dual network (circles), one photo. The JSON beside it holds the numbers:*

# %%
print((folder / "kept_mass.json").read_text())
assert all(
    0.6 < value <= 1
    for one in json.loads((folder / "kept_mass.json").read_text()).values()
    for value in one.values()
)

# %% [markdown]
# Three rules that the style keeps for you: the size is that of the column (3.5 or 7.16 inches), so that 8-point letters print as 8-point letters; colours
# differ in lightness and each has a marker of its own, so that colour-blind readers and photocopies keep up; fonts are embedded.
#
# ## 5. A failure case: the axis that shouts
#
# Two scores that differ by little, drawn twice. Only the axis differs.

# %%
two = {"A": 34.4, "B": 35.0}
_, axes = plt.subplots(1, 2, figsize=(7, 2.6))
for ax, low in zip(axes, (34.2, 0)):
    ax.bar(two.keys(), [value - low for value in two.values()], bottom=low, color=["#B8B8B8", "#BB5566"])
    ax.set(ylabel="PSNR (dB)", title=f"axis from {low:g} dB")
plt.show()
looks, is_so = (two["B"] - 34.2) / (two["A"] - 34.2), 10 ** ((two["B"] - two["A"]) / 10)
print(f"on the left B's bar is {looks:.1f} times as long; its squared error is {is_so:.2f} times smaller")
assert looks > 2 * is_so

# %% [markdown]
# And an axis from 0 whispers: 0 dB means nothing for PSNR, so no axis is "right" and bars are the wrong picture. Draw *differences with intervals*, as
# `study` does.
#
# ## 6. Exercises
#
# **Exercise 1 (predict).** A figure is one column wide, 3.5 inches, at 300 dots per inch. How many pixels wide is its PNG?

# %%
answer_1 = ...
nb08.check_pixels(answer_1)

# %% [markdown]
# **Exercise 2 (predict).** Bars of 30.2 and 30.5 dB on an axis that starts at 30 dB: how many times as long as the first does the second look?

# %%
answer_2 = ...
nb08.check_cut_axis(answer_2)


# %% [markdown]
# **Exercise 3.** `facts["numbers"]` of the figure `metrics` holds `scores` (by protocol, with `psnr` and `ssim`) and `psnr_of_the_rainy_input` (by protocol).
# Write a function that returns the gain in dB under a protocol.


# %%
def gain(numbers, protocol):
    return ...


nb08.check_gain(gain)

# %% [markdown]
# ## Where to go on
#
# - `ddsa-lab figures all --out my_figures --weights my/model.safetensors` makes the whole set for your network.
# - **09 Your own data**: scores and intervals worth a figure.
