"""Surgery does what it says, its controls keep as many keys, and the network comes back bit by bit."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from ddsa_lab.analysis.probe import record
from ddsa_lab.analysis.surgery import surgery, swap_masks, sweep
from ddsa_lab.errors import LabError
from ddsa_lab.evaluation.metrics import score
from ddsa_lab.model.attention import MULTI_KEEP, keep_count, sparse_weights
from ddsa_lab.model.network import DerainTransformer, NetworkConfig
from ddsa_lab.model.restore import derain


def network(seed=0, mode="dual", **changes):
    """A small untrained network with pronounced attention and unequal branch weights."""
    model = DerainTransformer(
        NetworkConfig(width=16, blocks=(1, 1), heads=(1, 2), refinement=1, mode=mode, **changes), seed
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.attention_layers().values():
            layer.temperature.fill_(5)
            if mode in ("dual", "multi"):
                layer.weights.branch.uniform_(0.2, 1, generator=generator)
    return model.eval()


def photo(seed=0, size=24):
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))


def recorded(model, image=None, **settings):
    """Records under surgery, and the fused weights that the network truly used."""
    used, hooks = {}, []
    image = photo() if image is None else image
    with surgery(model, **settings), record(model) as rec:
        for name, layer in model.attention_layers().items():
            hooks.append(
                layer.weights.register_forward_hook(lambda _m, _i, out, name=name: used.update({name: out}))
            )
        derain(model, image)
    for hook in hooks:
        hook.remove()
    return {name: passes[0] for name, passes in rec.items()}, used


def state_of(model):
    """Everything that surgery might touch."""
    parts = {name: (id(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    modules = {
        name: (
            sorted(vars(m)),
            list(m._forward_hooks),
            list(m._forward_pre_hooks),
            list(m._parameters),
            list(m._buffers),
        )
        for name, m in model.named_modules()
    }
    settings = {
        name: (layer.weights.mode, layer.weights.keep) for name, layer in model.attention_layers().items()
    }
    return parts, modules, settings


def assert_same_state(before, after):
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    for name, (identity, value) in before[0].items():
        assert after[0][name][0] == identity and torch.equal(after[0][name][1], value), name


SETTINGS = [
    {"keep": 0.3},
    {"mode": "dense"},
    {"mode": "sparse", "keep": 0.5, "layers": "latent"},
    {"branch": (None, 0.0)},
    {"select": "random", "keep": 0.4, "seed": 3},
    {"select": "bottom", "branch": (0.0, 1.0)},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_network_comes_back_also_after_an_exception(settings):
    model, image = network(), photo()
    plain, before = derain(model, image), state_of(model)
    with surgery(model, **settings) as same:
        assert same is model
        changed = derain(model, image)
    assert not torch.equal(plain, changed)
    assert_same_state(before, state_of(model))
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        surgery(model, **settings),
        surgery(model, branch=(0.4, 0.6)),
    ):
        derain(model, image)
        raise RuntimeError("on purpose")
    assert_same_state(before, state_of(model))
    assert torch.equal(derain(model, image), plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 1.5}, "must lie in"),
        ({"mode": "multi"}, "cannot become"),
        ({"mode": "spars"}, "did you mean 'sparse'"),
        ({"select": "best"}, "unknown selection"),
        ({"branch": (1, 2, 3)}, "3 values"),
        ({"layers": "laten"}, r"latent\.0"),
        ({"keep": 0.5, "mode": "dense"}, "no sparse branch"),
        ({"select": "random", "mode": "dense", "layers": "latent"}, r"latent\.0 has no sparse branch"),
    ],
)
def test_refused_settings_leave_the_network_alone(settings, message):
    model = network()
    before = state_of(model)
    with pytest.raises(LabError, match=message), surgery(model, **settings):
        pass
    assert_same_state(before, state_of(model))


def test_a_dense_network_needs_the_sparse_mode_first():
    model = network(mode="dense")
    with pytest.raises(LabError, match="switch it to mode sparse"), surgery(model, keep=0.5):
        pass
    with pytest.raises(LabError, match="no branch weights"), surgery(model, branch=(1, 0)):
        pass
    entries, used = recorded(model, mode="sparse", keep=0.5)
    for name, entry in entries.items():
        assert_close(used[name], sparse_weights(entry.logits, keep_count(0.5, entry.channels)))


@pytest.mark.parametrize("select", ["top", "random", "bottom"])
def test_keeping_all_keys_is_a_plus_b_times_dense(select):
    model = network()
    entries, used = recorded(model, keep=1.0, select=select)
    for name, entry in entries.items():
        a, b = model.attention_layers()[name].weights.branch.tolist()
        assert_close(used[name], (a + b) * entry.dense, rtol=1e-5, atol=1e-7)


def test_single_layers_can_be_changed():
    model = network()
    entries, _ = recorded(model, keep=0.25, layers="latent")
    assert {name: entry.keep for name, entry in entries.items()} == {
        "encoder.0.0": 0.7, "latent.0": 0.25, "decoder.0.0": 0.7, "refinement.0": 0.7,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"mode": "dense"}, (1, 0)),
        ({"mode": "sparse"}, (0, 1)),
        ({"branch": (None, 0)}, (1, 0)),
        ({"branch": (0, None)}, (0, 1)),
    ],
)
def test_one_branch_alone(settings, share):
    model = network()
    entries, used = recorded(model, **settings)
    for name, entry in entries.items():
        a, b = model.attention_layers()[name].weights.branch.tolist()
        z = entry.logits
        alone = share[0] * a * z.softmax(-1) + share[1] * b * sparse_weights(z, keep_count(0.7, z.shape[-1]))
        assert_close(used[name], alone, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", ["sparse", "dual", "multi"])
@pytest.mark.parametrize("select", ["top", "random", "bottom"])
def test_controls_keep_as_many_keys_and_the_record_sees_them(mode, select):
    model = network(mode=mode)
    entries, used = recorded(model, keep=0.4, select=select)
    for name, entry in entries.items():
        weights = model.attention_layers()[name].weights
        k = keep_count(0.4, entry.channels)
        assert_close(entry.fused, used[name], rtol=1e-5, atol=1e-7)
        assert (entry.mask.sum(-1) == k).all() and len(entry.masks) == (4 if mode == "multi" else 1)
        order = entry.logits.argsort(dim=-1)
        if select == "random":
            assert 0 < (entry.mask.gather(-1, order)[..., -k:]).float().mean() < 1
        else:
            extreme = order[..., -k:] if select == "top" else order[..., :k]
            assert entry.mask.gather(-1, extreme).all()
        if mode == "sparse":
            assert torch.equal(used[name] > 0, entry.mask)
        assert weights.keep == (MULTI_KEEP if mode == "multi" else 0.7)


def test_random_keys_depend_on_seed_and_layer_and_on_nothing_else():
    model = network()
    first, _ = recorded(model, select="random", seed=1)
    again, _ = recorded(model, photo(5), select="random", seed=1)
    other, _ = recorded(model, select="random", seed=2)
    for name, entry in first.items():
        assert torch.equal(entry.mask, again[name].mask) and not torch.equal(entry.mask, other[name].mask)
    assert not torch.equal(first["decoder.0.0"].mask, first["refinement.0"].mask)


def test_surgery_inside_surgery_has_the_say():
    model = network()
    alone, _ = recorded(model, select="bottom", layers="latent")
    with surgery(model, select="random", seed=1):
        inner, used = recorded(model, select="bottom", layers="latent")
        outer, _ = recorded(model)
    assert torch.equal(alone["latent.0"].mask.sum(), inner["latent.0"].mask.sum())
    assert_close(inner["latent.0"].fused, used["latent.0"])
    z = inner["latent.0"].logits
    k = keep_count(0.7, z.shape[-1])
    assert inner["latent.0"].mask.gather(-1, z.argsort(dim=-1)[..., :k]).all()
    expected, _ = recorded(model, select="random", seed=1)
    assert torch.equal(outer["latent.0"].mask, expected["latent.0"].mask)


def test_a_record_begun_before_surgery_sees_what_the_network_goes_on_with():
    model = network()
    expected, _ = recorded(model, select="random", seed=1)
    with record(model) as rec, surgery(model, select="random", seed=1):
        derain(model, photo())
    assert torch.equal(rec["latent.0"][0].mask, expected["latent.0"].mask)


def test_gradients_flow_through_controls():
    model = network()
    with surgery(model, select="random"):
        model(photo()[None]).square().mean().backward()
    for layer in model.attention_layers().values():
        assert layer.weights.branch.grad.abs().sum() > 0 and layer.qkv.weight.grad.abs().sum() > 0


def test_swapped_masks_are_the_other_images():
    model, source, target = network(), photo(0), photo(1, size=32)
    with record(model) as rec:
        derain(model, source)
    entries, used = recorded(model, target, masks=rec)
    for name, entry in entries.items():
        assert torch.equal(entry.mask, rec[name][0].mask)
        assert_close(entry.fused, used[name], rtol=1e-5, atol=1e-7)
    with surgery(model, masks=rec):
        expected = derain(model, target)
    assert torch.equal(swap_masks(model, source, target), expected)
    assert not torch.equal(expected, derain(model, target))
    assert_close(swap_masks(model, target, target), derain(model, target), rtol=1e-5, atol=1e-6)


def test_masks_that_cannot_be_used_are_refused():
    model = network()
    with record(model) as rec:
        derain(model, photo())
    with pytest.raises(LabError, match="without keep"), surgery(model, masks=rec, keep=0.5):
        pass
    with pytest.raises(LabError, match="don't fit"), surgery(network(mode="multi"), masks=rec):
        pass
    with record(model) as twice:
        derain(model, photo())
        derain(model, photo())
    with pytest.raises(LabError, match="was run 2 times"), surgery(model, masks=twice):
        pass
    with torch.no_grad():
        model.latent[0].attention.project.weight.add_(1)
    before = state_of(model)
    with pytest.raises(LabError, match="have changed since"), surgery(model, masks=rec):
        pass
    assert_same_state(before, state_of(model))


def test_sweep_scores_every_setting(capsys):
    model = network()
    pairs = [SimpleNamespace(rainy=photo(i), clean=photo(i + 7)) for i in range(2)]
    before = state_of(model)
    table = sweep(model, pairs, keeps=(0.3, 1.0), draws=2, progress=False)
    assert_same_state(before, state_of(model))
    assert list(table) == ["keep", "select", "draw", "layer", "image", "psnr", "ssim", "protocol"]
    assert len(table) == 2 * 2 * (1 + 2 + 1) and set(table.layer) == {"all"}
    with surgery(model, keep=0.3, select="random", seed=1):
        expected = score(derain(model, pairs[1].rainy), pairs[1].clean)
    row = table.query("keep == 0.3 and select == 'random' and draw == 1 and image == '1'").iloc[0]
    assert (row.psnr, row.ssim) == (expected["psnr"], expected["ssim"])
    at_one = table.query("keep == 1.0").groupby("image").psnr
    assert (at_one.max() - at_one.min()).max() < 1e-3
    assert capsys.readouterr().err == ""


def test_sweep_by_layer_and_with_names(capsys):
    model, pair = network(mode="dense"), SimpleNamespace(rainy=photo(), clean=photo(1))
    with pytest.raises(LabError, match="switch it to mode sparse"):
        sweep(model, [pair], progress=False)
    table = sweep(
        model,
        [("one", pair)],
        (0.5,),
        ("top",),
        ["latent", "enc*"],
        per_layer=True,
        mode="sparse",
        protocol="rgb",
    )
    assert table.layer.tolist() == ["encoder.0.0", "latent.0"] and table.image.tolist() == ["one", "one"]
    assert table.psnr.nunique() == 2 and set(table.protocol) == {"rgb"}
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keeps": (0.5, 0)}, "must lie in"),
        ({"selects": ("tpo",)}, "did you mean 'top'"),
        ({"protocol": "y"}, "unknown protocol"),
        ({"pairs": []}, "at least one pair"),
    ],
)
def test_sweep_refuses_bad_settings_before_it_runs(settings, message):
    model = network()
    model.forward = lambda image: pytest.fail("ran")
    pair = SimpleNamespace(rainy=photo(), clean=photo())
    with pytest.raises(LabError, match=message):
        sweep(model, **({"pairs": [pair], "progress": False} | settings))
