"""The weights a run starts with: seeded tensor by tensor, or taken from a file."""

import torch
from torch import Tensor

from ddsa_lab.errors import LabError
from ddsa_lab.model.attention import AttentionWeights
from ddsa_lab.model.checkpoints import load
from ddsa_lab.model.network import DerainTransformer
from ddsa_lab.training.config import TrainConfig

_BRANCH = ".weights.branch"  # where networks of one shape differ by their attention mode


def initial_network(config: TrainConfig) -> DerainTransformer:
    """Build `config.network` with weights from `config.start_from`, or seeded by `config.seed`.

    Seeded networks of one seed start equal in every tensor of equal name and shape. Weights of another attention mode
    are taken over so that every row of an attention matrix keeps its sum: where branch weights are learned they share it
    evenly, where there are none the output projection takes it in.

    Raises:
        LabError: `start_from` cannot be read, or holds tensors of other names or shapes, branch weights aside.
    """
    net = DerainTransformer(config.network, seed=config.seed)
    if config.start_from is None:
        return net
    source = load(config.start_from)
    given, own = source.state_dict(), net.state_dict()
    other = [name for name in own | given if _shape(own.get(name)) != _shape(given.get(name))]
    foreign = [name for name in other if not name.endswith(_BRANCH)]
    if foreign:
        raise LabError(
            f"cannot start from {config.start_from}: {len(foreign)} tensors differ from the network asked for, first "
            f"{foreign[0]} ({_shape(given.get(foreign[0]))} there, {_shape(own.get(foreign[0]))} here); use its own settings"
        )
    net.load_state_dict({name: tensor for name, tensor in given.items() if name not in other}, strict=False)
    if source.built_with.mode != net.built_with.mode:
        _keep_row_sums(source, net)
    return net


@torch.no_grad()
def _keep_row_sums(source: DerainTransformer, net: DerainTransformer) -> None:
    for theirs, ours in zip(source.attention_layers().values(), net.attention_layers().values()):
        total = _row_sum(theirs.weights)
        if isinstance(ours.weights.branch, torch.nn.Parameter):
            ours.weights.branch.fill_(total / len(ours.weights.branch))
        else:
            ours.project.weight.mul_(total)


def _row_sum(weights: AttentionWeights) -> float:
    """What each row of the fused weights adds up to: a of the dense branch, and b of every sparse one."""
    dense, sparse = weights.branches()
    return sum(float(b) for _, b in sparse) + (0.0 if dense is None else float(dense))


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else "x".join(map(str, tensor.shape)) or "scalar"
