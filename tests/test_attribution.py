"""Attribution against closed forms, its trust measures, its refusals, and scores against known streaks."""

import pytest
import torch
from torch import nn

from ddsa_lab.analysis.attribution import BASELINE_BLUR, REFUSED, Attribution, attribute, gaussian_blur
from ddsa_lab.analysis.layer_attribution import layer_attribution, unshared
from ddsa_lab.analysis.local_attribution import local_attribution
from ddsa_lab.analysis.sanity import randomised_check
from ddsa_lab.analysis.streak_scores import pointing_game, pointing_rate, residual_share, share_inside
from ddsa_lab.analysis.targets import Target, Window, edge_content, patch_error, patch_sum, rain_removed
from ddsa_lab.data.rain import rainy_pair
from ddsa_lab.errors import LabError
from ddsa_lab.model.network import DerainTransformer, NetworkConfig

WINDOW = (8, 6, 8, 10)


@pytest.fixture(scope="module")
def pair():
    return rainy_pair("coffee", rain="heavy", seed=0, size=32)


@pytest.fixture(scope="module")
def small():
    config = NetworkConfig(width=8, blocks=(1, 1), heads=(1, 2), refinement=0, ffn_factor=1.0)
    return DerainTransformer(config, seed=3).eval()


class Square(nn.Module):
    """x^2: the attributions along the straight line from b are x^2 - b^2 exactly, per pixel."""

    def forward(self, x):
        return x.square()


class Shift(nn.Module):
    """Copies the pixel three to the left."""

    def forward(self, x):
        return x.roll(3, dims=-1)


def inside(window, size=(32, 32)):
    mask = torch.zeros(size, dtype=torch.bool)
    Window.of(window).cut(mask)[:] = True
    return mask


# --- targets


def test_targets_are_the_sums_they_name(pair):
    output, clean = pair.rainy[None] * 0.5, pair.clean
    cut = Window.of(WINDOW).cut
    assert cut(clean).shape == (3, 8, 10)
    torch.testing.assert_close(patch_sum(WINDOW)(output, pair.rainy[None]), cut(output).sum()[None])
    torch.testing.assert_close(
        rain_removed(WINDOW)(output, pair.rainy[None]), cut(pair.rainy * 0.5).sum()[None]
    )
    error = (cut(output[0]) - cut(clean)).square().sum()[None]
    torch.testing.assert_close(patch_error(WINDOW, clean)(output, pair.rainy[None]), error)
    part = cut(output[0])
    edges = (part[:, 1:] - part[:, :-1]).abs().sum() + (part[..., 1:] - part[..., :-1]).abs().sum()
    torch.testing.assert_close(edge_content(WINDOW)(output, output), edges[None])


@pytest.mark.parametrize("window", [(-1, 0, 8, 8), (0, 25, 8, 8), (30, 0, 8, 8), (0, 0, 0, 4), (0, 0, 33, 4)])
def test_window_outside_the_image_is_refused(small, pair, window):
    with pytest.raises(LabError, match="not inside the 32 x 32 image"):
        attribute(small, pair.rainy, patch_sum(window))
    with pytest.raises(LabError, match="not inside"):
        local_attribution(small, pair.rainy, window)
    with pytest.raises(LabError, match="not inside"):
        patch_error(window, pair.clean)


def test_last_possible_window_is_accepted(pair):
    assert attribute(Square(), pair.rainy, patch_sum((28, 24, 4, 8)), steps=2).map[:, 28:, 24:].any()


# --- methods against closed forms


def test_integrated_gradients_of_a_square_are_exact(pair):
    found = attribute(Square(), pair.rainy, patch_sum(WINDOW), baseline="black", steps=8, chunk=3)
    expected = pair.rainy.square() * inside(WINDOW)
    torch.testing.assert_close(found.map, expected, atol=1e-5, rtol=1e-5)
    assert found.gap < 1e-5 and found.start == 0
    assert found.change == pytest.approx(float(expected.sum()), rel=1e-5)


def test_gradient_x_input_of_a_square_is_twice_too_much_and_says_so(pair):
    found = attribute(Square(), pair.rainy, patch_sum(WINDOW), "gradient_x_input")
    torch.testing.assert_close(found.map, 2 * pair.rainy.square() * inside(WINDOW), atol=1e-5, rtol=1e-5)
    assert found.gap == pytest.approx(1, rel=1e-4) and "100" in str(found)


