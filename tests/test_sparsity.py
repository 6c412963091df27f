"""Measures of sparsity against values computed by hand, and properties that hold for any attention."""

import math
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ddsa_lab.analysis import sparsity as sp
from ddsa_lab.analysis.probe import LayerRecord, Record, record
from ddsa_lab.errors import LabError
from ddsa_lab.model.attention import keep_count
from ddsa_lab.model.network import DerainTransformer, NetworkConfig
from ddsa_lab.training.config import TrainConfig
from ddsa_lab.training.loop import fit
from ddsa_lab.training.state import read_table

C = 8
NETWORK = NetworkConfig(width=C, blocks=(1,), heads=(1,), refinement=0, ffn_factor=1.0)
NAME = "latent.0"


def planted(*passes, a=0.2, keep=0.5, b=0.3, name=NAME):
    """A record whose logits (B, heads, C, C) are given; one entry a pass."""
    rec = Record(DerainTransformer(NETWORK), [NAME])
    for z in passes:
        branches = () if b is None else ((keep, b),)
        rec[NAME].append(LayerRecord(name, "latent", 0, z, a, branches, torch.ones(z.shape[1])))
    return rec


def log_of(p):
    """Logits of planted weights; the smallest logit stands for a weight of 0."""
    return torch.tensor(p, dtype=torch.float64).log().clamp_min(-1e4).expand(1, 1, C, C)


UNIFORM = [1 / C] * C
ONE_HOT = [0, 0, 1] + [0] * (C - 3)
HALVES = [0.5, 0.25, 0.125, 0.0625, 0.0625, 0, 0, 0]


@pytest.mark.parametrize(
    ("p", "entropy", "effective_k", "gini", "mass"),
    [
        (UNIFORM, math.log(C), C, 0.0, 0.5),
        (ONE_HOT, 0.0, 1.0, 1 - 1 / C, 1.0),
        # 1/2 ln 2 + 1/4 ln 4 + 1/8 ln 8 + 2/16 ln 16 = 1.875 ln 2; sorted shares 0 0 0 1 1 2 4 8 of 16:
        # sum (2i - 9) x_i / (8 * 16) = (-1 + 1 + 2*3 + 4*5 + 8*7) / 128 = 82 / 128
        (HALVES, 1.875 * math.log(2), 2**1.875, 82 / 128, 1 - 1 / 16),
    ],
)
@pytest.mark.parametrize("level", sp.LEVELS)
def test_planted_matrices_have_the_values_computed_by_hand(p, entropy, effective_k, gini, mass, level):
    table = sp.sparsity_table(planted(log_of(p)), level)
    expected = {"entropy": entropy, "effective_k": effective_k, "gini": gini, "kept_mass": mass}
    expected |= {"gain": 1 + 0.3 / (0.2 * mass), "k": 4, "keep": 0.5, "a": 0.2, "b": 0.3, "channels": C}
    assert len(table) == (C if level == "row" else 1)
    for name, value in expected.items():
        assert table[name].tolist() == pytest.approx([value] * len(table), abs=1e-9), name


def test_sparse_and_fused_weights_are_measured_too():
    rec = planted(log_of(HALVES))
    assert sp.sparsity_table(rec, of="sparse").effective_k[0] == pytest.approx(
        math.exp(-sum(p / 0.9375 * math.log(p / 0.9375) for p in HALVES[:4]))
    )
    fused = np.array([0.2 * p + (0.3 * p / 0.9375 if i < 4 else 0) for i, p in enumerate(HALVES)])
    fused = fused[fused > 0] / 0.5
    assert sp.sparsity_table(rec, of="fused").entropy[0] == pytest.approx(-(fused * np.log(fused)).sum())
    assert sp.sparsity_table(planted(log_of(UNIFORM)), of="sparse").effective_k[0] == pytest.approx(4)


