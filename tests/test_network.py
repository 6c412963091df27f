"""The network: settings, seeds, sizes, and agreement with the textbook order of operations."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from ddsa_lab.errors import LabError
from ddsa_lab.model.attention import MODES, MULTI_KEEP
from ddsa_lab.model.feedforward import FEED_FORWARDS
from ddsa_lab.model.network import PRESETS, DerainTransformer, NetworkConfig
from ddsa_lab.model.textbook import Textbook

SMALL = {"width": 8, "blocks": (1, 1, 1), "heads": (1, 2, 4), "refinement": 1, "first": 1, "ffn_factor": 2.0}


def network(seed=0, **changes):
    return DerainTransformer(NetworkConfig(**{**SMALL, **changes}), seed)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def moved(model, seed=0):
    """The same network with every value away from its start, so that nothing hides behind ones and zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.05 * torch.rand(value.shape, generator=generator))
    return model


class TestConfig:
    def test_presets(self):
        for name in PRESETS:
            config = NetworkConfig.preset(name)
            assert NetworkConfig.from_dict(config.to_dict()) == config
            if name in ("tiny", "small"):
                hidden = [int(config.ffn_factor * channels) for _, _, channels, *_ in config.stages()]
                assert not [n for n in (config.width, *hidden) if n % 8]
        released = NetworkConfig.preset("idt_ddsa")
        assert (released.width, released.blocks, released.heads) == (48, (4, 6, 6, 8), (1, 2, 4, 8))
        assert (released.ffn_factor, released.refinement, released.first, released.keep) == (2.66, 4, 4, 0.7)
        assert NetworkConfig.preset("restormer").mode == "dense"
        assert NetworkConfig.preset("drsformer").mode == "multi"

    def test_changes_to_a_preset(self):
        config = NetworkConfig.preset("tiny", mode="sparse", keep=0.3)
        assert (config.mode, config.keep, config.width) == ("sparse", 0.3, 16)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"mode": "dans"},
                r"unknown attention mode 'dans' \(did you mean 'dense' or 'dual'\?\): choose one of dense, sparse, dual, multi",
            ),
            ({"ffn": "sefm"}, r"unknown feed-forward network 'sefm' \(did you mean 'sefn'\?\)"),
            ({"keep": 0.0}, r"keep is 0.0, but the share of keys to keep must lie in \(0, 1\]"),
            ({"keep": 1.01}, r"must lie in \(0, 1\]"),
            ({"keep": (0.5, 0.6)}, r"keep has 2 values, but the network has 7 blocks"),
            ({"keep": "0.7"}, r"keep takes numbers, found '0.7'"),
            ({"width": 0}, r"width must be at least 1, found 0"),
            ({"width": 8.5}, r"width takes whole numbers, found 8.5"),
            ({"width": 10**30}, r"width takes whole numbers"),
            ({"blocks": (1, 0, 1)}, r"blocks must be at least 1, found \(1, 0, 1\)"),
            ({"blocks": 3}, r"blocks must be a tuple with a number for each level, found 3"),
            (
                {"blocks": (1,)},
                r"blocks and heads must have one entry for each of 1 to 8 levels, found 1 and 3",
            ),
            ({"blocks": (1,) * 9, "heads": (1,) * 9}, r"1 to 8 levels"),
            ({"heads": (1, 3, 4)}, r"heads 3 at level 2 do not divide its 16 channels"),
            ({"refinement": -1}, r"refinement must be at least 0, found -1"),
            ({"ffn_factor": 0.01}, r"ffn_factor must give a hidden channel"),
            ({"ffn_factor": float("nan")}, r"ffn_factor must give a hidden channel"),
            ({"ffn_factor": 1e9}, r"at most 64.0"),
        ],
    )
    def test_what_is_wrong_is_named(self, changes, message):
        with pytest.raises(LabError, match=message):
            NetworkConfig(**{**SMALL, **changes})

    def test_unknown_names(self):
        with pytest.raises(LabError, match=r"unknown preset 'tini' \(did you mean 'tiny'\?\)"):
            NetworkConfig.preset("tini")
        with pytest.raises(LabError, match=r"unknown network setting 'widht' \(did you mean 'width'\?\)"):
            NetworkConfig.preset("tiny", widht=8)
        with pytest.raises(LabError, match="found list"):
            NetworkConfig.from_dict([1])

    def test_one_keep_in_a_tuple(self):
        assert NetworkConfig(**SMALL, keep=(0.4,)).keep == 0.4
        assert DerainTransformer(NetworkConfig(**SMALL, keep=[0.4])).config.keep == 0.4


class TestSeeds:
    def test_networks_that_differ_in_attention_start_equal(self):
        states = {mode: network(mode=mode).state_dict() for mode in MODES}
        shared = set.intersection(*(set(state) for state in states.values()))
        assert len(shared) > 50
        for name in shared:
            assert all(torch.equal(states["dense"][name], states[mode][name]) for mode in MODES), name

    def test_wider_or_deeper_networks_share_what_has_the_same_shape(self):
        one, two = network().state_dict(), network(blocks=(2, 1, 1)).state_dict()
        assert torch.equal(one["encoder.0.0.attention.qkv.weight"], two["encoder.0.0.attention.qkv.weight"])
        assert torch.equal(one["latent.0.ffn.expand.weight"], two["latent.0.ffn.expand.weight"])

    def test_seeds_differ_and_layers_differ(self):
        one, two = network(0).state_dict(), network(1).state_dict()
        assert not torch.equal(one["stem.weight"], two["stem.weight"])
        assert not torch.equal(one["encoder.0.0.attention.qkv.weight"], one["first.0.attention.qkv.weight"])

    def test_the_global_generator_is_neither_read_nor_moved(self):
        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        one = network().state_dict()
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(2)
        two = network().state_dict()
        assert all(torch.equal(one[name], two[name]) for name in one)