def test_occlusion_of_a_sum_is_complete_and_local(pair):
    found = attribute(nn.Identity(), pair.rainy, patch_sum((8, 8, 8, 16)), "occlusion", "black", patch=4)
    assert found.gap < 1e-5
    assert not found.map[:, ~inside((8, 8, 8, 16))].any()
    block = pair.rainy[:, 8:12, 8:12]
    torch.testing.assert_close(found.map[:, 8:12, 8:12], block.mean().expand(3, 4, 4), atol=1e-5, rtol=1e-4)


def test_rain_removed_cancels_the_copied_input(pair):
    found = attribute(nn.Identity(), pair.rainy, rain_removed(WINDOW), steps=4)
    assert found.change == 0 and not found.map.any() and found.gap == 0


def test_map_follows_where_the_network_looks(pair):
    heat = attribute(Shift(), pair.rainy, patch_sum((8, 12, 4, 4)), steps=4).heat
    assert heat[8:12, 9:13].all() and not heat[~inside((8, 9, 4, 4))].any()


def test_chunks_do_not_change_the_map(small, pair):
    target = rain_removed(WINDOW)
    one, many = (attribute(small, pair.rainy, target, steps=6, chunk=c).map for c in (1, 6))
    torch.testing.assert_close(one, many, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("mode", ["dense", "dual"])
def test_completeness_gap_of_the_tiny_network_is_below_2_percent(pair, mode):
    model = DerainTransformer(NetworkConfig.preset("tiny", mode=mode), seed=0).eval()
    for target in (rain_removed(WINDOW), patch_error(WINDOW, pair.clean)):
        found = attribute(model, pair.rainy, target, steps=64)
        assert found.gap < 0.02, found
        assert "64 steps" in str(found) and f"{found.gap:.2%}" in str(found)
        assert (found.choice is None) == (mode == "dense")


def test_held_keys_make_the_difference_and_are_let_go(pair):
    """What free keys leave unexplained does not go away with more steps; the choice is accounted for."""
    model = DerainTransformer(
        NetworkConfig(width=8, blocks=(1, 1), heads=(1, 2), refinement=0, keep=0.25)
    ).eval()
    target, x = rain_removed(WINDOW), pair.rainy[None]
    with torch.no_grad():
        before, blurred = model(x), gaussian_blur(x, BASELINE_BLUR)
        free_change = (target(model(x), x) - target(model(blurred), blurred)).item()
    held, free = (attribute(model, pair.rainy, target, steps=128, hold_keys=hold) for hold in (True, False))
    assert held.gap < 0.002 < 0.02 < free.gap
    assert free.choice is None and free.change == pytest.approx(free_change, rel=1e-4)
    assert held.change - held.choice == pytest.approx(free_change, rel=1e-4) and held.choice != 0
    with torch.no_grad():
        assert torch.equal(model(x), before)


def test_own_target_and_own_baseline(small, pair):
    target = Target("red", Window.of(WINDOW), lambda output, _: output[:, 0].flatten(1).sum(1))
    found = attribute(small, pair.rainy, target, baseline=pair.clean, steps=32)
    assert found.gap < 0.05
    assert not found.map[pair.rainy == pair.clean].any()


def test_network_is_left_as_it_was(pair, small):
    small.train()
    before = {name: value.clone() for name, value in small.state_dict().items()}
    attribute(small, pair.rainy, patch_sum(WINDOW), steps=2)
    layer_attribution(small, pair.rainy, patch_sum(WINDOW), "latent.0")
    with pytest.raises(ZeroDivisionError):
        attribute(
            small,
            pair.rainy,
            Target("broken", Window.of(WINDOW), lambda *_: 1 / 0),
            steps=2,
        )
    assert small.training and all(p.requires_grad and p.grad is None for p in small.parameters())
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert not any(module._forward_hooks for module in small.modules())
    small.eval()


# --- refusals


@pytest.mark.parametrize("method", REFUSED)
def test_invalid_methods_are_refused_with_the_reason(small, pair, method):
    with pytest.raises(
        LabError, match=r"not valid for these networks: it .*choose one of integrated_gradients"
    ):
        attribute(small, pair.rainy, patch_sum(WINDOW), method)


def test_misspelt_method_baseline_and_shapes_are_refused(small, pair):
    target = patch_sum(WINDOW)
    with pytest.raises(LabError, match="did you mean 'occlusion'"):
        attribute(small, pair.rainy, target, "oclusion")
    with pytest.raises(LabError, match="baseline"):
        attribute(small, pair.rainy, target, baseline="white")
    with pytest.raises(LabError, match=r"baseline has shape \(3, 8, 8\)"):
        attribute(small, pair.rainy, target, baseline=torch.zeros(3, 8, 8))
    with pytest.raises(LabError, match="one image"):
        attribute(small, pair.rainy.expand(2, 3, 32, 32), target)
    with pytest.raises(LabError, match="steps 0"):
        attribute(small, pair.rainy, target, steps=0)


# --- layers


def test_unshared_network_has_equal_outputs_and_three_convolutions(small, pair):
    copy = unshared(small)
    assert "latent.0.ffn.depthwise.2" in dict(copy.named_modules())
    x = pair.rainy[None]
    with torch.no_grad():
        assert torch.equal(copy(x), small(x)) and torch.equal(copy(x), small(x))


def test_each_use_of_the_shared_convolution_has_its_own_attribution(small, pair):
    """Sum of gradient x activation over an output = the derivative when that output is scaled."""
    target, layer = rain_removed(WINDOW), "encoder.0.0.ffn.depthwise"
    for use in range(3):
        found = layer_attribution(small, pair.rainy, target, f"{layer}.{use}")
        assert found.shape == (8, 32, 32)
        copy, scale = unshared(small).double(), 1e-5
        values = []
        for sign in (1, -1):
            hook = copy.get_submodule(f"{layer}.{use}").register_forward_hook(
                lambda _m, _i, out, by=1 + sign * scale: out * by
            )
            x = pair.rainy[None].double()
            values.append(target(copy(x), x).item())
            hook.remove()
        assert float(found.sum()) == pytest.approx((values[0] - values[1]) / (2 * scale), rel=2e-3)


def test_layers_that_have_no_single_output_are_refused(small, pair):
    with pytest.raises(LabError, match=r"runs 3 times .*choose .*ffn\.depthwise\.0"):
        layer_attribution(small, pair.rainy, patch_sum(WINDOW), "latent.0.ffn.depthwise")
    with pytest.raises(LabError, match=r"runs 0 times .*choose latent\.0\.ffn$"):
        layer_attribution(small, pair.rainy, patch_sum(WINDOW), "latent.0.ffn.expand")
    with pytest.raises(LabError, match=r"unknown layer 'latent\.1'"):
        layer_attribution(small, pair.rainy, patch_sum(WINDOW), "latent.1")


def test_conductance_through_the_head_is_complete(small, pair):
    """All that `rain_removed` measures passes through the head, so its conductance sums to the change."""
    target = rain_removed(WINDOW)
    found = layer_attribution(small, pair.rainy, target, "head", "conductance", steps=32)
    change = attribute(small, pair.rainy, target, steps=1).change
    assert float(found.sum()) == pytest.approx(change, rel=0.02)


# --- local attribution


def test_local_attribution_of_a_copy_is_its_own_window(pair):
    found = local_attribution(nn.Identity(), pair.rainy, WINDOW, steps=16)
    heat = found.heat
    assert not heat[~inside(WINDOW)].any()
    assert (heat[inside(WINDOW)] > 0).float().mean() > 0.9
    assert found.gap < 0.02 and 0 < found.diffusion < 100 * 80 / 1024
    assert "diffusion index" in str(found)


def test_diffusion_index_of_known_maps():
    from ddsa_lab.analysis.local_attribution import LocalAttribution

    def diffusion(values):
        return LocalAttribution(values, "local attribution", "", Window(0, 0, 4, 4), 1.0, 0.0).diffusion

    one = torch.zeros(3, 4, 4)
    one[0, 1, 2] = -5
    assert diffusion(torch.ones(3, 4, 4)) == pytest.approx(100)
    assert diffusion(one) == pytest.approx(100 / 16)


def test_a_network_that_looks_further_has_a_larger_diffusion_index(pair):
    class Blur(nn.Module):
        def forward(self, x):
            return gaussian_blur(x, 2.0)

    near, far = (
        local_attribution(m, pair.rainy, WINDOW, steps=16).diffusion for m in (nn.Identity(), Blur())
    )
    assert far > 2 * near


def test_local_attribution_of_the_network_is_complete(small, pair):
    assert local_attribution(small, pair.rainy, WINDOW, steps=64).gap < 0.02


def test_gaussian_blur_keeps_constants_and_matches_scipy(pair):
    from scipy.ndimage import gaussian_filter

    torch.testing.assert_close(gaussian_blur(torch.full((3, 9, 9), 0.3), 2.0), torch.full((3, 9, 9), 0.3))
    ours = gaussian_blur(pair.rainy, 1.7)
    theirs = torch.from_numpy(gaussian_filter(pair.rainy.numpy(), (0, 1.7, 1.7), mode="nearest"))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert torch.equal(gaussian_blur(pair.rainy, 0.0), pair.rainy)


# --- sanity


def test_random_weights_change_the_map_and_none_do_not(small, pair):
    table = randomised_check(small, pair.rainy, rain_removed(WINDOW), steps=4)
    assert list(table["random"])[:2] == ["none", "head"] and list(table["random"])[-1] == "stem"
    assert table["rank_correlation"][0] == pytest.approx(1)
    assert table["rank_correlation"].iloc[-1] < 0.5
    only = randomised_check(small, pair.rainy, rain_removed(WINDOW), steps=4, cascade=False)
    assert list(only["random"]) == ["none", "all"]
    assert only["rank_correlation"][1] == pytest.approx(table["rank_correlation"].iloc[-1])


def test_every_weight_becomes_random(small):
    from copy import deepcopy

    from ddsa_lab.analysis.sanity import _from_the_output

    copy = deepcopy(small)
    reached = {id(p) for _, part in _from_the_output(copy) for p in part.parameters()}
    assert {id(p) for p in copy.parameters()} == reached


# --- scores against the streaks


@pytest.fixture
def planted():
    streaks = torch.zeros(1, 10, 20)
    streaks[0, :, 4:6] = 0.2  # a tenth of the image
    return streaks


def test_pointing_game_on_a_planted_streak(planted):
    heat = torch.zeros(10, 20)
    heat[3, 5] = 1
    assert pointing_game(heat, planted) == {"hit": 1.0, "chance": pytest.approx(0.1)}
    heat[3, 6] = 2
    assert pointing_game(heat, planted)["hit"] == 0
    assert pointing_game(heat, planted, tolerance=1) == {"hit": 1.0, "chance": pytest.approx(0.2)}
    maps = [Attribution(h.expand(3, 10, 20), "", "", Window(0, 0, 1, 1), 1, 0) for h in (heat, planted[0])]
    assert pointing_rate(maps, planted)["hit"] == 0.5


def test_share_inside_streaks(planted):
    assert share_inside(torch.ones(10, 20), planted) == pytest.approx({"share": 0.1, "area": 0.1, "ratio": 1})
    heat = torch.zeros(10, 20)
    heat[0, 5], heat[0, 10] = 3, 1
    assert share_inside(heat, planted)["share"] == pytest.approx(0.75)
    narrow = share_inside(heat, planted, window=Window(0, 4, 2, 4))
    assert narrow == pytest.approx({"share": 1, "area": 0.5, "ratio": 2})


def test_residual_share_of_untouched_rain_is_all_inside():
    pair = rainy_pair("coffee", rain="light", seed=1, size=64)
    found = residual_share(pair.rainy, pair.clean, pair.streaks, threshold=1e-6)
    assert found["share"] == pytest.approx(1) and found["area"] < 1


def test_scores_refuse_what_does_not_fit(planted):
    with pytest.raises(LabError, match="10, 10"):
        share_inside(torch.ones(10, 10), planted)
    with pytest.raises(LabError, match="NaN"):
        pointing_game(torch.full((10, 20), float("nan")), planted)
    with pytest.raises(LabError, match=r"\(1, H, W\)"):
        share_inside(torch.ones(10, 20), planted[0])
    with pytest.raises(LabError, match="at least one map"):
        pointing_rate([], planted)
