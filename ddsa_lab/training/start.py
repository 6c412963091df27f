"""The weights a run starts with: seeded tensor by tensor, or taken from a file."""

from torch import Tensor

from ddsa_lab.errors import LabError
from ddsa_lab.model.checkpoints import load
from ddsa_lab.model.network import DerainTransformer
from ddsa_lab.training.config import TrainConfig


def initial_network(config: TrainConfig) -> DerainTransformer:
    """Build `config.network` with weights from `config.start_from`, or seeded by `config.seed`.

    Seeded networks of one seed start equal in every tensor of equal name and shape.

    Raises:
        LabError: `start_from` cannot be read, or holds tensors of other names or shapes.
    """
    net = DerainTransformer(config.network, seed=config.seed)
    if config.start_from is None:
        return net
    given, own = load(config.start_from).state_dict(), net.state_dict()
    other = [name for name in own | given if _shape(own.get(name)) != _shape(given.get(name))]
    if other:
        raise LabError(
            f"cannot start from {config.start_from}: {len(other)} tensors differ from the network asked for, first "
            f"{other[0]} ({_shape(given.get(other[0]))} there, {_shape(own.get(other[0]))} here); use its own settings"
        )
    net.load_state_dict(given)
    return net


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else "x".join(map(str, tensor.shape)) or "scalar"