@pytest.mark.parametrize(
    ("a", "b", "gain", "mass"),
    [(None, 1.0, math.inf, 0.5), (0.2, None, 1.0, 1.0), (0.2, 0.0, 1.0, 0.5), (0.1, -0.05, 0.0, 0.5)],
)
def test_gain_without_one_of_the_branches(a, b, gain, mass):
    row = sp.sparsity_table(planted(log_of(UNIFORM), a=a, b=b)).iloc[0]
    assert (row.gain, row.kept_mass) == pytest.approx((gain, mass))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 999), channels=st.integers(1, 12), scale=st.floats(0.01, 20), keep=st.floats(0.05, 1),
    a=st.floats(0.01, 2), b=st.floats(-2, 2),
)  # fmt: skip
def test_properties_of_random_attention(seed, channels, scale, keep, a, b):
    z = scale * torch.randn(2, 3, channels, channels, generator=torch.Generator().manual_seed(seed))
    rec = planted(z, a=a, keep=keep, b=b)
    table, k = sp.sparsity_table(rec, "row"), keep_count(keep, channels)
    assert len(table) == 2 * 3 * channels
    assert table.entropy.between(-1e-9, math.log(channels) + 1e-6).all()
    assert np.allclose(table.effective_k, np.exp(table.entropy))
    assert table.gini.between(-1e-6, 1 - 1 / channels + 1e-6).all()
    assert table.kept_mass.between(k / channels - 1e-5, 1 + 1e-5).all()
    # the two-level gain, seen in the fused weights themselves
    entry = rec[NAME][0]
    p, fused = entry.dense.double(), entry.fused.double()
    ratio = ((fused * entry.mask).sum(-1) / (p * entry.mask).sum(-1)) / a
    assert np.allclose(table.gain, ratio.flatten(), rtol=1e-4, atol=1e-4)
    if b:
        assert np.allclose(table.gain, 1 + b / (a * table.kept_mass), rtol=1e-6, atol=1e-6)
    order = torch.randperm(channels, generator=torch.Generator().manual_seed(seed))
    shuffled = sp.sparsity_table(planted(z[..., order], a=a, keep=keep, b=b), "row")
    for measure in sp.MEASURES:
        assert np.allclose(table[measure], shuffled[measure], rtol=1e-4, atol=1e-4), measure


def test_levels_are_means_of_one_another():
    z = torch.randn(2, 3, C, C, generator=torch.Generator().manual_seed(0))
    rec = planted(z, 2 * z)
    row, head, layer = (sp.sparsity_table(rec, level) for level in ("row", "head", "layer"))
    assert (len(row), len(head), len(layer)) == (4 * 3 * C, 4 * 3, 4)
    assert layer.image.tolist() == [0, 1, 2, 3]
    for measure in sp.MEASURES:
        assert np.allclose(row.groupby(["image", "head"])[measure].mean(), head[measure])
        assert np.allclose(head.groupby("image")[measure].mean(), layer[measure])
    assert (head.entropy[:6].to_numpy() > head.entropy[6:].to_numpy()).all()  # sharper logits


def masked(*kept):
    """Logits (1, 1, C, C) whose four largest in every row are `kept`."""
    z = torch.zeros(1, 1, C, C)
    z[..., list(kept)] = 1
    return z


def test_overlap_of_planted_sets():
    first, second, third = masked(0, 1, 2, 3), masked(2, 3, 4, 5), masked(4, 5, 6, 7)
    table = sp.overlap_table(planted(first, second, third))
    assert table[["image", "other"]].values.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert table.overlap.tolist() == pytest.approx([1 / 3, 0, 1 / 3])
    heads = sp.overlap_table(planted(torch.cat([first, second], dim=1)), "heads")
    assert heads[["head", "other", "overlap"]].values.tolist() == [[0, 1, pytest.approx(1 / 3)]]
    steps = sp.overlap_table(planted(first, second), "records", planted(first, third))
    assert steps.overlap.tolist() == pytest.approx([1, 1 / 3])


@pytest.mark.parametrize(("k", "channels"), [(1, 1), (1, 5), (3, 6), (5, 6)])
def test_chance_overlap_counts_all_sets(k, channels):
    sets = [set(chosen) for chosen in combinations(range(channels), k)]
    every = [len(one & other) / len(one | other) for one in sets for other in sets]
    assert sp.chance_overlap(k, channels) == pytest.approx(np.mean(every))


def test_random_logits_overlap_as_chance_says():
    z = torch.randn(12, 2, C, C, generator=torch.Generator().manual_seed(0))
    table = sp.overlap_table(planted(z))
    assert table.overlap.mean() == pytest.approx(table.chance.iloc[0], abs=0.02)


