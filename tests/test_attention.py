"""Channel attention against loops, closed forms and the published implementations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ddsa_lab.errors import LabError
from ddsa_lab.model import attention as at
from ddsa_lab.model.checkpoints import published_to_ours
from ddsa_lab.model.layers import to_tokens
from tests import loops


def logits(channels=8, heads=2, batch=2, seed=0):
    return torch.randn(
        batch, heads, channels, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def layer(mode="dual", channels=8, heads=2, keep=0.7, seed=0):
    made = at.ChannelAttention(channels, heads, mode, keep).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        if mode in ("dual", "multi"):
            made.weights.branch.copy_(torch.linspace(0.3, 0.9, len(made.weights.branch)))
    return made


@pytest.mark.parametrize(
    ("keep", "channels", "k"),
    [
        (0.7, 90, 63),
        (0.7, 48, 33),
        (0.7, 96, 67),
        (0.7, 10, 7),
        (0.1, 4, 1),
        (1.0, 7, 7),
        (2 / 3, 96, 64),
        (1e-9, 50, 1),
    ],
)
def test_keep_count(keep, channels, k):
    assert at.keep_count(keep, channels) == k


@given(channels=st.integers(1, 512))
def test_keep_count_agrees_with_the_released_integer_arithmetic(channels):
    assert at.keep_count(0.7, channels) == max(1, int(7 * channels / 10))


@pytest.mark.parametrize("keep", [0, -0.1, 1.0001, float("nan")])
def test_keep_outside_its_range_is_refused(keep):
    with pytest.raises(LabError, match="must lie in"):
        at.AttentionWeights("dual", keep)


def branches_of(weights):
    a, sparse = weights.branches()
    dense = [] if a is None else [(a.item(), 1.0)]
    return dense + [(b.item(), keep) for keep, b in sparse]


@settings(max_examples=60, deadline=None)
@given(
    channels=st.integers(1, 12),
    keep=st.floats(0.01, 1),
    mode=st.sampled_from(at.MODES),
    seed=st.integers(0, 99),
    scale=st.floats(0.01, 30),
)
def test_fast_form_equals_loops(channels, keep, mode, seed, scale):
    z = scale * logits(channels, 1, 1, seed)
    weights = layer(mode, keep=keep, seed=seed).weights
    counted = [(w, at.keep_count(share, channels)) for w, share in branches_of(weights)]
    torch.testing.assert_close(weights(z)[0, 0], loops.attention_rows(z[0, 0], counted), atol=1e-10, rtol=0)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_textbook_forms_equal_loops(k):
    z = logits()
    for mine, branches in (
        (at.dense_weights(z), [(1.0, 8)]),
        (at.sparse_weights(z, k), [(1.0, k)]),
        (at.dual_weights(z, k, 0.3, 0.5), [(0.3, 8), (0.5, k)]),
    ):
        torch.testing.assert_close(mine[1, 1], loops.attention_rows(z[1, 1], branches), atol=1e-10, rtol=0)


@pytest.mark.parametrize("mode", at.MODES)
@pytest.mark.parametrize("heads", [1, 2])
def test_layer_equals_loops(mode, heads):
    made, x = layer(mode, heads=heads), torch.randn(1, 8, 3, 5, dtype=torch.float64)
    expected = loops.channel_attention(made, x[0], branches_of(made.weights))
    torch.testing.assert_close(made(x)[0], expected, atol=1e-10, rtol=0)


def test_similarity_equals_the_small_product_divided_by_lengths():
    made, x = layer(), torch.randn(2, 8, 4, 6, dtype=torch.float64)
    qk = to_tokens(made.depthwise(made.qkv(x)))[..., :16]
    q, k = (t.transpose(1, 2).unflatten(1, (2, 4)) for t in qk.chunk(2, dim=-1))
    torch.testing.assert_close(made.logits(qk), at.similarity(q, k, made.temperature), atol=1e-10, rtol=0)


def test_k_equal_to_all_keys_is_dense():
    z, dual = logits(), layer(keep=1.0).weights
    torch.testing.assert_close(dual(z), dual.branch.sum() * at.dense_weights(z), atol=1e-12, rtol=0)
    torch.testing.assert_close(at.sparse_weights(z, 8), at.dense_weights(z), atol=1e-12, rtol=0)


def test_zero_sparse_weight_leaves_the_dense_part():
    z, dual = logits(), layer().weights
    with torch.no_grad():
        dual.branch[1] = 0
    torch.testing.assert_close(dual(z), dual.branch[0] * at.dense_weights(z), atol=1e-12, rtol=0)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.7, 1.0])
def test_sparse_rows_sum_to_one_with_exactly_k_entries_even_among_ties(keep):
    k = at.keep_count(keep, 10)
    for z in (logits(10), torch.zeros(1, 1, 10, 10)):
        sparse = layer("sparse", keep=keep).weights(z)
        assert ((sparse != 0).sum(-1) == k).all()
        torch.testing.assert_close(sparse.sum(-1), torch.ones_like(sparse[..., 0]))
        assert (at.topk_mask(z, k).sum(-1) == k).all()


def test_two_level_gain():
    """a * dense + b * sparse = p (a + b/m) on the kept keys and a p elsewhere."""
    z, dual = logits(), layer(keep=0.5).weights
    p, kept = at.dense_weights(z), at.topk_mask(z, 4)
    a, b = dual.branch
    m = (p * kept).sum(-1, keepdim=True)
    torch.testing.assert_close(dual(z), p * torch.where(kept, a + b / m, a), atol=1e-12, rtol=0)


def test_permuting_channels_permutes_the_attention():
    z, order = logits(8, 1, 1), torch.randperm(8)
    dual = layer().weights
    permuted = z[..., order, :][..., order]
    torch.testing.assert_close(dual(permuted), dual(z)[..., order, :][..., order], atol=1e-12, rtol=0)


def test_permuting_pixels_changes_no_logit():
    made, qk = layer(), torch.randn(1, 35, 16, dtype=torch.float64)
    torch.testing.assert_close(made.logits(qk[:, torch.randperm(35)]), made.logits(qk), atol=1e-12, rtol=0)


@pytest.mark.parametrize("mode", at.MODES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (3, 3)])
def test_size_one_edges(mode, shape):
    made = layer(
        mode, channels=2, heads=2
    )  # one channel per head: attention is the identity times its weights
    x = torch.randn(1, 2, *shape, dtype=torch.float64)
    y, weights = made(x, return_weights=True)
    total = sum(weight for weight, _ in branches_of(made.weights))
    torch.testing.assert_close(weights, torch.full_like(weights, total))
    assert y.shape == x.shape


def test_zero_input_gives_zero_and_finite_gradients():
    made, x = layer(), torch.zeros(1, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    y = made(x)
    y.sum().backward()
    assert (y == 0).all() and torch.isfinite(x.grad).all()


def test_gradients():
    made, x = layer(), torch.randn(1, 8, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(made, x)


def test_forward_stores_nothing():
    made = layer()
    before = set(vars(made)) | set(made.state_dict()), set(vars(made.weights))
    made(torch.randn(1, 8, 4, 4, dtype=torch.float64))
    assert before == (set(vars(made)) | set(made.state_dict()), set(vars(made.weights)))


def test_mode_keep_and_branches_change_on_a_built_layer():
    z, weights = logits(), layer(keep=0.5).weights
    a, b = weights.branch.detach()
    weights.mode = "sparse"
    torch.testing.assert_close(weights(z), b * at.sparse_weights(z, 4))
    weights.keep = 0.25
    torch.testing.assert_close(weights(z), b * at.sparse_weights(z, 2))
    weights.mode = "dense"
    torch.testing.assert_close(weights(z), a * at.dense_weights(z))
    with pytest.raises(LabError, match="cannot become 'multi'"):
        weights.mode = "multi"
    with pytest.raises(LabError, match="did you mean 'dual'"):
        weights.mode = "duall"
    with pytest.raises(LabError, match="takes 1"):
        weights.keep = (0.5, 0.7)


def test_bfloat16_around_it_keeps_logits_in_float32():
    made, x = at.ChannelAttention(8, 2), torch.randn(1, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        _, weights = made(x, return_weights=True)
    assert weights.dtype == torch.float32


@pytest.mark.parametrize(
    ("file", "mode", "heads"),
    [
        ("attention_dual", "dual", 2),
        ("attention_dual_onehead", "dual", 1),
        ("attention_multi_topk", "multi", 2),
        ("attention_dense", "dense", 2),
    ],
)
def test_published_attention(golden, file, mode, heads):
    tensors = load_file(golden / f"{file}.safetensors")
    parameters = {
        f"b.attn.{n.removeprefix('param.')}": t for n, t in tensors.items() if n.startswith("param.")
    }
    made = at.ChannelAttention(96, heads, mode)
    made.load_state_dict(
        {n.removeprefix("b.attention."): t for n, t in published_to_ours(parameters).items()}
    )
    with torch.no_grad():
        torch.testing.assert_close(made(tensors["input"]), tensors["output"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("order", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_the_written_out_gradient_of_the_products(order):
    wide = torch.randn(2, 5, 9, dtype=torch.float64, requires_grad=True)
    assert order(lambda x: at.Products.apply(x[..., :6]), wide)  # a view into q, k and v, as in the network
