"""Recording changes nothing, records what the network used, and keeps within its memory."""

import statistics
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import conv2d
from torch.testing import assert_close

from ddsa_lab.analysis.probe import KEEPABLE, estimate_mb, record, select_layers
from ddsa_lab.errors import LabError
from ddsa_lab.model.attention import MODES, dual_weights, keep_count
from ddsa_lab.model.checkpoints import load
from ddsa_lab.model.network import PRESETS, DerainTransformer, NetworkConfig
from ddsa_lab.model.restore import derain, tile_starts


def network(preset="tiny", seed=0, **changes):
    """An untrained network whose constants are perturbed, so that no two branch weights or heads are equal."""
    model = DerainTransformer(NetworkConfig.preset(preset, **changes), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.attention_layers().values():
            layer.temperature.mul_(1 + 4 * torch.rand(layer.temperature.shape, generator=generator))
            if layer.weights.built_as in ("dual", "multi"):
                layer.weights.branch.uniform_(0.1, 1.0, generator=generator)
    return model


def photo(height=24, width=40, batch=1, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def hooks_of(model):
    return [
        (name, list(hooks))
        for name, module in model.named_modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        if hooks
    ]


def fused_of(model, image):
    """What the network itself computed, caught by hooks of this test's own."""
    caught, hooks = {}, []
    for name, layer in model.attention_layers().items():
        hooks.append(
            layer.weights.register_forward_hook(lambda _m, _i, out, name=name: caught.update({name: out}))
        )
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    return caught


@pytest.mark.parametrize("preset", PRESETS)
def test_recording_changes_no_output_bit_on_any_preset(preset):
    model, image = network(preset), photo(16, 24)
    with torch.inference_mode():
        plain = model(image)
        with record(model, keep=KEEPABLE) as rec:
            watched = model(image)
    assert torch.equal(plain, watched)
    assert list(rec) == list(model.attention_layers())
    assert all(len(rec[name]) == 1 for name in rec)
    assert hooks_of(model) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_recording_on_a_gpu_stays_there_and_changes_no_bit():
    model, image = network("small").cuda(), photo().cuda()
    with torch.inference_mode():
        plain = model(image)
        with record(model, keep=KEEPABLE) as rec:
            watched = model(image)
    assert torch.equal(plain, watched)
    assert rec["latent.0"][0].fused.is_cuda and rec["latent.0"][0].values.is_cuda


def test_gradients_stay_as_they_were():
    model, image = network(), photo()
    model(image).square().sum().backward()
    plain = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with record(model, keep=KEEPABLE) as rec:
        model(image).square().sum().backward()
    assert all(torch.equal(one, other.grad) for one, other in zip(plain, model.parameters()))
    assert not rec["latent.0"][0].fused.requires_grad


@pytest.mark.parametrize("name", ["idt_ddsa_network", "restormer_network", "drsformer_network"])
def test_published_checkpoints_are_recorded(golden, tmp_path, name):
    tensors = load_file(golden / f"{name}.safetensors")
    image, output = tensors.pop("input"), tensors.pop("output")
    save_file(tensors, tmp_path / "published.safetensors")
    model = load(tmp_path / "published.safetensors")
    caught = fused_of(model, image)
    with torch.no_grad(), record(model, keep=KEEPABLE) as rec:
        assert_close(model(image), output, rtol=1e-4, atol=1e-4)
    for layer, fused in caught.items():
        assert_close(rec[layer][0].fused, fused, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_derived_matrices_are_those_the_network_used(mode):
    model, image = network(mode=mode), photo(batch=2)
    caught = fused_of(model, image)
    with torch.no_grad(), record(model) as rec:
        model(image)
    for name, fused in caught.items():
        entry = rec[name][0]
        assert_close(entry.fused, fused, rtol=1e-5, atol=1e-7)
        assert_close(entry.dense.sum(-1), torch.ones(fused.shape[:-1]))
        assert_close(entry.sparse, entry.dense * entry.mask / entry.mass.unsqueeze(-1))
        assert entry.temperature.tolist() == model.attention_layers()[name].temperature.flatten().tolist()
        counts = [keep_count(keep, entry.channels) for keep, _ in entry.branches]
        assert [int(mask.sum(-1).unique()) for mask in entry.masks] == counts


def test_dual_record_is_the_textbook_formula():
    model, image = network(), photo()
    with torch.no_grad(), record(model) as rec:
        model(image)
    for name, layer in model.attention_layers().items():
        entry, (a, b) = rec[name][0], layer.weights.branch.tolist()
        assert (entry.a, entry.branches) == (a, ((0.7, b),))
        k = keep_count(0.7, entry.channels)
        assert_close(entry.fused, dual_weights(entry.logits, k, a, b))
        # kept keys have gain times the weight of dropped ones, relative to p
        ratio = entry.fused / entry.dense
        high = (ratio * entry.mask).sum(-1) / k
        low = (ratio * ~entry.mask).sum(-1) / (entry.channels - k)
        assert_close(entry.gain, high / low, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["sparse", "multi"])
def test_among_equal_logits_the_record_keeps_the_keys_that_the_network_kept(mode):
    model = network(mode=mode)
    with torch.no_grad():
        for layer in model.attention_layers().values():
            layer.temperature.zero_()
    caught = fused_of(model, photo())
    with torch.no_grad(), record(model) as rec:
        model(photo())
    for name, fused in caught.items():
        assert torch.equal(rec[name][0].mask, fused > 0)
        assert_close(rec[name][0].fused, fused)


def test_values_lead_to_the_layers_own_output():
    model, image, outputs = network(heads=(1, 2, 2, 4)), photo(), {}
    layer = model.attention_layers()["encoder.1.0"]
    hook = layer.register_forward_hook(lambda _m, _i, out: outputs.update(y=out))
    with torch.no_grad(), record(model, keep=["values", "queries"]) as rec:
        model(image)
    hook.remove()
    entry = rec["encoder.1.0"][0]
    assert_close(conv2d(entry.output, layer.project.weight.detach()), outputs["y"], rtol=1e-4, atol=1e-6)
    q, k = (
        nn.functional.normalize(t.flatten(2).unflatten(1, (2, -1)), dim=-1)
        for t in (entry.queries, entry.keys)
    )
    z = (q @ k.mT) * entry.temperature.view(-1, 1, 1)
    assert_close(z, entry.logits, rtol=1e-4, atol=1e-5)


def test_gates_and_features_are_those_of_their_block_and_stage():
    model, image, seen = network(blocks=(1, 2, 1, 1)), photo(batch=2), {}
    model.encoder[1][1].ffn.gate.register_forward_hook(lambda _m, _i, out: seen.update(gate=out))
    model.decoder[0].register_forward_hook(lambda _m, _i, out: seen.update(feature=out.clone()))
    with torch.no_grad(), record(model, keep=["gates", "features"]) as rec:
        model(photo(batch=2, seed=1))
        model(image)
    assert torch.equal(rec["encoder.1.1"][1].gate, seen["gate"])
    assert seen["gate"].shape == (2, 1, 12, 20) and 0 < seen["gate"].min() < seen["gate"].max() < 1
    assert torch.equal(rec.features["decoder.0"][1], seen["feature"])
    assert list(rec.features) == [
        "encoder.0",
        "encoder.1",
        "encoder.2",
        "latent",
        "decoder.2",
        "decoder.1",
        "decoder.0",
    ]


def test_hooks_are_removed_after_an_exception():
    model = network()
    with pytest.raises(RuntimeError, match="on purpose"), record(model, keep=KEEPABLE):
        assert len(hooks_of(model)) > 7
        raise RuntimeError("on purpose")
    assert hooks_of(model) == []


def test_every_tile_is_a_pass():
    model, image = network(), photo(64, 150)[0]
    with record(model, layers="latent") as rec:
        derain(model, image, tile=64, overlap=16)
    assert len(rec["latent.0"]) == len(tile_starts(150, 64, 16)) == 3
    whole = fused_of(model, image[None, :, :, :64])["latent.0"]
    assert_close(rec["latent.0"][0].fused, whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        ("latent.0", ["latent.0"]),
        ("encoder", ["encoder.0.0", "encoder.1.0", "encoder.1.1", "encoder.2.0"]),
        ("encoder.1", ["encoder.1.0", "encoder.1.1"]),
        ("*.1", ["encoder.1.1", "decoder.1.1"]),
        (["latent", "encoder.0"], ["encoder.0.0", "latent.0"]),
    ],
)
def test_layers_are_chosen_by_name_beginning_or_pattern(layers, chosen):
    model = network(blocks=(1, 2, 1, 1))
    assert select_layers(model, layers) == chosen
    with torch.no_grad(), record(model, layers) as rec:
        model(photo())
    assert list(rec) == chosen


@pytest.mark.parametrize(
    ("wrong", "near"), [("latnt.0", "'latent.0'"), ("encoder.0.1", "'encoder.0.0'"), ("enc", "encoder.0.0")]
)
def test_an_unknown_layer_lists_the_near_ones(wrong, near):
    with pytest.raises(LabError, match=near), record(network(), layers=["latent", wrong]):
        pass


def test_other_mistakes_are_named():
    model = network("tiny", ffn="gdfn")
    with pytest.raises(LabError, match=r"Conv2d.*unwrapped"):
        select_layers(nn.Conv2d(3, 3, 1))
    with pytest.raises(LabError, match="no layers"):
        select_layers(model, [])
    with pytest.raises(LabError, match="did you mean 'values'"), record(model, keep=["value"]):
        pass
    with record(model, keep="gates") as rec:
        with pytest.raises(LabError, match="empty"):
            rec.entries()
        derain(model, photo())
    with pytest.raises(LabError, match=r"values of latent\.0.*keep=\('values',\)"):
        _ = rec["latent.0"][0].output
    with pytest.raises(LabError, match="only SEFN"):
        rec["latent.0"][0].need("gate")
    with pytest.raises(LabError, match="1 recorded passes"):
        rec.layer("latent.0", 1)
    with pytest.raises(LabError, match=r"did you mean 'latent\.0'"):
        rec["latent"]
    assert "latent" not in rec and "latent.0" in rec


@pytest.mark.parametrize(
    "keep", [("attention",), ("values",), ("queries",), ("gates",), ("features",), KEEPABLE]
)
@pytest.mark.parametrize(
    ("preset", "height", "width", "batch"), [("tiny", 24, 40, 1), ("small", 17, 31, 2), ("tiny", 1, 1, 1)]
)
def test_the_memory_estimate_is_what_is_held(keep, preset, height, width, batch):
    model = network(preset)
    with torch.no_grad(), record(model, layers=["encoder", "latent"], keep=keep) as rec:
        model(photo(height, width, batch))
    estimate = estimate_mb(model, height, width, ["encoder", "latent"], keep, batch)
    assert rec.nbytes / 1e6 == pytest.approx(estimate, rel=1e-9)


def test_too_large_a_record_is_refused_before_the_pass():
    model, ran = network(), []
    model.stem.register_forward_hook(lambda *_: ran.append(1))
    need = estimate_mb(model, 24, 40, keep=["values"])
    with (
        pytest.raises(LabError, match=r"limit_mb=.*choose fewer layers"),
        record(model, keep=["values"], limit_mb=2.5 * need) as rec,
    ):
        for _ in range(4):
            derain(model, photo())
    assert len(ran) == len(rec["latent.0"]) == 2
    assert model._forward_pre_hooks == {}
    with record(model, keep=["values"], limit_mb=None):
        derain(model, photo())


def test_all_attention_of_idt_ddsa_takes_less_than_200_mb():
    model = network("idt_ddsa")
    with torch.no_grad(), record(model) as rec:
        model(photo(16, 16))
    # C x C matrices have one size for every image
    assert rec.nbytes / 1e6 == pytest.approx(estimate_mb(model, 256, 256)) and rec.nbytes < 200e6


def _train(model):
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(photo()).square().mean().backward()
    optimiser.step()


def _edit(model):
    model.latent[0].attention.project.weight.data.mul_(1.001)


def _exchange(model):
    weight = model.latent[0].attention.project.weight
    with torch.no_grad():
        weight.copy_(weight.flip(0))


@pytest.mark.parametrize(
    "change", [_train, _edit, _exchange, lambda model: model.load_state_dict(network(seed=1).state_dict())]
)
def test_a_record_says_that_its_model_has_changed(change):
    model = network()
    with record(model) as rec:
        derain(model, photo())
    fused = rec["latent.0"][0].fused
    assert rec.changed() == [] and rec.layer("latent.0") is model.latent[0].attention
    change(model)
    assert "latent.0" in rec.changed() and "have changed since" in repr(rec)
    with pytest.raises(LabError, match=r"latent\.0 have changed since they were recorded"):
        rec.layer("latent.0")
    assert torch.equal(rec["latent.0"][0].fused, fused)


def test_mode_and_keep_are_part_of_the_record():
    model = network()
    caught = fused_of(model, photo())
    with record(model) as rec:
        derain(model, photo())
        model.latent[0].attention.weights.keep = 0.2
        derain(model, photo())
    model.latent[0].attention.weights.mode = "dense"
    first, second = rec["latent.0"]
    assert_close(first.fused, caught["latent.0"], rtol=1e-5, atol=1e-7)
    assert (first.keep, second.keep) == (0.7, 0.2) and int(second.mask[0, 0, 0].sum()) == 3


def test_what_was_taken_back_or_moved_is_no_change():
    model = network()
    with record(model) as rec:
        derain(model, photo())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    _train(model)
    model.load_state_dict(state)
    model.to(memory_format=torch.contiguous_format)
    assert rec.changed() == []


@pytest.mark.slow
def test_recording_small_adds_less_than_30_percent_to_the_time():
    """Medians of alternating runs, in processor time, which other programs disturb less than the clock's."""
    model, image = network("small"), photo(256, 256)

    def seconds(recording):
        started = time.process_time()
        with torch.inference_mode():
            if recording:
                with record(model):
                    model(image)
            else:
                model(image)
        return time.process_time() - started

    times = [(seconds(False), seconds(True)) for _ in range(7)]
    plain, watched = (statistics.median(column) for column in zip(*times))
    assert watched < 1.3 * plain, f"{plain:.3f} s without, {watched:.3f} s with recording"
