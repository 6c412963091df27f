"""Muon: orthogonal steps for matrices, AdamW's for the rest."""

import pytest
import torch
from torch.testing import assert_close

from ddsa_lab.model.layers import Pointwise
from ddsa_lab.model.network import DerainTransformer, NetworkConfig
from ddsa_lab.training import optimizer as module
from ddsa_lab.training.config import TrainConfig
from ddsa_lab.training.optimizer import Muon, make_optimizer, orthogonal

NETWORK = NetworkConfig(width=8, blocks=(1, 1), heads=(1, 2), refinement=0, ffn_factor=2.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(3, 24, 8), (3, 8, 24), (1, 16, 16)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_singular_values_come_close_to_one_and_directions_stay(shape, scale):
    x = torch.randn(shape, generator=seeded(), dtype=torch.float64)
    moved = orthogonal(scale * x)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    # In the singular vectors' own frame what is left is diagonal, with entries near 1.
    frame = u.transpose(1, 2) @ moved @ v.transpose(1, 2)
    values = frame.diagonal(dim1=1, dim2=2)
    assert_close(frame, torch.diag_embed(values), atol=1e-6, rtol=0)
    assert values.min() > 0.3 and values.max() < 1.3


def test_zero_stays_zero():
    assert not orthogonal(torch.zeros(1, 4, 6)).any()


def gradients(net, seed):
    for i, parameter in enumerate(net.parameters()):
        parameter.grad = torch.randn(parameter.shape, generator=seeded(100 * seed + i))


def test_matrices_move_by_orthogonal_steps_and_all_else_as_adamw_moves_it():
    net, twin = (DerainTransformer(NETWORK) for _ in range(2))
    settings = dict(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    ours, theirs = Muon(net, **settings), torch.optim.AdamW(twin.parameters(), **settings)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    matrices = {f"{name}.weight" for name, layer in net.named_modules() if isinstance(layer, Pointwise)}
    assert len(matrices) == 12  # four in each of three blocks; at the top level no 1x1 reduces the skip
    for seed in range(2):
        gradients(net, seed), gradients(twin, seed)
        slopes = {name: parameter.grad for name, parameter in net.named_parameters()}
        ours.step(), theirs.step()
        if seed == 0:  # later, momentum may go uphill
            assert all(
                ((net.get_parameter(name) - before[name]) * slopes[name]).sum() < 0 for name in matrices
            )
    for (name, parameter), other in zip(net.named_parameters(), twin.parameters()):
        if name not in matrices:
            assert_close(parameter, other, rtol=0, atol=0, msg=name)
            continue
        moved = (parameter - before[name]).flatten(1)
        rows, columns = moved.shape
        # Two steps, each of this size in every direction.
        size = module.MATRIX_LR * 1e-3 * max(1, rows / columns) ** 0.5
        assert 0.5 * size < moved.norm() / min(rows, columns) ** 0.5 < 2.6 * size, name


def test_the_named_optimiser_is_made():
    net = DerainTransformer(NETWORK)
    config = TrainConfig(NETWORK, steps=1, lr=3e-3)
    assert type(make_optimizer(config, net)) is torch.optim.AdamW
    muon = make_optimizer(TrainConfig(NETWORK, steps=1, lr=3e-3, optimizer="muon"), net)
    assert type(muon) is Muon and {group["lr"] for group in muon.param_groups} == {3e-3}
    assert sum(len(group["params"]) for group in muon.param_groups) == len(list(net.parameters()))
