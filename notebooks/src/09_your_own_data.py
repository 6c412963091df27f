# %% [markdown]
# # 09 · Your own data
#
# **What you will be able to do** after this notebook:
#
# - lay out a folder of rainy and clean photos, have it checked, and score networks on it under named protocols;
# - fine-tune a shipped network on your own pairs, and say whether that helped on photos it never saw;
# - run a small fair study, and know the commands that scale it to several GPUs and machines.
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
from pathlib import Path

import torch

from ddsa_lab import course
from ddsa_lab.course import nb09
from ddsa_lab.data.check import check_folder
from ddsa_lab.data.pairs import find_pairs
from ddsa_lab.evaluation.benchmark import evaluate_folder, summary
from ddsa_lab.evaluation.statistics import NO_CLAIM
from ddsa_lab.evaluation.study_report import study_scores, study_table
from ddsa_lab.training.study import run_study
from ddsa_lab.training.study_config import HeldOut, StudyConfig

course.start()
place = Path(tempfile.mkdtemp())  # with data of your own: your folder

# %% [markdown]
# ## 1. A folder of pairs
#
# A benchmark is a folder with rainy photos and the clean ones that belong to them. The usual layouts are recognised: `input/` and `target/`, `rain/` and
# `norain/`, names such as `rain-001.png` and `norain-001.png`, both halves in one file, or a list of paths.
#
# The smallest one, to check by hand: one grey photo of value 100, and a "rainy" one of value 110. Every error is 10 levels, so the PSNR must be
# 20 log10(255/10) = 28.13 dB, and a black result would be 20 log10(255/100) = 8.13 dB.

# %%
lab.save_image(torch.full((3, 32, 32), 110 / 255), place / "tiny/input/grey.png")
lab.save_image(torch.full((3, 32, 32), 100 / 255), place / "tiny/target/grey.png")
by_hand = evaluate_folder({"black": torch.zeros_like}, place / "tiny", protocols=("rgb",), progress=False)
print(by_hand.to_string())
assert abs(by_hand.psnr[0] - 28.13) < 0.01 and abs(by_hand.psnr[1] - 8.13) < 0.01

# %% [markdown]
# A "model" may be a network or any function from a rainy image to a restored one. The row `input` is the untouched photo: without it a score
# means little.
#
# Now something larger: some photos for training and two for the test, in *heavy* rain, which `dual-tiny` was not trained for. They stand for your data.

# %%
size = course.fast(160, 64)
parts = {"train": lab.TRAIN_PHOTOS[: course.fast(8, 4)], "test": ("coffee", "chelsea")}
for part, names in parts.items():
    for i, name in enumerate(names):
        pair = lab.rainy_pair(name, rain="heavy", seed=100 * len(part) + i, size=size)
        lab.save_image(pair.rainy, place / part / "input" / f"{name}.png")
        lab.save_image(pair.clean, place / part / "target" / f"{name}.png")
print([pair.name for pair in find_pairs(place / "train")], [pair.name for pair in find_pairs(place / "test")])

# %% [markdown]
# ## 2. Have it checked
#
# `check_folder` reads every photo once. It finds missing partners, damaged files, wrong sizes, and, with `against`, training photos that show a scene of
# the test. On the command line: `ddsa-lab data check test --against train`.

# %%
report = check_folder(place / "test", against=place / "train", score=lab.psnr, progress=False)
print(report.text().replace(str(place), "my_data"))
assert report.pairs == 2 and not report.problems and not report.leaks

# %% [markdown]
# ## 3. Evaluate, under named protocols
#
# > **Predict.** A network trained on light rain meets heavy rain. Will it gain nothing, some, or as much as on light rain?

# %%
model = lab.load("dual-tiny")
frame = evaluate_folder({"dual-tiny": model}, place / "test", protocols=("y_uint8", "rgb"), progress=False)
summary(frame).round(3)

# %% [markdown]
# > **Paper:** trains and tests on benchmarks; scores on the luma channel.
# >
# > **Released code:** one benchmark (Rain100L), patches of 128, 300,000 steps; no weights were released.
# >
# > **Measured here:** the table above: two small photos under synthetic rain. The network gains, though less than the 9 dB or so of light rain
# > (notebook 06). Two photos are good for seeing whether things work, and for nothing else.
#
# One number of the table again, by hand from the files, since a table is only as good as its tool:

# %%
first = find_pairs(place / "test")[0]
rainy, clean = first.load()
again = lab.psnr(lab.derain(model, rainy, tile=0), clean, "rgb")
row = frame[(frame.image == first.name) & (frame.model == "dual-tiny") & (frame.protocol == "rgb")]
print(f"{first.name}: {again:.3f} dB by hand, {row.psnr.item():.3f} in the table")
assert abs(again - row.psnr.item()) < 1e-3

# %% [markdown]
# ## 4. Fine-tune on your pairs
#
# Start from trained weights, with a small learning rate. On the command line: `ddsa-lab train --from dual-tiny --pairs train --out runs/mine`.
#
# > **Predict.** A minute of training on a few photos. How much will it gain on the two it never saw: nothing, some tenths of a dB, several dB?

# %%
settings = lab.TrainConfig(
    network=model.config, start_from="dual-tiny", pairs=str(place / "train"), steps=course.fast(100, 6),
    patch=course.fast(64, 32), batch=4, lr=2e-4, warmup=5, ema=0.0,
)  # fmt: skip
lab.fit(settings, place / "mine", progress=False)
tuned = lab.load(place / "mine" / "model.safetensors")

