"""Kept plus dropped is the whole, and a matrix entry is the sum of its product map."""

import pytest
import torch
from torch.testing import assert_close

from ddsa_lab.analysis.channels import entry_images, kept_and_dropped
from ddsa_lab.analysis.probe import record
from ddsa_lab.analysis.surgery import surgery
from ddsa_lab.errors import LabError
from ddsa_lab.model.attention import MODES
from ddsa_lab.model.network import DerainTransformer, NetworkConfig

LAYER = "decoder.1.0"  # two heads


def network(mode="dual"):
    model = DerainTransformer(NetworkConfig.preset("tiny", mode=mode)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.attention_layers().values():
            layer.temperature.uniform_(1, 6, generator=generator)
            if mode in ("dual", "multi"):
                layer.weights.branch.uniform_(0.2, 1, generator=generator)
    return model


def recorded(model, keep=("values", "queries")):
    image = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    outputs = {}
    hook = model.attention_layers()[LAYER].register_forward_hook(lambda _m, _i, out: outputs.update(y=out))
    with torch.no_grad(), record(model, [LAYER], keep) as rec:
        model(image)
    hook.remove()
    return rec, outputs["y"]


@pytest.mark.parametrize(
    ("mode", "select"),
    [
        (mode, select)
        for mode in MODES
        for select in ("top", "bottom")
        if (mode, select) != ("dense", "bottom")
    ],
)
def test_kept_and_dropped_sum_to_what_the_layer_put_out(mode, select):
    model = network(mode)
    with surgery(model, select=select):
        rec, output = recorded(model)
        parts = kept_and_dropped(rec, LAYER, projected=True)
    assert parts.whole.shape == (2, 32, 16, 20)
    assert_close(parts.kept + parts.dropped, parts.whole, rtol=1e-5, atol=1e-6)
    assert_close(parts.whole, output, rtol=1e-4, atol=1e-5)


def test_dropped_keys_pass_with_weight_a_and_kept_ones_with_the_rest():
    rec, _ = recorded(network())
    entry, parts = rec[LAYER][0], kept_and_dropped(rec, LAYER)
    p, mask, v = entry.dense, entry.mask, entry.values
    ((_, b),) = entry.branches
    gain = entry.a + b / (p * mask).sum(-1, keepdim=True)
    # channel 5 of head 1, image 1: written out as sums over the 16 keys of that head
    i, n = 5, 1
    dropped = sum(entry.a * p[n, 1, i, j] * v[n, 16 + j] for j in range(16) if not mask[n, 1, i, j])
    kept = sum(gain[n, 1, i, 0] * p[n, 1, i, j] * v[n, 16 + j] for j in range(16) if mask[n, 1, i, j])
    assert_close(parts.dropped[n, 16 + i], dropped, rtol=1e-4, atol=1e-6)
    assert_close(parts.kept[n, 16 + i], kept, rtol=1e-4, atol=1e-6)
    share = dropped.norm() / (dropped.norm() + kept.norm())
    assert float(parts.dropped_share[n, 16 + i]) == pytest.approx(float(share), rel=1e-4)


def test_the_dense_output_shows_what_a_sparse_layer_loses():
    rec, _ = recorded(network("sparse"))
    assert kept_and_dropped(rec, LAYER).dropped.abs().max() == 0
    parts = kept_and_dropped(rec, LAYER, of="dense")
    assert parts.dropped_share.mean() > 0.05
    entry = rec[LAYER][0]
    v = entry.values.flatten(2).unflatten(1, (2, -1))
    assert_close(parts.whole, (entry.dense @ v).flatten(1, 2).unflatten(2, (16, 20)), rtol=1e-4, atol=1e-6)


def test_a_dense_layer_drops_nothing():
    rec, _ = recorded(network("dense"))
    parts = kept_and_dropped(rec, LAYER)
    assert parts.dropped.abs().max() == 0 and parts.dropped_share.max() == 0


@pytest.mark.parametrize(("i", "j", "head", "image"), [(0, 0, 0, 0), (3, 9, 1, 0), (15, 2, 1, 1)])
def test_the_product_map_sums_to_the_logit(i, j, head, image):
    rec, _ = recorded(network())
    seen, entry = entry_images(rec, LAYER, i, j, head, image), rec[LAYER][0]
    place = (image, head, i, j)
    assert seen.query.shape == seen.key.shape == seen.product.shape == (16, 20)
    assert float(seen.product.sum()) * seen.temperature == pytest.approx(float(entry.logits[place]), abs=1e-5)
    assert float(seen.query.norm()) == pytest.approx(1) and float(seen.key.norm()) == pytest.approx(1)
    assert (seen.logit, seen.dense, seen.fused, seen.kept) == (
        float(entry.logits[place]), float(entry.dense[place]), float(entry.fused[place]), bool(entry.mask[place]),
    )  # fmt: skip


def test_mistakes_are_named():
    model = network()
    rec, _ = recorded(model)
    bare, _ = recorded(model, ())
    with pytest.raises(LabError, match="values of"):
        kept_and_dropped(bare, LAYER)
    with pytest.raises(LabError, match=r"queries of .*keep=\('queries',\)"):
        entry_images(bare, LAYER, 0, 0)
    with pytest.raises(LabError, match=r"j is 16, but .* has 16: choose from 0 to 15"):
        entry_images(rec, LAYER, 0, 16)
    with pytest.raises(LabError, match="head is 2"):
        entry_images(rec, LAYER, 0, 0, head=2)
    with pytest.raises(LabError, match="unknown kind of weights"):
        kept_and_dropped(rec, LAYER, of="sparse")
    plain = kept_and_dropped(rec, LAYER).whole
    with torch.no_grad():
        model.attention_layers()[LAYER].project.weight.mul_(2)
    with pytest.raises(LabError, match="have changed since"):
        kept_and_dropped(rec, LAYER, projected=True)
    assert torch.equal(kept_and_dropped(rec, LAYER).whole, plain)  # needs nothing of the model