def test_dead_keys_are_kept_by_no_query_of_any_image():
    first, second = masked(0, 1, 2, 3), masked(0, 1, 4, 5)
    first[0, 0, 0] = masked(0, 1, 2, 7)[0, 0, 0]  # one query of one image keeps key 7
    table = sp.dead_keys(planted(first, second, second)).set_index("key")
    assert table.dead.tolist() == [False] * 6 + [True, False]
    assert table.kept.tolist() == pytest.approx([1, 1, 1 / 3, 7 / 24, 2 / 3, 2 / 3, 0, 1 / 24])
    assert table.never[7] == pytest.approx(7 / 8) and table.always.tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_mistakes_are_named():
    one, two = planted(log_of(UNIFORM)), planted(log_of(UNIFORM), log_of(UNIFORM))
    with pytest.raises(LabError, match="unknown level 'heads'"):
        sp.sparsity_table(one, "heads")
    with pytest.raises(LabError, match="empty"):
        sp.sparsity_table(planted())
    with pytest.raises(LabError, match="only one"):
        sp.overlap_table(one)
    with pytest.raises(LabError, match="don't match"):
        sp.overlap_table(one, "records", two)
    with pytest.raises(LabError, match="other"):
        sp.overlap_table(one, "records")
    with pytest.raises(LabError, match="at least one pair"):
        sp.recorder([])


def test_a_real_network_gives_one_row_for_each_layer_image_and_head():
    model = DerainTransformer(NetworkConfig.preset("tiny")).eval()
    with torch.no_grad(), record(model) as rec:
        model(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    table = sp.sparsity_table(rec)
    heads = {name: len(layer.temperature) for name, layer in model.attention_layers().items()}
    assert table.groupby("layer", sort=False).size().to_dict() == {
        name: 2 * count for name, count in heads.items()
    }
    assert table.drop_duplicates("layer").depth.tolist() == list(range(7))
    assert table.drop_duplicates("layer").stage.tolist() == [name.rpartition(".")[0] for name in heads]
    # a = b and p nearly uniform, so that m = 0.69 and g = 1 + 1 / 0.69
    assert table.gain.mean() == pytest.approx(2.4, abs=0.2)


def pairs(count=2):
    generator = torch.Generator().manual_seed(0)
    return [SimpleNamespace(rainy=torch.rand(3, 16, 16, generator=generator)) for _ in range(count)]


def test_recorder_measures_and_remembers():
    model, measure = (
        DerainTransformer(NETWORK).eval(),
        sp.recorder([("a", pairs()[0]), pairs()[1], pairs(3)[2].rainy]),
    )
    (first,) = measure(model, 0)
    (same,) = measure(model, 1)
    model.load_state_dict(DerainTransformer(NETWORK, seed=1).state_dict())
    (other,) = measure(model, 2)
    assert list(first) == list(same) == list(other)
    assert first["overlap_before"] is None and same["overlap_before"] == 1 and other["overlap_before"] < 0.9
    assert 0 < first["overlap_images"] <= 1 and first["k"] == 5 and first["keep"] == 0.7
    assert first["chance"] == pytest.approx(sp.chance_overlap(5, C))
    with torch.no_grad(), record(model) as rec:
        for pair in pairs(3):
            model(pair.rainy[None])
    assert other["entropy"] == pytest.approx(sp.sparsity_table(rec).entropy.mean())


def test_training_writes_sparsity_by_step(tmp_path):
    photo = nn.functional.interpolate(
        torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0)), (48, 48)
    )[0]
    from ddsa_lab.data.images import save_image

    (tmp_path / "photos").mkdir()
    save_image(photo, tmp_path / "photos" / "a.png")
    config = TrainConfig(
        NETWORK, photos=str(tmp_path / "photos"), steps=4, patch=16, batch=2, record_every=2, log_every=2
    )
    fit(config, tmp_path / "run", progress=False, accelerator="cpu", record=sp.recorder(pairs()))
    rows = read_table(tmp_path / "run" / "sparsity.csv")
    assert [(row["step"], row["layer"], row["head"]) for row in rows] == [(2, NAME, 0), (4, NAME, 0)]
    assert rows[0]["overlap_before"] is None and 0 < rows[1]["overlap_before"] <= 1
    assert 0 < rows[1]["entropy"] <= math.log(C)