# %%
nets = {"dual-tiny": model, "fine-tuned": tuned}
after = summary(evaluate_folder(nets, place / "test", protocols=("y_uint8",), progress=False))
gain = after.set_index("model").gain
print(after.round(3).to_string())
assert gain["fine-tuned"] > gain["dual-tiny"] + course.fast(0.0, -3.0)

# %%
rainy, clean = find_pairs(place / "test")[0].load()
course.show(
    {"rainy": rainy, "dual-tiny": lab.derain(model, rainy), "fine-tuned": lab.derain(tuned, rainy), "clean": clean},
    clean=clean, protocol="y_uint8",
)  # fmt: skip

# %% [markdown]
# Several dB, on photos that it never saw: training on the right rain is worth a lot. Compare both measures all the same: PSNR and SSIM need not agree on
# whether it got better (notebook 01). And what did it forget? A network that is tuned on one kind of rain may do worse on another:

# %%
light = lab.rainy_pair("rocket", rain="light", seed=5, size=size)
for name, net in nets.items():
    print(f"light rain, {name:>10}: {lab.psnr(lab.derain(net, light.rainy), light.clean):.2f} dB")

# %% [markdown]
# It paid for heavy rain with light rain. Always score the old task too. To keep it, mix: pairs of both kinds in one folder, or `rain="light+heavy"` for
# synthetic rain.
#
# ## 5. A small study
#
# One network against another says nothing about *attention* until seeds are counted. A study trains variants under equal budgets, with the same patches in
# the same order for each seed, and compares them on the same photos. A very small one:

# %%
config = StudyConfig(
    name="a first study", variants={"dense": {"mode": "dense"}, "dual": {"mode": "dual"}}, seeds=(0, 1),
    network={"preset": "tiny", "width": 8}, train={"steps": course.fast(30, 2), "patch": 32, "batch": 4, "warmup": 5},
    validation=HeldOut(size=course.fast(96, 32), count=2),
)  # fmt: skip
print([run.name for run in config.runs()])
study = run_study(config, place / "study", progress=False, score=study_scores)

# %% [markdown]
# > **Predict.** With two seeds and a few steps: will the table support a claim?

# %%
results = study_table(study)
columns = ["variant", "seeds", "images", "psnr", "gain", "difference", "low", "high", "verdict"]
print(results[columns].round(3).to_string())
assert results.verdict.dropna().eq(NO_CLAIM).all()

# %% [markdown]
# `difference` is the mean PSNR against dense attention, `low` and `high` bound its 95 % interval, over seeds and photos. (A negative `gain` means worse
# than the untouched photo: after so few steps networks still do harm.)
#
# The table refuses. With fewer than three seeds nobody can tell a better variant from a luckier one, so no interval is believed, however narrow. Calling
# `run_study` again with more seeds goes on in the same folder and trains only what is missing.
#
# ## 6. Larger: several GPUs, several machines
#
# Nothing changes but the command. None of these is run here; those with dask need `pip install ".[cluster]"`.
#
# ```
# ddsa-lab study studies/attention.json --workers 4              # four runs at a time on this machine
# ddsa-lab train --preset small --devices 4 --out runs/small     # one run over four GPUs: each batch is shared out
# torchrun --nproc-per-node 4 --nnodes 2 ... $(which ddsa-lab) train --devices 4 --nodes 2 --out runs/small
# srun --nodes 2 --ntasks-per-node 4 --gpus-per-node 4 ddsa-lab train --devices 4 --nodes 2 --out runs/small
#
# dask scheduler                                                 # on one machine
# dask worker tcp://HOST:8786 --nthreads 1                       # on each of many, one for each GPU
# ddsa-lab study studies/attention.json --cluster tcp://HOST:8786
# ```
#
# A study prefers many runs side by side, each on one GPU: no time is lost in sharing gradients. Sharing a batch pays when *one* run is too slow. All of
# them can be stopped, even killed, and go on when the same command is given again (`train` with `--resume`).
#
# ## 7. A failure case: the test that was trained on
#
# Public data sets overlap: the same scene under other rain, recompressed, cropped. Here we smuggle one test photo into the training folder.

# %%
lab.save_image(clean, place / "train" / "target" / "holiday.png")
lab.save_image(clean, place / "train" / "input" / "holiday.png")
leaky = check_folder(place / "test", against=place / "train", progress=False)
print([(leak.scene, leak.photo.name, leak.kind) for leak in leaky.leaks])
assert len(leaky.leaks) == 1 and not leaky.ok

# %% [markdown]
# Found, by what the photo shows and not by its name. A score on a leaked scene measures memory. Check before you train, not after a reviewer has.
#
# ## 8. Exercises
#
# **Exercise 1 (predict).** A study of 3 variants and 5 seeds takes 20 minutes for each run. You have 4 GPUs, each doing run after run. After how many
# minutes is all done?

# %%
answer_1 = ...
nb09.check_minutes(answer_1)


# %% [markdown]
# **Exercise 2.** `scenes` gives the scene of each photo by name. Return two lists of names, for training and test, so that no scene is in both. Every name
# must be in one of them, and neither may be empty.


# %%
def split(scenes):
    return ...


nb09.check_split(split)


# %% [markdown]
# **Exercise 3.** `ours` and `theirs` give PSNR by image name, but each lacks some images. Return the mean difference, ours minus theirs, that compares
# like with like.


# %%
def paired_mean(ours, theirs):
    return ...


nb09.check_paired(paired_mean)

# %% [markdown]
# ## Where to go on
#
# - `ddsa-lab derain my_photos/ --weights runs/mine/model.safetensors` uses your network on photos of any size.
# - **08 Paper figures**: the figures of your own network. `data/README.md` says where the public benchmarks are and what to know about each.
# - `CONTRIBUTING.md`: how to add an attention variant, and compare it in a study.
