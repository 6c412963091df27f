"""Hand-derived parameters and multiply-adds against the published figures and measured counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ddsa_lab.errors import LabError
from ddsa_lab.model.cost import count_macs, count_parameters
from ddsa_lab.model.network import DerainTransformer, NetworkConfig
from ddsa_lab.model.textbook import Textbook

SMALL = dict(width=16, blocks=(1, 2, 1), heads=(1, 2, 4), refinement=1, first=1)
VARIANTS = [("dual", "sefn"), ("dense", "gdfn"), ("multi", "msfn"), ("sparse", "sefn")]


@pytest.mark.parametrize(("preset", "millions"), [("idt_ddsa", 40.62), ("restormer", 26.13)])
def test_published_parameters(preset, millions):
    assert count_parameters(NetworkConfig.preset(preset)) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(
    ("preset", "changes", "giga"),
    [("idt_ddsa", {}, 261.0), ("idt_ddsa", dict(first=2, refinement=2), 224.0), ("restormer", {}, 154.9)],
)
def test_published_macs_in_the_released_order(preset, changes, giga):
    config = NetworkConfig.preset(preset, **changes)
    assert count_macs(config, 256, 256, "released") / 1e9 == pytest.approx(giga, rel=0.01)


@pytest.mark.parametrize(("mode", "ffn"), VARIANTS)
def test_parameters_equal_the_built_network(mode, ffn):
    config = NetworkConfig(mode=mode, ffn=ffn, **SMALL)
    assert count_parameters(config) == sum(p.numel() for p in DerainTransformer(config).parameters())


@pytest.mark.parametrize(("mode", "ffn"), VARIANTS)
@pytest.mark.parametrize("order", ["released", "ours"])
def test_macs_equal_a_measured_count(mode, ffn, order):
    config = NetworkConfig(mode=mode, ffn=ffn, **SMALL)
    model = DerainTransformer(config).eval()
    # With gradients: without them SEFN fills its channels up with zeros, which are not counted.
    with FlopCounterMode(display=False) as counter:
        (Textbook(model) if order == "released" else model)(torch.rand(1, 3, 30, 41))
    assert counter.get_total_flops() == 2 * count_macs(config, 30, 41, order)


def test_a_single_level_network_is_counted_too():
    config = NetworkConfig(width=8, blocks=(2,), heads=(2,), refinement=0)
    assert count_parameters(config) == sum(p.numel() for p in DerainTransformer(config).parameters())


def test_unknown_order():
    with pytest.raises(LabError, match="released, ours"):
        count_macs(NetworkConfig(), 8, 8, "fast")