class TestSizes:
    @settings(max_examples=25, deadline=None)
    @given(height=st.integers(1, 19), width=st.integers(1, 19))
    def test_any_size_is_that_of_its_padded_image_cropped(self, height, width):
        model, x = moved(network()).eval(), images(1, 3, height, width)
        with torch.no_grad():
            y = model(x)
            padded = pad(x, (0, -width % 4, 0, -height % 4), mode="replicate")
            torch.testing.assert_close(y, model(padded)[..., :height, :width], atol=1e-5, rtol=1e-5)
        assert y.shape == x.shape
        assert torch.isfinite(y).all()

    def test_images_of_a_batch_do_not_meet(self):
        model, x = moved(network()).eval(), images(3, 3, 12, 10)
        with torch.no_grad():
            together, order = model(x), torch.tensor([2, 0, 1])
            torch.testing.assert_close(model(x[order]), together[order], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(model(x[1:2]), together[1:2], atol=1e-5, rtol=1e-5)

    def test_global_residual(self):
        model, x = network(), images(1, 3, 9, 7) * 4 - 2
        torch.nn.init.zeros_(model.head.weight)
        assert torch.equal(model(x), x)  # not clamped either

    def test_one_level(self):
        model = network(blocks=(2,), heads=(2,))
        assert model(images(1, 3, 5, 6)).shape == (1, 3, 5, 6)


class TestAttentionLayers:
    def test_names_are_in_forward_order(self):
        model, seen = network(), []
        layers = model.attention_layers()
        for name, layer in layers.items():
            layer.register_forward_hook(lambda *_, name=name: seen.append(name))
        model(images(1, 3, 8, 8))
        assert seen == list(layers)
        assert len(seen) == model.built_with.block_count == 7
        assert seen[0] == "first.0"
        assert seen[-1] == "refinement.0"

    def test_keep_for_each_block(self):
        keeps = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
        model = network(keep=keeps)
        assert tuple(layer.weights.keep for layer in model.attention_layers().values()) == keeps
        assert model.config.keep == keeps

    def test_config_follows_what_is_changed(self):
        model = network()
        layers = list(model.attention_layers().values())
        layers[2].weights.keep = 0.5
        assert model.config.keep == (0.7, 0.7, 0.5, 0.7, 0.7, 0.7, 0.7)
        x = moved(model).eval()(images(1, 3, 8, 8))
        again = DerainTransformer(model.config).eval()
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(images(1, 3, 8, 8)), x)
        for layer in layers:
            layer.weights.keep = 0.5
        assert model.config.keep == 0.5
        assert network(mode="multi").attention_layers()["first.0"].weights.keep == MULTI_KEEP

    def test_keep_matters_and_mode_matters(self):
        x = images(1, 3, 12, 12)
        model = moved(network()).eval().requires_grad_(False)
        whole = model(x)
        for layer in model.attention_layers().values():
            layer.weights.keep = 0.3
        fewer = model(x)
        for layer in model.attention_layers().values():
            layer.weights.mode = "dense"
        dense = model(x)
        assert (
            min(float((a - b).abs().max()) for a, b in ((whole, fewer), (fewer, dense), (whole, dense)))
            > 1e-4
        )

    def test_a_forward_pass_leaves_nothing_on_the_modules(self):
        model = network()
        before = [set(vars(module)) for module in model.modules()]
        model(images(1, 3, 8, 8))
        assert [set(vars(module)) for module in model.modules()] == before


class TestBatchNorm:
    def test_training_uses_and_moves_statistics_evaluation_does_not(self):
        model, x = moved(network()), images(2, 3, 12, 12)
        model.eval()
        before = copy.deepcopy(model.state_dict())
        evaluated = model(x)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        model.train()
        trained = model(x)
        moved_names = [n for n, value in model.state_dict().items() if not torch.equal(value, before[n])]
        assert moved_names
        assert all(".gate.norm." in name for name in moved_names)
        assert float((trained - evaluated).detach().abs().max()) > 1e-4

    def test_only_sefn_has_it(self):
        for ffn in ("gdfn", "msfn"):
            model, x = network(ffn=ffn), images(1, 3, 8, 8)
            assert torch.equal(model.train()(x), model.eval()(x))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ffn", FEED_FORWARDS)
def test_textbook_order_of_operations(mode, ffn):
    """Equal outputs, and equal gradients of every parameter and of the image, in training mode."""
    ours = moved(network(mode=mode, ffn=ffn, blocks=(1, 1), heads=(1, 2)))
    theirs = Textbook(copy.deepcopy(ours))
    x, target = images(2, 3, 11, 14), images(2, 3, 11, 14, seed=1)
    results = []
    for model, parameters in ((ours, ours.named_parameters()), (theirs, theirs.model.named_parameters())):
        image = x.clone().requires_grad_()
        y = model(image)
        ((y - target) ** 2).mean().backward()
        results.append((y.detach(), {"image": image.grad, **{name: p.grad for name, p in parameters}}))
    (y, gradients), (expected, wanted) = results
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    largest = max(float(g.norm()) for g in wanted.values())
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        apart = float((gradients[name] - gradient).norm())
        assert apart <= 1e-4 * float(gradient.norm()) + 1e-7 * largest, name
